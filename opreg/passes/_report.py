"""What a rewrite did, and what it left."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field

import torch
from torch import fx

from .._tables import html_table, table


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
    """What was ``swapped`` and what was ``left``. Printed, and shown by a notebook, it is two tables."""

    swapped: list[Swapped] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n\n".join([self._counts(), *(table(head, rows, left=len(head)) for head, rows in self._tables())])

    def _repr_html_(self) -> str:
        return "\n".join([f"<p>{self._counts()}</p>", *(html_table(head, rows) for head, rows in self._tables())])

    def _counts(self) -> str:
        return f"{len(self.swapped)} swapped, {len(self.left)} left"

    def _tables(self) -> Iterator[tuple[list[str], list[list[str]]]]:
        """The heads and rows of what there is to tell; a column that no row has anything for is left out."""
        named: list[tuple[tuple[str, str], Sequence[Swapped | Left]]] = [
            (("op", "rule"), self.swapped),
            (("left", "why"), self.left),
        ]
        for head, entries in named:
            rows, heads = [astuple(e) for e in entries], (*head, "where", "times")
            kept = [i for i in range(len(heads)) if any(row[i] is not None for row in rows)]
            if rows:
                yield [heads[i] for i in kept], [["" if row[i] is None else str(row[i]) for i in kept] for row in rows]


# The folders of torch and of opreg.
NOT_THE_USERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(os.path.dirname(__file__)) + os.sep)


def where(node: fx.Node) -> str:
    """The line of the user's source that a node comes from, and the module's path, as far as tracing kept them."""
    modules = node.meta.get("nn_module_stack") or {}
    path = next((str(path) for path, _ in reversed(list(modules.values()))), "")
    path = re.sub(r"^L\['\w+'\]\.?|_modules\['(\w+)'\]", r"\1", path)
    line = line_of(re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or node.stack_trace or ""))
    return " in ".join(part for part in (line, path) if part) or f"node {node.name}"


def line_of(frames: Sequence[tuple[str, int | str]]) -> str:
    """The innermost line of the user's source among lines by file and number; empty where there is none at all."""
    frames = [f for f in frames if not f[0].startswith(NOT_THE_USERS)] or frames
    return ":".join(map(str, frames[-1])) if frames else ""
