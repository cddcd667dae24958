"""Whether an op of somebody's own can be computed in parts, as its shape rule has it: its samples are asked.

A rule says which element of which tensor a value belongs to. It does not say that the definition looks at nothing else,
nor what a mean divides by. For opreg's own ops tests hold that; for others it is tried once, before a call is split.
"""

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..meta.dims import VALUES
from ..meta.schema import bind, results_of
from ..op import Op
from ..testing import Maker


@lru_cache(maxsize=1024)
def objection(op: Op, label: Hashable) -> str:
    """Why the op can't be computed in parts along this dimension; nothing where each of its samples can."""
    # in a thread of its own: what traces here would meet the calls
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_objection, op, label).result()


def _objection(op: Op, label: Hashable) -> str:
    assert op.rule.dims is not None
    tried = False
    for sample in op.samples(Maker()):
        bound = bind(op.value, sample.args, sample.kwargs)
        dims = op.rule.dims(bound)
        if label not in dims[VALUES]:
            continue
        wholes = values(op, bound)
        place = dims[VALUES].index(label)
        if any(t.shape != wholes[0].shape for t in wholes):
            return "its results have several shapes, and its shape rule speaks of one"
        size = wholes[0].shape[place]
        if size < 2:
            continue
        tried = True
        halves = zip(*(values(op, part(bound, dims, label, size, first)) for first in (True, False)), strict=True)
        if not all(close(torch.cat(both, place), whole) for both, whole in zip(halves, wholes, strict=True)):
            return "one of its samples gives other values in parts than as a whole"
        if op.reduces and not close_all(reduced(op, bound, "sum"), [t.sum() for t in wholes]):
            return "its sum is not that of its values"
        if op.reduces and not close_all(reduced(op, bound, "mean"), [mean(op, bound, t) for t in wholes]):
            return "its mean is not that of its values: declare what it divides by, count= of opreg.Op"
    return "" if tried else "none of its samples has two elements there, which would show that it can be split"


def values(op: Op, bound: Mapping[str, Any]) -> tuple[Tensor, ...]:
    return reduced(op, bound, "none") if op.reduces else results_of(op.call_reference(**bound))


def reduced(op: Op, bound: Mapping[str, Any], reduction: str) -> tuple[Tensor, ...]:
    return results_of(op.call_reference(**{**bound, "reduction": reduction}))


def mean(op: Op, bound: Mapping[str, Any], whole: Tensor) -> Tensor:
    total = (whole if op.averaged is None else op.averaged(whole, bound)).sum()
    count = None if op.count is None else op.count(bound)
    return total / (whole.numel() if count is None else count)


def part(bound: Mapping[str, Any], dims: Mapping[str, Any], label: Hashable, size: int, first: bool) -> dict[str, Any]:
    """The arguments of one half of a call; a tensor that broadcasts along the dimension stays as it is."""
    made = dict(bound)
    for name, of_tensor in dims.items():
        if name != VALUES and label in of_tensor and bound[name].shape[of_tensor.index(label)] == size:
            half = size // 2
            dim = of_tensor.index(label)
            made[name] = bound[name].narrow(dim, *((0, half) if first else (half, size - half)))
    return made


def close_all(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(close(a, b) for a, b in zip(found, expected, strict=True))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True)
