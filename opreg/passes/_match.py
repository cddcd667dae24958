"""How formulas are looked for in a graph: by normal form, not by spelling.

A node may be the root of a formula. It is evaluated down to leaves, in several ways, since nobody knows which of the
nodes before it the formula starts from; what comes out is compared with the normal form that each pattern has over the
same leaves and with the numbers of the program.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from torch import Tensor, fx

from ._neighbourhood import Neighbourhood
from ._rule import Argument, Formula
from .graph.calls import sizes, value_of
from .graph.ranges import CASTS, Ranges
from .graph.view import GraphView
from .normal_form import algebra
from .normal_form.evaluate import Evaluator, handlers, prepared
from .normal_form.readings import Reading, Readings, TooMany
from .normal_form.values import Opaque, Value, over_all
from .normal_form.values import leaf as leaf_value
from .normal_form.vocabulary import words

# Calls that patterns hold. A formula starts from the first argument of one of them, or from what that argument is made
# of by calls of one tensor.
# fmt: off
_ANCHORS = frozenset({
    "sigmoid", "exp", "tanh", "softplus", "log_sigmoid", "clamp", "clamp_min", "relu", "relu6", "hardsigmoid",
    "hardtanh", "silu", "softmax", "log_softmax", "cross_entropy", "binary_cross_entropy_with_logits", "sum", "mean",
    "where", "scatter", "one_hot", "erf", "erfc", "cosh",
})
# fmt: on
# Calls that nearly every formula holds: they say nothing of where one starts.
_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "pow", "square"})
# Functions of differences and products, or of those and numbers: a square may be a product of two.
_OF_DIFFERENCES = frozenset({"pow", "square", "mul", "abs", "relu", "clamp", "clamp_min", "log_sigmoid", "softplus"})
# Calls that take boxes apart.
_PARTS = frozenset({"unbind", "select", "getitem", "chunk", "split"})
# How many calls before a root are looked at for starts.
_MOST_FOR_STARTS = 48
# How many formulas and patterns are evaluated: for one root; for one graph; and, on average, for each of its nodes.
_FOR_A_PLACE, _FOR_A_GRAPH, _FOR_A_NODE = 1000, 4000, 20
# How many numbers of a program are tried, and how many tensors are put into a pattern in every order.
_MOST_NUMBERS, _MOST_TENSORS = 12, 4


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


class OutOfWork(Exception):
    """More formulas and patterns than are evaluated for one root, or for one graph."""

    def __init__(self, of_place: bool) -> None:
        super().__init__()
        # another graph may have more work left
        self.of_place = of_place


class OutOfShare(Exception):
    """More forms of one pattern than its share of the work."""


class Budget:
    """What may be evaluated for one root: so many formulas and patterns, of which no pattern takes more than a quarter
    of what is left when it is first tried. A pattern of many numbers leaves the others their chance."""

    def __init__(self, view: GraphView) -> None:
        self.spent = view.work
        of_place, of_graph = self.spent.done + _FOR_A_PLACE, _FOR_A_GRAPH + _FOR_A_NODE * len(view.position)
        self.most, self.of_place = min(of_place, of_graph), of_place <= of_graph
        self.left: dict[int, int] = {}
        # a pattern has used up its share
        self.short = False

    def take(self) -> None:
        if self.spent.done >= self.most:
            raise OutOfWork(self.of_place)
        self.spent.done += 1

    def take_for(self, formula: Formula) -> None:
        left = self.left.get(id(formula))
        if left is None:
            left = 1 + (self.most - self.spent.done) // 4
        if left == 0:
            self.short = True
            raise OutOfShare
        self.left[id(formula)] = left - 1
        self.take()


def matches(pool: "Pool[F]", view: GraphView, root: fx.Node) -> Iterator[Match[F]]:
    """The formulas that a node computes. A node that takes too much work to tell is among those given up.

    What was found in a neighbourhood that is spelled alike is not searched for again.
    """
    held = words(view, root)
    formulas = pool.within(held)
    if not formulas:
        return
    place = Neighbourhood.of(view, root)
    nodes = list(itertools.islice(place.near, _MOST_FOR_STARTS))
    if not any((c := view.calls.get(n)) is not None and c.name in pool.telling for n in nodes):
        formulas = tuple(formula for formula in formulas if formula.arithmetic)
        if not formulas:
            return
    outcome = pool.outcome(None if place.key is None else (held, place.key))
    if outcome.nearest is not None:
        note_nearest(view, root, outcome.nearest)
    to = dict(enumerate(place.nodes))
    for known in tuple(outcome.matches):
        yield known.moved(view, to)
    if not outcome.whole:
        reader = Reader(view, root, leaves_for(formulas), place)
        yield from outcome.search(_matches(formulas, reader, nodes, pool.anchors), reader, place.nodes)
    if outcome.given_up:
        view.work.given_up.add(root)


def _matches(
    formulas: Sequence[F], reader: "Reader", nodes: Sequence[fx.Node], anchors: frozenset[str]
) -> Iterator[Match[F]]:
    view, root = reader.view, reader.root
    budget = Budget(view)
    seen: set[Any] = set()
    # the formulas that a value with these functions may be
    fitting: dict[frozenset[str], list[F]] = {}
    ways = []
    if not all(formula.common and formula.arithmetic for formula in formulas):
        ways = [reader.readings(start) for start in (*starts(view, nodes, anchors), None) if start is not root]
    for way in (*ways, *(reader.read(reader.all.mask(leaves)) for leaves in operands(view, nodes))):
        for reading in way:
            budget.take()
            value = reading.value
            if not isinstance(value, Value) or value.poly in seen:
                continue
            seen.add(value.poly)
            names = algebra.names(value.poly)
            if names not in fitting:
                fitting[names] = [formula for formula in formulas if formula.may_have(names)]
            if not fitting[names]:
                continue
            leaves = sorted(algebra.leaves(value.poly), key=view.position.__getitem__)
            if forgets(reading, leaves):
                continue
            search = Search(reading, leaves, numbers_in(view, reading.interior), budget)
            multiples = []
            for formula in fitting[names]:
                if len(formula.parameters[0]) > len(leaves):
                    continue
                if not formula.cases and not formula.powers <= value.poly.powers:
                    continue
                with contextlib.suppress(OutOfShare):
                    for match in search.of_cases(formula, reader) if formula.cases else search.plain(formula, value):
                        if match.factor == 1:
                            yield match
                        else:  # perhaps another formula needs no factor
                            multiples.append(match)
            yield from multiples
    if budget.short:
        raise OutOfWork(budget.of_place)


def leaves_for(formulas: Iterable[Formula]) -> int:
    """How many leaves a reading may have: the tensors of a formula, and sizes of tensors that a view is made with."""
    return 2 + min(2, max(len(formula.parameters[0]) for formula in formulas))


# where a formula may start


class Pool(Generic[F]):
    """Formulas that are looked for together, and what a search asks of all of them.

    Attributes:
        anchors: the calls from whose arguments they start.
        telling: calls without which only sums and products of numbers can be near.
    """

    def __init__(self, formulas: Iterable[F]) -> None:
        self.formulas = tuple(formulas)
        self.anchors = _ANCHORS.union(*(formula.call_names for formula in self.formulas)) - _ARITHMETIC
        self.telling = self.anchors | _PARTS | {"max", "min"}
        self._by_words: dict[frozenset[str], list[int]] = {}
        for i, formula in enumerate(self.formulas):
            self._by_words.setdefault(formula.words, []).append(i)
        self._within: dict[frozenset[str] | None, tuple[F, ...]] = {}
        self._outcomes: dict[Any, Outcome[F]] = {}

    @classmethod
    def of(cls, formulas: Iterable[F]) -> "Pool[F]":
        """The one pool of these formulas."""
        formulas = tuple(formulas)
        key = tuple(map(id, formulas))
        pool: Pool[F] | None = _pools.get(key)
        if pool is None:
            while len(_pools) >= _MOST_POOLS:
                _pools.pop(next(iter(_pools)), None)
            pool = _pools.setdefault(key, cls(formulas))
        return pool

    def outcome(self, key: Any) -> "Outcome[F]":
        """What searches in neighbourhoods of a key have found so far; one of None is nobody else's."""
        if key is None:
            return Outcome()
        while len(self._outcomes) >= _MOST_OUTCOMES:
            self._outcomes.pop(next(iter(self._outcomes)), None)
        return self._outcomes.setdefault(key, Outcome())

    def within(self, held: frozenset[str] | None) -> tuple[F, ...]:
        """The formulas that hold no other functions than these; None: all of them."""
        if held not in self._within:
            places = [i for w, group in self._by_words.items() if held is None or w <= held for i in group]
            self._within[held] = tuple(self.formulas[i] for i in sorted(places))
        return self._within[held]


