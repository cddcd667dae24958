"""Regression losses that outliers pull at less, or on one side more than on the other."""

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op
from ..registry import register
from ..testing import Maker
from ._common import loss_errors, outside, reduce
from .regression import bounded, samples


def charbonnier_loss(input: Tensor, target: Tensor, eps: float, reduction: str) -> Tensor:
    """The absolute difference, rounded off at 0: a smooth L1 loss.

    For image restoration and super-resolution.

    Args:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.
        eps: the loss where the two are equal, and how far around it is round; > 0.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, eps <= 0.

    Formula:
        √((x − t)² + eps²)

    Example:
        >>> image, target = torch.rand(2, 3, 8, 8, requires_grad=True), torch.rand(2, 3, 8, 8)
        >>> opreg.functional.charbonnier_loss(image, target).backward()
    """
    return reduce(torch.sqrt((input - target).square() + eps**2), reduction)


def log_cosh_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """The logarithm of the hyperbolic cosine of the difference: d²/2 near 0, |d| − log 2 far from it.

    For regression with outliers; smooth everywhere, with gradients between −1 and 1.

    Args:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast.

    Formula:
        log cosh(x − t)

    Example:
        >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
        >>> opreg.functional.log_cosh_loss(input, target).backward()
    """
    d = input - target
    near = d.abs() < 1
    # cosh d = 1 + 2 sinh²(d/2), which keeps its digits near 0 and has every derivative there
    small = torch.log1p(2 * torch.sinh(0.5 * torch.where(near, d, 0.0)).square())
    return reduce(torch.where(near, small, d.abs() + torch.log1p(torch.exp(-2 * d.abs())) - math.log(2)), reduction)


def quantile_loss(input: Tensor, target: Tensor, quantile: float, reduction: str) -> Tensor:
    """Pinball loss: its optimum is a quantile of the target, at 0.5 the median.

    For forecasts with intervals: one call a quantile.

    Args:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.
        quantile: which one; between 0 and 1, both excluded.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, a quantile outside of (0, 1).

    Formula:
        max(q·(t − x), (q − 1)·(t − x))

    Example:
        >>> forecast, target = torch.randn(8, requires_grad=True), torch.randn(8)
        >>> opreg.functional.quantile_loss(forecast, target, quantile=0.9).backward()
    """
    d = target - input
    return reduce(torch.maximum(quantile * d, (quantile - 1) * d), reduction)


def wing_loss(input: Tensor, target: Tensor, width: float, curvature: float, reduction: str) -> Tensor:
    """Logarithmic near 0, where small errors count more than in L1, and linear from ``width`` on.

    For facial landmarks, in pixels.

    Args:
        input: any shape.
        target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.
        width: from where on the loss is linear, in the unit of the input; > 0.
        curvature: how round the logarithmic part is; > 0. The slope at 0 is width/curvature.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast; a width or curvature <= 0.

    Formula:
        w·log(1 + r/c) where r = |x − t| < w, else r − w + w·log(1 + w/c)

    Example:
        >>> landmarks, target = 64 * torch.rand(4, 68, 2, requires_grad=True), 64 * torch.rand(4, 68, 2)
        >>> opreg.functional.wing_loss(landmarks, target).backward()
    """
    r = (input - target).abs()
    apart = width - width * math.log1p(width / curvature)
    return reduce(torch.where(r < width, width * torch.log1p(r / curvature), r - apart), reduction)


def wing_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from bounded("wing_loss", "finite width > 0", "width", 0.0, make)
    yield from outside("wing_loss", (make.normal(3), make.normal(3)), "finite curvature > 0", "curvature", 0.0)


register(
    Op(
        "charbonnier_loss",
        reference=charbonnier_loss,
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, eps=0.5),
        errors=partial(bounded, "charbonnier_loss", "finite eps > 0", "eps", 0.0),
        source="Charbonnier et al., Two deterministic half-quadratic regularization algorithms, ICIP 1994",
    )
)
register(
    Op(
        "log_cosh_loss",
        reference=log_cosh_loss,
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=partial(loss_errors, "log_cosh_loss"),
        source="Chen et al., Log hyperbolic cosine loss improves variational auto-encoder, 2019",
    )
)
register(
    Op(
        "quantile_loss",
        reference=quantile_loss,
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, quantile=0.39),
        errors=partial(bounded, "quantile_loss", "quantile between 0 and 1", "quantile", 1.0),
        source="Koenker and Bassett, Regression quantiles, 1978",
    )
)
register(
    Op(
        "wing_loss",
        reference=wing_loss,
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, width=1.0, curvature=0.5),
        errors=wing_errors,
        source="Feng et al., Wing loss for robust facial landmark localisation, arXiv 1711.06753",
    )
)
