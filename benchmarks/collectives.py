"""Bytes that a process sends for a loss over classes that are split: ours, and what others' losses send.

Counted from the collectives of a step, forward and backward, traced on a process group that only pretends to have so
many processes. A ring is assumed: an all-reduce of n bytes over P processes sends 2 n (P − 1) / P from each, an
all-gather or a reduce-scatter of n bytes in all sends n (P − 1) / P.

    python benchmarks/collectives.py > benchmarks/results/collectives.md
"""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard, init_device_mesh
from torch.distributed.tensor.parallel import loss_parallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import opreg

ROWS, CLASSES, FEATURES = 256, 131072, 64
PROCESSES = (8, 64, 1024)


class Messages(TorchDispatchMode):
    """The collectives of what runs inside: name, bytes of its larger side."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(t, DTensor) for t in types):  # what it makes of the call is seen then
            return NotImplemented
        result = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        kind = next((k for k in ("all_reduce", "allreduce", "gather", "scatter") if k in name), "")
        if namespace in ("_c10d_functional", "c10d") and kind:
            tensors = [t for t in torch.utils._pytree.tree_leaves((args, result)) if isinstance(t, Tensor)]
            self.sent.append((kind, max(t.numel() * t.element_size() for t in tensors)))
        return result


def ring(kind: str, size: int, processes: int) -> float:
    rounds = 2 if kind in ("all_reduce", "allreduce") else 1
    return rounds * size * (processes - 1) / processes


def megatron(scores: Tensor, target: Tensor) -> Tensor:
    """The messages of Megatron-LM's vocab_parallel_cross_entropy: a maximum, the target's score, a sum."""
    top = scores.detach().amax(-1)
    dist.all_reduce(top, dist.ReduceOp.MAX)
    shifted = scores - top.unsqueeze(-1)
    own, total = shifted[:, 0].detach().clone(), shifted.detach().exp().sum(-1)
    dist.all_reduce(own)
    dist.all_reduce(total)
    return (total.log() - own + 0 * shifted.sum(-1)).mean()


def losses(processes: int) -> dict[str, Callable[[], Tensor]]:
    mesh = init_device_mesh("cpu", (processes,))
    local = CLASSES // processes
    scores = torch.randn(ROWS, local, requires_grad=True)
    target = torch.randint(0, CLASSES, (ROWS,))
    hidden, head = torch.randn(ROWS, FEATURES, requires_grad=True), torch.randn(local, FEATURES, requires_grad=True)
    sharded = DTensor.from_local(scores, mesh, [Shard(1)], run_check=False)
    rows = DTensor.from_local(target, mesh, [Replicate()], run_check=False)

    def of_torch() -> Tensor:
        with loss_parallel():
            loss = F.cross_entropy(sharded, rows)
            loss.backward()
        return loss

    def gathered() -> Tensor:
        return F.cross_entropy(sharded.redistribute(mesh, [Replicate()]).to_local(), target)

    return {
        "opreg, plain function": lambda: opreg.distributed.vocab_parallel_cross_entropy(scores, target),
        "opreg, DTensor": lambda: torch.ops.lossreg.cross_entropy(sharded, rows),
        "opreg, label smoothing": lambda: opreg.distributed.vocab_parallel_cross_entropy(
            scores, target, label_smoothing=0.1
        ),
        "Megatron-LM": lambda: megatron(scores, target),
        "torch loss_parallel (torchtitan)": of_torch,
        "scores gathered": gathered,
        f"opreg, linear layer of {FEATURES} features": (
            lambda: opreg.distributed.vocab_parallel_linear_cross_entropy(hidden, head, target)
        ),
    }


def count(processes: int) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    for name, loss in losses(processes).items():
        with Messages() as messages:
            made = loss()
            if made.requires_grad and name != "torch loss_parallel (torchtitan)":
                made.backward()
        sent = sum(ring(kind, size, processes) for kind, size in messages.sent)
        floats = sum(size for _, size in messages.sent) / 4 / ROWS
        print(f"| {processes} | {name} | {len(messages.sent)} | {floats:,.2f} | {sent / ROWS:,.1f} |")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        count(int(sys.argv[1]))
    else:
        print(f"# Bytes sent for cross entropy over {CLASSES:,} classes that are split\n")
        print(
            f"{ROWS} rows in float32, forward and backward; made by `python benchmarks/collectives.py`, which says how."
        )
        print("Three floats a row are the least of this way: a maximum, a sum, the target's score. The linear layer's")
        print("further ones are the gradient of its features, which any such layer sums.\n")
        print(
            "| processes | loss | messages | floats a row | bytes a row that a process sends |\n|---|---|---|---|---|",
            flush=True,
        )
        for processes in PROCESSES:
            subprocess.run([sys.executable, __file__, str(processes)], check=True)
