"""The last layer and its loss in one."""

import math

import torch
from torch import Tensor

from .._library import OPS
from ..messages.checks import check_options
from ..messages.words import require_sizes
from ..registry import get


class LinearCrossEntropyLoss(torch.nn.Module):
    """Cross entropy of a linear layer's scores, which are never held as a whole: for large vocabularies.

    The module owns the layer, ``linear``; its parameters go to the optimizer too.

    Args:
        in_features: length of a row of the input, D.
        num_classes: number of classes, C.
        out_features: (d1 … dk), for k-dimensional losses, one linear layer a place.
        bias: whether the layer has one.
        device: of the layer.
        dtype: of the layer.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        weight: a factor for each class, (C); constant.
        ignore_index: the target value whose rows count for nothing, any integer; None means −100. For class
            indices alone.
        label_smoothing: share of the target's mass that is spread over all classes, in [0, 1].
        options: taken for torch's sake: the size of the chunks is the op's own choice.

    Call:
        input: (N, D) or (D), or (..., D) with several leading dimensions; with ``out_features``, (N, D).
        target: class indices (N), () or (...), int64, int32 or uint8; or probabilities (N, C), (C) or (..., C).
            With ``out_features``: (N, d1 … dk) or (N, C, d1 … dk).

    Returns:
        The loss, 0-d, or of the shape of the indices with reduction ``"none"``.

    Raises:
        RuntimeError: those of ``opreg.functional.linear_cross_entropy``.

    Formula:
        cross_entropy(input · Wᵀ + b, target)

    Source:
        torch.nn.LinearCrossEntropyLoss

    Example:
        >>> criterion = opreg.nn.LinearCrossEntropyLoss(64, 1000)
        >>> hidden, target = torch.randn(8, 64), torch.randint(0, 1000, (8,))  # a class index a row
        >>> criterion(hidden, target).backward()
    """

    weight: Tensor | None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object = None,
    ) -> None:
        super().__init__()
        require_sizes("LinearCrossEntropyLoss", in_features=in_features, num_classes=num_classes)
        check_options(
            get("linear_cross_entropy"),
            {
                "reduction": reduction,
                "weight": weight,
                "ignore_index": -100 if ignore_index is None else ignore_index,
                "label_smoothing": label_smoothing,
            },
        )
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing, self.options = label_smoothing, options
        self.register_buffer("weight", weight)
        outputs = math.prod(self.out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        rest = (
            self.weight,
            -100 if self.ignore_index is None else self.ignore_index,
            self.reduction,
            self.label_smoothing,
        )
        weight, bias = self.linear.weight, self.linear.bias
        if self.out_features:
            weight = weight.unflatten(0, (self.num_classes, *self.out_features))
            bias = None if bias is None else bias.unflatten(0, (self.num_classes, *self.out_features))
        loss: Tensor = OPS.linear_cross_entropy(input, weight, target, bias, *rest)
        return loss

    def extra_repr(self) -> str:
        names = ("num_classes", "out_features", "reduction", "ignore_index", "label_smoothing")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
