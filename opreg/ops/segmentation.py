"""Segmentation losses of overlap: one value a sample, or one for the batch."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, image_workload, index_errors, outside, reduce, refused


def one_hot(input: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Whether each pixel is valid, (N, 1, d1 … dk); and a 1 for its class, of the shape of ``input``.

    A class index out of range gives NaN, as it does on a GPU: where this runs in the kernel's place nothing can raise.
    """
    target, count = target.unsqueeze(1), input.shape[1]
    valid = target != ignore_index
    classes = torch.arange(count, device=input.device).view(-1, *[1] * (input.dim() - 2))
    hits = ((target == classes) & valid).to(input.dtype)
    return valid, torch.where(valid & ((target < 0) | (target >= count)), torch.nan, hits)


def overlap_loss(shared: Tensor, size: Tensor, smooth: float) -> Tensor:
    """1 − (2·shared + smooth) / (size + smooth); 0 at 0/0, which is the limit of smooth to 0."""
    whole = size + smooth
    nothing = whole == 0
    return torch.where(nothing, 0.0, 1 - (2 * shared + smooth) / torch.where(nothing, 1.0, whole))


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
    if target.is_floating_point():
        q = input.sigmoid()
        y, of_q = target, q**p
    else:
        valid, y = one_hot(input, target, ignore_index)
        # 0.5 at ignored pixels, whatever they hold: no derivative of q^p is infinite there
        q = torch.where(valid, input, 0.0).sigmoid()
        of_q = torch.where(valid, q**p, 0.0)
    shared, size = q * y, of_q + y**p
    if weight is not None:
        w = weight.view(-1, *[1] * (input.dim() - 2))
        shared, size = w * shared, w * size
    if batch:
        return overlap_loss(shared.sum(), size.sum(), smooth)
    return reduce(overlap_loss(shared.flatten(1).sum(1), size.flatten(1).sum(1), smooth), reduction)


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
    return reduce(overlap_loss((w * shared).sum(1), (w * (count + predicted)).sum(1), eps), reduction)


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


def dice_samples(make: Maker) -> Iterator[Sample]:
    yield from shared_samples(make)
    w = make.constant(make.uniform(3, low=0.1))
    for p in (1.0, 1.5, 2.0):
        x, t = make.normal(2, 3, 4), make.index(3, 2, 4, ignore=-100)
        yield Sample((x, t, p, 0.5, w), {"reduction": "none"}, "weight, ignored")
        y = make.uniform(2, 3, 5, low=0.1, high=0.9)
        yield Sample((make.normal(2, 3, 5), y), {"p": p, "reduction": "none"}, "probabilities")
        yield Sample((x, t), {"p": p, "batch": True}, "batch")
    y = make.uniform(2, 3, 2, 2, low=0.1, high=0.9)
    yield Sample((make.normal(2, 3, 2, 2), y, 2.0, 0.1, w, -100, True), name="batch, probabilities")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield Sample((make.normal(2, 2, 3), ignored), {"smooth": 0.0}, "nothing, unsmoothed")
    yield Sample((make.normal(5, 300), make.index(300, 5)), {"batch": True}, "many classes")
    yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), {"batch": True}, "empty batch")


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


def dice_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "dice_loss", make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from region_errors(op, make)
    message = f"{op}: expected target of the shape of input, got \\[2, 3, 4\\] and \\[2, 4\\]"
    yield ErrorSample((x, make.uniform(2, 4)), message)
    message = f"{op}: expected weight of one entry a class, \\[3\\], got \\[4\\]"
    yield ErrorSample((x, t), message, {"weight": make.constant(make.normal(4))})
    yield from outside(op, (x, t), "p >= 1", "p", 0.5, math.inf)
    yield from outside(op, (x, t), "smooth >= 0", "smooth", -1.0)


def generalized_dice_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "generalized_dice_loss", make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from region_errors(op, make)
    message = f"{op}: expected target of dtype int64, int32 or uint8, got float"
    yield ErrorSample((x, make.uniform(2, 3, 4)), message)
    yield from outside(op, (x, t), "eps >= 0", "eps", -1e-5)


def dice_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Two numbers a sample, or for the batch."""
    regions = 1 if args["batch"] else args["input"].shape[0]
    state: Tensor = args["input"].new_empty((regions * 2,), dtype=torch.float64)
    return state


def generalized_dice_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Two numbers a class of each sample."""
    n, classes = args["input"].shape[:2]
    state: Tensor = args["input"].new_empty((n * classes * 2,), dtype=torch.float64)
    return state


register(
    Op(
        "dice_loss",
        reference=dice_loss,
        shape=meta.regions("input", "target", weight="weight", soft=True, batch="batch"),
        samples=dice_samples,
        errors=dice_errors,
        source="V-Net, arXiv 1606.04797 (p = 2)",
        indices=("target",),
        constants=lambda args: () if args["target"].is_floating_point() else ("target",),
        whole=lambda args: "with batch=True its sums run over the whole batch" if args["batch"] else "",
        state=dice_state,
        batch_dims={"weight": None},
        workload=image_workload,
    )
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
