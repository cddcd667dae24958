"""Gated units: an activation of one tensor times another, inlined when Inductor compiles as activations are."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import outside, refused


def swiglu(gate: Tensor, up: Tensor, beta: float) -> Tensor:
    """A gated unit whose gate is swish: the feed-forward layer of most language models.

    Args:
        gate: any shape; what the activation is of. A half of one tensor, as ``chunk(2, -1)`` gives it, is read where it
            is.
        up: what is gated, of the shape of ``gate``; the other half.
        beta: how sharp the gate is; 1 is SiLU. A constant.

    Returns:
        Of the shape of ``gate``.

    Raises:
        RuntimeError: an up of another shape; a beta that is NaN.

    Formula:
        g·σ(beta·g)·u

    Example:
        >>> gate, up = torch.randn(4, 16, requires_grad=True).chunk(2, -1)
        >>> opreg.functional.swiglu(gate, up).sum().backward()
    """
    return gate * torch.sigmoid(beta * gate) * up


def geglu(gate: Tensor, up: Tensor, approximate: str) -> Tensor:
    """A gated unit whose gate is GELU.

    Args:
        gate: any shape; what the activation is of. A half of one tensor, as ``chunk(2, -1)`` gives it, is read where it
            is.
        up: what is gated, of the shape of ``gate``; the other half.
        approximate: ``"none"``, or ``"tanh"`` for models that were trained with the approximation by tanh.

    Returns:
        Of the shape of ``gate``.

    Raises:
        RuntimeError: an up of another shape; an approximate that is neither.

    Formula:
        gelu(g)·u

    Example:
        >>> gate, up = torch.randn(4, 16, requires_grad=True).chunk(2, -1)
        >>> opreg.functional.geglu(gate, up, approximate="tanh").sum().backward()
    """
    return F.gelu(gate, approximate=approximate) * up


def reglu(gate: Tensor, up: Tensor) -> Tensor:
    """A gated unit whose gate is ReLU.

    Args:
        gate: any shape; what the activation is of. A half of one tensor, as ``chunk(2, -1)`` gives it, is read where it
            is.
        up: what is gated, of the shape of ``gate``; the other half.

    Returns:
        Of the shape of ``gate``.

    Raises:
        RuntimeError: an up of another shape.

    Formula:
        max(g, 0)·u

    Example:
        >>> gate, up = torch.randn(4, 16, requires_grad=True).chunk(2, -1)
        >>> opreg.functional.reglu(gate, up).sum().backward()
    """
    return torch.relu(gate) * up


def clamped_swiglu(gate: Tensor, up: Tensor, alpha: float, limit: float) -> Tensor:
    """A gated unit whose gate is clamped from above and whose other factor on both sides, and raised by 1.

    As in gpt-oss. Outside of the bounds the gradient is 0, on them it is that of the inside.

    Args:
        gate: any shape; what the activation is of. Every other entry of a tensor's last dimension,
            ``x[..., ::2]``, is read where it is.
        up: what is gated, of the shape of ``gate``.
        alpha: how sharp the gate is. A constant.
        limit: the bound of both; >= 0. A constant.

    Returns:
        Of the shape of ``gate``.

    Raises:
        RuntimeError: an up of another shape; an alpha that is NaN, a limit < 0.

    Formula:
        g·σ(alpha·g)·(u + 1) of g = min(gate, limit), u = clamp(up, −limit, limit)

    Example:
        >>> x = torch.randn(4, 16, requires_grad=True)
        >>> opreg.functional.clamped_swiglu(x[..., ::2], x[..., 1::2]).sum().backward()
    """
    g, u = gate.clamp(max=limit), up.clamp(-limit, limit)
    return g * torch.sigmoid(alpha * g) * (u + 1)


def samples(make: Maker, *options: dict[str, Any]) -> Iterator[Sample]:
    for each in ({}, *options):
        yield Sample((make.normal(3, 5, scale=4), make.normal(3, 5, scale=4)), each)
    # halves of one tensor, each with the strides of the whole
    yield Sample((make.normal(4, 10)[:, :5], make.normal(4, 10)[:, 5:]), name="halves")
    yield Sample((make.normal(2, 3, 4, 5), make.normal(2, 3, 4, 5)))
    yield Sample((make.normal(), make.normal()))
    yield Sample((make.normal(0, 3), make.normal(0, 3)))
    gate = make.tensor([0.0, 7.0, -7.0, 7.5, -88.0, 88.0, 1e4, -1e4, 3.0])
    up = make.tensor([1.0, -7.0, 7.0, 2.0, -2.0, 0.5, -1.0, -1.0, -9.0])
    for each in ({}, *options):
        yield Sample((gate, up), each, name="kinks", smooth=False)


def errors(op: str, make: Maker) -> Iterator[ErrorSample]:
    gate, up = make.normal(2, 3), make.normal(2, 3)
    yield from refused(op, gate, up, input="gate", reduces=False)
    yield ErrorSample((gate, make.normal(3)), f"{op}: expected up of the shape of gate, got \\[2, 3\\] and \\[3\\]")


def with_options(op: str, *domains: tuple[str, str, tuple[float, ...]]) -> Callable[[Maker], Iterator[ErrorSample]]:
    def all_errors(make: Maker) -> Iterator[ErrorSample]:
        yield from errors(op, make)
        for domain, option, values in domains:
            yield from outside(op, (make.normal(3), make.normal(3)), domain, option, *values)

    return all_errors


def geglu_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from errors("geglu", make)
    message = 'geglu: expected approximate "none" or "tanh", got "erf"'
    yield ErrorSample((make.normal(3), make.normal(3)), message, {"approximate": "erf"}, values=True)


PAPER = "Shazeer, GLU variants improve transformer, arXiv 2002.05202"

register(
    Op(
        "swiglu",
        reference=swiglu,
        shape=meta.same("gate", "up"),
        samples=lambda make: samples(make, {"beta": 1.7}, {"beta": -0.5}, {"beta": 0.0}),
        errors=with_options("swiglu", ("beta that is a number", "beta", ())),
        source=PAPER,
        module="SwiGLU",
        inline=True,
    )
)
register(
    Op(
        "geglu",
        reference=geglu,
        shape=meta.same("gate", "up"),
        samples=lambda make: samples(make, {"approximate": "tanh"}),
        errors=geglu_errors,
        source=PAPER,
        module="GEGLU",
        inline=True,
    )
)
register(
    Op(
        "reglu",
        reference=reglu,
        shape=meta.same("gate", "up"),
        samples=samples,
        errors=partial(errors, "reglu"),
        source=PAPER,
        module="ReGLU",
        inline=True,
    )
)
register(
    Op(
        "clamped_swiglu",
        reference=clamped_swiglu,
        shape=meta.same("gate", "up"),
        samples=lambda make: samples(make, {"alpha": 1.0, "limit": 2.0}, {"alpha": -0.5, "limit": 0.0}),
        errors=with_options(
            "clamped_swiglu", ("alpha that is a number", "alpha", ()), ("limit >= 0", "limit", (-1.0,))
        ),
        source="gpt-oss: OpenAI, gpt-oss-120b and gpt-oss-20b model card, arXiv 2508.10925",
        module="ClampedSwiGLU",
        inline=True,
    )
)
