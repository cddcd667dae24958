"""From an expression to the functions that ``csrc/base/math.h`` has, the shortest of those that are exact enough.

What an expression is known to lie between decides: e^x of an x that is never above 0 is shorter, and so is a power of a
number in [0, 1]. sigmoid(x), sigmoid(-x) and log(1 + e^x) are taken apart: those of one x share its exponential.
"""

import math
from collections.abc import Callable, Sequence

from . import algebra as al
from .expression import ONE, ZERO, Expr, const, is_const, node, number, rebuilt, replaced, walk
from .ranges import in_unit, is_positive


def lowered(roots: Sequence[Expr]) -> list[Expr]:
    """The same numbers by the functions of math.h. What these are made of is no input for the algebra any more."""
    roots = rebuilt(_without_second_powers(_without_cancellation(roots)), _lower)
    return rebuilt(roots, lambda e, args: _chosen(*args) if e.op == "where" else _plain(e, args))


def _plain(e: Expr, args: tuple[Expr, ...]) -> Expr:
    return node(e.op, *args) if args else e


def _lower(e: Expr, args: tuple[Expr, ...]) -> Expr:
    rule = _RULES.get(e.op)
    return rule(*args) if rule else _plain(e, args)


def _without_cancellation(roots: Sequence[Expr]) -> Sequence[Expr]:
    """x c + log(1 + e^(-x)), a logit's cross entropy, by the sign of x; sigmoid(x) - t, its slope, by both sigmoids."""
    new: dict[Expr, Expr] = {}
    for e in walk(*roots):
        if e.op in ("add", "sub") and (better := _of_logit(e)):
            new[e] = better
    return replaced(roots, new, _plain) if new else roots


def _of_logit(e: Expr) -> Expr | None:
    a, b = e.args
    for first, second in ((a, b), (b, a)):
        if second.op == "softplus" and first.op == "mul":
            x = al.neg(second.args[0])
            negative, size = al.split_sign(x)
            for y, c in (first.args, first.args[::-1]):
                if y is size:
                    c = al.signed(negative != (e.op == "add"), c)
                    return al.signed(e.op == "sub" and second is b, _cross_entropy(x, c))
    if e.op == "add":
        for first, second in ((a, b), (b, a)):
            if (
                second.op == "sigmoid"
                and first.op == "sub"
                and is_const(first.args[1], 1)
                and first.args[0].op == "input"
            ):
                return _slope(second.args[0], al.neg(first))
    elif {a.op, b.op} == {"sigmoid", "input"}:
        t, s = (a, b) if a.op == "input" else (b, a)
        return al.signed(t is a, _slope(s.args[0], t))
    return None


def _cross_entropy(x: Expr, c: Expr) -> Expr:
    """log(1 + e^(-x)) - x c"""
    linear = al.where(al.compare("lt", x, ZERO), al.mul(x, al.add(c, ONE)), al.mul(x, c))
    return node("sub", node("log1p_unit", _exponential(x)), linear)


def _slope(z: Expr, t: Expr) -> Expr:
    """sigmoid(z) - t"""
    rest = al.neg(al.sub(t, ONE))
    return node("sub", al.mul(rest, node("sigmoid", z)), al.mul(t, node("sigmoid", al.neg(z))))


def _without_second_powers(roots: Sequence[Expr]) -> Sequence[Expr]:
    """x^(y-1) by one division, where x^y is there too."""
    powers = {e for e in walk(*roots) if e.op == "pow"}
    new: dict[Expr, Expr] = {}
    for e in powers:
        x, y = e.args
        less = node("pow", x, al.sub(y, ONE))
        if less in powers:
            beyond = al.where(al.compare("lt", y, ONE), const(math.inf), ZERO)
            at_zero = al.where(al.compare("eq", y, ONE), ONE, beyond)
            new[less] = al.where(al.compare("eq", x, ZERO), at_zero, node("div", e, x))
    return replaced(roots, new, _plain) if new else roots


