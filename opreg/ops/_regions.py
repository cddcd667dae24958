"""Losses of regions of pixels: the sums that they are made of, and their samples, errors and declarations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments
from ..op import ErrorSample, Sample
from ..testing import Maker
from ._common import REDUCTIONS, image_workload, index_errors, outside, refused


def one_hot(input: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Whether each pixel is valid, (N, 1, d1 … dk); and a 1 for its class, of the shape of ``input``.

    A class index out of range gives NaN, as it does on a GPU: where this runs in the kernel's place nothing can raise.
    """
    target, count = target.unsqueeze(1), input.shape[1]
    valid = target != ignore_index
    classes = torch.arange(count, device=input.device).view(-1, *[1] * (input.dim() - 2))
    hits = ((target == classes) & valid).to(input.dtype)
    return valid, torch.where(valid & ((target < 0) | (target >= count)), torch.nan, hits)


def summed(terms: Tensor, weight: Tensor | None, batch: bool) -> Tensor:
    """The sums of each region's (N, C, d1 … dk), weighted by class."""
    if weight is not None:
        terms = weight.view(-1, *[1] * (terms.dim() - 2)) * terms
    return terms.sum() if batch else terms.flatten(1).sum(1)


def overlap_sums(
    input: Tensor, target: Tensor, p: float, weight: Tensor | None, ignore_index: int, batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of each region, weighted by class: Σ s·y, Σ s^p and Σ y^p, with s = σ(input) and y the target."""
    if target.is_floating_point():
        q = input.sigmoid()
        y, of_q = target, q**p
    else:
        valid, y = one_hot(input, target, ignore_index)
        # 0.5 at ignored pixels, whatever they hold: no derivative of q^p is infinite there
        q = torch.where(valid, input, 0.0).sigmoid()
        of_q = torch.where(valid, q**p, 0.0)
    return summed(q * y, weight, batch), summed(of_q, weight, batch), summed(y**p, weight, batch)


def region_sums(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, batch: bool
) -> dict[str, Tensor]:
    """Of each region, weighted by class, all that a loss may be a function of, by the names of ``REGION_SUMS``."""
    if target.is_floating_point():
        s, y = input.sigmoid(), target
    else:
        valid, y = one_hot(input, target, ignore_index)
        s = torch.where(valid, torch.where(valid, input, 0.0).sigmoid(), 0.0)
    terms = {"tp": s * y, "fp": s * (1 - y), "fn": (1 - s) * y, "predicted": s, "true": y, "union": s + y - s * y}
    sums = {name: summed(term, weight, batch) for name, term in terms.items()}
    return {**sums, "intersection": sums["tp"]}


NOTHING_IN_COMMON = ("all ignored", "empty samples", "extremes", "empty batch")
"""The samples in which regions are empty, or a predicted and a true one apart."""


def region_samples(make: Maker, **shared: Any) -> Iterator[Sample]:
    """Calls of a loss of class indices, with options that all share."""

    def sample(x: Tensor, t: Tensor, name: str = "", *, smooth: bool = True, **options: Any) -> Sample:
        return Sample((x, t), {**shared, **options}, name, smooth)

    for reduction in REDUCTIONS:
        yield sample(make.normal(2, 3, 5), make.index(3, 2, 5), reduction=reduction)
    x, t = make.normal(2, 4, 2, 3, scale=3), make.index(4, 2, 2, 3, ignore=255, dtype=torch.uint8)
    yield sample(x, t, "ignored", ignore_index=255, reduction="none")
    yield sample(make.normal(2, 3, 3, 2, 2), make.index(3, 2, 3, 2, 2, ignore=1), ignore_index=1)
    yield sample(make.normal(2, 6), make.index(6, 2, dtype=torch.int32), "no pixels", reduction="none")
    yield sample(make.normal(1, 2, 23, 31), make.index(2, 1, 23, 31, ignore=-100), "several tiles")
    yield sample(make.normal(0, 2, 3), make.index(2, 0, 3), "empty", reduction="sum")
    x = make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0]])
    yield sample(x, make.index(3, 3), "extremes", smooth=False, reduction="none")
    ignored = torch.full((2, 3), -100, device=make.device)
    yield sample(make.normal(2, 2, 3), ignored, "all ignored", reduction="none")
    yield sample(make.normal(2, 2, 0), make.index(2, 2, 0), "empty samples", reduction="none")


def overlap_samples(
    make: Maker, *options: Mapping[str, Any], required: Mapping[str, Any] | None = None
) -> Iterator[Sample]:
    """Of the losses of a sigmoid. ``options``: choices of an op's own, ``required``: those that it has to have."""
    own = dict(required or {})
    yield from region_samples(make, **own)
    w = make.constant(make.uniform(3, low=0.1))
    for chosen in options:
        x, t = make.normal(2, 3, 4), make.index(3, 2, 4, ignore=-100)
        yield Sample((x, t), {**chosen, "weight": w, "reduction": "none"}, "weight, ignored")
        y = make.uniform(2, 3, 5, low=0.1, high=0.9)
        yield Sample((make.normal(2, 3, 5), y), {**chosen, "reduction": "none"}, "probabilities")
        yield Sample((x, t), {**chosen, "batch": True}, "batch")
    y = make.uniform(2, 3, 2, 2, low=0.1, high=0.9)
    all_set = {**options[-1], "weight": w, "batch": True}
    yield Sample((make.normal(2, 3, 2, 2), y), all_set, name="batch, probabilities")
    yield Sample((make.normal(5, 300), make.index(300, 5)), {**own, "batch": True}, "many classes")
    yield Sample((make.normal(0, 2, 3), make.index(2, 0, 3)), {**own, "batch": True}, "empty batch")


def region_errors(op: str, make: Maker, reduces: bool = True) -> Iterator[ErrorSample]:
    """What every loss of regions refuses."""
    x, t = make.normal(2, 3, 4), make.index(3, 2, 4)
    yield from refused(op, x, t, reduces=reduces)
    yield ErrorSample((x[0, 0], t), f"{op}: expected input of shape \\(N, C, ...\\), got \\[4\\]")
    message = f"{op}: expected target of shape \\[2, 4\\] for input of shape \\[2, 3, 4\\], got \\[2, 3\\]"
    yield ErrorSample((x, t[:, :3]), message)
    yield ErrorSample((x[:, :0], t), f"{op}: expected input of at least one class, got \\[2, 0, 4\\]")
    yield from index_errors(op, x, t)


def overlap_errors(op: str, **options: tuple[str, tuple[float, ...]]) -> Callable[[Maker], Iterator[ErrorSample]]:
    """``options``: what each of an op's own must be, and values that it may not have."""

    def errors(make: Maker) -> Iterator[ErrorSample]:
        x, t = make.normal(2, 3, 4), make.index(3, 2, 4)
        yield from region_errors(op, make)
        message = f"{op}: expected target of the shape of input, got \\[2, 3, 4\\] and \\[2, 4\\]"
        yield ErrorSample((x, make.uniform(2, 4)), message)
        message = f"{op}: expected weight of one entry a class, \\[3\\], got \\[4\\]"
        yield ErrorSample((x, t), message, {"weight": make.constant(make.normal(4))})
        for option, (domain, values) in options.items():
            yield from outside(op, (x, t), domain, option, *values)

    return errors


def overlap_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Three numbers a sample, or for the batch."""
    regions = 1 if args["batch"] else args["input"].shape[0]
    state: Tensor = args["input"].new_empty((regions * 3,), dtype=torch.float64)
    return state


OVERLAP: Mapping[str, Any] = {
    "shape": meta.regions("input", "target", weight="weight", soft=True, batch="batch"),
    "indices": ("target",),
    "constants": lambda args: () if args["target"].is_floating_point() else ("target",),
    "whole": lambda args: "with batch=True its sums run over the whole batch" if args["batch"] else "",
    "state": overlap_state,
    "batch_dims": {"weight": None},
    "workload": image_workload,
}
"""What the declarations of all losses of a sigmoid's regions say."""
