"""Losses of a linear layer's scores, which are never held as a whole."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import meta
from ..meta.rules import Arguments, ShapeRule
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker
from ._common import REDUCTIONS, outside
from ._linear import (
    dims,
    drawn,
    errors_of_operands,
    extremes,
    flops_of_recomputation,
    flops_of_scores,
    scores_of,
    shape,
    workload,
)
from ._rows import weight_of_valid
from .categorical import bound_errors, capped, constants, counted_twice, cross_entropy, native_cross_entropy


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    softcap: float,
    z_loss: float,
) -> Tensor:
    """Cross entropy of a linear layer's scores, without ever holding the (N, C) scores.

    For large vocabularies and many classes, where the scores take more memory than the model: they exist for one chunk
    of rows at a time, and the gradients are computed in the same pass. The scores have the dtype of ``input``, as those
    of ``torch.nn.functional.linear``; losses and sums are float32 (float64). On CUDA, sums of bfloat16 products are
    rounded to bfloat16 after each chunk, of about max(1024, D) rows.

    Args:
        input: (N, D) or (D) features, or (..., D) with several leading dimensions, as a language model has them.
        linear_weight: (C, D), or (C, d1 … dk, D) for k-dimensional losses, one linear layer a place: beside an
            ``input`` of shape (N, D). Of the dtype of ``input``.
        target: class indices, int64, int32 or uint8, each in [0, C) or ``ignore_index``: of the shape of ``input``
            without its last dimension, then d1 … dk. Or class probabilities, floating: (C), (N, C, d1 … dk) or
            (..., C).
        linear_bias: of the shape of ``linear_weight`` without its last dimension, of the dtype of ``input``.
        weight: (C), a factor for each class, without gradient where the targets are class indices.
        ignore_index: the class index that does not count; none may be given beside class probabilities.
        reduction: ``"none"``, ``"mean"`` (over the rows that count, by weight) or ``"sum"``.
        label_smoothing: in [0, 1], the part of the target that all classes share evenly.
        softcap: c, finite, at least 0; above 0 the scores are c·tanh(scores/c) before all else, as in Gemma 2.
        z_loss: λ, finite, at least 0; each row that counts adds λ·lse², lse the log-sum-exp of its scores, without
            class weight, as in PaLM. The mean divides that part by the number of these rows.

    Returns:
        0-d, or of the shape of class indices with reduction ``"none"``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or an option or, on the CPU, a class index is out of range.

    Formula:
        cross_entropy(input @ linear_weight.T + linear_bias, target), with softcap and z_loss as there

    Example:
        >>> hidden, head = torch.randn(6, 8), torch.randn(100, 8)
        >>> target = torch.randint(100, (6,))  # one class index a row
        >>> loss = opreg.functional.linear_cross_entropy(hidden, head, target)
    """
    scores, leading = scores_of(input, linear_weight, linear_bias), input.shape[:-1]
    if len(leading) > 1:
        scores, target = scores.flatten(0, -2), target.flatten(0, len(leading) - 1)
    loss = cross_entropy(scores, target, weight, ignore_index, reduction, label_smoothing, softcap, z_loss)
    return loss.unflatten(0, leading) if reduction == "none" and len(leading) > 1 else loss


def linear_log_prob(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    temperature: float,
    softcap: float,
    ignore_index: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of each target, entropy and log-sum-exp of a linear layer's scores, which are never held whole.

    What policy, preference and distillation losses of language models are made of. The scores exist for one chunk of
    rows at a time, and again in the backward pass. They have the dtype of ``input``, as those of
    ``torch.nn.functional.linear``; what is computed of them is float32 (float64).

    Args:
        input: (N, D) or (D) features, or (..., D) with several leading dimensions, as a language model has them.
        linear_weight: (C, D), or (C, d1 … dk, D), one linear layer a place: beside an ``input`` of shape (N, D). Of the
            dtype of ``input``.
        target: class indices, int64, int32 or uint8, each in [0, C) or ``ignore_index``: of the shape of ``input``
            without its last dimension, then d1 … dk.
        linear_bias: of the shape of ``linear_weight`` without its last dimension, of the dtype of ``input``.
        temperature: finite, above 0; the scores are divided by it.
        softcap: c, finite, at least 0; above 0 the scores are c tanh(scores / c) before they are divided.
        ignore_index: the class index whose log-probability is 0, without gradient; the row's entropy and log-sum-exp
            stand.

    Returns:
        ``(log_prob, entropy, lse)``, each of the shape of ``target`` and differentiable in ``input``, ``linear_weight``
        and ``linear_bias``.

    Raises:
        RuntimeError: shapes, dtypes or devices do not fit, or an option or, on the CPU, a class index is out of range.

    Formula:
        z = softcap(input @ linear_weight.T + linear_bias) / temperature, lse = log Σ_c exp(z_c), p = exp(z - lse):
        log_prob = z_target - lse, entropy = lse - Σ_c p_c z_c

    Example:
        >>> hidden, head = torch.randn(6, 8), torch.randn(100, 8)
        >>> target = torch.randint(100, (6,))  # one class index a row
        >>> log_prob, entropy, lse = opreg.functional.linear_log_prob(hidden, head, target, temperature=0.7)
    """
    scores = capped(scores_of(input, linear_weight, linear_bias), softcap)
    axis = 1 if linear_weight.dim() > 2 else -1
    log_p = torch.log_softmax(scores / temperature, axis)
    lse = torch.logsumexp(scores / temperature, axis)
    p = log_p.exp()
    # a class of probability 0 adds nothing, though its logarithm may be -inf
    entropy = -(p * torch.where(p == 0, 0, log_p)).sum(axis)
    target = target.reshape(lse.shape)  # of one row it may have shape (1)
    valid = target != ignore_index
    index = torch.where(valid, target, 0).long().unsqueeze(axis)
    log_prob = torch.where(valid, log_p.gather(axis, index).squeeze(axis), 0)
    return log_prob, entropy, lse


