"""How a node is read as a formula of leaves, in several ways, since nobody knows which of the nodes before it the
formula starts from."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from ..graph.calls import value_of
from ..graph.view import GraphView
from ..normal_form import algebra
from ..normal_form.evaluate import Evaluator, handlers, prepared
from ..normal_form.readings import Reading, Readings, TooMany
from ..normal_form.values import Opaque, Value
from ..normal_form.values import leaf as leaf_value
from .neighbourhood import Neighbourhood
from .starts import PARTS

# Functions whose value depends on more than one element.
_OF_SEVERAL = frozenset(
    {
        "sum",
        "mean",
        "softmax",
        "log_softmax",
        "cross_entropy",
        "one_hot",
        "component",
        "arange",
        "logsumexp",
        "picked",
        "norm",
        "ordered",
        "cumsum",
        "steps",
        "matmul",
        "transposed",
        "eye",
    }
)
# How many numbers of a program are tried.
_MOST_NUMBERS = 12


class Reader:
    """Reads a root's value as a formula of a start and few other leaves, for one start after the other."""

    def __init__(self, view: GraphView, root: fx.Node, most: int, place: Neighbourhood) -> None:
        self.view, self.root, self.most, self.near = view, root, most, place.near
        if view.readings is None:
            view.readings = Readings(view)
        self.all: Readings = view.readings
        # what is too far away to be evaluated
        self.border = self.all.mask(place.nodes[len(place.near) :])
        # the leaves that were chosen before
        self.chosen: set[int] = set()
        # the root's values by case, by the leaves and the leaf that is 0 or 1
        self.by_case: dict[Any, list[Value] | None] = {}

    def readings(self, start: fx.Node | None) -> Iterator[Reading]:
        """The root's values over a start.

        What is computed without the start is read in three ways: as leaves, as formulas of whatever it is made of, and
        as formulas of one of these leaves, or of one that such a leaf is made of directly.
        """
        first = 0 if start is None else self.all.bit_of(start)
        boundary = [] if start is None else self.boundary(start)
        yield from self.read(first | self.all.mask(boundary))
        if not boundary:
            return
        yield from self.read(first)
        if len(boundary) <= self.most:
            for node in boundary:
                call = self.view.calls.get(node)
                for candidate in dict.fromkeys((node, *(call.inputs() if call is not None else ()))):
                    if candidate is not start:
                        yield from self.read(first | self.all.bit_of(candidate))

    def boundary(self, start: fx.Node) -> list[fx.Node]:
        """The nearest nodes that could be evaluated and are not made of a start; parts of boxes are looked through."""
        found, seen, waiting = list[fx.Node](), {start, self.root}, [self.root]
        own = self.all.bit_of(start)
        while waiting:
            for n in self.all.operands(waiting.pop()) or ():
                if n in seen or n not in self.near:
                    continue
                seen.add(n)
                call = self.view.calls.get(n)
                if call is None or call.name not in handlers:
                    continue
                if call.name in PARTS or self.all.before(n) & own:
                    waiting.append(n)
                else:
                    found.append(n)
        return found

    def read(self, chosen: int) -> Iterator[Reading]:
        """The root's value over leaves, with all else that is near evaluated, if nobody has asked for it yet."""
        if chosen in self.chosen:
            return
        self.chosen.add(chosen)
        with contextlib.suppress(TooMany):
            read = self.all.read(self.root, chosen | self.border)
            if read.leaves.bit_count() <= self.most:
                yield Reading(self.all, self.root, read)

    def cases(self, leaves: list[fx.Node], leaf: fx.Node) -> list[Value] | None:
        """The root's values where all elements of a leaf are 0, and where they are 1; None where it is no function of
        elements.

        The leaves' elements are taken to be finite, as they are in every normal form.
        """
        key = (frozenset(leaves), leaf)
        if key not in self.by_case:
            self.by_case[key] = self.values_by_case(leaves, leaf)
        return self.by_case[key]

    def values_by_case(self, leaves: list[fx.Node], leaf: fx.Node) -> list[Value] | None:
        found = []
        for case in (0.0, 1.0):
            given = {n: leaf_value(n) for n in leaves}
            given[leaf] = replace(given[leaf], poly=algebra.constant(case))
            with algebra.finite(), contextlib.suppress(Opaque):
                evaluator = Evaluator(self.view, given, self.view.work.of_cases, closed=lambda n: n not in self.near)
                value = evaluator.value(self.root)
                if isinstance(value, Value) and of_elements(value):
                    found.append(value)
        return found if len(found) == 2 else None


def of_elements(value: Value) -> bool:
    """Does each element of a value depend on one element of each leaf alone?"""
    return not algebra.names(value.poly) & _OF_SEVERAL


# Calls that read the shape or the dtype of a tensor, not its elements.
_OF_SHAPE_ALONE = frozenset({"zeros_like", "new_zeros", "one_hot", "view_as", "reshape_as", "expand_as", "type_as"})
# Nodes whose value is a shape or a part of one.
_SHAPES = frozenset({"size", "dim", "numel", "sym_size", "getattr"})


def called(node: fx.Node) -> str:
    """The name of the function or the method that a node calls, if it calls one."""
    if node.op not in ("call_function", "call_method"):
        return ""
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def forgets(reading: Reading, leaves: list[fx.Node]) -> bool:
    """Has a normal form lost a tensor that the program reads, as ``x + 0 · y`` loses y?

    That tensor may hold NaN or infinities, and its gradient is zero and not absent.
    """
    view, inside = reading.view, {reading.root, *used(reading)}
    for user in inside:
        call = view.calls[user]
        if call is None or call.name in _OF_SHAPE_ALONE:
            continue
        for node in view.inputs(user):
            if node in inside or node in leaves:
                continue
            value, of = value_of(node), view.calls.get(node)
            made_by = of.name if of is not None else called(node)
            if made_by not in _SHAPES and (value is None or isinstance(value, Tensor)):
                return True
    return False


def numbers_in(view: GraphView, nodes: Iterable[fx.Node]) -> list[float]:
    """The numbers that calls hold, and 1, which need not be written. Whole ones come last, since most are indices."""
    found: dict[float, None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is not None:
            for c in prepared(view, node, call).numbers:
                found[c] = found[abs(c)] = None
    found[1.0] = None
    return sorted(found, key=float.is_integer)[:_MOST_NUMBERS]


def used(reading: Reading) -> tuple[fx.Node, ...]:
    """The nodes of the interior that the root is made of, without the root."""
    reached, order = {reading.root}, [reading.root]
    for node in order:  # which grows
        for n in reading.view.inputs(node):
            if n in reading.interior and n not in reached:
                reached.add(n)
                order.append(n)
    return tuple(order[1:])
