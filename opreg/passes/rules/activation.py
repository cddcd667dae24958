"""Activations, and gated activations: one half of a layer's output opens the other."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...registry import get
from .._rule import Rule
from ._objections import first_of, unless_at_least, unless_same_shape

ALIKE = unless_same_shape("gate", "up")
WAYS = ("none", "tanh")


def gelu(approximate: str) -> Rule:
    return Rule(
        f"gelu, approximate {approximate}, written out",
        lambda input: F.gelu(input, approximate=approximate),
        lambda input: get("gelu").value(input, approximate),
    )


def by_short_constant(input: Tensor, *, root: float) -> Tensor:
    return 0.5 * input * (1 + torch.tanh(root * input * (1 + 0.044715 * input * input)))


def unless_root(arguments: Mapping[str, Any]) -> str:
    """Eight digits of √(2/π) are enough for each dtype but float64."""
    if abs(arguments["root"] - math.sqrt(2 / math.pi)) > 5e-9:
        return f"its factor is {arguments['root']}, not √(2/π)"
    if arguments["input"].dtype in (None, torch.float64):
        return f"its factor is {arguments['root']}: in float64 that is another number than √(2/π)"
    return ""


def geglu(approximate: str) -> Rule:
    return Rule(
        f"geglu, approximate {approximate}, written out",
        lambda gate, up: F.gelu(gate, approximate=approximate) * up,
        lambda gate, up: get("geglu").value(gate, up, approximate),
        ALIKE,
    )


# What is gated comes first: the activation alone is found in it too, with a factor. The product of a ReLU, and reglu
# with it, is anybody's: the overlap of two boxes is one.
RULES = (
    Rule.of(get("swiglu"), ALIKE, defaults={"beta": 1.0}),
    *map(geglu, WAYS),
    Rule.of(get("clamped_swiglu"), first_of(ALIKE, unless_at_least(0, "limit"))),
    Rule.of(get("quick_gelu")),
    Rule.of(get("swish")),
    Rule.of(get("hard_swish")),
    Rule.of(get("mish")),
    Rule.of(get("relu_squared")),
    *map(gelu, WAYS),
    Rule(
        "gelu of a rounded constant, written out",
        by_short_constant,
        lambda input, *, root: get("gelu").value(input, "tanh"),
        unless_root,
    ),
)
