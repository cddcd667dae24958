"""One of the processes of test_sharding.py: ``python sharded_losses.py FOLDER RANK PROCESSES``.

The ops know nothing of DTensor: what a user registers for one is here, and what the calls give on sharded tensors goes
into a file of this process.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.experimental import register_sharding

import opreg  # noqa: F401  registers the ops

ops = torch.ops.lossreg
Sharding = tuple[list[Placement], list[Placement | None]]
# DTensor remembers a decision by shapes and not by options: each case has a batch of its own.
CASES = [
    # which of input and target require grad, reduction, size of the batch
    ((True, False), "none", 6),
    ((False, True), "none", 8),
    ((True, True), "none", 10),
    ((True, False), "sum", 12),
    ((True, True), "sum", 14),
]


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 3, generator=generator), torch.rand(batch, 3, generator=generator)


@register_sharding(ops.focal_loss.default)
def of_result(
    input: Any, target: Any, alpha: float, gamma: float, reduction: str, *, dtype: torch.dtype | None = None
) -> list[Sharding]:
    others: list[Placement | None] = [None] * 3
    result = {"none": Shard(0), "sum": Partial("sum")}[reduction]
    return [([result], [Shard(0), Shard(0), *others]), ([Replicate()], [Replicate(), Replicate(), *others])]


@register_sharding(ops.focal_loss_backward.default)
def of_gradients(
    grad_output: Any,
    input: Any,
    target: Any,
    alpha: float,
    gamma: float,
    reduction: str,
    *,
    needs_input_grad: list[bool],
) -> list[Sharding]:
    others: list[Placement | None] = [None] * 3
    given = {"none": Shard(0), "sum": Replicate()}[reduction]
    # where no gradient is asked for, there is a tensor without elements to place
    gradients: list[Placement] = [Shard(0) if wanted else Replicate() for wanted in needs_input_grad]
    whole: list[Placement] = [Replicate()] * len(needs_input_grad)
    return [(gradients, [given, Shard(0), Shard(0), *others]), (whole, [Replicate()] * 3 + others)]


def full(t: Tensor | None) -> Tensor | None:
    return t.full_tensor() if isinstance(t, DTensor) else t


def main(folder: Path, rank: int, processes: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes)
    mesh = init_device_mesh("cpu", (processes,))
    results = []
    for needs_grad, reduction, batch in CASES:
        x, t = (
            distribute_tensor(a, mesh, [Shard(0)]).requires_grad_(needed)
            for a, needed in zip(inputs(batch), needs_grad, strict=True)
        )
        loss = ops.focal_loss(x, t, 0.25, 2.0, reduction)
        placements = [str(loss.placements[0])]
        (loss.sum() if reduction == "none" else loss.full_tensor()).backward()
        placements += [str(a.grad.placements[0]) for a in (x, t) if a.grad is not None]
        results.append((placements, full(loss.detach()), full(x.grad), full(t.grad)))
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
