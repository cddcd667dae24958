"""Losses of rows whose classes are split over processes: what each process computes, and the few numbers that it tells.

Of the scores of its own classes a process tells, for each row, the greatest and then, relative to the greatest of all,
the sum of exponentials and the score of the target, which one process has and the others count as 0. The scores stay
where they are. A function of this module takes the op's arguments by name, of its own classes, and gives the losses of
the rows, which are the same on every process.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import NAMESPACE, OPS
from ..op import Op
from ..ops.angular import with_margin
from ..ops.categorical import along_classes, capped, class_axis
from ._collectives import Groups, all_reduce, summed

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Shard:
    """The classes of one process.

    Args:
        groups: the names of the process groups over which the classes are split.
        first: the class index of the first one here.
        size: how many are here, side by side.
        total: how many there are.
        sampled: in place of ``first``, the class indices that are here, in ascending order.
    """

    groups: Groups
    first: int
    size: int
    total: int
    sampled: Tensor | None = None

    def sum(self, x: Tensor) -> Tensor:
        return summed(x, self.groups)

    def max(self, x: Tensor) -> Tensor:
        return all_reduce(x, "max", self.groups)

    def places(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Of class indices, which are here and where; for the others, any place."""
        target = target.long()
        if self.sampled is None:
            place = target - self.first
            here = (place >= 0) & (place < self.size)
            return here, place.clamp(0, max(self.size - 1, 0))
        place = torch.searchsorted(self.sampled, target).clamp(max=max(self.size - 1, 0))
        return (self.sampled[place] == target) if self.size else torch.zeros_like(target, dtype=torch.bool), place


