"""Contrastive losses over the whole matrix of comparisons: the op never holds it, so nobody else may read it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ...registry import get
from .._rule import Rule

MATRIX = frozenset({"products"})


def rows(x: Tensor) -> Any:
    """How many rows a matrix has; in a pattern the matrix itself stands for that."""
    return x if isinstance(x, fx.Proxy) else x.shape[0]


def both_ways(scores: Tensor) -> Tensor:
    """Of each row and of each column the cross entropy with its own place, halved."""
    by_row, by_column = F.log_softmax(scores, 1), F.log_softmax(scores.t(), 1)
    return -0.5 * (by_row.diagonal() + by_column.diagonal())


def of_signs(scores: Tensor) -> Tensor:
    """Of each row the sum of its sigmoid losses."""
    signs = 2 * torch.eye(rows(scores)) - torch.ones_like(scores)
    return -F.logsigmoid(signs * scores).sum(-1)


def clip(input: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    result: Tensor = get("clip_loss").value(input, target, scale.reshape(()), "none")
    return result


def siglip(input: Tensor, target: Tensor, logit_scale: Tensor, logit_bias: Tensor) -> Tensor:
    result: Tensor = get("siglip_loss").value(input, target, logit_scale.reshape(()), logit_bias.reshape(()))
    return result


def of_number(input: Tensor, number: float) -> Tensor:
    """A number as a tensor, in full."""
    return input.new_full((), number, dtype=torch.float64)


# What the products are multiplied by: a tensor, which may be divided by, or a number.
SCALED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "": (
        lambda input, target, logit_scale: both_ways(logit_scale * (input @ target.t())),
        lambda input, target, logit_scale: clip(input, target, logit_scale),
    ),
    " times an exponential": (
        lambda input, target, logit_scale: both_ways(torch.exp(logit_scale) * (input @ target.t())),
        lambda input, target, logit_scale: clip(input, target, logit_scale.exp()),
    ),
    " over a temperature": (
        lambda input, target, temperature: both_ways((input @ target.t()) / temperature),
        lambda input, target, temperature: clip(input, target, 1 / temperature),
    ),
    " times a number": (
        lambda input, target, *, scale=1.0: both_ways(scale * (input @ target.t())),
        lambda input, target, *, scale: clip(input, target, of_number(input, scale)),
    ),
    " over a number": (
        lambda input, target, *, temperature: both_ways((input @ target.t()) / temperature),
        lambda input, target, *, temperature: clip(input, target, of_number(input, 1 / temperature)),
    ),
}


def unless_zero(arguments: Mapping[str, Any]) -> str:
    return "temperature is 0" if arguments.get("temperature") == 0.0 else ""


SIGNED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "": (
        lambda input, target, logit_scale, logit_bias: of_signs(logit_scale * (input @ target.t()) + logit_bias).mean(),
        siglip,
    ),
    " times an exponential": (
        lambda input, target, logit_scale, logit_bias: of_signs(
            torch.exp(logit_scale) * (input @ target.t()) + logit_bias
        ).mean(),
        lambda input, target, logit_scale, logit_bias: siglip(input, target, logit_scale.exp(), logit_bias),
    ),
    " times a number": (
        lambda input, target, logit_bias, *, scale=1.0: of_signs(scale * (input @ target.t()) + logit_bias).mean(),
        lambda input, target, logit_bias, *, scale: siglip(input, target, of_number(input, scale), logit_bias),
    ),
}

RULES = (
    *(
        Rule(f"clip_loss over the matrix{how}", pattern, replacement, unless_zero, alone=MATRIX)
        for how, (pattern, replacement) in SCALED.items()
    ),
    *(
        Rule(f"siglip_loss over the matrix{how}", pattern, replacement, alone=MATRIX)
        for how, (pattern, replacement) in SIGNED.items()
    ),
)
