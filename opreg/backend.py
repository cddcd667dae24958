"""``torch.compile(model, backend="opreg")``: Inductor, behind the rewrite of ``opreg.fuse``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx

from . import _private
from .passes import Report
from .passes._rewrite import Rewriter
from .passes.rules import RULES

# The report on the last graph that the backend compiled: a backend returns a callable and nothing beside it.
last_report: Report | None = None


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
        mode, options: of ``torch.compile``, as Inductor takes them.
    """
    global last_report
    last_report = Report()
    Rewriter(module, RULES, last_report, compiled=True).run()
    compiled: Callable[..., Any] = _private.compile_with_inductor(module, example_inputs, mode, options)
    return compiled
