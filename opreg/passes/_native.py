"""Calls of torch's own losses and activations as calls of the ops that compute the same."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import _reduction

from ..registry import Op, registered
from ._algebra import rounded
from ._calls import _ALIASES, Call, value_of
from ._order import Order
from ._rule import matches
from .rules import MARGINS

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


def at(native: Native, node: fx.Node, order: Order) -> Native:
    """The same with the arguments as they are at this place: after what wrote to them in place."""
    arguments = {n: order.current(a, node) if isinstance(a, fx.Node) else a for n, a in native.arguments.items()}
    return replace(native, arguments=arguments)


# What computes a call's argument may belong to the op too: log_softmax before nll_loss makes cross_entropy.
Absorber = Callable[[Native, Order], Native | None]


def functional_call(order: Order, a: Any) -> Call | None:
    """The call that made an argument, if that writes to nothing; its own arguments as they were there."""
    call = order.calls.get(a) if isinstance(a, fx.Node) else None
    if call is None or call.in_place:
        return None
    args, kwargs = fx.node.map_arg((call.args, dict(call.kwargs)), lambda n: order.current(n, a))
    return replace(call, args=args, kwargs=kwargs)


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


def cross_entropy_of_logits(native: Native, order: Order) -> Native | None:
    """log_softmax and nll_loss"""
    inner: Any = native.arguments.get("input")
    call = functional_call(order, inner)
    if native.op.short != "nll_loss" or call is None or call.name != "log_softmax" or not uncast(call):
        return None
    x = given(call, 0, "input", "self")
    if not over_classes(given(call, 1, "dim"), x, rank_free=True):
        return None
    return Native(_op("cross_entropy"), {**native.arguments, "input": x}, interior=(inner,))


def binary_cross_entropy_of_logits(native: Native, order: Order) -> Native | None:
    """sigmoid and binary_cross_entropy"""
    inner: Any = native.arguments.get("input")
    call = functional_call(order, inner)
    if native.op.short != "binary_cross_entropy" or call is None or call.name != "sigmoid":
        return None
    if not in_unit(order, native.arguments.get("target")):  # of another target, which is an error, logits know nothing
        return None
    arguments = {**native.arguments, "input": given(call, 0, "input", "self")}
    return Native(_op("binary_cross_entropy_with_logits"), arguments, interior=(inner,))


# Calls whose results lie in [0, 1], and calls that keep their first argument's elements or choose among them.
_UNIT = frozenset(
    {"sigmoid", "softmax", "hardsigmoid", "one_hot", "zeros_like", "ones_like"}
    | {"gt", "ge", "lt", "le", "eq", "ne", "isnan", "logical_and", "logical_or", "logical_not"}
)
_SAME_ELEMENTS = frozenset(
    {"to", "float", "double", "half", "bfloat16", "type_as", "detach", "clone", "contiguous", "reshape", "flatten"}
    | {"unsqueeze", "squeeze", "expand", "expand_as", "permute", "transpose", "select", "slice", "relu", "mean"}
)


def in_unit(order: Order, a: Any) -> bool:
    """Does the graph itself show that every element lies in [0, 1] (or is NaN)?"""
    for _ in range(8):
        if not isinstance(a, fx.Node):
            return False
        t, call = value_of(a), functional_call(order, a)
        if isinstance(t, Tensor) and t.dtype == torch.bool:
            return True
        if call is None:
            return False
        if call.name in _UNIT:
            return True
        if call.name in ("clamp", "hardtanh"):
            low, high = given(call, 1, "min", "min_val"), given(call, 2, "max", "max_val")
            numbers = isinstance(low, int | float) and isinstance(high, int | float)
            return numbers and 0 <= low <= high <= 1
        if call.name not in _SAME_ELEMENTS:
            return False
        a = given(call, 0, "input", "self")
    return False


def scaled(order: Order, a: Any) -> tuple[Any, float, tuple[fx.Node, ...]]:
    """A node, the number that it is multiplied with to make another one, and the call that does."""
    call = functional_call(order, a)
    if call is None or call.name not in ("div", "mul") or len(call.args) != 2 or call.kwargs:
        return a, 1.0, ()
    left, right = call.args
    if isinstance(left, int | float) and call.name == "mul":
        left, right = right, left
    if not isinstance(left, fx.Node) or not isinstance(right, int | float) or right == 0:
        return a, 1.0, ()
    return left, 1 / right if call.name == "div" else float(right), (a,)


def distillation(native: Native, order: Order) -> Native | None:
    """distillation_loss, softmax and kl_div"""
    arguments = native.arguments
    if native.op.short != "kl_div" or arguments.get("reduction", "mean") not in ("sum", "batchmean"):
        return None
    sides: list[tuple[Any, float]] = []
    interior: list[fx.Node] = []
    teacher_function = "log_softmax" if arguments.get("log_target", False) else "softmax"
    for name, function in (("input", "log_softmax"), ("target", teacher_function)):
        inner: Any = arguments.get(name)
        call = functional_call(order, inner)
        if call is None or call.name != function or not uncast(call):
            return None
        logits = given(call, 0, "input", "self")
        if not over_classes(given(call, 1, "dim"), logits, rank_free=False):
            return None
        x, factor, division = scaled(order, logits)
        sides.append((x, factor))
        interior += [inner, *division]
    (student, factor), (teacher, same) = sides
    t = value_of(student)
    if factor != same or factor <= 0 or not isinstance(t, Tensor) or order.requires_grad(teacher) is not False:
        return None
    if t.dim() != 2:  # batchmean divides by the batch, the op's mean by the number of rows
        return None
    reduction = "sum" if arguments["reduction"] == "sum" else "mean"
    call_of = {"input": student, "target": teacher, "temperature": rounded(1 / factor), "reduction": reduction}
    return Native(_op("distillation_loss"), call_of, interior=tuple(interior), factor=factor**2)


def batch_mean(native: Native, order: Order) -> Native | None:
    """kl_div and its division by the batch"""
    # F.kl_div(reduction="batchmean") is two calls in an exported graph
    t = value_of(native.arguments.get("input"))
    if native.op.short != "kl_div" or native.arguments.get("reduction") != "sum" or not isinstance(t, Tensor):
        return None
    if t.dim() == 0:  # no batch
        return None
    return Native(native.op, {**native.arguments, "reduction": "batchmean"}, divided_by=t.shape[0])


def margin_loss(native: Native, order: Order) -> Native | None:
    """cross_entropy of logits with a margin"""
    arguments = native.arguments
    if native.op.short != "cross_entropy" or arguments.get("weight") is not None or arguments.get("label_smoothing"):
        return None
    root = arguments.get("input")
    if not isinstance(root, fx.Node):
        return None
    for name, rules in MARGINS.items():
        for match in matches(rules, order, root, order.module):
            if match.tensors["target"] is arguments["target"] and not match.rule.condition(match.arguments):
                options: dict[str, Any] = {n: a for n, a in arguments.items() if n in ("ignore_index", "reduction")}
                call: dict[str, Any] = {**match.tensors, **match.numbers, **options}
                return Native(_op(name), call, interior=(*match.interior, root))
    return None


ABSORBERS: tuple[Absorber, ...] = (
    cross_entropy_of_logits,
    binary_cross_entropy_of_logits,
    distillation,
    batch_mean,
    margin_loss,
)


def _op(short: str) -> Op:
    return next(op for op in registered() if op.qualname == f"lossreg::{short}")


def constants_with_grad(native: Native, order: Order) -> str:
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
        if constant and isinstance(a, fx.Node) and order.requires_grad(a) is not False:
            may = "requires" if order.requires_grad(a) else "may require"
            return f"{name} {may} grad, and is a constant of {op.short}"
    return ""
