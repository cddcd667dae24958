"""Losses of a linear layer's scores, which are never held as a whole."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments, fail, shape_text
from ..registry import ErrorSample, Op, Sample, register
from ..testing import Maker
from ._common import REDUCTIONS
from .categorical import constants, cross_entropy


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """Cross entropy of a linear layer's scores, without ever holding the (N, C) scores.

    For large vocabularies and many classes, where the scores take more memory than the model: they exist for one chunk
    of rows at a time, and the gradients are computed in the same pass. The scores have the dtype of ``input``, as those
    of ``torch.nn.functional.linear``; losses and sums are float32 (float64).

    Args:
        input: (N, D) or (D) features.
        linear_weight: (C, D), of the dtype of ``input``.
        target: class indices (N) or (), int64, int32 or uint8, each in [0, C) or ``ignore_index``; or class
            probabilities (N, C) or (C), floating.
        linear_bias: (C), of the dtype of ``input``.
        weight: (C), a factor for each class, without gradient where the targets are class indices.
        ignore_index: the class index that does not count; of no meaning for class probabilities.
        reduction: "none", "mean" (over the rows that count, by weight) or "sum".
        label_smoothing: in [0, 1], the part of the target that all classes share evenly.

    Returns:
        The loss: a scalar, or (N) or () where the reduction is "none".

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or an option or, on the CPU, a class index is out of range.

    Formula: cross_entropy(input @ linear_weight.T + linear_bias, target). Source:
    ``torch.nn.functional.linear_cross_entropy``.

    Example:
        >>> hidden, head = torch.randn(6, 8), torch.randn(100, 8)
        >>> target = torch.randint(100, (6,))  # one class index a row
        >>> loss = opreg.functional.linear_cross_entropy(hidden, head, target)
    """
    scores = F.linear(input, linear_weight, linear_bias)
    return cross_entropy(scores, target, weight, ignore_index, reduction, label_smoothing)


# older versions of torch have none
IN_TORCH = hasattr(F, "linear_cross_entropy")


def native(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    **options: Any,
) -> Tensor:
    probabilities = target.is_floating_point()
    result: Tensor = F.linear_cross_entropy(
        input,
        linear_weight,
        target if probabilities else target.long(),
        linear_bias=linear_bias,
        weight=weight,
        ignore_index=None if probabilities else ignore_index,
        **options,
    )
    return result


_of_scores = meta.rows("scores", "target", weight="weight", probabilities=True)


def shape(op: str, args: Arguments) -> Sequence[int]:
    x, w, bias = args["input"], args["linear_weight"], args["linear_bias"]
    if x.dim() not in (1, 2):
        raise fail(op, "input of shape (D) or (N, D)", shape_text(x))
    if w.dim() != 2 or w.shape[1] != x.shape[-1]:
        expected = f"linear_weight of shape (C, {x.shape[-1]}) for input of shape {shape_text(x)}"
        raise fail(op, expected, shape_text(w))
    if bias is not None and bias.shape != w.shape[:1]:
        raise fail(op, f"linear_bias of one entry a class, {shape_text(w.shape[:1])}", shape_text(bias))
    for name, t in (("linear_weight", w), ("linear_bias", bias)):
        if t is not None and t.dtype != x.dtype:
            expected, got = (str(dtype).removeprefix("torch.") for dtype in (x.dtype, t.dtype))
            raise fail(op, f"{name} of the dtype of input, {expected}", got)
    scores = x.new_empty((*x.shape[:-1], w.shape[0]), device="meta")
    return _of_scores(op, {**args, "scores": scores})


def state(shape: Sequence[int], args: Arguments) -> Tensor:
    """The gradients that the forward pass keeps, flat, and the mean's denominator."""
    x: Tensor = args["input"]
    w, mask = args["linear_weight"], args["output_mask"]
    # numbers: torch 2.11 multiplies no symbolic size by a bool
    in_input, in_weight, in_target, in_bias, in_class_weight = map(int, mask)
    size = 1
    if args["reduction"] != "none" and not in_target and not in_class_weight:
        size += in_input * x.numel() + in_weight * w.numel() + in_bias * w.shape[0]
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept: Tensor = x.new_empty((size,), dtype=dtype)
    return kept


