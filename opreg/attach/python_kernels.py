"""Ops without a library: their schemas, and their kernels out of Python functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..meta.fakes import check_tensors
from ..meta.schema import bind, require_tensors
from ..op import Op
from .autograd import reference_backward


def define(op: Op, lib: torch.library.Library) -> None:
    """Schemas and kernels of an op whose kernels are Python functions."""
    arguments, returns = op.schema.rsplit("->", 1)
    if not op.schema.startswith("(") or returns.strip() != "Tensor":
        raise ValueError(f'{op.qualname}: expected a schema "(...) -> Tensor", got "{op.schema}"')
    inner = arguments.strip()[1:-1]
    positional = inner.split(", *, ")[0]
    lib.define(op.short + op.schema)
    tensors = sum("Tensor" in a for a in positional.split(","))
    lib.define(f"{op.short}_backward(Tensor grad_output, {positional}, *, bool[{tensors}] output_mask) -> Tensor[]")
    assert op.kernels is not None
    for key, kernel in op.kernels.items():
        lib.impl(op.short, _checked(op, kernel), key)
    default = {key: lambda *a, **k: reference_backward(op, a, k) for key in op.kernels}
    for key, backward in (op.backward_kernels or default).items():
        lib.impl(op.short + "_backward", backward, key)


def _checked(op: Op, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Python kernel behind the checks that the fake makes: shapes, dtypes, devices."""

    def value(*args: Any, **kwargs: Any) -> Tensor:
        bound = bind(op.value, args, kwargs)
        require_tensors(op.value, bound)
        check_tensors(op.short, bound, op.rule.on_host)
        op.rule(op.short, bound)
        return kernel(*args, **kwargs)

    return value
