"""Losses of whole distributions over a class dimension: what a student has yet to learn of a teacher, in several
measures, and a margin between the other classes."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

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
    log_q, log_p, axis = log_probabilities(input, target, temperature)
    return reduce(temperature**2 * divergence(log_p, log_q).sum(axis), reduction)


def log_probabilities(input: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor, int]:
    """Of the student and of the teacher, who is a constant; and the dimension of the classes."""
    axis = min(1, input.dim() - 1)
    log_p = F.log_softmax(target.detach() / temperature, axis)
    return F.log_softmax(input / temperature, axis), log_p, axis


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """What each class adds to KL(p‖q): nothing where its p is 0, however unlikely q says that it is."""
    p = log_p.exp()
    # within the product, or the gradient in p would be 0 times infinity there
    return p * torch.where(p == 0, 0.0, log_p - log_q)


def jsd_loss(input: Tensor, target: Tensor, beta: float, temperature: float, reduction: str) -> Tensor:
    """The generalised Jensen-Shannon divergence of a student's class probabilities from a teacher's.

    To distil language models: beta leads from the forward divergence, which makes the student cover all that the
    teacher may say, to the reverse one, which makes it say what the teacher is sure of.

    Args:
        input: the student's logits (C) or (N, C, d1 … dk), floating.
        target: the teacher's logits, of the same shape; constants, no gradient flows into the teacher.
        beta: the teacher's share of the mixture m, in [0, 1].
        temperature: what both are divided by, greater than 0. The loss is not multiplied by its square.
        reduction: ``"none"``, ``"mean"`` (over positions) or ``"sum"``.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that differ, a beta outside of [0, 1], a temperature that is not a finite number above 0.

    Formula:
        β·KL(p‖m) + (1 − β)·KL(q‖m), m = β·p + (1 − β)·q, p = softmax(t/T), q = softmax(x/T); KL(p‖q) for β = 0 and
        KL(q‖p) for β = 1

    Example:
        >>> student, teacher = torch.randn(16, 10, requires_grad=True), torch.randn(16, 10)  # logits, both
        >>> loss = opreg.functional.jsd_loss(student, teacher, beta=0.1, temperature=2.0)
    """
    log_q, log_p, axis = log_probabilities(input, target, temperature)
    if beta == 0:
        loss = divergence(log_p, log_q)
    elif beta == 1:
        loss = divergence(log_q, log_p)
    else:
        # log m, whose gradient is to be a number where both probabilities are 0
        nowhere = (log_p == -torch.inf) & (log_q == -torch.inf)
        a, b = (torch.where(nowhere, 0.0, log_r + math.log(r)) for log_r, r in ((log_p, beta), (log_q, 1 - beta)))
        log_m = torch.logaddexp(a, b)
        loss = beta * divergence(log_p, log_m) + (1 - beta) * divergence(log_q, log_m)
    return reduce(loss.sum(axis), reduction)


def total_variation_loss(input: Tensor, target: Tensor, temperature: float, reduction: str) -> Tensor:
    """The total variation distance of a student's class probabilities from a teacher's.

    To distil language models by a bounded distance, which no unlikely class makes large: half the absolute difference,
    the most that the two can differ by in the probability of any set of classes.

    Args:
        input: the student's logits (C) or (N, C, d1 … dk), floating.
        target: the teacher's logits, of the same shape; constants, no gradient flows into the teacher.
        temperature: what both are divided by, greater than 0.
        reduction: ``"none"``, ``"mean"`` (over positions) or ``"sum"``.

    Returns:
        0-d, or (N, d1 … dk) with reduction ``"none"``; in [0, 1].

    Raises:
        RuntimeError: shapes that differ, a temperature that is not a finite number above 0.

    Formula:
        ½·Σ_c |q_c − p_c|, p = softmax(t/T), q = softmax(x/T)

    Example:
        >>> student, teacher = torch.randn(16, 10, requires_grad=True), torch.randn(16, 10)  # logits, both
        >>> loss = opreg.functional.total_variation_loss(student, teacher)
    """
    log_q, log_p, axis = log_probabilities(input, target, temperature)
    return reduce(0.5 * (log_q.exp() - log_p.exp()).abs().sum(axis), reduction)


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
    # divided before it is summed: OpenVINO 2026.4 gives wrong numbers for a sum that is divided by a constant
    regulariser = (others.softmax(axis) * distance).sum(axis) - (distance / (classes - 1)).sum(axis)
    lead = torch.where(hit, x, 0.0).sum(axis) - others.logsumexp(axis)
    loss = torch.where(valid, -F.logsigmoid(lead) + lam / 2 * regulariser, 0.0)
    return loss.sum() / valid.sum() if reduction == "mean" else reduce(loss, reduction)


def pair_samples(make: Maker, *options: dict[str, Any]) -> Iterator[Sample]:
    """Calls of a loss of a student's logits and a teacher's, each with ``options`` too."""

    def pair(*shape: int, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        return make.normal(*shape, scale=scale), make.constant(make.normal(*shape, scale=scale))

    for reduction in REDUCTIONS:
        yield Sample(pair(5, 7), {"reduction": reduction})
        yield Sample(pair(2, 3, 4, scale=3), {"reduction": reduction, "temperature": 0.7}, "positions")
    yield Sample(pair(1, 3, 2, 3, 2), {"temperature": 5.0})
    yield Sample(pair(5), name="unbatched")
    yield Sample(pair(4, 1), name="one class")
    yield Sample(pair(3, 130), name="many classes")
    yield Sample(pair(0, 4), {"reduction": "sum"}, "empty")
    for each in options:
        yield Sample(pair(4, 6), {"temperature": 2.0, **each})
        yield Sample(pair(2, 3, 5), {"reduction": "sum", **each}, "positions")
    x = make.tensor([[1e4, 0.0, -1e4], [1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0], [-1e4, 0.0, 1e4]])
    t = make.constant(make.tensor([[-1e4, 0.0, 1e4], [0.0, 1e4, 1e4], [1e4, 9999.0, 9998.0], [-1e4, 0.0, 1e4]]))
    for each in ({}, *options):
        yield Sample((x, t), {"reduction": "none", **each}, name="extremes", smooth=False)


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


def pair_errors(op: str, make: Maker) -> Iterator[ErrorSample]:
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


def jsd_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from pair_errors("jsd_loss", make)
    x = make.normal(4, 3)
    yield from outside("jsd_loss", (x, make.constant(x)), "beta in \\[0, 1\\]", "beta", -0.1, 1.5)


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
        samples=pair_samples,
        errors=partial(pair_errors, "distillation_loss"),
        source="Hinton et al., arXiv 1503.02531",
        state=meta.per_group(4),
        detached=("target",),
    )
)
register(
    Op(
        "jsd_loss",
        reference=jsd_loss,
        shape=meta.classes("input", "target"),
        samples=lambda make: pair_samples(make, {"beta": 0.0}, {"beta": 1.0}, {"beta": 0.1}),
        errors=jsd_errors,
        source="Agarwal et al., On-policy distillation of language models, arXiv 2306.13649",
        state=meta.per_group(5),
        detached=("target",),
        module="JSDLoss",
    )
)
register(
    Op(
        "total_variation_loss",
        reference=total_variation_loss,
        shape=meta.classes("input", "target"),
        samples=pair_samples,
        errors=partial(pair_errors, "total_variation_loss"),
        source="the total variation distance of probabilities; Wen et al., f-divergence distillation, arXiv 2307.15190",
        state=meta.per_group(5),
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