def samples(make: Maker) -> Iterator[Sample]:
    def operands(n: int, d: int, c: int) -> tuple[Tensor, Tensor]:
        return make.normal(n, d), make.normal(c, d, scale=0.3)

    for reduction in REDUCTIONS:
        yield Sample((*operands(5, 4, 6), make.index(6, 5)), {"reduction": reduction})
        weight = make.constant(make.uniform(6, low=0.1))
        target = make.index(6, 5, ignore=-100)
        options = {"reduction": reduction, "label_smoothing": 0.1}
        yield Sample((*operands(5, 3, 6), target, make.normal(6), weight), options, "bias, weight, ignored, smoothed")
        shared = (*operands(4, 3, 5), make.uniform(4, 5), make.normal(5), make.uniform(5, low=0.1))
        yield Sample(shared, options, "probabilities")
    options = {"ignore_index": 3, "reduction": "sum"}
    yield Sample((*operands(4, 3, 5), make.index(5, 4, ignore=3, dtype=torch.int32)), options, "int32")
    yield Sample((make.normal(3), make.normal(7, 3), make.index(7)), name="unbatched")
    yield Sample((make.normal(3), make.normal(7, 3), make.uniform(7), make.normal(7)), name="unbatched probabilities")
    yield Sample((*operands(6, 2, 70), make.index(70, 6), make.normal(70)), name="many classes")
    ignored = torch.full((3,), -100, device=make.device)
    yield Sample((*operands(3, 2, 4), ignored, make.normal(4)), name="all ignored", smooth=False)
    yield Sample((*operands(0, 2, 4), make.index(4, 0)), {"reduction": "sum"}, "empty")
    x = make.tensor([[1e3, 0.0], [-1e3, 1e3], [1e3, 1e3]])
    w = make.tensor([[10.0, -10.0], [-10.0, 10.0], [10.0, 10.0]])
    yield Sample((x, w, make.index(3, 3)), name="extremes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    op = "linear_cross_entropy"
    x, w, t = make.normal(4, 3), make.normal(5, 3), make.index(5, 4)
    yield ErrorSample((x, w, t), f'{op}: expected reduction .* got "avg"', {"reduction": "avg"})
    yield ErrorSample((x.long(), w, t), f"{op}: expected input of dtype float64, .* got int64")
    yield ErrorSample(
        (make.normal(2, 4, 3), w, t), f"{op}: expected input of shape \\(D\\) or \\(N, D\\), got \\[2, 4, 3\\]"
    )
    message = f"{op}: expected linear_weight of shape \\(C, 3\\) for input of shape \\[4, 3\\], got"
    yield ErrorSample((x, make.normal(5, 2), t), f"{message} \\[5, 2\\]")
    yield ErrorSample((x, make.normal(3), t), f"{message} \\[3\\]")
    yield ErrorSample((x, w.float(), t), f"{op}: expected linear_weight of the dtype of input, float64, got float32")
    yield ErrorSample(
        (x, w, t, make.normal(4)), f"{op}: expected linear_bias of one entry a class, \\[5\\], got \\[4\\]"
    )
    yield ErrorSample(
        (x, w, t, make.normal(5).half()), f"{op}: expected linear_bias of the dtype of input, float64, got"
    )
    yield ErrorSample((x, make.normal(0, 3), t), f"{op}: expected scores of at least one class, got \\[4, 0\\]")
    message = f"{op}: expected target of shape \\[4\\] for scores of shape \\[4, 5\\], got \\[3\\]"
    yield ErrorSample((x, w, make.index(5, 3)), message)
    yield ErrorSample(
        (x, w, make.uniform(4)), f"{op}: expected target of the shape of scores, got \\[4, 5\\] and \\[4\\]"
    )
    message = f"{op}: expected weight of one entry a class, \\[5\\], got \\[4\\]"
    yield ErrorSample((x, w, t, None, make.constant(make.normal(4))), message)
    message = f"{op}: expected a class index in \\[0, 5\\) or ignore_index -100, got"
    yield ErrorSample((x, w, t + 9), f"{message} \\d+", values=True)
    for value in (-0.1, 1.5, float("nan")):
        message = f"{op}: expected label_smoothing in \\[0, 1\\], got"
        yield ErrorSample((x, w, t), message, {"label_smoothing": value}, True)


def workload(make: Maker, size: str) -> Iterator[Sample]:
    rows, features, classes = {
        "small": (8, 8, 8),
        "usual": (256, 256, 4000),
        "large": (1024, 512, 32000),
        "huge": (8192, 4096, 128256),
    }[size]
    x, w = make.normal(rows, features), make.normal(classes, features, scale=features**-0.5)
    yield Sample((x, w, make.index(classes, rows)))


register(
    Op(
        "linear_cross_entropy",
        reference=linear_cross_entropy,
        shape=shape,
        samples=samples,
        errors=errors,
        source="torch.nn.functional.linear_cross_entropy",
        native=native if IN_TORCH else None,
        spellings=("torch.nn.functional.linear_cross_entropy",) if IN_TORCH else (),
        indices=("target",),
        constants=constants,
        state=state,
        batch_dims={"linear_weight": None, "linear_bias": None, "weight": None},
        lowered=("input", "linear_weight", "linear_bias"),
        workload=workload,
    )
)
