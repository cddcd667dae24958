"""Samples of the losses that have one class index a row, and of what they refuse."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..op import ErrorSample, Sample
from ..testing import Maker
from ._common import REDUCTIONS, index_errors, refused


def row_samples(
    make: Maker, draw: Callable[..., Tensor], *, weight: bool = False, prior: bool = False, **shared: Any
) -> Iterator[Sample]:
    """Calls of a loss of class indices: each shape, layout and kind of target for which a kernel has a path of its own.

    With ``prior`` every call has a third tensor, of one number a class; with ``weight`` some have.
    """

    def sample(*shape: int, name: str = "", dtype: torch.dtype = torch.int64, **options: Any) -> Sample:
        classes = shape[min(1, len(shape) - 1)]
        target = make.index(classes, *shape[:-1][:1], *shape[2:], ignore=options.get("ignore_index"), dtype=dtype)
        entries = prior or (weight and "weight" in name)
        third = (make.constant(make.uniform(classes, low=0.1)),) if entries else ()
        return Sample((draw(*shape), target, *third), {**options, **shared}, name)

    for reduction in REDUCTIONS:
        yield sample(5, 7, reduction=reduction)
        name = "weight, ignored" if weight else "ignored"
        yield sample(3, 7, 4, reduction=reduction, ignore_index=-100, name=name)
    yield sample(2, 3, 4, 5, ignore_index=1)
    yield sample(2, 3, 2, 3, 2, ignore_index=9)
    yield sample(6, 5, dtype=torch.int32, name="int32")
    yield sample(6, 5, ignore_index=255, dtype=torch.uint8, name="uint8")
    yield sample(5, name="unbatched")
    yield sample(4, 1, name="one class")
    # more classes than a tile has rows: the kernels then run along the classes
    yield sample(3, 130, reduction="sum", ignore_index=-100, name="many classes")
    yield sample(0, 4, reduction="sum", name="empty")
    ignored = sample(3, 4)
    for reduction in ("sum", "mean"):
        args = (ignored.args[0], torch.full_like(ignored.args[1], -100), *ignored.args[2:])
        yield Sample(args, {"reduction": reduction, **shared}, "all ignored", smooth=reduction == "sum")


def number_of_valid(args: Mapping[str, Any]) -> Tensor:
    """What the mean of a loss of class indices divides by: the positions that are not ignored."""
    number: Tensor = (args["target"] != args["ignore_index"]).sum()
    return number


def weight_of_valid(args: Mapping[str, Any]) -> Tensor | None:
    """The same where each position counts by the weight of its class; None beside class probabilities."""
    target, weight = args["target"], args["weight"]
    if target.is_floating_point():
        return None
    if weight is None:
        return number_of_valid(args)
    valid = target != args["ignore_index"]
    sum_of_weights: Tensor = torch.where(valid, weight.double()[torch.where(valid, target, 0).long()], 0.0).sum()
    return sum_of_weights


def extreme_rows(make: Maker) -> Tensor:
    """Four rows of three scores."""
    return make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0]])


def row_errors(
    op: str, make: Maker, *extra: Tensor, input: str = "input", least: str = "one class"
) -> Iterator[ErrorSample]:
    """What every loss of class indices refuses; ``extra`` are further required tensors."""
    x, t = make.normal(4, 3), make.index(3, 4)
    yield from refused(op, x, t, *extra, input=input)
    message = f"{op}: expected {input} of shape \\(C\\) or \\(N, C, ...\\), got \\[\\]"
    yield ErrorSample((make.normal(), t, *extra), message)
    message = f"{op}: expected target of shape \\[4\\] for {input} of shape \\[4, 3\\], got \\[3\\]"
    yield ErrorSample((x, make.index(3, 3), *extra), message)
    few = ("one class", "two classes").index(least)
    message = f"{op}: expected {input} of at least {least}, got \\[4, {few}\\]"
    yield ErrorSample((make.normal(4, few), t, *extra), message)
    yield from index_errors(op, x, t, *extra)


def class_errors(op: str, name: str, make: Maker) -> Iterator[ErrorSample]:
    """What is refused of a tensor of one entry a class."""
    x, t = make.normal(4, 3), make.index(3, 4)
    message = f"{op}: expected {name} of one entry a class, \\[3\\], got \\[4\\]"
    yield ErrorSample((x, t, make.constant(make.uniform(4))), message)
