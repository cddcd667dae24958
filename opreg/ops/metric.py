"""Losses of distances and angles between vectors, which lie along the last dimension."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, native, outside, reduce, refused


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float,
    p: float,
    eps: float,
    swap: bool,
    reduction: str,
) -> Tensor:
    """Triplet margin loss: the positive is to lie nearer to the anchor than the negative does, by a margin.

    For embeddings of faces, products or patches, where classes are many and a class has few examples.

    Args:
        anchor: vectors (…, D), floating.
        positive: vectors of the anchor's class, of the same number of dimensions; they broadcast.
        negative: vectors of another class, the same.
        margin: greater than 0.
        p: the degree of the norm, 2 for Euclidean distance; any number or infinity.
        eps: added to each difference inside of the norm.
        swap: take the negative's distance to the positive where that is less than its distance to the anchor.

    Returns:
        0-d, or (…) with reduction ``"none"``. The gradient of a distance is 0 where the distance is 0.

    Raises:
        RuntimeError: shapes that do not broadcast, margin ≤ 0, NaN as margin, p or eps.

    Formula:
        max(0, margin + d(a, p) − d(a, n)), d(x, y) = ‖x − y + eps‖_p

    Example:
        >>> anchor, positive, negative = torch.randn(3, 16, 128)  # three times (16, 128)
        >>> loss = opreg.functional.triplet_margin_loss(anchor, positive, negative, margin=0.5, swap=True)
    """

    def distance(x: Tensor, y: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x - y + eps, p, -1)
        return norm

    to_negative = distance(anchor, negative)
    if swap:
        to_negative = torch.minimum(to_negative, distance(positive, negative))
    return reduce((margin + distance(anchor, positive) - to_negative).clamp(min=0), reduction)


def triplet_soft_margin_loss(anchor: Tensor, positive: Tensor, negative: Tensor, reduction: str) -> Tensor:
    """Triplet loss with a soft margin: the positive is to lie nearer to the anchor than the negative does.

    Like ``triplet_margin_loss`` with no margin to choose: triplets that are already in order still pull, ever less.

    Args:
        anchor: vectors (…, D), floating.
        positive: vectors of the anchor's class, of the same shape.
        negative: vectors of another class, of the same shape.

    Returns:
        0-d, or (…) with reduction ``"none"``. The gradient of a distance is 0 where the distance is 0.

    Raises:
        RuntimeError: shapes that differ.

    Formula:
        log(1 + e^(d(a, p) − d(a, n))), d the Euclidean distance

    Example:
        >>> anchor, positive, negative = torch.randn(3, 16, 128)  # three times (16, 128)
        >>> loss = opreg.functional.triplet_soft_margin_loss(anchor, positive, negative)
    """
    to_positive = torch.linalg.vector_norm(anchor - positive, 2, -1)
    to_negative = torch.linalg.vector_norm(anchor - negative, 2, -1)
    return reduce(-F.logsigmoid(to_negative - to_positive), reduction)


def cosine_embedding_loss(input1: Tensor, input2: Tensor, target: Tensor, margin: float, reduction: str) -> Tensor:
    """Cosine embedding loss: pairs that belong together are to point the same way, others not.

    For similarity of embeddings whose length means nothing.

    Args:
        input1: vectors (N, D), or one (D), floating.
        input2: the same; the two broadcast.
        target: (N), or () for one pair: 1 where the pair belongs together, −1 where it does not; others count 0.
        margin: what the cosine of a pair that does not belong together may be; from −1 to 1, 0 to 0.5 is usual.

    Returns:
        0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, NaN as margin, a target that requires grad.

    Formula:
        1 − cos where t = 1, max(0, cos − margin) where t = −1; cos = Σ x₁·x₂/√((Σ x₁² + 1e-12)·(Σ x₂² + 1e-12))

    Example:
        >>> target = torch.tensor([1, -1, 1])  # not 0 and 1
        >>> loss = opreg.functional.cosine_embedding_loss(torch.randn(3, 128), torch.randn(3, 128), target)
    """
    # as in torch, each vector's length is taken before the two broadcast, and 1e-12 is the float32 nearest to it
    eps = 9.999999960041972e-13
    squares = ((input1 * input1).sum(-1) + eps) * ((input2 * input2).sum(-1) + eps)
    cosine = (input1 * input2).sum(-1) / squares.sqrt()
    similar = torch.where(target == 1, 1 - cosine, 0.0)
    dissimilar = torch.where(target == -1, (cosine - margin).clamp(min=0), 0.0)
    return reduce(similar + dissimilar, reduction)


def vectors(make: Maker, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    return make.normal(*shape), make.normal(*shape), make.normal(*shape)


def triplet_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(vectors(make, 5, 3), {"reduction": reduction})
        options = {"reduction": reduction, "margin": 0.3, "swap": True, "eps": 0.01}
        yield Sample((make.normal(2, 3, 4), make.normal(1, 3, 4), make.normal(2, 1, 4)), options, "broadcast")
    for degree in (1.0, 3.5, 0.5, -2.0, float("inf")):
        options = {"p": degree, "swap": True, "margin": 2.0, "reduction": "none"}
        yield Sample(vectors(make, 3, 4), options, f"p = {degree}")
    yield Sample(vectors(make, 40, 2), {"swap": True, "reduction": "none"}, "many short vectors")
    yield Sample(vectors(make, 2, 131), {"p": 3.0, "margin": 2.0, "reduction": "none"}, "long vectors")
    yield Sample((make.normal(3, 4), make.normal(3, 1), make.normal(3, 1)), {"swap": True}, "one number for a vector")
    yield Sample(vectors(make, 4), name="one vector")
    yield Sample(vectors(make), {"swap": True}, "numbers")
    yield Sample(vectors(make, 0, 3), {"reduction": "sum"}, "empty")
    # the margin met exactly, distances of 0, two equal distances, equal differences within a vector
    a = make.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
    p = make.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [3.0, 4.0], [2.0, 0.0]])
    n = make.tensor([[0.0, 2.0], [1.0, 1.0], [1.0, 1.0], [3.5, 4.0], [1.0, 1.0]])
    for degree in (2.0, 1.0, 3.0, float("inf")):
        options = {"p": degree, "eps": 0.0, "swap": True, "reduction": "none"}
        yield Sample((a, p, n), options, name=f"kinks at p = {degree}", smooth=False)


def triplet_soft_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample(vectors(make, 5, 3), {"reduction": reduction})
    yield Sample(vectors(make, 2, 3, 4), {"reduction": "none"})
    yield Sample(vectors(make, 2, 131), name="long vectors")
    yield Sample(vectors(make, 4), name="one vector")
    yield Sample(vectors(make, 0, 3), {"reduction": "sum"}, "empty")
    a = make.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1e4, 1e4], [0.0, 0.0]])
    p = make.tensor([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0], [-1e4, -1e4], [0.0, 0.0]])
    n = make.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [1e4, 1e4], [1e4, -1e4]])
    yield Sample((a, p, n), {"reduction": "none"}, name="kinks", smooth=False)


def cosine_samples(make: Maker) -> Iterator[Sample]:
    for reduction in REDUCTIONS:
        yield Sample((make.normal(5, 3), make.normal(5, 3), make.signs(5)), {"reduction": reduction})
        options = {"reduction": reduction, "margin": -0.2}
        yield Sample((make.normal(3, 4), make.normal(1, 4), make.signs(3)), options, "broadcast")
    yield Sample((make.normal(2, 131), make.normal(2, 131), make.signs(2)), name="long vectors")
    yield Sample((make.normal(3, 1), make.normal(3, 4), make.signs(1)), name="one number for a vector")
    yield Sample((make.normal(4), make.normal(4), make.signs()), name="one pair")
    target = torch.tensor([1, -1, 0, 2], dtype=torch.int32, device=make.device)
    yield Sample((make.normal(4, 3), make.normal(4, 3), target), {"reduction": "none"}, "other targets")
    yield Sample((make.normal(0, 3), make.normal(0, 3), make.signs(0)), {"reduction": "sum"}, "empty")
    x = make.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0], [3.0, 4.0], [1e4, 1e4], [1e-8, 0.0]])
    y = make.tensor([[0.0, 0.0], [3.0, 4.0], [4.0, 3.0], [-4.0, 3.0], [-1e4, 1e4], [1e-8, 1e-8]])
    signs = make.constant(make.tensor([1.0, -1.0, -1.0, -1.0, -1.0, 1.0]))
    yield Sample((x, y, signs), {"reduction": "none"}, name="kinks", smooth=False)


def triplet_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "triplet_margin_loss"
    x = make.normal(2, 3)
    yield from refused(op, x, x, x, input="anchor")
    message = f"{op}: expected negative of the rank of anchor, got \\[2, 3\\] and \\[3\\]"
    yield ErrorSample((x, x, make.normal(3)), message)
    message = f"{op}: expected positive that broadcasts with anchor, got \\[2, 3\\] and \\[2, 4\\]"
    yield ErrorSample((x, make.normal(2, 4), x), message)
    yield from outside(op, (x, x, x), "margin > 0", "margin", 0.0, -1.0)
    for option in ("p", "eps"):
        yield from outside(op, (x, x, x), f"{option} that is a number", option)


def triplet_soft_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "triplet_soft_margin_loss"
    x = make.normal(2, 3)
    yield from refused(op, x, x, x, input="anchor")
    message = f"{op}: expected negative of the shape of anchor, got \\[2, 3\\] and \\[1, 3\\]"
    yield ErrorSample((x, x, make.normal(1, 3)), message)


def cosine_errors(make: Maker) -> Iterator[ErrorSample]:
    op = "cosine_embedding_loss"
    x, t = make.normal(2, 3), make.signs(2)
    yield from refused(op, x, x, t, input="input1")
    yield ErrorSample((x, make.normal(3), t), f"{op}: expected input2 of the rank of input1, got")
    message = f"{op}: expected target of shape \\[N\\] for input1 of shape \\[N, D\\], or of \\[\\] for \\[D\\], got"
    yield ErrorSample((x, x, make.signs()), f"{message} \\[\\] and \\[2, 3\\]")
    yield ErrorSample((x, x, make.signs(3)), f"{message} \\[3\\] and \\[2, 3\\]")
    yield ErrorSample((make.normal(2, 2, 3), make.normal(2, 2, 3), make.signs(2, 2)), message)
    yield from outside(op, (x, x, t), "margin that is a number", "margin")


# Vectors of 128 numbers, as embeddings have.
WORKLOAD = {"small": (8, 8), "usual": (2048, 128), "large": (65536, 128), "huge": (2**21, 128)}


def triplet_workload(make: Maker, size: str) -> Iterator[Sample]:
    yield Sample(vectors(make, *WORKLOAD[size]))


def cosine_workload(make: Maker, size: str) -> Iterator[Sample]:
    shape = WORKLOAD[size]
    yield Sample((make.normal(*shape), make.normal(*shape), make.signs(shape[0])))


register(
    native(
        F.triplet_margin_loss,
        source="swap: Balntas et al., BMVC 2016",
        reference=triplet_margin_loss,
        shape=meta.vectors("anchor", "positive", "negative", broadcasts=True),
        samples=triplet_samples,
        errors=triplet_errors,
        state=meta.per_group(6),
        workload=triplet_workload,
    )
)
register(
    Op(
        "triplet_soft_margin_loss",
        reference=triplet_soft_margin_loss,
        shape=meta.vectors("anchor", "positive", "negative"),
        samples=triplet_soft_samples,
        errors=triplet_soft_errors,
        source="Hermans et al., arXiv 1703.07737",
        state=meta.per_group(2),
        workload=triplet_workload,
    )
)
register(
    native(
        F.cosine_embedding_loss,
        reference=cosine_embedding_loss,
        shape=meta.typed_by(
            "input1", "input2", rule=meta.vectors("input1", "input2", target="target", broadcasts=True)
        ),
        samples=cosine_samples,
        errors=cosine_errors,
        state=meta.per_group(3),
        workload=cosine_workload,
    )
)
