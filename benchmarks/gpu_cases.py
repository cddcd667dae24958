"""The calls that are predicted for a GPU, and timed on one: large ones, whose time is that of memory.

Their tensors hold zeros, which take no memory before somebody writes there: the largest have gigabytes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opreg import Op, Sample, bench
from opreg.testing import Maker, tensors_with_grad

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
bench.ELEMENTS["gpu"] = 2**24
bench.ROWS["gpu"] = ((1024, 32000), (8, 19, 512, 512))
# Sizes of one op besides: few wide rows, a language model's, a classifier's, few classes.
ROWS = {"cross_entropy": ((64, 128256), (4096, 128256), (65536, 1000), (65536, 10))}
bench.ROWS.update(ROWS)
# Rows, features and classes of the heads of two language models, Llama 3 and Gemma 2; in bfloat16.
HEADS = ((8192, 4096, 128256), (8192, 2304, 256000))
# What a training step asks gradients of, where that is not the first argument alone.
TRAINED = {
    "linear_cross_entropy": 2, "linear_log_prob": 2, "triplet_margin_loss": 3, "triplet_margin_with_distance_loss": 3,
    "coord_conv2d": 2, "dynamic_conv2d": 3, "clip_loss": 3, "siglip_loss": 4, "nt_xent_loss": 2,
}  # fmt: skip
# The tensors of ResNet-50, nearly: 160 of them, 25 million elements.
AVERAGED = [(2048, 512)] * 8 + [(1024, 1024)] * 12 + [(256, 1024)] * 12 + [(256,)] * 128


class Zeros(Maker):
    """Draws zeros, whatever is asked for."""

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return self._zeros(*shape)

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._zeros(*shape)

    def signs(self, *shape: int) -> Tensor:
        return self._zeros(*shape)

    def bits(self, *shape: int) -> Tensor:
        return self._zeros(*shape)

    def index(self, classes: int, *shape: int, ignore: int | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=self.device)


class OnDevice(Maker):
    """Draws where the values are wanted: on a GPU, gigabytes take no time there."""

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        t = torch.empty(shape, device=self.device, dtype=self.dtype)
        return t.uniform_(low, high).requires_grad_(self.requires_grad)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        t = torch.empty(shape, device=self.device, dtype=self.dtype)
        return t.normal_(0, scale).requires_grad_(self.requires_grad)

    def index(self, classes: int, *shape: int, ignore: int | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, device=self.device, dtype=torch.int64).random_(0, classes).to(dtype)


@dataclass(frozen=True)
class GpuCase:
    op: Op
    dtype: str
    sample: Sample

    @property
    def shape(self) -> str:
        first = self.sample.args[0]
        tensors = first if isinstance(first, Sequence) else [first]
        if tensors is first:
            return f"{len(tensors)} tensors"
        weight = self.sample.args[1].shape[:1] if "linear_weight" in self.op.arguments else ()
        return "×".join(map(str, (*tensors[0].shape, *weight)))

    @property
    def title(self) -> str:
        return f"{self.op.short} {self.shape} {self.dtype}"


def shapes(op: Op, size: str) -> Iterator[dict[str, tuple[int, ...]]]:
    """Of the required tensors of an op that declares no calls of its own."""
    yield from bench.shapes_of(op, size)
    if size == "gpu" and op.short in ROWS:
        yield from bench.shapes_of(op, op.short)


def samples(op: Op, make: Maker, size: str) -> Iterator[Sample]:
    """Large ones: size "gpu"; others show that it works."""
    if op.mutated:
        shapes_of = AVERAGED if size == "gpu" else AVERAGED[-1:]
        pairs = [[make.uniform(*shape) for shape in shapes_of] for _ in range(2)]
        yield Sample((*pairs, 0.999))
    elif op.workload is not None:
        yield from op.workload(make, "large" if size == "gpu" else size)
        if "linear_weight" in op.arguments and size == "gpu" and make.dtype == torch.bfloat16:
            for rows, features, classes in HEADS:
                x, w = make.normal(rows, features), make.normal(classes, features, scale=features**-0.5)
                yield Sample((x, w, make.index(classes, rows)))
    else:
        first = bench.small_calls(op)[0]
        for of in shapes(op, size):
            lead = of[op.tensor_arguments[0]]
            args: list[Any] = []
            for a in op.value._schema.arguments:
                if a.name in of and first[a.name].is_floating_point():
                    args.append(make.uniform(*of[a.name], low=0.1, high=0.9))
                elif a.name in of:
                    args.append(make.index(lead[-1 if len(lead) < 2 else 1], *of[a.name], dtype=first[a.name].dtype))
                elif not a.has_default_value():
                    args.append(first[a.name])
            yield Sample(tuple(args))


def cases(op: Op, dtype: str, make: Maker | None = None, size: str = "gpu") -> Iterator[GpuCase]:
    for sample in samples(op, make or Zeros(DTYPES[dtype]), size):
        trained = op.differentiable[: TRAINED.get(op.short, 1)]
        for name, a in zip(op.arguments, sample.args, strict=False):
            if isinstance(a, Tensor):
                a.requires_grad_(name in trained)
        yield GpuCase(op, dtype, sample)


def floor_bytes(case: GpuCase) -> dict[str, int]:
    """What each pass must move: its inputs, its result, and the gradients."""
    tensors = [a for a in (*case.sample.args, *case.sample.kwargs.values()) if isinstance(a, Tensor)]
    if case.op.mutated:
        averages, params = case.sample.args[:2]
        return {"forward": sum(2 * a.nbytes + p.nbytes for a, p in zip(averages, params, strict=True))}
    inputs = sum(t.nbytes for t in tensors)
    wanted = sum(t.nbytes for t in tensors_with_grad(case.op, case.sample).values())
    result = 0 if case.op.is_loss else tensors[0].nbytes
    return {"forward": inputs + result, "backward": inputs + result + wanted}
