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


def quick_gelu(input: Tensor) -> Tensor:
    """The first approximation of GELU, by one sigmoid: up to 0.02 away from it.

    For models that were trained with it, as CLIP's and their descendants were. It is ``swish`` with beta = 1.702.

    Args:
        input: any shape; float64, float32, bfloat16 or float16.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype.

    Formula:
        x·σ(1.702·x)

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.functional.quick_gelu(x)
    """
    return input * torch.sigmoid(1.702 * input)


def relu_squared(input: Tensor) -> Tensor:
    """The square of ReLU: zero for what is negative, so that hidden units are sparse, and smooth at 0.

    In feed-forward layers of language models (Primer, RWKV, Nemotron).

    Args:
        input: any shape; float64, float32, bfloat16 or float16.

    Returns:
        Of the shape, the dtype and the memory format of ``input``.

    Raises:
        RuntimeError: an input of another dtype.

    Formula:
        max(x, 0)²

    Example:
        >>> x = torch.randn(2, 3)
        >>> y = opreg.functional.relu_squared(x)
    """
    return torch.relu(input).square()


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


def gelu_samples(make: Maker) -> Iterator[Sample]:
    yield from samples(make)
    for approximate in ("none", "tanh"):
        yield Sample((make.normal(4, 3, scale=3),), {"approximate": approximate})
        extremes = make.tensor([0.0, -0.75, -5.0, -12.0, 12.0, -14.0, 1e4, -1e4, 99.0, -101.0])
        yield Sample((extremes,), {"approximate": approximate}, "extremes", smooth=False)


def errors(op: str, make: Maker) -> Iterator[ErrorSample]:
    yield from refused(op, make.normal(3), reduces=False)
    yield ErrorSample((make.normal(3).to(torch.complex64),), f"{op}: expected input of dtype .* got complex64")


def gelu_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("gelu", make)
    message = 'gelu: expected approximate "none" or "tanh", got "erf"'
    yield ErrorSample((make.normal(3),), message, {"approximate": "erf"}, values=True)


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
register(
    native(
        F.gelu,
        aten=("gelu.default", "gelu_.default"),
        shape=meta.same("input"),
        samples=gelu_samples,
        errors=gelu_errors,
        source="Hendrycks and Gimpel, Gaussian error linear units, arXiv 1606.08415",
        doc="""The input times the probability that a standard normal variable is below it.

        A default activation of transformers. Unlike torch's own, it keeps the digits of what is far below 0.

        Args:
            input: any shape; float64, float32, bfloat16 or float16.
            approximate: ``"none"``, or ``"tanh"`` for models that were trained with the approximation by tanh.

        Returns:
            Of the shape, the dtype and the memory format of ``input``.

        Raises:
            RuntimeError: an input of another dtype; an approximate that is neither.

        Formula:
            x·Φ(x), Φ(x) = (1 + erf(x/√2))/2; "tanh": x·(1 + tanh(√(2/π)·(x + 0.044715·x³)))/2

        Example:
            >>> x = torch.randn(2, 3)
            >>> y = opreg.functional.gelu(x, approximate="tanh")
        """,
        module="GELU",
        inline=True,
    )
)
register(
    Op(
        "quick_gelu",
        reference=quick_gelu,
        shape=meta.same("input"),
        samples=samples,
        errors=partial(errors, "quick_gelu"),
        source="Hendrycks and Gimpel, Gaussian error linear units, arXiv 1606.08415, section 2",
        module="QuickGELU",
        inline=True,
    )
)
register(
    Op(
        "relu_squared",
        reference=relu_squared,
        shape=meta.same("input"),
        samples=samples,
        errors=partial(errors, "relu_squared"),
        source="So et al., Primer: searching for efficient transformers for language modeling, arXiv 2109.08668",
        module="ReLUSquared",
        inline=True,
    )
)
