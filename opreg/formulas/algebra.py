"""Arithmetic on expressions, in the forms in which nothing cancels and nothing is computed twice.

Each function makes the expression of an operation. Signs and constant factors are moved outwards, so that what is equal
but for a sign is one node. No product with 0 vanishes and no quotient is cancelled: an infinity or a NaN is what torch
makes of it. What loses digits is brought into a better form (``stable``).
"""

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

from .expression import NAN, ONE, TWO, ZERO, Expr, const, is_const, node, number
from .ranges import is_positive

LN2 = math.log(2.0)

# By an operation's name, what finds a form of it that keeps its digits, or None; ``stable`` enters them, because those
# forms are made of the functions here.
better: dict[str, Callable[..., Expr | None]] = {}


def _folded(f: Callable[..., float], *args: Expr) -> Expr:
    try:
        return const(f(*map(number, args)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return NAN


def split_sign(e: Expr) -> tuple[bool, Expr]:
    """Is it negative, and what is it without the sign?"""
    if e.op == "neg":
        return True, e.args[0]
    if e.op == "const" and number(e) < 0:
        return True, const(-number(e))
    return False, e


def signed(negative: bool, e: Expr) -> Expr:
    return neg(e) if negative else e


def split_factor(e: Expr) -> tuple[float, Expr]:
    """A constant factor, and what it multiplies."""
    if e.op == "neg":
        factor, rest = split_factor(e.args[0])
        return -factor, rest
    if e.op == "mul" and e.args[0].op == "const":
        return number(e.args[0]), e.args[1]
    return 1.0, e


def neg(x: Expr) -> Expr:
    if x.op == "const":
        return const(-number(x))
    return x.args[0] if x.op == "neg" else node("neg", x)


def add(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(number(a) + number(b))
    if is_const(a, 0):
        return b
    if is_const(b, 0):
        return a
    if a is b:
        return mul(TWO, a)
    if found := better["add"](a, b):
        return found
    if a.op == "const" or (b.op != "const" and b.order < a.order):
        a, b = b, a  # a constant is the second operand
    if b.op == "const" and (found := _with_constants_together(a, number(b))):
        return found
    a_negative, a_size = split_sign(a)
    b_negative, b_size = split_sign(b)
    if a_negative and b_negative:
        return neg(add(a_size, b_size))
    if a_negative or b_negative:
        # x - t and t - x are one node: the operand that is older, or no constant, has the plus sign
        if b_size.op == "const" or a_size.order < b_size.order:
            first, second = a_size, b_size
            flip = a_negative
        else:
            first, second = b_size, a_size
            flip = b_negative
        return signed(flip, node("sub", first, second))
    return node("add", a, b)


def _with_constants_together(e: Expr, c: float) -> Expr | None:
    """e + c, where e adds or subtracts a constant itself."""
    negative, size = split_sign(e)
    if size.op not in ("add", "sub") or size.args[1].op != "const":
        return None
    own = number(size.args[1]) * (1 if size.op == "add" else -1) * (-1 if negative else 1)
    return add(signed(negative, size.args[0]), const(own + c))


def sub(a: Expr, b: Expr) -> Expr:
    return add(a, neg(b))


def mul(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(number(a) * number(b))
    a_negative, a = split_sign(a)
    b_negative, b = split_sign(b)
    negative = a_negative != b_negative
    a_scale, a = _split_scale(a)
    b_scale, b = _split_scale(b)
    scale, rest = _scale_product(a_scale, b_scale), _product(a, b)
    if rest is ONE:
        return signed(negative, scale)
    rest_negative, rest = split_sign(rest)
    return signed(negative != rest_negative, rest if scale is ONE else _with_scale(scale, rest))


def _split_scale(e: Expr) -> tuple[Expr, Expr]:
    """The factors that are the same for all elements, constants and options, and the others."""
    if is_option_alone(e):
        return e, ONE
    if e.op == "mul" and is_option_alone(e.args[0]):
        return e.args[0], e.args[1]
    return ONE, e


def _with_scale(scale: Expr, rest: Expr) -> Expr:
    if rest.op == "mul" and is_option_alone(rest.args[0]):
        return mul(_scale_product(scale, rest.args[0]), rest.args[1])
    return node("mul", scale, rest)


def _scale_product(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(number(a) * number(b))
    for one, other in ((a, b), (b, a)):
        if one is ONE:
            return other
        if one.op == "div" and one.args[0] is ONE and one.args[1] is other:
            return ONE
        if one.op == "mul" and one.args[0].op == "const":  # the constant is outermost
            return (
                _scale_product(one.args[0], _scale_product(one.args[1], other))
                if other.op != "const"
                else node("mul", const(number(one.args[0]) * number(other)), one.args[1])
            )
    if b.op == "const" or (a.op != "const" and b.order < a.order):
        a, b = b, a
    return node("mul", a, b)


def _product(a: Expr, b: Expr) -> Expr:
    if a is ONE or b is ONE:
        return b if a is ONE else a
    if b.order < a.order:
        a, b = b, a
    return better["mul"](a, b) or node("mul", a, b)


def scaled(factor: float, e: Expr) -> Expr:
    return mul(const(factor), e)


def div(a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        return const(number(a) / number(b)) if number(b) else node("div", a, b)
    if is_const(b) and number(b) and math.isfinite(1 / number(b)):
        return scaled(1 / number(b), a)
    if found := better["div"](a, b):
        return found
    factor, a = split_factor(a)
    divisor, b = split_factor(b)
    factor /= divisor or 1.0
    if a.op == "const":
        factor, a = factor * number(a), ONE
    if not is_option_alone(a) and is_option_alone(b):
        # one division a call, and not one an element
        return scaled(factor, mul(a, node("div", ONE, b)))
    return scaled(factor, node("div", a, b))


_alone: WeakKeyDictionary[Expr, bool] = WeakKeyDictionary()


def is_option_alone(e: Expr) -> bool:
    """Is it made of options and constants alone?"""
    if e not in _alone:
        _alone[e] = e.op in ("const", "option") or (bool(e.args) and all(is_option_alone(a) for a in e.args))
    return _alone[e]


def power(x: Expr, y: Expr) -> Expr:
    if x.op == "const" and y.op == "const":
        return _folded(math.pow, x, y)
    if x.op == "exp":
        return exp(mul(x.args[0], y))
    if x.op == "sigmoid":
        return exp(neg(mul(softplus(neg(x.args[0])), y)))
    if y.op != "const":
        return node("pow", x, y)
    p = number(y)
    if p < 0:
        return div(ONE, power(x, const(-p)))
    if p == 0:
        return ONE
    if p == int(p) and p <= 16:
        return _repeated(x, int(p))
    if 2 * p == int(2 * p) and p <= 4.5:
        return mul(_repeated(x, int(p)), sqrt(x)) if p > 1 else sqrt(x)
    return node("pow", x, y)


def _repeated(x: Expr, n: int) -> Expr:
    if n == 1:
        return x
    half = _repeated(x, n // 2)
    return mul(mul(half, half), x) if n % 2 else mul(half, half)


def sqrt(x: Expr) -> Expr:
    if x.op == "const":
        return _folded(math.sqrt, x)
    return absolute(x.args[0]) if x.op == "mul" and x.args[0] is x.args[1] else node("sqrt", x)


def absolute(x: Expr) -> Expr:
    if x.op == "const":
        return const(abs(number(x)))
    if x.op == "neg":
        return absolute(x.args[0])
    if x.op == "mul" and x.args[0].op == "const":
        return scaled(abs(number(x.args[0])), absolute(x.args[1]))
    return x if is_positive(x) else node("abs", x)


def sign(x: Expr) -> Expr:
    factor, rest = split_factor(x)
    return neg(node("sign", rest)) if factor < 0 else node("sign", rest)


def exp(x: Expr) -> Expr:
    if x.op == "const":
        return _folded(math.exp, x)
    return better["exp"](x) or node("exp", x)


def expm1(x: Expr) -> Expr:
    return _folded(math.expm1, x) if x.op == "const" else node("expm1", x)


def log(x: Expr) -> Expr:
    if x.op == "const":
        return const(-math.inf) if number(x) == 0 else _folded(math.log, x)
    return better["log"](x) or node("log", x)


def log1p(x: Expr) -> Expr:
    if x.op == "const":
        return _folded(math.log1p, x)
    return better["log1p"](x) or node("log1p", x)


def sigmoid(x: Expr) -> Expr:
    return node("sigmoid", x) if x.op != "const" else div(ONE, add(ONE, exp(neg(x))))


def softplus(x: Expr) -> Expr:
    return node("softplus", x) if x.op != "const" else log1p(exp(x))


def _odd(name: str, exact: Callable[[float], float]) -> Callable[[Expr], Expr]:
    def make(x: Expr) -> Expr:
        if x.op == "const":
            return _folded(exact, x)
        negative, size = split_sign(x)
        return signed(negative, node(name, size))

    return make


def _even(name: str, exact: Callable[[float], float]) -> Callable[[Expr], Expr]:
    def make(x: Expr) -> Expr:
        return _folded(exact, x) if x.op == "const" else node(name, split_sign(x)[1])

    return make


tanh, sinh, sin, atan, erf = (
    _odd(name, getattr(math, name)) for name in ("tanh", "sinh", "sin", "atan", "erf")
)  # fmt: skip
cosh, cos = (_even(name, getattr(math, name)) for name in ("cosh", "cos"))


def erfc(x: Expr) -> Expr:
    return _folded(math.erfc, x) if x.op == "const" else node("erfc", x)


def log_cosh(x: Expr) -> Expr:
    x = x.args[0] if x.op == "abs" else x
    return node("log_cosh", split_sign(x)[1])


def dsigmoid(x: Expr) -> Expr:
    """sigmoid(x) sigmoid(-x), the slope of the sigmoid."""
    x = x.args[0] if x.op == "abs" else x
    return node("dsigmoid", split_sign(x)[1])


def where(condition: Expr, a: Expr, b: Expr) -> Expr:
    if condition.op == "const":
        return a if number(condition) else b
    if condition.op == "not":
        return where(condition.args[0], b, a)
    if a is b:
        return a
    a_negative, a_size = split_sign(a)
    b_negative, b_size = split_sign(b)
    both = all(negative or is_const(e, 0) for negative, e in ((a_negative, a), (b_negative, b)))
    if both and (a_negative or b_negative):
        return neg(where(condition, a_size, b_size))
    return node("where", condition, a, b)


def compare(op: str, a: Expr, b: Expr) -> Expr:
    if a.op == "const" and b.op == "const":
        x, y = number(a), number(b)
        return ONE if (x < y, x <= y, x == y)[("lt", "le", "eq").index(op)] else ZERO
    return node(op, a, b)


def both(a: Expr, b: Expr) -> Expr:
    if a.op == "const" or b.op == "const":
        known, other = (a, b) if a.op == "const" else (b, a)
        return other if number(known) else ZERO
    return a if a is b else node("and", a, b)


def either(a: Expr, b: Expr) -> Expr:
    if a.op == "const" or b.op == "const":
        known, other = (a, b) if a.op == "const" else (b, a)
        return ONE if number(known) else other
    return a if a is b else node("or", a, b)


def inverted(a: Expr) -> Expr:
    if a.op == "const":
        return ZERO if number(a) else ONE
    return a.args[0] if a.op == "not" else node("not", a)


def relu(x: Expr) -> Expr:
    return x if is_positive(x) else node("relu", x)


# how an expression is made again of changed operands
MAKERS: dict[str, Callable[..., Expr]] = {
    "add": add, "sub": sub, "mul": mul, "div": div, "neg": neg, "pow": power, "sqrt": sqrt, "abs": absolute,
    "sign": sign, "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "sigmoid": sigmoid, "softplus": softplus,
    "tanh": tanh, "sinh": sinh, "cosh": cosh, "sin": sin, "cos": cos, "atan": atan, "erf": erf, "erfc": erfc,
    "log_cosh": log_cosh, "dsigmoid": dsigmoid, "where": where, "and": both, "or": either, "not": inverted,
    "relu": relu,
    "lt": lambda a, b: compare("lt", a, b), "le": lambda a, b: compare("le", a, b),
    "eq": lambda a, b: compare("eq", a, b),
}  # fmt: skip


def remade(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """The operation of other operands."""
    if not e.args:
        return e
    maker = MAKERS.get(e.op)
    return maker(*args) if maker else node(e.op, *args)
