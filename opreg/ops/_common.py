"""What several families share: the declaration of an op that torch has too, reductions, samples of what is refused."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ..op import ErrorSample, Op, Sample
from ..testing import Maker

REDUCTIONS = ("none", "mean", "sum")


def native(
    function: Callable[..., Tensor],
    *,
    name: str = "",
    called: Callable[..., Tensor] | None = None,
    aten: Sequence[str] | None = None,
    source: str = "",
    **fields: Any,
) -> Op:
    """The declaration of an op that is a function of torch.nn.functional.

    That one fact says the op's name, its definition, what its results are compared with, which calls a rewrite swaps
    and where the formula comes from. The other fields of ``Op`` are its own; a ``reference`` is given where torch's
    function can't serve as one.

    Args:
        function: torch's.
        name: of the op; by default the function's.
        called: the function with the op's arguments by name, where it does not take them all as they are.
        aten: its overloads in exported graphs; by default ``NAME.default`` alone.
        source: the paper behind it.
    """
    its_name = function.__name__
    path = f"torch.nn.functional.{its_name}"
    overloads = [f"{its_name}.default"] if aten is None else aten
    declared: dict[str, Any] = {
        "reference": called or function,
        "native": called or function,
        "spellings": (path, *(f"aten.{overload}" for overload in overloads)),
        "source": f"{path}; {source}" if source else path,
    }
    return Op(name or its_name, **(declared | fields))


def reduce(loss: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss


def log_add(*terms: Tensor) -> Tensor:
    """log Σ exp of the terms; where all are −inf it is −inf, without a gradient."""
    top = torch.stack(terms).amax(0).detach()
    top = torch.where(top == -torch.inf, 0.0, top)
    total = torch.stack([(x - top).exp() for x in terms]).sum(0)
    return torch.where(total == 0, -torch.inf, torch.where(total == 0, 1.0, total).log() + top)


def power(base: Tensor, exponent: float) -> Tensor:
    """The factor of a focal loss, whose derivative at 0, infinite for an exponent below 1, is 0."""
    some = base != 0
    return torch.where(some, torch.where(some, base, 1.0) ** exponent, float(exponent == 0))


def int64_target(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of torch.nn.functional that takes class indices of int64 alone, for those of int32 and uint8 too."""

    def called(*, target: Tensor, **args: Any) -> Tensor:
        return function(target=target if target.is_floating_point() else target.long(), **args)

    return called


def lengths(value: Tensor | Sequence[int] | int, args: Mapping[str, Any]) -> Any:
    """Lengths of sequences in any form that ``torch.nn.functional.ctc_loss`` takes, as a tensor: for ``Op.accepts``.

    Anything else is passed on as it is, so that the op's own error says what it expected.
    """
    each = value if isinstance(value, (list, tuple)) else (value,)
    return torch.tensor(value, dtype=torch.int64) if all(isinstance(n, Integral) for n in each) else value


def refused(op: str, *args: Tensor, input: str = "input", reduces: bool = True) -> Iterator[ErrorSample]:
    """What every loss refuses of a call that is right otherwise: an unknown reduction, integers in place of scores."""
    if reduces:
        yield ErrorSample(args, f'{op}: expected reduction .* got "avg"', {"reduction": "avg"})
    yield ErrorSample((args[0].long(), *args[1:]), f"{op}: expected {input} of dtype float64, .* got int64")


def outside(op: str, args: tuple[Tensor, ...], domain: str, option: str, *values: float) -> Iterator[ErrorSample]:
    """Calls with an option outside of its domain, and with NaN for it: only the kernel looks at an option's value."""
    for value in (*values, math.nan):
        yield ErrorSample(args, f"{op}: expected {domain}, got -?{value:g}", {option: value}, values=True)


def index_errors(op: str, x: Tensor, t: Tensor, *extra: Tensor) -> Iterator[ErrorSample]:
    """What is refused of class indices ``t`` among three classes: another dtype, and what is no class."""
    message = f"{op}: expected target of dtype int64, int32 or uint8, got bool"
    yield ErrorSample((x, t.bool(), *extra), message)
    message = f"{op}: expected a class index in \\[0, 3\\) or ignore_index -100, got"
    yield ErrorSample((x, t + 7, *extra), f"{message} [789]", values=True)
    yield ErrorSample((x, t - 7, *extra), f"{message} -[567]", values=True)


def loss_errors(op: str, make: Maker, *extra: Tensor, input: str = "input") -> Iterator[ErrorSample]:
    """What every pointwise loss of an input and a target refuses; ``extra`` are further required tensors."""
    x, t = make.uniform(2, 3), make.uniform(2, 3)
    yield from refused(op, x, t, *extra, input=input)
    yield ErrorSample((x, make.uniform(2, 4), *extra), f"{op}: expected .*, got \\[2, 3\\] and \\[2, 4\\]")


# (N, C, H, W)
IMAGES = {
    "small": (1, 4, 4, 4),
    "usual": (2, 19, 128, 128),
    "large": (8, 19, 512, 512),
    "huge": (16, 19, 1024, 1024),
}


def image_workload(make: Maker, size: str) -> Iterator[Sample]:
    """Scores of each class at each pixel, and the pixels' classes."""
    n, classes, *pixels = IMAGES[size]
    yield Sample((make.normal(n, classes, *pixels), make.index(classes, n, *pixels)))
