"""What several families' references and samples share."""

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..op import ErrorSample
from ..testing import Maker

REDUCTIONS = ("none", "mean", "sum")


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def lengths(value: Tensor | Sequence[int] | int, args: Mapping[str, Any]) -> Any:
    """Lengths of sequences, as ``torch.nn.functional.ctc_loss`` takes them: for ``Op.accepts``.

    What is no length stays what it is: the op says what it expected.
    """
    each = value if isinstance(value, (list, tuple)) else (value,)
    return torch.tensor(value, dtype=torch.int64) if all(isinstance(n, Integral) for n in each) else value


def loss_errors(op: str, make: Maker, *extra: Tensor) -> Iterator[ErrorSample]:
    """What every pointwise loss of an input and a target refuses; ``extra`` are further required tensors."""
    x, t = make.uniform(2, 3), make.uniform(2, 3)
    yield ErrorSample((x, t, *extra), f'{op}: expected reduction .* got "avg"', {"reduction": "avg"})
    yield ErrorSample((x.long(), t, *extra), f"{op}: expected input\\d? of dtype float64, .* got int64")
    yield ErrorSample((x, make.uniform(2, 4), *extra), f"{op}: expected .*, got \\[2, 3\\] and \\[2, 4\\]")
