"""How rules are looked for in a graph: by normal form, not by spelling."""

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ._rule import Argument, Rule
from .graph.calls import value_of
from .graph.view import GraphView
from .normal_form import algebra
from .normal_form.evaluate import Evaluator, TooMany, handlers
from .normal_form.values import Value, leaf, over_all, sizes

# calls, is where an expression starts.
# fmt: off
_ANCHORS = frozenset({
    "sigmoid", "exp", "tanh", "softplus", "log_sigmoid", "clamp", "clamp_min", "relu", "relu6", "hardsigmoid",
    "hardtanh", "silu", "softmax", "log_softmax", "cross_entropy", "binary_cross_entropy_with_logits", "sum", "mean",
    "where", "scatter", "one_hot",
})
# fmt: on
_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "pow", "square"})
# Calls that take boxes apart.
_PARTS = frozenset({"unbind", "select", "getitem", "chunk", "split"})
# The nodes that are looked at behind one that may be replaced, and those that its value is made of, with their depth.
_CONE = 48
_REACH, _DEPTH = 200, 40
# The formulas and patterns that are evaluated for one place, and for each node of a graph on average.
_FOR_A_PLACE, _FOR_A_GRAPH, _FOR_A_NODE = 1000, 4000, 20
_PERMUTED = 3


@dataclass(frozen=True)
class Match:
    """A rule's pattern, found."""

    rule: Rule
    root: fx.Node
    tensors: dict[str, fx.Node]
    numbers: dict[str, float]
    interior: tuple[fx.Node, ...]
    evaluator: Evaluator
    # what the root is of the pattern's value: itself (""), the mean or the sum of its elements
    reduction: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What conditions are asked with."""
        return {**{n: self.argument(t) for n, t in self.tensors.items()}, **self.numbers}

    def argument(self, node: fx.Node) -> Argument:
        value, requires_grad = value_of(node), self.evaluator.view.requires_grad(node)
        if isinstance(value, Tensor):
            return Argument(sizes(value), value.dtype, value.device, requires_grad)
        alike = next((group for group in self.evaluator.alike if node in group), None)
        return Argument(None if alike is None else (alike,), None, None, requires_grad)


def cone(view: GraphView, root: fx.Node, most: int = _CONE) -> list[fx.Node]:
    """The calls that a node is made of, nearest first."""
    found: dict[fx.Node, int] = {root: 0}
    for node in found_so_far(found):
        call, depth = view.calls.get(node), found[node]
        if call is None or call.name not in handlers or len(found) > most or depth > _DEPTH:
            continue
        for n in call.inputs():
            found.setdefault(view.current(n, node), depth + 1)
    return list(found)


def found_so_far(found: Mapping[fx.Node, Any]) -> Iterator[fx.Node]:
    """The keys in order, those added meanwhile too."""
    i = 0
    while i < len(found):
        yield next(itertools.islice(found, i, None))
        i += 1


def starts(view: GraphView, nodes: Iterable[fx.Node], anchors: frozenset[str]) -> list[fx.Node]:
    """Where expressions may start."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is not None and call.name in _PARTS:  # boxes that are computed
            found.update((view.current(n, node), None) for n in call.inputs())
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


def matches(rules: Iterable[Rule], view: GraphView, root: fx.Node, module: torch.nn.Module | None) -> Iterator[Match]:
    """The rules whose pattern a node computes; a node that takes too much work to tell is among those given up."""
    try:
        yield from _matches(rules, view, root, module)
    except OutOfWork:
        view.work.given_up.add(root)


class OutOfWork(Exception):
    """More formulas and patterns than are evaluated for one place, or for one graph."""


def _matches(rules: Iterable[Rule], view: GraphView, root: fx.Node, module: torch.nn.Module | None) -> Iterator[Match]:
    rules = list(rules)
    limit = min(view.work.done + _FOR_A_PLACE, _FOR_A_GRAPH + _FOR_A_NODE * len(view.position))

    def work() -> None:
        if view.work.done >= limit:
            raise OutOfWork
        view.work.done += 1

    nodes = cone(view, root)
    anchors = _ANCHORS.union(*(rule.call_names for rule in rules)) - _ARITHMETIC
    if not any((c := view.calls.get(n)) is not None and c.name in anchors | _PARTS for n in nodes):
        return
    seen: set[Any] = set()
    for start in (*starts(view, nodes, anchors), None):
        if start is root:
            continue
        for value, evaluator in cuts(view, root, start, module):
            work()
            if not isinstance(value, Value) or value.poly in seen:
                continue
            seen.add(value.poly)
            found = sorted(algebra.leaves(value.poly), key=view.position.__getitem__)
            if forgotten(evaluator, found):
                continue
            literals = numbers_in(view, evaluator.interior)
            for rule in rules:
                match = matched(rule, root, value, found, literals, evaluator, work)
                if match is not None:
                    yield match


# Calls that read the shape or the dtype of a tensor, not its elements.
_SHAPE_ONLY = frozenset({"zeros_like", "new_zeros", "one_hot", "view_as", "reshape_as", "expand_as", "type_as"})
_OF_SHAPE = frozenset({"size", "dim", "numel", "sym_size", "getattr"})