# The pools of the last rules, by the formulas' ids, which stay theirs as long as the pool has the formulas.
_pools: dict[tuple[int, ...], Pool[Any]] = {}
_MOST_POOLS, _MOST_OUTCOMES = 64, 2048


def forget() -> None:
    """Forgets what searches have found, so that the next one works as the first."""
    _pools.clear()


@dataclass
class Outcome(Generic[F]):
    """What searches in neighbourhoods that are spelled alike have found so far."""

    # with the places of nodes in a neighbourhood in the place of the nodes
    matches: list[Match[F]] = field(default_factory=list)
    nearest: "Near | None" = None
    # nothing more is to be found, or would be with more work
    whole: bool = False
    given_up: bool = False

    def search(self, found: Iterable[Match[F]], reader: "Reader", nodes: Sequence[fx.Node]) -> Iterator[Match[F]]:
        """The matches that are new. Whoever has seen enough may stop: the next one goes on from there."""
        place, work = {n: i for i, n in enumerate(nodes)}, reader.view.work
        try:
            for match in found:
                new = match.moved(None, place)
                if new not in self.matches:
                    self.matches.append(new)
                    yield match
            self.whole = True
        except OutOfWork as out:
            self.whole = self.given_up = out.of_place
            work.given_up.add(reader.root)
        finally:
            nearest = work.nearest.get(reader.root)
            if nearest is not None:
                self.nearest = work.nearest[reader.root] = nearest.in_words()


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


