"""The rules for losses and activations that people write by hand.

A pattern is written once, in the shortest form; it is found in any that is algebraically the same. Patterns give one
value an element, a row, a sample or a pair; a mean or a sum that follows becomes the op's reduction.
"""

from collections.abc import Mapping

from .._rule import NearMiss, Rule
from . import (
    activation,
    binary,
    box,
    categorical,
    contrast,
    detection,
    likelihood,
    margin,
    regression,
    segmentation,
    softmax,
)
from ._objections import Domain, Objection

RULES: tuple[Rule | NearMiss, ...] = (
    *activation.RULES,
    *binary.RULES,
    *categorical.RULES,
    *softmax.RULES,
    *contrast.RULES,
    *detection.RULES,
    *regression.RULES,
    *likelihood.RULES,
    *margin.RULES,
    *segmentation.RULES,
    *box.RULES,
)

# By the op: objections to it in the place of a function of another library than torch that its spellings name.
LIBRARIES: Mapping[str, Objection] = {**binary.LIBRARIES, **box.LIBRARIES}
# And the values that such a function's tensors must have, which no graph shows.
DOMAINS: Mapping[str, Domain] = box.DOMAINS
