"""What a rewriting rule is, and how it is looked for: by normal form, not by spelling."""

import contextlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from . import _algebra as algebra
from ._algebra import TooLarge
from ._calls import value_of
from ._evaluate import Evaluator, TooMany, handlers, known
from ._order import Order
from ._values import Opaque, Value, leaf, number, over_all, sizes

# Calls on the way to what a rule looks for; the first argument of one of them, or what that is made of by one-tensor
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
# Shapes of tensors that patterns are evaluated for, to see what is in them: boxes or scores, classes, numbers.
_SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (3,), ())
# The formulas and patterns that are evaluated for one place, and for each node of a graph on average.
_FOR_A_PLACE, _FOR_A_GRAPH, _FOR_A_NODE = 1000, 4000, 20
_PERMUTED = 3


@dataclass(frozen=True)
class Argument:
    """What a program says of a tensor; None where it does not."""

    # one entry a dimension, a symbolic one as an expression; of unknown ones, equal for those that are the same
    shape: tuple[Any, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    requires_grad: bool | None


@dataclass(frozen=True)
class Rule:
    """Where a program computes ``pattern``, it may compute ``replacement``.

    The pattern is found in whatever way it is written: order of operands, brackets, functions, methods, modules and
    ATen calls, casts and views that change nothing. What is compared is the normal form of the formula.

    Args:
        name: for the report: ``"focal_loss of a sigmoid and its cross entropy"``.
        pattern: a function of tensors (positional) and numbers (keyword-only), in plain torch, without branches. The
            numbers are those of the program; a default is one that the program need not write.
        replacement: a function of the same arguments.
        condition: ``condition(arguments)`` says why the two are not equal there, or "" where they are: arguments by
            name, numbers as they are, tensors as ``Argument``: shape, dtype, device and requires_grad, as far as the
            program says.
        numbers: what a number of the pattern may be, made of one that the program holds, where that is not the number
            itself: ``{"margin": math.acos}`` for a program that holds its cosine.
    """

    name: str
    pattern: Callable[..., Tensor]
    replacement: Callable[..., Tensor]
    condition: Callable[[Mapping[str, Any]], str] = lambda arguments: ""
    numbers: Mapping[str, Callable[[float], float]] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> tuple[list[str], list[str]]:
        """The names of the tensors, and those of the numbers."""
        kinds = inspect.signature(self.pattern).parameters.values()
        tensors = [p.name for p in kinds if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return tensors, [p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @cached_property
    def whole(self) -> set[str]:
        """The numbers that are integers, by their annotation."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name for p in kinds if p.annotation in (int, "int")}

    @cached_property
    def unwritten(self) -> dict[str, float]:
        """The defaults of the numbers: they need not be in the program."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name: p.default for p in kinds if p.default is not p.empty}

    @cached_property
    def graph(self) -> fx.Graph:
        """The pattern's calls."""
        return self._trace(self.pattern)

    @cached_property
    def calls(self) -> fx.Graph:
        """The replacement's."""
        return self._trace(self.replacement)

    def _trace(self, function: Callable[..., Tensor]) -> fx.Graph:
        # by hand: fx would put defaults in the place of keyword-only arguments
        tracer = fx.Tracer()
        tracer.graph = fx.Graph()
        tracer.root, tracer.tensor_attrs = torch.nn.Module(), {}
        names = [n for group in self.parameters for n in group]
        given = {n: tracer.create_proxy("placeholder", n, (), {}) for n in names}
        tracer.create_node("output", "output", (tracer.create_arg(function(**given)),), {})
        return tracer.graph

    @cached_property
    def order(self) -> Order:
        return Order(self.graph, None)

    @cached_property
    def call_names(self) -> frozenset[str]:
        """The functions that the pattern calls. Those that are new to the algebra become atoms of it, if they work
        elementwise.

        Raises:
            ValueError: a function that does not, so that the pattern would never be found.
        """
        names = {call.name for call in self.order.calls.values() if call is not None}
        for n in self.graph.nodes:
            call = self.order.calls[n]
            if n.op in ("call_function", "call_method") and (call is None or not known(call.name)):
                got = n.target if call is None else call.name
                raise ValueError(f'rule "{self.name}": expected functions of torch that work elementwise, got {got}')
        return frozenset(names)

    @cached_property
    def functions(self) -> frozenset[str]:
        """Functions that are in the pattern's normal form whatever its tensors and numbers are."""
        names, number_names = self.parameters
        graph = fx.Graph()
        made = {shape: [graph.placeholder(f"{n}_{len(shape)}") for n in names] for shape in _SHAPES}
        for shape, nodes in made.items():
            for node in nodes:
                node.meta["example_value"] = torch.empty(shape, device="meta")
        found: list[frozenset[str]] = []
        for columns in itertools.product(_SHAPES, repeat=len(names)):
            leaves = tuple(made[shape][i] for i, shape in enumerate(columns))
            for given in (0.3, 0.0, 1.0, 2.0):
                form = self.normal_form(leaves, (given,) * len(number_names))
                if form is not None:
                    found.append(algebra.names(form.poly))
        return frozenset[str]().union(*found).intersection(*found) - {"sum of", "sum", "mean"}

    def normal_form(self, tensors: tuple[fx.Node, ...], given: tuple[float, ...]) -> Value | None:
        """Of the pattern, over these leaves and with these numbers."""
        names, number_names = self.parameters
        leaves: dict[str, Any] = {n: leaf(t) for n, t in zip(names, tensors, strict=True)}
        leaves |= {n: number(c) for n, c in zip(number_names, given, strict=True)}
        bound = {p: leaves[str(p.target)] for p in self.graph.nodes if p.op == "placeholder"}
        try:
            result = Evaluator(self.order, bound, None).value(self.graph.output_node().args[0])  # type: ignore[arg-type]
        except (Opaque, TooLarge, ValueError, OverflowError, ZeroDivisionError):
            return None
        return result if isinstance(result, Value) else None


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
        value, requires_grad = value_of(node), self.evaluator.graph.requires_grad(node)
        if isinstance(value, Tensor):
            return Argument(sizes(value), value.dtype, value.device, requires_grad)
        alike = next((group for group in self.evaluator.alike if node in group), None)
        return Argument(None if alike is None else (alike,), None, None, requires_grad)


def cone(order: Order, root: fx.Node, most: int = _CONE) -> list[fx.Node]:
    """The calls that a node is made of, nearest first."""
    found: dict[fx.Node, int] = {root: 0}
    for node in found_so_far(found):
        call, depth = order.calls.get(node), found[node]
        if call is None or call.name not in handlers or len(found) > most or depth > _DEPTH:
            continue
        for n in call.inputs():
            found.setdefault(order.current(n, node), depth + 1)
    return list(found)


def found_so_far(found: Mapping[fx.Node, Any]) -> Iterator[fx.Node]:
    """The keys in order, those added meanwhile too."""
    i = 0
    while i < len(found):
        yield next(itertools.islice(found, i, None))
        i += 1


def starts(order: Order, nodes: Iterable[fx.Node], anchors: frozenset[str]) -> list[fx.Node]:
    """Where expressions may start."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        call = order.calls.get(node)
        if call is not None and call.name in _PARTS:  # boxes that are computed
            found.update((order.current(n, node), None) for n in call.inputs())
        if call is None or call.name not in anchors:
            continue
        at = next(call.inputs(), None)
        for _ in range(6):
            if at is None:
                break
            at = order.current(at, node)
            found[at] = None
            call = order.calls.get(at)
            inputs = list(call.inputs()) if call else []
            at = inputs[0] if len(set(inputs)) == 1 else None
    return list(found)


def matches(rules: Iterable[Rule], order: Order, root: fx.Node, module: torch.nn.Module | None) -> Iterator[Match]:
    """The rules whose pattern a node computes; a node that takes too much work to tell is among those given up."""
    try:
        yield from _matches(rules, order, root, module)
    except OutOfWork:
        order.work.given_up.add(root)


class OutOfWork(Exception):
    """More formulas and patterns than are evaluated for one place, or for one graph."""


def _matches(rules: Iterable[Rule], order: Order, root: fx.Node, module: torch.nn.Module | None) -> Iterator[Match]:
    rules = list(rules)
    limit = min(order.work.done + _FOR_A_PLACE, _FOR_A_GRAPH + _FOR_A_NODE * len(order.position))

    def work() -> None:
        if order.work.done >= limit:
            raise OutOfWork
        order.work.done += 1

    nodes = cone(order, root)
    anchors = _ANCHORS.union(*(rule.call_names for rule in rules)) - _ARITHMETIC
    if not any((c := order.calls.get(n)) is not None and c.name in anchors | _PARTS for n in nodes):
        return
    seen: set[Any] = set()
    for start in (*starts(order, nodes, anchors), None):
        if start is root:
            continue
        for value, evaluator in cuts(order, root, start, module):
            work()
            if not isinstance(value, Value) or value.poly in seen:
                continue
            seen.add(value.poly)
            found = sorted(algebra.leaves(value.poly), key=order.position.__getitem__)
            if forgotten(evaluator, found):
                continue
            literals = numbers_in(order, evaluator.interior)
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
        value, call = value_of(node), evaluator.graph.calls.get(node)
        name = call.name if call is not None else getattr(node.target, "__name__", str(node.target))
        if name.split(".")[0] in _OF_SHAPE or (value is not None and not isinstance(value, Tensor)):
            continue
        readers = [evaluator.graph.calls.get(u) for u in node.users if u in evaluator.interior]
        if any(call is None or call.name not in _SHAPE_ONLY for call in readers):
            return True
    return False


def cuts(
    order: Order, root: fx.Node, start: fx.Node | None, module: torch.nn.Module | None
) -> Iterator[tuple[Any, Evaluator]]:
    """The root's value over the start and what is made without it, seen as leaves, as formulas, and as formulas of one
    of these."""
    first = {} if start is None else {start: leaf(start)}
    boundary: dict[fx.Node, None] = {}
    near = set(cone(order, root, _REACH))
    depends: dict[fx.Node, bool] = dict.fromkeys(first, True)

    def dependent(node: fx.Node) -> bool:
        if node not in depends:
            call = order.calls.get(node)
            inside = call is not None and call.name in handlers and node in near
            depends[node] = inside and any(dependent(order.current(n, node)) for n in call.inputs())  # type: ignore[union-attr]
        return depends[node]

    def outside(node: fx.Node) -> bool:
        call = order.calls.get(node)
        if start is None or dependent(node) or (call is not None and call.name in _PARTS):
            return False
        boundary[node] = None
        return True

    def value(leaves: dict[fx.Node, Any], closed: Callable[[fx.Node], bool]) -> Iterator[tuple[Any, Evaluator]]:
        evaluator = Evaluator(order, leaves, module, open_ended=True, closed=lambda n: n not in near or closed(n))
        with contextlib.suppress(TooMany):
            yield evaluator.value(root), evaluator

    yield from value(first, outside)
    if not boundary:
        return
    yield from value(first, lambda node: False)
    if len(boundary) <= Evaluator.LEAVES:
        for node in boundary:
            call = order.calls.get(node)
            for candidate in dict.fromkeys((node, *(call.inputs() if call is not None else ()))):
                if candidate is not start:
                    yield from value({**first, candidate: leaf(candidate)}, lambda node: False)


def numbers_in(order: Order, nodes: Iterable[fx.Node]) -> list[float]:
    """The numbers that calls hold, each once, and 1, which need not be written."""
    found: dict[float, None] = {}

    def visit(a: Any) -> None:
        if isinstance(a, int | float) and not isinstance(a, bool):
            found[float(a)] = None
        elif isinstance(a, tuple | list):
            for item in a:
                visit(item)

    for node in nodes:
        call = order.calls.get(node)
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
    functions, forms = algebra.names(value.poly), evaluator.graph.work.forms
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
                order = evaluator.graph
                interior = used(root, tuple(n for n in evaluator.interior if n is not root), order)
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


def used(root: fx.Node, interior: tuple[fx.Node, ...], order: Order) -> tuple[fx.Node, ...]:
    """The interior nodes that the root is made of."""
    inside, reached = set(interior), dict.fromkeys([root])
    for node in found_so_far(reached):
        call = order.calls.get(node)
        if call is not None:
            for n in call.inputs():
                n = order.current(n, node)
                if n in inside:
                    reached.setdefault(n, None)
    return tuple(n for n in reached if n is not root)
