"""Exact definitions of the pointwise ops, in dual numbers over mpmath: exponents have no bounds there, so nothing
overflows, and logarithms and exponentials keep 200 bits near their flat ends. And where each is to be looked at.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mpmath import mp, mpf

BEYOND = mpf(10) ** 2000  # what stands for infinity: a formula's limit there is its value here


class Dual:
    """A number with its slopes in each input."""

    def __init__(self, value: Any, slopes: tuple[Any, ...]) -> None:
        self.value, self.slopes = value, slopes

    def through(self, value: Any, slope: Any) -> "Dual":
        return Dual(value, tuple(slope * s if s else s for s in self.slopes))

    def lift(self, other: Any) -> "Dual":
        return other if isinstance(other, Dual) else Dual(mpf(other), (mpf(0),) * len(self.slopes))

    def __add__(self, other: Any) -> "Dual":
        o = self.lift(other)
        return Dual(self.value + o.value, tuple(a + b for a, b in zip(self.slopes, o.slopes, strict=True)))

    def __mul__(self, other: Any) -> "Dual":
        o = self.lift(other)
        slopes = tuple(o.value * a + self.value * b for a, b in zip(self.slopes, o.slopes, strict=True))
        return Dual(self.value * o.value, slopes)

    def __truediv__(self, other: Any) -> "Dual":
        o = self.lift(other)
        return self * o.through(1 / o.value, -1 / o.value**2)

    def __neg__(self) -> "Dual":
        return self * -1

    def __sub__(self, other: Any) -> "Dual":
        return self + -self.lift(other)

    def __rsub__(self, other: Any) -> "Dual":
        return self.lift(other) - self

    __radd__, __rmul__ = __add__, __mul__


def exp(x: Dual) -> Dual:
    y = mp.exp(x.value)
    return x.through(y, y)


def log(x: Dual) -> Dual:
    return x.through(mp.log(x.value), 1 / x.value)


def sigmoid(x: Dual) -> Dual:
    p = 1 / (1 + mp.exp(-x.value))
    return x.through(p, p / (1 + mp.exp(x.value)))


def softplus(x: Dual) -> Dual:
    v = x.value
    return x.through(mp.log1p(mp.exp(-abs(v))) + max(v, mpf(0)), 1 / (1 + mp.exp(-v)))


def power(x: Dual, y: float) -> Dual:
    """0 has the slope 0."""
    if x.value == 0:
        return x.through(mpf(y == 0), mpf(0))
    return x.through(x.value**y, y * x.value ** (mpf(y) - 1))


def magnitude(x: Dual) -> Dual:
    return x.through(abs(x.value), mp.sign(x.value))


def relu(x: Dual) -> Dual:
    """The kink belongs to the slope."""
    return x if x.value >= 0 else x * 0


def at_least(x: Dual, low: float) -> Dual:
    return x.lift(low) if x.value < low else x


def swish(x: Dual, *, beta: float = 1.0) -> Dual:
    return x * sigmoid(x * beta)


def hard_swish(x: Dual) -> Dual:
    return x * 0 if x.value <= -3 else x if x.value >= 3 else x * (x + 3) / 6


def mish(x: Dual) -> Dual:
    e = exp(x)
    n = e * (e + 2)
    return x * (n / (n + 2))


def gelu(x: Dual, *, approximate: str = "none") -> Dual:
    v = x.value
    if approximate == "tanh":
        return x * sigmoid((x + x * x * x * mpf("0.044715")) * (2 * mp.sqrt(2 / mp.pi)))
    below = mp.erfc(-v / mp.sqrt(2)) / 2 if abs(v) < 1e4 else mpf(v > 0)
    return x * x.through(below, mp.exp(-v * v / 2) / mp.sqrt(2 * mp.pi))


def quick_gelu(x: Dual) -> Dual:
    return swish(x, beta=1.702)


def positive(x: Dual) -> Dual:
    """The kink belongs to the flat side."""
    return x if x.value > 0 else x * 0


def relu_squared(x: Dual) -> Dual:
    return positive(x) * positive(x)


def swiglu(gate: Dual, up: Dual, *, beta: float = 1.0) -> Dual:
    return swish(gate, beta=beta) * up


def geglu(gate: Dual, up: Dual, *, approximate: str = "none") -> Dual:
    return gelu(gate, approximate=approximate) * up


def reglu(gate: Dual, up: Dual) -> Dual:
    return positive(gate) * up


def at_most(x: Dual, high: float) -> Dual:
    return x.lift(high) if x.value > high else x


def clamped_swiglu(gate: Dual, up: Dual, *, alpha: float = 1.702, limit: float = 7.0) -> Dual:
    return swish(at_most(gate, limit), beta=alpha) * (at_least(at_most(up, limit), -limit) + 1)


def charbonnier_loss(x: Dual, t: Dual, *, eps: float = 1e-3) -> Dual:
    return power((x - t) * (x - t) + mpf(eps) ** 2, 0.5)


def log_cosh_loss(x: Dual, t: Dual) -> Dual:
    d = x - t
    return d.through(mp.log(mp.cosh(d.value)), mp.tanh(d.value))


def quantile_loss(x: Dual, t: Dual, *, quantile: float = 0.5) -> Dual:
    d = t - x
    above, below = d * mpf(quantile), d * (mpf(quantile) - 1)
    if d.value == 0:
        return (above + below) * 0.5
    return above if d.value > 0 else below


def wing_loss(x: Dual, t: Dual, *, width: float = 10.0, curvature: float = 2.0) -> Dual:
    r, w, c = magnitude(x - t), mpf(width), mpf(curvature)
    # not log(1 + r / c): of a denormal 1e-300 of a curvature 1e300, 200 bits are not enough
    return r.through(w * mp.log1p(r.value / c), w / (c + r.value)) if r.value < w else r - (w - w * mp.log1p(w / c))


def quality_focal_loss(x: Dual, t: Dual, *, beta: float = 2.0) -> Dual:
    apart = sigmoid(x) * (1 - t) - t * sigmoid(-x)
    return power(magnitude(apart), beta) * ((1 - t) * softplus(x) + t * softplus(-x))


def varifocal_loss(x: Dual, t: Dual, *, alpha: float = 0.75, gamma: float = 2.0) -> Dual:
    if t.value > 0:
        return t * ((1 - t) * softplus(x) + t * softplus(-x))
    return power(sigmoid(x), gamma) * softplus(x) * alpha


def gaussian_focal_loss(x: Dual, t: Dual, *, alpha: float = 2.0, gamma: float = 4.0) -> Dual:
    if t.value == 1:
        return power(sigmoid(-x), alpha) * softplus(-x)
    return power(1 - t, gamma) * power(sigmoid(x), alpha) * softplus(x)


def asymmetric_loss(x: Dual, t: Dual, *, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05) -> Dual:
    m = relu(sigmoid(x) - clip)
    negative = softplus(x) if clip == 0 else -m.through(mp.log1p(-m.value), -1 / (1 - m.value))
    return t * power(sigmoid(-x), gamma_pos) * softplus(-x) + (1 - t) * power(m, gamma_neg) * negative


def l1_loss(x: Dual, t: Dual) -> Dual:
    return magnitude(x - t)


def mse_loss(x: Dual, t: Dual) -> Dual:
    return (x - t) * (x - t)


def smooth_l1_loss(x: Dual, t: Dual, *, beta: float = 1.0) -> Dual:
    r = magnitude(x - t)
    return r * r / beta * 0.5 if r.value < beta else r - mpf(beta) / 2


def huber_loss(x: Dual, t: Dual, *, delta: float = 1.0) -> Dual:
    r = magnitude(x - t)
    return r * r * 0.5 if r.value <= delta else (r - mpf(delta) / 2) * delta


def binary_cross_entropy(x: Dual, t: Dual, w: Dual) -> Dual:
    """torch's: logarithms of at least -100, a denominator of at least 1e-12."""
    log_p, log_q = (max(mp.log(v), mpf(-100)) if v > 0 else mpf(-100) for v in (x.value, 1 - x.value))
    value = w.value * ((t.value - 1) * log_q - t.value * log_p)
    dx = w.value * (x.value - t.value) / max(x.value * (1 - x.value), mpf(1e-12))
    return Dual(value, (dx, w.value * (log_q - log_p), mpf(0)))


