"""Cross entropy of class indices and its relatives, one value a row."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ..normal_form.values import NEVER
from ._objections import first_of, unless_above, unless_at_least, unless_floating, unless_same_shape

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


# Labels in a column, as the mask of an image is (N, 1, H, W): of each row a loss in its place.
def in_column(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def replacement(input: Tensor, target: Tensor, **numbers: float) -> Tensor:
        return loss(input, target.squeeze(1), **numbers).unsqueeze(1)

    return replacement


def in_own_column(input: Tensor, target: Tensor) -> Tensor:
    return F.log_softmax(input, 1).gather(1, target)


def fading(log_p: Tensor, gamma: float) -> Tensor:
    return -((1 - log_p.exp()) ** gamma) * log_p


def guarded_fading(log_p: Tensor, gamma: float) -> Tensor:
    """The same where the base of the power is 0 and has no gradient there, as in the op."""
    rest = 1 - log_p.exp()
    gone = rest == 0
    return -torch.where(gone, rest.detach() ** gamma, rest.masked_fill(gone, 1.0) ** gamma) * log_p


def of_infinite_left_out(input: Tensor, target: Tensor) -> Tensor:
    products = F.softmax(target, -1) * F.log_softmax(input, -1)
    return -products.masked_fill(torch.isinf(input), 0.0).sum(-1)


INFINITE = (
    "what belongs to an infinite score is left out by masked_fill, where cross_entropy is infinite or NaN: for finite "
    "scores leave the masked_fill out, and it is the op"
)


def complement(number: float) -> float:
    """The smoothing of a program that holds what is left of 1. fairseq spreads more than its ε, and holds that rest."""
    if not 0 < number < 1:
        raise ValueError
    return 1 - number


def smoothing_with_ignored(axis: int, clamped: bool = False) -> Rule:
    """Label smoothing of log-probabilities that are gathered and summed, both 0 where a label is ignored.

    Clamped labels stay those of the program, whatever else it clamps.
    """

    def pattern(input: Tensor, target: Tensor, *, smoothing: float, ignore_index: int) -> Tensor:
        log_p, ignored = F.log_softmax(input, axis), target == ignore_index
        labels = target.clamp(min=0) if clamped else target
        own = log_p.gather(axis, labels.unsqueeze(axis)).squeeze(axis)
        spread = log_p.mean(axis)
        return (1 - smoothing) * torch.where(ignored, 0.0, -own) + smoothing * torch.where(ignored, 0.0, -spread)

    def replacement(input: Tensor, target: Tensor, *, smoothing: float, ignore_index: int) -> Tensor:
        labels = target
        if clamped:
            labels = target.clamp(min=0).masked_fill(target == ignore_index, ignore_index)
        if axis == 1:
            result: Tensor = cross_entropy_loss(input, labels, None, ignore_index, "none", smoothing)
            return result
        rows, flat = input.flatten(0, -2), labels.flatten()
        result = cross_entropy_loss(rows, flat, None, ignore_index, "none", smoothing)
        return result.view_as(target)

    where, labels = "rows" if axis == 1 else "tokens", "clamped" if clamped else "ignored"
    name = f"cross_entropy with label smoothing of {where}, {labels} labels, written out"
    return Rule(name, pattern, replacement, unless_fraction, numbers={"smoothing": complement})


def unless_fraction(arguments: Mapping[str, Any]) -> str:
    smoothing = arguments["smoothing"]
    return "" if 0 <= smoothing <= 1 else f"its smoothing is {smoothing}, outside of [0, 1]"


def loss_of_every_row(input: Tensor, target: Tensor) -> Tensor:
    result: Tensor = cross_entropy_loss(input, target, None, NEVER, "none")
    return result


def focal_of_every_row(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    return focal_loss(input, target, gamma=gamma, ignore_index=NEVER)


def poly1_of_every_row(input: Tensor, target: Tensor, *, epsilon: float) -> Tensor:
    result: Tensor = get("poly1_cross_entropy").value(input, target, None, epsilon, NEVER, "none", 0.0)
    return result


def poly1(input: Tensor, target: Tensor, *, epsilon: float) -> Tensor:
    loss = cross_entropy(input, target, NEVER)
    return loss + epsilon * (1 - torch.exp(-loss))


def of_probabilities_of_tokens(input: Tensor, target: Tensor) -> Tensor:
    loss: Tensor = cross_entropy_loss(input.flatten(0, -2), target.flatten(0, -2), None, NEVER, "none")
    return loss.view_as(input.select(-1, 0))


def focal_loss(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int) -> Tensor:
    result: Tensor = softmax_focal_loss(input, target, None, gamma, ignore_index, "none")
    return result


# Cross entropy and the square of the log-sum-exp, which keeps scores small.


def squares(input: Tensor, dim: int) -> Tensor:
    return torch.logsumexp(input, dim).square()


def with_squares(input: Tensor, target: Tensor, ignore_index: int, reduction: str, z_loss: float) -> Tensor:
    result: Tensor = cross_entropy_loss(input, target, None, ignore_index, reduction, 0.0, 0.0, z_loss)
    return result


def tokens_with_squares(input: Tensor, target: Tensor, *, z_loss: float) -> Tensor:
    loss = with_squares(input.flatten(0, -2), target.flatten(), NEVER, "none", z_loss)
    return loss.view_as(target)


def where_counted(losses: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """By a choice: other than a product with a mask, it leaves out what is not finite."""
    return torch.where(target != ignore_index, losses, 0.0)


def mean_of_counted(losses: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return losses.sum() / (target != ignore_index).sum()


def mean_loss(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    return F.cross_entropy(input, target, ignore_index=ignore_index)


# What programs compute where the squares count in the rows that cross entropy counts.


def counted(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    losses = squares(input, 1) * (target != ignore_index)
    return cross_entropy(input, target, ignore_index) + z_loss * losses


def counted_together(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    return every_row(input, target, z_loss=z_loss, ignore_index=ignore_index) * (target != ignore_index)


def chosen(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    losses = where_counted(squares(input, 1), target, ignore_index)
    return cross_entropy(input, target, ignore_index) + z_loss * losses


def mean_of_counted_rows(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    losses = squares(input, 1) * (target != ignore_index)
    return mean_loss(input, target, ignore_index) + z_loss * mean_of_counted(losses, target, ignore_index)


def mean_of_chosen_rows(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    losses = where_counted(squares(input, 1), target, ignore_index)
    return mean_loss(input, target, ignore_index) + z_loss * mean_of_counted(losses, target, ignore_index)


def every_row(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    return cross_entropy(input, target, ignore_index) + z_loss * squares(input, 1)


def mean_of_every_row(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int = -100) -> Tensor:
    return mean_loss(input, target, ignore_index) + z_loss * squares(input, 1).mean()


def each_with_squares(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int) -> Tensor:
    return with_squares(input, target, ignore_index, "none", z_loss)


def mean_with_squares(input: Tensor, target: Tensor, *, z_loss: float, ignore_index: int) -> Tensor:
    return with_squares(input, target, ignore_index, "mean", z_loss)


Z_LOSS = unless_at_least(0, "z_loss")
MULTIPLIED = (
    "the squares of the log-sum-exp are multiplied by a mask: that leaves NaN of ignored rows that are not finite, and "
    "cross_entropy leaves these out: choose them by torch.where(mask, ..., 0)"
)


def unless_all_count(arguments: Mapping[str, Any]) -> str:
    """Squares of every row, beside a cross entropy that may leave rows out."""
    ignored, known = arguments["ignore_index"], arguments["target"].values
    if known.high < ignored or ignored < known.low:
        return ""
    return (
        f"the graph does not show that no target is {ignored}: cross entropy leaves such rows out, and the squares of "
        f"the log-sum-exp count them; choose these by torch.where(target != {ignored}, ..., 0), and divide a mean by "
        "how many are left"
    )


def unless_tokens(arguments: Mapping[str, Any]) -> str:
    shape = arguments["input"].shape
    return "" if shape is not None and len(shape) >= 2 else "input has one dimension"


EVERY_ROW = first_of(Z_LOSS, unless_all_count)
GAMMA = unless_above(0, "gamma")

RULES = (
    Rule("softmax_focal_loss, p = exp(-cross entropy)", focal, focal_loss, GAMMA),
    Rule(
        "softmax_focal_loss of log_softmax and gather",
        lambda input, target, *, gamma: focal(input, target, gamma=gamma, ignore_index=NEVER),
        focal_of_every_row,
        GAMMA,
    ),
    Rule(
        "softmax_focal_loss of labels in a column",
        lambda input, target, *, gamma: fading(in_own_column(input, target), gamma),
        in_column(focal_of_every_row),
        GAMMA,
    ),
    Rule(
        "softmax_focal_loss with a guarded power",
        lambda input, target, *, gamma: guarded_fading(in_own_column(input, target.unsqueeze(1)), gamma).squeeze(1),
        focal_of_every_row,
        GAMMA,
    ),
    Rule(
        "softmax_focal_loss with a guarded power, of labels in a column",
        lambda input, target, *, gamma: guarded_fading(in_own_column(input, target), gamma),
        in_column(focal_of_every_row),
        GAMMA,
    ),
    Rule("poly1_cross_entropy of log_softmax and gather", poly1, poly1_of_every_row),
    Rule(
        "cross_entropy of labels in a column",
        lambda input, target: -in_own_column(input, target),
        in_column(loss_of_every_row),
    ),
    Rule(
        "cross_entropy, log_softmax and gather",
        lambda input, target: cross_entropy(input, target, NEVER),
        loss_of_every_row,
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
        "cross_entropy of probabilities of tokens, written out",
        lambda input, target: -(target * F.log_softmax(input, -1)).sum(-1),
        of_probabilities_of_tokens,
        first_of(unless_same_shape("input", "target"), unless_floating("target", "class indices"), unless_tokens),
    ),
    NearMiss("cross_entropy of probabilities without infinite scores", of_infinite_left_out, INFINITE),
    Rule(
        "cross_entropy with label smoothing, written out",
        # of gathered log-probabilities: every target counts
        lambda input, target, *, smoothing: smoothed(input, target, smoothing=smoothing, ignore_index=NEVER),
        lambda input, target, *, smoothing: cross_entropy_loss(input, target, None, NEVER, "none", smoothing),
    ),
    Rule(
        "cross_entropy with label smoothing by the rest, written out",
        lambda input, target, *, smoothing: smoothed(input, target, smoothing=smoothing, ignore_index=NEVER),
        lambda input, target, *, smoothing: cross_entropy_loss(input, target, None, NEVER, "none", smoothing),
        unless_fraction,
        numbers={"smoothing": complement},
    ),
    smoothing_with_ignored(-1),
    smoothing_with_ignored(-1, clamped=True),
    smoothing_with_ignored(1),
    Rule(
        "cross_entropy with z_loss, log_softmax and gather",
        lambda input, target, *, z_loss: cross_entropy(input, target, NEVER) + z_loss * squares(input, 1),
        lambda input, target, *, z_loss: with_squares(input, target, NEVER, "none", z_loss),
        Z_LOSS,
    ),
    Rule(
        "cross_entropy of tokens with z_loss, log_softmax and gather",
        lambda input, target, *, z_loss: z_loss * squares(input, -1) - log_probability(input, target),
        tokens_with_squares,
        Z_LOSS,
    ),
    NearMiss("cross_entropy with z_loss of counted rows", counted, MULTIPLIED),
    NearMiss("cross_entropy with z_loss, counted together", counted_together, MULTIPLIED),
    Rule("cross_entropy with z_loss of chosen rows", chosen, each_with_squares, Z_LOSS),
    NearMiss("cross_entropy with z_loss of counted rows, their mean", mean_of_counted_rows, MULTIPLIED),
    Rule("cross_entropy with z_loss of chosen rows, their mean", mean_of_chosen_rows, mean_with_squares, Z_LOSS),
    Rule("cross_entropy with z_loss of every row", every_row, each_with_squares, EVERY_ROW),
    Rule("cross_entropy with z_loss of every row, their mean", mean_of_every_row, mean_with_squares, EVERY_ROW),
    NearMiss(
        "cross_entropy with label smoothing, written out over nll_loss",
        smoothed,
        "a target of ignore_index keeps its smoothing here, in cross_entropy it has none",
    ),
)
