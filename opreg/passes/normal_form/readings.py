"""Values of nodes over leaves that are chosen differently each time.

A search reads a root as a formula of these leaves or of those, and the roots of a graph share most of what is before
them. So a value is kept for every choice of the leaves before a node, whichever root they were chosen for.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import fx

from ..graph.view import GraphView
from .evaluate import UNKNOWN, Evaluator, handlers, prepared
from .values import leaf

# The most leaves that a value may have here: no pattern has more tensors, but two that may be sizes or factors.
MOST_LEAVES = 4


class TooMany(Exception):
    """A value has more leaves than any pattern has tensors."""


@dataclass(frozen=True)
class Read:
    """The value of a node over chosen leaves; sets of nodes are masks of the bits of ``Readings.bit``."""

    value: Any
    leaves: int
    interior: int = 0
    # groups of leaves that are of one shape, since torch refuses the call otherwise
    alike: tuple[frozenset[fx.Node], ...] = ()


@dataclass
class Readings:
    """What is known of the nodes of a graph that does not change."""

    view: GraphView
    nodes: list[fx.Node] = field(default_factory=list)
    bit: dict[fx.Node, int] = field(default_factory=dict)
    # a node and those that it is evaluated from
    _before: dict[fx.Node, int] = field(default_factory=dict)
    # by node and the chosen leaves before it; None: it has too many leaves
    _known: dict[tuple[fx.Node, int], Read | None] = field(default_factory=dict)
    _leaves: dict[fx.Node, Read] = field(default_factory=dict)

    def mask(self, nodes: Iterable[fx.Node]) -> int:
        found = 0
        for n in nodes:
            found |= self.bit_of(n)
        return found

    def of_mask(self, mask: int) -> Iterator[fx.Node]:
        """The nodes of a set, in the graph's order."""
        found = []
        while mask:
            last = mask & -mask
            found.append(self.nodes[last.bit_length() - 1])
            mask ^= last
        return iter(sorted(found, key=self.view.position.__getitem__))

    def bit_of(self, node: fx.Node) -> int:
        found = self.bit.get(node)
        if found is None:
            found = self.bit[node] = 1 << len(self.nodes)
            self.nodes.append(node)
        return found

    def operands(self, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """What a node is evaluated from, if it is a call with a meaning; otherwise None."""
        call = self.view.calls.get(node)
        return None if call is None or call.name not in handlers else prepared(self.view, node, call).operands

    def before(self, node: fx.Node) -> int:
        """A node and all that it is evaluated from."""
        known = self._before
        if node not in known:
            waiting = [node]
            while waiting:
                operands = self.operands(waiting[-1]) or ()
                missing = [n for n in operands if n not in known]
                if missing:
                    waiting += missing
                    continue
                n = waiting.pop()
                found = self.bit_of(n)
                for i in operands:
                    found |= known[i]
                known[n] = found
        return known[node]

    def read(self, node: fx.Node, chosen: int) -> Read:
        """A node's value over chosen leaves, and others where the algebra knows nothing.

        Raises:
            TooMany: it has more leaves than ``MOST_LEAVES``.
        """
        own = self.bit_of(node)
        call = self.view.calls.get(node)
        if own & chosen or call is None or call.name not in handlers:
            return self._leaf(node)
        key = (node, chosen & self.before(node))
        if key not in self._known:
            self._known[key] = self._read(node, chosen)
        found = self._known[key]
        if found is None:
            raise TooMany
        return found

    def _leaf(self, node: fx.Node) -> Read:
        found = self._leaves.get(node)
        if found is None:
            results = self.view.work.results
            if node not in results:
                results[node] = leaf(node)
            found = self._leaves[node] = Read(results[node], self.bit_of(node))
        return found

    def _read(self, node: fx.Node, chosen: int) -> Read | None:
        evaluator = _Step(self, chosen)
        try:
            value = evaluator.applied(node, self.view.calls[node])  # type: ignore[arg-type]
        except TooMany:
            return None
        except UNKNOWN:
            return self._leaf(node)
        return Read(value, evaluator.leaves, evaluator.inside | self.bit_of(node), tuple(evaluator.alike))


class _Step(Evaluator):
    """Evaluates one node, of what is read of its operands."""

    def __init__(self, readings: Readings, chosen: int) -> None:
        super().__init__(readings.view, {}, readings.view.work.results)
        self.readings, self.chosen = readings, chosen
        self.leaves = self.inside = 0

    def value(self, node: fx.Node) -> Any:
        found = self.readings.read(node, self.chosen)
        self.leaves |= found.leaves
        if self.leaves.bit_count() > MOST_LEAVES:
            raise TooMany
        if found.interior:
            self.inside |= found.interior
            self.interior.add(node)
        self.alike += found.alike
        return found.value


@dataclass(frozen=True)
class Reading:
    """The value of a root over leaves, and what it was read from."""

    readings: Readings
    root: fx.Node
    read: Read

    @property
    def view(self) -> GraphView:
        return self.readings.view

    @property
    def value(self) -> Any:
        return self.read.value

    @cached_property
    def interior(self) -> dict[fx.Node, None]:
        return dict.fromkeys(self.readings.of_mask(self.read.interior))
