"""How formulas are looked for in a graph: by normal form, not by spelling.

A node may be the root of a formula. It is evaluated down to leaves, in several ways, since nobody knows which of the
nodes before it the formula starts from; what comes out is compared with the normal form that each pattern has over the
same leaves and with the numbers of the program.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, fx

from ._rule import Argument, Formula
from .graph.calls import sizes, value_of
from .graph.view import GraphView
from .normal_form import algebra
from .normal_form.evaluate import Evaluator, TooMany, handlers, prepared
from .normal_form.values import Value, over_all
from .normal_form.vocabulary import holds, words

# Calls that patterns hold. A formula starts from the first argument of one of them, or from what that argument is made
# of by calls of one tensor.
# fmt: off
_ANCHORS = frozenset({
    "sigmoid", "exp", "tanh", "softplus", "log_sigmoid", "clamp", "clamp_min", "relu", "relu6", "hardsigmoid",
    "hardtanh", "silu", "softmax", "log_softmax", "cross_entropy", "binary_cross_entropy_with_logits", "sum", "mean",
    "where", "scatter", "one_hot",
})
# fmt: on
# Calls that nearly every formula holds: they say nothing of where one starts.
_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "pow", "square"})
# Calls that take boxes apart.
_PARTS = frozenset({"unbind", "select", "getitem", "chunk", "split"})
# How many calls before a root are looked at for starts, and how many are evaluated; and how far apart they may be.
_MOST_FOR_STARTS, _MOST_EVALUATED, _DEEPEST = 48, 200, 40
# How many formulas and patterns are evaluated: for one root; for one graph; and, on average, for each of its nodes.
_FOR_A_PLACE, _FOR_A_GRAPH, _FOR_A_NODE = 1000, 4000, 20
# How many numbers of a program are tried, and how many tensors are put into a pattern in every order.
_MOST_NUMBERS, _MOST_TENSORS = 12, 3


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
    evaluator: Evaluator
    # the root is the pattern's value itself (""), or the mean or the sum of its elements
    reduction: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The tensors and numbers as an objection gets them."""
        return {**{n: self.argument(t) for n, t in self.tensors.items()}, **self.numbers}

    def argument(self, node: fx.Node) -> Argument:
        alike = next((group for group in self.evaluator.alike if node in group), None)
        return argument(self.evaluator.view, node, None if alike is None else (alike,))


def argument(view: GraphView, node: fx.Node, shape: Any = None) -> Argument:
    """A node as an objection gets it; the shape is what is known of it where the graph does not tell."""
    value, requires_grad = value_of(node), view.requires_grad(node)
    if isinstance(value, Tensor):
        return Argument(sizes(value), value.dtype, value.device, requires_grad)
    return Argument(shape, None, None, requires_grad)


class OutOfWork(Exception):
    """More formulas and patterns than are evaluated for one root, or for one graph."""


def matches(formulas: Iterable[F], view: GraphView, root: fx.Node) -> Iterator[Match[F]]:
    """The formulas that a node computes. A node that takes too much work to tell is among those given up."""
    try:
        yield from _matches(list(formulas), view, root)
    except OutOfWork:
        view.work.given_up.add(root)


def _matches(formulas: list[F], view: GraphView, root: fx.Node) -> Iterator[Match[F]]:
    limit = min(view.work.done + _FOR_A_PLACE, _FOR_A_GRAPH + _FOR_A_NODE * len(view.position))

    def work() -> None:
        if view.work.done >= limit:
            raise OutOfWork
        view.work.done += 1

    found, anchors = words(view, root), anchors_of(formulas, view)
    formulas = [formula for formula in formulas if holds(found, formula.words)]
    if not formulas:
        return
    nodes = list(calls_before(view, root, _MOST_FOR_STARTS))
    telling = anchors | _PARTS
    if not any((c := view.calls.get(n)) is not None and c.name in telling for n in nodes):
        return
    seen: set[Any] = set()
    reader = Reader(view, root, leaves_for(formulas))
    for start in (*starts(view, nodes, anchors), None):
        if start is root:
            continue
        for value, evaluator in reader.readings(start):
            work()
            if not isinstance(value, Value) or value.poly in seen:
                continue
            seen.add(value.poly)
            leaves = sorted(algebra.leaves(value.poly), key=view.position.__getitem__)
            if forgets(evaluator, leaves):
                continue
            written = numbers_in(view, evaluator.interior)
            for formula in formulas:
                match = matched(formula, root, value, leaves, written, evaluator, work)
                if match is not None:
                    yield match


def leaves_for(formulas: Iterable[Formula]) -> int:
    """How many leaves a reading may have: the tensors of a formula, and sizes of tensors that a view is made with."""
    return 2 + min(2, max(len(formula.parameters[0]) for formula in formulas))


