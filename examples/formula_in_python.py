"""A loss of your own: a Python function, compiled for the CPU (and a GPU), with everything that opreg's ops have.

python examples/formula_in_python.py
"""

import torch
from torch import Tensor

import opreg


@opreg.pointwise("mylib", domain={"eps": "> 0"})
def charbonnier_loss(input: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    """A difference that is smooth at 0."""
    return ((input - target) ** 2 + eps**2).sqrt()


@opreg.region("mylib", domain={"smooth": "> 0"})
def log_dice_loss(tp: Tensor, fp: Tensor, fn: Tensor, *, smooth: float = 1.0) -> Tensor:
    """Of logits (N, C, ...) and a class index a pixel: of the regions' true and false positives, false negatives."""
    return -torch.log((2 * tp + smooth) / (2 * tp + fp + fn + smooth))


x, t = torch.randn(1000, requires_grad=True), torch.randn(1000)
charbonnier_loss(x, t, eps=0.1).backward()  # the mean; reduction="none" and "sum" are there too
print(torch.compile(charbonnier_loss, fullgraph=True)(x, t), charbonnier_loss.Module(eps=0.1))
print(opreg.emit(charbonnier_loss))
print(log_dice_loss(torch.randn(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8))))
