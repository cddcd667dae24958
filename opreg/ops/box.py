"""Box losses: one value a pair of boxes."""

import math
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, reduce


def ratio(numerator: Tensor, denominator: Tensor, eps: float) -> Tensor:
    """numerator / (denominator + eps); 0 at 0/0, which eps = 0 allows."""
    if eps > 0:
        return numerator / (denominator + eps)
    zero = denominator == 0
    return torch.where(zero, 0.0, numerator / torch.where(zero, 1.0, denominator))


class Axis(NamedTuple):
    """The lengths of a pair of boxes along x, or along y."""

    size: Tensor
    target_size: Tensor
    overlap: Tensor
    hull: Tensor
    offset: Tensor


def axes(input: Tensor, target: Tensor) -> tuple[Axis, Axis]:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = input.unbind(-1), target.unbind(-1)

    def axis(a1: Tensor, a2: Tensor, b1: Tensor, b2: Tensor) -> Axis:
        overlap = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).clamp(min=0)
        hull = torch.maximum(a2, b2) - torch.minimum(a1, b1)
        return Axis(a2 - a1, b2 - b1, overlap, hull, ((a1 - b1) + (a2 - b2)) / 2)

    return axis(ax1, ax2, bx1, bx2), axis(ay1, ay2, by1, by2)


def united(x: Axis, y: Axis) -> Tensor:
    return x.size * y.size + x.target_size * y.target_size - x.overlap * y.overlap


def iou(x: Axis, y: Axis, eps: float) -> Tensor:
    return ratio(x.overlap * y.overlap, united(x, y), eps)


def squared_distance(x: Axis, y: Axis) -> Tensor:
    return x.offset**2 + y.offset**2


def distance_iou(x: Axis, y: Axis, eps: float) -> Tensor:
    return 1 - iou(x, y, eps) + ratio(squared_distance(x, y), x.hull**2 + y.hull**2, eps)


def iou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    return reduce(1 - iou(*axes(input, target), eps), reduction)


def giou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    x, y = axes(input, target)
    enclosing = x.hull * y.hull
    return reduce(1 - iou(x, y, eps) + ratio(enclosing - united(x, y), enclosing, eps), reduction)


def diou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    return reduce(distance_iou(*axes(input, target), eps), reduction)


def angle(w: Tensor, h: Tensor) -> Tensor:
    """atan2(w, h); a box of size 0 × 0 has angle 0, and no slope."""
    point = (w == 0) & (h == 0)
    return torch.where(point, 0.0, torch.atan2(w, torch.where(point, 1.0, h)))


