"""Other libraries' functions of the same meaning as an op, for ``python -m opreg bench --peers benchmarks/peers.py``.

Each takes the op's arguments by name and returns the mean loss. The benchmark checks value and gradient against the
op's before it times one, and leaves out, with the reason, a function whose numbers differ.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from opreg.bench import Peer


def module(name: str) -> Any:
    """Imported when it is first called for. torchvision's wheel is linked to CUDA: beside a CPU build of torch its C++
    ops do not load, and its import fails where it registers the fakes of two of them. The rest is Python."""
    try:
        return importlib.import_module(name)
    except RuntimeError:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for op in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, op):
                torch.library.define(f"torchvision::{op}", schema)
        return importlib.import_module(name)


def torchvision_focal(input: Tensor, target: Tensor, alpha: float, gamma: float, reduction: str) -> Tensor:
    return module("torchvision.ops").sigmoid_focal_loss(input, target, alpha, gamma, reduction)


def torchvision_boxes(name: str) -> Callable[..., Tensor]:
    def loss(input: Tensor, target: Tensor, reduction: str, eps: float) -> Tensor:
        return getattr(module("torchvision.ops"), name)(input, target, reduction, eps)

    return loss


def kornia_focal(input: Tensor, target: Tensor, gamma: float, **options: Any) -> Tensor:
    """Its mean counts every class of every pixel; ours counts pixels."""
    return module("kornia.losses").focal_loss(input, target, None, gamma, "sum") / target.numel()


def monai_overlap(name: str, input: Tensor, target: Tensor, smooth: float, **options: Any) -> Tensor:
    """A sample is one channel, for ours takes all of its classes together."""
    loss = getattr(module("monai.losses"), name)(sigmoid=True, smooth_nr=smooth, smooth_dr=smooth, **options)
    hot = torch.nn.functional.one_hot(target, input.shape[1]).movedim(-1, 1).to(input.dtype)
    return loss(input.flatten(1).unsqueeze(1), hot.flatten(1).unsqueeze(1))


def monai_dice(input: Tensor, target: Tensor, p: float, smooth: float, **options: Any) -> Tensor:
    """p = 2 are the squares."""
    return monai_overlap("DiceLoss", input, target, smooth, squared_pred=p == 2)


def monai_tversky(
    input: Tensor, target: Tensor, alpha: float, beta: float, gamma: float, smooth: float, **options: Any
) -> Tensor:
    """It has no γ."""
    return monai_overlap("TverskyLoss", input, target, smooth, alpha=alpha, beta=beta)


def monai_jaccard(input: Tensor, target: Tensor, smooth: float, **options: Any) -> Tensor:
    """Twice the intersection over twice the union."""
    return monai_overlap("DiceLoss", input, target, 2 * smooth, jaccard=True)


def kornia_ssim(
    input: Tensor, target: Tensor, window_size: int, data_range: float, k1: float, k2: float, **options: Any
) -> Tensor:
    """Its own is half of the distance from 1, and its window's sigma 1.5."""
    return 2 * module("kornia.losses").ssim_loss(input, target, window_size, data_range, padding="valid")


def monai_generalized_dice(input: Tensor, target: Tensor, eps: float, **options: Any) -> Tensor:
    loss = module("monai.losses").GeneralizedDiceLoss(softmax=True, to_onehot_y=True, smooth_nr=eps, smooth_dr=eps)
    return loss(input, target.unsqueeze(1))


def monai_activation(name: str) -> Callable[..., Tensor]:
    def activation(input: Tensor, **options: Any) -> Tensor:
        return getattr(module("monai.networks.blocks"), name)(**options)(input)

    return activation


def monai_swish(input: Tensor, beta: float) -> Tensor:
    return module("monai.networks.blocks").Swish(beta)(input)


def smp(name: str, *arguments: Any, **options: Any) -> Callable[..., Tensor]:
    """A loss of segmentation-models-pytorch."""

    def loss(input: Tensor, target: Tensor, **own: Any) -> Tensor:
        return getattr(module("segmentation_models_pytorch.losses"), name)(*arguments, **options)(input, target)

    return loss


