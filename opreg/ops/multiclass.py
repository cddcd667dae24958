"""Margin losses over the classes of a row: one target class, a list of them, a target for every class."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, int64_target, native, outside, reduce, refused


def multi_margin_loss(
    input: Tensor, target: Tensor, p: int, margin: float, weight: Tensor | None, reduction: str
) -> Tensor:
    """Multi-class margin loss: the score of the target class should lead every other one by a margin.

    The hinge loss of a multi-class support vector machine: what leads by the margin has no gradient.

    Args:
        input: scores of shape (C) or (N, C).
        target: class indices in [0, C) of shape () or (N), of dtype int64, int32 or uint8.
        p: the power of the hinge, 1 or 2.
        margin: the lead that costs nothing.
        weight: one factor a class, of shape (C); a row takes that of its target class.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit; p other than 1 and 2; on the CPU a class index outside [0, C), which gives
            NaN on a GPU.

    Formula:
        Σ_{c≠y} w_y·max(0, margin − x_y + x_c)^p/C; unlike torch's, NaN where a score is

    Example:
        >>> target = torch.tensor([2, 0])  # one class index a row
        >>> opreg.functional.multi_margin_loss(torch.randn(2, 5, requires_grad=True), target).backward()
    """
    scores = input.reshape(-1, input.shape[-1] if input.dim() else 1)
    classes = scores.shape[1]
    y = target.long().reshape(-1, 1)
    gaps = F.relu(margin - scores.gather(1, y) + scores) ** p
    others = torch.where(torch.arange(classes, device=input.device) == y, 0.0, gaps)
    if weight is not None:
        others = others * weight[y]
    return reduce((others.sum(1) / classes).reshape(target.shape), reduction)


def multilabel_margin_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Multi-label margin loss: the score of every target class should lead that of every other class by 1.

    For rows that have several classes at once, given as lists.

    Args:
        input: scores of shape (C) or (N, C).
        target: of the shape of ``input`` and dtype int64, int32 or uint8: each row lists its class indices in [0, C)
            and then, if there is room, −1; what follows the first −1 is ignored.

    Returns:
        0-d, or (N) with reduction ``"none"`` of (N, C).

    Raises:
        RuntimeError: shapes that do not fit; on the CPU a listed class index outside [0, C), which gives NaN on a GPU.

    Formula:
        Σ_{y listed} Σ_{c not listed} max(0, 1 − x_y + x_c)/C, a class that is listed twice counted twice; unlike
        torch's, NaN where a score is

    Example:
        >>> target = torch.tensor([[3, 0, -1, -1, -1], [1, -1, -1, -1, -1]])  # classes 3 and 0; class 1
        >>> opreg.functional.multilabel_margin_loss(torch.randn(2, 5, requires_grad=True), target).backward()
    """
    scores = input.reshape(-1, input.shape[-1] if input.dim() else 1)
    classes = scores.shape[1]
    lists = target.long().reshape(scores.shape)
    listed = (lists == -1).long().cumsum(1) == 0
    y = torch.where(listed, lists, 0)
    is_class = torch.arange(classes, device=input.device) == y.unsqueeze(2)
    is_target = (is_class & listed.unsqueeze(2)).any(1, keepdim=True)
    gaps = F.relu(1 - scores.gather(1, y).unsqueeze(2) + scores.unsqueeze(1))
    # divided before it is summed: OpenVINO 2026.4 gives wrong numbers for a sum that is divided by a constant
    loss = torch.where(listed.unsqueeze(2) & ~is_target, gaps / classes, 0.0).sum((1, 2))
    return reduce(loss.reshape(input.shape[:-1]), reduction)


def multilabel_soft_margin_loss(input: Tensor, target: Tensor, weight: Tensor | None, reduction: str) -> Tensor:
    """Multi-label soft margin loss: binary cross entropy with logits of every class, averaged over the classes.

    For rows that have several classes at once, given as a 0 or 1 for each class.

    Args:
        input: logits of shape (..., C).
        target: of a shape that broadcasts with that of ``input``, in [0, 1]: 1 for the classes of the row.
        weight: of a shape that broadcasts with both: a factor for each class, (C), or for each logit.

    Returns:
        0-d, or of the broadcast shape without the dimension C with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast; an input without dimensions.

    Formula:
        −Σ_c w_c·(t_c·log σ(x_c) + (1 − t_c)·log σ(−x_c))/C

    Example:
        >>> target = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])  # classes 0 and 3; class 1
        >>> opreg.functional.multilabel_soft_margin_loss(torch.randn(2, 4, requires_grad=True), target).backward()
    """
    loss = -(target * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input))
    if weight is not None:
        loss = loss * weight
    return reduce(loss.sum(input.dim() - 1) / input.shape[-1], reduction)


