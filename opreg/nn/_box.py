"""A box loss with a state of its own."""

import torch
from torch import Tensor

from .._library import OPS
from ..messages.checks import check_options
from ..messages.words import require_number, require_tensor, said
from ..registry import get
from ._wide_buffers import WideBuffers, wide


class WIoULoss(WideBuffers):
    """Wise IoU: boxes of ordinary quality count most, those that are far better or worse than the mean count less.

    The module keeps the running mean of 1 − iou, in ``iou_mean``: updated in training mode before it is used, left
    alone in evaluation mode and by a batch without boxes. It is a buffer, part of the state dict, and float32 at least,
    whatever the module's dtype. Each process of a distributed training keeps its own.

    Args:
        momentum: m in mean ← (1 − m) · mean + m · (1 − iou), in (0, 1]. By default from the next two.
        batches_per_epoch: n of the paper, with ``epochs``: m = 1 − 0.05^(1/(t·n)).
        epochs: t of the paper, after how many the mean has forgotten 95 % of its start at 1. Without momentum, n and t
            it is t·n = 7000, the least that the paper advises.
        version: ``"v3"``, or ``"v1"``: without focusing, and without use for the mean.
        alpha: of the focusing; > 0.
        delta: of the focusing: the quality β that has the factor 1; > 0.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        eps: added to divisors; >= 0.

    Call:
        input: boxes (..., 4), xyxy with x2 >= x1, y2 >= y1.
        target: boxes of the shape of ``input``, each the partner of the one at its place.

    Returns:
        The loss, 0-d, or one value a box with reduction ``"none"``.

    Raises:
        ValueError: momentum out of range or given together with n and t, one of these alone, an unknown version.
        RuntimeError: those of ``opreg.functional.wiou_loss``.

    Formula:
        r · exp(ρ²/c²) · (1 − iou), r = β/(δ·α^(β−δ)), β = (1 − iou)/iou_mean; r, c² and β are constants

    Source:
        arXiv 2301.10051

    Example:
        >>> criterion = opreg.nn.WIoULoss(batches_per_epoch=500, epochs=20)
        >>> target = torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 5.0]])  # xyxy
        >>> boxes = (target + 0.5).requires_grad_()
        >>> criterion(boxes, target).backward()
    """

    wide_buffers = ("iou_mean",)
    iou_mean: Tensor

    def __init__(
        self,
        momentum: float | None = None,
        *,
        batches_per_epoch: int | None = None,
        epochs: int | None = None,
        version: str = "v3",
        alpha: float = 1.9,
        delta: float = 3.0,
        reduction: str = "mean",
        eps: float = 1e-7,
    ) -> None:
        super().__init__()
        check_options(get("wiou_loss"), {"alpha": alpha, "delta": delta, "reduction": reduction, "eps": eps})
        for name, given in (("momentum", momentum), ("batches_per_epoch", batches_per_epoch), ("epochs", epochs)):
            if given is not None:
                require_number("WIoULoss", name, given)
        pair = (batches_per_epoch, epochs)
        if version not in ("v1", "v3"):
            raise ValueError(f'WIoULoss: expected version "v1" or "v3", got {said(version)}')
        if (batches_per_epoch is None) != (epochs is None) or (momentum is not None and epochs is not None):
            raise ValueError(f"WIoULoss: expected momentum, or batches_per_epoch and epochs, got {momentum} and {pair}")
        if momentum is None:
            updates = 7000 if batches_per_epoch is None or epochs is None else batches_per_epoch * epochs
            if updates < 1:
                raise ValueError(f"WIoULoss: expected batches_per_epoch >= 1 and epochs >= 1, got {pair}")
            momentum = 1 - 0.05 ** (1 / updates)
        if not 0 < momentum <= 1:
            raise ValueError(f"WIoULoss: expected momentum in (0, 1], got {momentum}")
        self.momentum, self.version = momentum, version
        self.alpha, self.delta = alpha, delta
        self.reduction, self.eps = reduction, eps
        self.register_buffer("iou_mean", torch.ones((), dtype=wide(torch.get_default_dtype())))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        require_tensor("WIoULoss", "input", input)
        require_tensor("WIoULoss", "target", target)
        mean = None
        if self.version == "v3":
            if self.training:
                self._update(input.detach(), target.detach())
            mean = self.iou_mean.clone()  # a copy, because the next update is in place
        loss: Tensor = OPS.wiou_loss(input, target, mean, self.alpha, self.delta, self.reduction, self.eps)
        return loss

    @torch.no_grad()
    def _update(self, input: Tensor, target: Tensor) -> None:
        batch = OPS.iou_loss(input, target, "mean", self.eps, dtype=self.iou_mean.dtype)
        # the mean over no boxes is NaN, and the running mean would stay NaN
        self.iou_mean.lerp_(torch.where(batch.isnan(), self.iou_mean, batch), self.momentum)

    def extra_repr(self) -> str:
        names = ("momentum", "version", "alpha", "delta", "reduction", "eps")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
