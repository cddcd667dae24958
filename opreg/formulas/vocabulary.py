"""What torch's operators compute, one number at a time: an expression for each, given those of its operands."""

import math
from collections.abc import Callable
from typing import Any

from . import algebra as al
from .expression import ONE, ZERO, Expr, const, node

Maker = Callable[..., Any]


def real(e: Expr) -> Expr:
    """A truth value as 0 or 1."""
    return al.where(e, ONE, ZERO) if e.is_truth else e


def truth(e: Expr) -> Expr:
    return e if e.is_truth or e.op == "const" else al.inverted(al.compare("eq", e, ZERO))


def _of_reals(f: Maker) -> Maker:
    def any_real(a: Any) -> Any:
        return real(a) if isinstance(a, Expr) else a  # None, a word

    return lambda *args, **kwargs: f(*map(any_real, args), **{n: any_real(a) for n, a in kwargs.items()})


def _of_truths(f: Maker) -> Maker:
    return lambda *args: f(*map(truth, args))


def _add(a: Expr, b: Expr, alpha: Expr = ONE) -> Expr:
    return al.add(a, al.mul(alpha, b))


def _sub(a: Expr, b: Expr, alpha: Expr = ONE) -> Expr:
    return al.sub(a, al.mul(alpha, b))


def _clamp(x: Expr, min: Expr | None = None, max: Expr | None = None) -> Expr:
    if min is not None:
        x = node("clamp_min", x, min)
    return x if max is None else node("clamp_max", x, max)


def _below(x: Expr, bound: Expr, inside: Expr, outside: Expr) -> Expr:
    return al.where(al.compare("le", x, bound), inside, outside)


_MINUS_ONE, _HUNDREDTH = const(-1.0), const(0.01)


def _hardtanh(x: Expr, low: Expr = _MINUS_ONE, high: Expr = ONE) -> Expr:
    # unlike clamp's, its bounds have slope 0
    return _below(x, low, low, al.where(al.compare("le", high, x), high, x))


def _leaky_relu(x: Expr, slope: Expr = _HUNDREDTH) -> Expr:
    return _below(x, ZERO, al.mul(slope, x), x)


def _elu(x: Expr, alpha: Expr = ONE, scale: Expr = ONE, input_scale: Expr = ONE) -> Expr:
    below = al.mul(al.mul(alpha, scale), al.expm1(al.mul(x, input_scale)))
    return _below(x, ZERO, below, al.mul(scale, x))


def _softplus(x: Expr, beta: Expr = ONE, threshold: Expr | None = None) -> Expr:
    # beyond the threshold torch takes x itself, which is less exact
    return al.div(al.softplus(al.mul(beta, x)), beta)


def _gelu(x: Expr, *, approximate: str = "none") -> Expr:
    if approximate == "tanh":
        inner = al.mul(x, al.add(ONE, al.scaled(0.044715, al.mul(x, x))))
        return al.mul(x, al.sigmoid(al.scaled(2 * math.sqrt(2 / math.pi), inner)))
    return al.scaled(0.5, al.mul(x, al.erfc(al.scaled(-math.sqrt(0.5), x))))


def _hardsigmoid(x: Expr) -> Expr:
    return al.scaled(1 / 6, _hardtanh(al.add(x, const(3.0)), ZERO, const(6.0)))


def _hardswish(x: Expr) -> Expr:
    # at its kinks the slope is that of outside
    inside = al.mul(x, al.add(al.scaled(1 / 6, x), const(0.5)))
    return _below(x, const(-3.0), al.scaled(0.0, x), al.where(al.compare("le", const(3.0), x), x, inside))


def _hypot(a: Expr, b: Expr) -> Expr:
    return al.sqrt(al.add(al.mul(a, a), al.mul(b, b)))


_MEAN = const(1.0)  # torch's number of it, and that of no reduction is 0


def _huber(x: Expr, t: Expr, reduction: Expr = _MEAN, delta: Expr = ONE) -> Expr | None:
    if reduction is not ZERO:
        return None
    d = al.absolute(al.sub(x, t))
    near = al.scaled(0.5, al.mul(d, d))
    return _below(d, delta, near, al.mul(delta, al.sub(d, al.scaled(0.5, delta))))


def _smooth_l1(x: Expr, t: Expr, reduction: Expr = _MEAN, beta: Expr = ONE) -> Expr | None:
    if reduction is not ZERO:
        return None
    d = al.absolute(al.sub(x, t))
    near = al.div(al.scaled(0.5, al.mul(d, d)), beta)
    return al.where(al.compare("lt", d, beta), near, al.sub(d, al.scaled(0.5, beta)))


def _threshold(x: Expr, at: Expr, value: Expr) -> Expr:
    return _below(x, at, value, x)


def _xlogy(x: Expr, y: Expr) -> Expr:
    return al.where(al.compare("eq", x, ZERO), ZERO, al.mul(x, al.log(y)))


