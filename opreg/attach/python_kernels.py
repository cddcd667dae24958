"""Ops without a library: their schemas, and their kernels out of Python functions."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..messages.words import said
from ..meta.fakes import check_tensors, given_gradients, no_gradient
from ..meta.schema import bind, require_tensors, returned
from ..op import Op
from .autograd import reference_backward


def define(op: Op, lib: torch.library.Library) -> None:
    """Schemas and kernels of an op whose kernels are Python functions."""
    arguments, returns = op.schema.rsplit("->", 1)
    names = _result_names(returns.strip())
    if not op.schema.startswith("(") or names is None:
        expected = '"(...) -> Tensor", or "(...) -> (Tensor first, Tensor second)" with a name for each result'
        raise ValueError(f'{op.qualname}: expected a schema {expected}, got "{op.schema}"')
    gradients = ", ".join(f"Tensor? grad_{name}" for name in names) or "Tensor grad_output"
    inner = arguments.strip()[1:-1]
    positional = inner.split(", *, ")[0]
    lib.define(op.short + op.schema)
    tensors = sum("Tensor" in a for a in positional.split(","))
    results = ", ".join(["Tensor"] * tensors)
    lib.define(f"{op.short}_backward({gradients}, {positional}, *, bool[{tensors}] needs_input_grad) -> ({results})")
    assert op.kernels is not None
    for key, kernel in op.kernels.items():
        lib.impl(op.short, _checked(op, kernel), key)
    default = {key: lambda *a, **k: reference_backward(op, a, k) for key in op.kernels}
    for key, backward in (op.backward_kernels or default).items():
        lib.impl(op.short + "_backward", _filled(op, backward), key)


def _result_names(returns: str) -> list[str] | None:
    """The names of several results in a schema, none of one result; None where it is neither."""
    if returns == "Tensor":
        return []
    names = re.findall(r"Tensor (\w+)", returns)
    return names if len(names) > 1 and returns == f"({', '.join(f'Tensor {name}' for name in names)})" else None


def _checked(op: Op, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A Python kernel behind the checks that the fake makes: shapes, dtypes, devices; and of several results, whether
    it returns as many."""

    def value(*args: Any, **kwargs: Any) -> Any:
        bound = bind(op.value, args, kwargs)
        require_tensors(op.value, bound)
        check_tensors(op.short, bound, op.rule.on_host)
        op.rule(op.short, bound)
        got = kernel(*args, **kwargs)
        if len(op.results) == 1:
            return got
        tensors = isinstance(got, tuple) and all(isinstance(t, Tensor) for t in got)
        if not tensors or len(got) != len(op.results):
            made = f"a tuple of {len(got)} tensors" if tensors else said(got)
            raise RuntimeError(
                f"{op.short}: expected its kernel to return a tuple of {', '.join(op.results)}, got {made}"
            )
        return got

    return value


def _filled(op: Op, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """A Python kernel of ``NAME_backward``: what it returns is looked at, and a None in it filled."""

    def backward(*args: Any, **kwargs: Any) -> Any:
        bound = bind(op.backward, args, kwargs)
        given = given_gradients(op.short, op.gradients_of_results, bound)
        got = kernel(*args, **kwargs)
        mask, grads = bound["needs_input_grad"], got if isinstance(got, tuple) else (got,)
        fits = [isinstance(g, Tensor) or (g is None and not wanted) for g, wanted in zip(grads, mask, strict=False)]
        if len(grads) != len(mask) or not all(fits):
            made = f"a tuple of {len(got)}" if isinstance(got, tuple) and len(got) != len(mask) else said(got)
            raise RuntimeError(
                f"{op.short}_backward: expected its kernel to return a tuple with a gradient for each of "
                f"{', '.join(op.differentiable)}, None only where needs_input_grad says False, got {made}"
            )
        return returned([no_gradient(next(iter(given.values()))) if g is None else g for g in grads])

    return backward
