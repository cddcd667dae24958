"""Binary classification: cross entropy of probabilities and of logits, focal loss."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors, native, outside, power, reduce


def focal_loss(input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    """Sigmoid focal loss: binary cross entropy in which what is classified well already counts little.

    For rare positives among many easy negatives, as in dense detection.

    Args:
        input: logits, any shape.
        target: in [0, 1], of the shape of ``input``; any real dtype. Class indices must be one-hot first.
        alpha: weight of the positives; the negatives have 1 − alpha. At most 1; below 0 there is no weight.
        gamma: how strongly easy elements are turned down; >= 0, and 0 is cross entropy.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, gamma < 0, alpha > 1.

    Formula:
        α_t·(1 − p_t)^γ·ce, p = σ(x), p_t = p·t + (1 − p)(1 − t), α_t = α·t + (1 − α)(1 − t),
        ce = −t·log p − (1 − t)·log(1 − p)

    Example:
        >>> scores, labels = torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))
        >>> target = torch.nn.functional.one_hot(labels, 5)  # one target in [0, 1] for each score
        >>> opreg.functional.focal_loss(scores, target, gamma=1.5).backward()
    """
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    # 1 − p_t as a sum of two sigmoids, which keeps its digits near 0
    miss = torch.sigmoid(input) * (1 - target) + torch.sigmoid(-input) * target
    weight = alpha * target + (1 - alpha) * (1 - target) if alpha >= 0 else 1.0
    return reduce(weight * power(miss, gamma) * cross_entropy, reduction)


def bce_samples(make: Maker) -> Iterator[Sample]:
    def p(*shape: int) -> Tensor:
        return make.uniform(*shape, low=0.02, high=0.98)

    for reduction in REDUCTIONS:
        yield Sample((p(3, 5), p(3, 5)), {"reduction": reduction})
        weight = make.constant(p(5))
        yield Sample((p(3, 5), make.bits(3, 5)), {"reduction": reduction, "weight": weight}, "weight")
    yield Sample((p(2, 3, 4), p(2, 3, 4)))
    yield Sample((p(), p()))
    yield Sample((p(0, 3), p(0, 3)), {"reduction": "sum"})
    x, t = make.tensor([0.0, 1.0, 0.0, 1.0, 1e-30]), make.constant(make.tensor([0.0, 1.0, 1.0, 0.0, 1.0]))
    yield Sample((x, t), {"reduction": "none"}, name="kinks", smooth=False)


def logits_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        x, t = make.normal(3, 5), make.uniform(3, 5)
        yield Sample((x, t), {"reduction": reduction})
        weight, pos_weight = make.constant(make.uniform(3, 1)), make.constant(make.uniform(5, high=3))
        yield Sample((x, t), {"reduction": reduction, "weight": weight, "pos_weight": pos_weight}, "weights")
    yield Sample((make.normal(2, 3, 4), make.bits(2, 3, 4)))
    yield Sample((make.normal(), make.uniform()))
    yield Sample((make.normal(0, 3), make.uniform(0, 3)), {"reduction": "sum"})
    yield from _extreme_logits(make)


def focal_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), make.bits(3, 5)), {"reduction": reduction})
        yield Sample((make.normal(3, 5), make.uniform(3, 5)), {"reduction": reduction}, "soft targets")
    for gamma in (0.0, 0.5, 1.0, 3.7):
        for alpha in (-1.0, 0.0, 0.6):
            yield Sample((make.normal(4, 3), make.uniform(4, 3)), {"alpha": alpha, "gamma": gamma})
    yield Sample((make.normal(), make.uniform()))
    yield Sample((make.normal(0, 3), make.uniform(0, 3)), {"reduction": "sum"})
    yield from _extreme_logits(make)


def _extreme_logits(make: Maker) -> Iterator[Sample]:
    x = make.tensor([0.0, 0.0, 80.0, -80.0, 80.0, -80.0, 1e4, -1e4, 1e4])
    t = make.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
    yield Sample((x, make.constant(t)), {"reduction": "none"}, name="extremes", smooth=False)


def bce_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "binary_cross_entropy"
    yield from loss_errors(op, make)
    x, t = make.tensor([0.5, 1.5]), make.tensor([0.0, 1.0])
    yield ErrorSample((x, t), f"{op}: expected input in \\[0, 1\\], got 1.5", values=True)
    yield from _weight_errors(op, "weight", make)


def logits_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "binary_cross_entropy_with_logits"
    yield from loss_errors(op, make)
    yield from _weight_errors(op, "weight", make)
    yield from _weight_errors(op, "pos_weight", make)


def _weight_errors(op: str, name: str, make: Maker) -> Iterator[ErrorSample]:
    x, t, w = make.uniform(2, 3), make.uniform(2, 3), make.constant(make.uniform(2))
    message = f"{op}: expected {name} that expands to the shape of input, got \\[2, 3\\] and \\[2\\]"
    yield ErrorSample((x, t), message, {name: w})


def focal_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "focal_loss"
    yield from loss_errors(op, make)
    x, t = make.normal(2, 3), make.uniform(2, 3)
    yield ErrorSample((x, make.uniform(3)), f"{op}: expected target of the shape of input, got \\[2, 3\\] and \\[3\\]")
    yield from outside(op, (x, t), "finite gamma >= 0", "gamma", -1.0)
    yield from outside(op, (x, t), "alpha <= 1 .*", "alpha", 1.5)


register(
    native(
        F.binary_cross_entropy,
        advice={r"expected input in \[0, 1\]": "of scores that are no probabilities: binary_cross_entropy_with_logits"},
        shape=meta.typed_by("input", rule=meta.same("input", "target", optional=("weight",))),
        samples=bce_samples,
        errors=bce_errors,
        doc="""Binary cross entropy of probabilities.

        Where the model ends in a sigmoid of its own; ``binary_cross_entropy_with_logits`` keeps more digits.

        Args:
            input: probabilities in [0, 1], any shape.
            target: in [0, 1], of the shape of ``input``; any real dtype.
            weight: a factor for each element, of a shape that expands to that of ``input``. A constant.

        Returns:
            0-d, or of the shape of ``input`` with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not fit; a weight that requires grad; on the CPU an input or a target outside
                [0, 1] (on a GPU it gives NaN).

        Formula:
            −w·(t·log x + (1 − t)·log(1 − x)), both logarithms no less than −100

        Example:
            >>> input = torch.rand(4, 3, requires_grad=True)
            >>> target = torch.tensor([[0.0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])  # any number of labels a row
            >>> opreg.functional.binary_cross_entropy(input, target).backward()
        """,
        module="BCELoss",
    )
)
register(
    native(
        F.binary_cross_entropy_with_logits,
        shape=meta.typed_by("target", rule=meta.same("input", "target", optional=("weight", "pos_weight"))),
        samples=logits_samples,
        errors=logits_errors,
        doc="""Binary cross entropy of logits: a sigmoid and its cross entropy in one.

        For labels that do not exclude each other, and for binary masks. Finite for any finite logit.

        Args:
            input: logits, any shape.
            target: in [0, 1], of the shape of ``input``; any real dtype.
            weight: a factor for each element, of a shape that expands to that of ``input``. A constant.
            pos_weight: a factor for the positive part, of a shape that expands to that of ``input``: above 1 for more
                recall. A constant.

        Returns:
            0-d, or of the shape of ``input`` with reduction ``"none"``.

        Raises:
            RuntimeError: shapes that do not fit; a weight or pos_weight that requires grad.

        Formula:
            −w·(p·t·log σ(x) + (1 − t)·log(1 − σ(x))), p = pos_weight

        Example:
            >>> input = torch.randn(4, 3, requires_grad=True)
            >>> target = torch.tensor([[0.0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 0]])  # any number of labels a row
            >>> opreg.functional.binary_cross_entropy_with_logits(input, target).backward()
        """,
        module="BCEWithLogitsLoss",
    )
)
register(
    Op(
        "focal_loss",
        reference=focal_loss,
        shape=meta.same("input", "target"),
        samples=focal_samples,
        errors=focal_errors,
        source="Lin et al., Focal loss for dense object detection, arXiv 1708.02002",
        spellings=("torchvision.ops.sigmoid_focal_loss",),
    )
)
