"""Classification losses over a class dimension: negative log likelihood, cross entropy and its relatives."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments
from ..meta.sizes import fail
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, int64_target, native, outside, reduce
from ._rows import class_errors, extreme_rows, number_of_valid, row_errors, row_samples, weight_of_valid


def nll_loss(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str) -> Tensor:
    """Negative log likelihood of class indices, from log-probabilities.

    Behind a ``log_softmax`` of one's own; from logits, ``cross_entropy`` does both in one pass.

    Args:
        input: log-probabilities (C), or (N, C, d1 … dk).
        target: class indices in [0, C), () or (N, d1 … dk); int64, int32 or uint8.
        weight: a factor for each class, (C). A constant.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``. The mean divides by the sum of the valid targets'
        weights: NaN where all are ignored.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; a weight that requires grad; on the CPU a class index out of
            range (on a GPU it gives NaN at its place).

    Formula:
        −w_y·x_y

    Example:
        >>> log_p = torch.log_softmax(torch.randn(8, 5, requires_grad=True), 1)
        >>> target = torch.randint(0, 5, (8,))  # a class index a row
        >>> opreg.functional.nll_loss(log_p, target).backward()
    """
    if input.dim() == 1:
        target = target.reshape(())
    return F.nll_loss(input, target.long(), weight, ignore_index=ignore_index, reduction=reduction)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> Tensor:
    """Cross entropy of logits with class indices or class probabilities.

    For classes that exclude each other: classification, segmentation, language models. ``softcap`` and ``z_loss`` keep
    the logits of large models small; without them it is torch's function, at the same speed.

    Args:
        input: logits (C), or (N, C, d1 … dk).
        target: class indices in [0, C), () or (N, d1 … dk), int64, int32 or uint8; or probabilities of the shape of
            ``input``.
        weight: a factor for each class, (C). A constant for class indices, differentiated for probabilities.
        ignore_index: the class index whose positions add nothing to the loss; any integer, beside probabilities a
            negative one, which is no class.
        label_smoothing: share of the target's mass that is spread over all classes, in [0, 1].
        softcap: c, finite, at least 0; above 0 the logits are c·tanh(x/c) before all else, as in Gemma 2.
        z_loss: λ, finite, at least 0; each position that is not ignored adds λ·lse², without class weight, as in PaLM.

    Returns:
        0-d, or of the shape of class indices with reduction ``"none"``. For class indices the mean divides by the sum
        of the valid targets' weights: NaN where all are ignored. For probabilities it divides by the number of rows.
        What z_loss adds it divides by the number of positions that are not ignored, whatever their weights.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; label_smoothing outside [0, 1], softcap or z_loss negative or
            not finite; an ignore_index >= 0 beside probabilities, a weight that requires grad beside class indices; on
            the CPU a class index out of range (on a GPU it gives NaN at its place).

    Formula:
        −Σ_c w_c·q_c·log softmax(z)_c + λ·lse², q = (1 − s)·onehot(y) + s/C, s = label_smoothing; z = c·tanh(x/c), or x
        without a softcap, lse = log Σ_c exp(z_c)

    Example:
        >>> input = torch.randn(8, 5, requires_grad=True)
        >>> target = torch.randint(0, 5, (8,))  # a class index a row
        >>> opreg.functional.cross_entropy(input, target, label_smoothing=0.1).backward()
        >>> target = torch.randn(8, 5).softmax(1)  # or probabilities
        >>> opreg.functional.cross_entropy(input, target).backward()
    """
    return bounded(plain_cross_entropy)(
        input=input,
        target=target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
        softcap=softcap,
        z_loss=z_loss,
    )


def plain_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, label_smoothing: float
) -> Tensor:
    # written out: F.cross_entropy with label smoothing writes in place, which run_decompositions refuses
    axis = class_axis(input)
    classes = input.shape[axis]
    log_p = F.log_softmax(input, axis)
    weighted = log_p if weight is None else log_p * along_classes(weight, input)
    if target.is_floating_point():
        require_no_index("cross_entropy", ignore_index)
        smoothed = target * (1 - label_smoothing) + label_smoothing / classes
        return reduce(-(weighted * smoothed).sum(axis), reduction)
    nll = nll_loss(log_p, target, weight, ignore_index, "none")
    if label_smoothing > 0:
        target = target.reshape(nll.shape)
        spread = torch.where(target == ignore_index, 0.0, -weighted.sum(axis))
        nll = (1 - label_smoothing) * nll + label_smoothing / classes * spread
    return nll.sum() / entries(weight, target, ignore_index).sum() if reduction == "mean" else reduce(nll, reduction)


def bounded(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A cross entropy with softcap and z_loss, of one without."""

    def of_bounded(*, input: Tensor, softcap: float, z_loss: float, **args: Any) -> Tensor:
        logits = capped(input, softcap)
        value = loss(input=logits, **args)
        if not z_loss:
            return value
        return value + z_losses(logits, args["target"], args["ignore_index"], args["reduction"], z_loss)

    return of_bounded