# where a formula may start


def anchors_of(formulas: Iterable[Formula], view: GraphView) -> frozenset[str]:
    key = tuple(map(id, formulas))
    if key not in view.work.anchors:
        view.work.anchors[key] = _ANCHORS.union(*(formula.call_names for formula in formulas)) - _ARITHMETIC
    return view.work.anchors[key]


def calls_before(view: GraphView, root: fx.Node, most: int) -> Iterator[fx.Node]:
    """The nodes that a node is made of by calls with a meaning, itself among them, nearest first."""
    depth, order = {root: 0}, [root]
    for node in order:  # which grows
        yield node
        call = view.calls.get(node)
        if call is None or call.name not in handlers or len(order) > most or depth[node] > _DEEPEST:
            continue
        for n in view.inputs(node):
            if n not in depth:
                depth[n] = depth[node] + 1
                order.append(n)


class Near:
    """The nodes near a root, found as far as somebody asks."""

    def __init__(self, view: GraphView, root: fx.Node) -> None:
        self.found: set[fx.Node] = set()
        self.others = calls_before(view, root, _MOST_EVALUATED)

    def __contains__(self, node: fx.Node) -> bool:
        while node not in self.found:
            following = next(self.others, None)
            if following is None:
                return False
            self.found.add(following)
        return True


def starts(view: GraphView, nodes: Iterable[fx.Node], anchors: frozenset[str]) -> list[fx.Node]:
    """The nodes that a formula may start from."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is not None and call.name in _PARTS:  # boxes that are computed
            found.update(dict.fromkeys(view.inputs(node)))
        if call is None or call.name not in anchors:
            continue
        at = next(call.inputs(), None)
        for _ in range(6):
            if at is None:
                break
            at = view.current(at, node)
            found[at] = None
            call = view.calls.get(at)
            inputs = list(call.inputs()) if call else []
            at = inputs[0] if len(set(inputs)) == 1 else None
    return list(found)


class Reader:
    """Reads a root's value as a formula of a start and few other leaves, for one start after the other."""

    def __init__(self, view: GraphView, root: fx.Node, most: int) -> None:
        self.view, self.root, self.most = view, root, most
        self.near = Near(view, root)
        # the readings in which all that is near is evaluated, by their leaves
        self.whole: dict[frozenset[fx.Node], tuple[Any, Evaluator] | None] = {}

    def readings(self, start: fx.Node | None) -> Iterator[tuple[Any, Evaluator]]:
        """The root's values over a start.

        What is computed without the start is read in three ways: as leaves, as formulas of whatever it is made of, and
        as formulas of one of these leaves, or of one that such a leaf is made of directly.
        """
        boundary: dict[fx.Node, None] = {}
        dependent: dict[fx.Node, bool] = {}

        def outside(node: fx.Node) -> bool:
            if node not in self.near:
                return True
            call = self.view.calls.get(node)
            if start is None or (call is not None and call.name in _PARTS) or self.depends(node, start, dependent):
                return False
            boundary[node] = None
            return True

        first = () if start is None else (start,)
        evaluator = self.evaluator(first, outside)
        with contextlib.suppress(TooMany):
            yield evaluator.value(self.root), evaluator
        if not boundary:
            return
        yield from self.read(first)
        if len(boundary) <= self.most:
            for node in boundary:
                call = self.view.calls.get(node)
                for candidate in dict.fromkeys((node, *(call.inputs() if call is not None else ()))):
                    if candidate is not start:
                        yield from self.read((*first, candidate))

    def read(self, leaves: tuple[fx.Node, ...]) -> Iterator[tuple[Any, Evaluator]]:
        """The root's value over leaves, with all that is near evaluated."""
        key = frozenset(leaves)
        if key not in self.whole:
            self.whole[key] = None
            evaluator = self.evaluator(leaves, lambda node: node not in self.near)
            if not self.exceeds(leaves):
                with contextlib.suppress(TooMany):
                    self.whole[key] = evaluator.value(self.root), evaluator
        reading = self.whole[key]
        if reading is not None:
            yield reading

    def exceeds(self, leaves: tuple[fx.Node, ...]) -> bool:
        """Are there too many leaves, even if the algebra knows what every call with a meaning gives?"""
        found, seen, waiting = len(leaves), set(leaves), [self.root]
        while waiting:
            node = waiting.pop()
            if node not in seen:
                seen.add(node)
                operands = self.operands(node)
                if operands is not None:
                    waiting += operands
                elif found >= self.most:
                    return True
                else:
                    found += 1
        return False

    def evaluator(self, leaves: tuple[fx.Node, ...], closed: Callable[[fx.Node], bool]) -> Evaluator:
        return Evaluator(self.view, leaves, self.view.work.results, most=self.most, closed=closed)

    def depends(self, node: fx.Node, start: fx.Node, known: dict[fx.Node, bool]) -> bool:
        """Is a node computed from a start, or the start?"""
        if node not in known:
            after = self.view.position[node] > self.view.position[start]
            inputs = self.view.inputs(node) if after and self.operands(node) is not None else ()
            known[node] = node is start or any(self.depends(n, start, known) for n in inputs)
        return known[node]

    def operands(self, node: fx.Node) -> tuple[fx.Node, ...] | None:
        """What a node near the root is evaluated from, if it is a call with a meaning; otherwise None."""
        call = self.view.calls.get(node)
        if call is None or call.name not in handlers or node not in self.near:
            return None
        return prepared(self.view, node, call).operands


