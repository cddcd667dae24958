"""Segmentation losses of overlap: one value a sample, or one for the batch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import image_workload, outside, power, reduce
from ._regions import OVERLAP, one_hot, overlap_errors, overlap_samples, overlap_sums, region_errors, region_samples


def overlap_loss(shared: Tensor, predicted: Tensor, true: Tensor, alpha: float, beta: float, smooth: float) -> Tensor:
    """One minus Tversky's index; 0 at 0/0, which is the limit of smooth to 0."""
    wrong = alpha * (predicted - shared) + beta * (true - shared)
    whole = shared + wrong + smooth
    nothing = whole == 0
    return torch.where(nothing, 0.0, wrong / torch.where(nothing, 1.0, whole))


def dice_loss(
    input: Tensor,
    target: Tensor,
    p: float,
    smooth: float,
    weight: Tensor | None,
    ignore_index: int,
    batch: bool,
    reduction: str,
) -> Tensor:
    """One minus the soft Dice coefficient of σ(input) and the target, all classes of a sample together.

    For segmentation with few foreground pixels: it weighs overlap, not pixels. Also known as generalized soft Dice, or
    with ``batch=True`` as batch soft Dice.

    Args:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8; or probabilities in [0, 1] of the shape of ``input``,
            in which the loss is then differentiable too.
        p: exponent in the denominator, ≥ 1.
        smooth: added to numerator and denominator, ≥ 0.
        weight: (C,), one a class, not differentiated.
        ignore_index: pixels of this class index leave both sums.
        batch: sums over the whole batch in place of one sample: one value, whatever the reduction.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Returns:
        0-d, or (N) with reduction ``"none"`` and without ``batch``.

    Raises:
        RuntimeError: shapes that do not fit, p < 1, smooth < 0; on the CPU, a class index outside [0, C) that is not
            ignored. On a GPU such an index makes its sample NaN.

    Formula:
        1 − (2·Σ_c w_c·Σ s·y + smooth)/(Σ_c w_c·Σ (s^p + y^p) + smooth), s = σ(x), y the one-hot target; 0 where the
        fraction is 0/0, which takes smooth = 0

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.functional.dice_loss(logits, target)
    """
    loss = overlap_loss(*overlap_sums(input, target, p, weight, ignore_index, batch), 0.5, 0.5, smooth / 2)
    return loss if batch else reduce(loss, reduction)


def tversky_loss(
    input: Tensor,
    target: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    smooth: float,
    weight: Tensor | None,
    ignore_index: int,
    batch: bool,
    reduction: str,
) -> Tensor:
    """One minus Tversky's index of σ(input) and the target, all classes of a sample together, to the power γ.

    For segmentation where a missed pixel and a false alarm do not cost the same: β > α finds more of what is small and
    rare. With γ other than 1 this is the focal Tversky loss.

    Args:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8; or probabilities in [0, 1] of the shape of ``input``,
            in which the loss is then differentiable too.
        alpha: α ≥ 0, what a false positive counts.
        beta: β ≥ 0, what a false negative counts. α = β = ½ is ``dice_loss`` with twice the ``smooth``, α = β = 1 is
            ``jaccard_loss``.
        gamma: γ ≥ 0. Where the loss is 0, and γ is not 1, its gradient is 0.
        smooth: added to numerator and denominator, ≥ 0.
        weight: (C,), one a class, not differentiated.
        ignore_index: pixels of this class index leave all sums.
        batch: sums over the whole batch in place of one sample: one value, whatever the reduction.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Returns:
        0-d, or (N) with reduction ``"none"`` and without ``batch``.

    Raises:
        RuntimeError: shapes that do not fit, an option below 0; on the CPU, a class index outside [0, C) that is not
            ignored. On a GPU such an index makes its sample NaN.

    Formula:
        (1 − (TP + smooth)/(TP + α·FP + β·FN + smooth))^γ, TP = Σ_c w_c·Σ s·y, FP = Σ_c w_c·Σ s·(1 − y),
        FN = Σ_c w_c·Σ (1 − s)·y, s = σ(x), y the one-hot target; 0 where the fraction is 0/0, which takes smooth = 0

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.functional.tversky_loss(logits, target, alpha=0.3, beta=0.7)
    """
    loss = overlap_loss(*overlap_sums(input, target, 1.0, weight, ignore_index, batch), alpha, beta, smooth)
    if gamma != 1:
        loss = power(loss.clamp(min=0), gamma)  # rounding takes it below 0
    return loss if batch else reduce(loss, reduction)


