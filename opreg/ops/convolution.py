"""Convolutions that know where they are, and convolutions whose kernel the sample decides."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..meta.dims import VALUES, Dims, DimsFunction, Labels
from ..meta.rules import Arguments, ShapeFunction, ShapeRule
from ..meta.sizes import dtype_text, fail, same_shape, shape_text
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import refused


def coord_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution that also sees the row and the column of each element.

    For tasks in which the place matters, which an ordinary convolution can't see. Two channels come before the
    input's: the row and the column, each from -1 at the first to 1 at the last; a single one is at -1. They are padded
    with zeros as the others are. With one group their part is computed once for the whole batch.

    Args:
        input: (N, I, H, W) or (I, H, W).
        weight: (O, (I + 2) / groups, kh, kw), rows first, then columns, then the input's channels.
        bias: (O). All three have one dtype.
        stride: (sh, sw), at least 1; or one number for both.
        padding: (ph, pw) zeros on each side; or one number for both.
        dilation: (dh, dw), at least 1; or one number for both.
        groups: divides I + 2 and O.

    Returns:
        (N, O, H', W') or (O, H', W'), H' = (H + 2 ph - dh (kh - 1) - 1) // sh + 1; channels last where the input is.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or an option is out of range.

    Formula:
        conv2d(cat(rows, columns, input), weight, bias)

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(16, 3 + 2, 3, 3)
        >>> y = opreg.functional.coord_conv2d(x, weight, padding=(1, 1))
    """
    height, width = input.shape[-2:]

    def places(n: int) -> Tensor:
        return 2 * torch.arange(n, dtype=input.dtype, device=input.device) / max(n - 1, 1) - 1

    plane = (*input.shape[:-3], 1, height, width)
    rows, columns = places(height).unsqueeze(1).expand(plane), places(width).expand(plane)
    seen = torch.cat([rows, columns, input], -3)
    return F.conv2d(seen, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def dynamic_conv2d(
    input: Tensor,
    attention: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Convolution with a kernel for each sample: the sum of K kernels, weighted by its attention.

    More capacity at the cost of one convolution: the kernels are summed, not the K results. The attention, usually a
    softmax of what a small branch makes of the input, is an argument.

    Args:
        input: (N, I, H, W) or (I, H, W).
        attention: (N, K) or (K), any weights.
        weight: (K, O, I / groups, kh, kw).
        bias: (K, O), weighted likewise. All have one dtype.
        stride: (sh, sw), at least 1; or one number for both.
        padding: (ph, pw) zeros on each side; or one number for both.
        dilation: (dh, dw), at least 1; or one number for both.
        groups: divides I and O.

    Returns:
        (N, O, H', W') or (O, H', W'), H' = (H + 2 ph - dh (kh - 1) - 1) // sh + 1; channels last where the input is.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or an option is out of range.

    Formula:
        conv2d(x_n, Σ_k a_nk·w_k, Σ_k a_nk·b_k) for each sample n

    Example:
        >>> x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 16, 3, 3, 3)
        >>> attention = torch.randn(2, 4).softmax(1)  # one weight a kernel, for each sample
        >>> y = opreg.functional.dynamic_conv2d(x, attention, weight, padding=(1, 1))
    """
    total = torch.zeros((), dtype=input.dtype, device=input.device)
    for k in range(weight.shape[0]):
        of_kernel = F.conv2d(
            input, weight[k], None if bias is None else bias[k], tuple(stride), tuple(padding), tuple(dilation), groups
        )
        total = total + attention[..., k, None, None, None] * of_kernel
    return total


LEAST = {"stride": 1, "padding": 0, "dilation": 1}
# the largest number that the kernels take as an option
MOST = 2**31 - 1


def both(op: str, name: str, least: int, given: Sequence[int]) -> list[int]:
    """An option of two directions, given as two numbers or as one for both."""
    got = list(given)
    if len(got) not in (1, 2):
        raise fail(op, f"{name} of one number or two", got)
    if min(got) < least:
        raise fail(op, f"{name} of at least {least}", got)
    if max(got) > MOST:
        raise fail(op, f"{name} of at most {MOST}", got)
    return [got[0], got[-1]]


def convolution(letters: str, added: int) -> ShapeFunction:
    """``letters`` are the weight's dimensions before the usual four, ``added`` the channels beside the input's."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, w, groups = args["input"], args["weight"], args["groups"]
        if groups < 1:
            raise fail(op, "groups of at least 1", groups)
        pairs = {name: both(op, name, least, args[name]) for name, least in LEAST.items()}
        if x.dim() not in (3, 4):
            raise fail(op, "input of shape (C, H, W) or (N, C, H, W)", shape_text(x))
        for name, t in args.items():
            if isinstance(t, Tensor) and t.dtype != x.dtype:
                raise fail(op, f"{name} of the dtype of input, {dtype_text(x.dtype)}", dtype_text(t.dtype))
        if w.dim() != 4 + len(letters.split()) or 0 in w.shape:
            raise fail(op, f"weight of shape ({letters}O, I, kh, kw), without empty dimensions", shape_text(w))
        channels, out = x.shape[-3] + added, w.shape[-4]
        if channels % groups or out % groups:
            raise fail(op, f"groups that divide {channels} input and {out} output channels", groups)
        if w.shape[-3] != channels // groups:
            expected = f"weight of shape ({letters}O, {channels // groups}, kh, kw) for input of shape {shape_text(x)}"
            raise fail(op, expected, shape_text(w))
        if x.shape[-2] == 0 or x.shape[-1] == 0:
            raise fail(op, "input of at least one row and one column", shape_text(x))
        padded = [n + 2 * p for n, p in zip(x.shape[-2:], pairs["padding"], strict=True)]
        kernel = [d * (n - 1) + 1 for n, d in zip(w.shape[-2:], pairs["dilation"], strict=True)]
        if kernel[0] > padded[0] or kernel[1] > padded[1]:
            raise fail(op, f"a kernel that fits into the padded input, {padded}", kernel)
        last = [(n - k) // s + 1 for n, k, s in zip(padded, kernel, pairs["stride"], strict=True)]
        return (*x.shape[:-3], out, *last)

    return rule


def expect_shape(op: str, args: Arguments, name: str, shape: Sequence[int]) -> None:
    if args[name] is not None and not same_shape(args[name].shape, shape):
        raise fail(op, f"{name} of shape {shape_text(shape)}", shape_text(args[name]))


of_coord = convolution("", added=2)
of_dynamic = convolution("K, ", added=0)


def convolution_dims(leading: str) -> DimsFunction:
    """Samples and, with one group, output channels can be split; ``leading`` is the weight's dimension before these."""
    first = (leading,) if leading else ()

    def dims(args: Arguments) -> Dims:
        samples: Labels = ("batch",)[: args["input"].dim() - 3]
        out = "out" if args["groups"] == 1 else "channels of all groups"
        labels: dict[str, Labels] = {
            "input": (*samples, "in", "rows", "columns"),
            "weight": (*first, out, "in of a group", "kernel rows", "kernel columns"),
            VALUES: (*samples, "out", "result rows", "result columns"),
        }
        if args["bias"] is not None:
            labels["bias"] = (*first, out)
        if leading:
            labels["attention"] = (*samples, leading)
        return labels

    return dims


def coord_shape(op: str, args: Arguments) -> Sequence[int]:
    result = of_coord(op, args)
    expect_shape(op, args, "bias", args["weight"].shape[:1])
    return result


def dynamic_shape(op: str, args: Arguments) -> Sequence[int]:
    result = of_dynamic(op, args)
    kernels = args["weight"].shape[:2]
    expect_shape(op, args, "attention", (*args["input"].shape[:-3], kernels[0]))
    expect_shape(op, args, "bias", kernels)
    return result


def coord_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(2, 1, 3, 4), make.normal(2, 3, 2, 2)))
    yield Sample(
        (make.normal(2, 2, 5, 4), make.normal(3, 4, 3, 2), make.normal(3)), {"padding": (1, 2)}, "bias, padding"
    )
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    yield Sample((make.normal(1, 1, 4, 5), make.normal(2, 3, 2, 2), make.normal(2)), options, "all options")
    yield Sample((make.normal(2, 2, 3, 3), make.normal(2, 2, 2, 2), make.normal(2)), {"groups": 2}, "groups")
    yield Sample((make.normal(1, 3, 4), make.normal(1, 3, 1, 2), make.normal(1)), name="unbatched")
    yield Sample((make.normal(1, 3, 4), make.normal(3, 1, 2, 1)), {"groups": 3}, name="unbatched groups")
    yield Sample((make.normal(2, 1, 1, 3), make.normal(2, 3, 1, 3)), name="one row")
    one = {"stride": [2], "padding": [1], "dilation": [1]}
    yield Sample((make.normal(2, 1, 3, 4), make.normal(2, 3, 2, 2)), one, name="one number for both directions")
    yield Sample((make.normal(0, 1, 3, 4), make.normal(2, 3, 2, 2), make.normal(2)), name="empty")


