"""What initialisers, optimizers and schedules do to a training with these losses: the curves of the site's guide.

    python benchmarks/recipes.py    # writes benchmarks/results/recipes.json: two to three minutes on one core

Each training is one of scikit-learn's digits, those of ``make demo``, of which five classes are rare; each curve is the
mean of several splits of the data, with the lowest and the highest of them.
"""

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import opreg
from digits import Data, cross_entropy, focal_loss, imbalanced_digits, score

ops = torch.ops.lossreg
OUTPUT = Path(__file__).with_name("results") / "recipes.json"
BATCH = 32
WARM_UP = 0.1  # of all steps
RATES = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]

Loss = Callable[[Tensor, Tensor], Tensor]
Start = Callable[[nn.Linear], object]
Schedule = Callable[[float], float]


class Recipe(NamedTuple):
    """How one network is trained."""

    loss: Loss = cross_entropy
    hidden: tuple[int, ...] = (128, 64)
    start: Start | None = None  # of each hidden layer; None: as torch.nn.Linear does it
    bias: Callable[[Tensor], Tensor] | None = None  # of the last layer, from the labels
    optimizer: str = "AdamW"
    rate: float = 2e-3
    schedule: Schedule = lambda done: 1.0  # the factor of the rate, of the share of all steps that is done
    epochs: int = 20
    average: float | None = None  # the decay of an average of the weights, which is what is scored then


class Training(NamedTuple):
    losses: list[float]  # of each step, before it
    balanced: list[float]  # the mean of the classes' recalls on held-out images, after each epoch


class Net(nn.Module):
    def __init__(self, hidden: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (64, *hidden)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(sizes[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = ops.swish(layer(x))
        scores: Tensor = self.last(x)
        return scores


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "SGD": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True),
}


def train(recipe: Recipe, split: tuple[Data, Data], seed: int) -> Training:
    torch.manual_seed(seed)
    (image, label), held_out = split
    net = Net(recipe.hidden)
    with torch.no_grad():
        for layer in net.layers:
            if recipe.start:
                recipe.start(layer)
                layer.bias.zero_()
        if recipe.bias:
            net.last.bias.copy_(recipe.bias(label))
    optimizer = OPTIMIZERS[recipe.optimizer](net.parameters(), lr=recipe.rate)
    ema = opreg.nn.EMA(net, recipe.average) if recipe.average is not None else None
    steps = recipe.epochs * math.ceil(len(image) / BATCH)
    made = Training([], [])
    for _ in range(recipe.epochs):
        for batch in torch.randperm(len(image)).split(BATCH):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * recipe.schedule(len(made.losses) / steps)
            optimizer.zero_grad()
            loss = recipe.loss(net(image[batch]), label[batch])
            loss.backward()
            optimizer.step()
            if ema:
                ema.update()
            made.losses.append(loss.item())
        with torch.no_grad():
            if ema:
                with ema.averaged():
                    made.balanced.append(score(net(held_out[0]), held_out[1]).balanced)
            else:
                made.balanced.append(score(net(held_out[0]), held_out[1]).balanced)
    return made


# What is compared


def sigmoid_prior(share: float) -> Callable[[Tensor], Tensor]:
    """The bias with which each sigmoid begins at ``share``."""
    return lambda label: torch.full((10,), math.log(share / (1 - share)))


def class_prior(label: Tensor) -> Tensor:
    """The bias with which the softmax begins at the classes' shares."""
    return (torch.bincount(label, minlength=10) / len(label)).log()


def zeros(label: Tensor) -> Tensor:
    return torch.zeros(10)


def summed_focal_loss(logits: Tensor, label: Tensor) -> Tensor:
    """As detectors have it: the sum over all scores, over the number of positives; alpha and gamma are the paper's."""
    loss: Tensor = ops.focal_loss(logits, F.one_hot(label, 10).to(logits.dtype), reduction="sum") / len(label)
    return loss


def smoothed_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    loss: Tensor = ops.cross_entropy(logits, label, label_smoothing=0.1)
    return loss


def squared_error(logits: Tensor, label: Tensor) -> Tensor:
    """Of the probabilities: Brier's score, of which the mean is over rows and classes."""
    loss: Tensor = ops.mse_loss(logits.softmax(1), F.one_hot(label, 10).to(logits.dtype))
    return loss


def cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def warmed(schedule: Schedule) -> Schedule:
    """A linear warm-up, and the schedule over the rest."""
    return lambda done: done / WARM_UP if done < WARM_UP else schedule((done - WARM_UP) / (1 - WARM_UP))


def constant(done: float) -> float:
    return 1.0


DEEP = (64,) * 10
STARTS: dict[str, Start | None] = {
    "torch.nn.Linear's own": None,
    "xavier_normal_": lambda layer: nn.init.xavier_normal_(layer.weight),
    "kaiming_normal_": lambda layer: nn.init.kaiming_normal_(layer.weight),
    "orthogonal_, gain √2": lambda layer: nn.init.orthogonal_(layer.weight, 2**0.5),
}
LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "focal_loss": focal_loss,
    "mse_loss of probabilities": squared_error,
}
SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "warm-up, then cosine": warmed(cosine),
}


