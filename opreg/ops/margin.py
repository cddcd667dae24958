"""Losses of a margin between two kinds, told apart by a target of 1 and −1."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors, native, outside, reduce


def soft_margin_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Logistic loss of a score and a target of 1 or −1.

    For binary classification with signs for labels. Finite where exp(−t·x) is not.

    Args:
        input: scores, any shape.
        target: 1 or −1, of a shape that expands to that of ``input``.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target that does not expand to the shape of ``input``.

    Formula:
        log(1 + e^(−t·x))

    Example:
        >>> input = torch.randn(4, requires_grad=True)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # signs, not 0 and 1
        >>> opreg.functional.soft_margin_loss(input, target).backward()
    """
    # written out: torch's function overflows where −target·input is large
    return reduce(-F.logsigmoid(target * input), reduction)


def hinge_embedding_loss(input: Tensor, target: Tensor, margin: float, reduction: str) -> Tensor:
    """Of similar pairs the distance, of dissimilar ones what is missing to a margin.

    For embeddings learnt from pairs; the input is a distance.

    Args:
        input: distances, any shape.
        target: 1 for similar, −1 for dissimilar, of a shape that broadcasts with that of ``input``.
        margin: how far dissimilar pairs shall be apart.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast; a margin that is NaN.

    Formula:
        x where t = 1, max(0, margin − x) where t = −1; for another t the sum of both

    Example:
        >>> distance = torch.rand(4, requires_grad=True)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # 1: similar
        >>> opreg.functional.hinge_embedding_loss(distance, target).backward()
    """
    # written out, as is the next one: torch's function clamps in place, which run_decompositions refuses
    similar = torch.where(target != -1, input, 0.0)
    dissimilar = torch.where(target != 1, (margin - input).clamp(min=0), 0.0)
    return reduce(similar + dissimilar, reduction)


def margin_ranking_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float, reduction: str) -> Tensor:
    """What is missing for the first score to lead the second by a margin, or the other way round.

    For learning to rank from pairs.

    Args:
        input1: scores, any shape.
        input2: scores, of a shape that broadcasts with that of ``input1``.
        target: 1 where ``input1`` shall be the larger, −1 where ``input2``; of the same number of dimensions.
        margin: by how much.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, or differ in the number of dimensions; a margin that is NaN.

    Formula:
        max(0, margin − t·(x₁ − x₂))

    Example:
        >>> first, second = torch.randn(4, requires_grad=True), torch.randn(4)
        >>> target = torch.tensor([1.0, -1.0, -1.0, 1.0])  # 1: the first shall rank higher
        >>> opreg.functional.margin_ranking_loss(first, second, target, margin=0.1).backward()
    """
    return reduce((margin - target * (input1 - input2)).clamp(min=0), reduction)


def soft_margin_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), make.signs(3, 5)), {"reduction": reduction})
    yield Sample((make.normal(3, 4), make.signs(4)), name="broadcast")
    yield Sample((make.normal(), make.signs()))
    yield Sample((make.normal(0, 3), make.signs(0, 3)), {"reduction": "sum"})
    x = make.tensor([0.0, 80.0, -80.0, 1e4, -1e4])
    yield Sample((x, make.constant(torch.ones_like(x))), {"reduction": "none"}, name="extremes", smooth=False)


def hinge_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), make.signs(3, 5)), {"reduction": reduction})
        yield Sample((make.normal(3, 1), make.signs(4)), {"reduction": reduction, "margin": 0.3}, "broadcast")
    yield Sample((make.normal(), make.signs()), {"margin": -0.5})
    yield Sample((make.normal(0, 3), make.signs(0, 3)), {"reduction": "sum"})
    x = make.tensor([1.0, 1.0, 0.0, 2.0, -1e4, 1e4])
    t = make.constant(make.tensor([-1.0, 1.0, -1.0, 0.5, -1.0, 1.0]))
    yield Sample((x, t), {"reduction": "none"}, name="kinks", smooth=False)


def ranking_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        x1, x2, t = make.normal(3, 5), make.normal(3, 5), make.signs(3, 5)
        yield Sample((x1, x2, t), {"reduction": reduction, "margin": 0.2})
        yield Sample((make.normal(3, 1), make.normal(1, 4), make.signs(3, 4)), {"reduction": reduction}, "broadcast")
    yield Sample((make.normal(4), make.normal(4), make.normal(4)), name="target with gradient")
    yield Sample((make.normal(), make.normal(), make.signs()))
    yield Sample((make.normal(0, 3), make.normal(0, 3), make.signs(0, 3)), {"reduction": "sum"})
    x = make.tensor([0.0, 1.0, 1e4, -1e4])
    zero, one = make.constant(torch.zeros_like(x)), make.constant(torch.ones_like(x))
    yield Sample((x, zero, one), {"reduction": "none", "margin": 1.0}, name="kinks", smooth=False)


def hinge_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "hinge_embedding_loss"
    yield from loss_errors(op, make)
    yield from outside(op, (make.normal(3), make.signs(3)), "margin that is a number", "margin")


def ranking_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "margin_ranking_loss"
    x, t = make.normal(2, 3), make.signs(2, 3)
    yield from loss_errors(op, make, t, input="input1")
    yield ErrorSample((x, x, make.signs(3)), f"{op}: expected target of the rank of input1, got \\[2, 3\\] and \\[3\\]")
    yield from outside(op, (x, x, t), "margin that is a number", "margin")


register(
    native(
        F.soft_margin_loss,
        reference=soft_margin_loss,
        shape=meta.typed_by("input", rule=meta.expanding("target", to="input")),
        samples=soft_margin_samples,
        errors=partial(loss_errors, "soft_margin_loss"),
    )
)
register(
    native(
        F.hinge_embedding_loss,
        reference=hinge_embedding_loss,
        shape=meta.typed_by("input", rule=meta.broadcast("input", "target")),
        samples=hinge_samples,
        errors=hinge_errors,
    )
)
register(
    native(
        F.margin_ranking_loss,
        reference=margin_ranking_loss,
        shape=meta.broadcast("input1", "input2", "target", same_rank=True),
        samples=ranking_samples,
        errors=ranking_errors,
    )
)
