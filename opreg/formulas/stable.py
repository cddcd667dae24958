"""Patterns that lose digits, and what is computed in their place.

1 + e^x, 1 - sigmoid(x), 1 + tanh(x) and their kind are exact as they are written, and lose in a float whatever is far
below 1. Each function here is asked by ``algebra`` for an operation of given operands, and answers None where the
operation has no better form.
"""

from collections.abc import Callable

from . import algebra
from .expression import ONE, TWO, Expr, is_const, node, number
from .ranges import is_positive


def _is_one(e: Expr) -> bool:
    return is_const(e, 1)


def sum_of(a: Expr, b: Expr) -> Expr | None:
    return _sum_of(a, b) or _sum_of(b, a) or _negated_sum(a, b) or _log_cosh(a, b)


def _negated_sum(a: Expr, b: Expr) -> Expr | None:
    """x - 1, as -(1 - x)."""
    for one, other in ((a, b), (b, a)):
        if is_const(one, -1):
            found = _sum_of(ONE, algebra.neg(other))
            return None if found is None else algebra.neg(found)
    return None


def _sum_of(a: Expr, b: Expr) -> Expr | None:
    negative, x = algebra.split_sign(b)
    if _is_one(a):
        return _one_minus(x) if negative else _one_plus(x)
    if a.op == "softplus" and negative and a.args[0] is x:  # log(1 + e^x) - x
        return algebra.softplus(algebra.neg(x))
    if a.op == "exp" and x.op == "exp" and algebra.neg(a.args[0]) is x.args[0] and a.args[0].op != "neg":
        hyperbolic = algebra.sinh if negative else algebra.cosh
        return algebra.mul(TWO, hyperbolic(a.args[0]))
    return None


def _one_plus(x: Expr) -> Expr | None:
    if x.op == "tanh":
        return algebra.mul(TWO, algebra.sigmoid(algebra.mul(TWO, x.args[0])))
    if x.op == "erf":
        return algebra.erfc(algebra.neg(x.args[0]))
    return None


def _one_minus(x: Expr) -> Expr | None:
    if x.op == "sigmoid":
        return algebra.sigmoid(algebra.neg(x.args[0]))
    if x.op == "mul" and is_const(x.args[0], 2) and x.args[1].op == "sigmoid":
        return algebra.neg(algebra.tanh(algebra.scaled(0.5, x.args[1].args[0])))
    if x.op == "exp":
        return algebra.neg(algebra.expm1(x.args[0]))
    if x.op == "tanh":
        return algebra.mul(TWO, algebra.sigmoid(algebra.neg(algebra.mul(TWO, x.args[0]))))
    if x.op == "erf":
        return algebra.erfc(x.args[0])
    if x.op == "erfc":
        return algebra.erf(x.args[0])
    if x.op == "mul" and x.args[0] is x.args[1] and x.args[0].op == "tanh":
        return algebra.scaled(4.0, algebra.dsigmoid(algebra.mul(TWO, x.args[0].args[0])))
    if x.op == "where":
        return _both_minus(x.args[1], x.args[2], lambda a, b: algebra.where(x.args[0], a, b))
    if x.op == "sub" and (found := _mixed(*x.args)):  # t a + (1 - t) b, such as the probability of the right class
        t, less, a, b = found
        return _both_minus(a, b, lambda a, b: algebra.sub(algebra.mul(t, a), algebra.mul(less, b)))
    if x.op == "cos":
        half = algebra.sin(algebra.scaled(0.5, x.args[0]))
        return algebra.mul(TWO, algebra.mul(half, half))
    return None


def _both_minus(a: Expr, b: Expr, make: Callable[[Expr, Expr], Expr]) -> Expr | None:
    """make(1 - a, 1 - b), where both have a form in which nothing cancels."""
    first, second = _one_minus(a), _one_minus(b)
    return None if first is None or second is None else make(first, second)


def _mixed(first: Expr, second: Expr) -> tuple[Expr, Expr, Expr, Expr] | None:
    """t, t - 1, a and b of the difference of t a and (t - 1) b."""
    if first.op != "mul" or second.op != "mul":
        return None
    for less, b in (second.args, second.args[::-1]):
        for t, a in (first.args, first.args[::-1]):
            if algebra.sub(t, ONE) is less:
                return t, less, a, b
    return None


