"""The normal form of what a node computes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from ..graph.calls import Attribute, Call, value_of
from ..graph.view import GraphView
from . import algebra
from .values import Masked, Opaque, Value, Vector, combine, detached, leaf, number

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
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return False
    tags = {tag for o in packet.overloads() if o in ("default", "Tensor") for tag in getattr(packet, o).tags}
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


class TooMany(Exception):
    """An expression has more leaves than any pattern has tensors."""


class Evaluator:
    """Evaluates nodes of a graph, down to leaves.

    Args:
        leaves: the nodes at which to stop, with their values.
        open_ended: a node that the algebra does not know becomes a leaf; otherwise it raises ``Opaque``.
        closed: says of other nodes whether they are to be treated as not known.

    Raises:
        TooMany: an open-ended evaluation found more than ``LEAVES`` leaves.
    """

    LEAVES = 4

    def __init__(
        self,
        view: GraphView,
        leaves: Mapping[fx.Node, Any],
        *,
        open_ended: bool = False,
        closed: Callable[[fx.Node], bool] = lambda node: False,
    ) -> None:
        self.view, self.open_ended, self.closed = view, open_ended, closed
        self.found = len(leaves)
        self.values: dict[fx.Node, Any] = dict(leaves)
        self.interior: dict[fx.Node, None] = {}
        # groups of leaves that are of one shape, since torch refuses the call otherwise
        self.alike: list[frozenset[fx.Node]] = []

    def value(self, node: fx.Node) -> Any:
        if node in self.values:
            return self.values[node]
        try:
            call = self.view.calls[node]
            if call is None or call.name not in handlers or self.closed(node):
                raise Opaque(node.name)
            result = self._apply(node, call)
            self.interior[node] = None
        except (Opaque, algebra.TooLarge, TypeError, OverflowError, ZeroDivisionError):
            if not self.open_ended:
                raise Opaque(node.name) from None
            self.found += 1
            if self.found > self.LEAVES:
                raise TooMany from None
            result = leaf(node)
        self.values[node] = result
        return result

    def argument(self, a: Any, user: fx.Node) -> Any:
        if isinstance(a, fx.Node):
            node = self.view.current(a, user)
            result = self.value(node)
            if node in self.interior and self.view.without_gradient(node) and not self.view.without_gradient(user):
                return combine(detached, result)
            return result
        if isinstance(a, bool) or a is None or isinstance(a, str | torch.dtype | torch.device | slice):
            return a
        if isinstance(a, int | float):
            return number(a)
        if isinstance(a, Attribute):
            raise Opaque(a.path)
        if isinstance(a, tuple | list):
            return tuple(self.argument(item, user) for item in a)
        if a is Ellipsis:
            return a
        raise Opaque(str(a))

    def _apply(self, node: fx.Node, call: Call) -> Any:
        handler = handlers[call.name]
        if call.name in ("zeros", "new_zeros") and value_of(node) is not None:
            return handler(self, node)
        args = [self.argument(a, node) for a in call.args]
        kwargs = {k: self.argument(a, node) for k, a in call.kwargs.items()}
        if "self" in kwargs:
            args.insert(0, kwargs.pop("self"))
        elif "input" in kwargs:
            args.insert(0, kwargs.pop("input"))
        return handler(self, node, *args, **kwargs)
