"""Calls of torch's own losses and activations as calls of the ops that compute the same."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import _reduction

from ..registry import Op, registered
from ._calls import _ALIASES, Attribute, Call, value_of
from ._evaluate import Order

_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


@dataclass(frozen=True)
class Native:
    """A call of torch that an op can take over: its arguments, by the op's names."""

    op: Op
    arguments: dict[str, Any]
    reason: str = ""


def by_call() -> dict[str, Op]:
    """The ops by the names of the calls that compute the same."""
    found = {}
    for op in registered():
        for spelling in op.spellings:
            parts = spelling.split(".")
            name = (parts[1] if parts[0] == "aten" else parts[-1]).rstrip("_")
            found[_ALIASES.get(name, name)] = op
    return found


@cache
def signature(target: Any, name: str) -> tuple[tuple[str, ...], Mapping[str, Any]] | None:
    """The parameters of a function of torch, in order, and their defaults."""
    if not isinstance(target, torch._ops.OpOverload):
        try:
            parameters = inspect.signature(target).parameters.values()
            return tuple(p.name for p in parameters), {p.name: p.default for p in parameters}
        except (TypeError, ValueError):
            packet = getattr(torch.ops.aten, name, None)
            if packet is None:
                return None
            target = getattr(packet, packet.overloads()[0])
    arguments = target._schema.arguments
    return tuple(a.name for a in arguments), {a.name: a.default_value for a in arguments}


def native_call(call: Call, ops: Mapping[str, Op]) -> Native | None:
    """The op that a call can be replaced by, or why it can't."""
    op = ops.get(call.name)
    if op is None:
        return None
    known = signature(call.target, call.name) if call.target is not None else None
    if known is None:
        return None
    order, defaults = known
    given: dict[str, Any] = {**dict(zip(order, call.args, strict=False)), **call.kwargs}
    if "self" in given and "self" not in op.arguments:
        given = {op.arguments[0] if n == "self" else n: a for n, a in given.items()}
    if given.get("size_average") is not None or given.get("reduce") is not None:
        given["reduction"] = _reduction.legacy_get_string(
            given.get("size_average"), given.get("reduce"), emit_warning=False
        )
    given.pop("size_average", None)
    given.pop("reduce", None)
    if isinstance(given.get("reduction"), int):
        given["reduction"] = _REDUCTIONS.get(given["reduction"], "none")
    arguments = {}
    for name, value in given.items():
        if name in op.arguments:
            if value is not None or op.defaults.get(name) is None:  # None: the default
                arguments[name] = value
        elif value is not None and value is not False and value != defaults.get(name):
            return Native(op, {}, f"{op.short} has no argument {name}")
    return Native(op, arguments)


# What computes a call's argument may belong to the op too: log_softmax before nll_loss makes cross_entropy.
Absorber = Callable[[Native, fx.Node, Order], Native | None]


def argument_call(order: Order, a: Any, user: fx.Node) -> tuple[fx.Node, Call] | None:
    if not isinstance(a, fx.Node):
        return None
    node = order.current(a, user)
    call = order.calls.get(node)
    return None if call is None else (node, call)


def given(call: Call, index: int, *names: str) -> Any:
    """An argument, by place or by one of its names."""
    if len(call.args) > index:
        return call.args[index]
    return next((call.kwargs[n] for n in names if n in call.kwargs), None)


def uncast(call: Call) -> bool:
    """No dtype is asked for."""
    return call.kwargs.get("dtype") is None and not any(isinstance(a, torch.dtype) or a is True for a in call.args)


def over_classes(dim: Any, x: Any, rank_free: bool) -> bool:
    """Is this the class dimension: 1, or that of a row alone?"""
    if not isinstance(dim, int):
        return False
    t = value_of(x) if isinstance(x, fx.Node) else None
    if isinstance(t, Tensor):
        return dim % max(t.dim(), 1) == min(1, t.dim() - 1)
    return rank_free and dim == 1


def cross_entropy_of_logits(native: Native, node: fx.Node, order: Order) -> Native | None:
    """log_softmax and nll_loss"""
    found = argument_call(order, native.arguments.get("input"), node)
    if native.op.short != "nll_loss" or found is None or found[1].name != "log_softmax" or not uncast(found[1]):
        return None
    x = given(found[1], 0, "input", "self")
    if not over_classes(given(found[1], 1, "dim"), x, rank_free=True):
        return None
    return Native(_op("cross_entropy"), {**native.arguments, "input": x})


def binary_cross_entropy_of_logits(native: Native, node: fx.Node, order: Order) -> Native | None:
    """sigmoid and binary_cross_entropy"""
    found = argument_call(order, native.arguments.get("input"), node)
    if native.op.short != "binary_cross_entropy" or found is None or found[1].name != "sigmoid":
        return None
    arguments = {**native.arguments, "input": given(found[1], 0, "input", "self")}
    return Native(_op("binary_cross_entropy_with_logits"), arguments)


ABSORBERS: tuple[Absorber, ...] = (cross_entropy_of_logits, binary_cross_entropy_of_logits)


def _op(short: str) -> Op:
    return next(op for op in registered() if op.qualname == f"lossreg::{short}")


def constants_with_grad(native: Native, order: Order) -> str:
    """An argument that the op does not differentiate, and that may require grad."""
    op, arguments = native.op, native.arguments
    bound = {**dict.fromkeys(op.arguments), **{n: value_of(a) for n, a in arguments.items() if isinstance(a, fx.Node)}}
    known = all(bound[n] is not None for n in op.tensor_arguments if isinstance(arguments.get(n), fx.Node))
    # an unknown target may be class indices, beside which weights are constants
    differentiable = op.differentiable_in(bound) if known else [op.arguments[0]]
    for name in op.tensor_arguments:
        a = arguments.get(name)
        constant = name not in differentiable and name not in op.indices and name not in op.detached
        if not known and name in op.differentiable and name not in ("weight", "linear_weight"):
            continue
        if constant and isinstance(a, fx.Node) and order.requires_grad(a) is not False:
            may = "requires" if order.requires_grad(a) else "may require"
            return f"{name} {may} grad, and is a constant of {op.short}"
    return ""
