"""Compiled training steps: small models, compiled whole with Inductor, our loss against what one would write else.

A step is forward, loss, backward and plain SGD. Ours is the op that is called, or torch's own loss that the rewrite of
``backend="opreg"`` exchanges. Both models of a pair start from the same weights and see the same batch; their first
losses must agree. An op of ours is a call that Inductor can't fuse with its neighbours: a step shows whether that costs
what the op wins.
"""

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._library import OPS
from .memory import peak_memory
from .providers import Disagreement
from .timing import Call, spread, time_calls

LONGEST = 10.0  # seconds that a pair is measured
FULL = {"rows": 256, "classes": 16000, "pixels": 128, "tokens": 8000, "boxes": 2**15}


class Boxes(nn.Module):
    """A regressor whose result is boxes: corner and size by a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))

    def forward(self, x: Tensor) -> Tensor:
        corner, size = self.layers(x).sigmoid().chunk(2, -1)
        return torch.cat([corner, corner + size], -1)


def composed_giou(input: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """As torchvision has it."""
    a, b = input.unbind(-1), target.unbind(-1)
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    width = (torch.min(a[2], b[2]) - torch.max(a[0], b[0])).clamp(min=0)
    height = (torch.min(a[3], b[3]) - torch.max(a[1], b[1])).clamp(min=0)
    union = area_a + area_b - width * height
    hull = (torch.max(a[2], b[2]) - torch.min(a[0], b[0])) * (torch.max(a[3], b[3]) - torch.min(a[1], b[1]))
    return (1 - width * height / (union + eps) + (hull - union) / (hull + eps)).mean()


def composed_focal(input: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """As torchvision has it."""
    p = input.sigmoid()
    p_t = p * target + (1 - p) * (1 - target)
    alpha_t = alpha * target + (1 - alpha) * (1 - target)
    loss = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    return (alpha_t * loss * (1 - p_t) ** gamma).mean()


Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """A model, its batch, and two spellings of its loss."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]
    ours: Loss
    other: Loss
    backend: str = "inductor"  # of ours
    options: Mapping[str, Any] | None = None


def convolutions(out: int) -> nn.Module:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(16, out, 1))


def steps(sizes: Mapping[str, int] = FULL) -> list[Step]:
    torch.manual_seed(0)
    rows, classes, pixels, tokens, boxes = (sizes[n] for n in ("rows", "classes", "pixels", "tokens", "boxes"))
    images = torch.randn(4, 3, pixels, pixels)
    words = torch.randint(tokens, (rows,))
    corner, size = torch.rand(boxes, 4).chunk(2, -1)
    classifier = nn.Sequential(nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, classes))
    language = nn.Sequential(nn.Embedding(tokens, 128), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, tokens))
    masks = torch.randint(0, 2, (4, 8, pixels, pixels)).float()
    return [
        Step(
            "classifier, cross_entropy", classifier, (torch.randn(rows, 128), torch.randint(classes, (rows,))),
            OPS.cross_entropy, F.cross_entropy,
        ),
        Step(
            "segmentation, cross_entropy", convolutions(19), (images, torch.randint(19, (4, pixels, pixels))),
            OPS.cross_entropy, F.cross_entropy,
        ),
        Step("language model's head, cross_entropy", language, (words, words.roll(-1)), OPS.cross_entropy,
             F.cross_entropy),
        Step("language model's head, by the rewrite", language, (words, words.roll(-1)), F.cross_entropy,
             F.cross_entropy, "opreg", {"heads": True}),
        Step("dense detection, focal_loss", convolutions(8), (images, masks), OPS.focal_loss, composed_focal),
        Step("box regression, giou_loss", Boxes(), (torch.randn(boxes, 32), torch.cat([corner, corner + size], -1)),
             OPS.giou_loss, composed_giou),
    ]  # fmt: skip


def compiled_step(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    backend: str = "inductor",
    options: Mapping[str, Any] | None = None,
) -> Callable[[], Tensor]:
    x, y = batch
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=1e-3)

    def forward(x: Tensor, y: Tensor) -> Tensor:
        return loss(model(x), y)

    whole = torch.compile(forward, fullgraph=True, backend=backend, options=dict(options) if options else None)

    def step() -> Tensor:
        optimizer.zero_grad()
        value: Tensor = whole(x, y)
        value.backward()
        optimizer.step()
        return value.detach()

    return step


def run_step(step: Step, rounds: int) -> dict[str, Any]:
    torch.compiler.reset()
    calls: dict[str, Call] = {
        "ours": compiled_step(copy.deepcopy(step.model), step.batch, step.ours, step.backend, step.options),
        "other": compiled_step(copy.deepcopy(step.model), step.batch, step.other),
    }
    first: dict[str, Any] = {name: call() for name, call in calls.items()}
    if not torch.allclose(first["ours"], first["other"], rtol=1e-3):
        raise Disagreement(f"{step.name}: expected a loss of {first['other']:.6g}, got {first['ours']:.6g}")
    times = time_calls(calls, rounds, longest=LONGEST)
    return {
        "step": step.name,
        "seconds": {name: statistics.median(t) for name, t in times.items()},
        "spread": {name: spread(t) for name, t in times.items()},
        "memory": {name: peak_memory(call) for name, call in calls.items()},
        "rounds": len(times["ours"]),
    }
