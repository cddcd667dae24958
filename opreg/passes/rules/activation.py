"""Activations, and gated activations: one half of a layer's output opens the other."""

import torch.nn.functional as F

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
)