def complete_iou(x: Axis, y: Axis, eps: float, angle: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    v = 4 / math.pi**2 * (angle(x.target_size, y.target_size) - angle(x.size, y.size)) ** 2
    alpha = ratio(v, 1 - iou(x, y, eps) + v, eps).detach()
    return distance_iou(x, y, eps) + alpha * v


def ciou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    return reduce(complete_iou(*axes(input, target), eps, angle), reduction)


def efficient_iou(x: Axis, y: Axis, eps: float) -> Tensor:
    sizes = [ratio((a.size - a.target_size) ** 2, a.hull**2, eps) for a in (x, y)]
    return distance_iou(x, y, eps) + sizes[0] + sizes[1]


def eiou_loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
    return reduce(efficient_iou(*axes(input, target), eps), reduction)


def focal_eiou_loss(input: Tensor, target: Tensor, gamma: float, reduction: str, eps: float) -> Tensor:
    x, y = axes(input, target)
    return reduce(iou(x, y, eps).detach() ** gamma * efficient_iou(x, y, eps), reduction)


def power(x: Tensor, exponent: float) -> Tensor:
    """x ** exponent, without slope at 0."""
    zero = x == 0
    return torch.where(zero, 0.0, torch.where(zero, 1.0, x) ** exponent)


def alpha_iou_loss(input: Tensor, target: Tensor, alpha: float, reduction: str, eps: float) -> Tensor:
    return reduce(1 - power(iou(*axes(input, target), eps), alpha), reduction)


def siou_loss(input: Tensor, target: Tensor, theta: float, reduction: str, eps: float) -> Tensor:
    x, y = axes(input, target)
    nearer = torch.minimum(x.offset.abs(), y.offset.abs())
    s = ratio(nearer, power(squared_distance(x, y), 0.5), eps)
    gamma = 2 - 2 * s * torch.sqrt(1 - s**2)

    def nearness(a: Axis) -> Tensor:
        return -torch.expm1(-gamma * ratio(a.offset, a.hull, eps) ** 2)

    def shape(a: Axis) -> Tensor:
        k = ratio((a.size - a.target_size).abs(), torch.maximum(a.size, a.target_size), eps)
        return power(-torch.expm1(-k), theta)

    costs = nearness(x) + nearness(y) + shape(x) + shape(y)
    return reduce(1 - iou(x, y, eps) + costs / 2, reduction)


def wiou_loss(
    input: Tensor, target: Tensor, iou_mean: Tensor | None, alpha: float, delta: float, reduction: str, eps: float
) -> Tensor:
    x, y = axes(input, target)
    miss = 1 - iou(x, y, eps)
    diagonal = (x.hull**2 + y.hull**2).detach()
    loss = torch.exp(ratio(squared_distance(x, y), diagonal, eps)) * miss
    if iou_mean is not None:
        beta = ratio(miss, iou_mean.clamp(min=eps), 0.0).detach()
        loss = loss * beta / delta * torch.exp((delta - beta) * math.log(alpha))
    return reduce(loss, reduction)


def boxes(make: Maker, *pairs: int, scale: float = 1.0) -> Tensor:
    """Boxes inside of [0, scale]²."""
    corner, size = make.uniform(*pairs, 2, high=0.5 * scale), make.uniform(*pairs, 2, low=0.1 * scale, high=0.5 * scale)
    return torch.cat([corner, corner + size], -1).detach().requires_grad_(make.requires_grad)


# Input and target: each way in which their edges may coincide, or in which a box may be nothing.
KINKS = [
    ((0, 0, 2, 2), (0, 0, 2, 2)),  # identical
    ((0, 0, 2, 1), (2, 0, 3, 1)),  # an edge in common
    ((0, 0, 2, 1), (2, 1, 3, 3)),  # a corner in common
    ((0, 0, 1, 1), (3, 2, 4, 4)),  # apart
    ((0, 0, 1, 1), (0.25, 3, 0.5, 4)),  # apart along y alone
    ((1, 1, 2, 2), (0, 0, 4, 3)),  # inside
    ((0, 0, 4, 4), (0, 1, 2, 4)),  # inside, edges in common
    ((1, 1, 3, 3), (0, 0, 4, 4)),  # the same centre
    ((0, 0, 2, 1), (1, 1, 3, 2)),  # centres on a diagonal
    ((0, 0, 2, 2), (1, 0, 3, 2)),  # centres along x
    ((0, 0, 0, 0), (0, 0, 0, 0)),  # points
    ((1, 1, 1, 1), (0, 0, 2, 2)),  # a point in the centre
    ((0, 0, 0, 2), (0, 0, 0, 2)),  # lines
    ((0, 0, 2, 0), (1, 0, 2, 0)),
    ((0, 0, 2, 0), (1, -1, 1, 1)),
]


def samples(make: Maker, options: tuple[dict[str, Any], ...] = ({},), *, smooth: bool = True) -> Iterator[Sample]:
    """``smooth`` is False where the definition treats a factor as a constant: finite differences do not."""
    for reduction in REDUCTIONS:
        yield Sample((boxes(make, 5), boxes(make, 5)), {"reduction": reduction}, smooth=smooth)
    for chosen in options:
        name = ", ".join(f"{k} {v}" for k, v in chosen.items() if not isinstance(v, Tensor))
        yield Sample((boxes(make, 2, 3), boxes(make, 2, 3)), chosen, name, smooth=smooth)
        a, b = (make.tensor(box) for box in zip(*KINKS, strict=True))
        yield Sample((a, b), {**chosen, "reduction": "none"}, "kinks", smooth=False)
    yield Sample((boxes(make, 1), boxes(make, 1)), {"eps": 1e-3}, "one pair", smooth=smooth)
    yield Sample((a, b), {"reduction": "none", "eps": 0.0}, "kinks", smooth=False)
    pixels = {"reduction": "none"}
    yield Sample((boxes(make, 4, scale=1e4), boxes(make, 4, scale=1e4)), pixels, "extremes", smooth=False)


def with_options(**values: tuple[float, ...]) -> Callable[[Maker], Iterator[Sample]]:
    ((option, chosen),) = values.items()
    return lambda make: samples(make, tuple({option: v} for v in chosen))


def constant_factor(make: Maker) -> Iterator[Sample]:
    return samples(make, smooth=False)


def focal_samples(make: Maker) -> Iterator[Sample]:
    yield from samples(make, ({"gamma": 0.0}, {"gamma": 1.5}), smooth=False)


def wiou_samples(make: Maker) -> Iterator[Sample]:
    def mean(value: float) -> Tensor:
        return make.constant(make.tensor(value))

    chosen: tuple[dict[str, Any], ...] = ({"iou_mean": mean(0.4)}, {"iou_mean": mean(0.7), "alpha": 1.4, "delta": 5.0})
    yield from samples(make, chosen, smooth=False)
    yield Sample((boxes(make, 3), boxes(make, 3), mean(0.0)), name="the mean of a perfect match", smooth=False)
    wide = torch.tensor(0.5, dtype=torch.float64, device=make.device)
    yield Sample((boxes(make, 3), boxes(make, 3), wide), name="a mean of another dtype", smooth=False)


def errors_of(
    op: str,
    *domains: tuple[str, str, tuple[float, ...]],
    draw: Callable[[Maker, int], Tensor] = boxes,
    numbers: int = 4,
) -> Callable[[Maker], Iterator[ErrorSample]]:
    """``domains``: an option, what it must be, values that it may not have. A box has so many ``numbers``."""

    def errors(make: Maker) -> Iterator[ErrorSample]:
        a, b = draw(make, 2), draw(make, 2)
        yield ErrorSample((a, b), f'{op}: expected reduction .* got "avg"', {"reduction": "avg"})
        yield ErrorSample((a.long(), b), f"{op}: expected input of dtype float64, .* got int64")
        for other in (make.uniform(), make.uniform(2, 3), make.uniform(4, 0)):
            message = f"{op}: expected input of shape (..., {numbers}), got {list(other.shape)}"
            yield ErrorSample((other, b), re.escape(message))
        for other in (make.uniform(1, numbers), make.uniform(numbers), make.uniform(2, 3)):
            message = f"{op}: expected target of the shape of input, got [2, {numbers}] and {list(other.shape)}"
            yield ErrorSample((a, other), re.escape(message))
        for option, domain, refused in (("eps", "finite eps >= 0", (-1.0, math.inf)), *domains):
            for value in (*refused, math.nan):
                message = f"{op}: expected {domain}, got -?{value:g}"
                yield ErrorSample((a, b), message, {option: value}, values=True)

    return errors


def wiou_errors(make: Maker) -> Iterator[ErrorSample]:
    positive = (0.0, -1.0, math.inf)
    domains = [(name, f"finite {name} > 0", positive) for name in ("alpha", "delta")]
    yield from errors_of("wiou_loss", *domains)(make)
    a, b = boxes(make, 2), boxes(make, 2)
    message = "wiou_loss: expected iou_mean of one number, of shape \\[\\], got \\[1\\]"
    yield ErrorSample((a, b, make.uniform(1)), message)


PAIRS = {"small": 2**4, "usual": 2**14, "large": 2**20, "huge": 2**24}


def workload(make: Maker, size: str) -> Iterator[Sample]:
    yield Sample((boxes(make, PAIRS[size]), boxes(make, PAIRS[size])))


DOC = """{summary}

{why}

Args:
    input: predicted boxes (…, 4), each x1, y1, x2, y2 with x2 ≥ x1 and y2 ≥ y1; any floating dtype.
    target: the box that each of them is to become, of the same shape; any real dtype.{options}
    eps: ≥ 0; added to every denominator.

Returns:
    The loss: 0-d, or of shape (…) for ``reduction="none"``. Differentiable in both boxes.

Raises:
    RuntimeError: the last dimension is not 4, the shapes differ, or an option is out of its range. A box
        whose ends are in the wrong order raises nothing; on the CPU a warning says so once.

Formula:
{formula}

Example:
    >>> predicted = torch.tensor([[0.0, 0.0, 2.0, 2.0]])
    >>> target = torch.tensor([[1.0, 0.0, 3.0, 3.0]])  # corners, in any unit; not centre and size
    >>> opreg.functional.{name}(predicted, target)
    tensor({example})
"""
MEASURES = "I the area of the intersection, U that of the union and iou = I / (U + eps)"
ENCLOSING = "cw × ch the size of the smallest box that encloses both"
DISTANCE = f"{ENCLOSING}, ρ the distance of the centres, c² = cw² + ch² + eps"


def indented(text: str) -> str:
    return textwrap.fill(text, 116, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def register_loss(
    reference: Callable[..., Tensor],
    summary: str,
    why: str,
    *,
    formula: str,
    example: str,
    where: str = "",
    options: str = "",
    domains: tuple[tuple[str, str, tuple[float, ...]], ...] = (),
    draw: Callable[[Maker], Iterator[Sample]] = samples,
    **fields: Any,
) -> None:
    name = reference.__name__
    doc = DOC.format(
        summary=summary,
        why=why,
        options=f"\n    {options}" if options else "",
        formula=indented(f"{formula}, with {MEASURES}" + (f", {where}" if where else "")),
        name=name,
        example=example,
    )
    declaration = {"shape": meta.boxes("input", "target"), "errors": errors_of(name, *domains), **fields}
    register(Op(name, reference=reference, samples=draw, doc=doc, workload=workload, **declaration))


register_loss(
    iou_loss,
    "How little two boxes overlap: 1 − IoU.",
    "The measure that detections are judged by; without gradient where the boxes are apart (giou_loss and those after "
    "it have one).",
    source="arXiv 1608.01471 (there as −log IoU)",
    formula="1 − iou",
    example="0.7500",
    module="IoULoss",
)
register_loss(
    giou_loss,
    "IoU with a penalty for the empty part of the enclosing box.",
    "Boxes that are apart have a gradient too.",
    source="arXiv 1902.09630",
    formula="1 − iou + (E − U) / (E + eps)",
    where="E the area of the smallest box that encloses both",
    example="0.8611",
    module="GIoULoss",
    spellings=("torchvision.ops.generalized_box_iou_loss",),
)
register_loss(
    diou_loss,
    "IoU with a penalty for the distance of the centres.",
    "Converges faster than giou_loss, which first grows the box.",
    source="arXiv 1911.08287",
    formula="1 − iou + ρ² / c²",
    where=DISTANCE,
    example="0.8194",
    module="DIoULoss",
    spellings=("torchvision.ops.distance_box_iou_loss",),
)
register_loss(
    ciou_loss,
    "Distance-IoU with a penalty for another aspect ratio.",
    "The usual choice for detectors' box regression.",
    source="arXiv 1911.08287",
    formula="1 − iou + ρ² / c² + α·v, v = 4/π² · (atan2(w_t, h_t) − atan2(w, h))², "
    "α = v / (1 − iou + v + eps) constant",
    where=DISTANCE,
    example="0.8198",
    draw=constant_factor,
    module="CIoULoss",
    spellings=("torchvision.ops.complete_box_iou_loss",),
)
register_loss(
    eiou_loss,
    "Distance-IoU with penalties for another width and another height.",
    "Unlike ciou_loss it has a gradient in the size where the aspect ratio is right.",
    source="arXiv 2101.08158",
    formula="1 − iou + ρ² / c² + (w − w_t)² / (cw² + eps) + (h − h_t)² / (ch² + eps)",
    where=DISTANCE,
    example="0.9306",
    module="EIoULoss",
)
register_loss(
    focal_eiou_loss,
    "Efficient IoU with the weight on the pairs that overlap well.",
    "Many poor boxes then don't drown the few good ones.",
    source="arXiv 2101.08158",
    formula="iou^γ · eiou, iou^γ constant and eiou as in eiou_loss",
    options="gamma: γ ≥ 0; the greater, the more weight has a large overlap.",
    domains=(("gamma", "finite gamma >= 0", (-1.0, math.inf)),),
    example="0.4653",
    draw=focal_samples,
    module="FocalEIoULoss",
)
register_loss(
    alpha_iou_loss,
    "1 − IoU to a power.",
    "α > 1 stresses the pairs that overlap well already; α < 1 those that don't.",
    source="arXiv 2110.13675",
    formula="1 − iou^α",
    options="alpha: α > 0.",
    domains=(("alpha", "finite alpha > 0", (0.0, -1.0, math.inf)),),
    example="0.9844",
    draw=with_options(alpha=(0.5, 1.0, 2.5)),
    module="AlphaIoULoss",
)
register_loss(
    siou_loss,
    "IoU with costs for distance, by the angle between the centres, and for shape.",
    "The angle lets a box move to the nearer axis of its target first.",
    source="arXiv 2205.12740",
    formula="1 − iou + (Δ + Ω) / 2; Δ = 2 − e^(−γ·(dx/(cw + eps))²) − e^(−γ·(dy/(ch + eps))²), γ = 2 − Λ, Λ = "
    "2·s·√(1 − s²), s = min(|dx|, |dy|) / (√(dx² + dy²) + eps); Ω = Σ over w and h of "
    "(1 − e^(−|w − w_t| / (max(w, w_t) + eps)))^θ",
    where=f"{ENCLOSING}, (dx, dy) the difference of the centres",
    options="theta: θ > 0, how much a wrong shape costs; 2 to 6 in the paper.",
    domains=(("theta", "finite theta > 0", (0.0, -1.0, math.inf)),),
    example="0.8320",
    draw=with_options(theta=(0.5, 1.0, 2.5)),
    module="SIoULoss",
)
register_loss(
    wiou_loss,
    "IoU weighted by the distance of the centres and, with a running mean, by how ordinary the pair is.",
    "Neither the easy pairs nor the outliers, often wrong labels, get the largest gradient.",
    source="arXiv 2301.10051",
    formula="R · (1 − iou), R = e^(ρ² / c²), c² constant (v1); with iou_mean times β / (δ·α^(β − δ)), "
    "β = (1 − iou) / max(iou_mean, eps), constant (v3)",
    where=DISTANCE,
    options="iou_mean: running mean of 1 − iou over past batches, a 0-d tensor of any real dtype; without gradient.\n"
    "    alpha: α > 0.\n"
    "    delta: δ > 0; β = δ has weight 1.",
    domains=(),
    example="0.8039",
    draw=wiou_samples,
    shape=meta.boxes("input", "target", number="iou_mean"),
    errors=wiou_errors,
    detached=("iou_mean",),
    batch_dims={"iou_mean": None},
    module="WIoULoss",
)