def capped(scores: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(scores / softcap) if softcap > 0 else scores


def z_losses(logits: Tensor, target: Tensor, ignore_index: int, reduction: str, z_loss: float) -> Tensor:
    """z_loss·lse² of each position, reduced; 0 where the position is ignored."""
    losses = z_loss * torch.logsumexp(logits, class_axis(logits)).square()
    if target.is_floating_point():
        return reduce(losses, reduction)
    target = target.reshape(losses.shape)  # of one row it may have shape (1)
    return reduce_valid(torch.where(target != ignore_index, losses, 0.0), target, ignore_index, reduction)


def entries(weight: Tensor | None, target: Tensor, ignore_index: int) -> Tensor:
    """The class weight of each position, 0 where it is ignored; without weights, is it not ignored?"""
    valid = target != ignore_index
    return valid if weight is None else torch.where(valid, weight[torch.where(valid, target, 0).long()], 0.0)


def class_axis(input: Tensor) -> int:
    return min(1, input.dim() - 1)


def along_classes(entries: Tensor, input: Tensor) -> Tensor:
    """One entry a class, so that it broadcasts with the scores."""
    axis = class_axis(input)
    return entries.view([-1 if d == axis else 1 for d in range(input.dim())])


def reduce_valid(loss: Tensor, target: Tensor, ignore_index: int, reduction: str) -> Tensor:
    """``reduce`` with the mean over the positions that are not ignored, whose loss is 0."""
    return loss.sum() / (target != ignore_index).sum() if reduction == "mean" else reduce(loss, reduction)


def softmax_focal_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, gamma: float, ignore_index: int, reduction: str
) -> Tensor:
    """Cross entropy that fades where the model is right already.

    For classes of very different frequency, as in dense prediction: the many easy positions no longer outweigh the few
    hard ones.

    Args:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        weight: a factor for each class, (C); a constant.
        gamma: how fast it fades, >= 0. 0 is cross entropy.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored (their number, not their weights) or
            ``"sum"``.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype of ``input``.

    Raises:
        RuntimeError: shapes or dtypes do not fit, gamma < 0, or on the CPU a class index is out of range (on a GPU its
            position is NaN).

    Formula:
        −w_y·(1 − p_y)^γ·log p_y, p = softmax(x)

    Example:
        >>> logits, labels = torch.randn(8, 19, 64, 64), torch.randint(0, 19, (8, 64, 64))
        >>> loss = opreg.functional.softmax_focal_loss(logits, labels, gamma=2.0, ignore_index=255)
    """
    log_p = F.log_softmax(input, class_axis(input))
    nll = nll_loss(log_p, target, None, ignore_index, "none")
    # 1 − p_y by expm1, which keeps its digits near 0
    miss = -torch.expm1(-nll)
    # the power's derivative at 0 is infinite for gamma < 1: there the gradient is 0
    power = torch.where(miss > 0, torch.where(miss > 0, miss, 1.0) ** gamma, float(gamma == 0))
    loss = power * nll_loss(log_p, target, weight, ignore_index, "none")
    return reduce_valid(loss, target, ignore_index, reduction)


