"""Negative log likelihoods of counts and normal variables, and the Kullback-Leibler divergence."""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors, native, outside, reduce


def gaussian_nll_loss(input: Tensor, target: Tensor, var: Tensor, full: bool, eps: float, reduction: str) -> Tensor:
    """Negative log likelihood under a normal distribution, whose variance the model gives as well.

    For regression that knows how sure it is.

    Args:
        input: expectation, any shape.
        target: of a shape that broadcasts with that of ``input``.
        var: variance >= 0: of the shape of ``input``, or with one dimension of 1 or the last one missing (a variance a
            row); or one number for all. A negative one gives NaN at its place.
        full: whether the constant log(2π)/2 is added.
        eps: the least variance that is divided by; >= 0. What it changes is not differentiated.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, eps < 0.

    Formula:
        (log v + (x − t)²/v)/2, v = max(var, eps)

    Example:
        >>> mean, log_var = torch.randn(8, 2, requires_grad=True), torch.zeros(8, 2, requires_grad=True)
        >>> target = torch.randn(8, 2)  # a value for each mean
        >>> opreg.functional.gaussian_nll_loss(mean, target, log_var.exp()).backward()
    """
    if var.shape != input.shape and var.shape == input.shape[:-1]:
        var = var.unsqueeze(-1)
    # the clamp is not differentiated, as in torch's function
    var = var + (torch.where(var < 0, math.nan, var).clamp(min=eps) - var).detach()
    loss = 0.5 * (torch.log(var) + (input - target) ** 2 / var)
    return reduce(loss + 0.5 * math.log(2 * math.pi) if full else loss, reduction)


def one_for_all(var: Tensor | float, args: Mapping[str, Any]) -> Any:
    """One variance for all, as a tensor. Anything else is passed on, so that the op's error says what it expected."""
    input = args.get("input")
    return torch.full_like(input, var) if isinstance(var, (int, float)) and isinstance(input, Tensor) else var


def kl_div(input: Tensor, target: Tensor, reduction: str, log_target: bool) -> Tensor:
    """Kullback-Leibler divergence, element by element, from log-probabilities.

    To bring one distribution near another, given one. Mind the order, the target's logarithm less the input's, and that
    only ``"batchmean"`` and ``"sum"`` add up to the divergence.

    Args:
        input: log-probabilities, any shape.
        target: probabilities >= 0, or log-probabilities with ``log_target``, of a shape that broadcasts with that of
            ``input``.
        reduction: ``"none"``, ``"mean"``, ``"sum"`` or ``"batchmean"``: the sum, divided by the size of the input's
            first dimension.
        log_target: whether ``target`` is logarithms.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, an unknown reduction.

    Formula:
        t·(log t − x), 0 where t = 0; with ``log_target`` eᵗ·(t − x)

    Example:
        >>> input = torch.log_softmax(torch.randn(8, 5, requires_grad=True), 1)
        >>> target = torch.randn(8, 5).softmax(1)  # probabilities
        >>> opreg.functional.kl_div(input, target, reduction="batchmean").backward()
    """
    if log_target:
        loss = target.exp() * (target - input)
    else:
        entropy = torch.where(target == 0, 0.0, target * torch.where(target == 0, 1.0, target).log())
        loss = entropy - target * input
    if reduction == "batchmean":
        return loss.sum() / input.shape[0] if input.dim() else loss.sum()
    return reduce(loss, reduction)


def native_kl_div(input: Tensor, target: Tensor, reduction: str, log_target: bool) -> Tensor:
    if reduction == "mean":  # torch warns that this is not the divergence
        return F.kl_div(input, target, reduction="none", log_target=log_target).mean()
    return F.kl_div(input, target, reduction=reduction, log_target=log_target)


def poisson_nll_loss(input: Tensor, target: Tensor, log_input: bool, full: bool, eps: float, reduction: str) -> Tensor:
    """Negative log likelihood of counts under a Poisson distribution.

    For targets that count: visits, clicks, photons.

    Args:
        input: logarithm of the expected count; without ``log_input`` the expected count itself, > 0. Any shape.
        target: counts >= 0, of a shape that broadcasts with that of ``input``.
        log_input: whether ``input`` is the logarithm.
        full: whether Stirling's approximation of log t! is added, where t > 1.
        eps: added within the logarithm where ``log_input`` is False; >= 0.

    Returns:
        0-d, or of the broadcast shape with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not broadcast, eps < 0.

    Formula:
        eˣ − t·x; without ``log_input`` x − t·log(x + eps)

    Example:
        >>> log_rate = torch.randn(8, requires_grad=True)
        >>> target = torch.tensor([0.0, 3, 1, 0, 7, 2, 2, 1])  # counts
        >>> opreg.functional.poisson_nll_loss(log_rate, target).backward()
    """
    loss = input.exp() - target * input if log_input else input - target * torch.log(input + eps)
    if full:
        large = target > 1
        safe = torch.where(large, target, 1.0)
        stirling = safe * safe.log() - safe + 0.5 * torch.log(2 * math.pi * safe)
        loss = loss + torch.where(large, stirling, 0.0)
    return reduce(loss, reduction)


