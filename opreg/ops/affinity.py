"""Losses over pairs of neighbouring pixels: two should be alike if and only if their labels are equal."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import image_workload, outside, refused


def windows_holding(size: int, kernel_size: int, shift: int, device: torch.device) -> Tensor:
    """How many windows hold both place i and place i + shift, for every i of the first size - |shift|."""
    low = torch.arange(size - abs(shift), device=device)
    high = low + abs(shift)
    return low.clamp(max=size - kernel_size) - (high - kernel_size + 1).clamp(min=0) + 1


def shifted(t: Tensor, dy: int, dx: int) -> tuple[Tensor, Tensor]:
    """Pixels (…, H, W) that have a neighbour at (dy, dx), dy >= 0, and that neighbour."""
    height, width = t.shape[-2], t.shape[-1]
    rows = t[..., : height - dy, :], t[..., dy:, :]
    first, last = max(0, -dx), max(0, dx)
    return rows[0][..., first : width - last], rows[1][..., last : width - first]


def affinity_loss(input: Tensor, target: Tensor, kernel_size: int, ignore_index: int) -> Tensor:
    """Local affinity loss: pixels of one window should score alike if and only if their labels are equal.

    Trains the affinity of features or logits near each other, sharpest at the borders of segments, where a pixelwise
    loss says nothing of how two pixels relate. Only equality of labels counts: they may be any integers.

    Args:
        input: scores or features of shape (N, C, H, W).
        target: labels of shape (N, H, W), of dtype int64, int32 or uint8.
        kernel_size: the side of the windows, odd, at most H and W.
        ignore_index: a label whose pixels belong to no pair; any integer.

    Returns:
        The mean over all pairs of all windows, 0-d; 0 where there is no pair.

    Raises:
        RuntimeError: shapes that do not fit; a kernel_size that is even, too small or too large.

    Formula:
        the mean of binary_cross_entropy_with_logits(⟨x_a, x_b⟩, [y_a = y_b]), ⟨x_a, x_b⟩ the inner product over the
        channels, over every k × k window that fits and all ordered pairs (a, b) of its pixels, a = b too

    Example:
        >>> scores = torch.randn(2, 19, 64, 64, requires_grad=True)
        >>> target = torch.randint(0, 19, (2, 64, 64))
        >>> opreg.functional.affinity_loss(scores, target, kernel_size=3).backward()
    """
    valid = target != ignore_index
    x = torch.where(valid.unsqueeze(1), input, 0.0)  # an ignored pixel may hold anything
    total, pairs = x.new_zeros(()), valid.new_zeros((), dtype=torch.int64)
    for dy in range(kernel_size):
        rows = windows_holding(input.shape[2], kernel_size, dy, input.device)
        for dx in range(-kernel_size + 1 if dy else 0, kernel_size):
            columns = windows_holding(input.shape[3], kernel_size, dx, input.device)
            # both orders of a pair count the same
            times = (2 if dy or dx else 1) * rows.unsqueeze(-1) * columns
            (x_a, x_b), (y_a, y_b), (valid_a, valid_b) = (shifted(t, dy, dx) for t in (x, target, valid))
            logits = (x_a * x_b).sum(1)
            # binary cross entropy with logits; beyond the threshold, e^−40 changes no digit of the result
            bce = F.softplus(torch.where(y_a == y_b, -logits, logits), threshold=40)
            times = torch.where(valid_a & valid_b, times, 0)
            total = total + (times * bce).sum()
            pairs = pairs + times.sum()
    return total / pairs.clamp(min=1)


def pairs_of_windows(args: Arguments) -> Tensor:
    """What the mean divides by: the squared number of valid pixels of each window, summed."""
    valid = (args["target"] != args["ignore_index"]).double()
    k = args["kernel_size"]
    ones = valid.new_ones(1, 1, k, k)
    return F.conv2d(valid.unsqueeze(1), ones).square().sum()


def affinity_field_loss(
    input: Tensor, target: Tensor, kl_margin: float, lambda_edge: float, lambda_not_edge: float, ignore_index: int
) -> Tensor:
    """Affinity field loss: neighbouring pixels should predict alike inside a segment, and unalike across its border.

    Beside a pixelwise loss, it keeps thin structures and straightens the borders of a segmentation. Only equality of
    labels counts: they may be any integers.

    Args:
        input: logits of shape (N, C, H, W).
        target: labels of shape (N, H, W), of dtype int64, int32 or uint8.
        kl_margin: how far apart two pixels of different labels should be, >= 0.
        lambda_edge: the weight of neighbours of the same label, >= 0.
        lambda_not_edge: the weight of neighbours of different labels, >= 0.
        ignore_index: a label whose pixels belong to no pair; any integer.

    Returns:
        The sum over all pairs, divided by 8 times the number of valid pixels, 0-d; 0 where none is valid.

    Raises:
        RuntimeError: shapes that do not fit; a negative or NaN margin or weight.

    Formula:
        for each pixel i and each of its 8 neighbours j in the image lambda_edge·D where the labels are equal, else
        lambda_not_edge·max(0, kl_margin − D), D = KL(p_j ‖ p_i), p = softmax(x) over the channels; at D = kl_margin the
        gradient is half of each side's

    Example:
        >>> logits = torch.randn(2, 19, 64, 64, requires_grad=True)
        >>> target = torch.randint(0, 19, (2, 64, 64))
        >>> opreg.functional.affinity_field_loss(logits, target).backward()
    """
    valid = target != ignore_index
    log_p = F.log_softmax(torch.where(valid.unsqueeze(1), input, 0.0), 1)  # an ignored pixel may hold anything
    p = log_p.exp()
    total = input.new_zeros(())
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        (log_a, log_b), (p_a, p_b) = shifted(log_p, dy, dx), shifted(p, dy, dx)
        (y_a, y_b), (valid_a, valid_b) = shifted(target, dy, dx), shifted(valid, dy, dx)
        for divergence in ((p_b * (log_b - log_a)).sum(1), (p_a * (log_a - log_b)).sum(1)):
            apart = torch.maximum(kl_margin - divergence, divergence.new_zeros(()))
            loss = torch.where(y_a == y_b, lambda_edge * divergence, lambda_not_edge * apart)
            total = total + torch.where(valid_a & valid_b, loss, 0.0).sum()
    return total / (8 * valid.sum()).clamp(min=1)


def number_of_pairs(shape: Sequence[int], args: Arguments) -> Tensor:
    state: Tensor = args["input"].new_empty((1,), dtype=torch.float64)
    return state


def lse_plane(shape: Sequence[int], args: Arguments) -> Tensor:
    """The log-sum-exp of each pixel, and the mean's denominator."""
    target = args["target"]
    state: Tensor = args["input"].new_empty((target.numel() + 1,), dtype=torch.float64)
    return state


def samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(2, 2, 3, 4), make.index(2, 2, 3, 4)))
    yield Sample((make.normal(1, 2, 4, 5), make.index(3, 1, 4, 5, ignore=-100)), name="ignored")
    yield Sample((make.normal(1, 2, 4, 3), make.index(3, 1, 4, 3, ignore=1, dtype=torch.int32)), {"ignore_index": 1})
    yield Sample((make.normal(1, 1, 4, 5), make.index(2, 1, 4, 5, ignore=255, dtype=torch.uint8)), name="one channel")
    yield Sample((make.normal(1, 5, 3, 131), make.index(3, 1, 3, 131, ignore=-100)), name="longer than a strip")
    yield Sample((make.normal(1, 2, 3, 3), torch.full((1, 3, 3), -100, device=make.device)), name="all ignored")
    yield Sample((make.normal(0, 2, 3, 3), make.index(2, 0, 3, 3)), name="empty")


def affinity_samples(make: Maker) -> Iterator[Sample]:
    yield from samples(make)
    yield Sample((make.normal(1, 2, 3, 4), make.index(2, 1, 3, 4)), {"kernel_size": 1})
    yield Sample((make.normal(1, 1, 6, 5), make.index(2, 1, 6, 5, ignore=-100)), {"kernel_size": 5})
    x = make.tensor([1e4, -1e4, 1.0, 0.0, 1e4, -1.0, 0.0, 1e-3, -1e4]).detach().reshape(1, 1, 3, 3)
    yield Sample((x.requires_grad_(make.requires_grad), make.index(2, 1, 3, 3)), name="extremes", smooth=False)


