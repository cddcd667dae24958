"""Value and gradient in one pass, where a reduced loss is called for training.

A loss is one number, and its gradient is asked for a moment later, mostly times 1. Where the op has a kernel for that
(``Op.one_pass_entry``), the forward pass computes both from one read of its arguments, and the backward pass hands the
gradient out. It does so once: for who asks again (``retain_graph``) the kernel runs again, and who wants to
differentiate it (``create_graph``) gets it from the op ``NAME_backward``, for which the arguments are saved beside it.
The gradient is not among the saved tensors, because the leaf that it ends in would have to copy it then; so where hooks
pack these, to make room or to count them, nothing is computed ahead.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._private import below_autograd, saved_tensors_are_packed, tracing, transform_active
from ..op import Op

# float16 has no room for the gradient of a mean, before a loss scale has multiplied it.
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
PLAIN = (Tensor, torch.nn.Parameter)


def fits(op: Op, values: Sequence[Any], mask: Sequence[bool]) -> bool:
    """May a call compute its gradient ahead, of one number: that in the first argument, or those that are asked for?"""
    if op.one_pass_entry is None or not (op.one_pass_takes_mask or (mask[0] and not any(mask[1:]))):
        return False
    if values[0].device.type != "cpu" or values[op.arguments.index("reduction")] == "none":
        return False
    for k, wanted in zip(op.differentiable_positions, mask, strict=True):
        if wanted and values[k].dtype not in DTYPES:
            return False
    if any(isinstance(a, Tensor) and type(a) not in PLAIN for a in values):
        return False
    return not tracing() and not saved_tensors_are_packed()


def forward(ctx: Any, op: Op, values: Sequence[Any], options: Mapping[str, Any], mask: Sequence[bool]) -> Tensor:
    """The value; the gradients wait in ``ctx`` for the first backward pass."""
    if op.one_pass_takes_mask:
        options = {**options, "needs_input_grad": mask}
        dtypes = [values[k].dtype for k, wanted in zip(op.differentiable_positions, mask, strict=True) if wanted]
    else:
        dtypes = [values[0].dtype]
    result: Tensor
    result, *ctx.gradients = op.one_pass_entry(*values, **options)
    ctx.ahead = dtypes, options
    return result


def gradients(
    ctx: Any, grad_output: Tensor | None, saved: Callable[[], tuple[Op, Sequence[Any]]]
) -> list[Tensor | None] | None:
    """The gradients that ``forward`` found, of the first differentiable arguments, times that of the value; None where
    ``NAME_backward`` is to compute them. ``saved`` gives the op and its arguments, for a second time: of the same bits
    as the first."""
    kept = vars(ctx)
    if "ahead" not in kept:
        return None
    dtypes, options = kept["ahead"]
    factor = factor_of(dtypes, grad_output)
    if factor is None:
        return None
    found: list[Tensor] | None = kept.pop("gradients", None)
    if found is None:
        op, values = saved()
        with below_autograd():
            found = list(op.one_pass_entry(*values, **options)[1:])
    mask = options.get("needs_input_grad", (True,))
    given = [g if wanted else None for g, wanted in zip(found, mask, strict=True)]
    return given if factor == 1 else [g if g is None else g.mul_(factor) for g in given]


def factor_of(dtypes: Sequence[torch.dtype], grad_output: Tensor | None) -> float | None:
    """What gradients of these dtypes may be multiplied by afterwards; None where they may not."""
    if type(grad_output) is not Tensor or torch.is_grad_enabled() or transform_active() or tracing():
        return None
    factor = grad_output.item()
    # times 0, what is infinite or NaN would be NaN where NAME_backward has reasons of its own for a 0
    if factor == 0 or not math.isfinite(factor):
        return None
    # a product of 16 bits would be rounded once more, but for a power of two
    if torch.bfloat16 in dtypes and abs(math.frexp(factor)[0]) != 0.5:
        return None
    return factor