def _logaddexp(a: Expr, b: Expr) -> Expr:
    return al.add(a, al.softplus(al.sub(b, a)))


# by the operator's name, whatever its overload; tensors and numbers are expressions
ARITHMETIC: dict[str, Maker] = {
    "add": _add,
    "sub": _sub,
    "rsub": lambda a, b, alpha=ONE: _sub(b, a, alpha),
    "mul": al.mul,
    "div": al.div,
    "true_divide": al.div,
    "neg": al.neg,
    "reciprocal": lambda x: al.div(ONE, x),
    "square": lambda x: al.mul(x, x),
    "pow": al.power,
    "sqrt": al.sqrt,
    "rsqrt": lambda x: al.div(ONE, al.sqrt(x)),
    "hypot": _hypot,
    "abs": al.absolute,
    "sign": al.sign,
    "sgn": al.sign,
    "exp": al.exp,
    "exp2": lambda x: al.exp(al.scaled(al.LN2, x)),
    "expm1": al.expm1,
    "log": al.log,
    "log2": lambda x: al.scaled(1 / al.LN2, al.log(x)),
    "log10": lambda x: al.scaled(1 / math.log(10), al.log(x)),
    "log1p": al.log1p,
    "xlogy": _xlogy,
    "logaddexp": _logaddexp,
    "tanh": al.tanh,
    "sinh": al.sinh,
    "cosh": al.cosh,
    "sin": al.sin,
    "cos": al.cos,
    "atan": al.atan,
    "erf": al.erf,
    "erfc": al.erfc,
    "sigmoid": al.sigmoid,
    "log_sigmoid_forward": lambda x: al.neg(al.softplus(al.neg(x))),
    "softplus": _softplus,
    "silu": lambda x: al.mul(x, al.sigmoid(x)),
    "mish": lambda x: al.mul(x, al.tanh(al.softplus(x))),
    "gelu": _gelu,
    "relu": al.relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "hardtanh": _hardtanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": _hardswish,
    "threshold": _threshold,
    "huber_loss": _huber,
    "smooth_l1_loss": _smooth_l1,
    "clamp": _clamp,
    "clamp_min": lambda x, min: _clamp(x, min),
    "clamp_max": lambda x, max: _clamp(x, None, max),
    "maximum": lambda a, b: node("max", a, b),
    "minimum": lambda a, b: node("min", a, b),
    "floor": lambda x: node("floor", x),
    "ceil": lambda x: al.neg(node("floor", al.neg(x))),
    "lerp": lambda a, b, w: al.add(a, al.mul(w, al.sub(b, a))),
    "addcmul": lambda a, b, c, value=ONE: al.add(a, al.mul(value, al.mul(b, c))),
    "addcdiv": lambda a, b, c, value=ONE: al.add(a, al.mul(value, al.div(b, c))),
}  # fmt: skip

COMPARISONS: dict[str, Maker] = {
    "lt": lambda a, b: al.compare("lt", a, b),
    "le": lambda a, b: al.compare("le", a, b),
    "gt": lambda a, b: al.compare("lt", b, a),
    "ge": lambda a, b: al.compare("le", b, a),
    "eq": lambda a, b: al.compare("eq", a, b),
    "ne": lambda a, b: al.inverted(al.compare("eq", a, b)),
    "isnan": lambda a: al.inverted(node("eq", a, a)),
}

LOGIC: dict[str, Maker] = {
    "logical_and": al.both,
    "bitwise_and": al.both,
    "logical_or": al.either,
    "bitwise_or": al.either,
    "logical_not": al.inverted,
    "bitwise_not": al.inverted,
}


def _where(condition: Expr, a: Expr, b: Expr) -> Expr:
    if a.is_truth or b.is_truth:
        a, b = real(a), real(b)
    return al.where(truth(condition), a, b)


def _filled(x: Expr, mask: Expr, value: Expr) -> Expr:
    return al.where(truth(mask), real(value), real(x))


TABLE: dict[str, Maker] = {
    **{name: _of_reals(f) for name, f in (ARITHMETIC | COMPARISONS).items()},
    **{name: _of_truths(f) for name, f in LOGIC.items()},
    "where": _where,
    "masked_fill": _filled,
    "detach": lambda x: node("detach", real(x)),
}
# What gives its first operand as it is, whatever else it is given.
UNCHANGED = frozenset({
    "alias", "clone", "contiguous", "expand", "lift_fresh", "lift_fresh_copy", "view", "view_as", "reshape",
    "_unsafe_view", "_reshape_alias", "positive", "squeeze", "unsqueeze", "expand_as",
})  # fmt: skip


def filled_with(name: str, args: tuple[Any, ...]) -> float | None:
    """The number that an operator fills a tensor with: ``zeros_like`` and its kind."""
    if name in ("zeros_like", "new_zeros", "zeros", "zero"):
        return 0.0
    if name in ("ones_like", "new_ones", "ones"):
        return 1.0
    return None
