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
from ._common import REDUCTIONS, image_workload, index_errors, outside, power, reduce, refused


def one_hot(input: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Whether each pixel is valid, (N, 1, d1 … dk); and a 1 for its class, of the shape of ``input``.

    A class index out of range gives NaN, as it does on a GPU: where this runs in the kernel's place nothing can raise.
    """
    target, count = target.unsqueeze(1), input.shape[1]
    valid = target != ignore_index
    classes = torch.arange(count, device=input.device).view(-1, *[1] * (input.dim() - 2))
    hits = ((target == classes) & valid).to(input.dtype)
    return valid, torch.where(valid & ((target < 0) | (target >= count)), torch.nan, hits)


def overlap_sums(
    input: Tensor, target: Tensor, p: float, weight: Tensor | None, ignore_index: int, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each region, weighted by class: Σ s·y, Σ s^p and Σ y^p, with s = σ(input) and y the target."""
    if target.is_floating_point():
        q = input.sigmoid()
        y, of_q = target, q**p
    else:
        valid, y = one_hot(input, target, ignore_index)
        # 0.5 at ignored pixels, whatever they hold: no derivative of q^p is infinite there
        q = torch.where(valid, input, 0.0).sigmoid()
        of_q = torch.where(valid, q**p, 0.0)
    terms = (q * y, of_q, y**p)
    if weight is not None:
        w = weight.view(-1, *[1] * (input.dim() - 2))
        terms = (w * terms[0], w * terms[1], w * terms[2])
    shared, predicted, true = (t.sum() if batch else t.flatten(1).sum(1) for t in terms)
    return shared, predicted, true


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


def shared_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(2, 3, 5), make.index(3, 2, 5)), {"reduction": reduction})
    x, t = make.normal(2, 4, 2, 3, scale=3), make.index(4, 2, 2, 3, ignore=255, dtype=torch.uint8)
    yield Sample((x, t), {"ignore_index": 255, "reduction": "none"}, "ignored")
    yield Sample((make.normal(2, 3, 3, 2, 2), make.index(3, 2, 3, 2, 2, ignore=1)), {"ignore_index": 1})
    yield Sample((make.normal(2, 6), make.index(6, 2, dtype=torch.int32)), {"reduction": "none"}, "no pixels")
    yield Sample((make.normal(1, 2, 23, 31), make.index(2, 1, 23, 31, ignore=-100)), name="several tiles")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"reduction": "none"}, "all ignored")
    yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), {"reduction": "sum"}, "empty")
    yield Sample((make.normal(2, 2, 0), make.index(2, 2, 0)), {"reduction": "none"}, "empty samples")
    x = make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0]])
    yield Sample((x, make.index(3, 3)), {"reduction": "none"}, name="extremes", smooth=False)


def overlap_samples(make: Maker, *options: dict[str, float]) -> Iterator[Sample]:
    """Of the losses of a sigmoid, with an op's own options."""
    yield from shared_samples(make)
    w = make.constant(make.uniform(3, low=0.1))
    for chosen in options:
        x, t = make.normal(2, 3, 4), make.index(3, 2, 4, ignore=-100)
        yield Sample((x, t), {**chosen, "smooth": 0.5, "weight": w, "reduction": "none"}, "weight, ignored")
        y = make.uniform(2, 3, 5, low=0.1, high=0.9)
        yield Sample((make.normal(2, 3, 5), y), {**chosen, "reduction": "none"}, "probabilities")
        yield Sample((x, t), {**chosen, "batch": True}, "batch")
    y = make.uniform(2, 3, 2, 2, low=0.1, high=0.9)
    all_set = {**options[-1], "smooth": 0.1, "weight": w, "batch": True}
    yield Sample((make.normal(2, 3, 2, 2), y), all_set, name="batch, probabilities")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"smooth": 0.0}, "nothing, unsmoothed")
    yield Sample((make.normal(5, 300), make.index(300, 5)), {"batch": True}, "many classes")
    yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), {"batch": True}, "empty batch")


def dice_samples(make: Maker) -> Iterator[Sample]:
    return overlap_samples(make, {"p": 1.0}, {"p": 1.5}, {"p": 2.0})


def tversky_samples(make: Maker) -> Iterator[Sample]:
    yield from overlap_samples(make, {"alpha": 0.3, "beta": 0.7}, {"alpha": 1.5, "beta": 0.0, "gamma": 0.75})
    # all is right, where the power's slope would be infinite
    x = make.tensor([[[1e4, -1e4]], [[1e4, 1e4]]])
    y = make.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    yield Sample((x, y), {"gamma": 0.5, "reduction": "none"}, "no loss", smooth=False)
    yield Sample((x, y), {"gamma": 0.0, "reduction": "none"}, "no loss, to the power 0", smooth=False)


