"""Likelihoods of normal variables and of counts, and the divergence of distributions, one value an element."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import ALIKE, first_of, unless_same_shape, unless_within

LOG_ROOT = 0.5 * math.log(2 * math.pi)


def gaussian(input: Tensor, target: Tensor, var: Tensor) -> Tensor:
    return 0.5 * (torch.log(var) + (input - target) ** 2 / var)


def gaussian_of_scale(input: Tensor, target: Tensor, scale: Tensor) -> Tensor:
    return torch.log(scale) + (input - target) ** 2 / (2 * scale**2)


def gaussian_of_logarithm(input: Tensor, target: Tensor, log_var: Tensor) -> Tensor:
    return 0.5 * (torch.exp(-log_var) * (input - target) ** 2 + log_var)


def with_constant(pattern: Callable[[Tensor, Tensor, Tensor], Tensor], third: str) -> Callable[..., Tensor]:
    """The same with the logarithm of the density's constant."""
    space = {"pattern": pattern, "constant": LOG_ROOT}
    made: Callable[..., Tensor] = eval(  # a pattern's arguments have names
        f"lambda input, target, {third}: pattern(input, target, {third}) + constant", space
    )
    return made


def gaussian_nll(input: Tensor, target: Tensor, var: Tensor, full: bool) -> Tensor:
    result: Tensor = get("gaussian_nll_loss").value(input, target, var, full, 0.0, "none")
    return result


# What the op computes of the variance, a program computes of the logarithm or the root: not where exp or a square has
# no value in the dtype.
RANGE_OF_SCALE = unless_within(
    1e-18, 1e18, "scale", "gaussian_nll_loss takes its square; clamp it, or call it with the variance"
)
RANGE_OF_LOGARITHM = unless_within(
    -80, 80, "log_var", "gaussian_nll_loss takes its exponential; clamp it, or call it with the variance"
)


RULES = (
    Rule(
        "gaussian_nll_loss, written out",
        gaussian,
        lambda input, target, var: gaussian_nll(input, target, var, False),
        first_of(unless_same_shape("input", "target", "var"), ALIKE),
    ),
    Rule(
        "gaussian_nll_loss with its constant, written out",
        with_constant(gaussian, "var"),
        lambda input, target, var: gaussian_nll(input, target, var, True),
        first_of(unless_same_shape("input", "target", "var"), ALIKE),
    ),
    Rule(
        "gaussian_nll_loss of a scale, written out",
        gaussian_of_scale,
        lambda input, target, scale: gaussian_nll(input, target, scale * scale, False),
        first_of(unless_same_shape("input", "target", "scale"), ALIKE, RANGE_OF_SCALE),
    ),
    Rule(
        "gaussian_nll_loss of a scale with its constant, written out",
        with_constant(gaussian_of_scale, "scale"),
        lambda input, target, scale: gaussian_nll(input, target, scale * scale, True),
        first_of(unless_same_shape("input", "target", "scale"), ALIKE, RANGE_OF_SCALE),
    ),
    Rule(
        "gaussian_nll_loss of a logarithm, written out",
        gaussian_of_logarithm,
        lambda input, target, log_var: gaussian_nll(input, target, log_var.exp(), False),
        first_of(unless_same_shape("input", "target", "log_var"), ALIKE, RANGE_OF_LOGARITHM),
    ),
    Rule(
        "gaussian_nll_loss of a logarithm with its constant, written out",
        with_constant(gaussian_of_logarithm, "log_var"),
        lambda input, target, log_var: gaussian_nll(input, target, log_var.exp(), True),
        first_of(unless_same_shape("input", "target", "log_var"), ALIKE, RANGE_OF_LOGARITHM),
    ),
    Rule(
        "poisson_nll_loss, written out",
        lambda input, target: torch.exp(input) - target * input,
        lambda input, target: get("poisson_nll_loss").value(input, target, True, False, 0.0, "none"),
        ALIKE,
        common=True,
    ),
    Rule(
        "kl_div of two logarithms, written out",
        lambda input, target: torch.exp(target) * (target - input),
        lambda input, target: get("kl_div").value(input, target, "none", True),
        ALIKE,
    ),
)
