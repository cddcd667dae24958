"""What a search finds: a formula in its place, or what is nearly one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from torch import Tensor, fx

from .._rule import Argument, Formula
from ..graph.calls import sizes, value_of
from ..graph.ranges import Ranges
from ..graph.view import GraphView
from ..normal_form import algebra

F = TypeVar("F", bound=Formula)


@dataclass(frozen=True)
class Match(Generic[F]):
    """A formula, found in a graph."""

    formula: F
    root: fx.Node
    tensors: dict[str, fx.Node]
    numbers: dict[str, float]
    # the other nodes that compute it
    interior: tuple[fx.Node, ...]
    view: GraphView
    # groups of tensors that are of one shape, since torch refuses the call otherwise
    alike: tuple[frozenset[fx.Node], ...]
    # the root is the pattern's value itself (""), or the mean or the sum of its elements
    reduction: str
    # times this number, times these tensors, or divided by them where the exponent is −1
    factor: float = 1.0
    factors: tuple[tuple[fx.Node, float], ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """The tensors and numbers as an objection gets them."""
        return {**{n: self.argument(t) for n, t in self.tensors.items()}, **self.numbers}

    def argument(self, node: fx.Node) -> Argument:
        alike = next((group for group in self.alike if node in group), None)
        return argument(self.view, node, None if alike is None else (alike,))

    def moved(self, view: Any, to: Mapping[Any, Any]) -> "Match[F]":
        """The same match in another graph, or with the places of nodes for these: ``to`` has what stands for each."""
        return replace(
            self,
            root=to[self.root],
            tensors={name: to[n] for name, n in self.tensors.items()},
            interior=tuple([to[n] for n in self.interior]),
            view=view,
            alike=tuple([frozenset(to[n] for n in group) for group in self.alike]),
            factors=tuple([(to[n], exponent) for n, exponent in self.factors]),
        )


def argument(view: GraphView, node: fx.Node, shape: Any = None) -> Argument:
    """A node as an objection gets it; the shape is what is known of it where the graph does not tell."""
    value, requires_grad, values = value_of(node), view.requires_grad(node), Ranges(view).of(node)
    if isinstance(value, Tensor):
        return Argument(sizes(value), value.dtype, value.device, requires_grad, values)
    return Argument(shape, None, None, requires_grad, values)


@dataclass(frozen=True)
class Near:
    """What a formula nearly is."""

    name: str
    likeness: float
    # the program's formula and that of the pattern, or how they differ, in words
    difference: str | tuple[algebra.Poly, algebra.Poly]

    def in_words(self) -> "Near":
        return self if isinstance(self.difference, str) else replace(self, difference=difference(*self.difference))


def note_nearest(view: GraphView, root: fx.Node, near: Near) -> None:
    before = view.work.nearest.get(root)
    if before is None or before.likeness < near.likeness:
        view.work.nearest[root] = near


def likeness(p: algebra.Poly, q: algebra.Poly) -> float:
    """How many of the terms of two polynomials are the same, of 1."""
    return len(p.terms & q.terms) / max(len(p.terms), len(q.terms))


def difference(p: algebra.Poly, q: algebra.Poly) -> str:
    """The first term that a program has otherwise than a pattern, in words."""
    a, b = dict(p.terms), dict(q.terms)
    monomial = min((m for m in a.keys() | b.keys() if a.get(m) != b.get(m)), key=algebra.repr_key)
    mine, theirs = (f"{c:g}" if c is not None else "nothing" for c in (a.get(monomial), b.get(monomial)))
    return f"{algebra.text(monomial)} has the coefficient {mine}, and the op's formula has {theirs}"
