"""Functions of elements."""

import math
import operator
from collections.abc import Callable
from typing import Any

from torch import fx

from ...graph.calls import sizes, value_of
from .. import algebra
from ..algebra import Poly, atom, constant
from ..evaluate import Evaluator, handlers, handles
from ..values import Opaque, Value, bound, combine, detached, number, plain
from .norms import powered


def unary(name: str, f: Callable[[Poly], Poly]) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any) -> Any:
        return combine(f, x)

    handlers[name] = handler


ONE = constant(1)
_FUNCTIONS: dict[str, Callable[[Poly], Poly]] = {
    "sigmoid": algebra.sigmoid,
    "exp": algebra.exponential,
    "expm1": lambda p: algebra.exponential(p) - ONE,
    "log": algebra.logarithm,
    "log1p": lambda p: algebra.logarithm(p + ONE),
    "log_sigmoid": lambda p: -algebra.softplus(-p),
    "tanh": algebra.odd("tanh"),
    "atan": algebra.odd("atan"),
    "erf": algebra.odd("erf"),
    "erfc": lambda p: ONE - algebra.odd("erf")(p),
    "cosh": lambda p: (algebra.exponential(p) + algebra.exponential(-p)).scaled(0.5),
    "relu": algebra.relu,
    "relu6": lambda p: algebra.clamp(p, 0, 6),
    "hardsigmoid": lambda p: algebra.clamp(p + constant(3), 0, 6).scaled(1 / 6),
    "abs": algebra.absolute,
    "neg": operator.neg,
    "positive": lambda p: p,
    "square": lambda p: powered(p, 2),
    "isinf": lambda p: atom("isinf", p),
    "sqrt": lambda p: algebra.power(p, 0.5),
    "rsqrt": lambda p: algebra.power(p, -0.5),
    "reciprocal": lambda p: algebra.power(p, -1),
    "silu": lambda p: p * algebra.sigmoid(p),
    "hardswish": lambda p: p * algebra.clamp(p + constant(3), 0, 6).scaled(1 / 6),
    "mish": lambda p: p * algebra.odd("tanh")(algebra.softplus(p)),
}
for _name, _f in _FUNCTIONS.items():
    unary(_name, _f)