def poisson_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        for log_input in (True, False):
            for full in (True, False):
                options = {"log_input": log_input, "full": full, "reduction": reduction}
                yield Sample((make.uniform(3, 5, low=0.2, high=3), make.uniform(3, 5, high=4)), options)
    yield Sample((make.normal(3, 1), make.uniform(4, high=5)), name="broadcast")
    yield Sample((make.normal(), make.uniform()), {"eps": 1e-3})
    yield Sample((make.normal(0, 3), make.normal(0, 3)), {"reduction": "sum"})
    t = make.tensor([0.0, 1.0, 1.5, 100.0, 0.5])
    yield Sample(
        (make.tensor([0.0, -80.0, 3.0, 5.0, -1e4]), make.constant(t)), {"full": True}, name="kinks", smooth=False
    )


def gaussian_samples(make: Maker) -> Iterator[Sample]:
    def var(*shape: int) -> Tensor:
        return make.uniform(*shape, low=0.1, high=2)

    for reduction in REDUCTIONS:
        for full in (True, False):
            x, t = make.normal(3, 5), make.normal(3, 5)
            yield Sample((x, t, var(3, 5)), {"full": full, "reduction": reduction})
            yield Sample((x, t, var(3)), {"full": full, "reduction": reduction}, "a variance a row")
    yield Sample((make.normal(2, 3, 4), make.normal(2, 3, 4), var(2, 1, 4)))
    yield Sample((make.normal(2, 3, 4), make.normal(3, 1), var(2, 3, 4)), {"reduction": "sum"}, "broadcast")
    yield Sample((make.normal(), make.normal(), var()))
    yield Sample((make.normal(0, 3), make.normal(0, 3), var(0, 3)), {"reduction": "sum"})
    x, t = make.normal(4), make.normal(4)
    yield Sample(
        (x, t, make.tensor([0.0, 1e-8, 1e-6, 5.0])), {"reduction": "none", "eps": 1e-3}, name="clamped", smooth=False
    )


def gaussian_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "gaussian_nll_loss"
    yield from loss_errors(op, make, make.uniform(2, 3))
    x, t, v = make.normal(2, 3), make.normal(2, 3), make.uniform(2, 3)
    yield ErrorSample(
        (x, t, make.uniform(3)), f"{op}: expected var of the shape of input, or .* \\[2, 3\\] and \\[3\\]"
    )
    yield from outside(op, (x, t, v), "eps >= 0", "eps", -1.0)


def kl_samples(make: Maker) -> Iterator[Sample]:
    for reduction in (*REDUCTIONS, "batchmean"):
        for log_target in (True, False):
            x, t = make.normal(3, 5), make.uniform(3, 5, low=0.05)
            yield Sample((x, t), {"reduction": reduction, "log_target": log_target})
    yield Sample((make.normal(3, 1), make.uniform(4, low=0.1)), {"reduction": "batchmean"}, "broadcast")
    yield Sample((make.normal(), make.uniform(low=0.1)), {"reduction": "batchmean"})
    yield Sample((make.normal(0, 3), make.uniform(0, 3)), {"reduction": "sum"})
    t = make.tensor([0.0, 1.0, 0.0, 1e-30])
    yield Sample(
        (make.tensor([-1e4, 0.0, -5.0, -80.0]), make.constant(t)), {"reduction": "none"}, name="kinks", smooth=False
    )


def poisson_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from loss_errors("poisson_nll_loss", make)
    yield from outside("poisson_nll_loss", (make.normal(3), make.uniform(3)), "eps >= 0", "eps", -1.0)


register(
    native(
        F.poisson_nll_loss,
        reference=poisson_nll_loss,
        shape=meta.broadcast("input", "target"),
        samples=poisson_samples,
        errors=poisson_errors,
        module="PoissonNLLLoss",
    )
)
register(
    native(
        F.gaussian_nll_loss,
        aten=(),
        reference=gaussian_nll_loss,
        shape=meta.variance("input", "target", "var"),
        samples=gaussian_samples,
        errors=gaussian_errors,
        accepts={"var": one_for_all},
        module="GaussianNLLLoss",
    )
)
register(
    native(
        F.kl_div,
        called=native_kl_div,
        reference=kl_div,
        shape=meta.broadcast("input", "target"),
        samples=kl_samples,
        errors=partial(loss_errors, "kl_div"),
        module="KLDivLoss",
    )
)
