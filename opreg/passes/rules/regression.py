"""Losses of a difference: quadratic near 0, linear beyond, one value an element."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import first_of, unless_above, unless_same_shape

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


def unless_floating(arguments: Mapping[str, Any]) -> str:
    for name in ("input", "target"):
        dtype = arguments[name].dtype
        if dtype is None or not dtype.is_floating_point:
            return f"{name} is of dtype {dtype or 'unknown'}"
    return ""


SAME = first_of(unless_same_shape("input", "target"), unless_floating)


def smooth_l1(choose: Callable[..., Tensor], square: Callable[..., Tensor]) -> Rule:
    def pattern(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
        apart = input - target
        d = apart.abs()
        return choose(d, beta, 0.5 * square(d, apart) / beta, d - 0.5 * beta)

    def replacement(input: Tensor, target: Tensor, *, beta: float) -> Tensor:
        result: Tensor = get("smooth_l1_loss").value(input, target, "none", beta)
        return result

    return Rule("smooth_l1_loss, written out", pattern, replacement, first_of(unless_above(0, "beta"), SAME))


def huber(choose: Callable[..., Tensor], square: Callable[..., Tensor]) -> Rule:
    def pattern(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
        apart = input - target
        d = apart.abs()
        return choose(d, delta, 0.5 * square(d, apart), delta * (d - 0.5 * delta))

    def replacement(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
        result: Tensor = get("huber_loss").value(input, target, "none", delta)
        return result

    return Rule("huber_loss, written out", pattern, replacement, first_of(unless_above(0, "delta"), SAME))


def huber_by_clamp(input: Tensor, target: Tensor, *, delta: float) -> Tensor:
    d = (input - target).abs()
    near = d.clamp(max=delta)
    return 0.5 * near * near + delta * (d - near)


RULES: tuple[Rule | NearMiss, ...] = (
    *(smooth_l1(*way) for way in _WAYS),
    *(huber(*way) for way in _WAYS),
    NearMiss(
        "huber_loss of a clamped distance", huber_by_clamp, "at NaN its slope is a number, and huber_loss's is NaN"
    ),
)
