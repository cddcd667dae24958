"""Calls of torch's own losses and activations as calls of the ops that compute the same."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.nn import _reduction

from ..op import Op
from ..registry import registered
from .graph.calls import _ALIASES, Call, aten_packet, value_of
from .graph.view import GraphView

_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


@dataclass(frozen=True)
class Viewed:
    """A tensor through the views of another one: what these are of it, with the other one first."""

    of: fx.Node
    views: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Native:
    """A call of torch as a call of an op: the arguments are by the op's names."""

    op: Op
    arguments: dict[str, Any]
    # why the op can't take the call over; empty: it can
    reason: str = ""
    # other calls that the op computes too
    interior: tuple[fx.Node, ...] = ()
    # the call's value is the op's times this number
    factor: float = 1.0
    # the op computes the call's value divided by this number, so that a division by it must follow
    divided_by: Any = None


def by_call() -> dict[str, Op]:
    """The op for each call that computes the same, by the name of the call."""
    found = {}
    for op in registered():
        for spelling in op.spellings:
            parts = spelling.split(".")
            name = (parts[1] if parts[0] == "aten" else parts[-1]).rstrip("_")
            found[_ALIASES.get(name, name)] = op
    return found


@cache
def signature(target: Any, name: str) -> tuple[tuple[str, ...], Mapping[str, Any]] | None:
    """The parameters of a function of torch, in order, and their defaults; None where torch does not tell."""
    if not isinstance(target, torch._ops.OpOverload):
        try:
            parameters = inspect.signature(target).parameters.values()
            return tuple(p.name for p in parameters), {p.name: p.default for p in parameters}
        except (TypeError, ValueError):
            packet = aten_packet(name)
            if packet is None:
                return None
            names = packet.overloads()
            target = getattr(packet, "default" if "default" in names else names[0])
    arguments = target._schema.arguments
    return tuple(a.name for a in arguments), {a.name: a.default_value for a in arguments}


def differs(default: Any, of_op: Any) -> bool:
    """Is this default, of a function that has one, another than the op's?"""
    if default is inspect.Parameter.empty or default is None:
        return False
    return bool((_REDUCTIONS.get(default, default) if isinstance(of_op, str) else default) != of_op)


def native_call(call: Call, ops: Mapping[str, Op]) -> Native | None:
    """A call of torch as a call of the op that computes the same, or why it can't be one; None: there is no such op."""
    op = ops.get(call.name)
    if op is None:
        return None
    known = signature(call.target, call.name) if call.target is not None else None
    if known is None:
        return None
    parameters, defaults = known
    given: dict[str, Any] = {**dict(zip(parameters, call.args, strict=False)), **call.kwargs}
    # What torch's function has for an option that is not given, where the op has something else.
    given |= {n: a for n, a in defaults.items() if n not in given and n in op.defaults and differs(a, op.defaults[n])}
    # Tensors that a call must give may have other names: "self", "boxes1".
    others = {n: own for n, own in zip(parameters, op.arguments, strict=False) if own not in op.defaults}
    given = {n if n in op.arguments else others.get(n, n): a for n, a in given.items()}
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
            if value is not None or op.defaults.get(name) is None:  # None stands for another default
                arguments[name] = value
        elif value is not None and value is not False and value != defaults.get(name):
            return Native(op, {}, f"{op.short} has no argument {name}")
    return Native(op, arguments)


def at(native: Native, node: fx.Node, view: GraphView) -> Native:
    """The same call with the values that its arguments have at this node, after what was written to them in place."""
    arguments = {n: view.current(a, node) if isinstance(a, fx.Node) else a for n, a in native.arguments.items()}
    return replace(native, arguments=arguments)


def constants_with_grad(native: Native, view: GraphView) -> str:
    """Why an op may not give all gradients of a call: one of its constants may require grad. Empty: none does."""
    op, arguments = native.op, native.arguments
    bound: dict[str, Any] = dict.fromkeys(op.arguments)
    bound |= {n: value_of(a) for n, a in arguments.items() if isinstance(a, fx.Node)}
    known = all(bound[n] is not None for n in op.tensor_arguments if isinstance(arguments.get(n), fx.Node))
    # a target of unknown dtype may hold class indices, beside which weights are constants
    differentiable = op.differentiable_in(bound) if known else [op.arguments[0]]
    for name in op.tensor_arguments:
        a = arguments.get(name)
        constant = name not in differentiable and name not in op.indices and name not in op.detached
        if not known and name in op.differentiable and name not in ("weight", "linear_weight"):
            continue
        if constant and isinstance(a, fx.Node) and view.requires_grad(a) is not False:
            may = "requires" if view.requires_grad(a) else "may require"
            return f"{name} {may} grad, and is a constant of {op.short}"
    return ""
