"""A small language model on four processes, its vocabulary split over two of them and its batch over the other two.

The last layer and its loss, opreg.nn.LinearCrossEntropyLoss, keep a part of the classes on each process
(opreg.distributed.LossParallel in the plan of parallelize_module); FSDP2 splits every parameter over the batch's two. A
step has two microbatches of different numbers of tokens and is divided by the number of all. One process without any of
this trains the same model, and the losses and parameters are compared.

    python examples/sharded_language_model.py
"""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils.checkpoint import checkpoint

import opreg

PROCESSES, VOCABULARY, WIDTH, STEPS, MICROBATCHES = 4, 37, 16, 5, 2  # a vocabulary that does not divide evenly
PADDING = -100


class LanguageModel(torch.nn.Module):
    """Predicts the next token from the mean of all before it: enough of a model to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, WIDTH, dtype=torch.float64)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(WIDTH, 4 * WIDTH, dtype=torch.float64),
            opreg.nn.Mish(),
            torch.nn.Linear(4 * WIDTH, WIDTH, dtype=torch.float64),
        )
        self.criterion = opreg.nn.LinearCrossEntropyLoss(
            WIDTH, VOCABULARY, dtype=torch.float64, reduction="sum", ignore_index=PADDING, label_smoothing=0.1
        )

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        """The sum of the losses of all labels that are no padding."""
        places = torch.arange(1, tokens.shape[1] + 1, dtype=torch.float64).unsqueeze(-1)
        hidden = self.embedding(tokens).cumsum(1) / places
        hidden = hidden + checkpoint(self.body, hidden, use_reentrant=False)
        loss: Tensor = self.criterion(hidden, labels)
        return loss


def batches(step: int) -> list[tuple[Tensor, Tensor]]:
    """The microbatches of a step: tokens that repeat with a period, and sequences of several lengths."""
    generator = torch.Generator().manual_seed(step)
    made = []
    for _ in range(MICROBATCHES):
        starts = torch.randint(0, VOCABULARY, (4, 1), generator=generator)
        tokens = (starts + 3 * torch.arange(13)) % VOCABULARY
        lengths = torch.randint(4, 13, (4, 1), generator=generator)
        made.append((tokens[:, :-1], torch.where(torch.arange(12) < lengths, tokens[:, 1:], PADDING)))
    return made


def train(mesh: DeviceMesh | None) -> tuple[list[float], dict[str, Tensor]]:
    """The loss of each step and the parameters in the end; on one process where there is no mesh."""
    torch.manual_seed(0)
    model = LanguageModel()
    parts, part = 1, 0
    if mesh is not None:
        parts, part = mesh["batch"].size(), mesh["batch"].get_local_rank()
        parallelize_module(model, mesh["classes"], {"criterion": opreg.distributed.LossParallel()})
        fully_shard(model, mesh=mesh["batch"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for step in range(STEPS):
        microbatches = batches(step)
        count = sum(int((labels != PADDING).sum()) for _, labels in microbatches)
        total = 0.0
        for tokens, labels in microbatches:
            # FSDP takes the mean over the parts of the batch, whose number that undoes
            loss = model(tokens.chunk(parts)[part], labels.chunk(parts)[part]) * parts / count
            loss.backward()
            total += loss.item() / parts
        optimizer.step()
        optimizer.zero_grad()
        if mesh is not None:
            all_parts = torch.tensor(total, dtype=torch.float64)
            dist.all_reduce(all_parts, group=mesh["batch"].get_group())
            total = float(all_parts)
        losses.append(total)
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p.detach() for n, p in model.named_parameters()}
    return losses, whole


def compare() -> tuple[list[float], float]:
    """The losses, and by how much a parameter differs at most from that of one process. Called on each of four."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batch", "classes"))
    losses, parameters = train(mesh)
    alone, parameters_alone = train(None)
    torch.testing.assert_close(losses, alone, rtol=1e-9, atol=0)
    differences = [(parameters[n] - p).abs().max() for n, p in parameters_alone.items()]
    return losses, float(torch.stack(differences).max())


def main(rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    losses, difference = compare()
    if rank == 0:
        print("losses of four processes, equal to those of one:", *(f"{loss:.6f}" for loss in losses))
        print(f"parameters differ by at most {difference:.1e}")
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(main, (str(Path(folder) / "meeting"),), nprocs=PROCESSES)
