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
from .graph.calls import _ALIASES, Call, value_of
from .graph.view import GraphView

_REDUCTIONS = {0: "none", 1: "mean", 2: "sum"}


@dataclass(frozen=True)
class Native:
    """A call of torch that an op can take over: its arguments, by the op's names."""

    op: Op
    arguments: dict[str, Any]
    reason: str = ""
    # the calls beside the replaced one that the op does too
    interior: tuple[fx.Node, ...] = ()
    # what the op's result is multiplied with
    factor: float = 1.0
    # the division that must follow, and that the op does itself
    divided_by: Any = None


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
    parameters, defaults = known
    given: dict[str, Any] = {**dict(zip(parameters, call.args, strict=False)), **call.kwargs}
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


def at(native: Native, node: fx.Node, view: GraphView) -> Native:
    """The same with the arguments as they are at this place: after what wrote to them in place."""
    arguments = {n: view.current(a, node) if isinstance(a, fx.Node) else a for n, a in native.arguments.items()}
    return replace(native, arguments=arguments)


def constants_with_grad(native: Native, view: GraphView) -> str:
    """An argument that the op does not differentiate, and that may require grad."""
    op, arguments = native.op, native.arguments
    bound: dict[str, Any] = dict.fromkeys(op.arguments)
    bound |= {n: value_of(a) for n, a in arguments.items() if isinstance(a, fx.Node)}
    known = all(bound[n] is not None for n in op.tensor_arguments if isinstance(arguments.get(n), fx.Node))
    # an unknown target may be class indices, beside which weights are constants
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
