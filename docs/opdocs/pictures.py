"""The pictures of an op: value and gradient each, and a small one of both for the gallery."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes

from .curves import Curve, Drawing

# told apart by readers who see few colours, too (Okabe and Ito)
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
STYLES = ("solid", "dashed", "dotted", "dashdot")
STYLE = {
    "axes.grid": True,
    "grid.alpha": 0.35,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 10,
    "svg.fonttype": "path",
    "svg.hashsalt": "opreg",  # the same file for the same curves
}


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def legend(drawing: Drawing) -> list[tuple[str, str, str]]:
    """Of each curve, in words, colour, and kind of line as CSS names it."""
    names = _varied(drawing.curves)
    return [(_label(c, names), *_look(drawing.curves, c)) for c in drawing.curves]


def _label(curve: Curve, varied: Sequence[str]) -> str:
    """The options that are not the defaults, and those other operands that differ between curves."""
    named = [*((n, v) for n, v in curve.others.items() if n in varied), *curve.options.items()]
    return ", ".join(f"{n} = {_number(v)}" for n, v in named) or "defaults"


def _varied(curves: Sequence[Curve]) -> list[str]:
    names = list(dict.fromkeys(n for c in curves for n in c.others))
    return [n for n in names if len({c.others.get(n) for c in curves}) > 1]


def _look(curves: Sequence[Curve], curve: Curve) -> tuple[str, str]:
    """A colour for each choice of options, a kind of line for each choice of the other operands."""
    options = list(dict.fromkeys(str(c.options) for c in curves))
    others = list(dict.fromkeys(str(c.others) for c in curves))
    return (
        COLOURS[options.index(str(curve.options)) % len(COLOURS)],
        STYLES[others.index(str(curve.others)) % len(STYLES)],
    )


def _limits(axes: Axes, values: Sequence[torch.Tensor]) -> None:
    """Leaves out the steep ends: what lies far beyond most of the values."""
    every = torch.cat([v[torch.isfinite(v)] for v in values])
    low, high = (float(torch.quantile(every, q)) for q in (0.02, 0.98))
    room = 0.08 * (high - low) or 0.5
    low, high = max(low - room, float(every.min()) - room), min(high + room, float(every.max()) + room)
    axes.set_ylim(low, high)


def picture(drawing: Drawing, which: str, path: Path) -> None:
    """The value, or the gradient, with all options that the drawing has; its legend is text (``legend``)."""
    title = "value" if which == "value" else f"gradient in {drawing.axis}"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(4.4, 3.2), layout="constrained")
        for curve in drawing.curves:
            colour, line = _look(drawing.curves, curve)
            axes.plot(curve.x, getattr(curve, which), linestyle=line, color=colour, linewidth=1.8)
        _limits(axes, [getattr(c, which) for c in drawing.curves])
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel(drawing.axis)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def thumbnail(drawing: Drawing, path: Path) -> None:
    """Value and gradient of the defaults, small."""
    first = [c for c in drawing.curves if c.options == drawing.curves[0].options]
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.4, 1.5), layout="constrained")
        for curve, style in zip(first, STYLES, strict=False):
            axes.plot(curve.x, curve.grad, linestyle=style, color="#999999", linewidth=1.2)
            axes.plot(curve.x, curve.value, linestyle=style, color=COLOURS[0], linewidth=2)
        _limits(axes, [t for c in first for t in (c.value, c.grad)])
        axes.set_xticks([])
        axes.set_yticks([])
        axes.axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
