"""The last layer and its loss in one."""

import math

import torch
from torch import Tensor

from .._library import OPS
from ..messages.checks import check_options
from ..messages.words import require_sizes
from ..registry import get


class _LastLayer(torch.nn.Module):
    """A linear layer whose scores a loss computes by itself."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        out_features: tuple[int, ...],
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        require_sizes(type(self).__name__, in_features=in_features, num_classes=num_classes)
        self.num_classes, self.out_features = num_classes, tuple(out_features)
        outputs = math.prod(self.out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, outputs, bias=bias, device=device, dtype=dtype)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as the ops have them."""
        weight, bias = self.linear.weight, self.linear.bias
        if not self.out_features:
            return weight, bias
        shape = (self.num_classes, *self.out_features)
        return weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape)


class LinearCrossEntropyLoss(_LastLayer):
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
        softcap: c, finite, at least 0; above 0 the scores are c·tanh(scores/c) before all else.
        z_loss: λ, finite, at least 0; each row that counts adds λ·lse², lse the log-sum-exp of its scores.
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
        cross_entropy(input · Wᵀ + b, target), with softcap and z_loss as there

    Source:
        torch.nn.LinearCrossEntropyLoss; softcap as in Gemma 2, arXiv 2408.00118; z_loss as in PaLM, arXiv 2204.02311

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
        softcap: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        super().__init__(in_features, num_classes, out_features, bias, device, dtype)
        check_options(
            get("linear_cross_entropy"),
            {
                "reduction": reduction,
                "weight": weight,
                "ignore_index": -100 if ignore_index is None else ignore_index,
                "label_smoothing": label_smoothing,
                "softcap": softcap,
                "z_loss": z_loss,
            },
        )
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing, self.options = label_smoothing, options
        self.softcap, self.z_loss = softcap, z_loss
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        rest = (
            self.weight,
            -100 if self.ignore_index is None else self.ignore_index,
            self.reduction,
            self.label_smoothing,
            self.softcap,
            self.z_loss,
        )
        weight, bias = self.head()
        loss: Tensor = OPS.linear_cross_entropy(input, weight, target, bias, *rest)
        return loss

    def extra_repr(self) -> str:
        names = ("num_classes", "out_features", "reduction", "ignore_index", "label_smoothing", "softcap", "z_loss")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)


class LinearLogProb(_LastLayer):
    """Log-probability of each target, entropy and log-sum-exp of a linear layer's scores, which are never held whole.

    The module owns the layer, ``linear``; its parameters go to the optimizer too.

    Args:
        in_features: length of a row of the input, D.
        num_classes: number of classes, C.
        out_features: (d1 … dk), for k-dimensional targets, one linear layer a place.
        bias: whether the layer has one.
        device: of the layer.
        dtype: of the layer.
        temperature: the scores are divided by it; finite, above 0.
        softcap: c, finite, at least 0; above 0 the scores are c tanh(scores / c) before they are divided.
        ignore_index: the class index whose log-probability is 0, without gradient; any integer.

    Call:
        input: (N, D) or (D), or (..., D) with several leading dimensions; with ``out_features``, (N, D).
        target: class indices (N), () or (...), int64, int32 or uint8; with ``out_features``, (N, d1 … dk).

    Returns:
        ``(log_prob, entropy, lse)``, each of the shape of ``target``.

    Raises:
        RuntimeError: those of ``opreg.functional.linear_log_prob``.

    Formula:
        z = softcap(input · Wᵀ + b) / temperature, lse = log Σ_c exp(z_c), p = exp(z - lse):
        log_prob = z_target - lse, entropy = lse - Σ_c p_c z_c

    Source:
        log_softmax of a linear layer's scores; softcap as in Gemma 2, arXiv 2408.00118

    Example:
        >>> head = opreg.nn.LinearLogProb(64, 1000, temperature=0.7)
        >>> hidden, target = torch.randn(8, 64), torch.randint(0, 1000, (8,))  # a class index a row
        >>> log_prob, entropy, _ = head(hidden, target)
        >>> (-log_prob.mean() - 0.01 * entropy.mean()).backward()
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        temperature: float = 1.0,
        softcap: float = 0.0,
        ignore_index: int = -100,
    ) -> None:
        super().__init__(in_features, num_classes, out_features, bias, device, dtype)
        options = {"temperature": temperature, "softcap": softcap, "ignore_index": ignore_index}
        check_options(get("linear_log_prob"), options)
        self.temperature, self.softcap, self.ignore_index = temperature, softcap, ignore_index

    def forward(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = self.head()
        rest = (bias, self.temperature, self.softcap, self.ignore_index)
        results: tuple[Tensor, Tensor, Tensor] = OPS.linear_log_prob(input, weight, target, *rest)
        return results

    def extra_repr(self) -> str:
        names = ("num_classes", "out_features", "temperature", "softcap", "ignore_index")
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in names)
