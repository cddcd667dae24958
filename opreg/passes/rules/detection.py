"""Losses of detectors, whose targets are qualities."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import ALIKE, Objection, between, first_of, unless_at_least, unless_constant, unless_within

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


# As libraries write it: of each logit the probability of what its target says, with a floor under the logarithm.
def asymmetric(rest: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """``rest``: of the probability, that of a negative."""

    def pattern(input: Tensor, target: Tensor, *, gamma_neg: float, gamma_pos: float, eps: float) -> Tensor:
        p = torch.sigmoid(input)
        p_t = target * p + (1 - target) * rest(p)
        return -((1 - p_t) ** (gamma_pos * target + gamma_neg * (1 - target))) * torch.log(p_t.clamp(min=eps))

    return pattern


def asymmetric_with_clip(
    input: Tensor, target: Tensor, *, gamma_neg: float, gamma_pos: float, clip: float, eps: float
) -> Tensor:
    pattern = asymmetric(lambda p: (1 - p + clip).clamp(max=1))
    return pattern(input, target, gamma_neg=gamma_neg, gamma_pos=gamma_pos, eps=eps)


def asymmetric_loss(input: Tensor, target: Tensor, gamma_neg: float, gamma_pos: float, clip: float) -> Tensor:
    result: Tensor = get("asymmetric_loss").value(input, target, gamma_neg, gamma_pos, clip, "none")
    return result


FLOORED = {"gamma_neg": between(0, 100), "gamma_pos": between(0, 100), "eps": between(1e-30, 1e-3)}


def unless_above_floor(arguments: Mapping[str, Any]) -> str:
    """The floor is for a probability that no logit in some range has."""
    eps, clip = arguments["eps"], arguments.get("clip", 0.0)
    if not 0 < eps < 0.5:
        return f"its floor is {eps}, not between 0 and 0.5"
    if any(0 < arguments[n] < 1 for n in ("gamma_neg", "gamma_pos")):
        return "a power between 0 and 1 has no gradient at 0, which is NaN here and 0 in asymmetric_loss"
    bound = math.log(1 / eps - 1) - 1e-3
    low, high = -bound, math.inf if clip >= eps else bound
    if arguments["input"].values.within(low, high):
        return ""
    return (
        f"its logarithm has a floor, clamp(min={eps:g}), at which the loss and its gradient stay, and asymmetric_loss "
        f"has none: leave the floor out by calling the op, or clamp the logits to at least {low:.4g}"
        + ("" if clip >= eps else f" and at most {high:.4g}")
    )


# The powers are made of the target, which has a gradient through them.
OF_FLOORED = first_of(unless_above_floor, unless_constant("target", "asymmetric_loss"), ALIKE)

OF_QUALITIES = (
    "it tells negatives by target <= 0 and weights them by |sigmoid(input) - target|, which is varifocal_loss only "
    "where no target is below 0 or NaN, and no graph shows that: call varifocal_loss"
)


def varifocal_by_sign(input: Tensor, target: Tensor, factor: Tensor, *, alpha: float, gamma: float) -> Tensor:
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    negative = alpha * (factor - target).abs() ** gamma * (target <= 0).float()
    return cross_entropy * (target * (target > 0).float() + negative)


def rows_of(input: str) -> Objection:
    """Has each place its row of scores?"""

    def objection(arguments: Mapping[str, Any]) -> str:
        shape, places = arguments[input].shape, arguments["target"].shape
        if shape is None or places is None:
            return f"the shapes of {input} and target are not known: give example_inputs"
        return "" if shape[:-1] == places else f"{input} and target have rows of other shapes"

    return objection


def between_bins(input: Tensor, target: Tensor) -> Tensor:
    """Cross entropy with the bins at both sides of a place, each by how near it is."""
    left = target.long()
    of_left, of_right = (F.cross_entropy(input, at, reduction="none") for at in (left, left + 1))
    return of_left * (left + 1 - target) + of_right * (target - left)


def between_gathered_bins(input: Tensor, target: Tensor) -> Tensor:
    left = target.long()
    log_p = F.log_softmax(input, -1)
    of_left, of_right = (log_p.gather(-1, at.unsqueeze(-1)).squeeze(-1) for at in (left, left + 1))
    return of_left * (target - left - 1) + of_right * (left - target)


def distribution_focal(input: Tensor, target: Tensor) -> Tensor:
    result: Tensor = get("distribution_focal_loss").value(input, target, "none")
    return result


# Class indices below 0 are cut towards it in torch, and the op knows none there.
PLACES = unless_within(0, math.inf, "target", "clamp it, or call distribution_focal_loss")

RULES: tuple[Rule | NearMiss, ...] = (
    Rule("distribution_focal_loss, written out", between_bins, distribution_focal, first_of(rows_of("input"), PLACES)),
    Rule(
        "distribution_focal_loss of boxes, written out",
        between_bins,
        lambda input, target: distribution_focal(input, target.flatten()).view_as(target),
        PLACES,
    ),
    Rule("distribution_focal_loss of log_softmax and gather", between_gathered_bins, distribution_focal, PLACES),
    NearMiss(
        "distribution_focal_loss with weights of its own",
        lambda input, target, of_left, of_right: (
            F.cross_entropy(input, target.long(), reduction="none") * of_left
            + F.cross_entropy(input, target.long() + 1, reduction="none") * of_right
        ),
        "the weights of the two bins are tensors of their own, and distribution_focal_loss takes how near each bin is",
    ),
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
    Rule(
        "asymmetric_loss with a floor",
        asymmetric_with_clip,
        lambda input, target, *, gamma_neg, gamma_pos, clip, eps: asymmetric_loss(
            input, target, gamma_neg, gamma_pos, clip
        ),
        OF_FLOORED,
        cases="target",
        numbers={**FLOORED, "clip": between(1e-3, 0.5)},
    ),
    Rule(
        "asymmetric_loss with a floor, without clip",
        asymmetric(lambda p: 1 - p),
        lambda input, target, *, gamma_neg, gamma_pos, eps: asymmetric_loss(input, target, gamma_neg, gamma_pos, 0.0),
        OF_FLOORED,
        cases="target",
        numbers=FLOORED,
    ),
    NearMiss(
        "varifocal_loss of qualities",
        lambda input, target, *, alpha, gamma: varifocal_by_sign(
            input, target, torch.sigmoid(input), alpha=alpha, gamma=gamma
        ),
        OF_QUALITIES,
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
