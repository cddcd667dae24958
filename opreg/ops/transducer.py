"""The loss of an RNN transducer."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, lengths, log_add, reduce, refused


def rnnt_loss(
    logits: Tensor,
    targets: Tensor,
    logit_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    clamp: float,
    reduction: str,
) -> Tensor:
    """Minus the log of the probability of a label sequence, over all its alignments, of an RNN transducer.

    For speech recognition in a stream. The joint network scores each class for each step of the input and each number
    of labels that were emitted before; the blank goes to the next step, a label stays at its own. The logits are
    normalised here: no ``log_softmax`` before. Beside the gradient nothing of their size is made. There is no second
    derivative; what ``torch.func`` gives for one is that of the loss without ``clamp``.

    Args:
        logits: (N, T, U + 1, V): scores of the V classes after t steps and u labels. What lies behind a sample's
            lengths is not read, and its gradient is 0.
        targets: class indices, int64, int32 or uint8, (N, U): no blanks, each row filled up with anything.
        logit_lengths: (N), integers in [0, T]: how many steps of each sample count. For ``logits`` on a GPU they are
            there too, or on the CPU: nothing waits for them.
        target_lengths: likewise, integers in [0, U]: how many labels of each row count.
        blank: the class that stands for no label; a negative one counts from the last.
        clamp: where > 0, each element of the gradient of a sample's loss in its logits is clipped to [−clamp, clamp],
            before the incoming gradient is multiplied in.
        reduction: ``"none"``, ``"mean"`` (over the samples) or ``"sum"``.

    Returns:
        0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; a blank out of range; a length or a label out of range (on a GPU
            its loss is NaN); a second derivative.

    Formula:
        −log Σ_π Π p(π) over all ways from (0, 0) through the blank of (T − 1, U), each a product of blanks' p_tu(∅),
        which lead to (t + 1, u), and labels' p_tu(y_u), which lead to (t, u + 1). Labels without a step have no way:
        the loss is infinite, and where it is, the gradient is 0

    Example:
        >>> logits = torch.randn(2, 50, 5, 28, requires_grad=True)
        >>> targets = torch.tensor([[3, 1, 20, 0], [4, 15, 7, 19]])  # "cat", "dogs"; 27 is the blank, 0 fills up
        >>> lengths = torch.tensor([50, 41]), torch.tensor([3, 4])
        >>> opreg.functional.rnnt_loss(logits, targets, *lengths).backward()
    """
    samples, steps, places, classes = logits.shape
    device = logits.device
    blank = blank % classes
    logit_lengths = logit_lengths.to(device).long().reshape(samples, 1, 1)
    target_lengths = target_lengths.to(device).long().reshape(samples, 1, 1)
    t, u = torch.arange(steps, device=device)[:, None], torch.arange(places, device=device)
    inside = (t < logit_lengths) & (u <= target_lengths)
    x = torch.where(inside[..., None], logits, 0.0)
    log_p = x.log_softmax(-1)
    labels = torch.where(u < target_lengths[:, 0], F.pad(targets.long(), (0, 1)), blank)
    each = labels[:, None].expand(-1, steps, -1)
    log_blank = skew(log_p[..., blank])
    log_label = skew(torch.where(u < places - 1, log_p.gather(3, each[..., None]).squeeze(3), -torch.inf))
    last = skew((inside & (t == logit_lengths - 1) & (u == target_lengths)).to(x.dtype), 0.0) > 0

    # backward variables, one anti-diagonal after the other: log P of the labels from a node on
    beta: list[Tensor] = []
    column = x.new_full((samples, places), -torch.inf)
    for d in reversed(range(log_blank.shape[-1])):
        onwards = log_add(
            column + log_blank[..., d], F.pad(column[:, 1:], (0, 1), value=-torch.inf) + log_label[..., d]
        )
        column = torch.where(last[..., d], log_blank[..., d], onwards)
        beta.insert(0, column)
    log_likelihood = column[:, 0]
    if clamp > 0 and steps > 0:
        x = x - x.detach()
        gradient = transducer_gradient(log_p, each, log_blank, log_label, last, torch.stack(beta, -1), blank).detach()
        clipped = (gradient.clamp(-clamp, clamp) - gradient) * torch.where(torch.isfinite(x), x, 0.0)
        # this adds nothing to the value, and to the gradient what clips it
        log_likelihood = log_likelihood - clipped.sum((1, 2, 3))
    empty = (logit_lengths == 0) & (target_lengths == 0)
    log_likelihood = torch.where(empty[:, 0, 0], 0.0, log_likelihood)
    return reduce(torch.where(log_likelihood == -torch.inf, torch.inf, -log_likelihood), reduction)


def skew(x: Tensor, fill: float = -torch.inf) -> Tensor:
    """(N, T, U) to (N, U, T + U − 1): what lies on an anti-diagonal becomes a column."""
    samples, steps, places = x.shape
    rows = F.pad(x.transpose(1, 2), (0, places), value=fill).flatten(1)
    return rows[:, : places * (steps + places - 1)].reshape(samples, places, steps + places - 1)


def unskew(x: Tensor) -> Tensor:
    """The way back."""
    samples, places, diagonals = x.shape
    rows = F.pad(x.flatten(1), (0, places)).reshape(samples, places, diagonals + 1)
    return rows[..., : diagonals + 1 - places].transpose(1, 2)


def transducer_gradient(
    log_p: Tensor, labels: Tensor, log_blank: Tensor, log_label: Tensor, last: Tensor, beta: Tensor, blank: int
) -> Tensor:
    """The gradient of each sample's loss in its logits: posterior probabilities, by forward and backward variables."""
    total = beta[:, :1, :1]
    possible = total != -torch.inf
    column = torch.where(
        torch.arange(beta.shape[1], device=beta.device) == 0, 0.0, torch.full_like(beta[..., 0], -torch.inf)
    )
    alpha = [column]
    for d in range(beta.shape[-1] - 1):
        moved = F.pad((alpha[-1] + log_label[..., d])[:, :-1], (1, 0), value=-torch.inf)
        alpha.append(log_add(alpha[-1] + log_blank[..., d], moved))
    before = torch.stack(alpha, -1) - torch.where(possible, total, 0.0)
    behind = F.pad(beta[..., 1:], (0, 1), value=-torch.inf)
    behind_blank = torch.where(last, 0.0, behind)
    behind_label = F.pad(behind[:, 1:], (0, 0, 0, 1), value=-torch.inf)

    through, by_blank, by_label = (
        unskew((before + onwards).exp())[..., None]
        for onwards in (beta, log_blank + behind_blank, log_label + behind_label)
    )
    classes = torch.arange(log_p.shape[-1], device=log_p.device)
    is_label = classes == labels[..., None]
    gradient = torch.where(through == 0, 0.0, through * log_p.exp())
    gradient = gradient - torch.where(classes == blank, by_blank, 0.0) - torch.where(is_label, by_label, 0.0)
    return torch.where(possible[..., None], gradient, 0.0)


