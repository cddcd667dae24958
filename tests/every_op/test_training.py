"""A model trained through compiled ops ends where it ends on their references: under every initialisation, with every
optimizer, on every schedule.

One training step of five ops (an activation twice, a row, a binary, a regression loss) is compiled once a backend; each
case trains a few steps and compares all losses and parameters, in float64.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import init
from torch.optim import lr_scheduler

import opreg
from conftest import DEVICE

STEPS = 6
INITIALISATIONS: dict[str, Callable[[Tensor], Any]] = {
    "xavier_uniform_": init.xavier_uniform_,
    "xavier_normal_": init.xavier_normal_,
    "kaiming_uniform_": init.kaiming_uniform_,
    "kaiming_normal_": init.kaiming_normal_,
    "uniform_": lambda w: init.uniform_(w, -0.3, 0.3),
    "normal_": lambda w: init.normal_(w, std=0.2),
    "constant_": lambda w: init.constant_(w, 0.1),
    "orthogonal_": init.orthogonal_,
    "eye_": init.eye_,
    "sparse_": lambda w: init.sparse_(w, sparsity=0.4),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3},
    "Adagrad": {"lr": 0.05},
    "RMSprop": {"lr": 0.01, "momentum": 0.5, "centered": True},
    "Adadelta": {"lr": 1.0},
    "Adam": {"lr": 0.02, "amsgrad": True},
    "Adamax": {"lr": 0.02},
    "SparseAdam": {"lr": 0.02},
    "ASGD": {"lr": 0.1, "t0": 2},
    "Rprop": {"lr": 0.01},
    "LBFGS": {"lr": 0.5, "max_iter": 4, "line_search_fn": "strong_wolfe"},
}
SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, milestones=[1, 3], gamma=0.3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, gamma=0.7),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS + 2),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=0.2, factor=0.3),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
}
WORDS, LABELS = torch.arange(12).reshape(4, 3) % 7, torch.tensor([0, 2, 1, 2])

Call = Callable[..., Tensor]


def step(call: Callable[[str], Call], hidden: Tensor, parameters: dict[str, Tensor], target: Tensor) -> Tensor:
    """The loss of a small network with three heads, over what ``call`` makes of the ops' names."""

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"])

    hidden = call("swish")(linear("first", hidden), 1.3)
    hidden = call("mish")(linear("second", hidden))
    scores, box = linear("scores", hidden), linear("box", hidden)
    onehot = torch.nn.functional.one_hot(target, 3).to(scores.dtype)
    classification = call("cross_entropy")(scores, target, None, -100, "mean", 0.1)
    detection = call("focal_loss")(scores, onehot, 0.25, 2.0, "mean")
    regression = call("smooth_l1_loss")(box, onehot.cumsum(1), "mean", 0.5)
    return classification + detection + regression


def ours(hidden: Tensor, parameters: dict[str, Tensor], target: Tensor) -> Tensor:
    return step(lambda name: getattr(opreg.functional, name), hidden, parameters, target)


def references(hidden: Tensor, parameters: dict[str, Tensor], target: Tensor) -> Tensor:
    return step(lambda name: opreg.get(name).call_reference, hidden, parameters, target)


@cache
def compiled(backend: str) -> Call:
    return torch.compile(ours, backend=backend, fullgraph=True)


class Model(torch.nn.Module):
    """The parameters; what is compiled sees all but the embedding, whose gradient may be sparse."""

    def __init__(self, initialise: Callable[[Tensor], Any], *, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.EmbeddingBag(7, 5, sparse=sparse)
        sizes = {"first": (5, 6), "second": (6, 6), "scores": (6, 3), "box": (6, 3)}
        self.layers = torch.nn.ModuleDict({name: torch.nn.Linear(*size) for name, size in sizes.items()})
        for name, p in self.named_parameters():
            if name.endswith("weight"):
                initialise(p.data)
        self.to(DEVICE, torch.float64)

    def loss(self, call: Call) -> Tensor:
        return call(self.embedding(WORDS.to(DEVICE)), dict(self.layers.named_parameters()), LABELS.to(DEVICE))


def optimizers_of(name: str, model: Model) -> list[torch.optim.Optimizer]:
    """One for all parameters; but SparseAdam takes the embedding alone, and SGD the rest."""
    groups = {name: model.parameters()}
    if name == "SparseAdam":
        groups = {name: model.embedding.parameters(), "SGD": model.layers.parameters()}
    return [getattr(torch.optim, n)(parameters, **OPTIMIZERS[n]) for n, parameters in groups.items()]


def train(call: Call, initialisation: str, optimizer: str, schedule: str) -> tuple[Tensor, Model, list[float]]:
    """The losses of all steps, the trained model, the last learning rates."""
    model = Model(INITIALISATIONS[initialisation], sparse=optimizer == "SparseAdam")
    optimizers = optimizers_of(optimizer, model)
    schedules = [SCHEDULES[schedule](o) for o in optimizers]

    def closure() -> Tensor:
        for o in optimizers:
            o.zero_grad()
        loss = model.loss(call)
        loss.backward()
        return loss

    losses = []
    for _ in range(STEPS):
        if optimizer == "LBFGS":
            loss = optimizers[0].step(closure)
        else:
            loss = closure()
            for o in optimizers:
                o.step()
        losses.append(loss.detach())
        for s in schedules:
            s.step(loss.detach()) if schedule == "ReduceLROnPlateau" else s.step()
    return torch.stack(losses), model, [group["lr"] for o in optimizers for group in o.param_groups]


# each list whole; what a case does not vary goes round as well
CASES = [
    *((i, "Adam" if n % 2 else "SGD", list(SCHEDULES)[n % 6], "aot_eager") for n, i in enumerate(INITIALISATIONS)),
    *((list(INITIALISATIONS)[n], o, list(SCHEDULES)[n % 6], "aot_eager") for n, o in enumerate(OPTIMIZERS)),
    *(("kaiming_normal_", list(OPTIMIZERS)[n], s, "inductor") for n, s in enumerate(SCHEDULES)),
]


@pytest.mark.parametrize(("initialisation", "optimizer", "schedule", "backend"), CASES)
def test_training(initialisation, optimizer, schedule, backend):
    losses, model, rates = train(compiled(backend), initialisation, optimizer, schedule)
    want, reference, reference_rates = train(references, initialisation, optimizer, schedule)
    torch.testing.assert_close(losses, want, rtol=1e-9, atol=1e-9)
    assert losses[-1] < losses[0]
    start = dict(Model(INITIALISATIONS[initialisation], sparse=False).named_parameters())
    for (name, p), q in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
        assert not torch.equal(p, start[name]), name
    assert rates == reference_rates


def test_the_lists_are_whole():
    used = [set(column) for column in zip(*CASES, strict=True)]
    assert used[:3] == [set(INITIALISATIONS), set(OPTIMIZERS), set(SCHEDULES)]
    assert (len(INITIALISATIONS), len(OPTIMIZERS), len(SCHEDULES)) == (10, 10, 6)
