"""Losses as libraries and training scripts write them, for test_survey.py: the arithmetic of each, in few lines.

``python tests/rewrite/survey.py`` prints which of their sites are swapped, left with a reason, or missed.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import opreg


@dataclass(frozen=True)
class Program:
    """A program that a source has, and the ops that could compute its parts: one for each of its sites."""

    source: str
    name: str
    function: Callable[..., Any]
    inputs: Callable[[], tuple[Tensor, ...]]
    ops: tuple[str, ...]
    options: dict[str, Any]


PROGRAMS: list[Program] = []


def program(source: str, inputs: Callable[[], tuple[Tensor, ...]], *ops: str, **options: Any) -> Callable[[Any], Any]:
    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        PROGRAMS.append(Program(source, function.__name__, function, inputs, ops, options))
        return function

    return add


# inputs


def scores(*shape: int) -> Tensor:
    return torch.randn(shape, requires_grad=True)


def pairs(*shape: int) -> tuple[Tensor, Tensor]:
    return scores(*shape), torch.randn(shape)


def hard(*shape: int) -> tuple[Tensor, Tensor]:
    return scores(*shape), (torch.rand(shape) > 0.5).float()


def hard_bool(*shape: int) -> tuple[Tensor, Tensor]:
    return scores(*shape), torch.rand(shape) > 0.5


def hard_int(*shape: int) -> tuple[Tensor, Tensor]:
    return scores(*shape), torch.randint(0, 2, shape)


def labelled(classes: int, *shape: int) -> tuple[Tensor, Tensor]:
    return scores(shape[0], classes, *shape[1:]), torch.randint(0, classes, shape)


def tokens(classes: int, *shape: int) -> tuple[Tensor, Tensor]:
    return scores(*shape, classes), torch.randint(0, classes, shape)


def ignored(classes: int, *shape: int) -> tuple[Tensor, Tensor]:
    x, t = tokens(classes, *shape)
    t.view(-1)[0] = -100
    return x, t


def boxes(n: int = 6) -> tuple[Tensor, Tensor]:
    made = []
    for _ in range(2):
        corner = torch.rand(n, 2)
        made.append(torch.cat([corner, corner + 0.1 + torch.rand(n, 2)], 1))
    return made[0].requires_grad_(), made[1]


# focal losses


@program("effdet", lambda: (*hard_int(3, 4, 5), torch.tensor(7.0)), "focal_loss")
def legacy_focal(logits, targets, normalizer, alpha=0.25, gamma=1.5):
    positive = targets == 1
    targets = targets.to(logits.dtype)
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    neg = -1.0 * logits
    modulator = torch.exp(gamma * targets * neg - gamma * torch.log1p(torch.exp(neg)))
    loss = modulator * ce
    return torch.where(positive, alpha * loss, (1.0 - alpha) * loss) / normalizer


@program("effdet", lambda: (*hard(3, 4, 5), torch.tensor(7.0)), "focal_loss")
def new_focal(logits, targets, normalizer, alpha=0.25, gamma=1.5):
    p = logits.sigmoid()
    onem = 1.0 - targets
    p_t = targets * p + onem * (1.0 - p)
    alpha_factor = targets * alpha + onem * (1.0 - alpha)
    modulating = (1.0 - p_t) ** gamma
    ce = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (1 / normalizer) * alpha_factor * modulating * ce


@program("effdet", lambda: (scores(3, 6, 5), torch.randint(-2, 5, (3, 6))), "focal_loss")
def focal_of_classes(logits, labels, alpha=0.25, gamma=2.0):
    """One-hot inside, rows of class -2 masked, normalised by a count."""
    onehot = F.one_hot(labels.clamp(min=0), 5).to(logits.dtype) * (labels >= 0).unsqueeze(-1)
    count = (labels >= 0).sum().clamp(min=1).to(logits.dtype)
    p = logits.sigmoid()
    ce = F.binary_cross_entropy_with_logits(logits, onehot, reduction="none")
    p_t = p * onehot + (1 - p) * (1 - onehot)
    loss = ce * (1 - p_t) ** gamma
    loss = (alpha * onehot + (1 - alpha) * (1 - onehot)) * loss
    return loss.sum() / count


@program("monai", lambda: hard(2, 3, 4, 4), "focal_loss")
def sigmoid_focal(input, target, gamma=2.0):
    """With targets that may lie in between: no op for these."""
    loss = input - input * target - F.logsigmoid(input)
    invprobs = F.logsigmoid(-input * (target * 2 - 1))
    return ((invprobs * gamma).exp() * loss).mean()


@program("monai", lambda: hard_bool(2, 3, 4, 4), "focal_loss")
def sigmoid_focal_of_masks(input, mask, gamma=2.0, alpha=0.75):
    target = mask.float()
    loss = input - input * target - F.logsigmoid(input)
    invprobs = F.logsigmoid(-input * (target * 2 - 1))
    loss = (invprobs * gamma).exp() * loss
    return (loss * (target * alpha + (1 - target) * (1 - alpha))).mean()


@program("monai", lambda: labelled(4, 2, 3, 3), "softmax_focal_loss")
def softmax_focal_of_one_hot(input, labels, gamma=2.0):
    target = F.one_hot(labels, 4).movedim(-1, 1).to(input.dtype)
    log_p = input.log_softmax(1)
    return (-((1 - log_p.exp()).pow(gamma)) * log_p * target).mean()


@program("pytorch-toolbelt", lambda: hard(2, 3, 4), "focal_loss")
def focal_with_logits(output, target, gamma=2.0, alpha=0.25):
    output, target = output.float(), target.float()
    p = torch.sigmoid(output)
    ce = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    pt = p * target + (1 - p) * (1 - target)
    loss = (1.0 - pt).pow(gamma) * ce
    loss *= alpha * target + (1 - alpha) * (1 - target)
    return loss.mean()


@program("pytorch-toolbelt", lambda: hard(2, 3, 4), "focal_loss")
def focal_with_ignored(output, target, gamma=2.0, alpha=0.25):
    p = torch.sigmoid(output)
    ce = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    pt = p * target + (1 - p) * (1 - target)
    loss = (1.0 - pt).pow(gamma) * ce
    loss *= alpha * target + (1 - alpha) * (1 - target)
    return torch.masked_fill(loss, target.eq(-100), 0).mean()


@program("pytorch-toolbelt", lambda: hard(2, 3, 4), "focal_loss")
def normalized_focal(output, target, gamma=2.0, alpha=0.25):
    """The modulating factor is summed, too, and stays."""
    p = torch.sigmoid(output)
    ce = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    pt = p * target + (1 - p) * (1 - target)
    term = (1.0 - pt).pow(gamma)
    loss = term * ce
    loss *= alpha * target + (1 - alpha) * (1 - target)
    loss /= term.sum(dtype=torch.float32).clamp_min(1e-6)
    return loss.mean()


@program("segmentation-models-pytorch", lambda: hard_bool(2, 3, 4), "focal_loss")
def focal_of_masks(output, mask, gamma=2.0, alpha=0.25):
    target = mask.type(output.type()) if False else mask.to(output.dtype)
    logpt = F.binary_cross_entropy_with_logits(output, target, reduction="none")
    pt = torch.exp(-logpt)
    loss = (1.0 - pt).pow(gamma) * logpt
    loss *= alpha * target + (1 - alpha) * (1 - target)
    return loss.mean()


@program("segmentation-models-pytorch", lambda: labelled(3, 2, 4, 4), "focal_loss", "focal_loss", "focal_loss")
def focal_of_each_class(output, labels, gamma=2.0):
    loss = 0
    for c in range(3):
        target = (labels == c).long().to(output.dtype)
        logpt = F.binary_cross_entropy_with_logits(output[:, c, ...], target, reduction="none")
        pt = torch.exp(-logpt)
        loss = loss + ((1.0 - pt).pow(gamma) * logpt).mean()
    return loss


@program("segmentation-models-pytorch", lambda: labelled(3, 2, 4, 4), "softmax_focal_loss")
def softmax_focal_with_logits(output, target, gamma=2.0):
    loss = F.nll_loss(F.log_softmax(output, dim=1), target, reduction="none")
    pt = torch.exp(-loss)
    return ((1.0 - pt).pow(gamma) * loss).mean()


@program("kornia", lambda: hard(2, 1, 4, 4), "focal_loss")
def binary_focal_with_logits(pred, target, alpha=0.25, gamma=2.0):
    log_pos, log_neg = F.logsigmoid(pred), F.logsigmoid(-pred)
    p = pred.sigmoid()
    pos = -alpha * (1 - p).pow(gamma) * target * log_pos
    neg = -(1.0 - alpha) * p.pow(gamma) * (1.0 - target) * log_neg
    return (pos + neg).mean()


@program("kornia", lambda: labelled(4, 2, 3, 3), "softmax_focal_loss")
def focal_of_gathered(pred, target, gamma=2.0):
    log_p = pred.log_softmax(1).gather(1, target.unsqueeze(1)).squeeze(1)
    return (-torch.pow(1.0 - log_p.exp(), gamma) * log_p).mean()


@program("a script", lambda: labelled(4, 6), "softmax_focal_loss")
def focal_by_index(x, y, gamma=2.0):
    log_p = F.log_softmax(x, 1)[torch.arange(x.shape[0]), y]
    return (-((1 - log_p.exp()) ** gamma) * log_p).mean()


@program("a script", lambda: (*labelled(4, 6), torch.rand(4)), "softmax_focal_loss")
def focal_with_alpha_by_class(x, y, alpha, gamma=2.0):
    ce = F.cross_entropy(x, y, reduction="none")
    p = torch.exp(-ce)
    return (alpha[y] * (1 - p) ** gamma * ce).mean()


@program("a script", lambda: labelled(4, 6), "softmax_focal_loss")
def focal_by_nll(x, y, gamma=2.0):
    log_p = F.log_softmax(x, 1)
    return F.nll_loss((1 - log_p.exp()) ** gamma * log_p, y)


@program("detr of transformers", lambda: hard(2, 5, 4), "focal_loss")
def focal_of_detr(inputs, targets, num_boxes=7, alpha=0.25, gamma=2):
    prob = inputs.sigmoid()
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = prob * targets + (1 - prob) * (1 - targets)
    loss = ce * ((1 - p_t) ** gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return loss.mean(1).sum() / num_boxes


@program("detr of transformers", lambda: hard(2, 9), "dice_loss")
def dice_of_detr(inputs, targets, num_boxes=7):
    inputs = inputs.sigmoid().flatten(1)
    numerator = 2 * (inputs * targets).sum(1)
    denominator = inputs.sum(-1) + targets.sum(-1)
    return (1 - (numerator + 1) / (denominator + 1)).sum() / num_boxes


def pairwise(a, b):
    """As DETR writes the all-pairs matrix."""
    area = lambda x: (x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1])  # noqa: E731
    lt, rb = torch.max(a[:, None, :2], b[:, :2]), torch.min(a[:, None, 2:], b[:, 2:])
    wh = (rb - lt).clamp(min=0)
    inter = wh[:, :, 0] * wh[:, :, 1]
    union = area(a)[:, None] + area(b) - inter
    iou = inter / union
    lt, rb = torch.min(a[:, None, :2], b[:, :2]), torch.max(a[:, None, 2:], b[:, 2:])
    wh = (rb - lt).clamp(min=0)
    hull = wh[:, :, 0] * wh[:, :, 1]
    return iou - (hull - union) / hull


@program("detr of transformers", boxes, "giou_loss")
def giou_of_all_pairs(a, b, num_boxes=7):
    return (1 - torch.diag(pairwise(a, b))).sum() / num_boxes


@program("mmdetection", boxes, "giou_loss")
def giou_of_aligned(a, b, eps=1e-7):
    lt, rb = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    wh = (rb - lt).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    ap, ag = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]), (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    union = ap + ag - overlap + eps
    ious = overlap / union
    hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).clamp(min=0)
    area = hull[:, 0] * hull[:, 1] + eps
    return (1 - (ious - (area - union) / area)).mean()


@program("mmdetection", boxes, "diou_loss")
def diou_of_clamped_hull(a, b, eps=1e-7):
    lt, rb = torch.max(a[:, :2], b[:, :2]), torch.min(a[:, 2:], b[:, 2:])
    wh = (rb - lt).clamp(min=0)
    overlap = wh[:, 0] * wh[:, 1]
    ap, ag = (a[:, 2] - a[:, 0]) * (a[:, 3] - a[:, 1]), (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    ious = overlap / (ap + ag - overlap + eps)
    hull = (torch.max(a[:, 2:], b[:, 2:]) - torch.min(a[:, :2], b[:, :2])).clamp(min=0)
    c2 = hull[:, 0] ** 2 + hull[:, 1] ** 2 + eps
    left = ((b[:, 0] + b[:, 2]) - (a[:, 0] + a[:, 2])) ** 2 / 4
    right = ((b[:, 1] + b[:, 3]) - (a[:, 1] + a[:, 3])) ** 2 / 4
    return (1 - (ious - (left + right) / c2)).mean()


@program("mmdetection", lambda: hard(6, 4), "focal_loss")
def py_sigmoid_focal(pred, target, gamma=2.0, alpha=0.25):
    p = pred.sigmoid()
    pt = (1 - p) * target + p * (1 - target)
    weight = (alpha * target + (1 - alpha) * (1 - target)) * pt.pow(gamma)
    return (F.binary_cross_entropy_with_logits(pred, target, reduction="none") * weight).sum() / 5


@program("mmdetection", lambda: (scores(6, 4), torch.randn(6, 4)), "smooth_l1_loss")
def smooth_l1_by_where(pred, target, beta=0.5):
    diff = torch.abs(pred - target)
    return torch.where(diff < beta, 0.5 * diff * diff / beta, diff - 0.5 * beta).mean()


@program("mmdetection", lambda: (scores(6, 4), torch.randn(6, 4), torch.rand(6, 1)), "l1_loss")
def weighted_l1(pred, target, weight):
    return (torch.abs(pred - target) * weight).sum() / 5


@program("ultralytics", boxes, "ciou_loss")
def ciou_by_quotients(a, b, eps=1e-7):
    (b1_x1, b1_y1, b1_x2, b1_y2), (b2_x1, b2_y1, b2_x2, b2_y2) = a.chunk(4, -1), b.chunk(4, -1)
    w1, h1 = b1_x2 - b1_x1, b1_y2 - b1_y1 + eps
    w2, h2 = b2_x2 - b2_x1, b2_y2 - b2_y1 + eps
    inter = (b1_x2.minimum(b2_x2) - b1_x1.maximum(b2_x1)).clamp_(0) * (
        b1_y2.minimum(b2_y2) - b1_y1.maximum(b2_y1)
    ).clamp_(0)
    union = w1 * h1 + w2 * h2 - inter + eps
    iou = inter / union
    cw = b1_x2.maximum(b2_x2) - b1_x1.minimum(b2_x1)
    ch = b1_y2.maximum(b2_y2) - b1_y1.minimum(b2_y1)
    c2 = cw.pow(2) + ch.pow(2) + eps
    rho2 = ((b2_x1 + b2_x2 - b1_x1 - b1_x2).pow(2) + (b2_y1 + b2_y2 - b1_y1 - b1_y2).pow(2)) / 4
    v = (4 / math.pi**2) * ((w2 / h2).atan() - (w1 / h1).atan()).pow(2)
    with torch.no_grad():
        alpha = v / (v - iou + (1 + eps))
    return (1.0 - (iou - (rho2 / c2 + v * alpha))).mean()


@program("ultralytics", lambda: (*hard(4, 8), torch.tensor(3.0)), "binary_cross_entropy_with_logits")
def class_loss(x, t, count):
    return F.binary_cross_entropy_with_logits(x, t, reduction="none").sum() / count


@program("ultralytics", lambda: (scores(6, 16), torch.rand(6) * 14), "distribution_focal_loss")
def distribution_focal(dist, target):
    target = target.clamp(0, 16 - 1 - 0.01)
    tl = target.long()
    tr = tl + 1
    wl = tr - target
    wr = 1 - wl
    left = F.cross_entropy(dist, tl.view(-1), reduction="none").view(tl.shape)
    right = F.cross_entropy(dist, tr.view(-1), reduction="none").view(tl.shape)
    return (left * wl + right * wr).mean(-1, keepdim=True).mean()


@program("ultralytics", lambda: hard(4, 8), "focal_loss")
def yolo_focal(pred, label, gamma=1.5, alpha=0.25):
    loss = F.binary_cross_entropy_with_logits(pred, label, reduction="none")
    prob = pred.sigmoid()
    p_t = label * prob + (1 - label) * (1 - prob)
    loss *= (1.0 - p_t) ** gamma
    loss *= label * alpha + (1 - label) * (1 - alpha)
    return loss.mean(1).sum()


# regression


@program("diffusers", lambda: pairs(2, 3, 4), "mse_loss")
def mse_of_means(a, b):
    return ((a - b) ** 2).mean(-1).mean()


@program("diffusers", lambda: (*pairs(2, 3, 4), torch.rand(2)), "mse_loss")
def mse_with_snr(a, b, w):
    loss = F.mse_loss(a.float(), b.float(), reduction="none")
    return (loss.mean(dim=list(range(1, 3))) * w).mean()


@program("mae", lambda: (*pairs(2, 5, 4), (torch.rand(2, 5) > 0.5).float()), "mse_loss")
def mse_of_patches(pred, target, mask):
    loss = ((pred - target) ** 2).mean(dim=-1)
    return (loss * mask).sum() / mask.sum()


@program("a script", lambda: (*pairs(4, 3), (torch.rand(4, 3) > 0.5).float()), "mse_loss")
def masked_mse(pred, target, mask):
    return (((pred - target) ** 2) * mask).sum() / mask.sum()


@program("a script", lambda: (*pairs(4, 3), torch.rand(4, 3) > 0.5), "l1_loss")
def masked_l1(pred, target, mask):
    return ((pred - target).abs() * mask.float()).sum() / mask.float().sum()


@program("a script", lambda: pairs(4, 3), "l1_loss")
def mae(pred, target):
    return (pred - target).abs().mean()


@program("a script", lambda: pairs(4, 3), "mse_loss")
def mse_summed(pred, target):
    return torch.sum(torch.square(pred - target), dim=1).mean()


@program("a script", lambda: pairs(4, 3), "mse_loss")
def rmse(pred, target):
    return torch.sqrt(torch.mean((pred - target).pow(2)))


@program("monodepth", lambda: pairs(4, 3), "huber_loss")
def huber_by_clamp(pred, target, delta=1.345):
    error = (pred - target).abs()
    quadratic = error.clamp(max=delta)
    return (0.5 * quadratic**2 + delta * (error - quadratic)).mean()


@program("stable-baselines", lambda: pairs(4, 3), "huber_loss")
def huber_by_where(pred, target, delta=1.345):
    error = pred - target
    is_small = error.abs() <= delta
    return torch.where(is_small, 0.5 * error.pow(2), delta * (error.abs() - 0.5 * delta)).mean()


@program("detectron2", lambda: pairs(4, 3), "smooth_l1_loss")
def smooth_l1_by_mask(input, target, beta=0.1):
    n = torch.abs(input - target)
    cond = n < beta
    return torch.where(cond, 0.5 * n**2 / beta, n - 0.5 * beta).sum()


@program("a vae", lambda: (scores(4, 3), torch.rand(4, 3) + 0.5, torch.randn(4, 3)), "gaussian_nll_loss")
def by_distribution(mean, scale, y):
    return -torch.distributions.Normal(mean, scale, validate_args=False).log_prob(y).mean()


@program("a vae", lambda: (scores(4, 3), scores(4, 3), torch.randn(4, 3)), "gaussian_nll_loss")
def by_log_variance(mean, s, y):
    return (0.5 * (torch.exp(-s) * (mean - y) ** 2 + s)).mean()


@program("a vae", lambda: (scores(4, 3), scores(4, 3), torch.randn(4, 3)), "gaussian_nll_loss")
def by_clamped_log_variance(mean, s, y):
    s = s.clamp(-10, 2)
    return (0.5 * (torch.exp(-s) * (mean - y) ** 2 + s)).mean()


@program("a vae", lambda: (scores(4, 3), torch.rand(4, 3) + 0.1, torch.randn(4, 3)), "gaussian_nll_loss")
def by_variance(mean, var, y, eps=1e-6):
    var = var.clamp(min=eps)
    return (0.5 * (torch.log(var) + (mean - y) ** 2 / var)).mean()


@program("deepar", lambda: (scores(4, 3), torch.randint(0, 5, (4, 3)).float()), "poisson_nll_loss")
def poisson(log_rate, count):
    return (torch.exp(log_rate) - count * log_rate).mean()


# pairs, margins


@program("open_clip", lambda: (scores(4, 4), 2 * torch.eye(4) - 1), "soft_margin_loss")
def siglip(logits, labels):
    return -F.logsigmoid(labels * logits).sum() / 4


@program("transformers siglip", lambda: (scores(4, 4),), "soft_margin_loss")
def siglip_of_eye(logits):
    eye = torch.eye(logits.size(0), device=logits.device)
    m1_diag1 = -torch.ones_like(logits) + 2 * eye
    loglik = F.logsigmoid(m1_diag1 * logits)
    return -torch.sum(loglik, dim=-1).mean()


@program("trl", lambda: (scores(6),), "binary_cross_entropy_with_logits")
def robust_dpo(logits, smoothing=0.1, beta=0.1):
    """Both softplus have one logit: cross entropy of a constant target."""
    losses = -F.logsigmoid(beta * logits) * (1 - smoothing) - F.logsigmoid(-beta * logits) * smoothing
    return losses.mean()


@program("trl", lambda: tokens(9, 2, 5), "cross_entropy")
def selective_log_softmax(logits, index):
    logits = logits / 0.9
    return torch.gather(logits.log_softmax(-1), dim=-1, index=index.unsqueeze(-1)).squeeze(-1)


@program("trl", lambda: tokens(9, 2, 5), "cross_entropy")
def selective_by_logsumexp(logits, index):
    picked = torch.gather(logits, dim=-1, index=index.unsqueeze(-1)).squeeze(-1)
    return picked - torch.logsumexp(logits, dim=-1)


@program("trl", lambda: (*tokens(9, 2, 5), (torch.rand(2, 5) > 0.3)), "cross_entropy")
def sft_by_mask(logits, labels, mask):
    log_p = logits.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return -(log_p * mask).sum() / mask.sum()


@program("pytorch-metric-learning", lambda: (scores(5, 8), scores(5, 8), scores(5, 8)), "triplet_margin_loss")
def triplet_by_relu(a, p, n, margin=0.2):
    return F.relu(F.pairwise_distance(a, p) - F.pairwise_distance(a, n) + margin).mean()


@program("sentence-transformers", lambda: (scores(5, 8), scores(5, 8), scores(5, 8)), "triplet_margin_loss")
def triplet_of_modules(a, p, n, margin=5.0):
    pos, neg = F.pairwise_distance(a, p, p=2), F.pairwise_distance(a, n, p=2)
    return F.relu(pos - neg + margin).mean()


@program("a ranker", lambda: (scores(5), scores(5), torch.randint(0, 2, (5,)) * 2.0 - 1), "margin_ranking_loss")
def ranking_by_relu(x, y, t, margin=0.3):
    return F.relu(-t * (x - y) + margin).mean()


@program("a ranker", lambda: (scores(5), scores(5), torch.randint(0, 2, (5,)) * 2.0 - 1), "margin_ranking_loss")
def ranking_by_clamp(x, y, t, margin=0.3):
    return torch.clamp(margin - t * (x - y), min=0).mean()


@program("sentence-transformers", lambda: (scores(5, 8), scores(5, 8)), "cross_entropy")
def multiple_negatives(a, b, scale=20.0):
    a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    logits = a @ b.T * scale
    return F.cross_entropy(logits, torch.arange(logits.size(0), device=logits.device))


@program("open_clip", lambda: (scores(5, 8), scores(5, 8)), "clip_loss")
def clip(a, b):
    logits = 14.0 * a @ b.T
    labels = torch.arange(logits.shape[0], device=logits.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


# classes


@program("transformers trainer", lambda: ignored(9, 2, 5), "cross_entropy")
def label_smoother(logits, labels, epsilon=0.1, ignore_index=-100):
    log_probs = -F.log_softmax(logits, dim=-1)
    labels = labels.unsqueeze(-1)
    padding_mask = labels.eq(ignore_index)
    labels = torch.clamp(labels, min=0)
    nll_loss = log_probs.gather(dim=-1, index=labels)
    smoothed_loss = log_probs.sum(dim=-1, keepdim=True, dtype=torch.float32)
    nll_loss.masked_fill_(padding_mask, 0.0)
    smoothed_loss.masked_fill_(padding_mask, 0.0)
    num_active = padding_mask.numel() - padding_mask.long().sum()
    nll_loss = nll_loss.sum() / num_active
    smoothed_loss = smoothed_loss.sum() / (num_active * log_probs.shape[-1])
    return (1 - epsilon) * nll_loss + epsilon * smoothed_loss


@program("segmentation-models-pytorch", lambda: tokens(9, 7), "cross_entropy")
def smoothed_nll(x, target, epsilon=0.1):
    lprobs = F.log_softmax(x, -1)
    target = target.unsqueeze(-1)
    nll = -lprobs.gather(dim=-1, index=target).squeeze(-1)
    smooth = -lprobs.sum(dim=-1, keepdim=True).squeeze(-1)
    return (1.0 - epsilon) * nll.mean() + epsilon / lprobs.size(-1) * smooth.mean()


@program("fairseq", lambda: (scores(7, 9), torch.randint(0, 9, (7,))), "cross_entropy")
def smoothed_with_padding(x, target, epsilon=0.1, ignore_index=1):
    lprobs = F.log_softmax(x, -1)
    target = target.unsqueeze(-1)
    nll = -lprobs.gather(dim=-1, index=target)
    smooth = -lprobs.sum(dim=-1, keepdim=True)
    pad = target.eq(ignore_index)
    nll.masked_fill_(pad, 0.0)
    smooth.masked_fill_(pad, 0.0)
    nll, smooth = nll.sum(), smooth.sum()
    eps = epsilon / (lprobs.size(-1) - 1)
    return (1.0 - epsilon - eps) * nll + eps * smooth


@program("timm", lambda: labelled(9, 7), "cross_entropy")
def label_smoothing(x, target, smoothing=0.1):
    logprobs = F.log_softmax(x, dim=-1)
    nll = -logprobs.gather(dim=-1, index=target.unsqueeze(1)).squeeze(1)
    return ((1 - smoothing) * nll + smoothing * -logprobs.mean(dim=-1)).mean()


@program("timm", lambda: (scores(7, 9), torch.rand(7, 9).softmax(1)), "cross_entropy")
def soft_target(x, target):
    return torch.sum(-target * F.log_softmax(x, dim=-1), dim=-1).mean()


@program("timm", lambda: (scores(7, 9), torch.rand(7, 9)), "binary_cross_entropy_with_logits")
def bce_summed(x, target):
    return F.binary_cross_entropy_with_logits(x, target, reduction="none").sum(-1).mean()


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_arange(x, y):
    return -F.log_softmax(x, 1)[torch.arange(len(y)), y].mean()


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_arange_of_size(x, y):
    return -torch.log_softmax(x, -1)[range(x.size(0)), y].mean()


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_one_hot(x, y):
    return -(F.one_hot(y, 5).float() * F.log_softmax(x, 1)).sum(1).mean()


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_one_hot_flat(x, y):
    return -(F.one_hot(y, 5) * F.log_softmax(x, 1)).sum() / x.shape[0]


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_logsumexp(x, y):
    return (x.logsumexp(1) - x.gather(1, y[:, None]).squeeze(1)).mean()


@program("a script", lambda: labelled(5, 7), "cross_entropy")
def by_log_of_softmax(x, y):
    return F.nll_loss(torch.log(F.softmax(x, 1)), y)


@program("a script", lambda: (*labelled(5, 7), torch.rand(5)), "cross_entropy")
def weights_by_hand(x, y, w):
    ce = F.cross_entropy(x, y, reduction="none")
    return (ce * w[y]).sum() / w[y].sum()


@program("a script", lambda: (*labelled(5, 7), torch.rand(5)), "cross_entropy")
def weights_gathered(x, y, w):
    log_p = F.log_softmax(x, 1)
    return -(w[y] * log_p.gather(1, y.unsqueeze(1)).squeeze(1)).mean()


@program("nanogpt", lambda: ignored(9, 2, 5), "cross_entropy")
def of_tokens(logits, targets):
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-100)


@program("transformers", lambda: ignored(9, 2, 5), "cross_entropy")
def of_shifted_tokens(logits, labels):
    logits = logits.float()
    labels = F.pad(labels, (0, 1), value=-100)
    shift = labels[..., 1:].contiguous()
    return F.cross_entropy(logits.view(-1, 9), shift.view(-1), ignore_index=-100, reduction="sum") / 7


@program("a language model", lambda: (scores(6, 8), scores(11, 8), torch.randint(0, 11, (6,))), "linear_cross_entropy",
         heads=True)  # fmt: skip
def head(h, w, y):
    return F.cross_entropy(F.linear(h, w), y)


@program("a language model", lambda: (scores(2, 3, 8), scores(11, 8), torch.randint(0, 11, (2, 3))),
         "linear_cross_entropy", heads=True)  # fmt: skip
def head_of_tokens(h, w, y):
    logits = F.linear(h, w)
    return F.cross_entropy(logits.view(-1, 11), y.view(-1))


@program("a language model", lambda: ignored(9, 2, 5), "cross_entropy")
def with_mask(logits, labels):
    mask = labels != -100
    safe = labels.masked_fill(~mask, 0)
    log_p = F.log_softmax(logits, -1).gather(-1, safe.unsqueeze(-1)).squeeze(-1)
    return -(log_p * mask).sum() / mask.sum()


@program("a teacher", lambda: (scores(6, 5), torch.randn(6, 5)), "distillation_loss")
def distilled(s, teacher, t=4.0):
    return F.kl_div(F.log_softmax(s / t, 1), F.softmax(teacher / t, 1), reduction="batchmean") * t * t


@program("a teacher", lambda: (scores(6, 5), torch.randn(6, 5)), "kl_div")
def divergence_by_hand(s, teacher):
    log_q, log_p = F.log_softmax(s, 1), F.log_softmax(teacher, 1)
    return (log_p.exp() * (log_p - log_q)).sum(1).mean()


# regions


@program("a u-net", lambda: hard(3, 1, 4, 4), "dice_loss")
def dice_flat(x, t, smooth=1.0):
    x = torch.sigmoid(x).view(-1)
    t = t.view(-1)
    intersection = (x * t).sum()
    return 1 - (2.0 * intersection + smooth) / (x.sum() + t.sum() + smooth)


@program("a u-net", lambda: hard(3, 1, 4, 4), "dice_loss")
def dice_of_one_channel(x, t, smooth=1.0):
    p = torch.sigmoid(x)
    inter = (p * t).sum((2, 3))
    return (1 - (2 * inter + smooth) / (p.sum((2, 3)) + t.sum((2, 3)) + smooth)).mean()


@program("monai", lambda: hard(3, 2, 4, 4), "dice_loss")
def dice_by_channel(x, t, nr=1e-5, dr=1e-5):
    p = torch.sigmoid(x)
    inter = torch.sum(t * p, dim=[2, 3])
    denominator = torch.sum(t, dim=[2, 3]) + torch.sum(p, dim=[2, 3])
    return torch.mean(1.0 - (2.0 * inter + nr) / (denominator + dr))


@program("monai", lambda: hard(3, 2, 4, 4), "dice_loss")
def dice_by_channel_squared(x, t, nr=1e-5, dr=1e-5):
    p = torch.sigmoid(x)
    inter = torch.sum(t * p, dim=[2, 3])
    denominator = torch.sum(t**2, dim=[2, 3]) + torch.sum(p**2, dim=[2, 3])
    return torch.mean(1.0 - (2.0 * inter + nr) / (denominator + dr))


@program("monai", lambda: hard(3, 2, 4, 4), "dice_loss")
def dice_of_batch_by_channel(x, t, nr=1e-5, dr=1e-5):
    p = torch.sigmoid(x)
    inter = torch.sum(t * p, dim=[0, 2, 3])
    denominator = torch.sum(t, dim=[0, 2, 3]) + torch.sum(p, dim=[0, 2, 3])
    return torch.mean(1.0 - (2.0 * inter + nr) / (denominator + dr))


@program("monai", lambda: hard(3, 3, 4, 4), "dice_loss")
def dice_without_background(x, t, nr=1e-5, dr=1e-5):
    p = torch.sigmoid(x)[:, 1:]
    t = t[:, 1:]
    inter = torch.sum(t * p, dim=[2, 3])
    denominator = torch.sum(t, dim=[2, 3]) + torch.sum(p, dim=[2, 3])
    return torch.mean(1.0 - (2.0 * inter + nr) / (denominator + dr))


@program("monai", lambda: hard(3, 3, 4, 4), "dice_loss")
def dice_of_softmax(x, t, nr=1e-5, dr=1e-5):
    """No op: dice_loss has a sigmoid inside."""
    p = torch.softmax(x, 1)
    inter = torch.sum(t * p, dim=[2, 3])
    denominator = torch.sum(t, dim=[2, 3]) + torch.sum(p, dim=[2, 3])
    return torch.mean(1.0 - (2.0 * inter + nr) / (denominator + dr))


@program("a u-net", lambda: hard(3, 1, 4, 4), "dice_loss")
def dice_by_einsum(x, t, smooth=1.0):
    p = torch.sigmoid(x)
    inter = torch.einsum("nchw,nchw->n", p, t)
    return (1 - (2 * inter + smooth) / (p.sum((1, 2, 3)) + t.sum((1, 2, 3)) + smooth)).mean()


@program("a u-net", lambda: hard(3, 1, 4, 4), "dice_loss")
def dice_without_brackets(x, t, smooth=1.0):
    p = torch.sigmoid(x).flatten(1)
    t = t.flatten(1)
    score = (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return 1 - score.mean()


@program("a u-net", lambda: hard(3, 1, 4, 4), "dice_loss", "binary_cross_entropy_with_logits")
def bce_and_dice(x, t, smooth=1e-5):
    bce = F.binary_cross_entropy_with_logits(x, t)
    p = torch.sigmoid(x)
    num = t.size(0)
    p, t = p.view(num, -1), t.view(num, -1)
    dice = (2.0 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)
    return 0.5 * bce + (1 - dice.sum() / num)


@program("segmentation-models-pytorch", lambda: hard(3, 1, 4, 4), "dice_loss")
def dice_clamped(x, t, smooth=0.0, eps=1e-7):
    p = F.logsigmoid(x).exp().reshape(3, 1, -1)
    t = t.reshape(3, 1, -1)
    inter, cardinality = torch.sum(p * t, dim=(0, 2)), torch.sum(p + t, dim=(0, 2))
    score = (2.0 * inter + smooth) / (cardinality + smooth).clamp_min(eps)
    loss = (1.0 - score) * (t.sum((0, 2)) > 0).to(p.dtype)
    return loss.mean()


# activations


@program("a script", lambda: (scores(4, 3),), "mish")
def mish_by_log1p(x):
    return x * torch.tanh(torch.log1p(torch.exp(x)))


@program("a script", lambda: (scores(4, 3),), "swish")
def swish_by_hand(x):
    return x * torch.sigmoid(x)


@program("mobilenet", lambda: (scores(4, 3),), "hard_swish")
def hard_swish_by_hand(x):
    return x * F.relu6(x + 3) / 6


@program("yolo", lambda: (scores(4, 3),), "swish")
def silu_in_place(x):
    return F.silu(x * 2, inplace=True)


# mixed precision


@program("amp", lambda: hard(3, 4), "focal_loss")
def focal_under_autocast(x, t, alpha=0.25, gamma=2.0):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = F.linear(x, torch.eye(4))
        p = torch.sigmoid(x)
        ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
        p_t = p * t + (1 - p) * (1 - t)
        loss = ce * ((1 - p_t) ** gamma)
        return ((alpha * t + (1 - alpha) * (1 - t)) * loss).mean()


@program("amp", lambda: hard(3, 4), "dice_loss")
def dice_under_autocast(x, t, smooth=1.0):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        p = torch.sigmoid(F.linear(x, torch.eye(4)))
        return (1 - (2 * (p * t).sum(1) + smooth) / (p.sum(1) + t.sum(1) + smooth)).mean()


@program("amp", lambda: labelled(4, 6), "softmax_focal_loss")
def softmax_focal_under_autocast(x, y, gamma=2.0):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ce = F.cross_entropy(F.linear(x, torch.eye(4)), y, reduction="none")
        return ((1 - torch.exp(-ce)) ** gamma * ce).mean()


# the count


@dataclass(frozen=True)
class Found:
    program: Program
    swapped: int
    left: int
    missed: int
    why: str
    difference: str


def look(p: Program) -> Found:
    torch._dynamo.reset()
    torch.manual_seed(0)
    inputs = p.inputs()
    reports = []

    def backend(module: torch.fx.GraphModule, example_inputs: Any) -> Any:
        new, report = opreg.fuse(module, **p.options)
        reports.append(report)
        return new

    want = p.function(*inputs)
    got = torch.compile(p.function, backend=backend)(*inputs)
    leaves = [t for t in inputs if t.requires_grad]
    difference = ""
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if p.source.endswith("amp") else {}
    try:
        torch.testing.assert_close(got, want, **tolerance)
        gradients = [torch.autograd.grad(y.sum(), leaves) for y in (got, want)]
        torch.testing.assert_close(*gradients, **tolerance)
    except AssertionError as error:
        difference = str(error).splitlines()[0]
    wanted = list(p.ops)
    for s in (s for r in reports for s in r.swapped):
        if s.op in wanted:
            wanted.remove(s.op)
    reasons = [f"{e.what}: {e.why}" for r in reports for e in r.left]
    left = min(len(wanted), len(reasons))
    return Found(
        p, len(p.ops) - len(wanted), left, len(wanted) - left, "; ".join(reasons) if wanted else "", difference
    )


def main(only: str = "") -> None:
    found = [look(p) for p in PROGRAMS if only in f"{p.source} {p.name}"]
    for f in found:
        state = "swapped" if not f.left + f.missed else "MISSED" if f.missed else "left"
        line = f"{state:8}{f.program.source:28}{f.program.name:30}{','.join(f.program.ops)}  {f.why}"
        print(line, f.difference and f"DIFFERS {f.difference}")
    sites = sum(len(f.program.ops) for f in found)
    swapped, left = sum(f.swapped for f in found), sum(f.left for f in found)
    print(f"{sites} sites: {swapped} swapped, {left} left with a reason, {sites - swapped - left} missed")


if __name__ == "__main__":
    main(*sys.argv[1:])
