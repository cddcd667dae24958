"""What the elements of a tensor can be, as far as a graph shows: bounds, and whether they are whole numbers.

A target that comes from a comparison, from ``one_hot`` or from a cast of a mask is 0 or 1; a variance that is clamped
is not 0. What nothing in the graph bounds may be anything, NaN too.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .calls import Call, value_of
from .view import GraphView

INF = math.inf


@dataclass(frozen=True)
class Range:
    """Every element lies between two bounds, or is NaN; where they are whole numbers, none is NaN."""

    low: float = -INF
    high: float = INF
    whole: bool = False

    @property
    def binary(self) -> bool:
        return self.whole and self.low >= 0 and self.high <= 1

    def within(self, low: float, high: float) -> bool:
        return low <= self.low and self.high <= high


ANYTHING, BINARY, UNIT = Range(), Range(0, 1, True), Range(0, 1)


def hull(ranges: Iterable[Range]) -> Range:
    found = list(ranges)
    return Range(min(r.low for r in found), max(r.high for r in found), all(r.whole for r in found))


def of_corners(f: Callable[[float, float], float], a: Range, b: Range) -> Range:
    """The range of a function that has its extreme values at extreme arguments."""
    corners = [f(x, y) for x in (a.low, a.high) for y in (b.low, b.high)]
    if not all(map(math.isfinite, corners)):  # a difference of infinities would be NaN
        return ANYTHING if any(map(math.isnan, corners)) else Range(min(corners), max(corners))
    return Range(min(corners), max(corners), a.whole and b.whole)


def monotone(f: Callable[[float], float], a: Range) -> Range:
    def at(x: float) -> float:
        try:
            return f(x)
        except OverflowError:
            return INF
        except ValueError:  # a logarithm of what is not positive
            return -INF

    return Range(at(a.low), at(a.high))


_BINARY_CALLS = frozenset(
    {"gt", "ge", "lt", "le", "eq", "ne", "isnan", "isfinite", "isinf", "isin", "one_hot", "eye"}
    | {"logical_and", "logical_or", "logical_not", "logical_xor"}
)
_UNIT_CALLS = frozenset({"sigmoid", "softmax", "hardsigmoid"})
# Calls whose elements are elements of their first argument.
_SAME_ELEMENTS = frozenset(
    {"detach", "clone", "contiguous", "reshape", "flatten", "unsqueeze", "squeeze", "expand", "expand_as", "permute"}
    | {"transpose", "movedim", "moveaxis", "mT", "t", "select", "slice", "getitem", "index", "gather", "narrow", "flip"}
    | {"view_as", "reshape_as", "unflatten", "repeat", "repeat_interleave", "index_select", "masked_select", "roll"}
    | {
        "unbind",
        "chunk",
        "split",
        "amax",
        "amin",
        "alias",
        "tile",
        "lift_fresh_copy",
        "detach_copy",
        "take_along_dim",
        "diagonal",
        "diag_embed",
    }
)
CASTS = frozenset({"to", "float", "double", "half", "bfloat16", "type_as", "long", "int", "bool", "type"})
_MONOTONE: dict[str, Callable[[float], float]] = {
    "exp": math.exp,
    "relu": lambda x: max(x, 0.0),
    "softplus": lambda x: max(x, 0.0) if x > 30 else math.log1p(math.exp(x)),
    "sqrt": lambda x: math.sqrt(max(x, 0.0)),
    "log": math.log,
    "tanh": math.tanh,
}
# Numbers that are whole in every floating dtype.
_EXACT = 256


class Ranges:
    """The ranges of the nodes of a graph, found when asked for; what was found stays true while calls are replaced."""

    def __init__(self, view: GraphView) -> None:
        self.view = view
        self.known: dict[fx.Node, Range] = view.work.ranges

    def of(self, node: Any) -> Range:
        if isinstance(node, bool | int | float):
            return ANYTHING if node != node else Range(float(node), float(node), float(node).is_integer())
        if not isinstance(node, fx.Node):
            return ANYTHING
        waiting = [node]
        while waiting:  # a loop, since graphs are deep
            n = waiting[-1]
            call = self.view.calls.get(n)
            missing = [i for i in self.view.inputs(n) if i not in self.known] if call and n not in self.known else []
            if missing:
                waiting += missing
                continue
            waiting.pop()
            if n not in self.known:
                self.known[n] = self._of_dtype(n, self._of_call(n, call))
        return self.known[node]

    def _of_dtype(self, node: fx.Node, found: Range) -> Range:
        value = value_of(node)
        if isinstance(value, torch.SymInt):
            return Range(whole=True)
        if not isinstance(value, Tensor) or value.is_complex():
            return found
        if value.dtype == torch.bool:
            return BINARY
        if value.is_floating_point():
            return found
        limits = torch.iinfo(value.dtype)
        return Range(max(found.low, limits.min), min(found.high, limits.max), True)

    def _of_call(self, node: fx.Node, call: Call | None) -> Range:
        if call is None or self._written_elsewhere(node):
            return ANYTHING
        args = [self._operand(a, node) for a in call.args]
        kwargs = {k: self._operand(a, node) for k, a in call.kwargs.items()}
        try:
            return self._elements(call, node, args, kwargs)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError):
            return ANYTHING

    def _operand(self, a: Any, user: fx.Node) -> Any:
        return self.view.current(a, user) if isinstance(a, fx.Node) else a

    def _written_elsewhere(self, node: fx.Node) -> bool:
        """May something write to the node's memory that its readers do not read through a node of their own?"""
        view = self.view
        memory = view._memory[node] if view.writes else None
        return memory is not None and any(
            not w.followed and any(view._memory[t] is memory for t in w.tensors) for w in view.writes
        )

    def _elements(self, call: Call, node: fx.Node, args: list[Any], kwargs: dict[str, Any]) -> Range:
        name = call.name
        if name in _BINARY_CALLS:
            return BINARY
        if name in _UNIT_CALLS:
            return UNIT
        if name in ("zeros_like", "zeros", "new_zeros"):
            return Range(0, 0, True)
        if name in ("ones_like", "ones", "new_ones"):
            return Range(1, 1, True)
        if name in ("full_like", "new_full", "full"):
            return self.of(kwargs.get("fill_value", args[1] if len(args) > 1 else None))
        if name == "setitem":
            return hull([self.of(args[0]), self.of(args[2])])
        if name in ("masked_fill", "index_fill", "scatter"):
            place = 2 if name == "masked_fill" else 3
            new = args[place] if len(args) > place else kwargs.get("value", kwargs.get("src"))
            return ANYTHING if "reduce" in kwargs or len(args) > place + 1 else hull([self.of(args[0]), self.of(new)])
        if name == "index_put":
            return hull([self.of(args[0]), self.of(args[2])]) if len(args) == 3 and not kwargs else ANYTHING
        if name == "where":
            return hull([self.of(args[1]), self.of(args[2])])
        if name == "pad":
            return hull([self.of(args[0]), self.of(kwargs.get("value", args[3] if len(args) > 3 else 0))])
        if name in ("cat", "stack"):
            return hull(self.of(self._operand(t, node)) for t in args[0])
        first = args[0] if args else kwargs.get("input", kwargs.get("self"))
        x = self.of(first)
        if name in _SAME_ELEMENTS:
            return x
        if name in CASTS:
            return self._cast(node, first, x)
        if name in _MONOTONE:
            return monotone(_MONOTONE[name], x)
        return self._arithmetic(name, x, args, kwargs)

    def _cast(self, node: fx.Node, before: Any, x: Range) -> Range:
        value, source = value_of(node), value_of(before)
        if not isinstance(value, Tensor) or not isinstance(source, Tensor):
            return ANYTHING
        if not value.is_floating_point():  # rounds towards 0
            return Range(math.floor(x.low) if x.low > -INF else -INF, math.ceil(x.high) if x.high < INF else INF, True)
        return Range(x.low, x.high, x.whole and x.within(-_EXACT, _EXACT))

    def _arithmetic(self, name: str, x: Range, args: list[Any], kwargs: dict[str, Any]) -> Range:
        if name == "neg":
            return Range(-x.high, -x.low, x.whole)
        if name in ("abs", "square"):
            low, high = (0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high))), max(abs(x.low), abs(x.high))
            return Range(low, high, x.whole) if name == "abs" else Range(low**2, high**2, x.whole)
        if name in ("clamp", "clamp_min", "clamp_max", "hardtanh"):
            return self._clamped(name, x, args, kwargs)
        if name == "mean":
            return Range(x.low, x.high)
        if name == "sum":
            return Range(0 if x.low >= 0 else -INF, 0 if x.high <= 0 else INF)
        if kwargs.keys() - {"other", "exponent"}:  # as alpha=2
            return ANYTHING
        other = kwargs.get("other", kwargs.get("exponent", args[1] if len(args) > 1 else None))
        y = self.of(other)
        if name == "pow" and isinstance(other, int | float):
            even = float(other).is_integer() and other % 2 == 0
            return x if x.binary and other > 0 else Range(low=0) if even or x.low >= 0 else ANYTHING
        if name == "div" and isinstance(other, int | float) and other != 0:
            found = of_corners(lambda a, b: a / b, x, y)
            return Range(found.low, found.high)
        if name == "rsub":
            x, y, name = y, x, "sub"
        functions: dict[str, Callable[[float, float], float]] = {
            "add": lambda a, b: a + b,
            "sub": lambda a, b: a - b,
            "mul": lambda a, b: a * b,
            "maximum": max,
            "minimum": min,
        }
        if name in ("and", "bitwise_and", "__and__", "bitwise_or", "__or__"):
            return BINARY if x.binary and y.binary else ANYTHING
        return of_corners(functions[name], x, y) if name in functions else ANYTHING

    def _clamped(self, name: str, x: Range, args: list[Any], kwargs: dict[str, Any]) -> Range:
        low, high = [*args[1:3], None, None][:2]
        if name == "clamp_max":
            low, high = None, low
        low = kwargs.get("min", kwargs.get("min_val", low))
        high = kwargs.get("max", kwargs.get("max_val", high))
        if name == "hardtanh":
            low, high = -1.0 if low is None else low, 1.0 if high is None else high
        bounds = [a for a in (low, high) if a is not None]
        if not all(isinstance(a, int | float) for a in bounds):
            return ANYTHING
        lowest, highest = -INF if low is None else float(low), INF if high is None else float(high)
        if lowest > highest:  # everything becomes the upper bound
            return Range(highest, highest)
        whole = x.whole and all(float(a).is_integer() for a in bounds)
        return Range(min(max(x.low, lowest), highest), min(max(x.high, lowest), highest), whole)
