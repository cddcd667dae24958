"""Regression losses on the difference of input and target."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..registry import ErrorSample, Op, Sample, register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors


def broadcasting(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A function of torch.nn.functional, without its warning where input and target broadcast."""

    def reference(input: Tensor, target: Tensor, **options: Any) -> Tensor:
        return loss(*torch.broadcast_tensors(input, target), **options)

    return reference


def samples(make: Maker, **options: float) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), make.normal(3, 5)), {"reduction": reduction, **options})
        yield Sample((make.normal(3, 1), make.normal(4)), {"reduction": reduction, **options}, "broadcast")
    yield Sample((make.normal(2, 3, 4, 5), make.normal(2, 3, 4, 5)))
    yield Sample((make.normal(), make.normal()))
    yield Sample((make.normal(0, 3), make.normal(0, 3)), {"reduction": "sum"})
    for option, value in options.items():
        for other in (0.3, 2.5):
            yield Sample((make.normal(7), make.normal(7)), {option: other * value})
    # the kinks of all of them: 0, ±1; and extremes
    x = make.tensor([0.0, 1.0, -1.0, 2.0, 1e4, -1e4])
    yield Sample((x, make.constant(torch.zeros_like(x))), {"reduction": "none", **options}, name="kinks", smooth=False)


def bounded(op: str, option: str, bad: float, expected: str, make: Maker) -> Iterator[ErrorSample]:
    yield from loss_errors(op, make)
    for value in (bad, float("nan")):
        yield ErrorSample((make.normal(3), make.normal(3)), f"{op}: expected {expected}, got", {option: value}, True)


register(
    Op(
        "l1_loss",
        reference=broadcasting(F.l1_loss),
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=partial(loss_errors, "l1_loss"),
        source="torch.nn.functional.l1_loss",
        native=broadcasting(F.l1_loss),
        spellings=("torch.nn.functional.l1_loss", "aten.l1_loss.default"),
    )
)
register(
    Op(
        "mse_loss",
        reference=broadcasting(F.mse_loss),
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=partial(loss_errors, "mse_loss"),
        source="torch.nn.functional.mse_loss",
        native=broadcasting(F.mse_loss),
        spellings=("torch.nn.functional.mse_loss", "aten.mse_loss.default"),
    )
)
register(
    Op(
        "smooth_l1_loss",
        reference=broadcasting(F.smooth_l1_loss),
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, beta=1.0),
        errors=partial(bounded, "smooth_l1_loss", "beta", -1.0, "beta >= 0"),
        source="torch.nn.functional.smooth_l1_loss; arXiv 1504.08083",
        native=broadcasting(F.smooth_l1_loss),
        spellings=("torch.nn.functional.smooth_l1_loss", "aten.smooth_l1_loss.default"),
    )
)
register(
    Op(
        "huber_loss",
        reference=broadcasting(F.huber_loss),
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, delta=1.0),
        errors=partial(bounded, "huber_loss", "delta", 0.0, "delta > 0"),
        source="torch.nn.functional.huber_loss; Huber 1964",
        native=broadcasting(F.huber_loss),
        spellings=("torch.nn.functional.huber_loss", "aten.huber_loss.default"),
    )
)
