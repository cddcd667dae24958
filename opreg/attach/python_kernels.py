"""Ops without a library: their schemas, and their kernels out of Python functions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..messages.words import said
from ..meta.fakes import check_tensors, no_gradient
from ..meta.schema import bind, require_tensors, returned
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
    results = ", ".join(["Tensor"] * tensors)
    lib.define(
        f"{op.short}_backward(Tensor grad_output, {positional}, *, bool[{tensors}] needs_input_grad) -> ({results})"
    )
    assert op.kernels is not None
    for key, kernel in op.kernels.items():
        lib.impl(op.short, _checked(op, kernel), key)
    default = {key: lambda *a, **k: reference_backward(op, a, k) for key in op.kernels}
    for key, backward in (op.backward_kernels or default).items():
        lib.impl(op.short + "_backward", _filled(op, backward), key)


def _checked(op: Op, kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A Python kernel behind the checks that the fake makes: shapes, dtypes, devices."""

    def value(*args: Any, **kwargs: Any) -> Tensor:
        bound = bind(op.value, args, kwargs)
        require_tensors(op.value, bound)
        check_tensors(op.short, bound, op.rule.on_host)
        op.rule(op.short, bound)
        return kernel(*args, **kwargs)

    return value


def _filled(op: Op, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A Python kernel of ``NAME_backward``: what it returns is looked at, and a None in it filled."""

    def backward(*args: Any, **kwargs: Any) -> Any:
        bound, got = bind(op.backward, args, kwargs), kernel(*args, **kwargs)
        mask, grads = bound["needs_input_grad"], got if isinstance(got, tuple) else (got,)
        fits = [isinstance(g, Tensor) or (g is None and not wanted) for g, wanted in zip(grads, mask, strict=False)]
        if len(grads) != len(mask) or not all(fits):
            made = f"a tuple of {len(got)}" if isinstance(got, tuple) and len(got) != len(mask) else said(got)
            raise RuntimeError(
                f"{op.short}_backward: expected its kernel to return a tuple with a gradient for each of "
                f"{', '.join(op.differentiable)}, None only where needs_input_grad says False, got {made}"
            )
        return returned([no_gradient(bound["grad_output"]) if g is None else g for g in grads])

    return backward
