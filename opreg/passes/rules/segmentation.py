"""Overlap of regions, one value a sample or one of the batch."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import Objection, first_of, unless_at_least, unless_floating, unless_same_shape

# What both regions share, and the size of each.
Sums = tuple[Tensor, Tensor, Tensor]
# A loss of logits and target, by sample or of the whole batch.
Loss = Callable[[Tensor, Tensor, bool], Tensor]


# As people write it. The op's reference takes class indices too, and has a value where both regions are empty.
def over(dims: tuple[int, ...]) -> Callable[[Tensor, Tensor, int], Sums]:
    """Of regions (N, C, pixels): one value a sample, a channel of each, or a channel of the batch."""

    def sums(p: Tensor, target: Tensor, power: int) -> Sums:
        p, t = (p.flatten(1), target.flatten(1)) if dims == (1,) else (p.flatten(2), target.flatten(2))
        return (p * t).sum(dims), (p**power).sum(dims), (t**power).sum(dims)

    return sums


def over_batch(p: Tensor, target: Tensor, power: int) -> Sums:
    return (p * target).sum(), (p**power).sum(), (target**power).sum()


def of_channels(loss: Loss, input: Tensor, target: Tensor) -> Tensor:
    """Each channel of each sample as a sample of one channel."""
    x, t = input.flatten(2), target.flatten(2)
    return loss(x.flatten(0, 1).unsqueeze(1), t.flatten(0, 1).unsqueeze(1), False).view_as(x.select(2, 0))


def of_channels_of_batch(loss: Loss, input: Tensor, target: Tensor) -> Tensor:
    """The channels as samples, which hold the pixels of the whole batch."""
    x, t = input.flatten(2).transpose(0, 1), target.flatten(2).transpose(0, 1)
    return loss(x.flatten(1).unsqueeze(1), t.flatten(1).unsqueeze(1), False)


@dataclass(frozen=True)
class Way:
    """What a program sums over, and how the op is called for that."""

    name: str
    sums: Callable[[Tensor, Tensor, int], Sums]
    compute: Callable[[Loss, Tensor, Tensor], Tensor]


SAMPLE, CHANNEL, CHANNEL_OF_BATCH = (1,), (2,), (0, 2)
WAYS = (
    Way("by sample", over(SAMPLE), lambda loss, x, t: loss(x, t, False)),
    Way("by channel", over(CHANNEL), of_channels),
    Way("by channel of the batch", over(CHANNEL_OF_BATCH), of_channels_of_batch),
    Way("of the batch", over_batch, lambda loss, x, t: loss(x, t, True)),
)


def dice_of(sums: Sums, *, smooth: float) -> Tensor:
    shared, predicted, true = sums
    return 1 - (2 * shared + smooth) / (predicted + true + smooth)


def jaccard_of(sums: Sums, *, smooth: float) -> Tensor:
    shared, predicted, true = sums
    return 1 - (shared + smooth) / (predicted + true - shared + smooth)


def tversky_of(sums: Sums, *, alpha: float, beta: float, smooth: float) -> Tensor:
    shared, predicted, true = sums
    return 1 - (shared + smooth) / (shared + alpha * (predicted - shared) + beta * (true - shared) + smooth)


def unless_rows_and_classes(arguments: Mapping[str, Any]) -> str:
    shape = arguments["input"].shape
    return "" if shape is not None and len(shape) >= 2 else "input has one dimension, and the op takes (N, C, ...)"


REGIONS = first_of(
    unless_at_least(0, "smooth"),
    unless_same_shape("input", "target"),
    unless_rows_and_classes,
    unless_floating("target", "class indices"),
)
WEIGHTED_REGIONS = first_of(unless_at_least(0, "alpha"), unless_at_least(0, "beta"), REGIONS)


def half(number: float) -> float:
    return number / 2


def rule(
    op: str, index: Callable[..., Tensor], way: Way, objection: Objection, power: int = 1, sliced: bool = False,
    doubled: bool = False, **fixed: float,
) -> Rule:  # fmt: skip
    """``doubled``: of programs that hold twice the number, since both sides of their quotient are twice the index's.

    ``index``: of the sums, and of the rule's numbers as keyword-only arguments; ``fixed``: the op's others.

    ``sliced``: of probabilities that are part of what a sigmoid made, as all channels but the background.
    """
    numbers = [p for p in inspect.signature(index).parameters.values() if p.kind is p.KEYWORD_ONLY]
    tensors = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("input", "target")]

    def pattern(input: Tensor, target: Tensor, **given: float) -> Tensor:
        return index(way.sums(input if sliced else torch.sigmoid(input), target, power), **given)

    def replacement(input: Tensor, target: Tensor, **given: float) -> Tensor:
        def loss(x: Tensor, t: Tensor, batch: bool) -> Tensor:
            result: Tensor = get(op).value(x, t, **fixed, **given, batch=batch, reduction="none")
            return result

        return way.compute(loss, input, target)

    pattern.__signature__ = replacement.__signature__ = inspect.Signature([*tensors, *numbers])  # type: ignore[attr-defined]
    name = f"{op} {way.name}{' with squares' if power == 2 else ''}{' of probabilities' if sliced else ''}"
    numbers_of = {"smooth": half} if doubled else {}
    name = f"{name}{', doubled' if doubled else ''}, written out"
    return Rule(name, pattern, replacement, objection, logits="input" if sliced else "", numbers=numbers_of)


def bounded_overlap(way: Way) -> Rule:
    """The quotient of which dice_loss is what is missing to 1, where its denominator has a bound below what it can be.

    As nnU-Net writes it.
    """

    def pattern(input: Tensor, target: Tensor, *, smooth: float, eps: float) -> Tensor:
        shared, predicted, true = way.sums(torch.sigmoid(input), target, 1)
        return (2 * shared + smooth) / (predicted + true + smooth).clamp(min=eps)

    def replacement(input: Tensor, target: Tensor, *, smooth: float, eps: float) -> Tensor:
        def loss(x: Tensor, t: Tensor, batch: bool) -> Tensor:
            result: Tensor = get("dice_loss").value(x, t, p=1.0, smooth=smooth, batch=batch, reduction="none")
            return result

        return 1 - way.compute(loss, input, target)

    return Rule(f"dice_loss {way.name} of a bounded ratio", pattern, replacement, first_of(unless_unbounded, REGIONS))


def unless_unbounded(arguments: Mapping[str, Any]) -> str:
    smooth, eps = arguments["smooth"], arguments["eps"]
    if smooth < eps:
        return BOUNDED
    if arguments["target"].values.low >= 0:
        return ""
    return (
        f"its denominator has a lower bound, clamp(min={eps:g}), and the graph does not show that no target is below "
        "0, so that it is without effect: leave it out, or make the target of a comparison, (target > 0.5).to(dtype)"
    )


def of_bounded_ratio(p: Tensor, target: Tensor, *, eps: float) -> Tensor:
    p, t = p.flatten(2), target.flatten(2)
    dims = CHANNEL_OF_BATCH
    return 1 - 2 * (p * t).sum(dims) / (p.sum(dims) + t.sum(dims)).clamp(min=eps)


def unsmoothed(p: Tensor, target: Tensor, *, eps: float) -> Tensor:
    p, t = p.flatten(1), target.flatten(1)
    return 1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + eps)


# Lovász extensions: errors, sorted downwards, times the steps that the Jaccard loss makes as one pixel after the other
# turns wrong.
def by_steps(errors: Tensor, hits: Tensor, rectified: bool, whole: bool) -> Tensor:
    """``whole``: of one region, else of each row, and their mean."""
    found = torch.sort(errors, dim=0 if whole else 1, descending=True)
    seen = hits.gather(0 if whole else 1, found[1])
    return of_sorted(torch.relu(found[0]) if rectified else found[0], seen, None if whole else 1)


def of_sorted(losses: Tensor, seen: Tensor, axis: int | None) -> Tensor:
    """The same of sorted errors and the hits in their order; ``axis``: of each row along it, and the mean."""
    dim, whole = axis or 0, axis is None
    total = seen.sum() if whole else seen.sum(dim, keepdim=True)
    jaccard = 1 - (total - seen.cumsum(dim)) / (total + (1 - seen).cumsum(dim))
    steps = torch.diff(jaccard, dim=dim, prepend=torch.zeros_like(jaccard)[..., :1])
    return (losses * steps).sum() if whole else (losses * steps).sum(dim).mean()


HINGE = (
    "lovasz_hinge_loss is for a target of 0 and 1 and takes what is not 1 for background, where this computes with it: "
    "call it with the logits and that target"
)


def lovasz_hinge(input: Tensor, target: Tensor) -> Tensor:
    x, t = input.flatten(0), target.flatten(0)
    return by_steps(1 - x * (2 * t - 1), t, True, True)


def lovasz_softmax_of_images(p: Tensor, hits: Tensor) -> Tensor:
    """Of probabilities and class indicators, (N, C, pixels)."""
    found = torch.sort((p - hits).abs(), dim=2, descending=True)
    return of_sorted(found[0], hits.gather(2, found[1]), 2)


CLASSES = "it is the part of one class: call lovasz_softmax_loss with the logits and the class indices, for all at once"

PROBABILITIES = (
    "its input is a probability, and dice_loss takes logits: call it with these where a sigmoid made it; "
    "of a softmax there is generalized_dice_loss alone"
)
BOUNDED = "its denominator has a lower bound, where dice_loss adds smooth alone: leave out the bound, and use smooth"
UNSMOOTHED = "it adds eps to the denominator alone, and dice_loss adds smooth to both: add it to the numerator too"

RULES: tuple[Rule | NearMiss, ...] = (
    *(rule("dice_loss", dice_of, way, REGIONS, power, p=float(power)) for power in (1, 2) for way in WAYS),
    *(rule("jaccard_loss", jaccard_of, way, REGIONS) for way in WAYS),
    # Dice's and Jaccard's are indices of its family
    *(rule("tversky_loss", tversky_of, way, WEIGHTED_REGIONS) for way in WAYS),
    *(rule("dice_loss", dice_of, way, REGIONS, power, True, p=float(power)) for power in (1, 2) for way in WAYS),
    *(rule("jaccard_loss", jaccard_of, way, REGIONS, doubled=True) for way in WAYS),
    *(rule("jaccard_loss", jaccard_of, way, REGIONS, sliced=True) for way in WAYS[1:3]),
    *(rule("jaccard_loss", jaccard_of, way, REGIONS, sliced=True, doubled=True) for way in WAYS[1:3]),
    *(rule("tversky_loss", tversky_of, way, WEIGHTED_REGIONS, sliced=True) for way in WAYS[1:3]),
    *(bounded_overlap(way) for way in WAYS),
    NearMiss("lovasz_hinge_loss, written out", lovasz_hinge, HINGE),
    NearMiss(
        "lovasz_softmax_loss of images",
        lovasz_softmax_of_images,
        "its inputs are probabilities and class indicators: call lovasz_softmax_loss with the logits and the class "
        'indices, classes="all", per_image=True',
    ),
    NearMiss(
        "lovasz_softmax_loss of one class",
        lambda input, target: by_steps((target - input).abs(), target, False, True),
        CLASSES,
    ),
    NearMiss(
        "dice_loss of a bounded ratio",
        lambda input, target, *, eps: of_bounded_ratio(torch.sigmoid(input), target, eps=eps),
        BOUNDED,
    ),
    NearMiss("dice_loss of a bounded ratio of probabilities", of_bounded_ratio, PROBABILITIES),
    NearMiss(
        "dice_loss with eps in the denominator",
        lambda input, target, *, eps: unsmoothed(torch.sigmoid(input), target, eps=eps),
        UNSMOOTHED,
    ),
)
