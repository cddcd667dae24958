"""Classifiers on the hypersphere: cosines of features and class centres, with a margin for the target."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .._library import OPS
from ..messages.checks import check_options
from ..messages.words import require_sizes, require_tensor
from ..registry import get


class _MarginSoftmax(torch.nn.Module):
    """Holds a centre for each class, ``weight`` (num_classes, in_features)."""

    loss: ClassVar[str]

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        margin: float,
        scale: float,
        ignore_index: int,
        reduction: str,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        require_sizes(type(self).__name__, in_features=in_features, num_classes=num_classes)
        options = {"margin": margin, "scale": scale, "ignore_index": ignore_index, "reduction": reduction}
        check_options(get(self.loss), options)
        self.in_features, self.num_classes = in_features, num_classes
        self.margin, self.scale = margin, scale
        self.ignore_index, self.reduction = ignore_index, reduction
        self.weight = torch.nn.Parameter(torch.empty(num_classes, in_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.xavier_uniform_(self.weight)

    def cosine(self, features: Tensor) -> Tensor:
        """cos θ of each row of ``features`` (N, in_features) and each centre: (N, num_classes)."""
        require_tensor(type(self).__name__, "features", features)
        return F.linear(_normalized(features), _normalized(self.weight))

    def logits(self, features: Tensor) -> Tensor:
        """The scores without a margin, scale · cos θ: for inference, where there is no target."""
        return self.scale * self.cosine(features)

    def forward(self, features: Tensor, target: Tensor) -> Tensor:
        margin_loss = getattr(OPS, self.loss)
        loss: Tensor = margin_loss(
            self.cosine(features), target, self.margin, self.scale, self.ignore_index, self.reduction
        )
        return loss

    def extra_repr(self) -> str:
        names = ("in_features", "num_classes", "margin", "scale", "ignore_index", "reduction")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)


def _normalized(x: Tensor) -> Tensor:
    # torch's eps of 1e-12 is 0 in float16, where a row of zeros would give NaN
    return F.normalize(x, dim=-1, eps=max(1e-12, torch.finfo(x.dtype).tiny))


class AMSoftmax(_MarginSoftmax):
    """Additive margin softmax (CosFace): the target's cosine must lead the others by ``margin``.

    For embeddings that are compared by their cosine: faces, speakers, products. The module owns the class centres, so
    its parameters go to the optimizer too; at inference compare embeddings, or take ``logits``.

    Args:
        in_features: length of an embedding.
        num_classes: number of classes, C.
        margin: taken from the target's cosine.
        scale: of all cosines, the inverse temperature; > 0.
        ignore_index: the target value whose rows count for nothing; any integer.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        device: of the centres.
        dtype: of the centres.

    Call:
        features: embeddings (N, in_features); their length is of no consequence.
        target: class indices (N), int64, int32 or uint8.

    Returns:
        The loss, 0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: those of ``opreg.functional.amsoftmax_loss``.

    Formula:
        cross entropy of scale · (cos θ − margin · onehot(target))

    Source:
        arXiv 1801.05599

    Example:
        >>> head = opreg.nn.AMSoftmax(128, 10)
        >>> embeddings, target = torch.randn(8, 128), torch.randint(0, 10, (8,))  # a class index a row
        >>> head(embeddings, target).backward()
        >>> predicted = head.logits(embeddings).argmax(1)
    """

    loss = "amsoftmax_loss"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        margin: float = 0.35,
        scale: float = 30.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, margin, scale, ignore_index, reduction, device, dtype)


class ArcFace(_MarginSoftmax):
    """Additive angular margin softmax: the target's angle must be smaller than the others' by ``margin``.

    For embeddings that are compared by their angle: faces, speakers, products. The module owns the class centres, so
    its parameters go to the optimizer too; at inference compare embeddings, or take ``logits``.

    Args:
        in_features: length of an embedding.
        num_classes: number of classes, C.
        margin: added to the target's angle, in radians.
        scale: of all cosines, the inverse temperature; > 0.
        ignore_index: the target value whose rows count for nothing; any integer.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        device: of the centres.
        dtype: of the centres.

    Call:
        features: embeddings (N, in_features); their length is of no consequence.
        target: class indices (N), int64, int32 or uint8.

    Returns:
        The loss, 0-d, or (N) with reduction ``"none"``.

    Raises:
        RuntimeError: those of ``opreg.functional.arcface_loss``.

    Formula:
        cross entropy of scale · cos θ, with cos(θ + margin) for the target; cos θ − margin · sin(margin) where
        θ + margin would leave [0, π]

    Source:
        arXiv 1801.07698

    Example:
        >>> head = opreg.nn.ArcFace(128, 10)
        >>> embeddings, target = torch.randn(8, 128), torch.randint(0, 10, (8,))  # a class index a row
        >>> head(embeddings, target).backward()
        >>> predicted = head.logits(embeddings).argmax(1)
    """

    loss = "arcface_loss"

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        margin: float = 0.5,
        scale: float = 64.0,
        ignore_index: int = -100,
        reduction: str = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, num_classes, margin, scale, ignore_index, reduction, device, dtype)
