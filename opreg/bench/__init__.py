"""The benchmark: ``python -m opreg bench [OP…]``.

Every case is timed in one process, in rounds, in each of which every provider has its turn (the first one changes from
round to round), so that what disturbs the machine disturbs all alike:

- ``ours``: ``torch.ops.lossreg.NAME``, called as a user would.
- ``eager``: torch's own function, or the reference where there is none, called as a user would. A row says which it is:
  ``native``, one function of ATen, or ``composition``.
- ``inductor``: ``torch.compile(eager, fullgraph=True)``; of the reference where torch's own can't be captured whole;
  with graph breaks where the reference is a loop over a size (``Op.unrolled``).
- ``peer``: a library's function of the same meaning (``--peers FILE``); one whose numbers differ is left out.
- ``floor``: the time to move the bytes that must move, by memory copies between tensors allocated beforehand.
- ``call``: the time of an op that does nothing. Both floors: ``opreg/bench/floors.py``.
- ``float32``: our own op of float32, in the same rounds as a large call of 16 bits: from one minute to the next a
  machine's speed may change more than the two differ.

Two passes: ``forward``, without a gradient, and ``forward+backward``, with the gradient in the first argument, as in
training. Losses are reduced to their mean. Every call allocates its results anew and drops them, whoever provides it;
glibc is told to keep freed memory: whether it gives a result's pages back, so that every call faults them in again (at
2^17 elements 210 µs in place of 25), depends on the heap's layout alone, and falls on one provider by chance.

A row has medians, their ratios, the spread of each (the distance of the quartiles over the median), and the peak of the
extra memory of one forward+backward. The table says so when rounds differ too much to be trusted: other work on the
same cores. An op that gives other numbers than eager is not timed; the run goes on, and exits with 1.

Inputs are drawn from the op's own samples (their values, mixed and repeated), so a new op needs nothing here; where
they can't be, the op declares them (``Op.workload``).
"""

from .cases import DTYPES, ELEMENTS, ROWS, Case, cases, draw, shapes_of, small_calls, sweep
from .floors import bytes_moved, copies, empty_call
from .memory import peak_memory
from .providers import (
    Disagreement,
    Peer,
    check_agreement,
    check_values,
    compiled,
    eager_of,
    is_native,
    load_peers,
    value_and_gradient,
)  # fmt: skip
from .runner import PASSES, PROVIDERS, RATIOS, Settings, geometric_means, run
from .timing import noise, spread, time_calls

__all__ = [
    "DTYPES", "ELEMENTS", "PASSES", "PROVIDERS", "RATIOS", "ROWS", "Case", "Disagreement", "Peer", "Settings", 
    "bytes_moved", "cases", "check_agreement", "check_values", "compiled", "copies", "draw", "eager_of", "empty_call",
    "geometric_means", "is_native", "load_peers", "noise", "peak_memory", "run", "shapes_of", "small_calls", "spread",
    "sweep", "time_calls", "value_and_gradient",
]  # fmt: skip
