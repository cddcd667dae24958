"""Overlap of boxes (x1, y1, x2, y2), one value a pair."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...ops.box import Axis, axes, complete_iou, squared_distance, united
from ...registry import get
from .._rule import NearMiss, Rule
from ._objections import Domain, between, first_of, unless_same_shape


def unless_positive_eps(arguments: Mapping[str, Any]) -> str:
    eps = arguments["eps"]
    return "" if eps > 0 else f"eps is {eps}, and boxes without an area give NaN, of which the op makes a number"


def unless_elements(arguments: Mapping[str, Any]) -> str:
    if arguments["reduction"] == "mean" and 0 in (arguments["input"].shape or ()):
        return "the mean of no boxes is 0 here, and NaN in the op"
    return ""


def unless_default_eps(arguments: Mapping[str, Any]) -> str:
    eps = arguments["eps"]
    return "" if eps == 1e-7 else f"eps is {eps}, and its distance and its overlap are those for 1e-7"


# The eps of a box loss keeps a quotient of areas from 0 / 0. A program's larger numbers are something else, and each
# that is tried takes the rewrite up to three milliseconds.
NUMBERS = {"eps": between(0.0, 0.1)}


def rule(op: str, definition: Callable[..., Tensor] | None = None) -> Rule:
    objection = first_of(unless_positive_eps, unless_same_shape("input", "target"))
    found = Rule.of(get(op), objection, definition=definition, defaults={"eps": 0.0}, reduction="none")
    return replace(found, numbers=NUMBERS)


def ciou_of(angle: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """As people write it: the op's own angle of a box is defined for a box without an area too."""
    return rule("ciou_loss", lambda input, target, reduction, eps: complete_iou(*axes(input, target), eps, angle))


# boxes come from a network too, and then they may have no area, or x2 < x1
UNORDERED = "atan(w / h) is the op's atan2(w, h) for boxes with x2 >= x1 and y2 > y1 only, and these may be others"


def ordered(*boxes: Tensor) -> bool:
    return all(bool((b[..., 2:] > b[..., :2]).all()) for b in boxes)


OF_LIBRARY = first_of(unless_positive_eps, unless_same_shape("input", "target"), unless_elements)
LIBRARIES = {
    "giou_loss": OF_LIBRARY,
    "diou_loss": OF_LIBRARY,
    "ciou_loss": first_of(OF_LIBRARY, unless_default_eps),
}
DOMAINS = {"ciou_loss": Domain(ordered, UNORDERED)}


# As detection libraries write them: with sides of the hull that are never negative, and heights that are never 0.
def clamped_hull(x: Axis, y: Axis) -> tuple[Axis, Axis]:
    return x._replace(hull=x.hull.clamp(min=0)), y._replace(hull=y.hull.clamp(min=0))


def giou_of_clamped_hull(input: Tensor, target: Tensor, *, eps: float = 0.0) -> Tensor:
    x, y = clamped_hull(*axes(input, target))
    hull = x.hull * y.hull
    union = united(x, y)
    return 1 - (x.overlap * y.overlap / (union + eps) - (hull - union) / (hull + eps))


def diou_of_clamped_hull(input: Tensor, target: Tensor, *, eps: float) -> Tensor:
    x, y = clamped_hull(*axes(input, target))
    overlap = x.overlap * y.overlap / (united(x, y) + eps)
    return 1 - overlap + squared_distance(x, y) / (x.hull**2 + y.hull**2 + eps)


def ciou_of_quotients(input: Tensor, target: Tensor, *, eps: float) -> Tensor:
    x, y = axes(input, target)
    y = y._replace(size=y.size + eps, target_size=y.target_size + eps)
    overlap = x.overlap * y.overlap / (united(x, y) + eps)
    turn = torch.atan(x.target_size / y.target_size) - torch.atan(x.size / y.size)
    v = 4 / math.pi**2 * turn**2
    apart = squared_distance(x, y) / (x.hull**2 + y.hull**2 + eps)
    return 1 - (overlap - (apart + v * (v / (v - overlap + (1 + eps))).detach()))


CLAMPED = (
    "the sides of the hull are clamped at 0, which changes them where a box has x2 < x1 or y2 < y1: without that clamp "
    "it is the op"
)

RULES = (
    rule("iou_loss"),
    rule("giou_loss"),
    rule("diou_loss"),
    ciou_of(torch.atan2),
    NearMiss(
        "ciou_loss of atan(w / h)",
        ciou_of(lambda w, h: torch.atan(w / h)).pattern,
        UNORDERED,
        numbers=NUMBERS,
    ),
    NearMiss("giou_loss with a clamped hull", giou_of_clamped_hull, CLAMPED, numbers=NUMBERS),
    NearMiss("diou_loss with a clamped hull", diou_of_clamped_hull, CLAMPED, numbers=NUMBERS),
    NearMiss(
        "ciou_loss with eps in the heights",
        ciou_of_quotients,
        "eps is added to heights, and atan(w / h) is the op's atan2(w, h) for boxes with x2 >= x1 and y2 > y1 only: "
        "call ciou_loss",
        numbers=NUMBERS,
    ),
)
