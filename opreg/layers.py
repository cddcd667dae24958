"""Layers for the ``kernels`` package, which puts them in the place of a model's own: ``kernels.kernelize``.

Each is stateless, has a backward pass and can be compiled, on each device that opreg has kernels for. The names are
those that transformers registers its layers by, or those of the functions whose losses they compute::

    mapping = {"SiLU": {"cuda": kernels.LocalLayerRepository(folder, layer_name="SiLU")}}
    with kernels.use_kernel_mapping(mapping):
        model = kernels.kernelize(model, mode=kernels.Mode.TRAINING, device="cuda")

``python -m opreg hub FOLDER`` writes the folder.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import functional

__all__ = [
    "GELU",
    "DiceLoss",
    "FastGELU",
    "ForCausalLMLoss",
    "GIoULoss",
    "GeLU",
    "GeluAndMul",
    "GeluTanh",
    "GeluTanhAndMul",
    "L1BoxLoss",
    "NewGELU",
    "QuickGELU",
    "SiLU",
    "SigmoidFocalLoss",
    "SiluAndMul",
    "SwiGLU",
]  # fmt: skip


class Layer(nn.Module):
    has_backward = True
    can_torch_compile = True


class SiLU(Layer):
    """``swish`` of any tensor."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = functional.swish(input)
        return result


class GeLU(Layer):
    """``gelu`` of any tensor."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = functional.gelu(input)
        return result


class GELU(GeLU):
    """The same, in torch's spelling."""


class GeluTanh(Layer):
    """``gelu``, approximated by tanh."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = functional.gelu(input, "tanh")
        return result


class NewGELU(GeluTanh):
    """The same, as GPT-2 has it."""


class FastGELU(GeluTanh):
    """The same, in a spelling of its own."""


class QuickGELU(Layer):
    """``quick_gelu`` of any tensor."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = functional.quick_gelu(input)
        return result


class SiluAndMul(Layer):
    """``swiglu`` of the two halves of the last dimension, which is even."""

    def forward(self, input: Tensor) -> Tensor:
        gate, up = input.chunk(2, -1)
        result: Tensor = functional.swiglu(gate, up)
        return result


class SwiGLU(SiluAndMul):
    """The same, by the name that papers have."""


class GeluAndMul(Layer):
    """``geglu`` of the two halves of the last dimension, which is even."""

    def forward(self, input: Tensor) -> Tensor:
        gate, up = input.chunk(2, -1)
        result: Tensor = functional.geglu(gate, up)
        return result


class GeluTanhAndMul(Layer):
    """``geglu`` approximated by tanh, of the two halves of the last dimension, which is even."""

    def forward(self, input: Tensor) -> Tensor:
        gate, up = input.chunk(2, -1)
        result: Tensor = functional.geglu(gate, up, "tanh")
        return result


class ForCausalLMLoss(Layer):
    """The loss of a language model's next tokens, as ``transformers.loss.loss_utils`` takes its arguments.

    The logits (..., vocab_size) stay of their dtype: the kernel computes in float32, and so is the loss.
    """

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        vocab_size: int,
        num_items_in_batch: Tensor | int | None = None,
        ignore_index: int = -100,
        shift_labels: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        if shift_labels is None:
            shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
        rows, target = logits.reshape(-1, vocab_size), shift_labels.reshape(-1).to(logits.device)
        reduction = "mean" if num_items_in_batch is None else "sum"
        loss: Tensor = functional.cross_entropy(
            rows, target, ignore_index=ignore_index, reduction=reduction, dtype=torch.float32
        )
        if num_items_in_batch is None:
            return loss
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(loss.device)
        return loss / num_items_in_batch


class SigmoidFocalLoss(Layer):
    """``focal_loss`` of logits (N, L, C), over images, and over the number of boxes: as DETR has it."""

    def forward(
        self, inputs: Tensor, targets: Tensor, num_boxes: Tensor | float, alpha: float = 0.25, gamma: float = 2
    ) -> Tensor:
        loss: Tensor = functional.focal_loss(inputs, targets, alpha, gamma, "none")
        return loss.mean(1).sum() / num_boxes


class DiceLoss(Layer):
    """``dice_loss`` of each mask of logits (N, ...), over the number of boxes: as DETR has it."""

    def forward(self, inputs: Tensor, targets: Tensor, num_boxes: Tensor | float) -> Tensor:
        masks, labels = inputs.flatten(1).unsqueeze(1), targets.flatten(1).unsqueeze(1)
        result: Tensor = functional.dice_loss(masks, labels, reduction="sum") / num_boxes
        return result


class L1BoxLoss(Layer):
    """``l1_loss`` of matched boxes (N, 4), over the number of boxes: as DETR has it."""

    def forward(self, source_boxes: Tensor, target_boxes: Tensor, num_boxes: Tensor | float) -> Tensor:
        result: Tensor = functional.l1_loss(source_boxes, target_boxes, "sum") / num_boxes
        return result


class GIoULoss(Layer):
    """``giou_loss`` of matched boxes (N, 4), of centre and size, over the number of boxes: as DETR has it."""

    def forward(self, source_boxes: Tensor, target_boxes: Tensor, num_boxes: Tensor | float) -> Tensor:
        result: Tensor = functional.giou_loss(corners(source_boxes), corners(target_boxes), "sum") / num_boxes
        return result


def corners(boxes: Tensor) -> Tensor:
    """From centre and size, (..., 4), to the two corners."""
    centre, half = boxes[..., :2], 0.5 * boxes[..., 2:]
    return torch.cat([centre - half, centre + half], -1)
