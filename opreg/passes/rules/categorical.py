"""Cross entropy of class indices and its relatives, one value a row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._rule import Rule
from ..normal_form.values import NEVER
from ._objections import above, every, floating, never, same_shape

lossreg = torch.ops.lossreg


def cross_entropy(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")


def focal(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int = -100) -> Tensor:
    loss = cross_entropy(input, target, ignore_index)
    return (1 - torch.exp(-loss)) ** gamma * loss


def scaled_focal(input: Tensor, target: Tensor, *, factor: float, gamma: float, ignore_index: int = -100) -> Tensor:
    return factor * focal(input, target, gamma=gamma, ignore_index=ignore_index)


def smoothed(input: Tensor, target: Tensor, *, smoothing: float, ignore_index: int = -100) -> Tensor:
    spread = -F.log_softmax(input, 1).mean(1)
    return (1 - smoothing) * cross_entropy(input, target, ignore_index) + smoothing * spread


def of_probabilities(input: Tensor, target: Tensor) -> Tensor:
    return -(target * F.log_softmax(input, 1)).sum(1)


def focal_replacement(input, target, *, gamma, ignore_index):  # type: ignore[no-untyped-def]
    return lossreg.softmax_focal_loss(input, target, None, gamma, ignore_index, "none")


def scaled_focal_replacement(input, target, *, factor, gamma, ignore_index):  # type: ignore[no-untyped-def]
    return focal_replacement(input, target, gamma=gamma, ignore_index=ignore_index) * factor  # type: ignore[no-untyped-call]


def smoothed_replacement(input, target, *, smoothing):  # type: ignore[no-untyped-def]
    return lossreg.cross_entropy(input, target, None, NEVER, "none", smoothing)


PADDED = never("a target of ignore_index keeps its smoothing here, in cross_entropy it has none")
GAMMA = above(0, "gamma")

RULES = (
    Rule("softmax_focal_loss, p = exp(-cross entropy)", focal, focal_replacement, GAMMA),
    Rule("softmax_focal_loss and a factor, p = exp(-cross entropy)", scaled_focal, scaled_focal_replacement, GAMMA),
    Rule(
        "cross_entropy, log_softmax and gather",
        lambda input, target: cross_entropy(input, target, NEVER),
        lambda input, target: lossreg.cross_entropy(input, target, None, NEVER, "none"),
    ),
    Rule(
        "cross_entropy of probabilities, written out",
        of_probabilities,
        lambda input, target: lossreg.cross_entropy(input, target, None, NEVER, "none"),
        every(same_shape("input", "target"), floating("target")),
    ),
    Rule(
        "cross_entropy with label smoothing, written out",
        # of gathered log-probabilities: every target counts
        lambda input, target, *, smoothing: smoothed(input, target, smoothing=smoothing, ignore_index=NEVER),
        smoothed_replacement,
    ),
    Rule("cross_entropy with label smoothing, written out over nll_loss", smoothed, focal_replacement, PADDED),
)
