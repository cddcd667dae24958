"""Losses of a difference: quadratic near 0, linear beyond, one value an element."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import ALIKE, first_of, unless_above, unless_between

# Where the two parts meet, both have one value and one slope, so it does not matter to which of them that belongs.
_CHOICES: tuple[Callable[[Tensor, Any, Tensor, Tensor], Tensor], ...] = (
    lambda d, at, near, far: torch.where(d < at, near, far),
    lambda d, at, near, far: torch.where(d <= at, near, far),
    lambda d, at, near, far: torch.where(d > at, far, near),
    lambda d, at, near, far: torch.where(d >= at, far, near),
)

# Where they have two slopes, the op's is that of the far part.
_BELOW = (_CHOICES[0], _CHOICES[3])


def by_choice(choose: Callable[..., Tensor]) -> tuple[Callable[..., Tensor], ...]:
    """smooth_l1_loss and huber_loss by a choice between two parts."""

    def smooth_l1(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
        d = (input - target).abs()
        return choose(d, beta, 0.5 * d * d / beta, d - 0.5 * beta)

    def huber(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
        d = (input - target).abs()
        return choose(d, delta, 0.5 * d * d, delta * (d - 0.5 * delta))

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


BY_CHOICE = tuple(map(by_choice, _CHOICES))


def unless_continuous(arguments: Mapping[str, Any]) -> str:
    width, curvature, offset = (arguments[n] for n in ("width", "curvature", "offset"))
    if math.isclose(offset, width - width * math.log(1 + width / curvature), rel_tol=1e-9, abs_tol=1e-9):
        return ""
    return f"its parts do not meet at {width}, where wing_loss is continuous"


WING = first_of(unless_above(0, "width"), unless_above(0, "curvature"), unless_continuous, ALIKE)


def wing_rule(choose: Callable[..., Tensor]) -> Rule:
    def pattern(input: Tensor, target: Tensor, *, width: float, curvature: float, offset: float) -> Tensor:
        d = (input - target).abs()
        return choose(d, width, width * torch.log(1 + d / curvature), d - offset)

    def replacement(input: Tensor, target: Tensor, *, width: float, curvature: float, offset: float) -> Tensor:
        result: Tensor = get("wing_loss").value(input, target, width, curvature, "none")
        return result

    return Rule("wing_loss, written out", pattern, replacement, WING)


def pinball_rule(name: str, pattern: Callable[..., Tensor]) -> Rule:
    return Rule(
        name,
        pattern,
        lambda input, target, *, quantile: get("quantile_loss").value(input, target, quantile, "none"),
        first_of(unless_between(0, 1, "quantile"), ALIKE),
    )


def pinball(input: Tensor, target: Tensor, *, quantile: float) -> Tensor:
    below = target - input
    return torch.maximum(quantile * below, (quantile - 1) * below)


# The product of a mask: where the difference is infinite, one factor is not 0.
def pinball_by_mask(input: Tensor, target: Tensor, *, quantile: float) -> Tensor:
    below = target - input
    return below * (quantile - (below < 0).float())


RULES: tuple[Rule, ...] = (
    *(smooth_l1_rule(pattern) for pattern, _ in BY_CHOICE),
    smooth_l1_rule(smooth_l1_by_clamp),
    *(huber_rule(pattern) for _, pattern in BY_CHOICE),
    huber_rule(huber_by_clamp),
    *(wing_rule(choose) for choose in _BELOW),
    # a program holds the square of eps
    replace(
        Rule.of(get("charbonnier_loss"), first_of(unless_above(0, "eps"), ALIKE), reduction="none"),
        numbers={"eps": math.sqrt},
    ),
    Rule(
        "log_cosh_loss, written out",
        lambda input, target: torch.log(torch.cosh(input - target)),
        lambda input, target: get("log_cosh_loss").value(input, target, "none"),
        ALIKE,
    ),
    pinball_rule("quantile_loss, written out", pinball),
    pinball_rule("quantile_loss by a mask", pinball_by_mask),
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
