"""``torch.compile(model, backend="opreg")``: Inductor, behind the rewrite of ``opreg.fuse``; and what it reported."""

import logging
import weakref
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from . import _private
from .passes import Report
from .passes._rewrite import Rewriter
from .passes.graph.breaks import break_after
from .passes.rules import RULES
from .passes.rules.registered import rules_of_others

# TORCH_LOGS="opreg" shows a line for each graph, TORCH_LOGS="+opreg" the report too.
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Graph:
    """The report on one graph, and the function that torch.compile was given, part of which the graph is."""

    function: Callable[[], Any]  # None where it is no more
    report: Report

    def is_of(self, other: "_Graph") -> bool:
        """Of the same function? Of one that is no more, the reference is the same still."""
        return self.function is other.function or self.is_part_of(other.function())

    def is_part_of(self, function: Any) -> bool:
        return function is not None and self.function() is function


# Of the graphs that were compiled last. A function of many graphs has some dozens.
_graphs: deque[_Graph] = deque(maxlen=4096)
_callbacks: list[Callable[[Report, str], None]] = []


def opreg(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Swaps losses and activations for ops in Dynamo's graph, then compiles it with Inductor. What Inductor itself
    fuses, pointwise losses and boxes on a GPU, is left to it, and the report says so.

    Args:
        module, example_inputs: from Dynamo.
        mode, options: of ``torch.compile``, as Inductor takes them; ``options={"heads": True}`` is ``heads`` of
            ``opreg.fuse``.
    """
    report, others = Report(), dict(options or {})
    heads = bool(others.pop("heads", False))
    rules = (*RULES, *rules_of_others())
    Rewriter(module, rules, report, compiled=True, heads=heads, ending=break_after(module)).run()
    _publish(report)
    compiled: Callable[..., Any] = _private.compile_with_inductor(module, example_inputs, mode, others or None)
    return compiled


def _publish(report: Report) -> None:
    function = _private.function_being_compiled()
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    # a method is made anew for each look at it, so the module behind it is what is kept
    owner = getattr(function, "__self__", function)
    try:
        kept: Callable[[], Any] = weakref.ref(owner)
    except TypeError:  # a callable of a class with slots
        kept = lambda: owner  # noqa: E731
    _graphs.append(_Graph(kept, report))
    log.info("a graph of %s: %d swapped, %d left", name, len(report.swapped), len(report.left))
    log.debug("%s", report)
    for callback in tuple(_callbacks):
        callback(report, name)


def last_report(compiled: Any = None) -> Report:
    """What ``torch.compile(backend="opreg")`` did with a function, in all the graphs that Dynamo made of it.

    Args:
        compiled: what ``torch.compile`` returned, or what it was given: a function or a module; by default the one
            of which a graph was compiled last.

    Returns:
        One report; an empty one where nothing was compiled yet.

    Example:
        >>> model = torch.compile(torch.nn.SiLU(), backend="opreg")
        >>> y = model(torch.randn(3))
        >>> opreg.last_report(model).swapped[0].op
        'swish'
    """
    if compiled is None:
        reports = [g.report for g in _graphs if g.is_of(_graphs[-1])]
    else:
        original = getattr(compiled, "_orig_mod", None) or getattr(compiled, "_torchdynamo_orig_callable", compiled)
        reports = [g.report for g in _graphs if g.is_part_of(getattr(original, "__self__", original))]
    return Report([s for r in reports for s in r.swapped], [entry for r in reports for entry in r.left])


def on_report(callback: Callable[[Report, str], None]) -> Callable[[], None]:
    """Calls ``callback(report, name)`` for each graph that ``torch.compile(backend="opreg")`` compiles from now on.

    Args:
        callback: gets the report, and the name of the function that is compiled.

    Returns:
        What ends it.

    Example:
        >>> end = opreg.on_report(lambda report, name: print(name, report))
        >>> end()
    """
    _callbacks.append(callback)

    def end() -> None:
        if callback in _callbacks:
            _callbacks.remove(callback)

    return end
