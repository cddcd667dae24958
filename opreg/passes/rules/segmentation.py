"""Overlap of regions, one value a sample or one of the batch."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .._rule import Rule
from ._objections import at_least, every, floating, never, same_shape

lossreg = torch.ops.lossreg


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


def rows_and_classes(arguments: Mapping[str, Any]) -> str:
    shape = arguments["input"].shape
    return "" if shape is not None and len(shape) >= 2 else "input has one dimension, and dice_loss takes (N, C, ...)"


DICE = every(at_least(0, "smooth"), same_shape("input", "target"), rows_and_classes, floating("target"))
PROBABILITIES = never("its input is a probability, and dice_loss takes logits")
CHANNELS = never("one value a channel, and dice_loss has one a sample")


def dice(formula: Any, power: float, batch: bool) -> tuple[Any, Any]:
    """Pattern and replacement."""

    def pattern(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        result: Tensor = formula(torch.sigmoid(input), target, smooth)
        return result

    def replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        result: Tensor = lossreg.dice_loss(input, target, power, smooth, None, -100, batch, "none")
        return result

    return pattern, replacement


def of_probabilities(formula: Any) -> tuple[Any, Any]:
    def pattern(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
        result: Tensor = formula(input, target, smooth)
        return result

    return pattern, pattern


RULES = (
    Rule("dice_loss by sample, written out", *dice(by_sample, 1.0, False), DICE),
    Rule("dice_loss by sample with squares, written out", *dice(squared_by_sample, 2.0, False), DICE),
    Rule("dice_loss of the batch, written out", *dice(of_batch, 1.0, True), DICE),
    Rule("dice_loss of the batch with squares, written out", *dice(squared_of_batch, 2.0, True), DICE),
    Rule("dice_loss by channel", *dice(by_channel, 1.0, False), CHANNELS),
    Rule("dice_loss by sample of probabilities", *of_probabilities(by_sample), PROBABILITIES),
    Rule("dice_loss of the batch of probabilities", *of_probabilities(of_batch), PROBABILITIES),
    Rule("dice_loss by channel of probabilities", *of_probabilities(by_channel), PROBABILITIES),
)