def dynamic_samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(2, 1, 3, 4), make.normal(2, 3), make.normal(3, 2, 1, 2, 2)))
    with_bias = (make.normal(2, 2, 3, 4), make.uniform(2, 2), make.normal(2, 1, 2, 3, 2), make.normal(2, 1))
    yield Sample(with_bias, {"padding": (1, 2)}, "bias, padding")
    options = {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)}
    yield Sample((make.normal(1, 1, 4, 5), make.normal(1, 2), make.normal(2, 2, 1, 2, 2)), options, "all options")
    grouped = (make.normal(2, 4, 3, 3), make.normal(2, 2), make.normal(2, 2, 2, 2, 2), make.normal(2, 2))
    yield Sample(grouped, {"groups": 2}, "groups")
    yield Sample(
        (make.normal(2, 3, 4), make.normal(2), make.normal(2, 1, 2, 2, 2), make.normal(2, 1)), name="unbatched"
    )
    one = {"stride": [2], "padding": [1], "dilation": [1]}
    both_ways = (make.normal(1, 1, 3, 4), make.normal(1, 2), make.normal(2, 1, 1, 2, 1))
    yield Sample(both_ways, one, name="one number for both directions")
    empty = (make.normal(0, 1, 3, 4), make.normal(0, 3), make.normal(3, 2, 1, 2, 2), make.normal(3, 2))
    yield Sample(empty, name="empty")


