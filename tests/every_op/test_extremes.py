"""Every op and its gradient over the whole range of its inputs' dtype.

Pointwise formulas against definitions in dual numbers over mpmath: exponents have no bounds there, so nothing
overflows, and logarithms and exponentials keep 200 bits near their flat ends. The others, their tensors scaled from
denormals up to where the squares that they need end, against their references in float64.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import mpmath
import pytest
import torch
from mpmath import mp, mpf
from torch import Tensor

import opreg
from conftest import DEVICE, OPS
from opreg.testing import Maker, as_function, tensors_with_grad

# Some roundings of the type that is computed in, and one of the result's dtype.
RELATIVE = {torch.float64: 4e-15, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
# Exponentials below the smallest normal number count as 0, and are multiplied by up to 1e3 here; float16 has denormals
# of its own.
ABSOLUTE = {torch.float64: 1e-304, torch.float32: 3e-35, torch.bfloat16: 3e-35, torch.float16: 6.1e-8}
DTYPES = list(RELATIVE)
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


FORMULAS = {
    "swish": Formula(swish, (line,), ({}, {"beta": 1.7}, {"beta": -0.5}, {"beta": 0.0}, {"beta": 1e30})),
    "hard_swish": Formula(hard_swish, (line,)),
    "mish": Formula(mish, (line,)),
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


def number(x: float) -> Any:
    return BEYOND * (1 if x > 0 else -1) if math.isinf(x) else mpf(x)


def exactly(formula: Formula, point: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """Value and gradient, NaN where they have none."""
    n = len(point)
    try:
        y = formula.exact(*(Dual(x, tuple(mpf(i == k) for i in range(n))) for k, x in enumerate(point)), **options)
        return [v if isinstance(v, mpf) else mp.nan for v in (y.value, *y.slopes)]
    except (ZeroDivisionError, ValueError):
        return [mp.nan] * (n + 1)


def fits(got: float, want: Any, dtype: torch.dtype, finite: bool, around: Callable[[], Iterator[Any]]) -> bool:
    if mp.isnan(want):
        return True
    largest, relative = mpf(torch.finfo(dtype).max), mpf(RELATIVE[dtype])
    if not math.isfinite(got):
        # of an infinite input NaN is right too: inf * 0; and what grows without bound may be infinite at once
        return abs(want) > largest * (1 - 2 * relative) or (not finite and (math.isnan(got) or abs(want) > 1000))
    off = abs(mpf(got) - want)
    if off <= relative * abs(want) + ABSOLUTE[dtype]:
        return True
    if abs(want) > largest * (1 - 2 * relative):
        return got * mp.sign(want) > largest * (1 - 4 * relative)
    # what one rounding of each argument would change
    return bool(finite and off <= 2 * sum(abs(w - want) for w in around() if not mp.isnan(w)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_pointwise(name: str, dtype: torch.dtype) -> None:
    formula, op = FORMULAS[name], opreg.get(name.split("-")[0])
    axes = [torch.tensor(values(dtype), dtype=torch.float64) for values in formula.inputs]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes)).to(dtype)
    tensors = [x.clone().to(DEVICE).requires_grad_(k < len(op.differentiable)) for k, x in enumerate(points.unbind(1))]
    wanted = tensors[: len(op.differentiable)]
    step = mpf(torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    wrong, largest = [], torch.finfo(dtype).max
    mp.prec = 200
    for options in formula.options:
        reduction = {"reduction": "none"} if op.is_loss else {}
        y = op.value(*tensors, **options, **reduction)
        grads = torch.autograd.grad(y, wanted, torch.ones_like(y))
        got = torch.stack([y.detach(), *grads], 1).double().tolist()
        for point, row in zip(points.double().tolist(), got, strict=True):
            finite = all(map(math.isfinite, point))
            if not formula.domain(*point, **options) or (finite and sum(map(abs, map(mpf, point))) > largest):
                continue  # their difference has no number
            at = tuple(number(x) for x in point)
            for k, (g, want) in enumerate(zip(row, exactly(formula, at, options), strict=False)):

                def around(at: tuple[Any, ...] = at, k: int = k, options: dict[str, Any] = options) -> Iterator[Any]:
                    for i in range(len(at)):
                        for sign in (1, -1):
                            other = (*at[:i], at[i] * (1 + sign * step), *at[i + 1 :])
                            yield exactly(formula, other, options)[k]

                if not fits(g, want, dtype, finite, around):
                    what = "value" if k == 0 else f"gradient {k}"
                    wrong.append(f"{what} at {point} {options or ''}: {g} for {mpmath.nstr(want, 8)}")
    assert not wrong, f"{len(wrong)} of {len(points)} points:\n" + "\n".join(wrong[:: max(1, len(wrong) // 40)])


def test_every_pointwise_op_is_walked() -> None:
    families = {"activation", "regression", "likelihood", "binary", "margin"}
    assert {op.short for op in map(opreg.get, OPS) if op.family in families} == {n.split("-")[0] for n in FORMULAS}


SCALES = [1e-44, 1e-15, 1e-7, 1e-3, 1.0, 10.0, 100.0, 1e4, 1e15, 1e18, 1e37]
# Up to where the scores stay in their domain, or their squares and products in float32 (in their own dtype where torch
# multiplies); for areas, distances and what is sorted, down to where float32 tells them apart.
RANGES = {
    "angular": (0.0, 1.0),
    "box": (1e-7, 1e15),
    "metric": (0.1, 1e15),
    "affinity": (1e-3, 1e4),
    "lovasz": (1e-3, 1e3),
    "linear": (0.0, 1.0),
    "convolution": (0.0, 1.0),
    "multiclass": (0.0, 1e18),
    "segmentation": (0.0, 1e37),
    "softmax": (0.0, 1e30),
    "sequence": (0.0, 1e10),
    "categorical": (0.0, 1e37),
    "mining": (0.0, 1e37),
}
# One rounding of the result's dtype, and the sums of a few dozen terms before it, of the size of the largest of them.
OF_LARGEST = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


def gradients(op: opreg.Op, sample: opreg.Sample, call: Callable[..., Tensor]) -> list[Tensor]:
    inputs = list(tensors_with_grad(op, sample).values())
    y = as_function(op, sample, call)(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)
    return [y.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True))]


def changed(sample: opreg.Sample, change: Callable[[Tensor], Tensor]) -> opreg.Sample:
    """The sample with the tensors that ask for a gradient changed."""

    def of(a: object) -> object:
        if not isinstance(a, Tensor) or not a.is_floating_point():
            return a
        return change(a.detach()).requires_grad_(a.requires_grad) if a.requires_grad else a

    return opreg.Sample(tuple(map(of, sample.args)), {k: of(v) for k, v in sample.kwargs.items()}, sample.name)


@pytest.mark.parametrize("dtype", OF_LARGEST, ids=str)
@pytest.mark.parametrize("name", [n.split("::")[1] for n in OPS if n.split("::")[1] not in FORMULAS])
def test_scales(name: str, dtype: torch.dtype) -> None:
    """Scores of 1e37, or a row that is masked by the lowest number throughout, have the softmax that they have."""
    op = opreg.get(name)
    low, high = RANGES[op.family]
    largest, tolerance = torch.finfo(dtype).max, OF_LARGEST[dtype]
    wrong = []
    for k, sample in enumerate(op.samples(Maker(dtype, DEVICE, requires_grad=True))):
        inputs = tensors_with_grad(op, sample)
        if k > 8 or sample.name in ("kinks", "extremes") or sum(t.numel() for t in inputs.values()) > 1000:
            continue
        for scale in [s for s in SCALES if low <= s <= min(high, largest / 10)]:
            scaled = changed(sample, lambda t, scale=scale: t * scale)
            exact = changed(scaled, torch.Tensor.double)
            for got, want in zip(gradients(op, scaled, op.value), gradients(op, exact, op.call_reference), strict=True):
                size = want.abs().nan_to_num().amax() if want.numel() else 0
                near = (got.double() - want).abs() <= tolerance * size + 1e-6
                near |= want.isnan() | (want.abs() > 0.99 * largest)
                if not near.all():
                    at = int((~near).flatten().nonzero()[0])
                    wrong.append(f"{k} {sample.name} times {scale:g}: {got.flatten()[at]} for {want.flatten()[at]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", [torch.float64, *OF_LARGEST], ids=str)
@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize(
    "name", ["cross_entropy", "softmax_focal_loss", "pc_softmax_cross_entropy", "ohem_cross_entropy"]
)
def test_masked_row(name: str, classes: int, dtype: torch.dtype) -> None:
    """A row of the lowest number, which masks fill in, is a row of equal scores."""
    op = opreg.get(name)
    extra = (torch.ones(classes, device=DEVICE),) if name == "pc_softmax_cross_entropy" else ()
    target = torch.tensor([1, 0], device=DEVICE)
    results = []
    for value in (0.0, torch.finfo(dtype).min):
        x = torch.full((2, classes), value, dtype=dtype, device=DEVICE, requires_grad=True)
        loss = op.value(x, target, *extra, reduction="sum")
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    for flat, masked in zip(*results, strict=True):
        assert torch.equal(flat, masked)
