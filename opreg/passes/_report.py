"""What a rewrite did, and what it left."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx


@dataclass(frozen=True)
class Swapped:
    """A place where an op computes what the program computed before."""

    op: str
    rule: str
    where: str


@dataclass(frozen=True)
class Left:
    """A place that stays as it was."""

    what: str
    why: str
    where: str


@dataclass
class Report:
    """What was ``swapped`` and what was ``left``. Printed, it is two tables."""

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{len(self.swapped)} swapped, {len(self.left)} left"
        parts = [head]
        if self.swapped:
            parts.append(table(("op", "rule", "where"), [(s.op, s.rule, s.where) for s in self.swapped]))
        if self.left:
            parts.append(table(("left", "why", "where"), [(s.what, s.why, s.where) for s in self.left]))
        return "\n\n".join(parts)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * w for w in widths], *rows]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in lines)


_NOT_THE_USERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)


def where(node: fx.Node) -> str:
    """The line of the user's source that a node comes from, and the module's path, as far as tracing kept them."""
    modules = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(list(modules.values()))), "")
    path = re.sub(r"^L\['\w+'\]\.?|_modules\['(\w+)'\]", r"\1", path)
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or node.stack_trace or "")
    frames = [f for f in frames if not f[0].startswith(_NOT_THE_USERS)] or frames
    line = ":".join(frames[-1]) if frames else ""
    return " in ".join(part for part in (line, path) if part) or f"node {node.name}"