def errors(op: str, make: Maker, weight: Sequence[int], *between: Tensor) -> Iterator[ErrorSample]:
    """What both convolutions refuse; ``weight`` is the shape of one that fits an input (2, 3, 5, 6)."""
    x, w = make.normal(2, 3, 5, 6), make.normal(*weight)
    *lead, out, channels, _, _ = weight
    letters = "K, " * len(lead)
    yield from refused(op, x, *between, w, reduces=False)
    message = f"{op}: expected input of shape \\(C, H, W\\) or \\(N, C, H, W\\), got \\[5, 6\\]"
    yield ErrorSample((make.normal(5, 6), *between, w), message)
    message = f"{op}: expected weight of shape \\({letters}O, I, kh, kw\\), without empty dimensions, got"
    yield ErrorSample((x, *between, w[..., 0]), message)
    yield ErrorSample((x, *between, w[..., :0]), message)
    yield ErrorSample((x, *between, w.float()), f"{op}: expected weight of the dtype of input, float64, got float32")
    message = (
        f"{op}: expected weight of shape \\({letters}O, {channels}, kh, kw\\) for input of shape \\[2, 3, 5, 6\\], got"
    )
    yield ErrorSample((x, *between, w[..., 1:, :, :]), message)
    message = f"{op}: expected groups that divide {channels} input and {out} output channels, got 7"
    yield ErrorSample((x, *between, w), message, {"groups": 7})
    message = f"{op}: expected a kernel that fits into the padded input, \\[7, 6\\], got \\[9, 7\\]"
    options = {"padding": (1, 0), "dilation": (4, 3)}
    yield ErrorSample((x, *between, make.normal(*weight[:-2], 3, 3)), message, options)
    for name, least in LEAST.items():
        message = f"{op}: expected {name} of at least {least}, got \\[1, {least - 1}\\]"
        yield ErrorSample((x, *between, w), message, {name: (1, least - 1)})
        for wrong in ((), (1, 1, 1)):
            message = f"{op}: expected {name} of one number or two, got {re.escape(str(list(wrong)))}"
            yield ErrorSample((x, *between, w), message, {name: wrong})
        for huge in (2**31, 2**62):
            message = f"{op}: expected {name} of at most 2147483647, got \\[{huge}, 1\\]"
            yield ErrorSample((x, *between, w), message, {name: (huge, 1)})
    message = f"{op}: expected input of at least one row and one column, got \\[2, 3, {{}}, {{}}\\]"
    yield ErrorSample((x[:, :, :0], *between, w), message.format(0, 6), {"padding": (2, 2)})
    yield ErrorSample((x[..., :0], *between, w), message.format(5, 0), {"padding": (2, 2)})
    yield ErrorSample((x, *between, w), f"{op}: expected groups of at least 1, got 0", {"groups": 0})


