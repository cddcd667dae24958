"""Logits with a margin at the target's class: an op computes them together with the cross_entropy that follows.

That op is put in the place of the cross_entropy (chains.py), so these formulas have no replacement of their own.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...ops.angular import with_margin
from .._rule import Formula


# In a pattern, one_hot has the classes of the tensor that stands in the place of their number, and the cosine of a
# number is a number.
def amsoftmax(cosine: Tensor, target: Tensor, *, margin: float, scale: float) -> Tensor:
    onehot = F.one_hot(target, cosine)  # type: ignore[arg-type]
    return scale * (cosine - margin * onehot)


def arcface(floor: Callable[[Tensor], Tensor]) -> Formula:
    def pattern(cosine: Tensor, target: Tensor, *, margin: Any, scale: float) -> Tensor:
        sine = torch.sqrt(floor(1 - cosine**2))
        own = with_margin(cosine, sine, margin, torch.cos(margin), torch.sin(margin))
        onehot = F.one_hot(target, cosine)  # type: ignore[arg-type]
        return scale * (cosine + onehot * (own - cosine))

    return Formula("arcface_loss, its margin written out", pattern, numbers={"margin": math.acos})


FORMULAS = {
    "amsoftmax_loss": (Formula("amsoftmax_loss, its margin written out", amsoftmax),),
    # Without the op's floor it is another function: rounding takes a cosine to 1 and beyond, and the root is 0 or NaN.
    "arcface_loss": (arcface(lambda x: x.clamp(min=1e-7)), arcface(lambda x: x.clamp(1e-7, 1))),
}
