"""The rules for losses and activations that people write by hand.

A pattern is written here once, in the shortest form; it is found in any form that is algebraically the same.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._evaluate import NEVER
from ._rule import Rule

lossreg = torch.ops.lossreg


Condition = Callable[[Mapping[str, Any]], str]


def same_shape(*names: str) -> Condition:
    """Tensors of one shape, so that none is broadcast."""

    def condition(arguments: Mapping[str, Any]) -> str:
        shapes = [arguments[n].shape for n in names]
        if None in shapes:
            return f"the shapes of {' and '.join(names)} are not known: give example_inputs"
        if len(set(shapes)) > 1:
            return f"{' and '.join(names)} are of different shapes: {', '.join(str(list(s)) for s in shapes)}"
        return ""

    return condition


def without_gradient(*names: str) -> Condition:
    """Tensors that do not require grad, because the op does not differentiate them."""

    def condition(arguments: Mapping[str, Any]) -> str:
        for name in names:
            if arguments[name].requires_grad is not False:
                may = "requires" if arguments[name].requires_grad else "may require"
                return f"{name} {may} grad, and the op does not differentiate it"
        return ""

    return condition


def floating(*names: str) -> Condition:
    def condition(arguments: Mapping[str, Any]) -> str:
        for name in names:
            dtype = arguments[name].dtype
            if dtype is None or not dtype.is_floating_point:
                return f"{name} is of dtype {dtype or 'unknown'}, and the op takes it for class indices"
        return ""

    return condition


def every(*conditions: Condition) -> Condition:
    return lambda arguments: next((why for c in conditions if (why := c(arguments))), "")


def never(why: str) -> Condition:
    """What a reader might take for the same, and is not."""
    return lambda arguments: why


# activations


def swish(input: Tensor, *, beta: float) -> Tensor:
    return input * torch.sigmoid(beta * input)


def swish_replacement(input: Tensor, *, beta: float) -> Tensor:
    result: Tensor = lossreg.swish(input, beta)
    return result


def hard_swish(input: Tensor) -> Tensor:
    return input * F.relu6(input + 3) / 6


def hard_swish_replacement(input: Tensor) -> Tensor:
    result: Tensor = lossreg.hard_swish(input)
    return result


def mish(input: Tensor) -> Tensor:
    return input * torch.tanh(F.softplus(input))


def mish_replacement(input: Tensor) -> Tensor:
    result: Tensor = lossreg.mish(input)
    return result


ACTIVATIONS = (
    Rule("swish, written out", swish, swish_replacement),
    Rule("hard_swish, written out", hard_swish, hard_swish_replacement),
    Rule("mish, written out", mish, mish_replacement),
)


# losses, one value an element or a row; a mean or a sum that follows is the op's reduction


def miss(input: Tensor, target: Tensor) -> Tensor:
    p = torch.sigmoid(input)
    return 1 - (p * target + (1 - p) * (1 - target))


def element(input: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(input, target, reduction="none")


def focal(input: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    weight = alpha * target + (1 - alpha) * (1 - target)
    return weight * miss(input, target) ** gamma * element(input, target)


def focal_replacement(input: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    result: Tensor = lossreg.focal_loss(input, target, alpha, gamma, "none")
    return result


def focal_domain(arguments: Mapping[str, Any]) -> str:
    if arguments["gamma"] < 0 or not 0 <= arguments.get("alpha", 0) <= 1:
        return "alpha or gamma is outside of focal_loss's domain"
    return ""


def unweighted_focal(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    return miss(input, target) ** gamma * element(input, target)


def unweighted_focal_replacement(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    result: Tensor = lossreg.focal_loss(input, target, -1.0, gamma, "none")
    return result


def hard_target_focal(input: Tensor, target: Tensor, *, gamma: float) -> Tensor:
    loss = element(input, target)
    return (1 - torch.exp(-loss)) ** gamma * loss


def hard_target_weighted_focal(input: Tensor, target: Tensor, *, alpha: float, gamma: float) -> Tensor:
    weight = alpha * target + (1 - alpha) * (1 - target)
    return weight * hard_target_focal(input, target, gamma=gamma)


SOFT = "exp(-cross entropy) is p_t for targets 0 and 1 only, and the target may be in between"


def softmax_focal(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int = -100) -> Tensor:
    loss = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    return (1 - torch.exp(-loss)) ** gamma * loss


def softmax_focal_replacement(input: Tensor, target: Tensor, *, gamma: float, ignore_index: int = -100) -> Tensor:
    result: Tensor = lossreg.softmax_focal_loss(input, target, None, gamma, ignore_index, "none")
    return result


def weighted_softmax_focal(input: Tensor, target: Tensor, *, alpha: float, gamma: float, ignore_index: int = -100) -> Tensor:
    return alpha * softmax_focal(input, target, gamma=gamma, ignore_index=ignore_index)


def weighted_softmax_focal_replacement(
    input: Tensor, target: Tensor, *, alpha: float, gamma: float, ignore_index: int = -100
) -> Tensor:
    return softmax_focal_replacement(input, target, gamma=gamma, ignore_index=ignore_index) * alpha


def binary_logits(input: Tensor, target: Tensor) -> Tensor:
    return F.softplus(input) - input * target


def binary_logits_replacement(input: Tensor, target: Tensor) -> Tensor:
    result: Tensor = lossreg.binary_cross_entropy_with_logits(input, target, None, None, "none")
    return result


# overlap of regions, one value a sample


def dice(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    p, t = torch.sigmoid(input).flatten(1), target.flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def dice_replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    result: Tensor = lossreg.dice_loss(input, target, 1.0, smooth, None, -100, False, "none")
    return result


def squared_dice(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    p, t = torch.sigmoid(input).flatten(1), target.flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / ((p**2).sum(1) + (t**2).sum(1) + smooth)


def squared_dice_replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    result: Tensor = lossreg.dice_loss(input, target, 2.0, smooth, None, -100, False, "none")
    return result


def batch_dice(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    p = torch.sigmoid(input)
    return 1 - (2 * (p * target).sum() + smooth) / (p.sum() + target.sum() + smooth)


def batch_dice_replacement(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    result: Tensor = lossreg.dice_loss(input, target, 1.0, smooth, None, -100, True)
    return result


def dice_of_probabilities(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    return 1 - (2 * (input * target).sum() + smooth) / (input.sum() + target.sum() + smooth)


def dice_of_probabilities_by_sample(input: Tensor, target: Tensor, *, smooth: float) -> Tensor:
    p, t = input.flatten(1), target.flatten(1)
    return 1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)


def of_two_dimensions(arguments: Mapping[str, Any]) -> str:
    shape = arguments["input"].shape
    return "" if shape is not None and len(shape) >= 2 else "input has one dimension, and dice_loss takes (N, C, ...)"


def positive_smooth(arguments: Mapping[str, Any]) -> str:
    return "" if arguments["smooth"] >= 0 else "smooth is negative"


DICE = every(positive_smooth, same_shape("input", "target"), of_two_dimensions, floating("target"))
PROBABILITIES = "its input is a probability, and dice_loss takes logits"


# boxes: corners x1, y1, x2, y2


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


def box_replacement(op: Any) -> Callable[..., Tensor]:
    def replacement(input: Tensor, target: Tensor, *, eps: float) -> Tensor:
        result: Tensor = op(input, target, "none", eps)
        return result

    return replacement


def positive_eps(arguments: Mapping[str, Any]) -> str:
    return "" if arguments["eps"] >= 0 else "eps is negative"


BOXES = every(positive_eps, same_shape("input", "target"))


# cross entropy


def smoothed(input: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    nll = F.cross_entropy(input, target, ignore_index=NEVER, reduction="none")
    return (1 - label_smoothing) * nll - label_smoothing * F.log_softmax(input, 1).mean(1)


def smoothed_replacement(input: Tensor, target: Tensor, *, label_smoothing: float) -> Tensor:
    result: Tensor = lossreg.cross_entropy(input, target, None, NEVER, "none", label_smoothing)
    return result


def smoothed_padding(input: Tensor, target: Tensor, *, label_smoothing: float, ignore_index: int = -100) -> Tensor:
    nll = F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")
    return (1 - label_smoothing) * nll - label_smoothing * F.log_softmax(input, 1).mean(1)


PADDING = "a target of ignore_index keeps its smoothing here, in cross_entropy it has none"


def picked(input: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(input, target, ignore_index=NEVER, reduction="none")


def picked_replacement(input: Tensor, target: Tensor) -> Tensor:
    result: Tensor = lossreg.cross_entropy(input, target, None, NEVER, "none")
    return result


LOSSES = (
    Rule("binary_cross_entropy_with_logits, written out", binary_logits, binary_logits_replacement, same_shape("input", "target")),
    Rule("focal_loss, alpha and p_t written out", focal, focal_replacement, every(focal_domain, same_shape("input", "target"))),
    Rule("focal_loss without alpha, p_t written out", unweighted_focal, unweighted_focal_replacement, every(focal_domain, same_shape("input", "target"))),
    Rule("focal_loss with p_t = exp(-cross entropy)", hard_target_focal, unweighted_focal_replacement, never(SOFT)),
    Rule("focal_loss with alpha and p_t = exp(-cross entropy)", hard_target_weighted_focal, focal_replacement, never(SOFT)),
    Rule("softmax_focal_loss, p = exp(-cross entropy)", softmax_focal, softmax_focal_replacement),
    Rule("softmax_focal_loss with a factor, p = exp(-cross entropy)", weighted_softmax_focal, weighted_softmax_focal_replacement),
    Rule("cross_entropy, log_softmax and gather", picked, picked_replacement),
    Rule("cross_entropy with label smoothing, written out", smoothed, smoothed_replacement),
    Rule("cross_entropy with label smoothing and padding, written out", smoothed_padding, smoothed_replacement, never(PADDING)),
    Rule("dice_loss by sample, written out", dice, dice_replacement, DICE),
    Rule("dice_loss with squares, written out", squared_dice, squared_dice_replacement, DICE),
    Rule("dice_loss of the batch, written out", batch_dice, batch_dice_replacement, DICE),
    Rule("dice_loss of probabilities", dice_of_probabilities, batch_dice_replacement, never(PROBABILITIES)),
    Rule("dice_loss of probabilities by sample", dice_of_probabilities_by_sample, dice_replacement, never(PROBABILITIES)),
    Rule("iou_loss, written out", iou_loss, box_replacement(lossreg.iou_loss), BOXES),
    Rule("giou_loss, written out", giou_loss, box_replacement(lossreg.giou_loss), BOXES),
    Rule("diou_loss, written out", diou_loss, box_replacement(lossreg.diou_loss), BOXES),
    Rule("ciou_loss, written out", ciou_loss, box_replacement(lossreg.ciou_loss), BOXES),
)

RULES = (*ACTIVATIONS, *LOSSES)
