"""Activations: inlined when Inductor compiles, so that they fuse with their neighbours."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import native, outside, refused


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
    yield from refused(op, make.normal(3), reduces=False)
    yield ErrorSample((make.normal(3).to(torch.complex64),), f"{op}: expected input of dtype .* got complex64")


def swish_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("swish", make)
    yield from outside("swish", (make.normal(3),), "beta that is a number", "beta")


register(
    Op(
        "swish",
        reference=swish,
        shape=meta.same("input"),
        samples=swish_samples,
        errors=swish_errors,
        source="arXiv 1710.05941; torch.nn.functional.silu for beta = 1",
        native=lambda input, beta: F.silu(input) if beta == 1 else swish(input, beta),
        spellings=("torch.nn.functional.silu", "aten.silu.default", "aten.silu_.default"),
        inline=True,
    )
)
register(
    native(
        F.hardswish,
        name="hard_swish",
        aten=("hardswish.default", "hardswish_.default"),
        shape=meta.same("input"),
        samples=samples,
        errors=partial(errors, "hard_swish"),
        source="arXiv 1905.02244",
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

        Example:
            >>> opreg.functional.hard_swish(torch.tensor([-3.0, 0.0, 3.0]))
            tensor([-0., 0., 3.])
        """,
        module="HardSwish",
        inline=True,
    )
)
register(
    native(
        F.mish,
        aten=("mish.default", "mish_.default"),
        shape=meta.same("input"),
        samples=samples,
        errors=partial(errors, "mish"),
        source="arXiv 1908.08681",
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

        Example:
            >>> x = torch.randn(2, 3)
            >>> y = opreg.functional.mish(x)
        """,
        inline=True,
    )
)