# Calls that read the shape or the dtype of a tensor, not its elements.
_OF_SHAPE_ALONE = frozenset({"zeros_like", "new_zeros", "one_hot", "view_as", "reshape_as", "expand_as", "type_as"})
# Nodes whose value is a shape or a part of one.
_SHAPES = frozenset({"size", "dim", "numel", "sym_size", "getattr"})


def forgets(evaluator: Evaluator, leaves: list[fx.Node]) -> bool:
    """Has a normal form lost a tensor that the program reads, as ``x + 0 · y`` loses y?

    That tensor may hold NaN or infinities, and its gradient is zero and not absent.
    """
    for node in evaluator.values:
        if node in evaluator.interior or node in leaves:
            continue
        value, call = value_of(node), evaluator.view.calls.get(node)
        name = call.name if call is not None else getattr(node.target, "__name__", str(node.target))
        if name.split(".")[0] in _SHAPES or (value is not None and not isinstance(value, Tensor)):
            continue
        readers = [evaluator.view.calls.get(u) for u in node.users if u in evaluator.interior]
        if any(call is None or call.name not in _OF_SHAPE_ALONE for call in readers):
            return True
    return False


def numbers_in(view: GraphView, nodes: Iterable[fx.Node]) -> list[float]:
    """The numbers that calls hold, and 1, which need not be written. Whole ones come last, since most are indices."""
    found: dict[float, None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is not None:
            found.update(dict.fromkeys(prepared(view, node, call).numbers))
    found[1.0] = None
    return sorted(found, key=float.is_integer)[:_MOST_NUMBERS]


# the comparison


def matched(
    formula: F,
    root: fx.Node,
    value: Value,
    leaves: list[fx.Node],
    written: list[float],
    evaluator: Evaluator,
    work: Callable[[], None],
) -> Match[F] | None:
    """The formula, where its pattern over the leaves of a value, in some order, and with numbers of the program is that
    value."""
    names, number_names = formula.parameters
    if len(leaves) != len(names) or len(leaves) > _MOST_TENSORS or not algebra.names(value.poly) >= formula.functions:
        return None
    forms = evaluator.view.work.forms
    choices = [candidates(formula, n, written) for n in number_names]
    for tensors in itertools.permutations(leaves):
        for numbers in itertools.product(*choices):
            key = (id(formula), tensors, numbers)
            if key not in forms:
                work()
                forms[key] = formula.normal_form(tensors, numbers, evaluator.view.work.results)
            form = forms[key]
            reduction = None if form is None else found_as(form, value)
            if reduction is not None:
                return Match(
                    formula,
                    root,
                    dict(zip(names, tensors, strict=True)),
                    {n: int(c) if n in formula.integers else c for n, c in zip(number_names, numbers, strict=True)},
                    used(root, evaluator),
                    evaluator,
                    reduction,
                )
    return None


def candidates(formula: Formula, name: str, written: list[float]) -> list[float]:
    """What a number of the pattern may be, by the numbers that the program holds."""
    if name in formula.defaults:
        written = [*written, formula.defaults[name]]
    if name in formula.integers:
        written = [c for c in written if c == int(c)]
    made = formula.numbers.get(name, float)
    result: dict[float, None] = {}
    for c in written:
        with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
            result[made(c)] = None
    return list(result)


def found_as(form: Value, value: Value) -> str | None:
    """Is a value the pattern's itself (""), its "mean" or its "sum"? None: it is something else."""
    if form.poly == value.poly and (form.shape is None or value.shape is None or form.shape == value.shape):
        return ""
    if value.shape == () and form.shape != ():
        return next((name for name in ("mean", "sum") if over_all(form, name).poly == value.poly), None)
    return None


def used(root: fx.Node, evaluator: Evaluator) -> tuple[fx.Node, ...]:
    """The nodes of the interior that the root is made of, without the root."""
    reached, order = {root}, [root]
    for node in order:  # which grows
        for n in evaluator.view.inputs(node):
            if n in evaluator.interior and n not in reached:
                reached.add(n)
                order.append(n)
    return tuple(order[1:])
