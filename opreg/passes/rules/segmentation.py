"""Overlap of regions, one value a sample or one of the batch."""

from collections.abc import Callable, Mapping
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


def by_sample(p: Tensor, target: Tensor, smooth: float) -> Tensor:
    p, t = p.flatten(1), target.flatten(1)
    return ratio((p * t).sum(1), p.sum(1) + t.sum(1), smooth)


def squared_by_sample(p: Tensor, target: Tensor, smooth: float) -> Tensor:
    p, t = p.flatten(1), target.flatten(1)
    return ratio((p * t).sum(1), (p**2).sum(1) + (t**2).sum(1), smooth)


def by_channel(p: Tensor, target: Tensor, smooth: float) -> Tensor:
    p, t = p.flatten(2), target.flatten(2)
    return ratio((p * t).sum(2), p.sum(2) + t.sum(2), smooth)


def of_batch(p: Tensor, target: Tensor, smooth: float) -> Tensor:
    return ratio((p * target).sum(), p.sum() + target.sum(), smooth)


def squared_of_batch(p: Tensor, target: Tensor, smooth: float) -> Tensor:
    return ratio((p * target).sum(), (p**2).sum() + (target**2).sum(), smooth)


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


def rule(name: str, overlap: Overlap, power: float, *, batch: bool) -> Rule:
    def replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        result: Tensor = get("dice_loss").value(input, target, power, smooth, None, -100, batch, "none")
        return result

    objection = first_of(
        unless_at_least(0, "smooth"),
        unless_same_shape("input", "target"),
        unless_rows_and_classes,
        unless_floating("target"),
    )
    return Rule(name, of_logits(overlap), replacement, objection)


PROBABILITIES = "its input is a probability, and dice_loss takes logits"

RULES = (
    rule("dice_loss by sample, written out", by_sample, 1.0, batch=False),
    rule("dice_loss by sample with squares, written out", squared_by_sample, 2.0, batch=False),
    rule("dice_loss of the batch, written out", of_batch, 1.0, batch=True),
    rule("dice_loss of the batch with squares, written out", squared_of_batch, 2.0, batch=True),
    NearMiss("dice_loss by channel", of_logits(by_channel), "one value a channel, and dice_loss has one a sample"),
    NearMiss("dice_loss by sample of probabilities", of_probabilities(by_sample), PROBABILITIES),
    NearMiss("dice_loss of the batch of probabilities", of_probabilities(of_batch), PROBABILITIES),
    NearMiss("dice_loss by channel of probabilities", of_probabilities(by_channel), PROBABILITIES),
)
