"""Binary cross entropy and focal loss, one value an element."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._rule import Rule
from ._objections import above, every, never, same_shape

lossreg = torch.ops.lossreg


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


def unweighted_hard_focal(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    loss = cross_entropy(input, target)
    return (1 - torch.exp(-loss)) ** gamma * loss


def hard_focal(input: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    return weight(target, alpha) * unweighted_hard_focal(input, target, gamma=gamma)


SAME = same_shape("input", "target")
SOFT = never("exp(-cross entropy) is p_t for targets 0 and 1 only, and the target may be in between")


def unweighted_replacement(input, target, *, gamma):  # type: ignore[no-untyped-def]
    return lossreg.focal_loss(input, target, -1.0, gamma, "none")


def replacement(input, target, *, alpha, gamma):  # type: ignore[no-untyped-def]
    return lossreg.focal_loss(input, target, alpha, gamma, "none")


def alpha_in_domain(arguments):  # type: ignore[no-untyped-def]
    return "" if 0 <= arguments["alpha"] <= 1 else f"alpha is {arguments['alpha']}, outside of [0, 1]"


RULES = (
    Rule(
        "binary_cross_entropy_with_logits, written out",
        lambda input, target: F.softplus(input) - input * target,
        lambda input, target: lossreg.binary_cross_entropy_with_logits(input, target, None, None, "none"),
        SAME,
    ),
    Rule(
        "focal_loss, alpha and p_t written out",
        focal,
        replacement,
        every(above(0, "gamma"), alpha_in_domain, SAME),
    ),
    Rule(
        "focal_loss without alpha, p_t written out",
        unweighted_focal,
        unweighted_replacement,
        every(above(0, "gamma"), SAME),
    ),
    Rule("focal_loss, p_t = exp(-cross entropy)", unweighted_hard_focal, unweighted_replacement, SOFT),
    Rule("focal_loss with alpha, p_t = exp(-cross entropy)", hard_focal, replacement, SOFT),
)
