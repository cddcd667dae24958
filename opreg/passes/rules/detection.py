"""Losses of detectors, whose targets are qualities."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import ALIKE, first_of, unless_at_least

CONSTANT = "its factor is detached, and {} differentiates through it: it is another loss"
LABELS = (
    "what is a positive stands in a tensor of its own, and varifocal_loss takes what has a quality above 0: call it "
    "with the quality, 0 for negatives"
)


def quality_focal(input: Tensor, target: Tensor, factor: Tensor, *, beta: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    return (factor - target).abs() ** beta * cross_entropy


def varifocal(input: Tensor, target: Tensor, labels: Tensor, factor: Tensor, *, alpha: float, gamma: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    return (alpha * factor**gamma * (1 - labels) + target * labels) * cross_entropy


RULES: tuple[Rule | NearMiss, ...] = (
    Rule(
        "quality_focal_loss, written out",
        lambda input, target, *, beta: quality_focal(input, target, torch.sigmoid(input), beta=beta),
        lambda input, target, *, beta: get("quality_focal_loss").value(input, target, beta, "none"),
        first_of(unless_at_least(0, "beta"), ALIKE),
    ),
    NearMiss(
        "quality_focal_loss with a constant factor",
        lambda input, target, *, beta: quality_focal(input, target, torch.sigmoid(input).detach(), beta=beta),
        CONSTANT.format("quality_focal_loss"),
    ),
    NearMiss(
        "varifocal_loss of labels",
        lambda input, target, labels, *, alpha, gamma: varifocal(
            input, target, labels, torch.sigmoid(input), alpha=alpha, gamma=gamma
        ),
        LABELS,
    ),
    NearMiss(
        "varifocal_loss of labels with a constant factor",
        lambda input, target, labels, *, alpha, gamma: varifocal(
            input, target, labels, torch.sigmoid(input).detach(), alpha=alpha, gamma=gamma
        ),
        CONSTANT.format("varifocal_loss"),
    ),
)
