"""``make demo``: the whole way of a model with losses and activations from torch.ops.lossreg.

Real data: scikit-learn's 8 x 8 digits, of which five classes keep only eight training images each, so that the loss has
to deal with imbalance. One network is trained with cross-entropy and once more with focal loss, each compiled whole,
loss included, on several splits of the data, because one split says little. The first one trained with focal loss is
exported with a dynamic batch, packaged by AOTInductor and run on held-out images by the program of examples/deploy_cpp,
without Python. The four ways to run it must give the same numbers.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import opreg

ROOT = Path(__file__).resolve().parent.parent
ops = torch.ops.lossreg
RARE = range(5, 10)
Data = tuple[Tensor, Tensor]  # images (N, 64) in [0, 1], labels (N,)
REPEAT = 50  # timed calls, of which the median is shown


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 256)
        self.second = nn.Linear(256, 128)
        self.third = nn.Linear(128, 64)
        self.last = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = ops.swish(self.first(image))
        x = ops.mish(self.second(x))
        x = ops.hard_swish(self.third(x))
        return self.last(x)


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return ops.cross_entropy(logits, label)


def focal_loss(logits: Tensor, label: Tensor) -> Tensor:
    # One sigmoid a class, as in the paper: the target is 1 at the label and 0 at the nine others. alpha = 0.9 gives the
    # ones and the zeros the same weight in total; gamma = 2 is the paper's.
    return ops.focal_loss(logits, F.one_hot(label, 10).to(logits.dtype), alpha=0.9, gamma=2.0)


class Task(nn.Module):
    """Network and loss in one graph: what is compiled, exported and deployed."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = Net()
        self.loss = loss

    def forward(self, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.net(image)
        return logits, self.loss(logits, label)


class Scores(NamedTuple):
    accuracy: float
    balanced: float  # the mean of the ten classes' recalls
    rare: float  # the mean over the five rare classes alone


Curve = list[tuple[float, Scores]]  # the mean training loss and the held-out scores after every epoch


class Row(NamedTuple):
    """One way to run the model: its outputs for the held-out images, and the time of a call."""

    name: str
    logits: Tensor
    loss: float
    ms: float


def imbalanced_digits(split: int) -> tuple[Data, Data]:
    """To train on and held out; the rare classes are rare in both."""
    images, labels = load_digits(return_X_y=True)
    halves = train_test_split(images / 16, labels, test_size=0.5, stratify=labels, random_state=split)

    def cut(image: np.ndarray, label: np.ndarray, few: int) -> Data:
        keep = np.concatenate([np.flatnonzero(label == c)[: few if c in RARE else None] for c in range(10)])
        return torch.tensor(image[keep], dtype=torch.float32), torch.tensor(label[keep])

    return cut(halves[0], halves[2], few=8), cut(halves[1], halves[3], few=30)


def score(logits: Tensor, label: Tensor) -> Scores:
    hit = (logits.argmax(1) == label).double()
    recall = torch.stack([hit[label == c].mean() for c in range(10)])
    return Scores(hit.mean().item(), recall.mean().item(), recall[RARE.start :].mean().item())


def train(task: Task, data: Data, held_out: Data, epochs: int, bar: tqdm) -> Curve:
    step = torch.compile(task, fullgraph=True, dynamic=True)
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-3)
    image, label = data
    curve: Curve = []
    for _ in range(epochs):
        total = 0.0
        for batch in torch.randperm(len(image)).split(32):
            optimizer.zero_grad()
            _, loss = step(image[batch], label[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        with torch.no_grad():
            curve.append((total / len(image), score(task.net(held_out[0]), held_out[1])))
        bar.set_postfix(loss=f"{curve[-1][0]:.5f}", rare_recall=f"{curve[-1][1].rare:.3f}")
        bar.update()
    return curve


def plot(curves: dict[str, list[Curve]], path: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")  # without pyplot no display is looked for
    left, right = figure.subplots(1, 2)
    for name, trainings in curves.items():
        # relative, because the two losses have different scales
        losses = np.array([[loss / curve[0][0] for loss, _ in curve] for curve in trainings])
        recalls = np.array([[scores.rare for _, scores in curve] for curve in trainings])
        for axes, values in ((left, losses), (right, recalls)):
            epochs = range(1, values.shape[1] + 1)
            axes.plot(epochs, values.mean(0), label=name)
            axes.fill_between(epochs, values.min(0), values.max(0), alpha=0.2)
    left.set(xlabel="epoch", yscale="log", title="training loss, relative to the first epoch")
    right.set(xlabel="epoch", ylim=(0, 1), title="recall of the rare classes, held out")
    left.legend()
    figure.suptitle("mean over the splits of the data, and band from the lowest to the highest")
    figure.savefig(path, dpi=120)


def command(*words: object) -> str:
    """What the command prints; an error ends the demo with it."""
    # cmake and ninja may come from this environment without its being activated; one thread, as here
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    arguments = [str(word) for word in words]
    program = shutil.which(arguments[0], path=path)
    if program is None:
        sys.exit(f"digits: expected {arguments[0]} on PATH, got none")
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([program, *arguments[1:]], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"digits: {' '.join(arguments)} failed with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def measure(name: str, call: Callable[..., tuple[Tensor, Tensor]], data: Data) -> Row:
    times = []
    with torch.no_grad():
        call(*data)
        for _ in range(REPEAT):
            start = time.perf_counter()
            logits, loss = call(*data)
            times.append(1e3 * (time.perf_counter() - start))
    return Row(name, logits, loss.item(), statistics.median(times))


def deploy(runner: Path, package: Path, data: Data, rows: tuple[int, ...] = ()) -> Row:
    """Runs the package in the C++ program, in batches of ``rows`` images (default: all in one)."""
    inputs, outputs = package.with_name("inputs.pt"), package.with_name("outputs.pt")
    torch.save(data, inputs)
    library = opreg.library_path()
    printed = command(runner, "--library", library, "--repeat", REPEAT, package, inputs, outputs, *rows)
    batches = torch.load(outputs)
    logits = torch.cat([batch[0] for batch in batches])
    loss = sum(loss.item() * len(z) for z, loss in batches) / len(logits)
    return Row("deployed C++", logits, loss, sum(map(float, re.findall(r"ms (\S+)", printed))))


def disagreements(rows: list[Row], label: Tensor) -> list[str]:
    """What differs from the first row: scores must be the same, losses to 1e-5."""
    first, found = rows[0], []
    expected = score(first.logits, label)
    for row in rows[1:]:
        if (got := score(row.logits, label)) != expected:
            found.append(f"scores of {row.name} {got}, of {first.name} {expected}")
        if not abs(row.loss - first.loss) <= 1e-5 * abs(first.loss):
            found.append(f"loss of {row.name} {row.loss:.9g}, of {first.name} {first.loss:.9g}")
    return found


def compare_losses(splits: list[tuple[Data, Data]], epochs: int, output: Path) -> Task:
    """Trains with both losses on every split; prints, plots, and returns the first task trained with focal loss."""
    tasks: list[Task] = []
    curves: dict[str, list[Curve]] = {}
    for loss in (cross_entropy, focal_loss):
        torch.manual_seed(0)  # the same first weights and the same order of images for both
        name, tasks = loss.__name__, [Task(loss) for _ in splits]
        with tqdm(total=len(splits) * epochs, desc=f"{name:<13}", unit="epoch", file=sys.stdout) as bar:
            curves[name] = [train(task, *split, epochs, bar) for task, split in zip(tasks, splits, strict=True)]
    plot(curves, output / "training.png")

    print(f"\n{'mean ± std of splits':<20} {'accuracy':>15} {'balanced':>15} {'rare recall':>15}")
    for name, trainings in curves.items():
        last = np.array([curve[-1][1] for curve in trainings])
        cells = (f"{mean:.4f} ± {std:.4f}" for mean, std in zip(last.mean(0), last.std(0), strict=True))
        print(f"{name:<20} " + " ".join(f"{cell:>15}" for cell in cells))
    return tasks[0]


def run_four_ways(task: Task, held_out: Data, output: Path, build: Path) -> list[str]:
    """Exports, deploys, prints the table, and returns the disagreements."""
    batch = torch.export.Dim("batch")
    with torch.no_grad():
        exported = torch.export.export(task, held_out, dynamic_shapes={"image": {0: batch}, "label": {0: batch}})
    package = output / "digits.pt2"
    # what the C++ program holds its inputs to: dtype and sizes, * for any
    noted = {"inputs": "float32 * 64; int64 *"}
    torch._inductor.aoti_compile_and_package(
        exported, package_path=str(package), inductor_configs={"aot_inductor.metadata": noted}
    )
    command("cmake", "-S", ROOT / "examples/deploy_cpp", "-B", build, f"-DTORCH_DIR={Path(torch.__file__).parent}")
    command("cmake", "--build", build)
    runner = build / "run_package"

    rows = [
        measure("eager", task, held_out),
        measure("compiled", torch.compile(task, fullgraph=True), held_out),
        measure("exported", exported.module(), held_out),
        deploy(runner, package, held_out),
    ]
    print(f"\n{'focal_loss':<13} {'accuracy':>9} {'balanced':>9} {'rare recall':>12} {'loss':>12} {'ms':>8}")
    for row in rows:
        accuracy, balanced, rare = score(row.logits, held_out[1])
        print(f"{row.name:<13} {accuracy:>9.4f} {balanced:>9.4f} {rare:>12.4f} {row.loss:>12.8f} {row.ms:>8.3f}")

    # The same package again in small batches of changing size: no row of the table, but held to the same numbers.
    small = deploy(runner, package, held_out, rows=(1, 7, 64))._replace(name="deployed C++ in batches of 1, 7, 64")
    return disagreements([*rows, small], held_out[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="passes over the training images (default 30)")
    parser.add_argument("--splits", type=int, default=5, help="trainings with each loss (default 5)")
    parser.add_argument("--output", type=Path, default=ROOT / "out/digits", help="default out/digits")
    parser.add_argument("--build", type=Path, default=ROOT / "build/deploy_cpp", help="where the C++ program is built")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    # torch.export, about its own pickling
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")
    torch.set_num_threads(1)  # batches this small take longer when threads have to meet

    splits = [imbalanced_digits(split) for split in range(options.splits)]
    data, held_out = splits[0]
    counts = " ".join(map(str, data[1].bincount().tolist()))
    print(f"{len(data[1])} training images, {counts} of the digits 0 to 9; {len(held_out[1])} held out\n")
    task = compare_losses(splits, options.epochs, options.output)
    print("\nexport, package and build the C++ program (no Python in it) ...", flush=True)
    found = run_four_ways(task.eval(), held_out, options.output, options.build)
    if found:
        sys.exit("digits: the numbers disagree: " + "; ".join(found))
    print(f"\nThe four agree, as do batches of 1, 7 and 64 images. Plot and package are in {options.output}")


if __name__ == "__main__":
    main()