def _sign_of(x: Expr) -> tuple[bool, Expr]:
    """What has the sign of x, and whether it is the opposite one."""
    negative, x = al.split_sign(x)
    if x.op == "mul" and is_const(x.args[0]):
        return negative != (number(x.args[0]) < 0), x.args[1]
    return negative, x


def _by_sign(x: Expr, below: Expr, above: Expr) -> Expr:
    """``below`` where x < 0; at 0 both are equal."""
    negative, size = _sign_of(x)
    return node("where", node("lt", size, ZERO), *((above, below) if negative else (below, above)))


def _exponential(x: Expr) -> Expr:
    return node("exp_negative", node("neg", al.absolute(x)))


def _sigmoid(x: Expr) -> Expr:
    e = _exponential(x)
    r = node("inverse_1p_unit", e)
    small = node("mul", e, r)
    if is_positive(x):
        return r
    return small if is_positive(al.neg(x)) else _by_sign(x, small, r)


def _dsigmoid(x: Expr) -> Expr:
    e = _exponential(x)
    r = node("inverse_1p_unit", e)
    return node("mul", node("mul", e, r), r)


def _softplus(x: Expr) -> Expr:
    small = node("log1p_unit", _exponential(x))
    return small if is_positive(al.neg(x)) else node("add", al.relu(x), small)


def _exp(x: Expr) -> Expr:
    return node("exp_negative" if is_positive(al.neg(x)) else "exp", x)


def _expm1(x: Expr) -> Expr:
    minus = al.neg(x)
    return node("neg", node("one_minus_exp", minus)) if is_positive(minus) else node("expm1", x)


def _log1p(x: Expr) -> Expr:
    minus = al.neg(x)
    if in_unit(x):
        return node("log1p_unit", x)
    return node("log1m", minus) if in_unit(minus) else node("log1p", x)


def _log1mexp(u: Expr) -> Expr:
    near, far = node("log", node("one_minus_exp", u)), node("log1m", node("exp_negative", node("neg", u)))
    return node("where", node("lt", u, const(al.LN2)), near, far)


def _pow(x: Expr, y: Expr) -> Expr:
    return node("pow_unit" if in_unit(x) and is_positive(y) else "pow", x, y)


def _clamp_min(x: Expr, low: Expr) -> Expr:
    return node("at_least" if al.is_option_alone(low) else "maximum", x, low)


def _clamp_max(x: Expr, high: Expr) -> Expr:
    return node("at_most" if al.is_option_alone(high) else "minimum", x, high)


def _sinh(x: Expr) -> Expr:
    return al.scaled(0.5, node("sub", node("expm1", x), node("expm1", al.neg(x))))


def _cosh(x: Expr) -> Expr:
    return al.scaled(0.5, node("add", node("exp", x), node("exp", al.neg(x))))


def _chosen(condition: Expr, a: Expr, b: Expr) -> Expr:
    """One condition after the other: joined by && they keep a loop scalar."""
    if condition.op == "not":
        return _chosen(condition.args[0], b, a)
    if condition.op == "and":
        return _chosen(condition.args[0], _chosen(condition.args[1], a, b), b)
    if condition.op == "or":
        return _chosen(condition.args[0], a, _chosen(condition.args[1], a, b))
    return node("where", condition, a, b)


_RULES: dict[str, Callable[..., Expr]] = {
    "sigmoid": _sigmoid,
    "dsigmoid": _dsigmoid,
    "softplus": _softplus,
    "exp": _exp,
    "expm1": _expm1,
    "log1p": _log1p,
    "log1mexp": _log1mexp,
    "pow": _pow,
    "clamp_min": _clamp_min,
    "clamp_max": _clamp_max,
    "max": lambda a, b: node("maximum", a, b),
    "min": lambda a, b: node("minimum", a, b),
    "sinh": _sinh,
    "cosh": _cosh,
    "atan": lambda x: node("atan2", x, ONE),
    "detach": lambda x: x,
}
