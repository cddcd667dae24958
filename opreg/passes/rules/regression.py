"""Losses of a difference: quadratic near 0, linear beyond, one value an element."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import ALIKE, first_of, unless_above

# Where the two parts meet, both have one value and one slope, so it does not matter to which of them that belongs.
_CHOICES: tuple[Callable[[Tensor, Any, Tensor, Tensor], Tensor], ...] = (
    lambda d, at, near, far: torch.where(d < at, near, far),
    lambda d, at, near, far: torch.where(d <= at, near, far),
    lambda d, at, near, far: torch.where(d > at, far, near),
    lambda d, at, near, far: torch.where(d >= at, far, near),
)
# The square of a distance, or of the difference itself.
_SQUARES: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (lambda d, apart: d * d, lambda d, apart: apart * apart)
_WAYS = tuple(itertools.product(_CHOICES, _SQUARES))


def by_choice(choose: Callable[..., Tensor], square: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], ...]:
    """smooth_l1_loss and huber_loss by a choice between two parts."""

    def smooth_l1(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
        apart = input - target
        d = apart.abs()
        return choose(d, beta, 0.5 * square(d, apart) / beta, d - 0.5 * beta)

    def huber(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
        apart = input - target
        d = apart.abs()
        return choose(d, delta, 0.5 * square(d, apart), delta * (d - 0.5 * delta))

    return smooth_l1, huber


def smooth_l1_rule(pattern: Callable[..., Tensor]) -> Rule:
    def replacement(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
        result: Tensor = get("smooth_l1_loss").value(input, target, "none", beta)
        return result

    return Rule("smooth_l1_loss, written out", pattern, replacement, first_of(unless_above(0, "beta"), ALIKE))


def huber_rule(pattern: Callable[..., Tensor]) -> Rule:
    def replacement(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
        result: Tensor = get("huber_loss").value(input, target, "none", delta)
        return result

    return Rule("huber_loss, written out", pattern, replacement, first_of(unless_above(0, "delta"), ALIKE))


# By a distance that is clamped, where both parts are summed. Where the loss is NaN, its slope is another one.
def smooth_l1_by_clamp(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
    d = (input - target).abs()
    near = d.clamp(max=beta)
    return 0.5 * near * near / beta + d - near


def huber_by_clamp(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
    d = (input - target).abs()
    near = d.clamp(max=delta)
    return 0.5 * near * near + delta * (d - near)


BY_CHOICE = tuple(by_choice(*way) for way in _WAYS)

RULES: tuple[Rule, ...] = (
    *(smooth_l1_rule(pattern) for pattern, _ in BY_CHOICE),
    smooth_l1_rule(smooth_l1_by_clamp),
    *(huber_rule(pattern) for _, pattern in BY_CHOICE),
    huber_rule(huber_by_clamp),
    Rule(
        "mse_loss, written out",
        lambda input, target: (input - target) ** 2,
        lambda input, target: get("mse_loss").value(input, target, "none"),
        ALIKE,
        common=True,
    ),
    Rule(
        "l1_loss, written out",
        lambda input, target: (input - target).abs(),
        lambda input, target: get("l1_loss").value(input, target, "none"),
        ALIKE,
        common=True,
    ),
)
