"""The Lovász extensions of the Jaccard loss."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..meta.dims import VALUES, Dims
from ..meta.fakes import promoted, result_dtype
from ..meta.rules import Arguments, ShapeFunction, ShapeRule
from ..meta.sizes import fail
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import IMAGES, image_workload, refused
from ._regions import one_hot, region_errors


def jaccard_extension(errors: Tensor, hits: Tensor, valid: Tensor) -> Tensor:
    """The errors of the last dimension, sorted downwards, times the steps of the Jaccard loss, summed.

    The Jaccard loss 1 − |hits left| / |hits or seen| makes one step as each pixel turns wrong.
    """
    order = downwards(torch.where(valid, errors, -1.0).detach())
    hits = hits.gather(-1, order)
    before = hits.cumsum(-1) - hits
    left = hits.sum(-1, keepdim=True) - before
    joined = left + torch.arange(hits.shape[-1], device=hits.device)
    # each step in closed form: a difference of two Jaccard losses would lose its digits
    steps = torch.where(hits > 0, 1.0, left / (joined + 1)) / joined.clamp(min=1)
    steps = torch.where(joined == 0, 1.0, steps)
    return (torch.where(valid, errors, 0.0).gather(-1, order) * steps).sum(-1)


def downwards(x: Tensor) -> Tensor:
    """The places of the last dimension's elements from the greatest to the least, of equal ones the first first.

    A stable sort of what every runtime has: ``topk``, which may give equal elements in any order, and once more for
    the places of equal ones.
    """
    count = x.shape[-1]
    values, places = x.topk(count)
    group = F.pad((values[..., 1:] != values[..., :-1]).long().cumsum(-1), (1, 0)) * count
    return (group + places).topk(count, largest=False).values - group


def mean_of_regions(losses: Tensor) -> Tensor:
    """The mean over the first dimension, the regions; 0 where there is none."""
    mean: Tensor = losses.sum(0) / torch.sym_max(losses.shape[0], 1)
    return mean


def lovasz_softmax_loss(input: Tensor, target: Tensor, classes: str, per_image: bool, ignore_index: int) -> Tensor:
    """The Lovász extension of the Jaccard loss (1 − IoU) on softmax(input), the mean over classes.

    Optimises mean IoU itself, of the batch or of each image; commonly after or beside cross entropy.

    Args:
        input: logits (N, C, d1 … dk), k ≥ 0.
        target: class indices (N, d1 … dk), int64, int32 or uint8.
        classes: ``"present"``, the mean over the classes that the target holds, or ``"all"``.
        per_image: the mean over images of the loss of each, in place of that of all pixels of the batch. An image
            without valid pixels counts as 0.
        ignore_index: pixels of this class index are left out.

    Returns:
        0-d; 0 where there is no valid pixel.

    Raises:
        RuntimeError: shapes that do not fit, other ``classes``; on the CPU, a class index outside [0, C) that is not
            ignored. On a GPU such an index makes the loss, and the gradient at its pixel, NaN.

    Formula:
        for each class c, the errors |1[t = c] − softmax(x)_c| of the valid pixels, sorted downwards (ties in the order
        of the pixels), times the steps that the Jaccard loss makes as pixel after pixel turns wrong, summed

    Example:
        >>> logits, target = torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))  # one class index a pixel
        >>> loss = opreg.functional.lovasz_softmax_loss(logits, target, per_image=True)
    """
    valid, hits = one_hot(input, target, ignore_index)
    errors = (hits - torch.where(valid, input, 0.0).softmax(1)).abs()

    def by_region(t: Tensor) -> Tensor:
        """(regions, classes, pixels)"""
        return t.unsqueeze(-1).flatten(2) if per_image else t.unsqueeze(-1).movedim(1, 0).flatten(1).unsqueeze(0)

    errors, hits, valid = (by_region(t) for t in (errors, hits, valid.expand(input.shape)))
    losses = jaccard_extension(errors, hits, valid)
    if classes == "all":
        return mean_of_regions(losses.mean(1))
    present = (hits.sum(-1) > 0).to(losses.dtype)
    return mean_of_regions((losses * present).sum(1) / present.sum(1).clamp(min=1))


def lovasz_hinge_loss(input: Tensor, target: Tensor, per_image: bool, ignore_index: int) -> Tensor:
    """The Lovász extension of the Jaccard loss (1 − IoU) of the foreground, on the hinge errors of binary logits.

    Optimises the IoU of one foreground class, of each image or of the batch.

    Args:
        input: logits (N, d1 … dk), k ≥ 0.
        target: of the shape of ``input``, of any real dtype: 1 is foreground, anything else background.
        per_image: the mean over images of the loss of each, in place of that of all pixels of the batch. An image
            without valid pixels counts as 0.
        ignore_index: pixels of this value are left out.

    Returns:
        0-d; 0 where there is no valid pixel.

    Raises:
        RuntimeError: shapes that do not fit.

    Formula:
        the errors 1 − x·(2y − 1), y = 1[t = 1], of the valid pixels, sorted downwards, their positive part times the
        steps that the Jaccard loss makes as pixel after pixel turns wrong, summed

    Example:
        >>> logits, target = torch.randn(2, 8, 8), torch.randint(0, 2, (2, 8, 8))  # 0 or 1 a pixel
        >>> loss = opreg.functional.lovasz_hinge_loss(logits, target)
    """
    valid = target != ignore_index
    hits = ((target == 1) & valid).to(input.dtype)
    errors = (1 - torch.where(valid, input, 0.0) * (2 * hits - 1)).relu()

    def by_region(t: Tensor) -> Tensor:
        return t.unsqueeze(-1).flatten(1) if per_image else t.flatten().unsqueeze(0)

    return mean_of_regions(jaccard_extension(*(by_region(t) for t in (errors, hits, valid))))


def softmax_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(2, 3, 5), make.index(3, 2, 5)))
    for options in ({}, {"classes": "all"}, {"per_image": True}, {"classes": "all", "per_image": True}):
        x, t = make.normal(2, 4, 2, 3, scale=3), make.index(3, 2, 2, 3, ignore=255, dtype=torch.uint8)
        yield Sample((x, t), {"ignore_index": 255, **options}, "ignored, an absent class")
    yield Sample((make.normal(2, 3, 2, 2, 2), make.index(3, 2, 2, 2, 2, ignore=1)), {"ignore_index": 1})
    yield Sample((make.normal(4, 3), make.index(3, 4, dtype=torch.int32)), name="no pixels")
    yield Sample((make.normal(2, 3), make.index(3, 2)), {"per_image": True}, "one pixel")
    yield Sample((make.normal(1, 2, 71, 61), make.index(2, 1, 71, 61, ignore=-100)), name="several chunks")
    for classes in ("present", "all"):
        t = torch.full((2, 3), -100, device=make.device)
        yield Sample((make.normal(2, 2, 3), t), {"classes": classes}, "all ignored")
        t = torch.tensor([[-100, -100, -100], [0, 1, -100]], device=make.device)
        yield Sample((make.normal(2, 2, 3), t), {"classes": classes, "per_image": True}, "an image ignored")
        yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), {"classes": classes, "per_image": True}, "empty")
    yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), name="empty")
    x = make.tensor([[0.0, 1e4, -1e4, 9999.0, 0.0, 0.0], [0.0, 0.0, 1e4, 1e4, 0.0, 0.0]])
    t = torch.tensor([[0, 1, 1, 0, 1, 0]], device=make.device)
    yield Sample((x[None], t), name="kinks", smooth=False)


def hinge_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(3, 7), make.index(2, 3, 7)))
    for per_image in (True, False):
        x, t = make.normal(2, 3, 4, scale=2), make.index(3, 2, 3, 4, ignore=255, dtype=torch.uint8)
        yield Sample((x, t), {"per_image": per_image, "ignore_index": 255}, "ignored, other labels")
        t = make.index(2, 2, 5).bool()
        yield Sample((make.normal(2, 5), t), {"per_image": per_image}, "bool")
        t = torch.full((2, 3), -100, device=make.device)
        yield Sample((make.normal(2, 3), t), {"per_image": per_image}, "all ignored")
        yield Sample((make.normal(2, 3), 0 * t), {"per_image": per_image}, "no foreground")
        yield Sample((make.normal(0, 3), make.index(2, 0, 3)), {"per_image": per_image}, "empty")
    yield Sample((make.normal(2, 2, 2, 3), make.bits(2, 2, 2, 3)), name="floating labels")
    yield Sample((make.normal(5), make.index(2, 5)), name="one pixel an image")
    yield Sample((make.normal(1, 71, 61), make.index(2, 1, 71, 61, ignore=-100)), name="several chunks")
    x = make.tensor([[1.0, -1.0, 0.0, 0.0, 1e4, -1e4, 1e4, 0.0]])
    t = torch.tensor([[1, 0, 1, 0, 0, 0, 1, 1]], device=make.device)
    yield Sample((x, t), name="kinks", smooth=False)


def softmax_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "lovasz_softmax_loss"
    yield from region_errors(op, make, reduces=False)
    options = {"classes": "some"}
    message = f'{op}: expected classes "present" or "all", got "some"'
    yield ErrorSample((make.normal(2, 3, 4), make.index(3, 2, 4)), message, options, True)


def hinge_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x = "lovasz_hinge_loss", make.normal(2, 3)
    yield from refused(op, x, x.long(), reduces=False)
    message = f"{op}: expected target of the shape of input, got \\[2, 3\\] and \\[2, 4\\]"
    yield ErrorSample((x, make.index(2, 2, 4)), message)
    message = f"{op}: expected input of shape \\(N, ...\\), got \\[\\]"
    yield ErrorSample((make.normal(), make.index(2)), message)


def scalar(rule: ShapeFunction) -> ShapeRule:
    """The checks of a rule, for an op whose result is one number, a mean over images."""

    def checked(op: str, args: Arguments) -> Sequence[int]:
        rule(op, args)
        return ()

    def dims(args: Arguments) -> Dims:
        pixels = {n: ("batch", *range(1, args[n].dim())) for n in ("input", "target")}
        return {**pixels, VALUES: ("batch",)}

    return ShapeRule(checked, dims=dims)


def images(op: str, args: Arguments) -> Sequence[int]:
    if args["input"].dim() == 0:
        raise fail(op, "input of shape (N, ...)", "[]")
    return meta.same("input", "target")(op, args)


def number_of_images(args: Arguments) -> int:
    return int(args["input"].shape[0])


def sorted_together(args: Arguments) -> str:
    return "" if args["per_image"] else "without per_image the pixels of the whole batch are sorted together"


def state(shape: Sequence[int], args: Arguments) -> Tensor:
    """The gradient with respect to the errors, and a number a region; float64 where the op computes in it."""
    input = args["input"]
    dtypes = (promoted([input, args["target"]]), result_dtype(args))
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    kept: Tensor = input.new_empty((input.numel() + (input.shape[0] if args["per_image"] else 1),), dtype=dtype)
    return kept


def hinge_workload(make: Maker, size: str) -> Iterator[Sample]:
    n, _, *pixels = IMAGES[size]
    yield Sample((make.normal(n, *pixels), make.index(2, n, *pixels)))


register(
    Op(
        "lovasz_softmax_loss",
        reference=lovasz_softmax_loss,
        shape=scalar(meta.regions("input", "target")),
        samples=softmax_samples,
        errors=softmax_errors,
        source="Berman, Triki, Blaschko, arXiv 1705.08790",
        indices=("target",),
        count=number_of_images,
        whole=sorted_together,
        state=state,
        workload=image_workload,
    )
)
register(
    Op(
        "lovasz_hinge_loss",
        reference=lovasz_hinge_loss,
        shape=scalar(images),
        samples=hinge_samples,
        errors=hinge_errors,
        source="Berman, Triki, Blaschko, arXiv 1705.08790",
        indices=("target",),
        count=number_of_images,
        whole=sorted_together,
        state=state,
        workload=hinge_workload,
    )
)