def field_samples(make: Maker) -> Iterator[Sample]:
    yield from samples(make)
    options = {"kl_margin": 0.5, "lambda_edge": 0.3, "lambda_not_edge": 2.0}
    yield Sample((make.normal(1, 3, 3, 4), make.index(2, 1, 3, 4)), options)
    yield Sample((make.normal(1, 3, 1, 6), make.index(2, 1, 1, 6)), name="one row")
    yield Sample((make.normal(1, 3, 1, 1), make.index(2, 1, 1, 1)), name="one pixel")
    # equal logits: D = 0 = kl_margin
    x = make.tensor([0.5]).detach().expand(1, 2, 3, 2).contiguous()
    sample = (x.requires_grad_(make.requires_grad), make.index(2, 1, 3, 2))
    yield Sample(sample, {"kl_margin": 0.0}, "kinks", smooth=False)
    x = make.tensor([1e4, -1e4, 1e4, 0.0, 1e4, 1.0, 9900.0, 1e4]).detach().reshape(1, 2, 2, 2)
    yield Sample((x.requires_grad_(make.requires_grad), make.index(2, 1, 2, 2)), name="extremes", smooth=False)


def errors(op: str, make: Maker) -> Iterator[ErrorSample]:
    x, t = make.normal(2, 3, 4, 5), make.index(3, 2, 4, 5)
    yield from refused(op, x, t, reduces=False)
    message = f"{op}: expected input of shape \\(N, C, H, W\\), got \\[3, 4, 5\\]"
    yield ErrorSample((x[0], t[0]), message)
    message = f"{op}: expected input of at least one class, got \\[2, 0, 4, 5\\]"
    yield ErrorSample((x[:, :0], t), message)
    message = f"{op}: expected target of shape \\[2, 4, 5\\] for input of shape \\[2, 3, 4, 5\\], got \\[2, 5, 4\\]"
    yield ErrorSample((x, t.mT), message)
    message = f"{op}: expected target of dtype int64, int32 or uint8, got"
    yield ErrorSample((x, t.bool()), f"{message} bool")
    yield ErrorSample((x, t.double()), f"{message} float64")


def affinity_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("affinity_loss", make)
    x, t = make.normal(2, 3, 4, 5), make.index(3, 2, 4, 5)
    for k in (2, 0, -1):
        message = f"affinity_loss: expected an odd kernel_size of at least 1, got {k}"
        yield ErrorSample((x, t, k), message)
    message = "affinity_loss: expected kernel_size of at most the height and the width of input, \\[4, 5\\], got 5"
    yield ErrorSample((x, t, 5), message)


def field_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("affinity_field_loss", make)
    x, t = make.normal(2, 3, 4, 5), make.index(3, 2, 4, 5)
    for name in ("kl_margin", "lambda_edge", "lambda_not_edge"):
        yield from outside("affinity_field_loss", (x, t), f"{name} >= 0", name, -0.5)


register(
    Op(
        "affinity_loss",
        reference=affinity_loss,
        shape=meta.images("input", "target", kernel_size="kernel_size"),
        samples=affinity_samples,
        errors=affinity_errors,
        source="Yu et al., arXiv 2004.01547, made local",
        indices=("target",),
        count=pairs_of_windows,
        state=number_of_pairs,
        workload=image_workload,
    )
)
register(
    Op(
        "affinity_field_loss",
        reference=affinity_field_loss,
        shape=meta.images("input", "target"),
        samples=field_samples,
        errors=field_errors,
        source="Ke et al., arXiv 1803.10335",
        indices=("target",),
        count=lambda args: (args["target"] != args["ignore_index"]).sum(),
        state=lse_plane,
        workload=image_workload,
    )
)