def multi_margin_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(5, 7), make.index(7, 5)), {"reduction": reduction})
        weight = make.constant(make.uniform(4, low=0.1))
        yield Sample((make.normal(3, 4), make.index(4, 3), 2, 0.5, weight), {"reduction": reduction}, "squared, weight")
    yield Sample((make.normal(3, 6), make.index(6, 3, dtype=torch.int32), 1, 2.0), name="int32")
    yield Sample((make.normal(3, 6), make.index(6, 3, dtype=torch.uint8)), {"p": 2, "margin": -0.25}, "uint8")
    yield Sample((make.normal(5), make.index(5)), {"reduction": "none"}, "unbatched")
    yield Sample((make.normal(1, 5), make.index(5, 1).reshape(()), 2), {"reduction": "none"}, "one row")
    yield Sample((make.normal(4, 1), make.index(1, 4)), name="one class")
    yield Sample((make.normal(), make.index(1)), name="no dimension")
    yield Sample((make.normal(3, 140), make.index(140, 3)), name="many classes")
    yield Sample((make.normal(0, 4), make.index(4, 0)), {"reduction": "sum"}, "empty")
    # at the hinge: margin − x_y + x_c = 0
    x, t = make.tensor([[2.0, 1.0, 3.0], [0.0, 0.0, 1.0]]), torch.tensor([2, 2], device=make.device)
    yield Sample((x, t), name="kinks", smooth=False)
    x = make.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
    yield Sample((x, make.index(3, 2)), {"reduction": "none"}, "extremes", smooth=False)


def multilabel_margin_samples(make: Maker) -> Iterator[Sample]:
    def lists(*rows: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(rows, device=make.device, dtype=dtype)

    t = lists([3, 0, -1, 4, 4], [1, -1, -1, -1, -1], [4, 2, 1, 0, 3])
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), t), {"reduction": reduction})
    yield Sample((make.normal(2, 4), lists([2, 2, 1, 2], [-1, 0, 1, 2])), {"reduction": "none"}, "listed twice, none")
    yield Sample((make.normal(2, 3), lists([1, -1, 0], [2, 0, -1], dtype=torch.int32)), name="int32")
    yield Sample((make.normal(2, 3), lists([1, 1, 1], [2, 0, 0], dtype=torch.uint8)), name="uint8")
    yield Sample((make.normal(5), t[0]), {"reduction": "none"}, "unbatched")
    yield Sample((make.normal(), t.new_zeros(())), name="no dimension")
    many = torch.where(torch.arange(140, device=make.device) < 3, make.index(140, 2, 140), -1)
    yield Sample((make.normal(2, 140), many), name="many classes")
    yield Sample((make.normal(0, 4), make.index(4, 0, 4)), {"reduction": "sum"}, "empty")
    yield Sample((make.tensor([[2.0, 1.0, 1.0]]), lists([0, -1, -1])), name="kinks", smooth=False)
    yield Sample((make.tensor([[1e4, -1e4, 0.0]]), lists([1, 2, -1])), name="extremes", smooth=False)


def multilabel_soft_margin_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), make.uniform(3, 5)), {"reduction": reduction})
        yield Sample((make.normal(2, 3, 4), make.bits(2, 3, 4), make.uniform(4)), {"reduction": reduction}, "weight")
    yield Sample((make.normal(5), make.uniform(5)), {"reduction": "none"}, "unbatched")
    yield Sample((make.normal(3, 4), make.uniform(4), make.uniform(3, 1)), {"reduction": "none"}, "broadcast")
    yield Sample((make.normal(4), make.uniform(3, 4)), name="broadcast input")
    yield Sample((make.normal(2, 1), make.uniform(2, 3)), {"reduction": "sum"}, "broadcast class")
    # torch sums over the dimension that is the last of the input
    yield Sample(
        (make.normal(3, 2), make.uniform(3, 2), make.uniform(2, 3, 1)), {"reduction": "none"}, "weight of rank 3"
    )
    yield Sample((make.normal(2, 140), make.uniform(2, 140)), {"reduction": "none"}, "many classes")
    yield Sample((make.normal(0, 4), make.uniform(0, 4)), {"reduction": "sum"}, "empty")
    yield Sample((make.normal(2, 0), make.uniform(2, 0)), {"reduction": "none"}, "no class", smooth=False)
    x, t = make.tensor([[1e4, -1e4, 1e4], [-1e4, 0.0, 50.0]]), make.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    yield Sample((x, t), {"reduction": "none"}, "extremes", smooth=False)


