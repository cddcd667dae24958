"""Losses of mylib: ``torch.ops.mylib.NAME``, in eager mode, torch.compile, torch.export and C++."""

from collections.abc import Iterator

from torch import Tensor

import opreg
from opreg import ErrorSample, Op, Sample, meta
from opreg.testing import Maker

library = opreg.load_library("mylib")


def charbonnier(input: Tensor, target: Tensor, reduction: str = "mean", eps: float = 1e-3) -> Tensor:
    """Charbonnier loss, sqrt((input - target)² + eps²): L1 with a round bottom.

    Args:
        input: predictions, of any shape.
        target: of a shape that broadcasts with it.
        reduction: "none", "mean" or "sum".
        eps: the width of the bottom, > 0.
    """
    loss = ((input - target) ** 2 + eps**2).sqrt()
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def samples(make: Maker) -> Iterator[Sample]:
    for reduction in ("none", "mean", "sum"):
        yield Sample((make.normal(3, 5), make.normal(3, 5)), {"reduction": reduction}, reduction)
    yield Sample((make.normal(4, 1), make.normal(3)), {"eps": 0.5}, "broadcast")


def errors(make: Maker) -> Iterator[ErrorSample]:
    yield ErrorSample((make.normal(3), make.normal(4)), "target that broadcasts with input", {})
    yield ErrorSample((make.normal(3), make.normal(3)), "eps > 0, got 0", {"eps": 0.0}, values=True)


charbonnier_loss = opreg.register(
    Op(
        name="mylib::charbonnier_loss",
        reference=charbonnier,
        shape=meta.broadcast("input", "target"),
        samples=samples,
        errors=errors,
        source="Charbonnier and others, 1994",
    )
).value