def operands(view: GraphView, nodes: Iterable[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """Two tensors whose difference or product a formula may be a function of; or three, where one of the two is a
    difference itself."""
    found: dict[tuple[fx.Node, ...], None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is None or call.name not in _OF_DIFFERENCES or len(set(view.inputs(node))) != 1:
            continue
        both, name = view.inputs(node)[:1], ""
        for _ in range(4):  # sums and products with numbers
            inner = view.calls.get(both[0])
            if inner is None or inner.name not in _ARITHMETIC:
                break
            both, name = tuple(dict.fromkeys(view.inputs(both[0]))), inner.name
            if len(both) != 1:
                break
        if len(both) != 2 or name not in ("sub", "mul"):
            continue
        found[both] = None
        for one, other in (both, both[::-1]):
            inner = view.calls.get(one)
            if inner is not None and inner.name == "sub":
                found[tuple(dict.fromkeys((*view.inputs(one), other)))] = None
    return list(found)


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
                if call.name in _PARTS or self.all.before(n) & own:
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
                if isinstance(value, Value) and not algebra.names(value.poly) & _OF_SEVERAL:
                    found.append(value)
        return found if len(found) == 2 else None


# Calls that read the shape or the dtype of a tensor, not its elements.
_OF_SHAPE_ALONE = frozenset({"zeros_like", "new_zeros", "one_hot", "view_as", "reshape_as", "expand_as", "type_as"})
# Nodes whose value is a shape or a part of one.
_SHAPES = frozenset({"size", "dim", "numel", "sym_size", "getattr"})


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
            name = of.name if of is not None else getattr(node.target, "__name__", str(node.target))
            if name.split(".")[0] not in _SHAPES and (value is None or isinstance(value, Tensor)):
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


# the comparison


@dataclass(frozen=True)
class Search:
    """The search for formulas in one reading of a root."""

    reading: Reading
    leaves: list[fx.Node]
    # the numbers of the program
    written: list[float]
    budget: Budget

    def plain(self, formula: F, value: Value) -> Iterator[Match[F]]:
        """The formula, where its pattern over the leaves, in some order, and with numbers of the program is the value,
        but for factors."""
        yield from self.found(formula, [value], [None])

    def of_cases(self, formula: F, reader: "Reader") -> Iterator[Match[F]]:
        """The same of a formula of which one tensor holds zeros and ones alone, for either."""
        if formula.cases not in formula.parameters[0]:
            raise ValueError(f'rule "{formula.name}": cases names no tensor of its pattern, {formula.cases}')
        for leaf in self.leaves:
            values = reader.cases(self.leaves, leaf)
            if values is not None and formula.functions_by_case <= frozenset().union(
                *(algebra.names(v.poly) for v in values)
            ):
                yield from self.found(formula, values, [0.0, 1.0], leaf)

    def found(
        self, formula: F, values: list[Value], cases: list[float | None], chosen: fx.Node | None = None
    ) -> Iterator[Match[F]]:
        names, number_names = formula.parameters
        factors: dict[algebra.Atom, float] = {}
        if len(self.leaves) > len(names):
            factors = algebra.common_leaves([v.poly for v in values])
            values = [replace(v, poly=algebra.without(v.poly, factors)) for v in values]
        outside = [a[1] for a in factors]
        leaves = [n for n in self.leaves if n not in outside]
        if len(leaves) != len(names) or len(leaves) > _MOST_TENSORS:
            return
        choices = [candidates(formula, n, self.written) for n in number_names]
        above = values[0].poly.above
        for tensors in itertools.permutations(leaves):
            if chosen is not None:
                if tensors[names.index(formula.cases)] is not chosen:
                    continue
            elif not all(formula.fits(i, above[t]) for i, t in enumerate(tensors)):
                continue
            for numbers in itertools.product(*choices):
                forms = [self.form(formula, tensors, numbers, case) for case in cases]
                # another multiple of an activation is another activation
                scaled = len(names) == 1 or scales(self.reading.view, self.reading.root)
                found = found_as(forms, values, scaled)
                # factors of elements are no factors of their sum, numbers are
                if found is None or (found[0] and any(sizes(value_of(n)) != () for n in outside)):
                    self.compare(formula, values, forms)
                    if any(sums_over_others(form, value) for form, value in zip(forms, values, strict=True)):
                        break  # whatever its numbers are
                    continue
                yield Match(
                    formula,
                    self.reading.root,
                    {n: self.after_its_cast(t) for n, t in zip(names, tensors, strict=True)},
                    {n: int(c) if n in formula.integers else c for n, c in zip(number_names, numbers, strict=True)},
                    used(self.reading),
                    self.reading.view,
                    self.reading.read.alike,
                    *found,
                    tuple((a[1], e) for a, e in factors.items()),
                )
                break  # other tensors in other places may suit the op better, other numbers do not

    def compare(self, formula: Formula, values: list[Value], forms: list[Value | None]) -> None:
        """Notes how near the pattern of a formula is to the value, if it is near."""
        (value, *_), (form, *_) = values, forms
        if form is None or formula.common or formula.arithmetic or len(value.poly.terms) < _LEAST_TERMS:
            return
        if value.poly == form.poly:  # of another shape
            return
        found = likeness(value.poly, form.poly)
        nearest = self.reading.view.work.nearest.get(self.reading.root)
        if found >= _NEAR and (nearest is None or nearest.likeness < found):
            note_nearest(self.reading.view, self.reading.root, Near(formula.name, found, (value.poly, form.poly)))

    def form(self, formula: F, tensors: tuple[fx.Node, ...], numbers: tuple[float, ...], case: float | None) -> Any:
        work = self.reading.view.work
        key = (id(formula), tensors, numbers, case)
        if key not in work.forms:
            self.budget.take_for(formula)
            results = work.results if case is None else work.of_cases
            with contextlib.nullcontext() if case is None else algebra.finite():
                work.forms[key] = formula.normal_form(tensors, numbers, results, case)
        return work.forms[key]

    def after_its_cast(self, leaf: fx.Node) -> fx.Node:
        """A tensor of whole numbers as the program reads it: after a cast to a floating dtype, where there is one and
        nothing reads it as class indices."""
        value, view = value_of(leaf), self.reading.view
        if not isinstance(value, Tensor) or value.is_floating_point():
            return leaf
        inside = [u for u in leaf.users if u in self.reading.interior]
        called = [(u, view.calls[u]) for u in inside]
        if any(call is None or call.name in _BY_INDEX for _, call in called):
            return leaf
        casts = (u for u, call in called if call is not None and call.name in CASTS)
        return next((u for u in casts if value_of(u).is_floating_point() and value_of(u).shape == value.shape), leaf)


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


# From how many terms on a formula is compared with what is nearly it, and how many of them have to be the same.
_LEAST_TERMS, _NEAR = 3, 0.5


def likeness(p: algebra.Poly, q: algebra.Poly) -> float:
    """How many of the terms of two polynomials are the same, of 1."""
    return len(p.terms & q.terms) / max(len(p.terms), len(q.terms))


def difference(p: algebra.Poly, q: algebra.Poly) -> str:
    """The first term that a program has otherwise than a pattern, in words."""
    a, b = dict(p.terms), dict(q.terms)
    parts = []
    for monomial in sorted(a.keys() | b.keys(), key=algebra.repr_key):
        if a.get(monomial) != b.get(monomial):
            mine, theirs = (f"{c:g}" if c is not None else "nothing" for c in (a.get(monomial), b.get(monomial)))
            parts.append(f"{algebra.text(monomial)} has the coefficient {mine}, and the op's formula has {theirs}")
    return parts[0]


# Calls that read class indices.
_BY_INDEX = frozenset({"cross_entropy", "nll_loss", "gather", "one_hot", "index", "getitem", "scatter"})


def sums_over_others(form: Value | None, value: Value) -> bool:
    """Does a pattern, and the mean and the sum of its elements, sum over dimensions over which a value does not?"""
    if form is None or form.poly.reductions <= value.poly.reductions:
        return False
    reduced = [over_all(form, name).poly for name in ("mean", "sum")] if value.shape == () else []
    return not any(p.reductions <= value.poly.reductions for p in reduced)


def scales(view: GraphView, root: fx.Node) -> bool:
    """Is a node another one times a number? Then a formula is looked for there."""
    call = view.calls.get(root)
    if call is None:
        return False
    return call.name == "neg" or (
        call.name in ("mul", "div")
        and len(set(call.inputs())) == 1
        and len(call.args) == 2
        and any(isinstance(a, int | float) for a in call.args)
    )


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


def found_as(forms: list[Value | None], values: list[Value], scaled: bool) -> tuple[str, float] | None:
    """Are values those of the pattern (""), or their "mean" or their "sum", and times which number? None: they are
    something else. ``scaled``: the number has to be 1."""
    factors = set()
    for form, value in zip(forms, values, strict=True):
        if form is None:
            return None
        if form.shape is None or value.shape is None or form.shape == value.shape:
            factor = algebra.ratio(value.poly, form.poly)
            if factor is not None:
                factors.add(("", factor))
                continue
        if value.shape != () or form.shape == () or len(values) > 1:
            return None
        ratios = {name: algebra.ratio(value.poly, over_all(form, name).poly) for name in ("mean", "sum")}
        known = sorted(((name, c) for name, c in ratios.items() if c is not None), key=lambda found: found[1] != 1)
        if not known:
            return None
        factors.add(known[0])
    if len(factors) > 1 or (scaled and any(factor != 1 for _, factor in factors)):
        return None
    return factors.pop()


def used(reading: Reading) -> tuple[fx.Node, ...]:
    """The nodes of the interior that the root is made of, without the root."""
    reached, order = {reading.root}, [reading.root]
    for node in order:  # which grows
        for n in reading.view.inputs(node):
            if n in reading.interior and n not in reached:
                reached.add(n)
                order.append(n)
    return tuple(order[1:])