# of the scores, as if they were held
_of_losses = meta.rows("scores", "target", weight="weight", probabilities=True)
_of_indices = meta.rows("scores", "target")


# older versions of torch do not have it
IN_TORCH = hasattr(F, "linear_cross_entropy")


def native(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    softcap: float,
    z_loss: float,
    **options: Any,
) -> Tensor:
    probabilities, leading = target.is_floating_point(), input.shape[:-1]
    if len(leading) > 1:  # which torch's function does not take
        input, target = input.flatten(0, -2), target.flatten(0, len(leading) - 1)
    result: Tensor
    if softcap or z_loss:  # nor these
        bounds = {"ignore_index": ignore_index, "softcap": softcap, "z_loss": z_loss}
        scores = scores_of(input, linear_weight, linear_bias)
        result = native_cross_entropy(input=scores, target=target, weight=weight, **bounds, **options)
    else:
        result = F.linear_cross_entropy(
            input,
            linear_weight,
            target if probabilities else target.long(),
            linear_bias=linear_bias,
            weight=weight,
            ignore_index=None if probabilities else ignore_index,
            **options,
        )
    return result.unflatten(0, leading) if len(leading) > 1 and result.dim() else result


def state(shape: Sequence[int], args: Arguments) -> Tensor:
    """The gradients that the forward pass keeps, one after the other, and the mean's denominator."""
    x: Tensor = args["input"]
    w, mask = args["linear_weight"], args["needs_input_grad"]
    # as numbers: torch 2.11 does not multiply a symbolic size by a bool
    in_input, in_weight, _, in_bias, _ = map(int, mask)
    size = 0
    if keeps_gradients(args):
        size = in_input * x.numel() + in_weight * w.numel() + in_bias * math.prod(w.shape[:-1])
    if x.dtype == torch.bfloat16 and x.device.type == "cuda":  # sums of that dtype, two in the place of one
        size = (size + 1) // 2
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    kept: Tensor = x.new_empty((size + 1,), dtype=dtype)
    return kept


def keeps_gradients(args: Arguments) -> bool:
    """Does the forward pass keep the gradients? Those in probabilities and class weights are as large as all scores."""
    _, _, in_target, _, in_class_weight = args["needs_input_grad"]
    return args["reduction"] != "none" and not in_target and not in_class_weight


def state_of_rows(shape: Sequence[int], args: Arguments) -> Tensor:
    """Three numbers a row, in what is computed in."""
    x: Tensor = args["input"]
    double = torch.float64 in (args.get("dtype"), x.dtype)
    kept: Tensor = x.new_empty((3 * math.prod(shape),), dtype=torch.float64 if double else torch.float32)
    return kept


def flops(args: Arguments, result: Any) -> int:
    """Operations of the scores, and of the gradients where the forward pass computes those too."""
    scores = flops_of_scores(args)
    mask = args.get("needs_input_grad")
    return scores * (1 + mask[0] + mask[1]) if mask and keeps_gradients(args) else scores


