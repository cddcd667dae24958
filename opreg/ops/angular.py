"""Losses over cosines, which give the target's angle a margin: ArcFace and the additive margin softmax."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import outside
from ._rows import number_of_valid, row_errors, row_samples
from .categorical import along_classes, class_axis, plain_cross_entropy


def with_target(cosine: Tensor, target: Tensor, own: Tensor) -> Tensor:
    """``cosine``, but at the target classes the values of ``own``."""
    axis = class_axis(cosine)
    target = target.reshape(()) if cosine.dim() == 1 else target
    classes = torch.arange(cosine.shape[axis], device=cosine.device)
    return torch.where(target.unsqueeze(axis) == along_classes(classes, cosine), own, cosine)


def with_margin(cosine: Tensor, sine: Tensor, margin: float, cos_margin: Any, sin_margin: Any) -> Tensor:
    """The cosine of an angle and its margin together, and a straight line where that would rise again."""
    hard = cosine * cos_margin - sine * sin_margin
    easy = cosine - margin * sin_margin
    return torch.where(cosine > -cos_margin, hard, easy)


def arcface_loss(
    cosine: Tensor, target: Tensor, margin: float, scale: float, ignore_index: int, reduction: str
) -> Tensor:
    """Cross entropy over cosines whose target class must win by an angle.

    For embeddings, as of faces: it draws the samples of a class together further than telling the classes apart needs.

    Args:
        cosine: cosines of the angles between embedding and class centres, in [−1, 1]; (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        margin: the angle m, in [0, π].
        scale: the factor s of all logits, > 0.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``cosine``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, an option is outside of its range, or on the CPU a class index is
            (on a GPU its position is NaN). Cosines beyond [−1, 1] are no error; on the CPU a warning says so once.

    Formula:
        cross entropy of s·cos θ_c, but of s·cos(θ_y + m) for the target class; where that would rise again, beyond
        cos θ_y = −cos m, of s·(cos θ_y − m·sin m). sin θ = √max(1 − cos² θ, 1e-7)

    Example:
        >>> features, centres = torch.randn(32, 512), torch.randn(1000, 512)
        >>> cosine = F.normalize(features) @ F.normalize(centres).T
        >>> loss = opreg.functional.arcface_loss(cosine, torch.randint(0, 1000, (32,)))
    """
    sine = ((1 - cosine) * (1 + cosine)).clamp(min=1e-7).sqrt()
    own = with_margin(cosine, sine, margin, math.cos(margin), math.sin(margin))
    return plain_cross_entropy(scale * with_target(cosine, target, own), target, None, ignore_index, reduction, 0.0)


def amsoftmax_loss(
    cosine: Tensor, target: Tensor, margin: float, scale: float, ignore_index: int, reduction: str
) -> Tensor:
    """Cross entropy over cosines whose target class must win by a margin; also known as CosFace.

    For embeddings, as of faces or speakers; simpler than ArcFace, with the margin in the cosine.

    Args:
        cosine: cosines of the angles between embedding and class centres, in [−1, 1]; (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        margin: m, >= 0.
        scale: the factor s of all logits, > 0.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``cosine``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, an option is outside of its range, or on the CPU a class index is
            (on a GPU its position is NaN). Cosines beyond [−1, 1] are no error; on the CPU a warning says so once.

    Formula:
        cross entropy of s·(cos θ_c − m·[c = y])

    Example:
        >>> features, centres = torch.randn(32, 512), torch.randn(1000, 512)
        >>> cosine = F.normalize(features) @ F.normalize(centres).T
        >>> loss = opreg.functional.amsoftmax_loss(cosine, torch.randint(0, 1000, (32,)))
    """
    logits = scale * with_target(cosine, target, cosine - margin)
    return plain_cross_entropy(logits, target, None, ignore_index, reduction, 0.0)


def cosines(make: Maker, *shape: int) -> Tensor:
    return make.uniform(*shape, low=-0.98, high=0.98)


def arcface_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, lambda *shape: cosines(make, *shape))
    for margin in (0.0, 1.3, math.pi):
        yield Sample((cosines(make, 6, 4), make.index(4, 6)), {"margin": margin, "scale": 8.0, "reduction": "none"})
    yield from kinks(make)


def amsoftmax_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, lambda *shape: cosines(make, *shape))
    yield Sample((cosines(make, 6, 4), make.index(4, 6)), {"margin": 0.0, "scale": 8.0, "reduction": "none"})
    yield from kinks(make)


def kinks(make: Maker) -> Iterator[Sample]:
    """Angles of 0, π/2 and π, and numbers that are no cosine."""
    x = make.tensor([[1.0, 0.5, -1.0], [-1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1e4, -1e4, 0.0]])
    for classes in ([0, 1, 2, 0, 1], [2, 0, 1, 1, 0]):
        target = torch.tensor(classes, device=make.device)
        yield Sample((x, target), {"scale": 2.0, "reduction": "none"}, "kinks", smooth=False)


def errors(op: str, margin: str, beyond: Sequence[float], make: Maker) -> Iterator[ErrorSample]:
    yield from row_errors(op, make, input="cosine")
    call = make.normal(4, 3), make.index(3, 4)
    yield from outside(op, call, "finite scale > 0", "scale", 0.0, -1.0, math.inf)
    yield from outside(op, call, margin, "margin", *beyond)


register(
    Op(
        "arcface_loss",
        reference=arcface_loss,
        shape=meta.rows("cosine", "target"),
        samples=arcface_samples,
        errors=partial(errors, "arcface_loss", "margin in \\[0, pi\\]", (-0.1, 3.2)),
        source="Deng et al., ArcFace, arXiv 1801.07698",
        module="ArcFaceLoss",
        indices=("target",),
        count=number_of_valid,
        state=meta.per_row(2),
    )
)
register(
    Op(
        "amsoftmax_loss",
        reference=amsoftmax_loss,
        shape=meta.rows("cosine", "target"),
        samples=amsoftmax_samples,
        errors=partial(errors, "amsoftmax_loss", "finite margin >= 0", (-0.1, math.inf)),
        source="Wang et al., Additive margin softmax, arXiv 1801.05599",
        module="AMSoftmaxLoss",
        indices=("target",),
        count=number_of_valid,
        state=meta.per_row(2),
    )
)
