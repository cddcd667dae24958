"""What an op keeps from its forward pass for the backward pass: an empty tensor like it, for the fakes."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .rules import Arguments

# of the result's shape before reduction, and the arguments by name
State = Callable[[Sequence[int], Arguments], Tensor]


def per_row(values: int) -> State:
    """The state of a row loss: so many float64 numbers a row, and the mean's denominator."""

    def state(shape: Sequence[int], args: Arguments) -> Tensor:
        first = next(a for a in args.values() if isinstance(a, Tensor))
        rows = 1
        for size in shape:
            rows = rows * size
        return first.new_empty((rows * values + 1,), dtype=torch.float64)

    return state


def per_group(values: int) -> State:
    """The state of a group loss: so many numbers a group, and how many are valid, in the dtype that is computed in."""

    def state(shape: Sequence[int], args: Arguments) -> Tensor:
        tensors = [a for a in args.values() if isinstance(a, Tensor)]
        with_dims = [t for t in tensors if t.dim() > 0] or tensors
        double = torch.float64 in (args.get("dtype"), *(t.dtype for t in with_dims))
        groups = 1
        for size in shape:
            groups = groups * size
        return tensors[0].new_empty((groups * values + 1,), dtype=torch.float64 if double else torch.float32)

    return state


def ctc_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """The forward variables before the first step and after each: two for each label and three for each sample."""
    x: Tensor = args["log_probs"]
    samples = x.shape[1] if x.dim() == 3 else 1
    size = (x.shape[0] + 1) * (2 * args["targets"].numel() + 3 * samples)
    return x.new_empty((size,), dtype=torch.float64)


def transducer_state(shape: Sequence[int], args: Arguments) -> Tensor:
    """Four numbers for each row of logits: the forward and the backward variable, the log-sum-exp in two parts."""
    x: Tensor = args["logits"]
    return x.new_empty((4 * x.shape[0] * x.shape[1] * x.shape[2],), dtype=torch.float64)
