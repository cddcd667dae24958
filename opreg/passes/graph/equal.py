"""When two graphs are one, so that what a search has found in the first holds in the second."""

from typing import Any

from torch import Tensor, fx

from .calls import held_at, value_of
from .surgery import looks


def image(module: fx.GraphModule) -> tuple[Any, ...] | None:
    """All that a rewrite reads of a graph, as a value that can be hashed: equal ones are rewritten alike.

    None where that would be more than nodes: modules that are called, graphs inside of the graph.
    """
    place = {n: i for i, n in enumerate(module.graph.nodes)}
    found = []
    for n in place:
        held = None
        if n.op == "call_module":
            return None
        if n.op == "get_attr":
            held = held_at(module, str(n.target))
            if not isinstance(held, Tensor):
                return None
        arguments = fx.node.map_aggregate(
            (n.args, dict(n.kwargs)), lambda a: _Place(place[a]) if isinstance(a, fx.Node) else a
        )
        # inputs and attributes have names that say nothing of the graph
        target = None if n.op in ("placeholder", "get_attr", "output") else n.target
        found.append((n.op, target, looks(arguments, True), looks(value_of(n), True), looks(held, True)))
    try:
        hash(made := tuple(found))
    except TypeError:
        return None
    return made


class _Place(int):
    """The place of a node among the arguments of another: no number of the program."""