def jaccard_samples(make: Maker) -> Iterator[Sample]:
    return overlap_samples(make, {})


def generalized_dice_samples(make: Maker) -> Iterator[Sample]:
    yield from shared_samples(make)
    x, t = make.normal(2, 5, 4), make.index(2, 2, 4)
    yield Sample((x, t), {"eps": 0.0, "reduction": "none"}, "absent classes, no eps")
    yield Sample((make.normal(1, 1, 4), make.index(1, 1, 4)), {"eps": 1.0}, "one class")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"eps": 0.0}, "nothing, no eps")


def region_errors(op: str, make: Maker, reduces: bool = True) -> Iterator[ErrorSample]:
    """What every loss of regions refuses."""
    x, t = make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from refused(op, x, t, reduces=reduces)
    yield ErrorSample((x[0, 0], t), f"{op}: expected input of shape \\(N, C, ...\\), got \\[4\\]")
    message = f"{op}: expected target of shape \\[2, 4\\] for input of shape \\[2, 3, 4\\], got \\[2, 3\\]"
    yield ErrorSample((x, t[:, :3]), message)
    yield ErrorSample((x[:, :0], t), f"{op}: expected input of at least one class, got \\[2, 0, 4\\]")
    yield from index_errors(op, x, t)


def overlap_errors(op: str, **options: tuple[str, tuple[float, ...]]) -> Callable[[Maker], Iterator[ErrorSample]]:
    """``options``: what each of an op's own must be, and values that it may not have."""

    def errors(make: Maker) -> Iterator[ErrorSample]:
        x, t = make.normal(2, 3, 4), make.index(3, 2, 4)
        yield from region_errors(op, make)
        message = f"{op}: expected target of the shape of input, got \\[2, 3, 4\\] and \\[2, 4\\]"
        yield ErrorSample((x, make.uniform(2, 4)), message)
        message = f"{op}: expected weight of one entry a class, \\[3\\], got \\[4\\]"
        yield ErrorSample((x, t), message, {"weight": make.constant(make.normal(4))})
        for option, (domain, values) in {**options, "smooth": ("smooth >= 0", (-1.0, math.inf))}.items():
            yield from outside(op, (x, t), domain, option, *values)

    return errors


def generalized_dice_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "generalized_dice_loss", make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from region_errors(op, make)
    message = f"{op}: expected target of dtype int64, int32 or uint8, got float"
    yield ErrorSample((x, make.uniform(2, 3, 4)), message)
    yield from outside(op, (x, t), "eps >= 0", "eps", -1e-5)


def overlap_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Three numbers a sample, or for the batch."""
    regions = 1 if args["batch"] else args["input"].shape[0]
    state: Tensor = args["input"].new_empty((regions * 3,), dtype=torch.float64)
    return state


def generalized_dice_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Two numbers a class of each sample."""
    n, classes = args["input"].shape[:2]
    state: Tensor = args["input"].new_empty((n * classes * 2,), dtype=torch.float64)
    return state


def register_overlap(reference: Callable[..., Tensor], **fields: Any) -> None:
    """A loss of a sigmoid's regions."""
    register(
        Op(
            reference.__name__,
            reference=reference,
            shape=meta.regions("input", "target", weight="weight", soft=True, batch="batch"),
            indices=("target",),
            constants=lambda args: () if args["target"].is_floating_point() else ("target",),
            whole=lambda args: "with batch=True its sums run over the whole batch" if args["batch"] else "",
            state=overlap_state,
            batch_dims={"weight": None},
            workload=image_workload,
            **fields,
        )
    )


register_overlap(
    dice_loss,
    samples=dice_samples,
    errors=overlap_errors("dice_loss", p=("p >= 1", (0.5, math.inf))),
    source="V-Net, arXiv 1606.04797 (p = 2)",
)
register_overlap(
    tversky_loss,
    samples=tversky_samples,
    errors=overlap_errors(
        "tversky_loss", **{name: (f"{name} >= 0", (-1.0, math.inf)) for name in ("alpha", "beta", "gamma")}
    ),
    source="Salehi et al., arXiv 1706.05721; γ: Abraham and Khan, arXiv 1810.07842",
)
register_overlap(
    jaccard_loss,
    samples=jaccard_samples,
    errors=overlap_errors("jaccard_loss"),
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