def part_of(size: int, processes: int, rank: int) -> tuple[int, int]:
    """Where a process's part begins and how long it is, as ``torch.chunk`` and DTensor split a dimension."""
    each = -(-size // processes)
    first = min(rank * each, size)
    return first, min(each, size - first)


@dataclass(frozen=True)
class Rows:
    """Class indices of rows: which count at all, which have their class here, and where that is."""

    valid: Tensor
    here: Tensor
    place: Tensor
    unknown: Tensor

    @staticmethod
    def of(shard: Shard, target: Tensor, ignore_index: int) -> "Rows":
        valid = target != ignore_index
        here, place = shard.places(target)
        return Rows(valid, here & valid, place, valid & ((target < 0) | (target >= shard.total)))

    def entries(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """The entry of each row's class, and 0 where that is not here."""
        if weight.shape[0] == 0:
            return torch.zeros(self.here.shape, dtype=dtype, device=weight.device)
        return torch.where(self.here, weight[self.place].to(dtype), 0.0)


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class Scores(torch.autograd.Function):
    """Of each row of scores the greatest, log Σ_c e^(x_c − greatest), and the score at a place; one pass over memory.

    The greatest is a constant: what is added to it is differentiated as the logarithm of the sum itself. Rows that do
    not count may hold anything. Where no place is meant, the score is 0.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, here: Tensor, place: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = compute_dtype(x)
        _, state = OPS.cross_entropy_forward(x, torch.where(valid, 0, -100), None, -100, "none")
        high, low = state[:-1].view(2, -1).unbind(0)
        high, low = high.reshape(valid.shape), low.reshape(valid.shape)
        # a row of -inf has no greatest number
        nothing = low == -torch.inf
        high = torch.where(valid, torch.where(nothing, torch.finfo(dtype).min, high), 0.0).to(dtype)
        low = torch.where(valid, low, 0.0).to(dtype)
        score = x.gather(class_axis(x), place.unsqueeze(class_axis(x))).squeeze(class_axis(x))
        ctx.mark_non_differentiable(high)
        ctx.save_for_backward(x, here, place, valid, state)
        return high, low, torch.where(here, score.to(dtype), 0.0)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad_low: Tensor, grad_score: Tensor) -> Any:
        x, here, place, valid, state = ctx.saved_tensors
        axis, dtype = class_axis(x), compute_dtype(x)
        grad_low, grad_score = torch.where(valid, grad_low, 0.0), torch.where(here, grad_score, 0.0)
        if torch.is_grad_enabled():
            # a row of -inf has no softmax, nor one that does not count
            nothing = ~valid | (x.detach().amax(axis) == -torch.inf)
            softmax = torch.where(nothing.unsqueeze(axis), 0.0, x.to(dtype)).softmax(axis)
            grad_low = torch.where(nothing, 0.0, grad_low)
            onehot = along_classes(torch.arange(x.shape[axis], device=x.device), x) == place.unsqueeze(axis)
            second = torch.where(onehot, grad_score.unsqueeze(axis), 0.0)
            return (grad_low.unsqueeze(axis) * softmax + second).to(x.dtype), None, None, None
        high, low = state[:-1].view(2, -1).unbind(0)
        nothing = low == -torch.inf
        high, low = torch.where(nothing, 0.0, high), torch.where(nothing, torch.inf, low)
        state = torch.cat([high, low, state[-1:]])
        first = torch.where(valid, 0, -100)
        grad = OPS.cross_entropy_backward(
            grad_low, state, x, first, None, -100, "none", needs_input_grad=[True, False, False]
        )[0]
        # The kernel took the first class for the target. There, and at the place that is meant, the gradient is written
        # anew: what is added to a rounded number would lose its digits.
        high, low = high.reshape(valid.shape).to(dtype), low.reshape(valid.shape).to(dtype)

        def of_sum(score: Tensor) -> Tensor:
            return torch.where(valid, grad_low * torch.exp((score.to(dtype) - high) - low), 0.0)

        grad.select(axis, 0).copy_(of_sum(x.select(axis, 0)))
        index = place.unsqueeze(axis)
        of_place = of_sum(x.gather(axis, index).squeeze(axis)) + grad_score
        grad.scatter_(axis, index, of_place.to(grad.dtype).unsqueeze(axis))
        return grad, None, None, None


def scores_of(x: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """``Scores``, of no classes too, as the last process has it where they do not suffice for all."""
    axis = class_axis(x)
    if x.shape[axis] == 0:
        nothing = x.sum(axis, dtype=compute_dtype(x))
        return nothing.detach() + torch.finfo(nothing.dtype).min, nothing - torch.inf, nothing
    high, low, score = Scores.apply(x, rows.here, rows.place, rows.valid)  # type: ignore[no-untyped-call]
    return high, low, score


@dataclass(frozen=True)
class Combined:
    """Of each row, over the classes of all processes: the greatest score, log Σ_c e^(x_c − greatest), the target's
    score less the greatest, and the sums of what else was asked for."""

    top: Tensor
    log_sum: Tensor
    lead: Tensor
    others: tuple[Tensor, ...]

    @property
    def nll(self) -> Tensor:
        return self.log_sum - self.lead

    def z_losses(self, rows: Rows, args: Arguments) -> Tensor | float:
        """z_loss·lse² of the rows that count."""
        z_loss = args.get("z_loss", 0.0)
        return z_loss * torch.where(rows.valid, self.top + self.log_sum, 0.0).square() if z_loss else 0.0


def combine(
    shard: Shard,
    rows: Rows,
    high: Tensor,
    low: Tensor,
    score: Tensor,
    others: Callable[[Tensor], list[Tensor]] = lambda top: [],
) -> Combined:
    """``others`` gives further sums over this process's classes, from the greatest score of each row."""
    top = shard.max(high)
    parts = [torch.exp(low + (high - top)), torch.where(rows.here, score - top, 0.0), *others(top)]
    total, lead, *rest = shard.sum(torch.stack(parts)).unbind(0)
    # no process can raise for an index that is none, since the others would wait for it
    return Combined(top, total.log(), torch.where(rows.unknown, torch.nan, lead), tuple(rest))


def weighted_sum(x: Tensor, weight: Tensor | None, rows: Rows, top: Tensor) -> Tensor:
    """Σ_c w_c (x_c − top) of the classes here."""
    axis = class_axis(x)
    below = torch.where(rows.valid.unsqueeze(axis), x, 0.0).to(top.dtype) - top.unsqueeze(axis)
    return (below if weight is None else below * along_classes(weight.to(top.dtype), x)).sum(axis)


def smoothed(
    shard: Shard, rows: Rows, args: Arguments, combined: Combined, weights: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Cross entropy of class indices; the last of the other sums is that of weighted scores."""
    smoothing, nll = args["label_smoothing"], combined.nll
    loss = nll if weights is None else weights * nll
    if smoothing > 0:
        all_weights = shard.total if args["weight"] is None else shard.sum(args["weight"].sum().to(nll.dtype))
        spread = all_weights * combined.log_sum - combined.others[-1]
        loss = (1 - smoothing) * loss + smoothing / shard.total * spread
        loss = torch.where(rows.unknown, torch.nan, loss)
    return torch.where(rows.valid, loss, 0.0), weights


def of_indices(shard: Shard, args: Arguments) -> tuple[Rows, Combined, Tensor | None]:
    """What the cross entropy of class indices is made of, and the rows' weights."""
    x, target, weight = args["input"], args["target"], args["weight"]
    rows = Rows.of(shard, target.reshape(()) if x.dim() == 1 else target, args["ignore_index"])

    def others(top: Tensor) -> list[Tensor]:
        entries = [] if weight is None else [rows.entries(weight, top.dtype)]
        return entries + ([weighted_sum(x, weight, rows, top)] if args["label_smoothing"] > 0 else [])

    combined = combine(shard, rows, *scores_of(x, rows), others)
    return rows, combined, None if weight is None else combined.others[0]


def cross_entropy(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    args = {**args, "input": capped(args["input"], args.get("softcap", 0.0))}
    if args["target"].is_floating_point():
        return probabilities(shard, args["input"], args), None
    rows, combined, weights = of_indices(shard, args)
    loss, weights = smoothed(shard, rows, args, combined, weights)
    return loss + combined.z_losses(rows, args), weights


def poly1_cross_entropy(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    rows, combined, weights = of_indices(shard, args)
    loss, weights = smoothed(shard, rows, args, combined, weights)
    miss = -torch.expm1(-torch.where(rows.valid, combined.nll, 0.0))
    return loss + args["epsilon"] * (miss if weights is None else weights * miss), weights


def probabilities(shard: Shard, x: Tensor, args: Arguments) -> Tensor:
    """Cross entropy of class probabilities: Σ_c q_c w_c (lse − x_c)."""
    axis, dtype, smoothing = class_axis(x), compute_dtype(x), args["label_smoothing"]
    nowhere = torch.zeros(x.shape[:axis] + x.shape[axis + 1 :], dtype=torch.int64, device=x.device)
    rows = Rows(nowhere == 0, nowhere != 0, nowhere, nowhere != 0)
    mass = args["target"].to(dtype) * (1 - smoothing) + smoothing / shard.total
    if args["weight"] is not None:
        mass = mass * along_classes(args["weight"].to(dtype), x)

    def others(top: Tensor) -> list[Tensor]:
        return [mass.sum(axis), (mass * (x.to(dtype) - top.unsqueeze(axis))).sum(axis)]

    combined = combine(shard, rows, *scores_of(x, rows), others)
    whole, below = combined.others
    return whole * combined.log_sum - below + combined.z_losses(rows, args)


def nll_loss(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    x, weight, dtype = args["input"], args["weight"], compute_dtype(args["input"])
    rows = Rows.of(shard, args["target"].reshape(()) if x.dim() == 1 else args["target"], args["ignore_index"])
    axis = class_axis(x)
    score = x.gather(axis, rows.place.unsqueeze(axis)).squeeze(axis).to(dtype) if shard.size else x.sum(axis).to(dtype)
    parts = [torch.where(rows.here, -score, 0.0)]
    if weight is not None:
        entries = rows.entries(weight, dtype)
        parts = [torch.where(rows.here, entries * parts[0], 0.0), entries]
    loss, *weights = shard.sum(torch.stack(parts)).unbind(0)
    return torch.where(rows.unknown, torch.nan, loss), weights[0] if weights else None


def softmax_focal_loss(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    x, weight, gamma = args["input"], args["weight"], args["gamma"]
    rows = Rows.of(shard, args["target"].reshape(()) if x.dim() == 1 else args["target"], args["ignore_index"])

    def others(top: Tensor) -> list[Tensor]:
        return [] if weight is None else [rows.entries(weight, top.dtype)]

    combined = combine(shard, rows, *scores_of(x, rows), others)
    nll = torch.where(rows.valid, combined.nll, 0.0)
    miss = -torch.expm1(-nll)
    # the power's derivative at 0 is infinite for gamma < 1: there the gradient is 0
    power = torch.where(miss > 0, torch.where(miss > 0, miss, 1.0) ** gamma, float(gamma == 0))
    return power * (nll if weight is None else combined.others[0] * nll), None


def angular(shard: Shard, args: Arguments, own: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor | None]:
    """Cross entropy of scaled cosines, those of the targets replaced by what ``own`` makes of them."""
    cosine, axis = args["cosine"], class_axis(args["cosine"])
    target = args["target"].reshape(()) if cosine.dim() == 1 else args["target"]
    rows = Rows.of(shard, target, args["ignore_index"])
    scaled = args["scale"] * cosine.to(compute_dtype(cosine))
    if shard.size:
        place = rows.place.unsqueeze(axis)
        of_target = cosine.gather(axis, place).to(scaled.dtype)
        # an ignored position may hold anything
        of_target = torch.where(rows.here.unsqueeze(axis), of_target, 0.0)
        replaced = torch.where(rows.here.unsqueeze(axis), args["scale"] * own(of_target), scaled.gather(axis, place))
        scaled = scaled.scatter(axis, place, replaced)
    return torch.where(rows.valid, combine(shard, rows, *scores_of(scaled, rows)).nll, 0.0), None


def arcface_loss(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    margin = args["margin"]

    def own(cosine: Tensor) -> Tensor:
        sine = ((1 - cosine) * (1 + cosine)).clamp(min=1e-7).sqrt()
        return with_margin(cosine, sine, margin, math.cos(margin), math.sin(margin))

    return angular(shard, args, own)


def amsoftmax_loss(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    return angular(shard, args, lambda cosine: cosine - args["margin"])


def distillation_loss(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    temperature, axis = args["temperature"], class_axis(args["input"])
    dtype = torch.promote_types(compute_dtype(args["input"]), compute_dtype(args["target"]))
    x, t = args["input"].to(dtype) / temperature, args["target"].detach().to(dtype) / temperature
    none = torch.finfo(dtype).min
    highest = [s.detach().amax(axis) if shard.size else s.detach().sum(axis) + none for s in (x, t)]
    top_x, top_t = shard.max(torch.stack(highest)).unbind(0)
    x, t = x - top_x.unsqueeze(axis), t - top_t.unsqueeze(axis)
    p = t.exp()
    parts = [x.exp().sum(axis), p.sum(axis), torch.where(p == 0, 0.0, p * (t - x)).sum(axis)]
    sum_x, sum_t, divergence = shard.sum(torch.stack(parts)).unbind(0)
    return temperature**2 * (divergence / sum_t - sum_t.log() + sum_x.log()), None


def linear_cross_entropy(shard: Shard, args: Arguments) -> tuple[Tensor, Tensor | None]:
    x, head, bias, target = args["input"], args["linear_weight"], args["linear_bias"], args["target"]
    weight, smoothing = args["weight"], args["label_smoothing"]
    if target.is_floating_point():
        # the probabilities are as large as the scores
        scores = F.linear(x, head, bias).flatten(0, -2) if x.dim() > 1 else F.linear(x, head, bias)
        scores = capped(scores, args.get("softcap", 0.0))
        losses = probabilities(shard, scores, {**args, "target": target.reshape(scores.shape)})
        return losses.reshape(x.shape[:-1]), None
    rows = Rows.of(shard, target.reshape(x.shape[:-1]), args["ignore_index"])
    dtype = compute_dtype(x)
    if shard.size:
        # The op gives log Σ_c e^(s_c) less the score of a class, the row's own where that is here. Where not, any
        # class serves; another one for each row, so that rounding falls on all alike.
        spread = torch.arange(rows.place.numel(), device=x.device).reshape(rows.place.shape) % shard.size
        place = torch.where(rows.here, rows.place, spread)
        counted = torch.where(rows.valid, place, -100)
        low = OPS.linear_cross_entropy(x, head, counted, bias, None, -100, "none", 0.0, dtype=dtype)
        score = (x.to(dtype) * F.embedding(place, head).to(dtype)).sum(-1)
        score = score if bias is None else score + bias[place].to(dtype)
        score = torch.where(rows.valid, score, 0.0)
        high = (low + score).detach()
        # as a difference from what is a constant from here on
        low = low + (score - high)
        dead = high == -torch.inf
        high, low = torch.where(dead, torch.finfo(dtype).min, high), torch.where(dead, -torch.inf, low)
    else:
        low = F.linear(x, head, bias).sum(-1, dtype=dtype)
        high, score = low.detach() + torch.finfo(dtype).min, low
        low = low - torch.inf

    def others(top: Tensor) -> list[Tensor]:
        entries = [] if weight is None else [rows.entries(weight, dtype)]
        if smoothing == 0:
            return entries
        # Σ_c w_c s_c without the scores
        w = head.new_ones(shard.size, dtype=dtype) if weight is None else weight.to(dtype)
        sums = x.to(dtype) @ (w @ head.to(dtype))
        sums = sums if bias is None else sums + (w * bias.to(dtype)).sum()
        return [*entries, torch.where(rows.valid, sums - w.sum() * top, 0.0)]

    combined = combine(shard, rows, high, low, score, others)
    loss, weights = smoothed(shard, rows, args, combined, None if weight is None else combined.others[0])
    return loss + combined.z_losses(rows, args), weights


def linear_log_prob(shard: Shard, args: Arguments) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None]:
    x, head, bias = args["input"], args["linear_weight"], args["linear_bias"]
    rows = Rows.of(shard, args["target"].reshape(x.shape[:-1]), args["ignore_index"])
    dtype = compute_dtype(x)
    if shard.size:
        counted = torch.where(rows.here, rows.place, -100)
        options = (args["temperature"], args["softcap"], -100)
        log_p, entropy, low = OPS.linear_log_prob(x, head, counted, bias, *options, dtype=dtype)
    else:
        nothing = F.linear(x, head, bias).sum(-1, dtype=dtype)
        log_p, entropy, low = nothing, nothing, nothing - torch.inf
    high = shard.max(low.detach())
    # of the classes here, with u = z - high: the sums of e^u and of e^u u; of the target's class u
    masked = low == -torch.inf
    below = torch.where(masked, 0.0, low) - high
    part = torch.where(masked, 0.0, below.exp())
    score = torch.where(rows.here, log_p + below, 0.0)
    total, weighted, score = shard.sum(torch.stack([part, part * (below - entropy), score])).unbind(0)
    log_total = total.log()
    log_prob = torch.where(rows.valid, score - log_total, 0.0)
    log_prob = torch.where(rows.unknown, torch.nan, log_prob)
    return (log_prob, log_total - weighted / total, high + log_total), None


# Of each op that can be computed of parts of the classes: the losses of the rows, or its results, and their weights in
# the mean where they depend on weights of classes that are split too.
ROWS: Mapping[str, Callable[[Shard, Arguments], tuple[Any, Tensor | None]]] = {
    function.__name__: function
    for function in (
        amsoftmax_loss, arcface_loss, cross_entropy, distillation_loss, linear_cross_entropy, linear_log_prob,
        nll_loss, poly1_cross_entropy, softmax_focal_loss,
    )
}  # fmt: skip


def why_not(op: Op, args: Arguments) -> str:
    """Why the classes of a call can't be split; nothing where they can."""
    if op.qualname not in {f"{NAMESPACE}::{name}" for name in ROWS}:
        return "it has no way to compute with a part of the classes"
    if "linear_weight" in args and args["linear_weight"].dim() > 2:
        return "with several places a class the scores are computed together"
    if op.short == "linear_cross_entropy" and args["softcap"] and not args["target"].is_floating_point():
        return "with a softcap the scores of all classes are computed together"
    return ""
