"""Losses of margins: between scores and signs, between pairs of scores, between distances."""

import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import ALIKE, first_of, unless_above, unless_floating, unless_same_shape


def triplet(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    return F.relu(F.pairwise_distance(anchor, positive) - F.pairwise_distance(anchor, negative) + margin)


def triplet_loss(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
    result: Tensor = get("triplet_margin_loss").value(anchor, positive, negative, margin, 2.0, 1e-6, False, "none")
    return result


RULES = (
    Rule(
        "soft_margin_loss, written out",
        lambda input, target: -F.logsigmoid(input * target),
        lambda input, target: get("soft_margin_loss").value(input, target, "none"),
        ALIKE,
        common=True,
    ),
    Rule.of(
        get("margin_ranking_loss"),
        first_of(unless_same_shape("input1", "input2", "target"), unless_floating("target")),
        reduction="none",
        defaults={"margin": 0.0},
    ),
    Rule(
        "triplet_margin_loss, written out",
        triplet,
        triplet_loss,
        first_of(unless_above(0, "margin"), unless_same_shape("anchor", "positive", "negative")),
    ),
)
