"""Overlap of boxes (x1, y1, x2, y2), one value a pair."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._rule import Rule
from ._conditions import at_least, every, same_shape

lossreg = torch.ops.lossreg


def corners(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def area(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = corners(boxes)
    return (x2 - x1) * (y2 - y1)


def overlap_and_union(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(input), corners(target)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1)).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1)).clamp(min=0)
    overlap = width * height
    return overlap, area(input) + area(target) - overlap


def hull(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(input), corners(target)
    return torch.maximum(x2, u2) - torch.minimum(x1, u1), torch.maximum(y2, v2) - torch.minimum(y1, v1)


def iou(input: Tensor, target: Tensor, eps: float) -> Tensor:
    overlap, union = overlap_and_union(input, target)
    return overlap / (union + eps)


def iou_loss(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
    return 1 - iou(input, target, eps)


def giou_loss(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
    width, height = hull(input, target)
    enclosing = width * height
    _, union = overlap_and_union(input, target)
    return 1 - iou(input, target, eps) + (enclosing - union) / (enclosing + eps)


def diou_loss(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(input), corners(target)
    width, height = hull(input, target)
    apart = ((x1 + x2 - u1 - u2) / 2) ** 2 + ((y1 + y2 - v1 - v2) / 2) ** 2
    return 1 - iou(input, target, eps) + apart / (width**2 + height**2 + eps)


def ciou_loss(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
    (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(input), corners(target)
    turn = torch.atan((u2 - u1) / (v2 - v1)) - torch.atan((x2 - x1) / (y2 - y1))
    v = 4 / math.pi**2 * turn**2
    alpha = (v / (1 - iou(input, target, eps) + v + eps)).detach()
    return diou_loss(input, target, eps=eps) + alpha * v


def rule(pattern: Callable[..., Tensor], op: Any) -> Rule:
    return Rule(
        f"{pattern.__name__}, written out",
        pattern,
        lambda input, target, *, eps: op(input, target, "none", eps),
        every(at_least(0, "eps"), same_shape("input", "target")),
    )


RULES = (
    rule(iou_loss, lossreg.iou_loss),
    rule(giou_loss, lossreg.giou_loss),
    rule(diou_loss, lossreg.diou_loss),
    rule(ciou_loss, lossreg.ciou_loss),
)