def pc_softmax_cross_entropy(
    input: Tensor, target: Tensor, class_prior: Tensor, ignore_index: int, reduction: str
) -> Tensor:
    """Cross entropy whose softmax knows how frequent the classes are: each class counts by its prior.

    For imbalanced data sets: what the logits learn is what the prior does not say already, so that at test time their
    plain softmax treats the classes alike.

    Args:
        input: logits, (C) or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        class_prior: the frequency of each class, (C), > 0; a constant. It need not sum to 1.
        reduction: ``"none"``, ``"mean"`` over the positions that are not ignored or ``"sum"``.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``; of the dtype that ``input`` and ``class_prior``
        promote to. It may be negative.

    Raises:
        RuntimeError: shapes or dtypes do not fit, or on the CPU a prior is not positive or a class index out of range
            (on a GPU what depends on it is NaN).

    Formula:
        −x_y + log Σ_c π_c·e^(x_c)

    Example:
        >>> logits, labels = torch.randn(32, 10), torch.randint(0, 10, (32,))
        >>> counts = torch.bincount(labels, minlength=10).clamp(min=1)
        >>> loss = opreg.functional.pc_softmax_cross_entropy(logits, labels, counts / counts.sum())
    """
    axis = class_axis(input)
    target = target.reshape(()) if input.dim() == 1 else target
    valid = target != ignore_index
    log_prior = torch.where(class_prior > 0, class_prior, torch.nan).log()
    # the loss does not depend on the scores' origin, but its digits do; a row of infinities has no finite highest score
    highest = input.detach().amax(axis, keepdim=True)
    scores = input - torch.where(highest.isfinite(), highest, 0.0)
    lse = torch.logsumexp(scores + along_classes(log_prior, input), axis)
    score = scores.gather(axis, torch.where(valid, target, 0).long().unsqueeze(axis)).squeeze(axis)
    return reduce_valid(torch.where(valid, lse - score, 0.0), target, ignore_index, reduction)


def poly1_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    epsilon: float,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    """PolyLoss: cross entropy whose first polynomial term, 1 − p, counts more, or less.

    Cross entropy is Σ_k (1 − p)^k / k. To change the weight of its first term is one number to tune; epsilon > 0 suits
    balanced classes, a negative one those where the loss makes the model too sure.

    Args:
        input: logits (C), or (N, C, d1 … dk).
        target: class indices in [0, C), int64, int32 or uint8; () or (N, d1 … dk).
        weight: a factor for each class, (C); a constant.
        epsilon: what the weight of 1 − p is raised by, any finite number; 0 is cross entropy.
        label_smoothing: share of the target's mass that is spread over all classes, in [0, 1], in the cross entropy
            alone.

    Returns:
        0-d, or of the shape of ``target`` with reduction ``"none"``. The mean divides by the sum of the valid targets'
        weights: NaN where all are ignored.

    Raises:
        RuntimeError: shapes or dtypes that do not fit; an epsilon that is not finite, label_smoothing outside [0, 1];
            a weight that requires grad; on the CPU a class index out of range (on a GPU it gives NaN at its place).

    Formula:
        cross_entropy(x, y) + ε·w_y·(1 − p_y), p = softmax(x)

    Example:
        >>> input = torch.randn(8, 5, requires_grad=True)
        >>> target = torch.randint(0, 5, (8,))  # a class index a row
        >>> opreg.functional.poly1_cross_entropy(input, target, epsilon=2.0).backward()
    """
    log_p = F.log_softmax(input, class_axis(input))
    loss = plain_cross_entropy(input, target, weight, ignore_index, "none", label_smoothing)
    # 1 − p_y by expm1, which keeps its digits near 0
    miss = -torch.expm1(-nll_loss(log_p, target, None, ignore_index, "none"))
    counted = entries(weight, target.reshape(miss.shape), ignore_index)
    loss = loss + epsilon * (counted * miss)
    return loss.sum() / counted.sum() if reduction == "mean" else reduce(loss, reduction)


def nll_samples(make: Maker) -> Iterator[Sample]:
    return row_samples(make, make.normal, weight=True)


def cross_entropy_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, make.normal, weight=True)
    for smoothing in (0.1, 1.0):
        yield from row_samples(make, make.normal, weight=True, label_smoothing=smoothing)
        for reduction in REDUCTIONS:
            options = {"label_smoothing": smoothing - 0.1, "reduction": reduction}
            yield Sample((make.normal(4, 6), make.uniform(4, 6)), options, "probabilities")
            weight = make.constant(make.uniform(3, low=0.1))
            yield Sample((make.normal(2, 3, 5), make.uniform(2, 3, 5), weight), options, "probabilities, weight")
    yield Sample((make.normal(3, 130), make.uniform(3, 130)), name="probabilities of many classes")
    yield Sample((make.normal(5), make.uniform(5)), name="unbatched probabilities")
    yield Sample((extreme_rows(make), make.index(3, 4)), {"reduction": "none"}, name="extremes", smooth=False)
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "softcap": 2.0, "z_loss": 0.1}
        weight = make.constant(make.uniform(7, low=0.1))
        x, t = make.normal(3, 7, 4, scale=3), make.index(7, 3, 4, ignore=-100)
        yield Sample((x, t, weight), options, "bounded, weight, ignored")
        yield Sample((make.normal(4, 6), make.uniform(4, 6), make.uniform(6)), options, "bounded probabilities")
    options = {"label_smoothing": 0.1, "softcap": 3.0}
    yield Sample((make.normal(3, 130, scale=3), make.index(130, 3, ignore=-100)), options, "capped, many classes")
    options = {"reduction": "sum", "z_loss": 0.01}
    yield Sample((make.normal(2, 3, 5), make.index(3, 2, 5, ignore=-100)), options, "z_loss")
    options = {"reduction": "none", "softcap": 30.0, "z_loss": 1e-4}
    yield Sample((extreme_rows(make), make.index(3, 4)), options, "extremes", smooth=False)


