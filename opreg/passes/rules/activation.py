"""Activations."""

from ...registry import get
from .._rule import Rule

RULES = (Rule.of(get("swish")), Rule.of(get("hard_swish")), Rule.of(get("mish")))
