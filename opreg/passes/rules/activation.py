"""Activations."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._rule import Rule

lossreg = torch.ops.lossreg


def swish(input: Tensor, *, beta: float) -> Tensor:
    return input * torch.sigmoid(beta * input)


def hard_swish(input: Tensor) -> Tensor:
    return input * F.relu6(input + 3) / 6


def mish(input: Tensor) -> Tensor:
    return input * torch.tanh(F.softplus(input))


RULES = (
    Rule("swish, written out", swish, lambda input, *, beta: lossreg.swish(input, beta)),
    Rule("hard_swish, written out", hard_swish, lambda input: lossreg.hard_swish(input)),
    Rule("mish, written out", mish, lambda input: lossreg.mish(input)),
)