@handles("logaddexp")
def _logaddexp(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    return combine(lambda a, b: algebra.logarithm(algebra.exponential(a) + algebra.exponential(b)), x, other)


@handles("tensor")
def _tensor(e: Evaluator, node: fx.Node, of: Any, **kwargs: Any) -> Any:
    """A number as a tensor: one that every floating dtype has."""
    if not (plain(of) * 256).is_integer() or abs(plain(of)) > 1:
        raise Opaque("a number that is rounded")
    return of


@handles("softplus")
def _softplus(e: Evaluator, node: fx.Node, x: Any, beta: Any = None, threshold: Any = None) -> Any:
    if (beta is not None and plain(beta) != 1) or (threshold is not None and plain(threshold) < 20):
        raise Opaque("softplus")
    return combine(algebra.softplus, x)


@handles("gelu")
def _gelu(e: Evaluator, node: fx.Node, x: Any, approximate: Any = "none") -> Any:
    def of(p: Poly) -> Poly:
        if approximate == "none":
            return (p + p * algebra.odd("erf")(p.scaled(math.sqrt(0.5)))).scaled(0.5)
        inner = p + algebra.power(p, 3).scaled(0.044715)
        return (p + p * algebra.odd("tanh")(inner.scaled(math.sqrt(2 / math.pi)))).scaled(0.5)

    return combine(of, x)


@handles("add")
def _add(e: Evaluator, node: fx.Node, x: Any, other: Any, *, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: a + b.scaled(factor), x, other)


@handles("sub")
def _sub(e: Evaluator, node: fx.Node, x: Any, other: Any, *, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: a - b.scaled(factor), x, other)


@handles("rsub")
def _rsub(e: Evaluator, node: fx.Node, x: Any, other: Any, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: b - a.scaled(factor), x, other)


@handles("mul")
def _mul(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    return combine(operator.mul, x, other)


@handles("div")
def _div(e: Evaluator, node: fx.Node, x: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        raise Opaque("rounds")
    return combine(lambda a, b: a * algebra.power(b, -1), x, other)


@handles("pow")
def _pow(e: Evaluator, node: fx.Node, x: Any, exponent: Any) -> Any:
    if isinstance(exponent, Value) and exponent.poly.number is None:  # of zeros and ones, a number for each of them
        return combine(lambda a, b: atom("pow", a, b), x, exponent)
    by = plain(exponent)
    return combine(lambda a: powered(a, by), x)


@handles("clamp", "hardtanh")
def _clamp(e: Evaluator, node: fx.Node, x: Any, low: Any = None, high: Any = None, **kwargs: Any) -> Any:
    low, high = kwargs.get("min", kwargs.get("min_val", low)), kwargs.get("max", kwargs.get("max_val", high))
    call = e.view.calls.get(node)
    if call is not None and call.name == "hardtanh":
        low, high = number(-1) if low is None else low, number(1) if high is None else high
    lowest, highest = bound(low), bound(high)
    return combine(lambda a: algebra.clamp(a, lowest, highest), x)


@handles("clamp_min")
def _clamp_min(e: Evaluator, node: fx.Node, x: Any, min: Any) -> Any:
    return _clamp(e, node, x, min)


@handles("clamp_max")
def _clamp_max(e: Evaluator, node: fx.Node, x: Any, max: Any) -> Any:
    return _clamp(e, node, x, None, max)


def extremum(name: str) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
        def f(a: Poly, b: Poly) -> Poly:
            if a.number == 0 or b.number == 0:
                kept = b if a.number == 0 else a
                return algebra.relu(kept) if name == "maximum" else -algebra.relu(-kept)
            if a != b and algebra.ratio(a, b) is not None:  # of one number and its multiple, as of d·q and d·(q − 1)
                return b + algebra.relu(a - b) if name == "maximum" else b - algebra.relu(b - a)
            return a if a == b else atom(name, frozenset({a, b}))

        return combine(f, x, other)

    handlers[name] = handler


extremum("maximum")
extremum("minimum")


@handles("max")
def _max(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    if isinstance(other, Value) and other.poly.number is not None:
        raise Opaque("max over a dimension")
    return handlers["maximum"](e, node, x, other)


@handles("min")
def _min(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    if isinstance(other, Value) and other.poly.number is not None:
        raise Opaque("min over a dimension")
    return handlers["minimum"](e, node, x, other)


def comparison(name: str, swapped: str) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
        if name in ("lt", "le"):
            return combine(lambda a, b: algebra.compare(swapped, b - a), x, other)
        return combine(lambda a, b: algebra.compare(name, a - b), x, other)

    handlers[name] = handler


for _name, _swapped in {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge", "eq": "eq"}.items():
    comparison(_name, _swapped)


@handles("ne")
def _ne(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    return combine(lambda a, b: ONE - algebra.compare("eq", a - b), x, other)


@handles("logical_not", "bitwise_not")
def _not(e: Evaluator, node: fx.Node, x: Any) -> Any:
    if not isinstance(x, Value) or not (algebra.mask(x.poly) or algebra.mask(ONE - x.poly)):
        raise Opaque("bits")
    return combine(lambda a: ONE - a, x)


@handles("logical_and", "bitwise_and", "and", "__and__")
def _and(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    if not all(isinstance(v, Value) and algebra.mask(v.poly) for v in (x, other)):  # t & 1 of integers is no product
        raise Opaque("bits")
    return combine(operator.mul, x, other)


@handles("where")
def _where(e: Evaluator, node: fx.Node, condition: Any, x: Any, other: Any) -> Any:
    return combine(choose, condition, x, other)


@handles("masked_fill")
def _masked_fill(e: Evaluator, node: fx.Node, x: Any, mask: Any, value: Any) -> Any:
    return combine(choose, mask, value, x)


def choose(condition: Poly, a: Poly, b: Poly) -> Poly:
    """a where the condition holds, else b."""
    if condition.number is not None:
        return a if condition.number else b
    if algebra.mask(ONE - condition) and not algebra.mask(condition):
        return choose(ONE - condition, b, a)
    if algebra.mask(condition):
        ((monomial, _),) = condition.terms
        sides = [found[1] for found, _ in monomial]
        inequalities = all(found[0] in ("gt", "ge") for found, _ in monomial)
        # where a root or a quotient is NaN, ``where`` chooses 0 and a clamp gives NaN: these are not one function
        if inequalities and all(map(algebra.total, sides)) and a - b == math.prod(sides[1:], start=sides[0]):
            clipped = [algebra.relu(z) for z in sides]  # a·b where a > 0 and b > 0, else 0
            return b + math.prod(clipped[1:], start=clipped[0])
    if a.number == 0:
        b = algebra.unmasked_targets(b, condition)
    rest = a - b
    if not rest.terms:
        return b
    # the first term gets the coefficient 1, so that a choice of 2a + 2b is twice that of a + b
    scale = rest.first
    return b + atom("where", condition, rest.scaled(1 / scale)).scaled(scale)


@handles("detach")
def _detach(e: Evaluator, node: fx.Node, x: Any) -> Any:
    call = e.view.calls[node]
    of = next(call.inputs()) if call else None
    if of is None or e.view.current(of, node) not in e.interior:
        raise Opaque("a tensor of its own")
    return combine(detached, x)


@handles("zeros_like", "zeros", "new_zeros")
def _zeros(e: Evaluator, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    shape = sizes(value_of(node))
    if shape is None and args and isinstance(args[0], Value) and args[0].poly.number is None:
        return combine(lambda a: constant(0), args[0])
    return Value(constant(0), shape, shape)


@handles("cos", "sin")
def _of_number(e: Evaluator, node: fx.Node, x: Any) -> Any:
    call = e.view.calls[node]
    assert call is not None
    return number(getattr(math, call.name)(plain(x)))
