"""What a rewrite did, and what it left."""

import os
import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field

import torch
from torch import fx


@dataclass(frozen=True)
class Swapped:
    """A place where an op computes what the program computed before."""

    op: str
    rule: str
    where: str
    # how often it ran, where calls are counted
    times: int | None = None


@dataclass(frozen=True)
class Left:
    """A place that stays as it was."""

    what: str
    why: str
    where: str
    times: int | None = None


@dataclass
class Report:
    """What was ``swapped`` and what was ``left``. Printed, it is two tables."""

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [f"{len(self.swapped)} swapped, {len(self.left)} left"]
        for head, entries in (("op", "rule"), self.swapped), (("left", "why"), self.left):
            if entries:
                parts.append(table((*head, "where", "times"), list(map(astuple, entries))))
        return "\n\n".join(parts)


def table(head: Sequence[str], entries: Sequence[Sequence[str | int | None]]) -> str:
    """Columns of text; one that no row has anything for is left out."""
    kept = [i for i in range(len(head)) if any(row[i] is not None for row in entries)]
    head, rows = [head[i] for i in kept], [["" if row[i] is None else str(row[i]) for i in kept] for row in entries]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines)


# The folders of torch and of opreg.
NOT_THE_USERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def where(node: fx.Node) -> str:
    """The line of the user's source that a node comes from, and the module's path, as far as tracing kept them."""
    modules = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(list(modules.values()))), "")
    path = re.sub(r"^L\['\w+'\]\.?|_modules\['(\w+)'\]", r"\1", path)
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or node.stack_trace or "")
    frames = [f for f in frames if not f[0].startswith(NOT_THE_USERS)] or frames
    line = ":".join(frames[-1]) if frames else ""
    return " in ".join(part for part in (line, path) if part) or f"node {node.name}"