def focal_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, make.normal)
    for gamma in (0.0, 0.5, 1.0, 3.7):
        weight = make.constant(make.uniform(7, low=0.1))
        x, t = make.normal(3, 7, 4, scale=3), make.index(7, 3, 4, ignore=-100)
        yield Sample((x, t, weight), {"gamma": gamma}, "weight, ignored")
        yield Sample(
            (extreme_rows(make), make.index(3, 4)), {"gamma": gamma, "reduction": "none"}, "extremes", smooth=False
        )


def poly1_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, make.normal, weight=True)
    for epsilon, smoothing in ((-1.0, 0.1), (2.5, 1.0), (0.0, 0.0)):
        weight = make.constant(make.uniform(7, low=0.1))
        x, t = make.normal(3, 7, 4, scale=3), make.index(7, 3, 4, ignore=-100)
        options = {"epsilon": epsilon, "label_smoothing": smoothing}
        yield Sample((x, t, weight), options, "weight, ignored")
        yield Sample((make.normal(3, 130), make.index(130, 3)), {**options, "reduction": "none"}, "many classes")
    yield Sample((extreme_rows(make), make.index(3, 4)), {"reduction": "none"}, name="extremes", smooth=False)


def pc_samples(make: Maker) -> Iterator[Sample]:
    yield from row_samples(make, make.normal, prior=True)
    prior = make.constant(make.tensor([1e-6, 0.25, 0.75]))
    yield Sample((extreme_rows(make), make.index(3, 4), prior), {"reduction": "none"}, "extremes", smooth=False)


def nll_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from row_errors("nll_loss", make)
    yield from class_errors("nll_loss", "weight", make)
    x = make.normal(4, 3)
    yield ErrorSample((x, make.uniform(4, 3)), "nll_loss: expected target of dtype int64, int32 or uint8, got float")


native_cross_entropy = bounded(int64_target(F.cross_entropy))

# of a target that holds indices or probabilities
_either = meta.rows("input", "target", weight="weight", probabilities=True)


def require_no_index(op: str, ignore_index: int) -> None:
    """No position is ignored beside class probabilities: torch refuses an index that is a class there."""
    if ignore_index >= 0:
        raise fail(op, "ignore_index < 0 beside class probabilities", ignore_index)


def cross_entropy_shape(op: str, args: Arguments) -> Sequence[int]:
    shape = _either(op, args)
    if args["target"].is_floating_point():
        require_no_index(op, args["ignore_index"])
    return shape


def cross_entropy_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from row_errors("cross_entropy", make)
    yield from class_errors("cross_entropy", "weight", make)
    x, t = make.normal(4, 3), make.index(3, 4)
    message = "cross_entropy: expected target of the shape of input, got \\[4, 3\\] and \\[4\\]"
    yield ErrorSample((x, make.uniform(4)), message)
    for index in (0, 1, 7):
        message = f"cross_entropy: expected ignore_index < 0 beside class probabilities, got {index}"
        yield ErrorSample((x, make.uniform(4, 3)), message, {"ignore_index": index})
    yield from outside("cross_entropy", (x, t), "label_smoothing in \\[0, 1\\]", "label_smoothing", -0.1, 1.5)
    yield from bound_errors("cross_entropy", x, t)


def bound_errors(op: str, *args: Tensor) -> Iterator[ErrorSample]:
    for option in ("softcap", "z_loss"):
        yield from outside(op, args, f"a finite {option} >= 0", option, -0.5, math.inf)


