"""Losses over sequences: connectionist temporal classification."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, lengths, log_add, native, reduce, refused


def ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int,
    reduction: str,
    zero_infinity: bool,
) -> Tensor:
    """Minus the log of the probability of a label sequence, over all its alignments with a longer input sequence.

    For speech and handwriting, where it is known what was said but not when. ``targets[n]`` is a sequence of labels: no
    blanks, no one-hot rows, repeated labels as they are. The gradient presumes log-probabilities, as torch's does: take
    ``log_softmax`` of logits first. There is no second derivative.

    Args:
        log_probs: (T, N, C), or (T, C) for a single sequence: logarithms of probabilities over the C classes.
        targets: class indices, int64, int32 or uint8: (N, S), each row filled up with anything; or all sequences one
            after the other, (sum of target_lengths).
        input_lengths: (N), or () for a single sequence, integers in [0, T]: how many steps of each sequence count.
            For ``log_probs`` on a GPU they are there too, or on the CPU: nothing waits for them.
        target_lengths: likewise, integers in [0, S]: how many labels of each row count.
        blank: the class that stands between labels.
        reduction: ``"none"``, ``"mean"`` (each loss divided by its target length, at least 1, then averaged) or
            ``"sum"``.
        zero_infinity: a loss of 0 in place of infinity, for targets that no alignment fits into the input.

    Returns:
        0-d, or (N) with reduction ``"none"`` of several sequences.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; a length or a label out of range (on a GPU its loss is NaN); a
            second derivative. Scores that are no logarithms of probabilities raise nothing; where they make a loss
            negative, a warning on the CPU says so once.

    Formula:
        −log Σ_π Π_t p_t(π_t) over all π of T classes that become the target when repetitions are merged and blanks then
        removed. The gradient in log p_t(c) is p_t(c) − P(π_t = c | target); 0 where the loss is infinite

    Example:
        >>> log_probs = torch.randn(50, 2, 28).log_softmax(-1)
        >>> targets = torch.tensor([[3, 1, 20, 0], [4, 15, 7, 19]])  # "cat", "dogs"; 0 is the blank and the filling
        >>> opreg.functional.ctc_loss(log_probs, targets, torch.tensor([50, 41]), torch.tensor([3, 4]))
    """
    batched = log_probs.dim() == 3
    if not batched:
        log_probs = log_probs.unsqueeze(1)
    steps, samples, _ = log_probs.shape
    device = log_probs.device
    input_lengths = input_lengths.to(device).long().reshape(samples, 1)
    target_lengths = target_lengths.to(device).long().reshape(samples, 1)
    if targets.dim() == 1:
        # more labels than steps do not matter: their loss is infinite
        places = torch.arange(min(targets.shape[0], steps), device=device)
        starts = target_lengths.cumsum(0) - target_lengths
        targets = targets[(starts + places).clamp(max=targets.shape[0] - 1)]
    count = targets.shape[1]
    labels = torch.where(torch.arange(count, device=device) < target_lengths, targets.long(), blank)

    # states: a blank before each label and one at the end
    blanks = torch.full_like(labels, blank)
    states = F.pad(torch.stack([blanks, labels], 2).flatten(1), (0, 1), value=blank)
    valid = torch.arange(steps, device=device)[:, None, None] < input_lengths
    scores = torch.where(valid, log_probs.gather(2, states.expand(steps, -1, -1)), 0.0)
    skips = F.pad(states[:, 2:] != states[:, :-2], (2 if count else 1, 0))

    alpha = torch.where(torch.arange(2 * count + 1, device=device) == 0, scores.new_zeros(samples, 1), -torch.inf)
    for t in range(steps):
        one_before = F.pad(alpha, (1, 0), value=-torch.inf)[:, :-1]
        two_before = torch.where(skips, F.pad(alpha, (2, 0), value=-torch.inf)[:, :-2], -torch.inf)
        alpha = torch.where(valid[t], log_add(alpha, one_before, two_before) + scores[t], alpha)
    last = (2 * target_lengths).clamp(max=2 * count)
    label = torch.where(target_lengths > 0, alpha.gather(1, (last - 1).clamp(min=0)), -torch.inf)
    log_likelihood = log_add(alpha.gather(1, last), label)
    log_likelihood = torch.where(target_lengths > count, -torch.inf, log_likelihood).squeeze(1)

    # this adds nothing to the value; to the gradient it adds what normalising log_probs would
    mass = torch.where(valid, log_probs.exp(), 0.0).sum((0, 2))
    loss = mass - mass.detach() - log_likelihood
    infinite = log_likelihood == -torch.inf
    loss = torch.where(infinite, 0.0 if zero_infinity else torch.inf, loss)
    if reduction == "mean":
        loss = loss / target_lengths.squeeze(1).clamp(min=1)
    return reduce(loss if batched else loss.squeeze(0), reduction)


def native_ctc_loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    targets = targets.long() if targets.dtype == torch.uint8 else targets
    # torch has no kernels for half precision
    wide = log_probs.to(torch.promote_types(log_probs.dtype, torch.float32))
    loss = F.ctc_loss(wide, targets, input_lengths, target_lengths, blank, reduction, zero_infinity)
    return loss.to(log_probs.dtype)


def log_softmax(x: Tensor) -> Tensor:
    return x.log_softmax(-1)


def samples(make: Maker) -> Iterator[Sample]:
    def leaf(x: Tensor) -> Tensor:
        return x.detach().requires_grad_(make.requires_grad)

    def scores(*shape: int, scale: float = 1.0) -> Tensor:
        return leaf(log_softmax(make.normal(*shape, scale=scale)))

    def whole(*values: object, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.tensor(list(values), dtype=dtype, device=make.device)

    for reduction in REDUCTIONS:
        rows = whole([1, 2], [3, 0])
        yield Sample((scores(5, 2, 4), rows, whole(5, 4), whole(2, 1)), {"reduction": reduction})
    for reduction in ("none", "mean"):
        together, lengths = whole(0, 0, 1, dtype=torch.int32), whole(3, 5, 2, dtype=torch.int32)
        args = scores(5, 3, 3), together, lengths, whole(2, 1, 0)
        yield Sample(args, {"reduction": reduction, "blank": 2}, "concatenated, last blank")
    args = scores(4, 3), whole(1, 2, dtype=torch.uint8), torch.tensor(3, device=make.device), whole(2)
    yield Sample(args, {"reduction": "none"}, "unbatched")
    yield Sample(
        (scores(4, 3), whole([1, 255]), whole(4), torch.tensor(1, device=make.device)), name="unbatched, padded"
    )
    repeated = whole([1, 1, 1], [2, 1, 2])
    yield Sample((scores(6, 2, 3), repeated, whole(5, 6), whole(3, 3)), {"reduction": "sum"}, "repeated labels")
    x = leaf(make.normal(4, 2, 3))
    yield Sample((x, whole([1, 2], [2, 1]), whole(4, 3), whole(2, 1)), name="not normalised")
    yield Sample((scores(4, 2, 3), whole([], []), whole(4, 0), whole(0, 0)), {"reduction": "sum"}, "no labels")
    yield Sample((scores(4, 1, 3), whole([0, 1]), whole(4), whole(2)), name="blank among the labels")
    for reduction, zero in (("none", False), ("mean", False), ("mean", True)):
        # a target that is too long, no step at all, no room for the blank between equal labels; and one that fits
        rows, lengths = whole([1, 2, 1], [1, 0, 0], [2, 2, 0], [2, 1, 0]), whole(2, 0, 2, 2)
        args = scores(2, 4, 3), rows, lengths, whole(3, 1, 2, 2)
        yield Sample(args, {"reduction": reduction, "zero_infinity": zero}, "infinite", smooth=False)
    x = scores(4, 2, 3, scale=3000.0)
    args = x, whole([1, 2], [2, 2]), whole(4, 4), whole(2, 2)
    yield Sample(args, {"reduction": "none"}, "extremes", smooth=False)
    args = leaf(make.tensor([[-torch.inf, 0.0, -torch.inf], [-0.5, -1.5, -torch.inf]])), whole(1), whole(2), whole(1)
    yield Sample(args, {"reduction": "none"}, "impossible classes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    x, t = make.normal(5, 2, 4), make.index(4, 2, 3)
    steps, lengths = torch.tensor([5, 4], device=make.device), torch.tensor([3, 2], device=make.device)
    yield from refused("ctc_loss", x, t, steps, lengths, input="log_probs")
    message = "ctc_loss: expected log_probs of shape \\(T, N, C\\) or \\(T, C\\), got \\[4\\]"
    yield ErrorSample((make.normal(4), t, steps, lengths), message)
    message = "ctc_loss: expected targets of shape \\[{}, S\\] or \\[sum of target_lengths\\] for log_probs of shape"
    yield ErrorSample((x, t[:1], steps, lengths), message.format(2) + " \\[5, 2, 4\\], got \\[1, 3\\]")
    yield ErrorSample((x[:, 0], t, steps[:1], lengths[:1]), message.format(1) + " \\[5, 4\\], got \\[2, 3\\]")
    message = "ctc_loss: expected targets of dtype int64, int32 or uint8, got"
    yield ErrorSample((x, t.to(make.dtype), steps, lengths), message + " float64")
    yield ErrorSample((x, t.bool(), steps, lengths), message + " bool")
    message = "ctc_loss: expected input_lengths of an integer dtype, got float64"
    yield ErrorSample((x, t, steps.to(make.dtype), lengths), message)
    message = "ctc_loss: expected target_lengths of an integer dtype, got bool"
    yield ErrorSample((x, t, steps, lengths.bool()), message)
    message = "ctc_loss: expected input_lengths of shape \\[2\\] for log_probs of shape \\[5, 2, 4\\], got"
    yield ErrorSample((x, t, steps[:1], lengths), message + " \\[1\\]")
    message = "ctc_loss: expected target_lengths of shape \\[2\\] for log_probs of shape \\[5, 2, 4\\], got"
    yield ErrorSample((x, t, steps, lengths[None]), message + " \\[1, 2\\]")
    for blank in (-1, 4):
        message = f"ctc_loss: expected blank in \\[0, 4\\), got {blank}"
        yield ErrorSample((x, t, steps, lengths), message, {"blank": blank})
    for off, got in ((1, 6), (-5, -1)):
        message = f"ctc_loss: expected input_lengths in \\[0, 5\\], got {got}"
        yield ErrorSample((x, t, steps + off, lengths), message, values=True)
    for off, got in ((1, 4), (-3, -1)):
        message = f"ctc_loss: expected target_lengths in \\[0, 3\\], got {got}"
        yield ErrorSample((x, t, steps, lengths + off), message, values=True)
    message = "ctc_loss: expected target_lengths that sum to 6 targets, got 5"
    yield ErrorSample((x, t.flatten(), steps, lengths), message, values=True)
    for off, classes in ((4, "[4567]"), (-4, "-[1234]")):
        message = f"ctc_loss: expected a class index in \\[0, 4\\), got {classes}"
        yield ErrorSample((x, t + off, steps, lengths), message, values=True)


def workload(make: Maker, size: str) -> Iterator[Sample]:
    # T, N, C, S: letters of a line or a short utterance, up to word pieces of half a minute
    shapes = {
        "small": (8, 2, 4, 2),
        "usual": (128, 16, 64, 32),
        "large": (512, 32, 128, 100),
        "huge": (1024, 256, 512, 200),
    }
    steps, batch, classes, labels = shapes[size]
    targets = make.index(classes - 1, batch, labels) + 1
    lengths = make.index(labels // 2 + 1, batch) + labels // 2
    input_lengths = make.index(steps // 4 + 1, batch) + steps - steps // 4
    yield Sample((log_softmax(make.normal(steps, batch, classes)), targets, input_lengths, lengths))


register(
    native(
        F.ctc_loss,
        called=native_ctc_loss,
        aten=("ctc_loss.Tensor",),
        source="Graves et al., Connectionist Temporal Classification, ICML 2006",
        reference=ctc_loss,
        shape=meta.ctc,
        samples=samples,
        errors=errors,
        module="CTCLoss",
        indices=("targets", "input_lengths", "target_lengths"),
        averaged=lambda losses, args: losses / args["target_lengths"].to(losses.device).clamp(min=1),
        state=meta.ctc_state,
        batch_dims={"log_probs": 1},
        accepts={"input_lengths": lengths, "target_lengths": lengths},
        domain=log_softmax,
        second_derivative=False,
        workload=workload,
        unrolled=True,
    )
)
