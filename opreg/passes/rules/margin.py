"""Losses of margins: between scores and signs, between pairs of scores, between distances."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import ALIKE, first_of, unless_above, unless_floating, unless_same_shape


def triplet_rule(name: str, distance: Callable[[Tensor, Tensor], Tensor], eps: float) -> Rule:
    """``eps``: what a distance adds to each difference."""

    def pattern(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
        return F.relu(distance(anchor, positive) - distance(anchor, negative) + margin)

    def replacement(anchor: Tensor, positive: Tensor, negative: Tensor, *, margin: float) -> Tensor:
        result: Tensor = get("triplet_margin_loss").value(anchor, positive, negative, margin, 2.0, eps, False, "none")
        return result

    objection = first_of(unless_above(0, "margin"), unless_same_shape("anchor", "positive", "negative"))
    return Rule(name, pattern, replacement, objection)


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
    triplet_rule("triplet_margin_loss, written out", F.pairwise_distance, 1e-6),
    triplet_rule("triplet_margin_loss of norms", lambda x, y: torch.linalg.vector_norm(x - y, dim=-1), 0.0),
)
