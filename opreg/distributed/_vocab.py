"""Cross entropy over classes that are split over the processes of a group, as plain functions of plain tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from .._autocast import active
from ..meta.sizes import fail, shape_text
from . import _classes
from ._collectives import Groups, copied

Group = ProcessGroup | DeviceMesh | None


def vocab_parallel_cross_entropy(
    local_scores: Tensor,
    target: Tensor,
    group: Group = None,
    *,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    num_classes: int | None = None,
    dim: int = -1,
) -> Tensor:
    """Cross entropy of scores that are split over processes by classes; the whole scores are never gathered.

    Each process has the scores of its own classes for the same rows: the first process of the group has the first
    classes, and so on. For each row two small all-reduces go through the group: the greatest score, and then the sum of
    exponentials with the target's score. Under ``torch.compile`` and ``torch.export`` they are part of the one graph.

    Args:
        local_scores: (…, C_local), or with classes at ``dim``; float64, float32, bfloat16 or float16.
        target: class indices among all classes, of the shape of ``local_scores`` without its classes, int64, int32 or
            uint8; or the probabilities of this process's classes, floating, of the shape of ``local_scores``. The same
            rows on every process.
        group: a process group, or a device mesh of one dimension; None is the default group.
        weight: (C), a factor for each class, the same on every process.
        ignore_index: the class index whose rows count for nothing.
        reduction: ``"none"``, ``"mean"`` (over the rows that count, by weight) or ``"sum"``.
        label_smoothing: in [0, 1], the part of the target that all classes share evenly.
        normalizer: what the sum is divided by in place of the mean's own count, as where a batch is split further, over
            data-parallel processes or steps of accumulation: the number of tokens in all of it.
        num_classes: how many classes there are, where they do not divide evenly: then each process but the last ones
            has ``ceil(num_classes / processes)``, as ``torch.chunk`` and DTensor split them. By default every process
            has as many as this one.
        dim: the dimension of the classes.

    Returns:
        The loss, the same on every process of the group: 0-d, or of the shape of class indices with reduction
        ``"none"``. Float64 for float64, else float32. Each process calls ``backward`` and gets the gradient of its own
        scores.

    Raises:
        RuntimeError: shapes or options that do not fit. A class index out of range is NaN at its row, since an error in
            one process would leave the others waiting.

    Formula:
        cross_entropy(cat of all local_scores, target)

    Source:
        Shoeybi et al., Megatron-LM, arXiv 1909.08053

    Example:
        >>> scores = torch.randn(8, 16, 32000 // 4, requires_grad=True)  # on each of four processes
        >>> target = torch.randint(0, 32000, (8, 16))  # class indices, the same on each
        >>> loss = opreg.distributed.vocab_parallel_cross_entropy(scores, target, group)
    """
    op = "vocab_parallel_cross_entropy"
    if local_scores.dim() == 0:
        raise fail(op, "local_scores of at least one dimension", "[]")
    if not local_scores.is_floating_point():
        raise fail(op, "floating local_scores", local_scores.dtype)
    scores, probabilities = local_scores.movedim(dim, -1), target.is_floating_point()
    rows = scores.shape[:-1]
    if probabilities:
        target = target.movedim(dim, -1) if target.dim() == scores.dim() else target
    expected = scores.shape if probabilities else rows
    if target.shape != expected:
        what = "the shape of local_scores" if probabilities else f"shape {shape_text(rows)}"
        raise fail(op, f"target of {what} for local_scores of shape {shape_text(local_scores)}", shape_text(target))
    shard = shard_of(op, group, scores.shape[-1], num_classes)
    args = {
        "input": as_rows(scores),
        "target": as_rows(target) if probabilities else target.flatten(),
        **options(op, shard, weight, ignore_index, label_smoothing, probabilities),
    }
    with torch.autocast(local_scores.device.type, enabled=False):
        losses, weights = _classes.cross_entropy(shard, args)
        return reduced(op, losses, weights, target, ignore_index, reduction, normalizer, rows)


def vocab_parallel_linear_cross_entropy(
    input: Tensor,
    local_weight: Tensor,
    target: Tensor,
    group: Group = None,
    *,
    local_bias: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    num_classes: int | None = None,
) -> Tensor:
    """``linear_cross_entropy`` with a layer that is split over processes by classes: no process ever holds the scores,
    not even those of its own classes.

    Args:
        input: features (…, D), the same on every process of the group.
        local_weight: (C_local, D), this process's rows of the layer.
        target: class indices (…) among all classes; or the probabilities of this process's classes (…, C_local), beside
            which the scores of its classes are held.
        group: a process group, or a device mesh of one dimension; None is the default group.
        local_bias: (C_local).
        weight: as in ``vocab_parallel_cross_entropy``, and so are the other options.

    Returns:
        The loss, the same on every process of the group. The gradient of ``input`` is summed over the group: it is
        whole on every process. Those of ``local_weight`` and ``local_bias`` are this process's own.

    Raises:
        RuntimeError: shapes or options that do not fit.

    Formula:
        cross_entropy(input · Wᵀ + b, target), W all local_weight one after the other

    Source:
        Shoeybi et al., Megatron-LM, arXiv 1909.08053

    Example:
        >>> hidden = torch.randn(8, 16, 512, requires_grad=True)  # the same on each of four processes
        >>> head = torch.nn.Parameter(torch.randn(32000 // 4, 512))  # its own part on each
        >>> target = torch.randint(0, 32000, (8, 16))  # class indices
        >>> loss = opreg.distributed.vocab_parallel_linear_cross_entropy(hidden, head, target, group)
    """
    op = "vocab_parallel_linear_cross_entropy"
    if input.dim() == 0 or local_weight.dim() != 2 or local_weight.shape[1] != input.shape[-1]:
        expected = "input of shape (..., D) and local_weight of shape (C_local, D)"
        raise fail(op, expected, shape_text(input), shape_text(local_weight))
    if local_bias is not None and local_bias.shape != local_weight.shape[:1]:
        raise fail(op, f"local_bias of shape {shape_text(local_weight.shape[:1])}", shape_text(local_bias))
    rows, probabilities = input.shape[:-1], target.is_floating_point()
    wanted = (*rows, local_weight.shape[0]) if probabilities else rows
    if target.shape != wanted:
        expected = f"target of shape {shape_text(wanted)} for input of shape {shape_text(input)}"
        raise fail(op, expected, shape_text(target))
    shard = shard_of(op, group, local_weight.shape[0], num_classes)
    x, head, bias = (lowered(t) for t in (input, local_weight, local_bias))
    assert x is not None
    args = {
        "input": as_rows(copied(x, shard.groups)),
        "linear_weight": head,
        "linear_bias": bias,
        "target": as_rows(target) if probabilities else target.flatten(),
        **options(op, shard, weight, ignore_index, label_smoothing, probabilities),
    }
    with torch.autocast(input.device.type, enabled=False):
        losses, weights = _classes.linear_cross_entropy(shard, args)
        return reduced(op, losses, weights, target, ignore_index, reduction, normalizer, rows)


def as_rows(t: Tensor) -> Tensor:
    """(N, C), whatever the number of dimensions before the last."""
    return t.flatten(0, -2) if t.dim() > 1 else t.unsqueeze(0)


def lowered(t: Tensor | None) -> Tensor | None:
    """What autocast makes of an operand of a matrix product."""
    device = "" if t is None else active({"": t})
    return t if t is None or not device or t.dtype == torch.float64 else t.to(torch.get_autocast_dtype(device))


def group_name(group: Group) -> str:
    if isinstance(group, DeviceMesh):
        return str(group.get_group().group_name)
    member: Any = group or torch.distributed.group.WORLD
    return str(member.group_name)


def shard_of(op: str, group: Group, size: int, total: int | None) -> _classes.Shard:
    """The classes of this process, of whose number the others are told nothing."""
    if isinstance(group, DeviceMesh):
        group = group.get_group()
    processes, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    if rank < 0:
        raise fail(op, "a group that this process belongs to", "another")
    total = size * processes if total is None else total
    first, own = _classes.part_of(total, processes, rank)
    if size != own:
        expected = f"{own} of {total} classes on process {rank} of {processes}"
        raise fail(op, expected, size)
    groups: Groups = (group_name(group),) if processes > 1 else ()
    return _classes.Shard(groups, first, size, total)


def options(
    op: str,
    shard: _classes.Shard,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    probabilities: bool,
) -> dict[str, object]:
    if not 0 <= label_smoothing <= 1:
        raise fail(op, "label_smoothing in [0, 1]", label_smoothing)
    if probabilities and ignore_index >= 0:
        raise fail(op, "class indices as target beside an ignore_index", "class probabilities", ignore_index)
    if weight is not None:
        if weight.shape != (shard.total,):
            raise fail(op, f"weight of one entry a class, [{shard.total}]", shape_text(weight))
        if weight.requires_grad:
            raise fail(op, "weight that does not require grad (it is a constant of this loss)", "one that does")
        weight = weight[shard.first : shard.first + shard.size]
    return {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}


def reduced(
    op: str,
    losses: Tensor,
    weights: Tensor | None,
    target: Tensor,
    ignore_index: int,
    reduction: str,
    normalizer: Tensor | float | None,
    rows: torch.Size,
) -> Tensor:
    if reduction not in ("none", "mean", "sum"):
        raise fail(op, 'reduction "none", "mean" or "sum"', f'"{reduction}"')
    if normalizer is not None and reduction != "mean":
        raise fail(op, 'reduction "mean" beside a normalizer', f'"{reduction}"')
    if reduction == "none":
        return losses.reshape(rows)
    total = losses.sum()
    if reduction == "sum":
        return total
    if normalizer is not None:
        return total / normalizer
    if target.is_floating_point():
        return total / losses.numel() if losses.numel() else total / torch.zeros_like(total)
    count: Tensor = target.ne(ignore_index).sum() if weights is None else weights.sum()
    return total / count
