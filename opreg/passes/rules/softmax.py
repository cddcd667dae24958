"""Divergences of distributions over classes, as they are written over torch's kl_div."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import first_of, unless_above, unless_between, unless_constant, unless_same_shape

MIXTURE_TO_EACH = (
    "it is the divergence of the mixture from each distribution, and jsd_loss is that of each from the mixture: in "
    "F.kl_div(input, target), input is the logarithm of the mixture"
)


def mixture(q: Tensor, p: Tensor, beta: float) -> Tensor:
    return torch.log(beta * p + (1 - beta) * q)


def jensen_shannon(input: Tensor, target: Tensor, beta: float, dim: int) -> Tensor:
    q, p = F.softmax(input, dim), F.softmax(target, dim)
    m = mixture(q, p, beta)
    each = beta * F.kl_div(m, p, reduction="none") + (1 - beta) * F.kl_div(m, q, reduction="none")
    return each.sum(dim)


def jsd_loss(input: Tensor, target: Tensor, beta: float, temperature: float) -> Tensor:
    result: Tensor = get("jsd_loss").value(input, target, beta, temperature, "none")
    return result


def of_tokens(loss: Callable[[Tensor, Tensor], Tensor], input: Tensor, target: Tensor) -> Tensor:
    """Of classes in the last dimension."""
    return loss(input.movedim(-1, 1), target.movedim(-1, 1))


def mixture_to_each(input: Tensor, target: Tensor, *, temperature: float = 1.0) -> Tensor:
    q, p = F.softmax(input / temperature, -1), F.softmax(target / temperature, -1)
    m = 0.5 * (p + q)
    return F.kl_div(q.log(), m, reduction="none") + F.kl_div(p.log(), m, reduction="none")


ALIKE = first_of(
    unless_same_shape("input", "target"), unless_constant("target", "jsd_loss"), unless_between(0, 1, "beta")
)

RULES: tuple[Rule | NearMiss, ...] = (
    Rule(
        "jsd_loss, written out",
        lambda input, target, *, beta=0.5, temperature=1.0: jensen_shannon(
            input / temperature, target / temperature, beta, 1
        ),
        lambda input, target, *, beta, temperature: jsd_loss(input, target, beta, temperature),
        first_of(unless_above(0, "temperature"), ALIKE),
    ),
    Rule(
        "jsd_loss of tokens, written out",
        lambda input, target, *, beta=0.5, temperature=1.0: jensen_shannon(
            input / temperature, target / temperature, beta, -1
        ),
        lambda input, target, *, beta, temperature: of_tokens(
            lambda x, t: jsd_loss(x, t, beta, temperature), input, target
        ),
        first_of(unless_above(0, "temperature"), ALIKE),
    ),
    Rule(
        "jsd_loss of scaled scores, written out",
        lambda input, target, *, scale, beta=0.5: jensen_shannon(scale * input, scale * target, beta, -1),
        lambda input, target, *, scale, beta: of_tokens(lambda x, t: jsd_loss(x, t, beta, 1 / scale), input, target),
        first_of(unless_above(0, "scale"), ALIKE),
    ),
    NearMiss("jsd_loss with its arguments exchanged", mixture_to_each, MIXTURE_TO_EACH),
)
