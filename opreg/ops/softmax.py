"""Losses of whole distributions over a class dimension: distillation, and a margin between the other classes."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, outside, reduce, refused
from ._rows import number_of_valid, row_errors, row_samples


def distillation_loss(input: Tensor, target: Tensor, temperature: float, reduction: str) -> Tensor:
    """Knowledge distillation: the divergence of a student's softened class probabilities from a teacher's.

    To train a small network by a large one, usually together with the cross entropy of the labels.

    Args:
        input: the student's logits (C) or (N, C, d1 … dk), floating.
        target: the teacher's logits, of the same shape; constants, no gradient flows into the teacher.
        temperature: what both are divided by, greater than 0; the higher, the more the unlikely classes count.
        reduction: ``"none"``, ``"mean"`` (over positions) or ``"sum"``.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that differ, a temperature that is not a finite number above 0.

    Formula:
        T²·Σ_c p_c·(log p_c − log q_c), p = softmax(t/T), q = softmax(x/T); T² keeps the size of the gradient whatever
        the temperature T

    Example:
        >>> student, teacher = torch.randn(16, 10, requires_grad=True), torch.randn(16, 10)  # logits, both
        >>> loss = opreg.functional.distillation_loss(student, teacher, temperature=4.0)
    """
    axis = min(1, input.dim() - 1)
    log_q = F.log_softmax(input / temperature, axis)
    log_p = F.log_softmax(target.detach() / temperature, axis)
    p = log_p.exp()
    divergence = torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(axis)
    return reduce(temperature**2 * divergence, reduction)


def large_margin_softmax_loss(input: Tensor, target: Tensor, lam: float, ignore_index: int, reduction: str) -> Tensor:
    """Cross entropy with a large-margin regulariser: the classes beside the target are to be alike.

    For classification where classes should be told apart by a margin in the logits.

    Args:
        input: logits (C) or (N, C, d1 … dk) of at least two classes, floating.
        target: class indices () or (N, d1 … dk), int64, int32 or uint8.
        lam: weight of the regulariser, at least 0.
        reduction: ``"none"``, ``"mean"`` (over positions that are not ignored) or ``"sum"``.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, fewer than two classes, lam that is not a finite number from 0 on; on the
            CPU a class index that is none. On a GPU that position's loss and gradient are NaN.

    Formula:
        −log softmax(x)_y + λ/2·Σ_{c≠y} (q_c − 1/(C − 1))·log q_c, q = softmax of the logits without the target's

    Example:
        >>> logits, target = torch.randn(16, 10, requires_grad=True), torch.randint(0, 10, (16,))  # class indices
        >>> loss = opreg.functional.large_margin_softmax_loss(logits, target, lam=0.3)
    """
    axis = min(1, input.dim() - 1)
    classes = input.shape[axis]
    target = target.reshape(input.shape[:axis] + input.shape[axis + 1 :]).long()
    valid = target != ignore_index
    every = torch.arange(classes, device=input.device).view([-1 if d == axis else 1 for d in range(input.dim())])
    hit = every == target.unsqueeze(axis)
    # an ignored position may hold anything; a class index out of range gives NaN, as it does on a GPU
    x = torch.where(valid.unsqueeze(axis), input, 0.0)
    x = x * torch.where(valid & ((target < 0) | (target >= classes)), torch.nan, 1.0).unsqueeze(axis)
    others = torch.where(hit, -torch.inf, x)
    # the loss does not depend on the scores' origin, but its digits do
    highest = others.detach().amax(axis, keepdim=True)
    x, others = x - highest, others - highest
    distance = torch.where(hit, 0.0, x)
    regulariser = (others.softmax(axis) * distance).sum(axis) - distance.sum(axis) / (classes - 1)
    lead = torch.where(hit, x, 0.0).sum(axis) - others.logsumexp(axis)
    loss = torch.where(valid, -F.logsigmoid(lead) + lam / 2 * regulariser, 0.0)
    return loss.sum() / valid.sum() if reduction == "mean" else reduce(loss, reduction)


def distillation_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(5, 7), make.constant(make.normal(5, 7))), {"reduction": reduction})
        logits = make.normal(2, 3, 4, scale=3), make.constant(make.normal(2, 3, 4, scale=3))
        yield Sample(logits, {"reduction": reduction, "temperature": 0.7}, "positions")
    yield Sample((make.normal(1, 3, 2, 3, 2), make.constant(make.normal(1, 3, 2, 3, 2))), {"temperature": 5.0})
    yield Sample((make.normal(5), make.constant(make.normal(5))), name="unbatched")
    yield Sample((make.normal(4, 1), make.constant(make.normal(4, 1))), name="one class")
    yield Sample((make.normal(3, 130), make.constant(make.normal(3, 130))), name="many classes")
    yield Sample((make.normal(0, 4), make.constant(make.normal(0, 4))), {"reduction": "sum"}, "empty")
    x = make.tensor([[1e4, 0.0, -1e4], [1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0], [-1e4, 0.0, 1e4]])
    t = make.constant(make.tensor([[-1e4, 0.0, 1e4], [0.0, 1e4, 1e4], [1e4, 9999.0, 9998.0], [-1e4, 0.0, 1e4]]))
    yield Sample((x, t), {"reduction": "none"}, name="extremes", smooth=False)


def large_margin_samples(make: Maker) -> Iterator[Sample]:
    yield from (sample for sample in row_samples(make, make.normal) if sample.name != "one class")
    for lam in (0.0, 1.5):
        x, t = make.normal(3, 5, 4, scale=3), make.index(5, 3, 4, ignore=-100)
        yield Sample((x, t), {"lam": lam}, "ignored")
    yield Sample((make.normal(5), make.index(5, 1)), name="unbatched, one target")
    yield Sample((make.normal(4, 2), make.index(2, 4)), name="two classes")
    x = make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0], [40.0, 0.0, 1.0]])
    t = torch.tensor([0, 0, 1, 0, 0], device=make.device)
    yield Sample((x, t), {"reduction": "none"}, name="extremes", smooth=False)


def distillation_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "distillation_loss"
    x = make.normal(4, 3)
    t = make.constant(x)
    yield from refused(op, x, t)
    message = f"{op}: expected target of the shape of input, got \\[4, 3\\] and \\[1, 3\\]"
    yield ErrorSample((x, make.constant(make.normal(1, 3))), message)
    message = f"{op}: expected input of shape \\(C\\) or \\(N, C, ...\\), got \\[\\]"
    yield ErrorSample((make.normal(), make.constant(make.normal())), message)
    empty = make.normal(4, 0)
    yield ErrorSample((empty, make.constant(empty)), f"{op}: expected input of at least one class, got \\[4, 0\\]")
    yield from outside(op, (x, t), "a finite temperature > 0", "temperature", 0.0, -1.0, math.inf)


def large_margin_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "large_margin_softmax_loss", make.normal(4, 3), make.index(3, 4)
    yield from row_errors(op, make, least="two classes")
    message = f"{op}: expected target of dtype int64, int32 or uint8, got float64"
    yield ErrorSample((x, make.constant(make.uniform(4))), message)
    yield from outside(op, (x, t), "a finite lam >= 0", "lam", -0.1, math.inf)


register(
    Op(
        "distillation_loss",
        reference=distillation_loss,
        shape=meta.classes("input", "target"),
        samples=distillation_samples,
        errors=distillation_errors,
        source="Hinton et al., arXiv 1503.02531",
        state=meta.per_group(4),
        detached=("target",),
    )
)
register(
    Op(
        "large_margin_softmax_loss",
        reference=large_margin_softmax_loss,
        shape=meta.classes("input", target="target", least=2),
        samples=large_margin_samples,
        errors=large_margin_errors,
        source="Kobayashi, Large Margin in Softmax Cross-Entropy Loss, BMVC 2019",
        indices=("target",),
        count=number_of_valid,
        state=meta.per_group(4),
    )
)
