"""What a run writes: JSON, Markdown and pictures, named for the device."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .runner import geometric_means, ratios
from .text import markdown


def rounded(value: Any) -> Any:
    """Numbers with four digits: the fifth is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def json_text(report: Mapping[str, Any]) -> str:
    """One row a line: a difference between two files can be read.

    What follows from the times is left out, and a row's spreads are a list in the order of its times.
    """
    rows = [{name: value for name, value in r.items() if name != "ratios"} for r in report["results"]]
    for r in rows:
        r["spread"] = [round(value, 3) for value in r["spread"].values()]
    kept = {name: value for name, value in report.items() if name != "geometric_means"}
    parts = []
    for name, value in rounded({**kept, "results": rows}).items():
        if isinstance(value, list) and value:
            lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f"{json.dumps(name)}: [\n{lines}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def bench_load(path: Path) -> dict[str, Any]:
    """A report that ``bench_save`` wrote, to be asked for its targets or drawn anew."""
    report: dict[str, Any] = json.loads(path.read_text())
    for r in report["results"]:
        r["spread"] = dict(zip(r["seconds"], r["spread"], strict=True))
        r["ratios"] = ratios(r["seconds"])
    return {**report, "geometric_means": geometric_means(report["results"])}


def bench_save(report: Mapping[str, Any], directory: Path) -> list[Path]:
    """Writes JSON, Markdown and, where matplotlib is installed, pictures; returns what it wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = report["settings"]["device"]
    paths = [directory / f"{stem}.json", directory / f"{stem}.md"]
    for path, text in zip(paths, (json_text(report), markdown(report)), strict=True):
        path.write_text(text)
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        print("matplotlib is not installed (pip install 'opreg[bench]'): no chart", file=sys.stderr)
        return paths
    from .plots import save_plots

    return [*paths, *save_plots(report, directory, stem)]
