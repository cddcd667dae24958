"""The search for formulas that end in a node.

A node may be the root of a formula. It is evaluated down to leaves, in several ways; what comes out is compared with
the normal form that each pattern has over the same leaves and with the numbers of the program.
"""

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, fx

from .._rule import Formula
from ..graph.calls import sizes, value_of
from ..graph.ranges import CASTS
from ..graph.view import GraphView
from ..normal_form import algebra
from ..normal_form.readings import Reading
from ..normal_form.values import Value, over_all
from ..normal_form.vocabulary import words
from .budget import Budget, OutOfShare
from .match import F, Match, Near, likeness, note_nearest
from .neighbourhood import Neighbourhood
from .pool import Pool
from .reader import Reader, forgets, numbers_in, of_elements, used
from .starts import operands, starts

# How many calls before a root are looked at for starts.
_MOST_FOR_STARTS = 48
# How many tensors are put into a pattern in every order.
_MOST_TENSORS = 4
# From how many terms on a formula is compared with what is nearly it, and how many of them have to be the same.
_LEAST_TERMS, _NEAR = 3, 0.5


def matches(pool: Pool[F], view: GraphView, root: fx.Node) -> Iterator[Match[F]]:
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
    formulas: Sequence[F], reader: Reader, nodes: Sequence[fx.Node], anchors: frozenset[str]
) -> Iterator[Match[F]]:
    view, root = reader.view, reader.root
    budget = Budget(view)
    seen: set[Any] = set()
    # the formulas that a value with these functions may be
    fitting: dict[frozenset[str], list[F]] = {}
    # what ended with a formula's share of the work
    unfinished: list[tuple[Search, F, Value]] = []
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
            leaves = sorted(algebra.leaves(value.poly), key=view.position.__getitem__)
            may_be = [f for f in fitting[names] if may_have(f, value, leaves)]
            if not may_be or forgets(reading, leaves):
                continue
            search = Search(reading, leaves, numbers_in(view, reading.interior), budget)
            multiples = []
            for formula in may_be:
                try:
                    for match in search.matches(formula, value, reader):
                        if match.factor == 1:
                            yield match
                        else:  # perhaps another formula needs no factor
                            multiples.append(match)
                except OutOfShare:
                    unfinished.append((search, formula, value))
            yield from multiples
    budget.shared = False
    for search, formula, value in unfinished:
        yield from search.matches(formula, value, reader)


def may_have(formula: Formula, value: Value, leaves: Sequence[fx.Node]) -> bool:
    """Has a value as many leaves as a pattern has tensors, and its powers? By cases: is it a function of elements?"""
    if len(formula.parameters[0]) > len(leaves):
        return False
    return of_elements(value) if formula.cases else formula.powers <= value.poly.powers


def leaves_for(formulas: Iterable[Formula]) -> int:
    """How many leaves a reading may have: the tensors of a formula, and sizes of tensors that a view is made with."""
    return 2 + min(2, max(len(formula.parameters[0]) for formula in formulas))


@dataclass(frozen=True)
class Search:
    """The search for formulas in one reading of a root."""

    reading: Reading
    leaves: list[fx.Node]
    # the numbers of the program
    written: list[float]
    budget: Budget

    def matches(self, formula: F, value: Value, reader: Reader) -> Iterator[Match[F]]:
        """The formula, where its pattern over the leaves, in some order, and with numbers of the program is the value,
        but for factors."""
        if formula.cases:
            yield from self.of_cases(formula, reader)
        else:
            yield from self.found(formula, [value], [None])

    def of_cases(self, formula: F, reader: Reader) -> Iterator[Match[F]]:
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
            for numbers in self.numbers(formula, values, cases, tensors, choices):
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

    def numbers(
        self,
        formula: F,
        values: list[Value],
        cases: list[float | None],
        tensors: tuple[fx.Node, ...],
        choices: list[list[float]],
    ) -> Iterator[tuple[float, ...]]:
        """What the numbers of the pattern may be.

        By cases, those that one case depends on are found before the others: there are as many combinations of a few
        numbers and of a few others as their counts' sum, not as their product.
        """
        if len(cases) == 1 or not all(choices):
            yield from itertools.product(*choices)
            return
        waiting = sorted(zip(cases, values, strict=True), key=lambda pair: len(formula.numbers_by_case[pair[0] or 0.0]))

        def extended(at: int, known: dict[int, float]) -> Iterator[tuple[float, ...]]:
            if at == len(waiting):
                yield tuple(known.get(k, c[0]) for k, c in enumerate(choices))
                return
            case, value = waiting[at]
            new = [k for k in formula.numbers_by_case[case or 0.0] if k not in known]
            for chosen in itertools.product(*(choices[k] for k in new)):
                now = {**known, **dict(zip(new, chosen, strict=True))}
                form = self.form(formula, tensors, tuple(now.get(k, c[0]) for k, c in enumerate(choices)), case)
                found = found_as([form], [value], False)
                if found is not None and not found[0]:
                    yield from extended(at + 1, now)
                elif case == cases[0]:
                    self.compare(formula, [value], [form])

        yield from extended(0, {})

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
