"""A margin classifier over more classes than one process holds, trained on a sample of them."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..messages.checks import check_options
from ..messages.words import require_sizes, require_tensor
from ..registry import get
from ._angular import _normalized

MARGINS = {"arcface_loss": 0.5, "amsoftmax_loss": 0.35}
SCALES = {"arcface_loss": 64.0, "amsoftmax_loss": 30.0}


class PartialFC(torch.nn.Module):
    """ArcFace or AMSoftmax with the class centres split over processes, and a part of them sampled in each step.

    For millions of classes: no process holds more than its own centres, a step computes with the classes of the batch
    and a random part of the others, and cosines never leave a process. Each process brings a batch of its own, and all
    the same number of rows. Its centres differ from process to process: leave it out of DistributedDataParallel. Where
    ``torch.distributed`` is not initialized, one process has all classes.

    Args:
        in_features: length of an embedding.
        num_classes: number of classes of all processes together, C. Each process has ``ceil(C / processes)``, the last
            ones the rest.
        sample_rate: the part of its classes that a process takes into a step, in (0, 1]; 1 is all of them. The classes
            of the batch are always among them.
        loss: ``"arcface_loss"`` or ``"amsoftmax_loss"``.
        margin: of the loss; None is the loss's own default, 0.5 or 0.35.
        scale: of all cosines; None is 64 or 30.
        ignore_index: the target value whose rows count for nothing; any integer.
        gradient_scale: a factor of the gradient of the features. The gradient is that of the mean over the batches of
            all processes; DistributedDataParallel divides by the number of processes once more, so give that number
            where the features come from a model that is wrapped in it.
        group: the process group; None is the default one.
        device: of the centres.
        dtype: of the centres.

    Call:
        features: this process's embeddings (N, in_features); their length is of no consequence.
        target: class indices (N) among all classes, int64, int32 or uint8.

    Returns:
        The mean over the rows of all processes that count, 0-d, the same on each.

    Raises:
        RuntimeError: a loss, a sample_rate or an option that is none; shapes that do not fit. A class index out of
            range makes the loss NaN.

    Formula:
        the mean of the loss over cos θ of all rows and the sampled centres of all processes

    Source:
        An et al., Partial FC, arXiv 2010.05222

    Example:
        >>> head = opreg.nn.PartialFC(128, 1000, sample_rate=0.1)
        >>> embeddings, target = torch.randn(8, 128), torch.randint(0, 1000, (8,))  # a class index a row
        >>> head(embeddings, target).backward()
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        sample_rate: float = 1.0,
        loss: str = "arcface_loss",
        margin: float | None = None,
        scale: float | None = None,
        ignore_index: int = -100,
        gradient_scale: float = 1.0,
        group: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        require_sizes("PartialFC", in_features=in_features, num_classes=num_classes)
        if loss not in MARGINS:
            raise RuntimeError(f'PartialFC: expected loss "arcface_loss" or "amsoftmax_loss", got "{loss}"')
        if not 0 < sample_rate <= 1:
            raise RuntimeError(f"PartialFC: expected sample_rate in (0, 1], got {sample_rate}")
        self.margin = MARGINS[loss] if margin is None else margin
        self.scale = SCALES[loss] if scale is None else scale
        check_options(get(loss), {"margin": self.margin, "scale": self.scale, "ignore_index": ignore_index})
        self.in_features, self.num_classes, self.sample_rate, self.loss = in_features, num_classes, sample_rate, loss
        self.ignore_index, self.gradient_scale = ignore_index, gradient_scale
        self.group: str | None = None
        self.processes, rank = 1, 0
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            member: Any = group or torch.distributed.group.WORLD
            self.group = member.group_name
            self.processes, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
        # as opreg.distributed splits classes, which is not imported where there is one process
        each = -(-num_classes // self.processes)
        self.first_class = min(rank * each, num_classes)
        own = min(each, num_classes - self.first_class)
        self.weight = torch.nn.Parameter(torch.empty(own, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.weight, std=0.01)

    def sampled(self, target: Tensor) -> Tensor:
        """The places of this process's classes that take part in a step, in ascending order."""
        own = self.weight.shape[0]
        # as many at least as the batch may have classes here: then its size does not depend on values
        size = min(own, max(round(self.sample_rate * own), target.shape[0]))
        if size == own:
            return torch.arange(own, device=target.device)
        place = target.long() - self.first_class
        place = torch.where((place >= 0) & (place < own), place, own)
        chance = torch.rand(own + 1, device=target.device).index_fill(0, place, 2.0)
        return chance[:own].topk(size).indices.sort().values

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        from ..distributed import _classes
        from ..distributed._collectives import Gather, gathered

        require_tensor("PartialFC", "features", features)
        if features.dim() != 2 or features.shape[1] != self.in_features or target.shape != features.shape[:1]:
            raise RuntimeError(
                f"PartialFC: expected features of shape [N, {self.in_features}] and target of shape [N], got "
                f"{list(features.shape)} and {list(target.shape)}"
            )
        if self.processes > 1:
            gather: Any = Gather.apply
            features = gather(features, self.group, self.processes, self.gradient_scale)
            target = gathered(target, str(self.group), self.processes)
        places = self.sampled(target)
        centres = self.weight if places.numel() == self.weight.shape[0] else self.weight[places]
        cosine = F.linear(_normalized(features), _normalized(centres))
        groups = (str(self.group),) if self.processes > 1 else ()
        shard = _classes.Shard(groups, self.first_class, places.numel(), self.num_classes, self.first_class + places)
        options = {"margin": self.margin, "scale": self.scale, "ignore_index": self.ignore_index}
        losses: Tensor = _classes.ROWS[self.loss](shard, {"cosine": cosine, "target": target, **options})[0]
        return losses.sum() / (target != self.ignore_index).sum()

    def extra_repr(self) -> str:
        names = ("in_features", "num_classes", "sample_rate", "loss", "margin", "scale", "ignore_index")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