def coord_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("coord_conv2d", make, (4, 5, 3, 2))
    x, w = make.normal(2, 3, 5, 6), make.normal(4, 5, 3, 2)
    yield ErrorSample((x, w, make.normal(5)), "coord_conv2d: expected bias of shape \\[4\\], got \\[5\\]")


def dynamic_errors(make: Maker) -> Iterator[ErrorSample]:
    a = make.normal(2, 2)
    yield from errors("dynamic_conv2d", make, (2, 4, 3, 3, 2), a)
    x, w = make.normal(2, 3, 5, 6), make.normal(2, 4, 3, 3, 2)
    message = "dynamic_conv2d: expected attention of shape \\[2, 2\\], got"
    yield ErrorSample((x, make.normal(2, 3), w), f"{message} \\[2, 3\\]")
    yield ErrorSample((x, make.normal(2), w), f"{message} \\[2\\]")
    yield ErrorSample((x[0], a, w), "dynamic_conv2d: expected attention of shape \\[2\\], got \\[2, 2\\]")
    yield ErrorSample((x, a, w, make.normal(4)), "dynamic_conv2d: expected bias of shape \\[2, 4\\], got \\[4\\]")


SIZES = {"small": (1, 4, 4, 4), "usual": (4, 32, 48, 48), "large": (16, 64, 64, 64), "huge": (128, 128, 128, 128)}


def coord_workload(make: Maker, size: str) -> Iterator[Sample]:
    n, c, h, w = SIZES[size]
    yield Sample((make.normal(n, c, h, w), make.normal(c, c + 2, 3, 3, scale=0.1), make.normal(c)), {"padding": (1, 1)})


def dynamic_workload(make: Maker, size: str) -> Iterator[Sample]:
    n, c, h, w = SIZES[size]
    kernels, bias = make.normal(4, c, c, 3, 3, scale=0.1), make.normal(4, c)
    yield Sample((make.normal(n, c, h, w), make.normal(n, 4), kernels, bias), {"padding": (1, 1)})


def products(args: Arguments, places: int) -> int:
    """Operations of a convolution: two for each product, at each of ``places`` elements of its result."""
    kernel = args["weight"].shape[-3:]
    count: int = 2 * places * kernel.numel()
    return count


def coord_flops(args: Arguments, result: Tensor) -> int:
    return products(args, result.numel())


def coord_backward_flops(args: Arguments, result: Any) -> int:
    in_input, in_weight, _ = args["needs_input_grad"]
    convolutions: int = in_input + in_weight
    return convolutions * products(args, args["grad_output"].numel())


def mixing(args: Arguments, name: str) -> int:
    """Operations of mixing kernels: attention times this tensor, whose first dimension counts the kernels."""
    samples = args["attention"].numel() // args["attention"].shape[-1]
    count: int = 0 if args[name] is None else 2 * samples * args[name].numel()
    return count


def dynamic_flops(args: Arguments, result: Tensor) -> int:
    return products(args, result.numel()) + mixing(args, "weight") + mixing(args, "bias")


def dynamic_backward_flops(args: Arguments, result: Any) -> int:
    """The backward pass mixes the samples' kernels once more."""
    in_input, in_attention, in_weight, in_bias = args["needs_input_grad"]
    convolutions = in_input + (in_attention or in_weight)
    count: int = convolutions * products(args, args["grad_output"].numel())
    count += (1 + in_attention + in_weight) * mixing(args, "weight")
    count += (in_attention + in_bias) * mixing(args, "bias")
    return count


register(
    Op(
        "coord_conv2d",
        reference=coord_conv2d,
        shape=ShapeRule(coord_shape, dims=convolution_dims("")),
        samples=coord_samples,
        errors=coord_errors,
        source="Liu et al., CoordConv, arXiv 1807.03247",
        batch_dims={"weight": None, "bias": None},
        lowered=("input", "weight", "bias"),
        flops={"": coord_flops, "_backward": coord_backward_flops},
        workload=coord_workload,
    )
)
register(
    Op(
        "dynamic_conv2d",
        reference=dynamic_conv2d,
        shape=ShapeRule(dynamic_shape, dims=convolution_dims("kernels")),
        samples=dynamic_samples,
        errors=dynamic_errors,
        source="Chen et al., Dynamic convolution, arXiv 1912.03458",
        batch_dims={"weight": None, "bias": None},
        lowered=("input", "attention", "weight", "bias"),
        flops={"": dynamic_flops, "_backward": dynamic_backward_flops},
        workload=dynamic_workload,
    )
)
