"""Overlap of regions, one value a sample or one of the batch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import first_of, unless_at_least, unless_floating, unless_same_shape

Overlap = Callable[[Tensor, Tensor, float], Tensor]


# As people write it. The op's reference takes class indices too, and has a value where both regions are empty.
def ratio(overlap: Tensor, both: Tensor, smooth: float) -> Tensor:
    return 1 - (2 * overlap + smooth) / (both + smooth)


def over(dims: tuple[int, ...], power: int) -> Overlap:
    """Of regions (N, C, pixels): one value a sample, a channel of each, or a channel of the batch."""

    def overlap(p: Tensor, target: Tensor, smooth: float) -> Tensor:
        p, t = (p.flatten(1), target.flatten(1)) if dims == (1,) else (p.flatten(2), target.flatten(2))
        return ratio((p * t).sum(dims), (p**power).sum(dims) + (t**power).sum(dims), smooth)

    return overlap


def of_batch(power: int) -> Overlap:
    def overlap(p: Tensor, target: Tensor, smooth: float) -> Tensor:
        return ratio((p * target).sum(), (p**power).sum() + (target**power).sum(), smooth)

    return overlap


SAMPLE, CHANNEL, CHANNEL_OF_BATCH = (1,), (2,), (0, 2)


def of_logits(overlap: Overlap) -> Callable[..., Tensor]:
    def pattern(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        return overlap(torch.sigmoid(input), target, smooth)

    return pattern


def of_probabilities(overlap: Overlap) -> Callable[..., Tensor]:
    def pattern(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        return overlap(input, target, smooth)

    return pattern


def unless_rows_and_classes(arguments: Mapping[str, Any]) -> str:
    shape = arguments["input"].shape
    return "" if shape is not None and len(shape) >= 2 else "input has one dimension, and dice_loss takes (N, C, ...)"


def dice_loss(input: Tensor, target: Tensor, power: float, smooth: float, batch: bool) -> Tensor:
    result: Tensor = get("dice_loss").value(input, target, power, smooth, None, -100, batch, "none")
    return result


def of_samples(input: Tensor, target: Tensor, power: float, smooth: float) -> Tensor:
    return dice_loss(input, target, power, smooth, False)


def of_all(input: Tensor, target: Tensor, power: float, smooth: float) -> Tensor:
    return dice_loss(input, target, power, smooth, True)


def of_channels(input: Tensor, target: Tensor, power: float, smooth: float) -> Tensor:
    """Each channel of each sample as a sample of one channel."""
    x, t = input.flatten(2), target.flatten(2)
    loss = dice_loss(x.flatten(0, 1).unsqueeze(1), t.flatten(0, 1).unsqueeze(1), power, smooth, False)
    return loss.view_as(x.select(2, 0))


def of_channels_of_batch(input: Tensor, target: Tensor, power: float, smooth: float) -> Tensor:
    """The channels as samples, which hold the pixels of the whole batch."""
    x, t = input.flatten(2).transpose(0, 1), target.flatten(2).transpose(0, 1)
    return dice_loss(x.flatten(1).unsqueeze(1), t.flatten(1).unsqueeze(1), power, smooth, False)


def rule(name: str, overlap: Overlap, power: float, compute: Callable[..., Tensor]) -> Rule:
    def replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        return compute(input, target, power, smooth)

    objection = first_of(
        unless_at_least(0, "smooth"),
        unless_same_shape("input", "target"),
        unless_rows_and_classes,
        unless_floating("target", "class indices"),
    )
    return Rule(name, of_logits(overlap), replacement, objection)


def of_bounded_ratio(p: Tensor, target: Tensor, *, eps: float) -> Tensor:
    p, t = p.flatten(2), target.flatten(2)
    dims = CHANNEL_OF_BATCH
    return 1 - 2 * (p * t).sum(dims) / (p.sum(dims) + t.sum(dims)).clamp(min=eps)


def unsmoothed(p: Tensor, target: Tensor, *, eps: float) -> Tensor:
    p, t = p.flatten(1), target.flatten(1)
    return 1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + eps)


PROBABILITIES = (
    "its input is a probability, and dice_loss takes logits: call it with these where a sigmoid made it; "
    "of a softmax there is generalized_dice_loss alone"
)
BOUNDED = "its denominator has a lower bound, where dice_loss adds smooth alone: leave out the bound, and use smooth"
UNSMOOTHED = "it adds eps to the denominator alone, and dice_loss adds smooth to both: add it to the numerator too"
WAYS: tuple[tuple[str, Callable[[int], Overlap], Callable[..., Tensor]], ...] = (
    ("by sample", partial(over, SAMPLE), of_samples),
    ("by channel", partial(over, CHANNEL), of_channels),
    ("by channel of the batch", partial(over, CHANNEL_OF_BATCH), of_channels_of_batch),
    ("of the batch", of_batch, of_all),
)

RULES: tuple[Rule | NearMiss, ...] = (
    *(rule(f"dice_loss {name}, written out", way(1), 1.0, compute) for name, way, compute in WAYS),
    *(rule(f"dice_loss {name} with squares, written out", way(2), 2.0, compute) for name, way, compute in WAYS),
    *(
        NearMiss(f"dice_loss {name} of probabilities", of_probabilities(way(power)), PROBABILITIES)
        for power in (1, 2)
        for name, way, _ in WAYS
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