def jaccard_loss(
    input: Tensor,
    target: Tensor,
    smooth: float,
    weight: Tensor | None,
    ignore_index: int,
    batch: bool,
    reduction: str,
) -> Tensor:
    """One minus the soft Jaccard index, intersection over union, of σ(input) and the target, all classes together.

    What segmentations are judged by, made differentiable; it punishes a poor overlap harder than ``dice_loss``. Also
    known as soft IoU loss.

    Args:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8; or probabilities in [0, 1] of the shape of ``input``,
            in which the loss is then differentiable too.
        smooth: added to intersection and union, ≥ 0.
        weight: (C,), one a class, not differentiated.
        ignore_index: pixels of this class index leave all sums.
        batch: sums over the whole batch in place of one sample: one value, whatever the reduction.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Returns:
        0-d, or (N) with reduction ``"none"`` and without ``batch``.

    Raises:
        RuntimeError: shapes that do not fit, smooth < 0; on the CPU, a class index outside [0, C) that is not ignored.
            On a GPU such an index makes its sample NaN.

    Formula:
        1 − (I + smooth)/(Σ_c w_c·Σ (s + y) − I + smooth), I = Σ_c w_c·Σ s·y, s = σ(x), y the one-hot target; 0 where
        the fraction is 0/0, which takes smooth = 0

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.functional.jaccard_loss(logits, target)
    """
    loss = overlap_loss(*overlap_sums(input, target, 1.0, weight, ignore_index, batch), 1.0, 1.0, smooth)
    return loss if batch else reduce(loss, reduction)


def generalized_dice_loss(input: Tensor, target: Tensor, eps: float, ignore_index: int, reduction: str) -> Tensor:
    """Dice loss of softmax(input), each class weighted by one over the square of its number of pixels in the sample.

    For classes of very different sizes: each counts about alike. A class that is absent from a sample takes the largest
    weight of the present ones; where none is present, the weights are 1. The weights depend on the target alone.

    Args:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8.
        eps: added to numerator and denominator, ≥ 0. The weighted sums are about 1/pixels: it counts.
        ignore_index: pixels of this class index leave all sums.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over the samples.

    Returns:
        0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, eps < 0; on the CPU, a class index outside [0, C) that is not ignored.
            On a GPU such an index makes its sample NaN.

    Formula:
        1 − (2·Σ_c w_c·Σ r·p + eps)/(Σ_c w_c·Σ (r + p) + eps), p = softmax(x), r the one-hot target, w_c = 1/(Σ r_c)²;
        0 where the fraction is 0/0, which takes eps = 0

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.functional.generalized_dice_loss(logits, target)
    """
    valid, r = one_hot(input, target, ignore_index)
    p = torch.where(valid, torch.where(valid, input, 0.0).softmax(1), 0.0)
    count, shared, predicted = (t.unsqueeze(-1).flatten(2).sum(2) for t in (r, r * p, p))
    absent = count == 0
    of_present = torch.where(absent, 0.0, 1 / torch.where(absent, 1.0, count) ** 2)
    largest = of_present.amax(1, keepdim=True)
    w = torch.where(absent, torch.where(largest == 0, 1.0, largest), of_present)
    sums = [(w * t).sum(1) for t in (shared, predicted, count)]
    return reduce(overlap_loss(sums[0], sums[1], sums[2], 0.5, 0.5, eps / 2), reduction)