def backward_flops(args: Arguments, result: Any) -> int:
    """Where the forward pass did not keep the gradients: the scores once more, and the gradients."""
    return 0 if keeps_gradients(args) else flops_of_recomputation(args)


def samples(make: Maker) -> Iterator[Sample]:
    operands = partial(drawn, make)

    for reduction in REDUCTIONS:
        yield Sample((*operands(5, 4, 6), make.index(6, 5)), {"reduction": reduction})
        weight = make.constant(make.uniform(6, low=0.1))
        target = make.index(6, 5, ignore=-100)
        options = {"reduction": reduction, "label_smoothing": 0.1}
        yield Sample((*operands(5, 3, 6), target, make.normal(6), weight), options, "bias, weight, ignored, smoothed")
        shared = (*operands(4, 3, 5), make.uniform(4, 5), make.normal(5), make.uniform(5, low=0.1))
        yield Sample(shared, options, "probabilities")
    options = {"ignore_index": 3, "reduction": "sum"}
    yield Sample((*operands(4, 3, 5), make.index(5, 4, ignore=3, dtype=torch.int32)), options, "int32")
    yield Sample((make.normal(3), make.normal(7, 3), make.index(7)), name="unbatched")
    yield Sample((make.normal(3), make.normal(7, 3), make.uniform(7), make.normal(7)), name="unbatched probabilities")
    yield Sample((*operands(6, 2, 70), make.index(70, 6), make.normal(70)), name="many classes")
    for reduction in ("none", "mean"):
        options = {"reduction": reduction, "label_smoothing": 0.1}
        x, w, bias = make.normal(4, 2), make.normal(3, 2, 2, 2, scale=0.5), make.normal(3, 2, 2)
        weight = make.constant(make.uniform(3, low=0.1))
        yield Sample((x, w, make.index(3, 4, 2, 2, ignore=-100), bias, weight), options, "places")
        yield Sample((x, w, make.uniform(4, 3, 2, 2), bias, make.uniform(3, low=0.1)), options, "places, probabilities")
        x, w = make.normal(2, 3, 2), make.normal(4, 2, scale=0.5)
        yield Sample((x, w, make.index(4, 2, 3, ignore=-100), make.normal(4)), options, "sequences")
        yield Sample((x, w, make.uniform(2, 3, 4)), options, "sequences, probabilities")
    for reduction in REDUCTIONS:
        options = {"reduction": reduction, "softcap": 2.0, "z_loss": 0.1}
        weight = make.constant(make.uniform(6, low=0.1))
        target = make.index(6, 5, ignore=-100)
        yield Sample((*operands(5, 3, 6), target, make.normal(6), weight), options, "bounded, bias, weight, ignored")
    shared = (*operands(4, 3, 5), make.uniform(4, 5), make.normal(5), make.uniform(5, low=0.1))
    yield Sample(shared, {"softcap": 1.5, "z_loss": 0.1, "label_smoothing": 0.1}, "bounded probabilities")
    yield Sample((*operands(6, 2, 70), make.index(70, 6)), {"z_loss": 0.01}, "z_loss, many classes")
    yield Sample((make.normal(3, 2), make.normal(4, 0, 2), make.index(4, 3, 0)), {"reduction": "none"}, "no places")
    ignored = torch.full((3,), -100, device=make.device)
    yield Sample((*operands(3, 2, 4), ignored, make.normal(4)), name="all ignored", smooth=False)
    yield Sample((*operands(0, 2, 4), make.index(4, 0)), {"reduction": "sum"}, "empty")
    yield Sample((*extremes(make), make.index(3, 3)), name="extremes", smooth=False)


