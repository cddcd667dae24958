"""What no op can be faster than, more or less, measured in the same rounds as the op.

The copy floor, ``floor``, is the time to move the bytes that must move, by memory copies between tensors allocated
beforehand. It counts, for the forward pass, every input read once and the result written; for the backward pass, every
input and the result's gradient read once and the gradient of the first argument written. A mean and the state of a row
count nothing. ``out.copy_(x)`` moves twice the bytes of ``x``, so n bytes are a copy of n / 2 bytes; forward+backward
is two such copies, one after the other. It is a yardstick, no lower bound: a copy writes half of its bytes and a
forward pass hardly any, and tensors that fit into the cache are read faster the second time.

The call floor, ``call``, is the time of an op that does nothing: ``torch.ops.aten.alias(x)``, called as ours are,
through ``torch.ops``. It has the arguments parsed, goes through the dispatcher to a kernel in C++, and returns a view;
with a gradient it records one node, and the backward pass runs the engine over that node, which hands the gradient on.
It computes nothing, allocates nothing but tensor headers and takes one tensor; an op with more has more to parse.
(An op that is defined in Python would cost more than ours do, for its kernel is called through Python.)
"""

from collections.abc import Sequence
from typing import Any

import torch

from ..meta.schema import results_of
from .cases import Case
from .timing import Call


def bytes_moved(case: Case, result: Any, *, backward: bool) -> list[int]:
    """What the copy floor counts: for the forward pass, and for the backward pass where it is wanted."""
    inputs = sum(t.nbytes for t in case.tensors)
    written = 0 if case.op.reduces else sum(t.nbytes for t in results_of(result))
    gradient = case.args[case.op.differentiable[0]].nbytes
    return [inputs + written, *([inputs + written + gradient] if backward else [])]


def copies(moved: Sequence[int], device: torch.device) -> Call:
    """Memory copies that move so many bytes, one after the other."""
    # written once, for untouched pages are all one page of zeros; a copy of n bytes moves 2 n, a float32 has 4
    source = torch.ones(max(moved) // 8, device=device)
    out = torch.ones_like(source)
    parts = [(out[: n // 8], source[: n // 8]) for n in moved]
    return lambda: [o.copy_(s) for o, s in parts]


def empty_call(device: torch.device, *, backward: bool) -> Call:
    """A call of an op that does nothing, and its backward pass where it is wanted."""
    x = torch.ones(64, device=device, requires_grad=backward)
    grad_output = torch.ones(64, device=device)
    alias = torch.ops.aten.alias
    if backward:
        return lambda: torch.autograd.grad(alias(x), x, grad_output)
    return lambda: alias(x)
