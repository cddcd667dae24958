"""Where Inductor can fuse an op with its neighbours, it gets the op's reference.

On a GPU those are the ops whose rule is pointwise: Inductor's kernels move no more bytes there than ours, and beside a
sigmoid, a mask or a difference of features an op of its own costs one write and one read of all elements, forward and
backward. On the CPU they stay ops, whose kernels are faster; activations, which Inductor vectorises well, don't.
"""

from typing import Any

from torch import Tensor

from ..messages.checks import check_call
from ..meta.fakes import like
from ..meta.schema import bind, results_of, returned
from ..meta.sizes import is_size
from ..op import Op


def reference(op: Op, *args: Any, **kwargs: Any) -> Any:
    """The reference in the op's place, with the op's checks."""
    bound = bind(op.value, args, kwargs)
    check_call(op, bound)
    return op.call_reference(**bound)


def inlined(op: Op, *args: Any, **kwargs: Any) -> Any:
    """The same with the op's strides, on which the program around it may lean."""
    first = next(a for a in bind(op.value, args, kwargs).values() if isinstance(a, Tensor))
    return returned([_laid_out(t, first) for t in results_of(reference(op, *args, **kwargs))])


def _laid_out(result: Tensor, first: Tensor) -> Tensor:
    """A result of the reference as the kernel lays it out, whose first tensor is ``first``."""
    if result.dim() == 0:
        return result
    expected = like(first, result.shape, result.dtype)
    if all(is_size(a, b) for a, b in zip(result.stride(), expected.stride(), strict=True)):
        return result
    return expected.copy_(result)
