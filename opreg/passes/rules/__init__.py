"""The rules for losses and activations that people write by hand.

A pattern is written once, in the shortest form; it is found in any that is algebraically the same. Patterns give one
value an element, a row, a sample or a pair; a mean or a sum that follows becomes the op's reduction.
"""

from .._rule import NearMiss, Rule
from . import activation, binary, box, categorical, regression, segmentation

RULES: tuple[Rule | NearMiss, ...] = (
    *activation.RULES,
    *binary.RULES,
    *categorical.RULES,
    *regression.RULES,
    *segmentation.RULES,
    *box.RULES,
)
