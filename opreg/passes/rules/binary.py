"""Binary cross entropy and focal loss, one value an element."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import first_of, unless_above, unless_same_shape

focal_loss = get("focal_loss").value


# As people write it. The op's reference guards the power where it has no slope.
def cross_entropy(input: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(input, target, reduction="none")


def weight(target: Tensor, alpha: float) -> Tensor:
    return alpha * target + (1 - alpha) * (1 - target)


def unweighted_focal(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    p = torch.sigmoid(input)
    p_t = p * target + (1 - p) * (1 - target)
    return (1 - p_t) ** gamma * cross_entropy(input, target)


def focal(input: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    return weight(target, alpha) * unweighted_focal(input, target, gamma=gamma)


def unless_alpha_in_unit(arguments: Mapping[str, Any]) -> str:
    return "" if 0 <= arguments["alpha"] <= 1 else f"alpha is {arguments['alpha']}, outside of [0, 1]"


SAME_SHAPE = unless_same_shape("input", "target")
FOCAL = first_of(unless_above(0, "gamma"), SAME_SHAPE)
FOCAL_WITH_ALPHA = first_of(FOCAL, unless_alpha_in_unit)

LIBRARIES = {"focal_loss": first_of(unless_above(0, "gamma"), SAME_SHAPE)}

# Two softplus of one logit, weighted: the loss of a preference that some labels have the wrong way round.
CONSTANT_TARGET = (
    "it is the cross entropy of a target that is the same number everywhere, and the op takes a tensor: write "
    "F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, p))"
)


def of_constant_target(input: Tensor, *, scale: float, smoothing: float) -> Tensor:
    return -(1 - smoothing) * F.logsigmoid(scale * input) - smoothing * F.logsigmoid(-scale * input)


RULES: tuple[Rule | NearMiss, ...] = (
    Rule.of(get("binary_cross_entropy_with_logits"), SAME_SHAPE, weight=None, pos_weight=None, reduction="none"),
    Rule(
        "focal_loss, alpha and p_t written out",
        focal,
        lambda input, target, *, alpha, gamma: focal_loss(input, target, alpha, gamma, "none"),
        FOCAL_WITH_ALPHA,
    ),
    Rule(
        "focal_loss without alpha, p_t written out",
        unweighted_focal,
        lambda input, target, *, gamma: focal_loss(input, target, -1.0, gamma, "none"),
        FOCAL,
    ),
    # the same functions; where a target is 0 or 1, they are found in every spelling of p_t and of the modulating factor
    Rule(
        "focal_loss of targets 0 and 1",
        focal,
        lambda input, target, *, alpha, gamma: focal_loss(input, target, alpha, gamma, "none"),
        FOCAL_WITH_ALPHA,
        cases="target",
    ),
    Rule(
        "focal_loss without alpha of targets 0 and 1",
        unweighted_focal,
        lambda input, target, *, gamma: focal_loss(input, target, -1.0, gamma, "none"),
        FOCAL,
        cases="target",
    ),
    NearMiss("binary_cross_entropy_with_logits of a constant target", of_constant_target, CONSTANT_TARGET),
)
