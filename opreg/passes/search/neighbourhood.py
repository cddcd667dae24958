"""The nodes before a node that a search for formulas reads, and when two such neighbourhoods are one.

Models repeat themselves, layer by layer, and one graph is compiled again and again. What a search has found in one
neighbourhood holds in every other that is spelled alike.
"""

import contextlib
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..graph.calls import value_of
from ..graph.surgery import looks
from ..graph.view import GraphView
from ..normal_form.evaluate import handlers

# How many calls before a root are evaluated, and how far apart they may be.
_MOST_EVALUATED, _DEEPEST = 200, 40


@dataclass(frozen=True)
class Neighbourhood:
    """What a search reads of a graph: the nodes that a root is made of by calls with a meaning.

    Attributes:
        nodes: those that may be evaluated, the root first and the nearest after it, and then all else that they read.
        near: those that may be evaluated.
        key: all that a search reads of these nodes, without the nodes. None: a part of it can't be compared.
    """

    nodes: list[fx.Node]
    near: dict[fx.Node, int]
    key: tuple[Any, ...] | None

    @classmethod
    def of(cls, view: GraphView, root: fx.Node) -> "Neighbourhood":
        nodes, place, key = [root], {root: 0}, list[Any]()
        bordering: list[Spelled] = []
        depth, end_of_depth = 0, 1
        for i, node in enumerate(nodes):  # which grow
            if i == end_of_depth:
                depth, end_of_depth = depth + 1, len(nodes)
            spelled = view.spelled.get(node) or spell(view, node)
            key.append(spelled.spelling)
            if len(nodes) > _MOST_EVALUATED or depth > _DEEPEST or spelled.named is not spelled.inputs:
                bordering.append(spelled)
                if len(nodes) > _MOST_EVALUATED or depth > _DEEPEST:
                    continue
            for n in spelled.inputs:
                at = place.get(n)
                if at is None:
                    at = place[n] = len(nodes)
                    nodes.append(n)
                key.append(at)
        near = place
        if bordering:
            near = dict(place)
            for n in (n for spelled in bordering for n in (*spelled.inputs, *spelled.named)):
                if n not in place:
                    place[n] = len(nodes)
                    nodes.append(n)
                    key.append((view.spelled.get(n) or spell(view, n)).spelling)
                key.append(place[n])
        return cls(nodes, near, None if None in key else tuple(key))


@dataclass(frozen=True, eq=False)
class Spelling:
    """All that a search reads of one node but for its neighbours. Equal ones are one object."""

    image: Any


@dataclass(frozen=True, eq=False)
class Spelled:
    """A node as a search reads it.

    Attributes:
        spelling: it without its neighbours. None: it can't be compared.
        inputs: the nodes whose values it reads, if it is a call with a meaning.
        named: the nodes that its arguments name, which others may have written to since: as a rule the same.
    """

    spelling: Spelling | None
    inputs: tuple[fx.Node, ...]
    named: tuple[fx.Node, ...]


_MOST_SPELLINGS = 20_000
_spellings: dict[Any, Spelling] = {}


def spell(view: GraphView, node: fx.Node) -> Spelled:
    """What a view keeps of a node."""
    call, inputs = view.calls.get(node), tuple[fx.Node, ...]()
    named = inputs
    of: Any = (node.op, node.target if node.op in ("call_function", "call_method") else None)
    if call is not None:
        if call.name in handlers:
            inputs, named = view.inputs(node), tuple(call.inputs())
            named = inputs if named == inputs else named
        given: Any = fx.node.map_aggregate((call.args, dict(call.kwargs)), _without_node)
        of = (call.name, call.in_place, call.target, looks(given, False))
    image = (of, len(inputs), looks(value_of(node), False), view.without_gradient(node))
    found: Spelling | None = None
    with contextlib.suppress(TypeError):  # an argument can't be compared
        found = _spellings.get(image)
        if found is None:
            while len(_spellings) >= _MOST_SPELLINGS:
                _spellings.pop(next(iter(_spellings)), None)
            found = _spellings.setdefault(image, Spelling(image))
    spelled = view.spelled[node] = Spelled(found, inputs, named)
    return spelled


def _without_node(a: Any) -> Any:
    return _Neighbour if isinstance(a, fx.Node) else a


class _Neighbour:
    """Stands for a node among the arguments of a call."""
