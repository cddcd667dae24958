"""Losses of detectors, whose targets are qualities, heat maps or places, and of many labels: all of logits."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, loss_errors, outside, power, reduce, refused


def quality_focal_loss(input: Tensor, target: Tensor, beta: float, reduction: str) -> Tensor:
    """Binary cross entropy with a soft target, turned down where the score is near it already.

    For detectors whose classification score is to be the quality of the box, its IoU with the true one. The gradient
    goes through the factor too.

    Args:
        input: logits, any shape.
        target: the quality, in [0, 1], of the shape of ``input``: 0 for every class but that of the object.
        beta: how strongly; >= 0, and 0 is cross entropy.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, beta < 0.

    Formula:
        |y − σ(x)|^β·bce(x, y); where y = σ(x) the factor has no gradient

    Example:
        >>> scores, quality = torch.randn(8, 5, requires_grad=True), torch.zeros(8, 5)
        >>> quality[torch.arange(8), torch.randint(0, 5, (8,))] = torch.rand(8)  # the box's IoU, at the object's class
        >>> opreg.functional.quality_focal_loss(scores, quality, reduction="sum").backward()
    """
    cross_entropy = F.binary_cross_entropy_with_logits(input, target, reduction="none")
    # σ(x) − y without a difference of two numbers near 1
    apart = torch.sigmoid(input) * (1 - target) - target * torch.sigmoid(-input)
    return reduce(power(apart.abs(), beta) * cross_entropy, reduction)


def varifocal_loss(input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    """Cross entropy weighted by the quality for positives, focal for negatives: only these are turned down.

    For dense detectors whose score is to rank boxes by IoU.

    Args:
        input: logits, any shape.
        target: the quality, in [0, 1], of the shape of ``input``; 0 is a negative.
        alpha: weight of the negatives; >= 0.
        gamma: how strongly easy negatives are turned down; >= 0.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, alpha < 0, gamma < 0.

    Formula:
        y·bce(x, y) where y > 0, else α·σ(x)^γ·bce(x, 0), differentiated through the weight too; no gradient in y from
        one to the other

    Example:
        >>> scores, quality = torch.randn(8, 5, requires_grad=True), torch.zeros(8, 5)
        >>> quality[torch.arange(8), torch.randint(0, 5, (8,))] = torch.rand(8)  # the box's IoU, at the object's class
        >>> opreg.functional.varifocal_loss(scores, quality, reduction="sum").backward()
    """
    positive = target * F.binary_cross_entropy_with_logits(input, target, reduction="none")
    negative = alpha * power(torch.sigmoid(input), gamma) * -F.logsigmoid(-input)
    return reduce(torch.where(target > 0, positive, negative), reduction)


def gaussian_focal_loss(input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    """Focal loss of a heat map: near a peak, what is no peak counts little.

    For detectors by key points (CornerNet, CenterNet): the target is a Gaussian bump at each object, exactly 1 at its
    centre.

    Args:
        input: logits, any shape.
        target: the heat, in [0, 1], of the shape of ``input``; 1 is a positive, anything else a negative.
        alpha: how strongly what is easy is turned down; >= 0.
        gamma: how strongly what is near a peak is turned down; >= 0.

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, alpha < 0, gamma < 0.

    Formula:
        −(1 − p)^α·log p where y = 1, else −(1 − y)^γ·p^α·log(1 − p), p = σ(x); no gradient in y from one to the other

    Example:
        >>> heat, target = torch.randn(2, 1, 8, 8, requires_grad=True), torch.rand(2, 1, 8, 8)
        >>> target[..., 4, 4] = 1  # the centre of an object
        >>> opreg.functional.gaussian_focal_loss(heat, target, reduction="sum").backward()
    """
    peak = -power(torch.sigmoid(-input), alpha) * F.logsigmoid(input)
    rest = -power(1 - target, gamma) * power(torch.sigmoid(input), alpha) * F.logsigmoid(-input)
    return reduce(torch.where(target == 1, peak, rest), reduction)


def asymmetric_loss(
    input: Tensor, target: Tensor, gamma_neg: float, gamma_pos: float, clip: float, reduction: str
) -> Tensor:
    """Focal loss with another power for negatives than for positives, which leaves out the easiest negatives.

    For many labels an image, most of them absent.

    Args:
        input: logits, any shape.
        target: in [0, 1], of the shape of ``input``; any real dtype.
        gamma_neg: how strongly easy negatives are turned down; >= 0.
        gamma_pos: the same for positives; >= 0.
        clip: a negative of a probability below it counts nothing; in [0, 1).

    Returns:
        0-d, or of the shape of ``input`` with reduction ``"none"``.

    Raises:
        RuntimeError: a target of another shape, a gamma < 0, a clip outside of [0, 1).

    Formula:
        −y·(1 − p)^γ₊·log p − (1 − y)·m^γ₋·log(1 − m), p = σ(x), m = max(p − clip, 0), differentiated through the
        weights too

    Example:
        >>> scores = torch.randn(4, 80, requires_grad=True)
        >>> labels = (torch.rand(4, 80) < 0.05).float()  # any number of labels a row
        >>> opreg.functional.asymmetric_loss(scores, labels).backward()
    """
    p, q = torch.sigmoid(input), torch.sigmoid(-input)
    positive = -power(q, gamma_pos) * F.logsigmoid(input)
    m = (p - clip).clamp(min=0)
    if clip == 0:
        log_rest = F.logsigmoid(-input)
    else:
        # 1 − m: of what is left of 1 where that is little, else of m
        log_rest = torch.where(m > 0.5, torch.log(q + clip), torch.log1p(-torch.where(m > 0.5, 0.0, m)))
    return reduce(target * positive - (1 - target) * power(m, gamma_neg) * log_rest, reduction)


def distribution_focal_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """Cross entropy of a place between two bins: of both, by how near each is.

    For detectors that give each side of a box a distribution over distances in place of one number.

    Args:
        input: logits of R >= 2 bins, (…, R).
        target: the place among the bins, (…), in [0, R − 1]: 2.25 is a quarter of the way from bin 2 to bin 3.
            Differentiable; at a bin, towards the next one.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``.

    Raises:
        RuntimeError: shapes that do not fit, fewer than two bins; on the CPU a place that is out of range (on a GPU its
            loss and gradient are NaN).

    Formula:
        (l + 1 − y)·nll_l + (y − l)·nll_{l+1}, l = min(⌊y⌋, R − 2), nll = −log softmax(x)

    Example:
        >>> input = torch.randn(8, 4, 16, requires_grad=True)  # a box's four distances, sixteen bins each
        >>> distances = 15 * torch.rand(8, 4)  # in widths of a bin
        >>> opreg.functional.distribution_focal_loss(input, distances).backward()
    """
    bins = input.shape[-1]
    known = (target >= 0) & (target <= bins - 1)
    place = torch.where(known, target, 0.0).detach().floor().clamp(max=bins - 2)
    left = place.long().unsqueeze(-1)
    nll = -F.log_softmax(input, -1)
    share = torch.where(known, target - place, torch.nan)
    of_left, of_right = (nll.gather(-1, at).squeeze(-1) for at in (left, left + 1))
    return reduce((1 - share) * of_left + share * of_right, reduction)


def zlpr_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """One loss for any number of labels a row: every positive class is to score above 0, every other below.

    In place of a binary cross entropy for each class: the classes of a row are compared with each other, so that their
    number, and how few of them are positive, matters less.

    Args:
        input: logits (…, C); the last dimension holds the classes.
        target: which classes are positive, those where it is above ½; of the shape of ``input``, any dtype. A constant.

    Returns:
        0-d, or (…) with reduction ``"none"``; of the dtype of ``input``.

    Raises:
        RuntimeError: a target of another shape.

    Formula:
        log(1 + Σ_{c: y_c > ½} e^(−x_c)) + log(1 + Σ_{c: y_c ≤ ½} e^(x_c))

    Example:
        >>> scores = torch.randn(4, 80, requires_grad=True)
        >>> labels = torch.rand(4, 80) < 0.05  # any number of labels a row
        >>> opreg.functional.zlpr_loss(scores, labels).backward()
    """
    positive = target > 0.5
    x = input.unsqueeze(-1) if input.dim() == 0 else input
    positive = positive.reshape(x.shape)
    zero = x.new_zeros(()).expand(*x.shape[:-1], 1)

    def one_and(scores: Tensor, counted: Tensor) -> Tensor:
        """log(1 + Σ e^score) of those that count."""
        return torch.cat([zero, torch.where(counted, scores, -torch.inf)], -1).logsumexp(-1)

    return reduce(one_and(-x, positive) + one_and(x, ~positive), reduction)


def samples(make: Maker, *options: dict[str, Any], labels: bool = False) -> Iterator[Sample]:
    """``labels``: whether a target usually says yes or no, as in the benchmark, which draws from the first sample."""

    def quality(*shape: int) -> Tensor:
        """Half of it 0 or 1, as most targets are, and no kink of the losses."""
        hard: Tensor = make.bits(*shape)
        return make.constant(torch.where(make.uniform(*shape) < 0.5, hard, make.uniform(*shape, low=0.02, high=0.98)))

    for reduction in REDUCTIONS:
        yield Sample((make.normal(3, 5), (make.bits if labels else quality)(3, 5)), {"reduction": reduction})
    inside = {"low": 0.02, "high": 0.98}
    for each in ({}, *options):
        yield Sample((make.normal(4, 3), make.uniform(4, 3, **inside)), each, "soft targets")
        yield Sample((make.normal(4, 3), quality(4, 3)), each)
    yield Sample((make.normal(), make.uniform(**inside)))
    yield Sample((make.normal(0, 3), make.uniform(0, 3)), {"reduction": "sum"})
    x = make.tensor([0.0, 0.0, 80.0, -80.0, 80.0, -80.0, 1e4, -1e4, 1e4, 0.0])
    t = make.tensor([0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.5])
    for each in ({}, *options):
        yield Sample((x, make.constant(t)), {"reduction": "none", **each}, name="extremes", smooth=False)


def errors(op: str, *domains: tuple[str, str, float], make: Maker) -> Iterator[ErrorSample]:
    yield from loss_errors(op, make)
    x, t = make.normal(2, 3), make.uniform(2, 3)
    yield ErrorSample((x, make.uniform(3)), f"{op}: expected target of the shape of input, got \\[2, 3\\] and \\[3\\]")
    for domain, option, value in domains:
        yield from outside(op, (x, t), domain, option, value)


def bin_samples(make: Maker) -> Iterator[Sample]:
    def call(*shape: int, **options: Any) -> tuple[Tensor, Tensor]:
        """No place is a bin, where the slope changes."""
        bins = shape[-1]
        place = make.index(bins - 1, *shape[:-1]) + make.uniform(*shape[:-1], low=0.05, high=0.95)
        return make.normal(*shape), place.detach().requires_grad_(make.requires_grad)

    for reduction in REDUCTIONS:
        yield Sample(call(5, 4), {"reduction": reduction})
        yield Sample(call(2, 3, 17), {"reduction": reduction}, "boxes")
    yield Sample(call(3, 4, 16), name="sixteen bins")
    yield Sample(call(2), name="unbatched, two bins")
    yield Sample(call(3, 130), {"reduction": "sum"}, "many bins")
    x, y = call(4, 6)
    yield Sample((x, make.constant(y)), name="constant places")
    yield Sample((make.normal(0, 4), make.uniform(0)), {"reduction": "sum"}, "empty")
    places = make.tensor([0.0, 1.0, 2.0, 2.0, 0.5, 1.5])
    x = make.normal(6, 3)
    yield Sample((x, places), {"reduction": "none"}, "kinks", smooth=False)
    x = make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4], [9999.0, 1e4, 9998.0]] * 2)
    places = make.tensor([0.25, 0.5, 1.75, 1.0, 2.0, 0.0, 1.5, 0.75])
    yield Sample((x, places), {"reduction": "none"}, name="extremes", smooth=False)


def bin_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x, y = "distribution_focal_loss", make.normal(4, 3), make.constant(make.uniform(4))
    yield from refused(op, x, y)
    for few in (make.normal(4, 1), make.normal(4, 0), make.normal()):
        shape = str(list(few.shape)).replace("[", "\\[").replace("]", "\\]")
        yield ErrorSample((few, y), f"{op}: expected input of at least two classes, got {shape}")
    message = f"{op}: expected target of shape \\[4\\] for input of shape \\[4, 3\\], got \\["
    yield ErrorSample((x, make.constant(make.uniform(3))), message + "3\\]")
    yield ErrorSample((x, make.constant(make.uniform(4, 1))), message + "4, 1\\]")
    for value, text in ((-0.5, "-0.5"), (2.5, "2.5"), (torch.nan, "-?nan")):
        place = torch.where(y == y[1], value, y)
        yield ErrorSample((x, place), f"{op}: expected target in \\[0, 2\\], got {text}", values=True)


def label_samples(make: Maker) -> Iterator[Sample]:
    def labels(*shape: int) -> Tensor:
        return make.constant(make.bits(*shape))

    for reduction in REDUCTIONS:
        yield Sample((make.normal(5, 7), labels(5, 7)), {"reduction": reduction})
        yield Sample((make.normal(2, 3, 20, scale=3), labels(2, 3, 20)), {"reduction": reduction}, "positions")
    yield Sample((make.normal(4, 6), make.constant(make.uniform(4, 6))), name="soft targets")
    yield Sample((make.normal(4, 6), labels(4, 6).bool()), name="bool")
    yield Sample((make.normal(4, 6), labels(4, 6).long()), name="int64")
    yield Sample((make.normal(5), labels(5)), name="unbatched")
    yield Sample((make.normal(), labels()), name="one class")
    yield Sample((make.normal(3, 130), labels(3, 130)), {"reduction": "sum"}, "many classes")
    yield Sample((make.normal(0, 4), labels(0, 4)), {"reduction": "sum"}, "empty")
    for value in (0.0, 1.0):
        target = make.constant(torch.full((3, 4), value, device=make.device))
        yield Sample((make.normal(3, 4), target), {"reduction": "none"}, "all alike")
    x = make.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 1e4], [40.0, -40.0, -40.0], [0.0, 0.0, 0.0]])
    t = make.constant(make.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.5, 0.0, 1.0]]))
    yield Sample((x, t), {"reduction": "none"}, name="extremes", smooth=False)


def label_errors(make: Maker) -> Iterator[ErrorSample]:
    op, x = "zlpr_loss", make.normal(4, 3)
    yield from refused(op, x, make.constant(make.bits(4, 3)))
    for shape in ((4,), (4, 4), (1, 3)):
        text = ", ".join(map(str, shape))
        message = f"{op}: expected target of the shape of input, got \\[4, 3\\] and \\[{text}\\]"
        yield ErrorSample((x, make.constant(make.bits(*shape))), message)


def declare(
    name: str, reference: Any, source: str, options: list[dict[str, Any]], *domains: Any, labels: bool = False
) -> None:
    register(
        Op(
            name,
            reference=reference,
            shape=meta.same("input", "target"),
            samples=lambda make: samples(make, *options, labels=labels),
            errors=lambda make: errors(name, *domains, make=make),
            source=source,
        )
    )


declare(
    "quality_focal_loss",
    quality_focal_loss,
    "Li et al., Generalized focal loss, arXiv 2006.04388",
    [{"beta": beta} for beta in (0.0, 0.5, 1.0, 3.7)],
    ("finite beta >= 0", "beta", -1.0),
)
declare(
    "varifocal_loss",
    varifocal_loss,
    "Zhang et al., VarifocalNet: an IoU-aware dense object detector, arXiv 2008.13367",
    [{"gamma": 0.0}, {"alpha": 0.3, "gamma": 0.5}, {"alpha": 2.0, "gamma": 3.7}],
    ("finite alpha >= 0", "alpha", -1.0),
    ("finite gamma >= 0", "gamma", -1.0),
)
declare(
    "gaussian_focal_loss",
    gaussian_focal_loss,
    "Law and Deng, CornerNet: detecting objects as paired keypoints, arXiv 1808.01244",
    [{"alpha": 0.0, "gamma": 0.0}, {"alpha": 0.5, "gamma": 1.5}, {"gamma": 2.0}],
    ("finite alpha >= 0", "alpha", -1.0),
    ("finite gamma >= 0", "gamma", -1.0),
)
declare(
    "asymmetric_loss",
    asymmetric_loss,
    "Ridnik et al., Asymmetric loss for multi-label classification, arXiv 2009.14119",
    [{"clip": 0.0}, {"gamma_neg": 0.0, "gamma_pos": 0.0}, {"gamma_neg": 2.5, "gamma_pos": 0.5, "clip": 0.3}],
    ("finite gamma_neg >= 0", "gamma_neg", -1.0),
    ("finite gamma_pos >= 0", "gamma_pos", -1.0),
    ("clip in \\[0, 1\\)", "clip", 1.0),
    labels=True,
)
register(
    Op(
        "distribution_focal_loss",
        reference=distribution_focal_loss,
        shape=meta.bins("input", "target"),
        samples=bin_samples,
        errors=bin_errors,
        source="Li et al., Generalized focal loss, arXiv 2006.04388",
        state=meta.per_group(4),
    )
)
register(
    Op(
        "zlpr_loss",
        reference=zlpr_loss,
        shape=meta.typed_by("input", rule=meta.vectors("input", "target")),
        samples=label_samples,
        errors=label_errors,
        source="Su et al., ZLPR, arXiv 2208.02955",
        state=meta.per_group(4),
        detached=("target",),
        module="ZLPRLoss",
    )
)