def samples(make: Maker) -> Iterator[Sample]:
    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(make.requires_grad)

    def whole(*values: object, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=make.device)

    rows = whole([1, 2], [3, 99])
    for reduction in REDUCTIONS:
        args = leaf(make.normal(2, 4, 3, 5)), rows, whole(4, 3), whole(2, 1)
        yield Sample(args, {"reduction": reduction})
    args = leaf(make.normal(2, 3, 2, 4)), whole([1], [2], dtype=torch.uint8), whole(3, 1), whole(1, 0)
    yield Sample(args, {"blank": 0, "reduction": "none"}, "first blank, one step, no label")
    args = leaf(make.normal(1, 2, 4, 3)), whole([1, 1, 2], dtype=torch.int32), whole(2, dtype=torch.int32), whole(3)
    yield Sample(args, {"blank": -3, "reduction": "sum"}, "more labels than steps, repeated")
    args = leaf(make.normal(2, 3, 1, 4)), whole([], []), whole(3, 2), whole(0, 0)
    yield Sample(args, {"reduction": "none"}, "no labels")
    args = leaf(make.normal(1, 3, 3, 4)), whole([3, 0]), whole(3), whole(2)
    yield Sample(args, {}, "blank among the labels")
    for reduction in ("none", "mean"):
        args = leaf(make.normal(2, 3, 3, 4)), whole([1, 2], [0, 0]), whole(3, 2), whole(2, 1)
        yield Sample(args, {"clamp": 0.2, "reduction": reduction}, "clamped", smooth=False)
    # no step: one path of no label, none of some
    args = leaf(make.normal(3, 2, 2, 3)), whole([1], [0], [1]), whole(0, 0, 2), whole(0, 1, 1)
    yield Sample(args, {"reduction": "none"}, "no steps", smooth=False)
    x = make.normal(2, 3, 3, 4, scale=3000.0)
    yield Sample((leaf(x), whole([1, 2], [0, 0]), whole(3, 3), whole(2, 1)), {"reduction": "none"}, "extremes", False)
    x = make.normal(2, 2, 2, 3).detach()
    x[0, :, :, 0] = x[1, 0, 0, 1] = -torch.inf
    args = leaf(x), whole([0], [1]), whole(2, 2), whole(1, 1)
    yield Sample(args, {"reduction": "none"}, "impossible classes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    x, t = make.normal(2, 5, 4, 6), make.index(6, 2, 3)
    steps, lengths = torch.tensor([5, 4], device=make.device), torch.tensor([3, 2], device=make.device)
    yield from refused("rnnt_loss", x, t, steps, lengths, input="logits")
    message = "rnnt_loss: expected logits of shape \\(N, T, U \\+ 1, V\\), got"
    yield ErrorSample((x[0], t, steps, lengths), message + " \\[5, 4, 6\\]")
    yield ErrorSample((x[:, :, :0], t, steps, lengths), message + " \\[2, 5, 0, 6\\]")
    message = "rnnt_loss: expected targets of shape \\[2, 3\\] for logits of shape \\[2, 5, 4, 6\\], got"
    yield ErrorSample((x, t[:, :2], steps, lengths), message + " \\[2, 2\\]")
    yield ErrorSample((x, t.flatten(), steps, lengths), message + " \\[6\\]")
    message = "rnnt_loss: expected targets of dtype int64, int32 or uint8, got bool"
    yield ErrorSample((x, t.bool(), steps, lengths), message)
    message = "rnnt_loss: expected logits of at least one class, got \\[2, 5, 4, 0\\]"
    yield ErrorSample((x[..., :0], t, steps, lengths), message)
    message = "rnnt_loss: expected logit_lengths of an integer dtype, got float64"
    yield ErrorSample((x, t, steps.to(torch.float64), lengths), message)
    message = "rnnt_loss: expected target_lengths of shape \\[2\\] for logits of shape \\[2, 5, 4, 6\\], got \\[1, 2\\]"
    yield ErrorSample((x, t, steps, lengths[None]), message)
    for blank in (-7, 6):
        message = f"rnnt_loss: expected blank in \\[-6, 6\\), got {blank}"
        yield ErrorSample((x, t, steps, lengths), message, {"blank": blank})
    message = "rnnt_loss: expected clamp that is a number, got -?nan"
    yield ErrorSample((x, t, steps, lengths), message, {"clamp": math.nan}, values=True)
    for off, got in ((1, 6), (-5, -1)):
        message = f"rnnt_loss: expected logit_lengths in \\[0, 5\\], got {got}"
        yield ErrorSample((x, t, steps + off, lengths), message, values=True)
    for off, got in ((1, 4), (-3, -1)):
        message = f"rnnt_loss: expected target_lengths in \\[0, 3\\], got {got}"
        yield ErrorSample((x, t, steps, lengths + off), message, values=True)
    for off, classes in ((6, "([6789]|1[01])"), (-6, "-[123456]")):
        message = f"rnnt_loss: expected a class index in \\[0, 6\\), got {classes}"
        yield ErrorSample((x, t + off, steps, lengths), message, values=True)


def workload(make: Maker, size: str) -> Iterator[Sample]:
    # N, T, U, V: letters, up to word pieces of an utterance
    shapes = {"small": (1, 4, 3, 4), "usual": (4, 50, 20, 64), "large": (8, 200, 40, 256), "huge": (16, 400, 80, 1024)}
    batch, steps, labels, classes = shapes[size]
    targets = make.index(classes - 1, batch, labels)
    lengths = make.index(labels // 4 + 1, batch) + labels - labels // 4
    logit_lengths = make.index(steps // 4 + 1, batch) + steps - steps // 4
    yield Sample((make.normal(batch, steps, labels + 1, classes), targets, logit_lengths, lengths))


register(
    Op(
        "rnnt_loss",
        rnnt_loss,
        meta.transducer,
        samples,
        errors,
        "arXiv 1211.3711; torchaudio.functional.rnnt_loss",
        module="RNNTLoss",
        indices=("targets", "logit_lengths", "target_lengths"),
        state=meta.transducer_state,
        accepts={"logit_lengths": lengths, "target_lengths": lengths},
        second_derivative=False,
        workload=workload,
        unrolled=True,
    )
)
