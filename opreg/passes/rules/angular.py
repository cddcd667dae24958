"""Logits with a margin at the target's class: what cross_entropy gets of them is an op of its own.

The replacements are made where cross_entropy is replaced; these rules tell the logits.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._rule import Rule
from ._objections import Condition, always, never


# In a pattern, one_hot has the classes of the tensor that stands in the place of their number, and the cosine of a
# number is a number.
def additive(cosine: Tensor, target: Tensor, *, margin: float, scale: float) -> Tensor:
    onehot = F.one_hot(target, cosine)  # type: ignore[arg-type]
    return scale * (cosine - margin * onehot)


def angular(sine: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def pattern(cosine: Tensor, target: Tensor, *, margin: Any, scale: float) -> Tensor:
        turned = cosine * torch.cos(margin) - sine(cosine) * torch.sin(margin)
        beyond = cosine - margin * torch.sin(margin)
        phi = torch.where(cosine > -torch.cos(margin), turned, beyond)
        onehot = F.one_hot(target, cosine)  # type: ignore[arg-type]
        return scale * (cosine + onehot * (phi - cosine))

    return pattern


# Rounding takes a cosine to 1 and beyond: 0 or NaN there in the first forms, which the op does not give.
FLOOR = never("arcface_loss takes sin^2 no less than 1e-7: write .clamp(min=1e-7) for the same")


def arcface(sine: Callable[[Tensor], Tensor], condition: Condition) -> Rule:
    pattern = angular(sine)
    return Rule("arcface_loss, its margin written out", pattern, pattern, condition, {"margin": math.acos})


RULES = {
    "amsoftmax_loss": (Rule("amsoftmax_loss, its margin written out", additive, additive),),
    "arcface_loss": (
        arcface(lambda c: torch.sqrt(1 - c**2), FLOOR),
        arcface(lambda c: torch.sqrt((1 - c**2).clamp(0, 1)), FLOOR),
        arcface(lambda c: torch.sqrt((1 - c**2).clamp(min=0)), FLOOR),
        arcface(lambda c: torch.sqrt((1 - c**2).clamp(min=1e-7)), always),
        arcface(lambda c: torch.sqrt((1 - c**2).clamp(1e-7, 1)), always),
    ),
}
