"""Losses of the hard examples of a batch."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, outside
from ._rows import extreme_rows, row_errors, row_samples
from .categorical import plain_cross_entropy


def ohem_cross_entropy(
    input: Tensor, target: Tensor, thresh: float, n_min: int, ignore_index: int, reduction: str
) -> Tensor:
    """Cross entropy of the hard examples alone: online hard example mining.

    For dense prediction, where most positions are learnt soon and would drown the others in the mean. Which positions
    count is decided over the whole batch, without a gradient.

    Args:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        thresh: positions whose class has at most this probability are hard, in [0, 1].
        n_min: at least so many are kept, or all: the least probable ones, of equal ones the first. Below 0: a sixteenth
            of all positions.
        reduction: ``"none"`` (0 where a position is dropped), ``"mean"`` over the kept ones (NaN of none) or ``"sum"``.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``input``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, thresh is outside of [0, 1], or on the CPU a class index is out of
            range (on a GPU its position is NaN).

    Formula:
        −log p_y, p = softmax(x), where p_y <= thresh, p_y in float32 (float64 for float64); if those are fewer than
        n_min, where p_y is among the n_min smallest

    Example:
        >>> logits, labels = torch.randn(8, 19, 64, 64), torch.randint(0, 19, (8, 64, 64))
        >>> loss = opreg.functional.ohem_cross_entropy(logits, labels, thresh=0.7, n_min=2048, ignore_index=255)
    """
    nll = plain_cross_entropy(input, target, None, ignore_index, "none", 0.0)
    valid = target.reshape(nll.shape) != ignore_index
    p = torch.exp(-nll.detach())
    # NaN comes first, so that the loss shows it; ignored positions come last
    p = torch.where(valid, torch.where(p.isnan(), -1.0, p), 2.0)
    hard = valid & (p <= thresh)
    least = nll.numel() // 16 if n_min < 0 else n_min
    kept = hard | (valid & among_least(p, least) & (hard.sum() < least))
    loss = torch.where(kept, nll, 0.0)
    if reduction == "mean":
        return loss.sum() / kept.sum()
    return loss.sum() if reduction == "sum" else loss


def among_least(p: Tensor, count: int) -> Tensor:
    """Which elements are the ``count`` least ones, or all where there are fewer; of equal ones the first."""
    # the sorted values, after one that is less than all; by topk, because not every runtime has a sort
    ascending = F.pad(p.flatten().topk(p.numel(), largest=False).values, (1, 0), value=-torch.inf)
    greatest = ascending[torch.sym_min(count, p.numel())]
    below, equal = p < greatest, p == greatest
    nth = equal.flatten().long().cumsum(0).reshape(p.shape)
    return below | (equal & (nth <= count - below.sum()))


def samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, make.normal, n_min=1)
    x, t = make.normal(2, 3, 2, 5, scale=3), make.index(3, 2, 2, 5, ignore=-100)
    for reduction in REDUCTIONS:
        # none is hard; some are, but fewer than n_min; enough are
        for thresh, n_min in ((0.0, 7), (0.3, 12), (0.3, 2)):
            yield Sample((x, t), {"thresh": thresh, "n_min": n_min, "reduction": reduction}, "n_min")
    yield Sample((x, t), {"thresh": 0.0, "n_min": 1000, "reduction": "sum"}, "fewer than n_min")
    yield Sample((x, t), {"thresh": 0.0, "n_min": 0, "reduction": "sum"}, "nothing kept")
    yield Sample((x, t), {"thresh": 0.0, "n_min": 0}, "nothing kept", smooth=False)
    equal = make.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    t = torch.tensor([0, 1, 1, 1, 0], device=make.device)
    for thresh, n_min in ((0.5, 0), (0.0, 3)):
        yield Sample((equal, t), {"thresh": thresh, "n_min": n_min, "reduction": "none"}, "ties", smooth=False)
    yield Sample((extreme_rows(make), make.index(3, 4)), {"n_min": 3, "reduction": "none"}, "extremes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    yield from row_errors("ohem_cross_entropy", make)
    call = make.normal(4, 3), make.index(3, 4)
    yield from outside("ohem_cross_entropy", call, "thresh in \\[0, 1\\]", "thresh", -0.1, 1.1)


register(
    Op(
        "ohem_cross_entropy",
        reference=ohem_cross_entropy,
        shape=meta.rows("input", "target"),
        samples=samples,
        errors=errors,
        source="Shrivastava et al., arXiv 1604.03540",
        module="OHEMCrossEntropyLoss",
        whole=lambda args: "which examples are hard is decided over the whole batch",
        indices=("target",),
        state=meta.per_row(3),
    )
)
