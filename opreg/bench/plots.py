"""The report as pictures: ratios as bars, time against size, scaling with threads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .runner import PASSES
from .text import shape_text, where_text

COLORS = {
    "ours": "#c0392b", "eager": "#a0a0a0", "inductor": "#4c78a8", "peer": "#54a24b", "floor": "#f2a541",
    "call": "#7b5ea7",
}  # fmt: skip


def ratio_bars(report: Mapping[str, Any], size: str, dtype: str) -> Any:
    """The time of each provider over ours: one panel a pass, one group a case."""
    from matplotlib import pyplot as plt

    wanted = {"size": size, "dtype": dtype, "threads": report["machine"]["threads"]}
    chosen = [r for r in report["results"] if all(r[k] == v for k, v in wanted.items())]
    passes = [p for p in PASSES if any(r["pass"] == p for r in chosen)]
    names = list(dict.fromkeys((r["op"], shape_text(r["shape"])) for r in chosen))
    figure, axes = plt.subplots(1, len(passes), sharey=True, squeeze=False, figsize=(11, 2.2 + 0.3 * len(names)))
    for ax, which in zip(axes[0], passes, strict=True):
        rows = {(r["op"], shape_text(r["shape"])): r["seconds"] for r in chosen if r["pass"] == which}
        providers = [p for p in COLORS if p not in ("ours", "call") and any(p in s for s in rows.values())]
        for i, provider in enumerate(providers):
            bars = [
                (y, rows[n][provider] / rows[n]["ours"]) for y, n in enumerate(names) if provider in rows.get(n, {})
            ]
            height = 0.8 / len(providers)
            places = [y - 0.4 + height * (i + 0.5) for y, _ in bars]
            # from 1 on: to the right ours is faster
            widths = [value - 1 for _, value in bars]
            ax.barh(places, widths, height, left=1, label=f"{provider} / ours", color=COLORS[provider])
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set(title=which, xscale="log", xlabel="time / our time (right of 1: ours is faster)")
        low, high = ax.get_xlim()
        ticks = [k * 10**e for e in range(-4, 5) for k in (1, 2, 5) if low <= k * 10**e <= high]
        ax.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=8)
        ax.minorticks_off()
        ax.set_yticks(range(len(names)), [" ".join(n) for n in names], fontsize=7)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="x", linewidth=0.3)
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="lower center", ncol=4, fontsize=8)
    return figure


def time_against_size(report: Mapping[str, Any]) -> Any:
    from matplotlib import pyplot as plt

    ops = list(dict.fromkeys(r["op"] for r in report["sweep"]))
    columns = min(3, len(ops))
    lines = -(-len(ops) // columns)
    figure, axes = plt.subplots(lines, columns, squeeze=False, figsize=(max(9, 3.8 * columns), 0.6 + 3.2 * lines))
    for ax in axes.flat[len(ops) :]:
        ax.set_visible(False)
    for ax, op in zip(axes.flat, ops, strict=False):
        rows = [r for r in report["sweep"] if r["op"] == op]
        for provider in [p for p in COLORS if p in rows[0]["seconds"]]:
            points = [r["elements"] for r in rows], [1e6 * r["seconds"][provider] for r in rows]
            ax.plot(*points, marker=".", label=provider, color=COLORS[provider])
        ax.set(title=op, xscale="log", yscale="log", xlabel="elements", ylabel="µs")
        ax.grid(linewidth=0.3)
    axes[0][0].legend(fontsize=8)
    return figure


def thread_scaling(report: Mapping[str, Any]) -> Any:
    """The time with one thread over that with more, of each case: ours and eager."""
    from matplotlib import pyplot as plt

    counts = sorted({r["threads"] for r in report["results"]})
    cases: dict[str, dict[int, Mapping[str, float]]] = {}
    first = [r for r in report["results"] if r["threads"] == counts[0]]
    scaled = {(r["size"], r["dtype"], r["pass"]) for r in first}
    for r in report["results"]:
        if (r["size"], r["dtype"], r["pass"]) in scaled:
            cases.setdefault(f"{r['op']} {shape_text(r['shape'])}", {})[r["threads"]] = r["seconds"]
    cases = {name: of for name, of in cases.items() if len(of) == len(counts)}
    figure, ax = plt.subplots(figsize=(8, 1.8 + 0.22 * len(cases)))
    for i, provider in enumerate(("ours", "eager")):
        values = [of[counts[0]][provider] / of[counts[-1]][provider] for of in cases.values()]
        ax.barh([y - 0.2 + 0.4 * i for y in range(len(cases))], values, 0.4, label=provider, color=COLORS[provider])
    ax.axvline(counts[-1] / counts[0], color="black", linewidth=0.8)
    ax.set(xlabel=f"time with {counts[0]} threads / time with {counts[-1]}")
    ax.set_yticks(range(len(cases)), list(cases), fontsize=7)
    ax.set_ylim(len(cases) - 0.5, -0.5)
    ax.legend(fontsize=8)
    return figure


def save_plots(report: Mapping[str, Any], directory: Path, stem: str) -> list[Path]:
    """Writes those for which there are results."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    s = report["settings"]
    figures = {}
    for size, dtype in [(size, dtype) for size in s["sizes"] for dtype in s["dtypes"]]:
        if any((r["size"], r["dtype"]) == (size, dtype) for r in report["results"]):
            figures[f"{size}-{dtype}"] = ratio_bars(report, size, dtype)
    if report["sweep"]:
        figures["size"] = time_against_size(report)
    if len({r["threads"] for r in report["results"]}) > 1:
        figures["threads"] = thread_scaling(report)
    paths = []
    for name, figure in figures.items():
        figure.suptitle(f"{where_text(report)}\n{name.replace('-', ', ')}", fontsize=9)
        figure.tight_layout(rect=(0, 0.5 / figure.get_figheight(), 1, 1))  # room for a legend below
        paths.append(directory / f"{stem}-{name}.png")
        figure.savefig(paths[-1], dpi=110)
        plt.close(figure)
    return paths