def _log_cosh(a: Expr, b: Expr) -> Expr | None:
    """x + log(1 + e^(-2x)) - log 2."""
    terms = [*_terms(a, False), *_terms(b, False)]
    curved = [e for negative, e in terms if e.op == "softplus" and not negative]
    fixed = [number(algebra.signed(negative, e)) for negative, e in terms if e.op == "const"]
    if len(curved) != 1 or len(fixed) != 1 or abs(fixed[0] + algebra.LN2) > 1e-6:
        return None
    x = algebra.scaled(-0.5, curved[0].args[0])
    rest = [(negative, e) for negative, e in terms if e is not curved[0] and e.op != "const"]
    if sorted(rest, key=_order) != sorted(_terms(x, False), key=_order):
        return None
    return algebra.log_cosh(x)


def _order(term: tuple[bool, Expr]) -> tuple[int, bool]:
    return term[1].order, term[0]


def _terms(e: Expr, negative: bool) -> list[tuple[bool, Expr]]:
    """The terms of a sum with their signs."""
    if e.op == "neg":
        return _terms(e.args[0], not negative)
    if e.op == "add":
        return [*_terms(e.args[0], negative), *_terms(e.args[1], negative)]
    if e.op == "sub":
        return [*_terms(e.args[0], negative), *_terms(e.args[1], not negative)]
    return [(negative, e)]


def product_of(a: Expr, b: Expr) -> Expr | None:
    if a.op == "sigmoid" and b.op == "sigmoid" and algebra.neg(a.args[0]) is b.args[0]:
        return algebra.dsigmoid(a.args[0])
    return None


def quotient_of(a: Expr, b: Expr) -> Expr | None:
    factor, divisor = algebra.split_factor(b)
    if divisor.op == "cosh":
        of_a, dividend = algebra.split_factor(a)
        if dividend.op == "sinh" and dividend.args == divisor.args:
            return algebra.scaled(of_a / factor, algebra.tanh(dividend.args[0]))
    if b.op != "add" or not any(map(_is_one, b.args)):
        return None
    # 1 / (1 + e^x) and e^x / (1 + e^x)
    e = b.args[1] if _is_one(b.args[0]) else b.args[0]
    if e.op != "exp":
        return None
    of_a, dividend = algebra.split_factor(a)
    if dividend is e:
        return algebra.scaled(of_a, algebra.sigmoid(e.args[0]))
    return algebra.mul(a, algebra.sigmoid(algebra.neg(e.args[0])))


def exp_of(x: Expr) -> Expr | None:
    negative, size = algebra.split_sign(x)
    if size.op == "softplus" and negative:
        return algebra.sigmoid(algebra.neg(size.args[0]))
    if size.op == "log" and not negative and is_positive(size.args[0]):
        return size.args[0]
    return None


def log_of(x: Expr) -> Expr | None:
    if x.op == "sigmoid":
        return algebra.neg(algebra.softplus(algebra.neg(x.args[0])))
    if x.op == "exp":
        return x.args[0]
    if x.op == "cosh":
        return algebra.log_cosh(x.args[0])
    if x.op == "neg" and x.args[0].op == "expm1" and is_positive(algebra.neg(x.args[0].args[0])):
        return node("log1mexp", algebra.neg(x.args[0].args[0]))
    if x.op == "add" and any(map(_is_one, x.args)):
        return algebra.log1p(x.args[1] if _is_one(x.args[0]) else x.args[0])
    if x.op == "sub" and _is_one(x.args[0]):
        return algebra.log1p(algebra.neg(x.args[1]))
    if x.op == "neg" and x.args[0].op == "sub" and _is_one(x.args[0].args[1]):
        return algebra.log1p(algebra.neg(x.args[0].args[0]))
    return None


def log1p_of(x: Expr) -> Expr | None:
    if x.op == "exp":
        return algebra.softplus(x.args[0])
    if x.op == "expm1":
        return x.args[0]
    if x.op == "neg" and x.args[0].op == "sigmoid":
        return algebra.neg(algebra.softplus(x.args[0].args[0]))
    if x.op == "neg" and x.args[0].op == "exp" and is_positive(algebra.neg(x.args[0].args[0])):
        return node("log1mexp", algebra.neg(x.args[0].args[0]))
    return None


algebra.better |= {
    "add": sum_of,
    "mul": product_of,
    "div": quotient_of,
    "exp": exp_of,
    "log": log_of,
    "log1p": log1p_of,
}
