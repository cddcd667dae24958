"""Drawing samples, and the checks that an op passes by its declaration alone: ``opreg.testing.check(op)``."""

from ..op import Op
from .report import Report
from .samples import (
    Maker,
    as_function,
    batched,
    differentiable_function,
    joined,
    repeated,
    tensors_with_grad,
)

__all__ = [
    "Maker",
    "Report",
    "as_function",
    "batched",
    "check",
    "differentiable_function",
    "joined",
    "repeated",
    "tensors_with_grad",
]


def check(op: Op, device: str = "cpu") -> Report:
    """Tries every sample of an op in every way that follows from its declaration; raises at the first that fails.

    Of each sample: value, dtype and gradients against the reference; ``torch.library.opcheck``; derivatives of first
    and second order against finite differences; ``torch.func``; other strides; the same bits again, whatever the number
    of threads; float32, float16 and bfloat16 against float64, to as many digits as the problem itself leaves, of a
    pointwise op also at small and large multiples of the first argument; autocast. Then the messages of the error
    samples. Of an op that writes to its arguments: what it writes, opcheck, and the messages.

    Args:
        op: registered.
        device: on which the samples are drawn.

    Returns:
        What was tried, how often, and what was left out, and why: ``print(opreg.testing.check(op))``.

    Raises:
        AssertionError: names the op, the check, the sample, and what was expected and what came.
    """
    from .checks import Checks  # with its own imports: whoever calls ops needs none

    return Checks(op, device).run()
