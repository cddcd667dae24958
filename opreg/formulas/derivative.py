"""The derivative of an expression in one of its inputs, forward from the inputs.

A branch that is not taken is not multiplied with 0 but left out, so that no NaN comes of it. At a kink the derivative
is the one that torch's autograd has there.
"""

import math
from collections.abc import Callable

from . import algebra as al
from .expression import ONE, TWO, ZERO, Expr, const, is_const, node, walk

_AREA = 2.0 / math.sqrt(math.pi)


def times(a: Expr, b: Expr) -> Expr:
    """The product of slopes: one that is 0 by itself stays so, whatever the other is."""
    return ZERO if is_const(a, 0) or is_const(b, 0) else al.mul(a, b)


# of a function of one number: its slope, given the node
_SLOPES: dict[str, Callable[[Expr, Expr], Expr]] = {
    "neg": lambda e, x: const(-1.0),
    "exp": lambda e, x: e,
    "expm1": lambda e, x: al.exp(x),
    "log": lambda e, x: al.div(ONE, x),
    "log1p": lambda e, x: al.div(ONE, al.add(ONE, x)),
    "log1mexp": lambda e, x: al.neg(al.div(al.exp(al.neg(x)), al.expm1(al.neg(x)))),
    "sqrt": lambda e, x: al.div(const(0.5), e),
    "abs": lambda e, x: al.sign(x),
    "sign": lambda e, x: ZERO,
    "floor": lambda e, x: ZERO,
    "sigmoid": lambda e, x: al.dsigmoid(x),
    "dsigmoid": lambda e, x: al.neg(al.mul(e, al.tanh(al.scaled(0.5, x)))),
    "softplus": lambda e, x: al.sigmoid(x),
    "tanh": lambda e, x: al.scaled(4.0, al.dsigmoid(al.mul(TWO, x))),
    "log_cosh": lambda e, x: al.tanh(x),
    "sinh": lambda e, x: al.cosh(x),
    "cosh": lambda e, x: al.sinh(x),
    "sin": lambda e, x: al.cos(x),
    "cos": lambda e, x: al.neg(al.sin(x)),
    "atan": lambda e, x: al.div(ONE, al.add(ONE, al.mul(x, x))),
    "erf": lambda e, x: al.scaled(_AREA, al.exp(al.neg(al.mul(x, x)))),
    "erfc": lambda e, x: al.scaled(-_AREA, al.exp(al.neg(al.mul(x, x)))),
    "relu": lambda e, x: al.where(al.compare("le", x, ZERO), ZERO, ONE),
    "detach": lambda e, x: ZERO,
}


def derivative(root: Expr, by: Expr) -> Expr:
    """d root / d by, ``by`` an input."""
    slopes: dict[Expr, Expr] = {}
    for e in walk(root):
        if e is by:
            slopes[e] = ONE
        elif e.is_truth or all(is_const(slopes[a], 0) for a in e.args if not a.is_truth):
            slopes[e] = ZERO
        elif e.op in _SLOPES:
            slopes[e] = times(_SLOPES[e.op](e, e.args[0]), slopes[e.args[0]])
        else:
            slopes[e] = _SLOPES_OF_SEVERAL[e.op](e, *(slopes[a] for a in e.args))
    return slopes[root]


def _mul(e: Expr, da: Expr, db: Expr) -> Expr:
    a, b = e.args
    return al.add(times(da, b), times(a, db))


def _div(e: Expr, da: Expr, db: Expr) -> Expr:
    b = e.args[1]
    if is_const(db, 0):
        return al.div(da, b)
    if is_const(da, 0):
        return al.neg(times(al.div(e, b), db))
    return al.div(al.sub(da, times(e, db)), b)


def _pow(e: Expr, dx: Expr, dy: Expr) -> Expr:
    x, y = e.args
    of_x = of_y = ZERO
    if not is_const(dx, 0):
        one_less = node("pow", x, al.add(y, const(-1.0)))
        slope = al.mul(y, one_less)
        of_x = times(slope if y.op == "const" else al.where(al.compare("eq", y, ZERO), ZERO, slope), dx)
    if not is_const(dy, 0):
        # torch: 0 where x = 0 and y >= 0
        at_zero = al.both(al.compare("eq", x, ZERO), al.compare("le", ZERO, y))
        of_y = times(al.where(at_zero, ZERO, al.mul(e, al.log(x))), dy)
    return al.add(of_x, of_y)


def _max(e: Expr, da: Expr, db: Expr) -> Expr:
    """Of equal numbers each gets half."""
    a, b = e.args
    low, high = (a, b) if e.op == "max" else (b, a)
    middle = al.scaled(0.5, al.add(da, db))
    return al.where(al.compare("eq", a, b), middle, al.where(al.compare("lt", low, high), db, da))


def _clamp(e: Expr, dx: Expr, bound: Expr) -> Expr:
    """At the bound the slope is that of what is clamped."""
    x, at = e.args
    outside = al.compare("lt", x, at) if e.op == "clamp_min" else al.compare("lt", at, x)
    return al.where(outside, bound, dx)


_SLOPES_OF_SEVERAL: dict[str, Callable[..., Expr]] = {
    "add": lambda e, da, db: al.add(da, db),
    "sub": lambda e, da, db: al.sub(da, db),
    "mul": _mul,
    "div": _div,
    "pow": _pow,
    "max": _max,
    "min": _max,
    "clamp_min": _clamp,
    "clamp_max": _clamp,
    "where": lambda e, dc, da, db: al.where(e.args[0], da, db),
}
