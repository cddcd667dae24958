"""What a run writes: JSON, Markdown and pictures, named for the device."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .text import markdown


def rounded(value: Any) -> Any:
    """Numbers with four digits: the fifth is noise."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list) else value


def json_text(report: Mapping[str, Any]) -> str:
    """One row a line: a difference between two files can be read."""
    parts = []
    for name, value in rounded(report).items():
        if isinstance(value, list) and value:
            rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in value)
            parts.append(f"{json.dumps(name)}: [\n{rows}\n]")
        else:
            parts.append(f"{json.dumps(name)}: {json.dumps(value, indent=1)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


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