def focal_errors(make: Maker) -> Iterator[ErrorSample]:
    yield from row_errors("softmax_focal_loss", make)
    yield from class_errors("softmax_focal_loss", "weight", make)
    call = make.normal(4, 3), make.index(3, 4)
    yield from outside("softmax_focal_loss", call, "finite gamma >= 0", "gamma", -0.1, math.inf)


def poly1_errors(make: Maker) -> Iterator[ErrorSample]:
    op, call = "poly1_cross_entropy", (make.normal(4, 3), make.index(3, 4))
    yield from row_errors(op, make)
    yield from class_errors(op, "weight", make)
    message = f"{op}: expected target of dtype int64, int32 or uint8, got float"
    yield ErrorSample((call[0], make.uniform(4, 3)), message)
    yield from outside(op, call, "a finite epsilon", "epsilon", math.inf, -math.inf)
    yield from outside(op, call, "label_smoothing in \\[0, 1\\]", "label_smoothing", -0.1, 1.5)


def pc_errors(make: Maker) -> Iterator[ErrorSample]:
    prior = make.constant(make.uniform(3, low=0.1))
    yield from row_errors("pc_softmax_cross_entropy", make, prior)
    yield from class_errors("pc_softmax_cross_entropy", "class_prior", make)
    x, t = make.normal(4, 3), make.index(3, 4)
    for value in (0.0, -1.0, float("nan")):
        message = "pc_softmax_cross_entropy: expected class_prior > 0, got"
        yield ErrorSample((x, t, torch.where(prior == prior[1], value, prior)), message, values=True)


def counted_twice(args: Mapping[str, Any]) -> str:
    """Why a mean is no sum over what one number counts."""
    mean_by_weight = (
        args["reduction"] == "mean" and args["weight"] is not None and not args["target"].is_floating_point()
    )
    return "its mean divides the z-loss by another number than the rest" if args["z_loss"] and mean_by_weight else ""


def constants(args: Mapping[str, Any]) -> tuple[str, ...]:
    """torch differentiates the class weights beside class probabilities alone."""
    return () if args["target"].is_floating_point() else ("weight",)


register(
    native(
        F.nll_loss,
        called=int64_target(F.nll_loss),
        aten=("nll_loss_nd.default", "nll_loss.default"),
        reference=nll_loss,
        shape=meta.rows("input", "target", weight="weight"),
        samples=nll_samples,
        errors=nll_errors,
        module="NLLLoss",
        indices=("target",),
        count=weight_of_valid,
        state=meta.per_row(0),
    )
)
register(
    native(
        F.cross_entropy,
        called=native_cross_entropy,
        aten=("cross_entropy_loss.default",),
        reference=cross_entropy,
        shape=replace(_either, shape=cross_entropy_shape),
        samples=cross_entropy_samples,
        errors=cross_entropy_errors,
        source="softcap as in Gemma 2, arXiv 2408.00118; z_loss as in PaLM, arXiv 2204.02311",
        module="CrossEntropyLoss",
        indices=("target",),
        count=weight_of_valid,
        whole=counted_twice,
        constants=constants,
        state=meta.per_row(2),
    )
)
register(
    Op(
        "softmax_focal_loss",
        reference=softmax_focal_loss,
        shape=meta.rows("input", "target", weight="weight"),
        samples=focal_samples,
        errors=focal_errors,
        source="Lin et al., Focal loss for dense object detection, arXiv 1708.02002",
        indices=("target",),
        count=number_of_valid,
        state=meta.per_row(2),
    )
)
register(
    Op(
        "pc_softmax_cross_entropy",
        reference=pc_softmax_cross_entropy,
        shape=meta.rows("input", "target", weight="class_prior"),
        samples=pc_samples,
        errors=pc_errors,
        source="Liu et al., arXiv 1911.10688",
        module="PCSoftmaxCrossEntropyLoss",
        indices=("target",),
        count=number_of_valid,
        batch_dims={"class_prior": None},
        state=meta.per_row(2),
    )
)
register(
    Op(
        "poly1_cross_entropy",
        reference=poly1_cross_entropy,
        shape=meta.rows("input", "target", weight="weight"),
        samples=poly1_samples,
        errors=poly1_errors,
        source="Leng et al., PolyLoss, arXiv 2204.12511",
        module="PolyLoss",
        indices=("target",),
        count=weight_of_valid,
        state=meta.per_row(2),
    )
)