def binary_cross_entropy_with_logits(x: Dual, t: Dual, w: Dual, v: Dual) -> Dual:
    return w * ((1 - t) * softplus(x) + v * t * softplus(-x))


def focal_loss(x: Dual, t: Dual, *, alpha: float = 0.25, gamma: float = 2.0) -> Dual:
    cross_entropy = (1 - t) * softplus(x) + t * softplus(-x)
    miss = sigmoid(x) * (1 - t) + sigmoid(-x) * t
    weight = t * alpha + (1 - t) * (1 - mpf(alpha)) if alpha >= 0 else 1
    return power(miss, gamma) * cross_entropy * weight


def poisson_nll_loss(x: Dual, t: Dual, *, log_input: bool = True, full: bool = False, eps: float = 1e-8) -> Dual:
    loss = exp(x) - t * x if log_input else x - t * log(x + eps)
    if full and t.value > 1:
        loss = loss + t * log(t) - t + log(t * (2 * mp.pi)) * 0.5
    return loss


def gaussian_nll_loss(x: Dual, t: Dual, var: Dual, *, full: bool = False, eps: float = 1e-6) -> Dual:
    v = Dual(max(var.value, mpf(eps)), var.slopes)
    return (log(v) + (x - t) * (x - t) / v) * 0.5 + (mp.log(2 * mp.pi) / 2 if full else 0)


