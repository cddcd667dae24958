"""Between which numbers an expression lies, whatever its inputs are: a NaN apart."""

import math
from collections.abc import Callable

from .expression import Expr, Variable, number

Range = tuple[float, float]
_ALL: Range = (-math.inf, math.inf)


def _product(a: float, b: float) -> float:
    return 0.0 if a == 0 or b == 0 else a * b


def _monotone(f: Callable[[float], float]) -> Callable[[Range], Range]:
    def image(x: Range) -> Range:
        def at(v: float) -> float:
            try:
                return f(v)
            except OverflowError:
                return math.inf
            except ValueError:
                return -math.inf

        return at(x[0]), at(x[1])

    return image


def _softplus(v: float) -> float:
    return max(v, 0.0) + math.log1p(math.exp(-abs(v)))


def _sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v)) if v >= 0 else math.exp(v) / (1 + math.exp(v))


_MONOTONE: dict[str, Callable[[Range], Range]] = {
    "exp": _monotone(math.exp),
    "expm1": _monotone(math.expm1),
    "log": _monotone(lambda v: math.inf if v == math.inf else math.log(v)),
    "log1p": _monotone(lambda v: math.inf if v == math.inf else math.log1p(v)),
    "softplus": _monotone(_softplus),
    "sigmoid": _monotone(_sigmoid),
    "tanh": _monotone(math.tanh),
    "erf": _monotone(math.erf),
    "atan": _monotone(math.atan),
    "detach": lambda x: x,
    "neg": lambda x: (-x[1], -x[0]),
    "relu": lambda x: (max(x[0], 0.0), max(x[1], 0.0)),
    "sqrt": lambda x: (math.sqrt(max(x[0], 0.0)), math.sqrt(max(x[1], 0.0))),
}
_FIXED: dict[str, Range] = {
    "dsigmoid": (0.0, 0.25),
    "erfc": (0.0, 2.0),
    "sin": (-1.0, 1.0),
    "cos": (-1.0, 1.0),
    "cosh": (1.0, math.inf),
    "log_cosh": (0.0, math.inf),
    "sign": (-1.0, 1.0),
    "log1mexp": (-math.inf, 0.0),
    "exp_negative": (0.0, 1.0),
    "inverse_1p_unit": (0.5, 1.0),
    "log1p_unit": (0.0, math.log(2.0)),
    "one_minus_exp": (0.0, 1.0),
    "pow_unit": (0.0, 1.0),
}
_known: dict[int, tuple[Expr, Range]] = {}


def range_of(e: Expr) -> Range:
    """The least and the greatest number that it can be."""
    if id(e) in _known and _known[id(e)][0] is e:
        return _known[id(e)][1]
    if len(_known) > 10_000:
        _known.clear()
    found = _range(e)
    if found[0] != found[0] or found[1] != found[1]:
        found = _ALL
    _known[id(e)] = (e, found)
    return found


def _range(e: Expr) -> Range:
    if e.op == "const":
        return number(e), number(e)
    if isinstance(e.value, Variable):
        return e.value.low, e.value.high
    if e.op in _FIXED:
        return _FIXED[e.op]
    if not e.args or e.is_truth:
        return _ALL
    args = [range_of(a) for a in e.args]
    if e.op in _MONOTONE:
        return _MONOTONE[e.op](args[0])
    x, y = args[0], args[-1]
    if e.op == "abs":
        return (0.0 if x[0] <= 0 <= x[1] else min(abs(x[0]), abs(x[1]))), max(abs(x[0]), abs(x[1]))
    if e.op == "add":
        return x[0] + y[0], x[1] + y[1]
    if e.op == "sub":
        return x[0] - y[1], x[1] - y[0]
    if e.op == "mul":
        ends = [_product(a, b) for a in x for b in y]
        if e.args[0] is e.args[1]:
            return 0.0 if x[0] <= 0 <= x[1] else min(ends), max(ends)
        return min(ends), max(ends)
    if e.op == "div":
        if x[0] >= 0 and y[0] >= 0:
            return 0.0, math.inf
        return _ALL
    if e.op == "pow":
        if x[0] >= 0 and x[1] <= 1 and y[0] >= 0:
            return 0.0, 1.0
        return (0.0, math.inf) if x[0] >= 0 else _ALL
    if e.op in ("max", "clamp_min", "maximum", "at_least"):
        return max(x[0], y[0]), max(x[1], y[1])
    if e.op in ("min", "clamp_max", "minimum", "at_most"):
        return min(x[0], y[0]), min(x[1], y[1])
    if e.op == "where":
        x = args[1]
        return min(x[0], y[0]), max(x[1], y[1])
    return _ALL


def is_positive(e: Expr) -> bool:
    """Is it never below 0?"""
    return range_of(e)[0] >= 0


def in_unit(e: Expr) -> bool:
    """Is it in [0, 1]?"""
    low, high = range_of(e)
    return low >= 0 and high <= 1