def margin_errors(op: str, make: Maker, target: Tensor) -> Iterator[ErrorSample]:
    x = make.normal(4, 3)
    yield from refused(op, x, target)
    message = f"{op}: expected input of shape \\(C\\) or \\(N, C\\), got \\[4, 3, 2\\]"
    yield ErrorSample((make.normal(4, 3, 2), target), message)
    yield ErrorSample((make.normal(4, 0), target), f"{op}: expected input of at least one class, got \\[4, 0\\]")
    yield ErrorSample((x, target.bool()), f"{op}: expected target of dtype int64, int32 or uint8, got bool")


def multi_margin_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "multi_margin_loss", make.normal(4, 3), make.index(3, 4)
    yield from margin_errors(op, make, t)
    message = f"{op}: expected target of shape \\[4\\] for input of shape \\[4, 3\\], got \\[4, 1\\]"
    yield ErrorSample((x, t.unsqueeze(1)), message)
    message = f"{op}: expected weight of one entry a class, \\[3\\], got \\[4\\]"
    yield ErrorSample((x, t), message, {"weight": make.constant(make.normal(4))})
    yield ErrorSample((x, t, 3), f"{op}: expected p = 1 or p = 2, got 3", values=True)
    yield from outside(op, (x, t), "margin that is a number", "margin")
    for shift, wrong in ((7, "[789]"), (-7, "-[567]")):
        yield ErrorSample((x, t + shift), f"{op}: expected a class index in \\[0, 3\\), got {wrong}", values=True)


def multilabel_margin_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x = "multilabel_margin_loss", make.normal(4, 3)
    yield from margin_errors(op, make, make.index(3, 4, 3))
    message = f"{op}: expected target of the shape of input, got \\[4, 3\\] and \\[4\\]"
    yield ErrorSample((x, make.index(3, 4)), message)
    for wrong in (3, -2):
        t = torch.tensor([[0, -1, 7]] * 3 + [[1, wrong, -1]], device=make.device)
        message = f"{op}: expected a class index in \\[0, 3\\) or -1, got {wrong}"
        yield ErrorSample((x, t), message, values=True)


def multilabel_soft_margin_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, t = "multilabel_soft_margin_loss", make.normal(4, 3), make.uniform(4, 3)
    yield from refused(op, x, t)
    yield ErrorSample((make.normal(), t), f"{op}: expected input of at least one dimension, got \\[\\]")
    message = f"{op}: expected target that broadcasts with input, got \\[4, 3\\] and \\[2, 3\\]"
    yield ErrorSample((x, make.uniform(2, 3)), message)
    message = f"{op}: expected weight that broadcasts with input, got \\[4, 3\\] and \\[4\\]"
    yield ErrorSample((x, t, make.uniform(4)), message)


SHAPES = {"small": (4, 16), "usual": (2**11, 128), "large": (2**15, 128), "huge": (2**20, 128)}


def multilabel_margin_workload(make: Maker, size: str) -> Iterator[Sample]:
    """Each row lists four classes only, because the loss compares every class with every listed one."""
    rows, classes = SHAPES[size]
    lists = torch.full((rows, classes), -1, device=make.device)
    lists[:, :4] = make.index(classes, rows, 4)
    yield Sample((make.normal(rows, classes), lists))


register(
    native(
        F.multi_margin_loss,
        called=int64_target(F.multi_margin_loss),
        reference=multi_margin_loss,
        shape=meta.margin_rows("input", "target", weight="weight"),
        samples=multi_margin_samples,
        errors=multi_margin_errors,
        indices=("target",),
    )
)
register(
    native(
        F.multilabel_margin_loss,
        called=int64_target(F.multilabel_margin_loss),
        reference=multilabel_margin_loss,
        shape=meta.margin_rows("input", "target", lists=True),
        samples=multilabel_margin_samples,
        errors=multilabel_margin_errors,
        module="MultiLabelMarginLoss",
        indices=("target",),
        workload=multilabel_margin_workload,
    )
)
register(
    native(
        F.multilabel_soft_margin_loss,
        aten=(),
        reference=multilabel_soft_margin_loss,
        shape=meta.class_sums("input", "target", "weight"),
        samples=multilabel_soft_margin_samples,
        errors=multilabel_soft_margin_errors,
        module="MultiLabelSoftMarginLoss",
    )
)