def samples_of_log_prob(make: Maker) -> Iterator[Sample]:
    operands = partial(drawn, make)
    yield Sample((*operands(5, 4, 6), make.index(6, 5)))
    options = {"temperature": 0.7, "softcap": 2.0}
    yield Sample((*operands(5, 3, 6), make.index(6, 5, ignore=-100), make.normal(6)), options, "bias, ignored, capped")
    options = {"ignore_index": 3, "temperature": 2.0}
    yield Sample((*operands(4, 3, 5), make.index(5, 4, ignore=3, dtype=torch.int32)), options, "int32")
    yield Sample((make.normal(3), make.normal(7, 3), make.index(7)), {"softcap": 1.5}, "unbatched")
    yield Sample((*operands(6, 2, 70), make.index(70, 6), make.normal(70)), {"softcap": 30.0}, "many classes")
    x, w, bias = make.normal(4, 2), make.normal(3, 2, 2, 2, scale=0.5), make.normal(3, 2, 2)
    yield Sample((x, w, make.index(3, 4, 2, 2, ignore=-100), bias), {"softcap": 2.0}, "places")
    x, w = make.normal(2, 3, 2), make.normal(4, 2, scale=0.5)
    yield Sample((x, w, make.index(4, 2, 3, ignore=-100), make.normal(4)), {"temperature": 1.5}, "sequences")
    yield Sample((make.normal(3, 2), make.normal(4, 0, 2), make.index(4, 3, 0)), name="no places")
    yield Sample((*operands(0, 2, 4), make.index(4, 0)), name="empty")
    yield Sample((*extremes(make), make.index(3, 3)), name="extremes", smooth=False)


def errors(make: Maker) -> Iterator[ErrorSample]:
    op = "linear_cross_entropy"
    x, w, t = make.normal(4, 3), make.normal(5, 3), make.index(5, 4)
    yield from errors_of_operands(op, make)
    sequences = make.normal(2, 4, 3)
    message = f"{op}: expected target of shape \\[2, 4, 5\\] for input of shape \\[2, 4, 3\\], got \\[8, 5\\]"
    yield ErrorSample((sequences, w, make.uniform(8, 5)), message)
    message = f"{op}: expected class indices as target beside an ignore_index, got class probabilities and 0"
    yield ErrorSample((x, w, make.uniform(4, 5)), message, {"ignore_index": 0})
    yield ErrorSample(
        (x, w, make.uniform(4)), f"{op}: expected target of the shape of scores, got \\[4, 5\\] and \\[4\\]"
    )
    message = f"{op}: expected weight of one entry a class, \\[5\\], got \\[4\\]"
    yield ErrorSample((x, w, t, None, make.constant(make.normal(4))), message)
    yield from outside(op, (x, w, t), "label_smoothing in \\[0, 1\\]", "label_smoothing", -0.1, 1.5)
    yield from bound_errors(op, x, w, t)


def errors_of_log_prob(make: Maker) -> Iterator[ErrorSample]:
    op = "linear_log_prob"
    x, w, t = make.normal(4, 3), make.normal(5, 3), make.index(5, 4)
    yield from errors_of_operands(op, make, reduces=False)
    yield ErrorSample((x, w, make.uniform(4)), f"{op}: expected target of dtype int64, int32 or uint8, got float64")
    infinite = float("inf")
    yield from outside(op, (x, w, t), "a finite temperature > 0", "temperature", 0.0, -1.0, infinite)
    yield from outside(op, (x, w, t), "a finite softcap >= 0", "softcap", -1.0, infinite)


register(
    Op(
        "linear_cross_entropy",
        reference=linear_cross_entropy,
        shape=ShapeRule(partial(shape, _of_losses), dims=dims),
        count=weight_of_valid,
        whole=counted_twice,
        samples=samples,
        errors=errors,
        source="torch.nn.functional.linear_cross_entropy; softcap as in Gemma 2, arXiv 2408.00118; z_loss as in PaLM, "
        "arXiv 2204.02311",
        native=native if IN_TORCH else None,
        spellings=("torch.nn.functional.linear_cross_entropy",) if IN_TORCH else (),
        indices=("target",),
        constants=constants,
        state=state,
        batch_dims={"linear_weight": None, "linear_bias": None, "weight": None},
        lowered=("input", "linear_weight", "linear_bias"),
        flops={"": flops, "_forward": flops, "_backward": backward_flops},
        workload=workload,
    )
)

register(
    Op(
        "linear_log_prob",
        reference=linear_log_prob,
        shape=ShapeRule(partial(shape, _of_indices), dims=dims),
        samples=samples_of_log_prob,
        errors=errors_of_log_prob,
        source="log_softmax of a linear layer's scores; softcap as in Gemma 2, arXiv 2408.00118",
        indices=("target",),
        state=state_of_rows,
        batch_dims={"linear_weight": None, "linear_bias": None},
        lowered=("input", "linear_weight", "linear_bias"),
        flops={"": flops_of_scores, "_forward": flops_of_scores, "_backward": flops_of_recomputation},
        workload=workload,
    )
)