def over_cosines(name: str) -> Callable[..., Tensor]:
    """A loss of pytorch-metric-learning over cosines, without the product that it makes them by."""

    def loss(cosine: Tensor, target: Tensor, margin: float, scale: float, **options: Any) -> Tensor:
        losses = module("pytorch_metric_learning.losses")
        degrees = margin * 180 / torch.pi if name == "ArcFaceLoss" else margin

        class OfCosines(getattr(losses, name)):  # type: ignore[misc]
            def get_cosine(self, embeddings: Tensor) -> Tensor:
                return embeddings

        of_cosines = OfCosines(num_classes=cosine.shape[1], embedding_size=1, margin=degrees, scale=scale)
        return of_cosines(cosine, target)

    return loss


def nt_xent(input: Tensor, target: Tensor, temperature: float) -> Tensor:
    """pytorch-metric-learning has one set of embeddings, and a label for each."""
    labels = torch.arange(len(input), device=input.device).repeat(2)
    return module("pytorch_metric_learning.losses").NTXentLoss(temperature)(torch.cat([input, target]), labels)


def sup_con(input: Tensor, target: Tensor, temperature: float) -> Tensor:
    return module("pytorch_metric_learning.losses").SupConLoss(temperature)(input, target)


def torchaudio_rnnt(targets: Tensor, logit_lengths: Tensor, target_lengths: Tensor, **options: Any) -> Tensor:
    """Integers of 32 bits are all that it takes."""
    whole = {"targets": targets, "logit_lengths": logit_lengths, "target_lengths": target_lengths}
    return module("torchaudio.functional").rnnt_loss(**{n: t.int() for n, t in whole.items()}, **options)


def timm_asymmetric(input: Tensor, target: Tensor, **options: Any) -> Tensor:
    return module("timm.loss").AsymmetricLossMultiLabel(**options)(input, target)


def liger_jsd(input: Tensor, target: Tensor, beta: float, temperature: float, **options: Any) -> Tensor:
    """The sum over rows of classes, which come last. What Liger has of torch's functions is the loss of a chunk of a
    head's scores; its other losses and its gated units are kernels in Triton, which have no CPU."""
    loss = module("liger_kernel.chunked_loss.jsd_loss").LigerFusedLinearJSDFunction.distillation_loss_fn
    student, teacher = (t.movedim(1, -1).flatten(0, -2) / temperature for t in (input, target))
    return loss(student, teacher, beta) / len(student)


SMP, METRIC = "segmentation-models-pytorch", "pytorch-metric-learning"
PEERS = {
    "focal_loss": Peer("torchvision", torchvision_focal),
    "giou_loss": Peer("torchvision", torchvision_boxes("generalized_box_iou_loss")),
    "diou_loss": Peer("torchvision", torchvision_boxes("distance_box_iou_loss")),
    "ciou_loss": Peer("torchvision", torchvision_boxes("complete_box_iou_loss")),
    "softmax_focal_loss": Peer("kornia", kornia_focal),
    "dice_loss": Peer("monai", monai_dice),
    "tversky_loss": Peer("monai", monai_tversky),
    "jaccard_loss": Peer("monai", monai_jaccard),
    "generalized_dice_loss": Peer("monai", monai_generalized_dice),
    "ssim_loss": Peer("kornia", kornia_ssim),
    "swish": Peer("monai", monai_swish),
    "mish": Peer("monai", monai_activation("Mish")),
    "cross_entropy": Peer(SMP, smp("SoftCrossEntropyLoss", smooth_factor=0.0)),
    "binary_cross_entropy_with_logits": Peer(SMP, smp("SoftBCEWithLogitsLoss", ignore_index=None)),
    "lovasz_softmax_loss": Peer(SMP, smp("LovaszLoss", "multiclass")),
    "lovasz_hinge_loss": Peer(SMP, smp("LovaszLoss", "binary")),
    "jsd_loss": Peer("liger-kernel", liger_jsd),
    "asymmetric_loss": Peer("timm", timm_asymmetric),
    "rnnt_loss": Peer("torchaudio", torchaudio_rnnt),
    "arcface_loss": Peer(METRIC, over_cosines("ArcFaceLoss")),
    "amsoftmax_loss": Peer(METRIC, over_cosines("CosFaceLoss")),
    "nt_xent_loss": Peer(METRIC, nt_xent),
    "sup_con_loss": Peer(METRIC, sup_con),
}
