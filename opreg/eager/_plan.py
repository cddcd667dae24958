"""What becomes of one kind of call: the op that takes it, or why there is none.

The question is put to the rewrite itself (``opreg.passes``), as a graph of that one call, so that a call in eager mode
and one in a graph are refused for the same reasons.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .. import _private
from .._library import KERNEL_KEYS
from ..passes._report import Report
from ..passes._rewrite import Rewriter
from ..passes.rules import DOMAINS


@dataclass(frozen=True, eq=False)
class Plan:
    """Of calls that differ in the values of their tensors alone, and in sizes as long as the same ones are equal."""

    # "": the call is torch's
    op: str
    why: str = ""
    # the op, called with the tensors of the call in their order
    call: Callable[..., Tensor] | None = None
    # do the values of the tensors allow it?
    holds: Callable[..., bool] | None = None
    # is the same to be said of other sizes?
    lasting: bool = True


def plan(function: Any, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
    """The plan of a call.

    Args:
        function: torch's, as graphs have it.
        original: what it does.
        args, kwargs: with plain tensors.
    """
    graph = fx.Graph()
    fakes = _private.fake_mode()

    def node(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        placeholder = graph.placeholder(f"tensor_{len(graph.nodes)}")
        placeholder.meta["example_value"] = fake(fakes, a)
        return placeholder

    other = {a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor)} - KERNEL_KEYS.keys()
    if other:
        return Plan("", f"there is no kernel for {' and '.join(sorted(other))}")
    nodes, named = tuple(map(node, args)), {n: node(a) for n, a in kwargs.items()}
    call = graph.call_function(function, nodes, named)
    try:
        call.meta["example_value"] = value(original, args, kwargs, call, fakes)
    except Exception as error:  # what is wrong with the call torch's own function says, each time
        return Plan("", f"torch's own call ended in {type(error).__name__}: {error}".splitlines()[0], lasting=False)
    graph.output(call)
    module, report = fx.GraphModule(torch.nn.Module(), graph), Report()
    Rewriter(module, (), report, values_checked=True).run()
    if not report.swapped:
        return Plan("", report.left[0].why if report.left else "no op computes it")
    op = report.swapped[0].op
    domain = DOMAINS.get(op)
    return Plan(op, domain.why if domain else "", module.forward, domain.holds if domain else None)


def fake(mode: Any, t: Tensor) -> Tensor:
    with mode:
        made = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device)
        # no leaf, which could not be written to in place
        return made.requires_grad_().clone() if t.requires_grad and torch.is_grad_enabled() else made


def value(
    original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], call: fx.Node, mode: Any
) -> Any:
    """What torch's function gives: of fake tensors, or where it reads values, a fake of what it gives in fact."""
    values = fx.node.map_arg((call.args, call.kwargs), lambda n: n.meta["example_value"])
    try:
        with mode:
            return original(*values[0], **values[1])
    except _private.depends_on_data():
        with torch.no_grad():
            result = original(*args, **kwargs)
        return fake(mode, result) if isinstance(result, Tensor) else result