def index_samples(make: Maker, *options: dict[str, float]) -> Iterator[Sample]:
    yield from overlap_samples(make, *({**chosen, "smooth": 0.5} for chosen in options))
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"smooth": 0.0}, "nothing, unsmoothed")


def dice_samples(make: Maker) -> Iterator[Sample]:
    return index_samples(make, {"p": 1.0}, {"p": 1.5}, {"p": 2.0})


def tversky_samples(make: Maker) -> Iterator[Sample]:
    yield from index_samples(make, {"alpha": 0.3, "beta": 0.7}, {"alpha": 1.5, "beta": 0.0, "gamma": 0.75})
    # all is right, where the power's slope would be infinite
    x = make.tensor([[[1e4, -1e4]], [[1e4, 1e4]]])
    y = make.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    yield Sample((x, y), {"gamma": 0.5, "reduction": "none"}, "no loss", smooth=False)
    yield Sample((x, y), {"gamma": 0.0, "reduction": "none"}, "no loss, to the power 0", smooth=False)


def jaccard_samples(make: Maker) -> Iterator[Sample]:
    return index_samples(make, {})


def generalized_dice_samples(make: Maker) -> Iterator[Sample]:
    yield from region_samples(make)
    x, t = make.normal(2, 5, 4), make.index(2, 2, 4)
    yield Sample((x, t), {"eps": 0.0, "reduction": "none"}, "absent classes, no eps")
    yield Sample((make.normal(1, 1, 4), make.index(1, 1, 4)), {"eps": 1.0}, "one class")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"eps": 0.0}, "nothing, no eps")


def generalized_dice_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "generalized_dice_loss", make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from region_errors(op, make)
    message = f"{op}: expected target of dtype int64, int32 or uint8, got float"
    yield ErrorSample((x, make.uniform(2, 3, 4)), message)
    yield from outside(op, (x, t), "eps >= 0", "eps", -1e-5)


def generalized_dice_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Two numbers a class of each sample."""
    n, classes = args["input"].shape[:2]
    state: Tensor = args["input"].new_empty((n * classes * 2,), dtype=torch.float64)
    return state


# What the error says of smooth, and values that it may not have.
SMOOTH = ("smooth >= 0", (-1.0, math.inf))


def register_overlap(reference: Callable[..., Tensor], **fields: Any) -> None:
    """A loss of a sigmoid's regions."""
    register(Op(reference.__name__, reference=reference, **OVERLAP, **fields))


register_overlap(
    dice_loss,
    samples=dice_samples,
    errors=overlap_errors("dice_loss", p=("p >= 1", (0.5, math.inf)), smooth=SMOOTH),
    source="V-Net, arXiv 1606.04797 (p = 2)",
)
register_overlap(
    tversky_loss,
    samples=tversky_samples,
    errors=overlap_errors(
        "tversky_loss",
        **{name: (f"{name} >= 0", (-1.0, math.inf)) for name in ("alpha", "beta", "gamma")},
        smooth=SMOOTH,
    ),
    source="Salehi et al., arXiv 1706.05721; γ: Abraham and Khan, arXiv 1810.07842",
)
register_overlap(
    jaccard_loss,
    samples=jaccard_samples,
    errors=overlap_errors("jaccard_loss", smooth=SMOOTH),
    source="Rahman and Wang, Optimizing Intersection-Over-Union in Deep Neural Networks, ISVC 2016",
)
register(
    Op(
        "generalized_dice_loss",
        reference=generalized_dice_loss,
        shape=meta.regions("input", "target"),
        samples=generalized_dice_samples,
        errors=generalized_dice_errors,
        source="Sudre et al., arXiv 1707.03237",
        indices=("target",),
        state=generalized_dice_state,
        workload=image_workload,
    )
)