def forgotten(evaluator: Evaluator, found: list[fx.Node]) -> bool:
    """Has a normal form lost a tensor that the program reads, as ``x + 0 · y`` does?

    That may be NaN or infinite, and its gradient is zero and not absent.
    """
    for node in evaluator.values:
        if node in evaluator.interior or node in found:
            continue
        value, call = value_of(node), evaluator.view.calls.get(node)
        name = call.name if call is not None else getattr(node.target, "__name__", str(node.target))
        if name.split(".")[0] in _OF_SHAPE or (value is not None and not isinstance(value, Tensor)):
            continue
        readers = [evaluator.view.calls.get(u) for u in node.users if u in evaluator.interior]
        if any(call is None or call.name not in _SHAPE_ONLY for call in readers):
            return True
    return False


def cuts(
    view: GraphView, root: fx.Node, start: fx.Node | None, module: torch.nn.Module | None
) -> Iterator[tuple[Any, Evaluator]]:
    """The root's value over the start and what is made without it, seen as leaves, as formulas, and as formulas of one
    of these."""
    first = {} if start is None else {start: leaf(start)}
    boundary: dict[fx.Node, None] = {}
    near = set(cone(view, root, _REACH))
    depends: dict[fx.Node, bool] = dict.fromkeys(first, True)

    def dependent(node: fx.Node) -> bool:
        if node not in depends:
            call = view.calls.get(node)
            inside = call is not None and call.name in handlers and node in near
            depends[node] = inside and any(dependent(view.current(n, node)) for n in call.inputs())  # type: ignore[union-attr]
        return depends[node]

    def outside(node: fx.Node) -> bool:
        call = view.calls.get(node)
        if start is None or dependent(node) or (call is not None and call.name in _PARTS):
            return False
        boundary[node] = None
        return True

    def value(leaves: dict[fx.Node, Any], closed: Callable[[fx.Node], bool]) -> Iterator[tuple[Any, Evaluator]]:
        evaluator = Evaluator(view, leaves, module, open_ended=True, closed=lambda n: n not in near or closed(n))
        with contextlib.suppress(TooMany):
            yield evaluator.value(root), evaluator

    yield from value(first, outside)
    if not boundary:
        return
    yield from value(first, lambda node: False)
    if len(boundary) <= Evaluator.LEAVES:
        for node in boundary:
            call = view.calls.get(node)
            for candidate in dict.fromkeys((node, *(call.inputs() if call is not None else ()))):
                if candidate is not start:
                    yield from value({**first, candidate: leaf(candidate)}, lambda node: False)


def numbers_in(view: GraphView, nodes: Iterable[fx.Node]) -> list[float]:
    """The numbers that calls hold, each once, and 1, which need not be written."""
    found: dict[float, None] = {}

    def visit(a: Any) -> None:
        if isinstance(a, int | float) and not isinstance(a, bool):
            found[float(a)] = None
        elif isinstance(a, tuple | list):
            for item in a:
                visit(item)

    for node in nodes:
        call = view.calls.get(node)
        if call is not None:
            visit((*call.args, *call.kwargs.values()))
    found[1.0] = None
    return sorted(found, key=float.is_integer)[:12]  # indices last


def matched(
    rule: Rule,
    root: fx.Node,
    value: Value,
    found: list[fx.Node],
    literals: list[float],
    evaluator: Evaluator,
    work: Callable[[], None],
) -> Match | None:
    names, number_names = rule.parameters
    if len(found) != len(names) or len(found) > _PERMUTED:
        return None
    functions, forms = algebra.names(value.poly), evaluator.view.work.forms
    if not functions >= rule.functions:
        return None
    for tensors in itertools.permutations(found):
        choices = [candidates(rule, n, literals) for n in number_names]
        for given in itertools.product(*choices):
            key = (id(rule), tensors, given)
            if key not in forms:
                work()
                forms[key] = rule.normal_form(tensors, given)
            form = forms[key]
            if form is None:
                continue
            reduction = found_as(form, value)
            if reduction is not None:
                view = evaluator.view
                interior = used(root, tuple(n for n in evaluator.interior if n is not root), view)
                return Match(
                    rule,
                    root,
                    dict(zip(names, tensors, strict=True)),
                    {n: int(c) if n in rule.whole else c for n, c in zip(number_names, given, strict=True)},
                    interior,
                    evaluator,
                    reduction,
                )
    return None


def candidates(rule: Rule, name: str, literals: list[float]) -> list[float]:
    made = rule.numbers.get(name)
    result: dict[float, None] = {}
    if name in rule.unwritten:
        literals = [*literals, rule.unwritten[name]]
    if name in rule.whole:
        literals = [c for c in literals if c == int(c)]
    for c in literals:
        try:
            result[c if made is None else made(c)] = None
        except (ValueError, ZeroDivisionError, OverflowError):
            continue
    return list(result)


def found_as(form: Value, value: Value) -> str | None:
    """What a value is of the pattern's: itself, its mean, its sum, or (None) something else."""
    if form.poly == value.poly and (form.shape is None or value.shape is None or form.shape == value.shape):
        return ""
    if value.shape == () and form.shape != ():
        return next((name for name in ("mean", "sum") if over_all(form, name).poly == value.poly), None)
    return None


def used(root: fx.Node, interior: tuple[fx.Node, ...], view: GraphView) -> tuple[fx.Node, ...]:
    """The interior nodes that the root is made of."""
    inside, reached = set(interior), dict.fromkeys([root])
    for node in found_so_far(reached):
        call = view.calls.get(node)
        if call is not None:
            for n in call.inputs():
                n = view.current(n, node)
                if n in inside:
                    reached.setdefault(n, None)
    return tuple(n for n in reached if n is not root)