def kl_div(x: Dual, t: Dual, *, log_target: bool = False) -> Dual:
    if log_target:
        return exp(t) * (t - x)
    return t * log(t) - t * x if t.value != 0 else Dual(mpf(0), (mpf(0), mpf(0)))


def soft_margin_loss(x: Dual, t: Dual) -> Dual:
    return softplus(-(t * x))


def hinge_embedding_loss(x: Dual, t: Dual, *, margin: float = 1.0) -> Dual:
    if t.value == 1:
        return x
    return at_least(x, margin) if t.value != -1 else relu(margin - x)


def margin_ranking_loss(x1: Dual, x2: Dual, t: Dual, *, margin: float = 0.0) -> Dual:
    return relu(margin - t * (x1 - x2))


def line(dtype: torch.dtype) -> list[float]:
    """Both signs, from the smallest denormal to the largest number: where exponentials end, where formulas change."""
    info = torch.finfo(dtype)
    steps = [0.0, info.smallest_normal * info.eps, info.smallest_normal / 2, info.smallest_normal, info.eps, 1e-3, 0.3]
    steps += [math.sqrt(info.smallest_normal), 1.0, 2.5, 3.0, 9.0, 17.3, 19.9, 20.0, 20.1, 36.0, 43.6, 44.4, 60.0, 86.5]
    steps += [87.3, 88.0, 88.72, 88.8, 90.0, 104.0, 352.0, 355.0, 708.0, 709.7, 710.0, 746.0, 1e4, 65504.0, 1e16]
    steps += [math.sqrt(info.max) * 0.9, math.sqrt(info.max) * 1.1, info.max / 4, info.max]
    return sorted({s * x for x in steps if x <= info.max for s in (1, -1)} | {math.inf, -math.inf})


def unit(dtype: torch.dtype) -> list[float]:
    """[0, 1]"""
    info = torch.finfo(dtype)
    return [0.0, info.smallest_normal * info.eps, info.smallest_normal, 1e-6, 0.25, 0.5, 0.9, 1 - info.eps, 1.0]


def few(dtype: torch.dtype) -> list[float]:
    largest = torch.finfo(dtype).max
    return [0.0, 1.0, -0.7, 1e4, largest / 2, -largest]


def factors(dtype: torch.dtype) -> list[float]:
    return [0.0, 1.0, -0.7, 10.0]


def inner(dtype: torch.dtype) -> list[float]:
    """With room for a few factors."""
    return [x for x in line(dtype) if abs(x) <= torch.finfo(dtype).max / 1e4 or math.isinf(x)]


def fixed(*values: float) -> Callable[[torch.dtype], list[float]]:
    return lambda dtype: list(values)


@dataclass(frozen=True)
class Formula:
    exact: Callable[..., Dual]
    inputs: tuple[Callable[[torch.dtype], list[float]], ...]  # all of their combinations
    options: tuple[dict[str, Any], ...] = ({},)
    domain: Callable[..., bool] = field(default=lambda *x, **options: True)


def powers(x: float, t: float, **options: Any) -> bool:
    """The root of what an exponential lacks is no small number; what a power lacks times a large one neither."""
    exponents = [v for k, v in options.items() if k in ("beta", "gamma", "gamma_neg", "gamma_pos", "alpha")]
    return all(1 < v <= 4 for v in exponents) or 1e-50 < abs(x) < 86


APPROXIMATIONS = ({"approximate": "none"}, {"approximate": "tanh"})

