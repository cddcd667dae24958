"""Losses of rotated boxes: one value a pair."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .. import meta
from ..op import Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, reduce
from .box import PAIRS, errors_of, ratio


def quadratic(dx: Tensor, dy: Tensor, w: Tensor, h: Tensor, angle: Tensor) -> Tensor:
    """The offset's quadratic form in the adjugate of a box's covariance."""
    cosine, sine = angle.cos(), angle.sin()
    return ((h * (cosine * dx + sine * dy)) ** 2 + (w * (cosine * dy - sine * dx)) ** 2) / 12


def log_of_quotient(apart: Tensor, common: Tensor, eps: float) -> Tensor:
    """log((apart + common) / (common + eps) + eps), which keeps its digits where the quotient is near 1; −∞ at 0/0,
    which eps = 0 allows, and ∞ where the denominator alone is 0."""
    det, denominator = apart + common, common + eps
    without = denominator == 0
    quotient = det / torch.where(without, 1.0, denominator) + eps
    near = (quotient > 0.5) & (quotient < 2)
    beside_one = torch.where(near, (apart - eps) / torch.where(without, 1.0, denominator) + eps, 0.0)
    log = torch.where(near, beside_one.log1p(), torch.where(near | (quotient == 0), 1.0, quotient).log())
    at_zero = torch.where(det == 0, -math.inf, math.inf) if eps == 0 else log
    return torch.where(without, at_zero, log)


def prob_iou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    """How far two rotated boxes are apart as normal distributions: their Hellinger distance.

    What detectors of oriented objects train with: smooth in the angle, and with a gradient where the boxes are apart.

    Args:
        input: predicted boxes (…, 5), each the centre x, y, the sizes w, h and the angle of the side w in radians; any
            floating dtype.
        target: the box that each of them is to become, of the same shape; any real dtype.
        eps: ≥ 0; added to denominators, to the quotient in the logarithm and under the root.

    Returns:
        The loss, about 0 to 1: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

    Raises:
        RuntimeError: the last dimension is not 5, the shapes differ, or an option is out of its range.

    Formula:
        √(1 − e^(−B) + eps), B = Q/(4·(D + eps)) + ½·log(D/(4·|w₁·h₁·w₂·h₂|/144 + eps) + eps) clamped to [eps, 100],
        D = det(Σ₁ + Σ₂), Q = Δᵀ·adj(Σ₁ + Σ₂)·Δ, Δ the offset of the centres, Σ a box's covariance, w²/12 along its side
        w and h²/12 along h. A side of length 0 has gradient 0.

    Example:
        >>> predicted = torch.tensor([[10.0, 10.0, 8.0, 4.0, 0.0]])
        >>> target = torch.tensor([[11.0, 10.0, 8.0, 4.0, 0.5]])  # centre, sizes and radians; not corners, not degrees
        >>> opreg.functional.prob_iou_loss(predicted, target)
        tensor(0.2913)
    """
    (x1, y1, w1, h1, angle1), (x2, y2, w2, h2, angle2) = input.unbind(-1), target.unbind(-1)
    dx, dy = x1 - x2, y1 - y2
    square = quadratic(dx, dy, w1, h1, angle1) + quadratic(dx, dy, w2, h2, angle2)
    w1, h1, w2, h2 = w1.abs(), h1.abs(), w2.abs(), h2.abs()
    cosine, sine = (angle1 - angle2).cos(), (angle1 - angle2).sin()
    # D less four times the root of the determinants' product, as a sum of squares: it is 0 where the boxes are alike
    squares = (w1 * h1 - w2 * h2) ** 2 + (cosine * (h1 * w2 - w1 * h2)) ** 2 + (sine * (w1 * w2 - h1 * h2)) ** 2
    apart, common = squares / 144, w1 * h1 * w2 * h2 / 36
    det = apart + common
    far = ratio(square, det, eps) / 4
    distance = (far + log_of_quotient(apart, common, eps) / 2).clamp(eps, 100.0)
    if eps == 0:  # boxes without area: apart where their centres are
        distance = torch.where((det == 0) & (square > 0), 100.0, distance)
    squared = -torch.expm1(-distance) + eps
    nothing = squared == 0
    return reduce(torch.where(nothing, 0.0, torch.where(nothing, 1.0, squared).sqrt()), reduction)


def boxes(make: Maker, *pairs: int, scale: float = 1.0) -> Tensor:
    """Boxes inside of about [0, scale]², at any angle."""
    centre, size = make.uniform(*pairs, 2, high=scale), make.uniform(*pairs, 2, low=0.1 * scale, high=0.5 * scale)
    angle = make.uniform(*pairs, 1, low=-math.pi, high=math.pi)
    return torch.cat([centre, size, angle], -1).detach().requires_grad_(make.requires_grad)


# Input and target: each way in which boxes may be alike, thin, or nothing.
KINKS = [
    ((1, 1, 2, 1, 0.5), (1, 1, 2, 1, 0.5)),  # identical
    ((1, 1, 2, 1, 0.5), (1, 1, 1, 2, 0.5 + math.pi / 2)),  # the same box, told otherwise
    ((1, 1, 2, 2, 0.0), (1, 1, 2, 2, 0.7)),  # squares: the angle is nothing
    ((0, 0, 1, 1, 0.0), (30, 20, 1, 1, 0.0)),  # so far apart that the distance is clamped
    ((1, 1, 0, 0, 0.0), (1, 1, 0, 0, 0.0)),  # points
    ((1, 1, 0, 0, 0.0), (2, 1, 0, 0, 0.0)),
    ((1, 1, 0, 0, 0.0), (1, 1, 2, 1, 0.3)),
    ((1, 1, 2, 0, 0.3), (1, 1, 2, 0, 0.3)),  # lines
    ((1, 1, 2, 0, 0.3), (1, 1, 2, 0, -0.3)),  # lines that cross
    ((1, 1, 0, 2, 0.3), (1, 1, 1, 2, 0.3)),
    ((1, 1, 2, -1, 0.5), (1, 1, -2, 1, 0.2)),  # sizes below 0
]


def samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((boxes(make, 5), boxes(make, 5)), {"reduction": reduction})
    yield Sample((boxes(make, 2, 3), boxes(make, 2, 3)), {"eps": 1e-3}, "eps")
    yield Sample((boxes(make, 1), boxes(make, 1)), name="one pair")
    a, b = (make.tensor(box) for box in zip(*KINKS, strict=True))
    for eps in (1e-7, 0.0):
        yield Sample((a, b), {"reduction": "none", "eps": eps}, "kinks", smooth=False)
    pixels = {"reduction": "none"}
    yield Sample((boxes(make, 4, scale=1e4), boxes(make, 4, scale=1e4)), pixels, "extremes", smooth=False)


def workload(make: Maker, size: str) -> Iterator[Sample]:
    pairs = 12 if size == "small" else PAIRS[size]  # of 60 numbers
    yield Sample((boxes(make, pairs), boxes(make, pairs)))


register(
    Op(
        "prob_iou_loss",
        reference=prob_iou_loss,
        shape=meta.boxes("input", "target", numbers=5),
        samples=samples,
        errors=errors_of("prob_iou_loss", draw=boxes, numbers=5),
        source="arXiv 2106.06072",
        module="ProbIoULoss",
        workload=workload,
    )
)