class Experiment(NamedTuple):
    """Recipes that are compared, and what of their trainings."""

    name: str
    recipes: dict[str, list[Recipe]]  # one, or one for each learning rate
    shown: str  # "loss of each step", "loss of each epoch", "balanced accuracy of each epoch", "... of each rate"


def experiments() -> Iterator[Experiment]:
    yield Experiment(
        "prior-focal",
        {
            "bias 0": [Recipe(summed_focal_loss, bias=zeros, epochs=3)],
            "prior 0.1": [Recipe(summed_focal_loss, bias=sigmoid_prior(0.1), epochs=3)],
            "prior 0.01": [Recipe(summed_focal_loss, bias=sigmoid_prior(0.01), epochs=3)],
        },
        "loss of each step",
    )
    yield Experiment(
        "prior-cross_entropy",
        {
            "bias 0": [Recipe(bias=zeros, epochs=3)],
            "the classes' shares": [Recipe(bias=class_prior, epochs=3)],
        },
        "loss of each step",
    )
    yield Experiment(
        "initialisers",
        {name: [Recipe(hidden=DEEP, start=start, rate=1e-3)] for name, start in STARTS.items()},
        "loss of each epoch",
    )
    for optimizer in OPTIMIZERS:
        yield Experiment(
            f"rates-{optimizer}",
            {
                name: [Recipe(loss, optimizer=optimizer, rate=rate, epochs=15) for rate in RATES]
                for name, loss in LOSSES.items()
            },
            "balanced accuracy of each rate",
        )
    deep = Recipe(hidden=DEEP, start=STARTS["kaiming_normal_"], rate=0.01)
    for name, recipe in (("schedules", Recipe(rate=0.01, epochs=30)), ("schedules-deep", deep)):
        yield Experiment(
            name,
            {label: [recipe._replace(schedule=schedule)] for label, schedule in SCHEDULES.items()},
            "balanced accuracy of each epoch",
        )
    yield Experiment(
        "average",
        {
            "the weights": [Recipe(rate=0.01, epochs=30)],
            "EMA, 0.9": [Recipe(rate=0.01, epochs=30, average=0.9)],
            "EMA, 0.99": [Recipe(rate=0.01, epochs=30, average=0.99)],
        },
        "balanced accuracy of each epoch",
    )


def shown(what: str, recipe: Recipe, training: Training) -> list[float]:
    """What of one training is in the curve; for a curve over rates, its one point."""
    if what == "loss of each step":
        return training.losses
    if what == "loss of each epoch":
        per = len(training.losses) // recipe.epochs
        return [sum(training.losses[i : i + per]) / per for i in range(0, len(training.losses), per)]
    return training.balanced if what == "balanced accuracy of each epoch" else training.balanced[-1:]


def measure(splits: list[tuple[Data, Data]], epochs: int | None = None, only: str = "") -> dict[str, Any]:
    """Every experiment: of each curve its points, the mean, the lowest and the highest of all splits.

    Args:
        splits: the data to train on, and that which is held out; each training is made on each.
        epochs: of every training; default: as many as its recipe says.
        only: what an experiment's name begins with; default: all of them.
    """
    found: dict[str, Any] = {}
    chosen = [e for e in experiments() if e.name.startswith(only)]
    total = sum(len(recipes) for e in chosen for recipes in e.recipes.values()) * len(splits)
    with tqdm(total=total, unit="training", file=sys.stdout) as bar:
        for name, recipes, what in chosen:
            curves: dict[str, Any] = {}
            for label, of_one in recipes.items():
                points: list[list[float]] = [[] for _ in splits]
                for recipe in of_one:
                    now = recipe if epochs is None else recipe._replace(epochs=epochs)
                    for i, split in enumerate(splits):
                        points[i] += shown(what, now, train(now, split, seed=i))
                        bar.update()
                every = list(zip(*points, strict=True))
                curves[label] = {
                    "x": RATES if what.endswith("rate") else list(range(1, len(every) + 1)),
                    "mean": [rounded(sum(p) / len(p)) for p in every],
                    "low": [rounded(min(p)) for p in every],
                    "high": [rounded(max(p)) for p in every],
                }
            found[name] = {"shown": what, "curves": curves}
    return found


def rounded(x: float) -> float | None:
    """Four digits; None of what is no number, for which JSON has no word."""
    return float(f"{x:.4g}") if math.isfinite(x) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5, help="trainings of each recipe (default 5)")
    parser.add_argument("--epochs", type=int, help="of every training, in place of the recipe's")
    parser.add_argument("--only", default="", help="experiments whose names begin so; the others stay as they are")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    splits = [imbalanced_digits(split) for split in range(options.splits)]
    found = measure(splits, options.epochs, options.only)
    if options.only:
        before = json.loads(options.output.read_text())["experiments"]
        found = {e.name: found.get(e.name) or before[e.name] for e in experiments()}
    options.output.write_text(json.dumps({"splits": options.splits, "experiments": found}) + "\n")
    print(f"wrote {options.output}")


if __name__ == "__main__":
    main()