FORMULAS = {
    "swish": Formula(swish, (line,), ({}, {"beta": 1.7}, {"beta": -0.5}, {"beta": 0.0}, {"beta": 1e30})),
    "hard_swish": Formula(hard_swish, (line,)),
    "mish": Formula(mish, (line,)),
    "gelu": Formula(gelu, (line,), APPROXIMATIONS),
    "quick_gelu": Formula(quick_gelu, (line,)),
    "relu_squared": Formula(relu_squared, (line,)),
    "swiglu": Formula(swiglu, (line, factors), ({}, {"beta": 1.7}, {"beta": -0.5}, {"beta": 0.0})),
    "geglu": Formula(geglu, (line, factors), APPROXIMATIONS),
    "reglu": Formula(reglu, (line, factors)),
    "clamped_swiglu": Formula(clamped_swiglu, (line, few), ({}, {"alpha": -0.5, "limit": 2.5}, {"limit": 0.0})),
    "charbonnier_loss": Formula(
        charbonnier_loss, (line, few), ({}, {"eps": 1e-30}, {"eps": 1e30}, {"eps": 1e-300}, {"eps": 1e300})
    ),
    "log_cosh_loss": Formula(log_cosh_loss, (line, few)),
    "quantile_loss": Formula(quantile_loss, (line, few), ({}, {"quantile": 0.01}, {"quantile": 0.999})),
    "wing_loss": Formula(
        wing_loss, (line, few), ({}, {"width": 1e-30}, {"width": 1e5}, {"curvature": 1e-30}, {"curvature": 1e30})
    ),
    "quality_focal_loss": Formula(
        quality_focal_loss, (inner, unit), ({}, {"beta": 0.0}, {"beta": 0.5}, {"beta": 1.0}, {"beta": 7.3}), powers
    ),
    "varifocal_loss": Formula(
        varifocal_loss, (inner, unit), ({}, {"gamma": 0.0}, {"gamma": 0.5, "alpha": 0.0}, {"gamma": 7.3}), powers
    ),
    "gaussian_focal_loss": Formula(
        gaussian_focal_loss, (inner, unit), ({}, {"alpha": 0.0, "gamma": 0.0}, {"alpha": 0.5, "gamma": 1.5}), powers
    ),
    "asymmetric_loss": Formula(
        asymmetric_loss,
        (inner, unit),
        ({}, {"clip": 0.0}, {"gamma_neg": 0.5, "gamma_pos": 3.7}, {"gamma_neg": 0.0, "gamma_pos": 0.0, "clip": 0.4}),
        powers,
    ),
    "l1_loss": Formula(l1_loss, (line, few)),
    "mse_loss": Formula(mse_loss, (line, few)),
    "smooth_l1_loss": Formula(
        smooth_l1_loss, (line, few), ({}, {"beta": 1e-30}, {"beta": 1e30}, {"beta": 1e-300}, {"beta": 1e300})
    ),
    "huber_loss": Formula(huber_loss, (line, few), ({}, {"delta": 1e-30}, {"delta": 1e30}, {"delta": 1e300})),
    "binary_cross_entropy": Formula(binary_cross_entropy, (unit, unit, fixed(1.0, 3e3))),
    "binary_cross_entropy_with_logits": Formula(
        binary_cross_entropy_with_logits, (inner, unit, fixed(1.0, 1e-3), fixed(1.0, 30.0))
    ),
    "focal_loss": Formula(
        focal_loss,
        (inner, unit),
        ({}, {"gamma": 0.0}, {"gamma": 0.5, "alpha": -1.0}, {"gamma": 1.0, "alpha": 1.0}, {"gamma": 7.3}),
        # the root of what an exponential lacks is no small number; what a power lacks times a large one neither
        lambda x, t, gamma=2.0, **_: 1 <= gamma <= 2 or 1e-50 < abs(x) < 86,
    ),
    "poisson_nll_loss": Formula(
        poisson_nll_loss,
        (line, fixed(0.0, 1.0, -0.7, 30.0)),
        tuple({"log_input": log_input, "full": full} for log_input in (True, False) for full in (True, False)),
    ),
    "gaussian_nll_loss": Formula(
        gaussian_nll_loss, (line, few, lambda d: [v for v in line(d) if v >= 0][::4]), ({}, {"full": True, "eps": 0.0})
    ),
    "kl_div": Formula(
        kl_div,
        (lambda d: [x for x in line(d) if abs(x) < 1e4], lambda d: [x for x in line(d) if x <= 20.0]),
        ({"log_target": True},),
    ),
    "kl_div-probabilities": Formula(kl_div, (line, lambda d: [*unit(d), 1e4])),
    "soft_margin_loss": Formula(soft_margin_loss, (line, fixed(1.0, -1.0, 0.0, 30.0))),
    "hinge_embedding_loss": Formula(hinge_embedding_loss, (line, fixed(1.0, -1.0)), ({}, {"margin": 1e30})),
    "margin_ranking_loss": Formula(margin_ranking_loss, (line, few, fixed(1.0, -1.0)), ({}, {"margin": 1e30})),
}
