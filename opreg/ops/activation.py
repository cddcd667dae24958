"""Activations: inlined when Inductor compiles, so that they fuse with their neighbours."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker


def swish(input: Tensor, beta: float) -> Tensor:
    """The input times its own sigmoid: smooth, not monotonic, unbounded above.

    A default activation of vision models and of gated units in language models; beta = 1 is SiLU.

    Args:
        input: any shape; float64, float32, bfloat16 or float16.
        beta: how sharp the gate is: 0 halves the input, a large one makes ReLU. A constant.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype; a beta that is NaN.

    Formula:
        x·σ(beta·x)

    Source:
        arXiv 1710.05941; torch.nn.functional.silu for beta = 1

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.functional.swish(x, beta=1.5)
    """
    return input * torch.sigmoid(beta * input)


def samples(make: Maker) -> Iterator[Sample]:
    yield Sample((make.normal(3, 5, scale=4),))
    yield Sample((make.normal(2, 3, 4, 5),))
    yield Sample((make.normal(),))
    yield Sample((make.normal(0, 3),))
    # kinks and extremes
    yield Sample((make.tensor([-3.0, 3.0, 0.0, -1e4, 1e4, 88.0, -88.0, 20.0, 19.9]),), name="kinks", smooth=False)


def swish_samples(make: Maker) -> Iterator[Sample]:
    yield from samples(make)
    yield Sample((make.normal(4, 3),), {"beta": 1.7})
    yield Sample((make.normal(4, 3),), {"beta": -0.5})
    yield Sample((make.normal(4, 3),), {"beta": 0.0})


def errors(op: str, make: Maker) -> Iterator[ErrorSample]:
    yield ErrorSample((make.normal(3).long(),), f"{op}: expected input of dtype float64, .* got int64")
    yield ErrorSample((make.normal(3).to(torch.complex64),), f"{op}: expected input of dtype .* got complex64")


def swish_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("swish", make)
    yield ErrorSample((make.normal(3),), "swish: expected beta that is a number, got nan", {"beta": float("nan")}, True)


register(
    Op(
        "swish",
        reference=swish,
        shape=meta.same("input"),
        samples=swish_samples,
        errors=swish_errors,
        source="arXiv 1710.05941; beta = 1: torch.nn.functional.silu",
        native=lambda input, beta: F.silu(input) if beta == 1 else swish(input, beta),
        spellings=("torch.nn.functional.silu", "aten.silu.default", "aten.silu_.default"),
        inline=True,
    )
)
register(
    Op(
        "hard_swish",
        reference=F.hardswish,
        shape=meta.same("input"),
        samples=samples,
        errors=lambda make: errors("hard_swish", make),
        source="arXiv 1905.02244; torch.nn.functional.hardswish",
        doc="""Swish made of straight pieces and a parabola between −3 and 3.

        For mobile networks: no exponential, nearly the same shape.

        Args:
            input: any shape; float64, float32, bfloat16 or float16.

        Returns:
            Of the shape, the dtype and the memory format of ``input``.

        Raises:
            RuntimeError: an input of another dtype.

        Formula:
            x·min(max(x + 3, 0), 6)/6

        Source:
            arXiv 1905.02244; torch.nn.functional.hardswish

        Example:
            >>> opreg.functional.hard_swish(torch.tensor([-3.0, 0.0, 3.0]))
            tensor([-0., 0., 3.])
        """,
        module="HardSwish",
        native=F.hardswish,
        spellings=("torch.nn.functional.hardswish", "aten.hardswish.default", "aten.hardswish_.default"),
        inline=True,
    )
)
register(
    Op(
        "mish",
        reference=F.mish,
        shape=meta.same("input"),
        samples=samples,
        errors=lambda make: errors("mish", make),
        source="arXiv 1908.08681; torch.nn.functional.mish",
        doc="""The input times tanh of its softplus: smooth, not monotonic, unbounded above.

        In place of ReLU in detectors and deep classifiers.

        Args:
            input: any shape; float64, float32, bfloat16 or float16.

        Returns:
            Of the shape, the dtype and the memory format of ``input``.

        Raises:
            RuntimeError: an input of another dtype.

        Formula:
            x·tanh(log(1 + eˣ))

        Source:
            arXiv 1908.08681; torch.nn.functional.mish

        Example:
            >>> x = torch.randn(2, 3)
            >>> y = opreg.functional.mish(x)
        """,
        native=F.mish,
        spellings=("torch.nn.functional.mish", "aten.mish.default", "aten.mish_.default"),
        inline=True,
    )
)
