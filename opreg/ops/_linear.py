"""A linear layer whose scores an op computes by itself: its tensors, their shapes and what is refused of them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..meta.dims import CLASSES, VALUES, Dims, Labels
from ..meta.rules import Arguments, ShapeRule
from ..meta.sizes import dtype_text, fail, same_shape, same_size, shape_text
from ..op import ErrorSample, Sample
from ..testing import Maker
from ._common import refused


def scores_of(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> Tensor:
    """(C), (..., C) or (N, C, d1 … dk)."""
    scores = F.linear(input, linear_weight.flatten(0, -2), None if linear_bias is None else linear_bias.flatten())
    outputs = linear_weight.shape[:-1]
    return scores.unflatten(-1, outputs) if len(outputs) > 1 else scores


def shape(of_scores: ShapeRule, op: str, args: Arguments) -> Sequence[int]:
    x, w, t, bias = args["input"], args["linear_weight"], args["target"], args["linear_bias"]
    if x.dim() == 0:
        raise fail(op, "input of shape (..., D)", "[]")
    if w.dim() < 2 or not same_size(w.shape[-1], x.shape[-1]):
        expected = f"linear_weight of shape (C, ..., {x.shape[-1]}) for input of shape {shape_text(x)}"
        raise fail(op, expected, shape_text(w))
    require_dtype_of_input(op, args, "linear_weight")
    leading, outputs = x.shape[:-1], w.shape[:-1]
    if len(outputs) > 1 and len(leading) != 1:
        expected = f"input of shape (N, {x.shape[-1]}) for linear_weight of shape {shape_text(w)}"
        raise fail(op, expected, shape_text(x))
    if bias is not None:
        if not same_shape(bias.shape, outputs):
            expected = f"linear_bias of shape {shape_text(outputs)} for linear_weight of shape {shape_text(w)}"
            raise fail(op, expected, shape_text(bias))
        require_dtype_of_input(op, args, "linear_bias")
    if len(leading) > 1:
        # the row kernels take no more than one dimension before the classes
        probabilities = t.is_floating_point()
        expected_shape = (*leading, w.shape[0]) if probabilities else leading
        if not same_shape(t.shape, expected_shape):
            expected = f"target of shape {shape_text(expected_shape)} for input of shape {shape_text(x)}"
            raise fail(op, expected, shape_text(t))
        rows = math.prod(leading)
        t = t.new_empty((rows, w.shape[0]) if probabilities else (rows,))
        leading_of_scores: Sequence[int] = (rows,)
    else:
        leading_of_scores = leading
    scores = x.new_empty((*leading_of_scores, *outputs), device="meta")
    of_scores(op, {**args, "scores": scores, "target": t})
    if t.is_floating_point() and args["ignore_index"] != -100:
        raise fail(op, "class indices as target beside an ignore_index", "class probabilities", args["ignore_index"])
    return (*leading, *outputs[1:])


def dims(args: Arguments) -> Dims:
    """Rows, places and classes; features are joined in the products."""
    leading: Labels = tuple(f"row{k}" for k in range(args["input"].dim() - 1))
    places: Labels = tuple(range(1, args["linear_weight"].dim() - 1))
    rows, probabilities = (*leading, *places), args["target"].is_floating_point()
    scores = (*leading, CLASSES, *places) if places else (*leading, CLASSES)
    labels: dict[str, Labels] = {
        "input": (*leading, "features"),
        "linear_weight": (CLASSES, *places, "features"),
        "target": scores if probabilities else rows if args["target"].dim() == len(rows) else ("one",),
        VALUES: rows,
    }
    if args["linear_bias"] is not None:
        labels["linear_bias"] = (CLASSES, *places)
    if args.get("weight") is not None:
        labels["weight"] = (CLASSES,)
    return labels


def require_dtype_of_input(op: str, args: Arguments, name: str) -> None:
    of_input, dtype = args["input"].dtype, args[name].dtype
    if dtype != of_input:
        raise fail(op, f"{name} of the dtype of input, {dtype_text(of_input)}", dtype_text(dtype))


def flops_of_recomputation(args: Arguments, result: Any = None) -> int:
    in_input, in_weight, *_ = args["needs_input_grad"]
    return flops_of_scores(args) * (1 + int(in_input) + int(in_weight))


def flops_of_scores(args: Arguments, result: Any = None) -> int:
    x, w = args["input"], args["linear_weight"]
    count: int = 2 * x.shape[:-1].numel() * w.numel()
    return count


def drawn(make: Maker, n: int, d: int, c: int) -> tuple[Tensor, Tensor]:
    return make.normal(n, d), make.normal(c, d, scale=0.3)


def extremes(make: Maker) -> tuple[Tensor, Tensor]:
    x = make.tensor([[1e3, 0.0], [-1e3, 1e3], [1e3, 1e3]])
    return x, make.tensor([[10.0, -10.0], [-10.0, 10.0], [10.0, 10.0]])


def errors_of_operands(op: str, make: Maker, *, reduces: bool = True) -> Iterator[ErrorSample]:
    x, w, t = make.normal(4, 3), make.normal(5, 3), make.index(5, 4)
    yield from refused(op, x, w, t, reduces=reduces)
    yield ErrorSample((make.normal(), w, t), f"{op}: expected input of shape \\(..., D\\), got \\[\\]")
    sequences = make.normal(2, 4, 3)
    message = f"{op}: expected target of shape \\[2, 4\\] for input of shape \\[2, 4, 3\\], got \\[4\\]"
    yield ErrorSample((sequences, w, t), message)
    places = make.normal(5, 2, 3)
    for wrong in (make.normal(3), sequences):
        message = f"{op}: expected input of shape \\(N, 3\\) for linear_weight of shape \\[5, 2, 3\\], got \\[.*3\\]"
        yield ErrorSample((wrong, places, make.index(5, 2)), message)
    message = f"{op}: expected target of shape \\[4, 2\\] for scores of shape \\[4, 5, 2\\], got \\[4\\]"
    yield ErrorSample((x, places, t), message)
    message = f"{op}: expected linear_weight of shape \\(C, ..., 3\\) for input of shape \\[4, 3\\], got"
    yield ErrorSample((x, make.normal(5, 2), t), f"{message} \\[5, 2\\]")
    yield ErrorSample((x, make.normal(3), t), f"{message} \\[3\\]")
    yield ErrorSample((x, w.float(), t), f"{op}: expected linear_weight of the dtype of input, float64, got float32")
    message = f"{op}: expected linear_bias of shape \\[5\\] for linear_weight of shape \\[5, 3\\], got \\[4\\]"
    yield ErrorSample((x, w, t, make.normal(4)), message)
    message = f"{op}: expected linear_bias of shape \\[5, 2\\] for linear_weight of shape \\[5, 2, 3\\], got \\[5\\]"
    yield ErrorSample((x, places, make.index(5, 4, 2), make.normal(5)), message)
    yield ErrorSample(
        (x, w, t, make.normal(5).half()), f"{op}: expected linear_bias of the dtype of input, float64, got"
    )
    yield ErrorSample((x, make.normal(0, 3), t), f"{op}: expected scores of at least one class, got \\[4, 0\\]")
    message = f"{op}: expected target of shape \\[4\\] for scores of shape \\[4, 5\\], got \\[3\\]"
    yield ErrorSample((x, w, make.index(5, 3)), message)
    message = f"{op}: expected a class index in \\[0, 5\\) or ignore_index -100, got"
    yield ErrorSample((x, w, t + 9), f"{message} \\d+", values=True)


def workload(make: Maker, size: str) -> Iterator[Sample]:
    rows, features, classes = {
        "small": (8, 8, 8),
        "usual": (256, 256, 4000),
        "large": (1024, 512, 32000),
        "huge": (8192, 4096, 128256),
    }[size]
    x, w = make.normal(rows, features), make.normal(classes, features, scale=features**-0.5)
    yield Sample((x, w, make.index(classes, rows)))
