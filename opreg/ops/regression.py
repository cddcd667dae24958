"""Regression losses on the difference of input and target."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors, native, outside


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
    # the kinks of all four losses, at 0 and ±1, and extremes
    x = make.tensor([0.0, 1.0, -1.0, 2.0, 1e4, -1e4])
    yield Sample((x, make.constant(torch.zeros_like(x))), {"reduction": "none", **options}, name="kinks", smooth=False)


def bounded(op: str, domain: str, option: str, bad: float, make: Maker) -> Iterator[ErrorSample]:
    yield from loss_errors(op, make)
    yield from outside(op, (make.normal(3), make.normal(3)), domain, option, bad)


register(
    native(
        F.l1_loss,
        called=broadcasting(F.l1_loss),
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=partial(loss_errors, "l1_loss"),
        doc="""Absolute difference.

        For regression that outliers shall not rule; the median is its optimum. At a difference of 0 the gradient is 0.

        Args:
            input: any shape.
            target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

        Returns:
            0-d, or of the broadcast shape with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not broadcast.

        Formula:
            |x − t|

        Example:
            >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
            >>> opreg.functional.l1_loss(input, target).backward()
        """,
    )
)
register(
    native(
        F.mse_loss,
        called=broadcasting(F.mse_loss),
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=partial(loss_errors, "mse_loss"),
        doc="""Squared difference.

        For regression; the mean is its optimum.

        Args:
            input: any shape.
            target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.

        Returns:
            0-d, or of the broadcast shape with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not broadcast.

        Formula:
            (x − t)²

        Example:
            >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
            >>> opreg.functional.mse_loss(input, target).backward()
        """,
        module="MSELoss",
    )
)
register(
    native(
        F.smooth_l1_loss,
        called=broadcasting(F.smooth_l1_loss),
        shape=meta.broadcast("input", "target"),
        samples=partial(samples, beta=1.0),
        errors=partial(bounded, "smooth_l1_loss", "beta >= 0", "beta", -1.0),
        source="arXiv 1504.08083",
        doc="""Quadratic near 0, linear with slope 1 from ``beta`` on.

        For box regression, and regression with outliers: gradients are bounded by 1, and vanish towards the optimum.

        Args:
            input: any shape.
            target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.
            beta: where the two meet; >= 0, and 0 is ``l1_loss``.

        Returns:
            0-d, or of the broadcast shape with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not broadcast, beta < 0.

        Formula:
            d²/(2·beta) where d = |x − t| < beta, else d − beta/2

        Example:
            >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
            >>> opreg.functional.smooth_l1_loss(input, target, beta=0.5).backward()
        """,
    )
)
register(
    native(
        F.huber_loss,
        called=broadcasting(F.huber_loss),
        shape=meta.typed_by("input", rule=meta.broadcast("input", "target")),
        samples=partial(samples, delta=1.0),
        errors=partial(bounded, "huber_loss", "delta > 0", "delta", 0.0),
        source="Huber 1964",
        doc="""Quadratic near 0, linear with slope ``delta`` from ``delta`` on.

        For regression with outliers: delta·smooth_l1_loss with beta = delta.

        Args:
            input: any shape.
            target: of a shape that broadcasts with that of ``input``; where the two differ, a warning says so once.
            delta: where the two meet; > 0.

        Returns:
            0-d, or of the broadcast shape with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not broadcast, delta <= 0.

        Formula:
            d²/2 where d = |x − t| <= delta, else delta·(d − delta/2)

        Example:
            >>> input, target = torch.randn(8, 2, requires_grad=True), torch.randn(8, 2)  # a value for each
            >>> opreg.functional.huber_loss(input, target, delta=0.5).backward()
        """,
    )
)
