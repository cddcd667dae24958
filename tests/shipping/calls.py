"""Calls of an op as a program to export, for the runtimes that know nothing of lossreg."""

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import opreg
from opreg.meta.schema import bind
from opreg.testing import Maker, joined


def kind(op: opreg.Op, sample: opreg.Sample) -> tuple[object, ...]:
    """Samples of one kind differ in sizes and values alone: these make one graph."""
    bound = bind(op.value, sample.args, sample.kwargs)
    tensors = [(name, a.is_floating_point()) for name, a in bound.items() if isinstance(a, Tensor)]
    return (*tensors, *(name for name in sample.kwargs if name != "reduction"))


def calls_of(op: opreg.Op, most: int = 3) -> list[opreg.Sample]:
    """A sample of each kind, the simplest kinds first, in every reduction that it can have."""
    samples = [s for s in op.samples(Maker(torch.float32)) if all(t.numel() for t in tensors_of(s))]
    first = {kind(op, s): s for s in reversed(samples)}
    ordered = [s for s in samples if first[kind(op, s)] is s][:most]
    if not op.reduces:
        return ordered
    reductions = ("none", "mean", "sum")
    return [reduced(op, s, reduction) for s, reduction in itertools.product(ordered, reductions)]


def reduced(op: opreg.Op, sample: opreg.Sample, reduction: str) -> opreg.Sample:
    place = op.arguments.index("reduction")
    if len(sample.args) > place:  # given by position
        return opreg.Sample((*sample.args[:place], reduction, *sample.args[place + 1 :]), sample.kwargs)
    return opreg.Sample(sample.args, {**sample.kwargs, "reduction": reduction})


def tensors_of(sample: opreg.Sample) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((sample.args, sample.kwargs)) if isinstance(leaf, Tensor)]


class Calls(nn.Module):
    """Several calls of an op in one program, for an export costs a second or more; its inputs are all their tensors."""

    def __init__(self, op: opreg.Op, samples: list[opreg.Sample]) -> None:
        super().__init__()
        self.op, self.samples = op, samples

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        results = []
        for sample in self.samples:
            args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), (sample.args, sample.kwargs))
            results.append(joined(self.op.value(*args, **kwargs)))
        return tuple(results)

    @property
    def tensors(self) -> list[Tensor]:
        """What they take: a tensor each, for a runtime may make one input of those that are the same."""
        return [t.clone() for sample in self.samples for t in tensors_of(sample)]

    def check(self, results: Iterable[Tensor]) -> None:
        """That a runtime's results are those of eager mode."""
        for sample, got, want in zip(self.samples, results, self(*self.tensors), strict=True):
            torch.testing.assert_close(
                got, want, rtol=2e-5, atol=2e-6, equal_nan=True, msg=lambda m, s=sample: f"{s.kwargs}: {m}"
            )
