"""Trainings that were measured (benchmarks/recipes.py) as pictures and tables, each for a place in the guide."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.ticker import MaxNLocator

from . import facts
from .page import table
from .pictures import COLOURS, STYLE, STYLES


@cache
def measured() -> dict[str, Any]:
    """The experiments by name, and under ``splits`` how many trainings each curve is the mean of."""
    found: dict[str, Any] = json.loads((facts.RESULTS / "recipes.json").read_text())
    return {**found["experiments"], "splits": found["splits"]}


def axes_of(shown: str) -> tuple[str, str, str]:
    """What runs along both axes, and how: linear, or log."""
    what, _, each = shown.partition(" of each ")
    return ("learning rate", what, "log") if each == "rate" else (each, what, "linear")


def text(name: str) -> str:
    """The picture of an experiment in Markdown, with its legend in words, and the same in numbers."""
    experiment = measured()[name]
    x_name, what, _ = axes_of(experiment["shown"])
    looks = zip(experiment["curves"], COLOURS, STYLES, strict=False)
    keys = "\n".join(
        f"<span class='key'><span style='border-top: 3px {line} {colour}'></span> {label}</span>"
        for label, colour, line in looks
    )
    picture = f":::{{container}} curves\n![{what} against {x_name}: {name}](/generated/images/training-{name}.svg)\n:::"
    return f"{picture}\n\n<p class='legend'>{keys}</p>\n\n{numbers(experiment)}\n"


def numbers(experiment: dict[str, Any]) -> str:
    """Of a curve its first point, that in the middle, and the last; of one over learning rates, all."""
    x_name, _, _ = axes_of(experiment["shown"])
    first = next(iter(experiment["curves"].values()))
    length = len(first["x"])
    chosen = range(length) if x_name == "learning rate" else sorted({0, length // 2, length - 1})
    rows = [
        [label, *("diverged" if curve["mean"][i] is None else f"{curve['mean'][i]:.3g}" for i in chosen)]
        for label, curve in experiment["curves"].items()
    ]
    return table([x_name, *(f"{first['x'][i]:g}" for i in chosen)], rows, "l" + "r" * len(chosen))


def draw(name: str, path: Path) -> None:
    """The mean of all splits, and a band from the lowest to the highest."""
    experiment = measured()[name]
    x_name, what, scale = axes_of(experiment["shown"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
        for curve, colour, line in zip(experiment["curves"].values(), COLOURS, STYLES, strict=False):
            known = [i for i, mean in enumerate(curve["mean"]) if mean is not None]
            x, mean, low, high = ([curve[key][i] for i in known] for key in ("x", "mean", "low", "high"))
            axes.plot(x, mean, color=colour, linestyle=line, linewidth=1.8)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale(scale)
        if scale == "linear":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if what == "loss":
            axes.set_yscale("log")
        axes.set_title(what, loc="left", fontsize=11)
        axes.set_xlabel(x_name)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def names() -> list[str]:
    return [name for name in measured() if name != "splits"]
