"""Cross entropy of class indices and its relatives, one value a row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ..normal_form.values import NEVER
from ._objections import first_of, unless_above, unless_floating, unless_same_shape

cross_entropy_loss, softmax_focal_loss = get("cross_entropy").value, get("softmax_focal_loss").value


# The references take scores of any rank, which a pattern has no branches for: these are of one row a sample.
def cross_entropy(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")


def focal(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int = -100) -> Tensor:
    loss = cross_entropy(input, target, ignore_index)
    return (1 - torch.exp(-loss)) ** gamma * loss


def smoothed(input: Tensor, target: Tensor, *, smoothing: float, ignore_index: int = -100) -> Tensor:
    spread = -F.log_softmax(input, 1).mean(1)
    return (1 - smoothing) * cross_entropy(input, target, ignore_index) + smoothing * spread


def of_probabilities(input: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(input, 1)).sum(1)


# Language models have the classes in the last dimension.
def log_probability(input: Tensor, target: Tensor) -> Tensor:
    return F.log_softmax(input, -1).gather(-1, target.unsqueeze(-1)).squeeze(-1)


def loss_of_tokens(input: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = cross_entropy_loss(input.flatten(0, -2), target.flatten(), None, NEVER, "none")
    return loss.view_as(target)


def focal_loss(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int) -> Tensor:
    result: Tensor = softmax_focal_loss(input, target, None, gamma, ignore_index, "none")
    return result


GAMMA = unless_above(0, "gamma")

RULES = (
    Rule("softmax_focal_loss, p = exp(-cross entropy)", focal, focal_loss, GAMMA),
    Rule(
        "softmax_focal_loss of log_softmax and gather",
        lambda input, target, *, gamma: focal(input, target, gamma=gamma, ignore_index=NEVER),
        lambda input, target, *, gamma: focal_loss(input, target, gamma=gamma, ignore_index=NEVER),
        GAMMA,
    ),
    Rule(
        "cross_entropy, log_softmax and gather",
        lambda input, target: cross_entropy(input, target, NEVER),
        lambda input, target: cross_entropy_loss(input, target, None, NEVER, "none"),
    ),
    Rule(
        "cross_entropy of tokens, log_softmax and gather",
        lambda input, target: -log_probability(input, target),
        loss_of_tokens,
    ),
    Rule(
        "cross_entropy of probabilities, written out",
        of_probabilities,
        lambda input, target: cross_entropy_loss(input, target, None, NEVER, "none"),
        first_of(unless_same_shape("input", "target"), unless_floating("target", "class indices")),
    ),
    Rule(
        "cross_entropy with label smoothing, written out",
        # of gathered log-probabilities: every target counts
        lambda input, target, *, smoothing: smoothed(input, target, smoothing=smoothing, ignore_index=NEVER),
        lambda input, target, *, smoothing: cross_entropy_loss(input, target, None, NEVER, "none", smoothing),
    ),
    NearMiss(
        "cross_entropy with label smoothing, written out over nll_loss",
        smoothed,
        "a target of ignore_index keeps its smoothing here, in cross_entropy it has none",
    ),
)
