"""Overlap of boxes (x1, y1, x2, y2), one value a pair."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .._rule import Rule
from ._objections import Condition, every, never, same_shape

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


def ciou_of(angle: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def ciou_loss(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
        (x1, y1, x2, y2), (u1, v1, u2, v2) = corners(input), corners(target)
        turn = angle(u2 - u1, v2 - v1) - angle(x2 - x1, y2 - y1)
        v = 4 / math.pi**2 * turn**2
        alpha = (v / (1 - iou(input, target, eps) + v + eps)).detach()
        return diou_loss(input, target, eps=eps) + alpha * v

    return ciou_loss


# Boxes come from a network as well, and then they may have no area, or x2 < x1.
ANGLE = never("atan(w / h) is the op's atan2(w, h) for boxes with x2 >= x1 and y2 > y1 only, and these may be others")


def positive_eps(arguments: Mapping[str, Any]) -> str:
    eps = arguments["eps"]
    return "" if eps > 0 else f"eps is {eps}, and boxes without an area give NaN, of which the op makes a number"


def rule(pattern: Callable[..., Tensor], op: Any, name: str = "", *conditions: Condition) -> Rule:
    return Rule(
        name or f"{pattern.__name__}, written out",
        pattern,
        lambda input, target, *, eps: op(input, target, "none", eps),
        every(positive_eps, same_shape("input", "target"), *conditions),
    )


RULES = (
    rule(iou_loss, lossreg.iou_loss),
    rule(giou_loss, lossreg.giou_loss),
    rule(diou_loss, lossreg.diou_loss),
    rule(ciou_of(torch.atan2), lossreg.ciou_loss),
    rule(ciou_of(lambda w, h: torch.atan(w / h)), lossreg.ciou_loss, "ciou_loss of atan(w / h)", ANGLE),
)
