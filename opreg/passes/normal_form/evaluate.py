"""The normal form of what a node computes."""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..graph.calls import Call, aten_packet, value_of
from ..graph.view import GraphView
from . import algebra
from .values import Masked, Opaque, Value, Vector, combine, detached, number

# What calls mean, by their name: handler(evaluator, node, *args, **kwargs) gets the values of the call's arguments.
handlers: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(f: Callable[..., Any]) -> Callable[..., Any]:
        handlers.update(dict.fromkeys(names, f))
        return f

    return add


def known(name: str) -> bool:
    """Has a call a meaning here? An elementwise function without one becomes an atom's, when it is asked for."""
    if name not in handlers and pointwise(name):

        def handler(e: Evaluator, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
            if any(isinstance(a, Vector | Masked | tuple) for a in args):
                raise Opaque(name)
            tensors = [a for a in args if isinstance(a, Value)]
            options = (tuple(a for a in args if not isinstance(a, Value)), tuple(sorted(kwargs.items())))
            return combine(lambda *polys: algebra.atom(name, *polys, options), *tensors)

        handlers[name] = handler
    return name in handlers


def pointwise(name: str) -> bool:
    """Does a function work elementwise, and give the same result each time, as torch's tags say?"""
    packet = aten_packet(name)
    if packet is None:
        return False
    tags = {tag for o in packet.overloads() if o in ("default", "Tensor") for tag in getattr(packet, o).tags}
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


UNKNOWN = (Opaque, algebra.TooLarge, TypeError, IndexError, OverflowError, ZeroDivisionError)


@dataclass(frozen=True)
class Prepared:
    """The arguments of a call, as far as they are the same in every evaluation.

    Numbers are values, and ``Opaque`` stands for what no handler takes.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    # the nodes that are evaluated, in order, as far as an ``Opaque``
    operands: tuple[fx.Node, ...]
    # the numbers among the arguments
    numbers: tuple[float, ...]


def prepared(view: GraphView, node: fx.Node, call: Call) -> Prepared:
    """What a view knows of the arguments of a call."""
    if node not in view.prepared:
        view.prepared[node] = _prepare(view, node, call)
    found: Prepared = view.prepared[node]
    return found


def of_shape_alone(call: Call) -> bool:
    """Does the shape of its result tell what a call computes?"""
    indices = call.name == "arange" and len(call.args) == 1 and not call.kwargs.keys() & {"start", "end", "step"}
    return indices or call.name in ("zeros", "new_zeros", "ones", "new_ones", "eye")


def _prepare(view: GraphView, node: fx.Node, call: Call) -> Prepared:
    numbers: list[float] = []

    def note(a: Any) -> None:
        if isinstance(a, int | float) and not isinstance(a, bool):
            with contextlib.suppress(OverflowError):
                numbers.append(float(a))
        elif isinstance(a, tuple | list):
            for item in a:
                note(item)

    note((*call.args, *call.kwargs.values()))
    if of_shape_alone(call) and value_of(node) is not None:
        return Prepared((), {}, (), tuple(numbers))
    operands: list[fx.Node] = []
    whole = True

    def prepare(a: Any) -> Any:
        nonlocal whole
        if isinstance(a, fx.Node):
            a = view.current(a, node)
            if whole:
                operands.append(a)
            return a
        if a is None or a is Ellipsis or isinstance(a, bool | str | torch.dtype | torch.device | slice | range):
            return a
        if isinstance(a, tuple | list):
            return tuple([prepare(item) for item in a])
        with contextlib.suppress(*UNKNOWN):
            if isinstance(a, int | float):
                return number(a)
        whole = False
        return Opaque

    args = [prepare(a) for a in call.args]
    # what a program reads off another tensor, where it says on which device
    kwargs = {k: prepare(a) for k, a in call.kwargs.items() if k != "device" or not isinstance(a, fx.Node)}
    return Prepared(tuple(args), kwargs, tuple(operands), tuple(numbers))


class Evaluator:
    """Evaluates nodes of a graph, down to leaves.

    Args:
        leaves: the nodes at which to stop, with their values.
        results: the values that are known of leaves, and of calls by the values of their arguments; others are added.
        closed: says of other nodes whether they are to be treated as not known.

    Raises:
        Opaque: the algebra does not know a node.
    """

    def __init__(
        self,
        view: GraphView,
        leaves: Mapping[fx.Node, Any],
        results: dict[Any, Any],
        *,
        closed: Callable[[fx.Node], bool] = lambda node: False,
    ) -> None:
        self.view, self.results, self.closed = view, results, closed
        self.values: dict[fx.Node, Any] = {**leaves}
        self.interior: set[fx.Node] = set()
        # groups of leaves that are of one shape, since torch refuses the call otherwise
        self.alike: list[frozenset[fx.Node]] = []

    def value(self, node: fx.Node) -> Any:
        if node in self.values:
            return self.values[node]
        try:
            call = self.view.calls[node]
            if call is None or call.name not in handlers or self.closed(node):
                raise Opaque(node.name)
            result = self.applied(node, call)
        except UNKNOWN:
            raise Opaque(node.name) from None
        self.interior.add(node)
        self.values[node] = result
        return result

    def applied(self, node: fx.Node, call: Call) -> Any:
        """The value of a call of the values of its arguments."""
        given = prepared(self.view, node, call)
        args = tuple([self._filled(a, node) for a in given.args])
        kwargs = {k: self._filled(a, node) for k, a in given.kwargs.items()} if given.kwargs else {}
        for name in ("self", "input"):
            if name in kwargs:
                args = (kwargs.pop(name), *args)
        # a detached tensor has another value if it is a leaf
        interior = call.name == "detach" and any(n in self.interior for n in given.operands)
        key = (node, args, tuple(kwargs.items()), interior)
        try:
            result, alike = self.results[key]
        except TypeError:  # a slice, which can't be hashed
            return handlers[call.name](self, node, *args, **kwargs)
        except KeyError:
            before = len(self.alike)
            try:
                result = handlers[call.name](self, node, *args, **kwargs)
            except UNKNOWN:
                result = Opaque
            self.results[key] = result, self.alike[before:]
        else:
            self.alike += alike
        if result is Opaque:
            raise Opaque(node.name)
        return result

    def _filled(self, a: Any, user: fx.Node) -> Any:
        """An argument with the values of its nodes."""
        if isinstance(a, fx.Node):
            result = self.value(a)
            switched = self.view.gradient_switches and a in self.interior and self.view.without_gradient(a)
            return combine(detached, result) if switched and not self.view.without_gradient(user) else result
        if isinstance(a, tuple):
            return tuple([self._filled(item, user) for item in a])
        if a is Opaque:
            raise Opaque
        return a
