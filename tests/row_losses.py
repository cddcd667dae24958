"""The row losses once more, in float64 and written otherwise than their references: one-hot targets, angles, sums."""

import torch
import torch.nn.functional as F
from torch import Tensor

import opreg

# the losses of class indices, with options under which each position's loss depends on its own row alone; what follows
# a comma tells two calls of an op apart
OPTIONS = {
    "nll_loss": {},
    "cross_entropy": {},
    "softmax_focal_loss": {},
    "pc_softmax_cross_entropy": {},
    "poly1_cross_entropy": {"epsilon": 1.5},
    "arcface_loss": {"scale": 8.0},
    "amsoftmax_loss": {"scale": 8.0},
    "ohem_cross_entropy": {"thresh": 1.0},
    "cross_entropy, softcap": {"softcap": 2.0},
    "cross_entropy, z_loss": {"z_loss": 0.1},
    "cross_entropy, softcap and z_loss": {"softcap": 2.0, "z_loss": 0.1},
}
NAMES = list(OPTIONS)
ANGULAR = ("arcface_loss", "amsoftmax_loss")


def prior_of(classes: int) -> Tensor:
    weights = 1 + torch.arange(classes, dtype=torch.float64) % 7
    return weights / weights.sum()


def arguments(name: str, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
    """Input and target, and the class prior where there is one."""
    classes = x.shape[min(1, x.dim() - 1)]
    prior = (prior_of(classes).to(x.device, x.dtype),) if name == "pc_softmax_cross_entropy" else ()
    return x, t, *prior


def op_of(name: str) -> opreg.Op:
    return opreg.get(name.split(",")[0])


def call(name: str, x: Tensor, t: Tensor, **options: object) -> Tensor:
    result: Tensor = op_of(name).value(*arguments(name, x, t), **OPTIONS[name], **options)
    return result


def oracle(name: str, x: Tensor, t: Tensor) -> Tensor:
    """Of scores (R, C) and valid classes (R): the loss of each row."""
    x = x.double()
    hot = F.one_hot(t, x.shape[1]).double()
    if name == "nll_loss":
        return -(hot * x).sum(1)
    if name == "arcface_loss":
        theta, m = x.acos(), 0.5
        wide = torch.where(theta < torch.pi - m, (theta + m).cos(), x - m * torch.tensor(m).double().sin())
        x = 8 * (hot * wide + (1 - hot) * x)
    if name == "amsoftmax_loss":
        x = 8 * (x - 0.35 * hot)
    if "softcap" in name:
        e = (x / -1).exp()  # of 2 x / c
        x = 2 * (1 - e) / (1 + e)
    top = x.max(1, keepdim=True).values
    weights = prior_of(x.shape[1]).to(x.device) if name == "pc_softmax_cross_entropy" else torch.ones_like(x[0])
    others = (weights * (1 - hot) * (x - top).exp()).sum(1)
    own = (weights * hot * (x - top).exp()).sum(1)
    if name == "pc_softmax_cross_entropy":
        return (own + others).log() - (hot * (x - top)).sum(1)
    odds = others / own  # (1 - p) / p
    if "z_loss" in name:
        return odds.log1p() + 0.1 * ((own + others).log() + top.squeeze(1)) ** 2
    if name == "poly1_cross_entropy":
        return odds.log1p() + 1.5 * odds / (1 + odds)
    return odds.log1p() * ((odds / (1 + odds)) ** 2 if name == "softmax_focal_loss" else 1)
