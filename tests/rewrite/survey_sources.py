"""Loss sites of published libraries, imported from where these are installed: what the rewrite makes of each.

``python tests/rewrite/survey_sources.py --output benchmarks/results/survey.md`` writes the table of survey.py and of
this file; ``make survey`` installs the libraries into a folder of its own first. Libraries are put on ``sys.path``
with their losses alone: packages around these are not initialised, and what they import and is not installed, such as
compiled operators and the readers of data sets, is a stand-in.
"""

import argparse
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from survey import Found, Program, boxes, hard, hard_int, ignored, labelled, look, pairs, scores, tokens
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parents[1]))  # as a script, it finds what stands beside its folder
import torchvision_for_cpu

Inputs = Callable[[], tuple[Any, ...]]
Made = Callable[[], Callable[..., Any]]


# libraries without what they need besides


class Anything:
    """Stands for whatever a library imports and does not need here: a decorator, a base class, a registry."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if len(args) == 1 and callable(args[0]) and not kwargs else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(self, _: Any) -> "Anything":
        return Anything()

    def __ge__(self, _: Any) -> bool:  # of versions
        return True

    __gt__ = __le__ = __lt__ = __ge__

    def __or__(self, _: Any) -> Any:
        return Any

    __ror__ = __or__

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return ()


class StandIn(types.ModuleType):
    """A module of which every name is ``Anything``."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        return "0" if name == "__version__" else Anything()


class Libraries(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds packages without their ``__init__``, and stand-ins for what is not installed."""

    def __init__(self, bare: Sequence[str], absent: Sequence[str]) -> None:
        self.bare, self.absent = frozenset(bare), tuple(absent)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if any(name == a or name.startswith(f"{a}.") for a in self.absent):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        if name not in self.bare:
            return None
        found = importlib.machinery.PathFinder.find_spec(name, path)
        if found is None or found.submodule_search_locations is None:
            return None
        spec = importlib.machinery.ModuleSpec(name, self, is_package=True)
        spec.submodule_search_locations = list(found.submodule_search_locations)
        return spec

    def create_module(self, spec: Any) -> types.ModuleType:
        if spec.name not in self.bare:
            return StandIn(spec.name)
        made = types.ModuleType(spec.name)
        made.__version__ = "0"  # type: ignore[attr-defined]
        return made

    def exec_module(self, module: types.ModuleType) -> None:
        pass


# Libraries that are imported as they are.
WHOLE = frozenset({"transformers", "monai", "trl", "sentence_transformers"})


def module(name: str, bare: Sequence[str] = (), absent: Sequence[str] = (), whole: Sequence[str] = ()) -> Any:
    """A module of a library. The packages that hold it, but for ``whole``, and ``bare`` are not initialised."""
    torchvision_for_cpu.torchvision()
    parts = name.split(".")
    packages = [".".join(parts[: i + 1]) for i in range(len(parts) - 1)]
    packages = [] if parts[0] in WHOLE else [p for p in packages if p not in whole]
    finder = Libraries((*packages, *bare), absent)
    sys.meta_path.insert(0, finder)
    try:
        for _ in range(60):  # what is missing is seen one after the other
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return importlib.import_module(name)
            except ModuleNotFoundError as error:
                if not error.name or error.name.split(".")[0] == parts[0]:
                    raise
                finder.absent = (*finder.absent, error.name.split(".")[0])
                half = [m for m in sys.modules if m.startswith(f"{parts[0]}.") and m not in finder.bare]
                for known in half:
                    del sys.modules[known]
        raise ImportError(name)
    finally:
        sys.meta_path.remove(finder)


# the sites


@dataclass(frozen=True)
class Site:
    """A place in a library, and the ops that could compute its parts. ``why`` no op computes the rest, or all."""

    source: str
    name: str
    make: Made
    inputs: Inputs
    ops: tuple[str, ...]
    why: str = ""
    options: tuple[tuple[str, Any], ...] = ()


SITES: list[Site] = []
# The name under which pip knows a library.
PACKAGES: dict[str, str] = {}


# How many programs of a source may be missed.
MISSED: dict[str, int] = {"kornia": 1, "ultralytics": 1}


def site(source: str, name: str, inputs: Inputs, *ops: str, why: str = "", **options: Any) -> Callable[[Made], Made]:
    def add(make: Made) -> Made:
        SITES.append(Site(source, name, make, inputs, ops, why, tuple(options.items())))
        return make

    return add


def masks(*shape: int) -> tuple[Tensor, Tensor]:
    """Scores, and class indices as a mask of one channel."""
    return scores(*shape), torch.randint(0, shape[1], (shape[0], 1, *shape[2:]))


def two(n: int = 6, d: int = 8) -> tuple[Tensor, Tensor]:
    return scores(n, d), scores(n, d)


def three(n: int = 6, d: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return scores(n, d), scores(n, d), scores(n, d)


def embedded(n: int = 8, d: int = 6, classes: int = 3) -> tuple[Tensor, Tensor]:
    return scores(n, d), torch.randint(0, classes, (n,))


def probabilities(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.rand(shape).clamp(0.05, 0.95).requires_grad_(), (torch.rand(shape) > 0.5).float()


def rotated(n: int = 6) -> tuple[Tensor, Tensor]:
    made = [torch.cat([torch.rand(n, 2), 0.2 + torch.rand(n, 2), torch.rand(n, 1)], 1) for _ in range(2)]
    return made[0].requires_grad_(), made[1]


def of_one(function: Callable[..., Any], *index: Any) -> Callable[..., Any]:
    """The result, or what stands in it at some keys."""

    def program(*args: Any) -> Any:
        result = function(*args)
        for i in index:
            result = result[i]
        return result

    return program


def shown(source: str, path: str, *bare: str, absent: Sequence[str] = (), whole: Sequence[str] = ()) -> Any:
    """A module of a source, imported when it is asked for."""

    class Later:
        def __getattr__(self, name: str) -> Any:
            # kept, so that Dynamo meets an attribute and no import
            found = self.__dict__[name] = getattr(module(path, bare, absent, whole), name)
            return found

    PACKAGES.setdefault(source, path.split(".")[0])
    return Later()


# detection

effdet = shown("effdet", "effdet.loss")
site("effdet", "focal_loss_legacy", lambda: (*hard_int(3, 4, 5),), "focal_loss")(
    lambda: lambda x, t: effdet.focal_loss_legacy(x, t, 0.25, 1.5, 7.0)
)
site("effdet", "new_focal_loss", lambda: hard(3, 4, 5), "focal_loss")(
    lambda: lambda x, t: effdet.new_focal_loss(x, t, 0.25, 1.5, 7.0)
)
site("effdet", "huber_loss", lambda: (*pairs(6, 4), torch.rand(6, 4)), "huber_loss")(
    lambda: lambda x, t, w: effdet.huber_loss(x, t, 0.1, w)
)
site("effdet", "smooth_l1_loss", lambda: (*pairs(6, 4), torch.rand(6, 4)), "smooth_l1_loss")(
    lambda: lambda x, t, w: effdet.smooth_l1_loss(x, t, 1 / 9, w)
)

MMDET = ("mmdet.structures", "mmdet.structures.bbox")
for name, op in (("diou", "diou_loss"), ("ciou", "ciou_loss")):
    site("mmdet", f"{name}_loss", boxes, op)(
        lambda name=name: (lambda of: lambda a, b: of(a, b))(getattr(_mmdet(), f"{name}_loss"))
    )
BOUNDED = "its union is eps at least, where the op adds eps to it"
for name in ("giou", "iou"):
    site("mmdet", f"{name}_loss", boxes, why=BOUNDED)(
        lambda name=name: (lambda of: lambda a, b: of(a, b))(getattr(_mmdet(), f"{name}_loss"))
    )
site("mmdet", "iou_loss, linear", boxes, why=BOUNDED)(
    lambda: (lambda of: lambda a, b: of(a, b, mode="linear"))(_mmdet().iou_loss)
)
site("mmdet", "siou_loss", boxes, why="the sides of its hull are eps at least, and its value is clamped")(
    lambda: _mmdet().siou_loss
)
site("mmdet", "eiou_loss", boxes, why="it is smooth L1 of an IoU, and eiou_loss another loss of that name")(
    lambda: _mmdet().eiou_loss
)


def _mmdet() -> Any:
    """Their IoU losses, with the overlaps that they import from a package around them."""
    overlaps = module("mmdet.structures.bbox.bbox_overlaps", MMDET)
    losses = module("mmdet.models.losses.iou_loss", MMDET, ("mmdet.registry", "mmdet.utils"))
    losses.bbox_overlaps = overlaps.bbox_overlaps
    return losses


def mmdet(name: str) -> Any:
    return shown("mmdet", f"mmdet.models.losses.{name}", absent=("mmdet.registry", "mmdet.utils"))


site("mmdet", "py_sigmoid_focal_loss", lambda: hard(6, 4), "focal_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, avg_factor=5.0))(mmdet("focal_loss").py_sigmoid_focal_loss)
)
site("mmdet", "py_sigmoid_focal_loss, one_hot", lambda: tokens(4, 6), "focal_loss")(
    lambda: (lambda of: lambda x, t: of(x, F.one_hot(t, 4), avg_factor=5.0))(mmdet("focal_loss").py_sigmoid_focal_loss)
)
site("mmdet", "varifocal_loss", lambda: (scores(6, 4), torch.rand(6, 4) * (torch.rand(6, 4) > 0.5)), "varifocal_loss")(
    lambda: (lambda of: lambda x, t: of(x, t))(mmdet("varifocal_loss").varifocal_loss)
)
site("mmdet", "smooth_l1_loss", lambda: pairs(6, 4), "smooth_l1_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, beta=0.5))(mmdet("smooth_l1_loss").smooth_l1_loss)
)
site("mmdet", "l1_loss", lambda: (*pairs(6, 4), torch.rand(6, 4)), "l1_loss")(
    lambda: (lambda of: lambda x, t, w: of(x, t, w, avg_factor=3.0))(mmdet("smooth_l1_loss").l1_loss)
)
site("mmdet", "mse_loss", lambda: pairs(6, 4), "mse_loss")(lambda: mmdet("mse_loss").mse_loss)
site("mmdet", "dice_loss, activated", lambda: hard(3, 2, 4, 4), "dice_loss")(
    lambda: (lambda of: lambda x, t: of(x.sigmoid(), t, naive_dice=True))(mmdet("dice_loss").dice_loss)
)
site("mmdet", "dice_loss, squares", lambda: hard(3, 2, 4, 4), why="eps stands in the denominator alone")(
    lambda: (lambda of: lambda x, t: of(x.sigmoid(), t))(mmdet("dice_loss").dice_loss)
)
site("mmdet", "cross_entropy", lambda: (*labelled(5, 7), torch.rand(7)), "cross_entropy")(
    lambda: (lambda of: lambda x, y, w: of(x, y, w, avg_factor=4.0))(mmdet("cross_entropy_loss").cross_entropy)
)
site("mmdet", "binary_cross_entropy", lambda: hard(6, 4), "binary_cross_entropy_with_logits")(
    lambda: mmdet("cross_entropy_loss").binary_cross_entropy
)
site("mmdet", "gaussian_focal_loss", lambda: (torch.rand(2, 3, 4).requires_grad_(), torch.rand(2, 3, 4)),
     why="of probabilities, with eps in its logarithms, where gaussian_focal_loss takes logits")(
    lambda: mmdet("gaussian_focal_loss").gaussian_focal_loss
)  # fmt: skip
site("mmdet", "knowledge distillation", lambda: pairs(6, 4), "kl_div")(
    lambda: (lambda of: lambda x, t: of(x, t, T=4))(mmdet("kd_loss").knowledge_distillation_kl_div_loss)
)

ultralytics_loss = shown("ultralytics", "ultralytics.utils.loss", whole=("ultralytics.utils",))
for name, option, op in (("CIoU", "CIoU", "ciou_loss"), ("DIoU", "DIoU", "diou_loss"), ("GIoU", "GIoU", "giou_loss")):
    site("ultralytics", f"bbox_iou, {name}", boxes, op)(
        lambda option=option: (lambda of: lambda a, b: (1 - of(a, b, xywh=False, **{option: True})).mean())(
            module("ultralytics.utils.metrics", whole=("ultralytics.utils",)).bbox_iou
        )
    )
site("ultralytics", "bbox_iou, CIoU, weighted", lambda: (*boxes(), torch.rand(6, 1)), "ciou_loss")(
    lambda: (lambda of: lambda a, b, w: ((1 - of(a, b, xywh=False, CIoU=True)) * w).sum() / 3.0)(
        module("ultralytics.utils.metrics", whole=("ultralytics.utils",)).bbox_iou
    )
)
site("ultralytics", "probiou", rotated, "prob_iou_loss")(
    lambda: (lambda of: lambda a, b: (1 - of(a, b)).mean())(
        module("ultralytics.utils.metrics", whole=("ultralytics.utils",)).probiou
    )
)
site("ultralytics", "FocalLoss", lambda: hard(4, 8), "focal_loss")(lambda: ultralytics_loss.FocalLoss())
site("ultralytics", "VarifocalLoss", lambda: (*hard(4, 8), torch.randint(0, 2, (4, 8)).float()), "varifocal_loss")(
    lambda: ultralytics_loss.VarifocalLoss()
)

yolov5 = shown("yolov5", "yolov5.utils.loss", whole=("yolov5.utils",))
site("yolov5", "bbox_iou, CIoU", boxes, "ciou_loss")(
    lambda: (lambda of: lambda a, b: (1.0 - of(a, b, xywh=False, CIoU=True)).mean())(
        module("yolov5.utils.metrics", whole=("yolov5.utils",)).bbox_iou
    )
)
site("yolov5", "FocalLoss", lambda: hard(4, 8), "focal_loss")(
    lambda: yolov5.FocalLoss(nn.BCEWithLogitsLoss(), gamma=1.5)
)
site("yolov5", "QFocalLoss", lambda: (scores(4, 8), torch.rand(4, 8)), "quality_focal_loss")(
    lambda: yolov5.QFocalLoss(nn.BCEWithLogitsLoss(), gamma=1.5)
)
site("yolov5", "BCEBlurWithLogitsLoss", lambda: hard(4, 8), "binary_cross_entropy_with_logits")(
    lambda: yolov5.BCEBlurWithLogitsLoss()
)

detr = shown("transformers, detection", "transformers.loss.loss_for_object_detection")
PACKAGES["transformers, detection"] = "transformers"
site("transformers, detection", "sigmoid_focal_loss", lambda: hard(2, 5, 4), "focal_loss")(
    lambda: lambda x, t: detr.sigmoid_focal_loss(x, t, 7)
)
site("transformers, detection", "dice_loss", lambda: hard(2, 9), "dice_loss")(
    lambda: lambda x, t: detr.dice_loss(x, t, 7)
)
site("transformers, detection", "loss_giou of DETR", boxes,
     why="without eps, boxes without an area give NaN, of which giou_loss makes a number")(
    lambda: lambda a, b: (1 - torch.diag(detr.generalized_box_iou(a, b))).sum() / 7
)  # fmt: skip

# segmentation

monai_dice = shown("monai", "monai.losses.dice")


def monai(name: str) -> Any:
    return shown("monai", f"monai.losses.{name}")


for name, options, op in (
    ("sigmoid", {"sigmoid": True}, "dice_loss"),
    ("sigmoid, batch", {"sigmoid": True, "batch": True}, "dice_loss"),
    ("sigmoid, squared", {"sigmoid": True, "squared_pred": True}, "dice_loss"),
    ("sigmoid, without background", {"sigmoid": True, "include_background": False}, "dice_loss"),
    ("sigmoid, jaccard", {"sigmoid": True, "jaccard": True}, "jaccard_loss"),
):
    site("monai", f"DiceLoss, {name}", lambda: hard(3, 3, 4, 4), op)(
        lambda options=options: monai("dice").DiceLoss(smooth_nr=1e-5, smooth_dr=1e-5, **options)
    )
site("monai", "DiceLoss, softmax", lambda: masks(3, 3, 4, 4), why="dice_loss has a sigmoid inside, no softmax")(
    lambda: monai("dice").DiceLoss(softmax=True, to_onehot_y=True)
)
site("monai", "GeneralizedDiceLoss, softmax", lambda: masks(3, 3, 4, 4), "generalized_dice_loss")(
    lambda: monai("dice").GeneralizedDiceLoss(softmax=True, to_onehot_y=True)
)
site("monai", "DiceCELoss", lambda: masks(3, 3, 4, 4), "cross_entropy", why="its dice is of a softmax")(
    lambda: monai("dice").DiceCELoss(softmax=True, to_onehot_y=True)
)
site("monai", "DiceFocalLoss", lambda: hard(3, 3, 4, 4), "dice_loss", "focal_loss")(
    lambda: monai("dice").DiceFocalLoss(sigmoid=True)
)
site("monai", "TverskyLoss, sigmoid", lambda: hard(3, 3, 4, 4), "tversky_loss")(
    lambda: monai("tversky").TverskyLoss(sigmoid=True, alpha=0.3, beta=0.7)
)
site("monai", "FocalLoss", lambda: hard(3, 3, 4, 4), "focal_loss")(lambda: monai("focal_loss").FocalLoss())
site("monai", "FocalLoss, one_hot", lambda: masks(3, 3, 4, 4), "focal_loss")(
    lambda: monai("focal_loss").FocalLoss(to_onehot_y=True)
)
site("monai", "FocalLoss, one_hot, alpha", lambda: masks(3, 3, 4, 4), "focal_loss")(
    lambda: monai("focal_loss").FocalLoss(to_onehot_y=True, alpha=0.75)
)
site("monai", "FocalLoss, softmax", lambda: masks(3, 3, 4, 4), "softmax_focal_loss")(
    lambda: monai("focal_loss").FocalLoss(to_onehot_y=True, use_softmax=True)
)

toolbelt = shown("pytorch-toolbelt", "pytorch_toolbelt.losses.functional")


def belt(name: str) -> Any:
    return shown("pytorch-toolbelt", f"pytorch_toolbelt.losses.{name}")


site("pytorch-toolbelt", "focal_loss_with_logits", lambda: hard(2, 3, 4), "focal_loss")(
    lambda: toolbelt.focal_loss_with_logits
)
site("pytorch-toolbelt", "focal_loss_with_logits, ignored", lambda: hard(2, 3, 4), "focal_loss")(
    lambda: lambda x, t: toolbelt.focal_loss_with_logits(x, t, ignore_index=-100)
)
site("pytorch-toolbelt", "focal_loss_with_logits, normalized", lambda: hard(2, 3, 4), "focal_loss")(
    lambda: lambda x, t: toolbelt.focal_loss_with_logits(x, t, normalized=True)
)
site("pytorch-toolbelt", "softmax_focal_loss_with_logits", lambda: labelled(3, 2, 4, 4),
     "binary_cross_entropy_with_logits")(lambda: toolbelt.softmax_focal_loss_with_logits)  # fmt: skip
site("pytorch-toolbelt", "wing_loss", lambda: pairs(6, 4), "wing_loss")(lambda: toolbelt.wing_loss)
site("pytorch-toolbelt", "log_cosh_loss", lambda: pairs(6, 4), "log_cosh_loss")(lambda: toolbelt.log_cosh_loss)
site("pytorch-toolbelt", "SoftCrossEntropyLoss", lambda: labelled(5, 7), "cross_entropy")(
    lambda: belt("soft_ce").SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=None)
)
site("pytorch-toolbelt", "SoftCrossEntropyLoss, ignored", lambda: labelled(5, 7), "cross_entropy")(
    lambda: belt("soft_ce").SoftCrossEntropyLoss(smooth_factor=0.1)
)
site("pytorch-toolbelt", "SoftBCEWithLogitsLoss", lambda: hard(3, 4), "binary_cross_entropy_with_logits")(
    lambda: belt("soft_bce").SoftBCEWithLogitsLoss(ignore_index=None)
)
site("pytorch-toolbelt", "SoftBCEWithLogitsLoss, smoothed", lambda: hard(3, 4), "binary_cross_entropy_with_logits")(
    lambda: belt("soft_bce").SoftBCEWithLogitsLoss(smooth_factor=0.1)
)
site("pytorch-toolbelt", "DiceLoss", lambda: hard(3, 1, 4, 4), "dice_loss")(lambda: belt("dice").DiceLoss("binary"))
site("pytorch-toolbelt", "JaccardLoss", lambda: hard(3, 1, 4, 4), why="its denominator is eps at least")(
    lambda: belt("jaccard").JaccardLoss("binary")
)
site("pytorch-toolbelt", "BinaryLovaszLoss", lambda: hard(2, 4, 4), "lovasz_hinge_loss")(
    lambda: belt("lovasz").BinaryLovaszLoss()
)
site("pytorch-toolbelt", "QualityFocalLoss", lambda: (scores(4, 8), torch.rand(4, 8)), "quality_focal_loss")(
    lambda: belt("quality_focal_loss").QualityFocalLoss()
)

smp_functional = shown("segmentation-models-pytorch", "segmentation_models_pytorch.losses._functional")
SMP = "segmentation-models-pytorch"


def smp(name: str) -> Any:
    return shown(SMP, f"segmentation_models_pytorch.losses.{name}")


site(SMP, "FocalLoss, binary", lambda: hard_int(2, 1, 3, 4), "focal_loss")(lambda: smp("focal").FocalLoss("binary"))
site(SMP, "FocalLoss, multiclass", lambda: labelled(3, 2, 4, 4), *("focal_loss",) * 3)(
    lambda: smp("focal").FocalLoss("multiclass")
)
site(SMP, "softmax_focal_loss_with_logits", lambda: labelled(3, 2, 4, 4), "softmax_focal_loss")(
    lambda: smp_functional.softmax_focal_loss_with_logits
)
site(SMP, "wing_loss", lambda: pairs(6, 4), "wing_loss")(lambda: smp_functional.wing_loss)
site(SMP, "SoftCrossEntropyLoss", lambda: labelled(5, 7), "cross_entropy")(
    lambda: smp("soft_ce").SoftCrossEntropyLoss(smooth_factor=0.1, ignore_index=None)
)
site(SMP, "SoftCrossEntropyLoss, ignored", lambda: labelled(5, 7), "cross_entropy")(
    lambda: smp("soft_ce").SoftCrossEntropyLoss(smooth_factor=0.1)
)
site(SMP, "SoftBCEWithLogitsLoss", lambda: hard(3, 4), "binary_cross_entropy_with_logits")(
    lambda: smp("soft_bce").SoftBCEWithLogitsLoss()
)
LEAST = "its denominator is eps at least, where the op adds smooth alone"
site(SMP, "DiceLoss", lambda: hard(3, 1, 4, 4), why=LEAST)(lambda: smp("dice").DiceLoss("binary"))
site(SMP, "JaccardLoss", lambda: hard(3, 1, 4, 4), why=LEAST)(lambda: smp("jaccard").JaccardLoss("binary"))
site(SMP, "TverskyLoss", lambda: hard(3, 1, 4, 4), why=LEAST)(
    lambda: smp("tversky").TverskyLoss("binary", alpha=0.3, beta=0.7)
)
site(SMP, "LovaszLoss, binary", lambda: hard(2, 4, 4), "lovasz_hinge_loss")(lambda: smp("lovasz").LovaszLoss("binary"))
site(SMP, "LovaszLoss, binary, by image", lambda: hard(2, 4, 4), *("lovasz_hinge_loss",) * 2)(
    lambda: smp("lovasz").LovaszLoss("binary", per_image=True)
)
site(SMP, "LovaszLoss, multiclass", lambda: labelled(3, 2, 4, 4), "lovasz_softmax_loss")(
    lambda: smp("lovasz").LovaszLoss("multiclass")
)


def mmseg(name: str) -> Any:
    return shown(
        "mmseg", f"mmseg.models.losses.{name}", absent=("mmseg.registry", "mmseg.models.builder", "mmcv", "mmengine")
    )


site("mmseg", "lovasz_hinge", lambda: hard(2, 4, 4), "lovasz_hinge_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, ignore_index=None))(mmseg("lovasz_loss").lovasz_hinge)
)
site("mmseg", "lovasz_softmax, all classes", lambda: labelled(3, 2, 4, 4), "lovasz_softmax_loss")(
    lambda: (lambda of: lambda x, t: of(F.softmax(x, 1), t, "all", ignore_index=None))(
        mmseg("lovasz_loss").lovasz_softmax
    )
)
site("mmseg", "dice_loss", lambda: hard(3, 2, 4, 4), "dice_loss")(
    lambda: (lambda of: lambda x, t: of(x.sigmoid(), t, None, naive_dice=True, ignore_index=None))(
        mmseg("dice_loss").dice_loss
    )
)
site("mmseg", "py_sigmoid_focal_loss", lambda: hard(6, 4), "focal_loss")(
    lambda: mmseg("focal_loss").py_sigmoid_focal_loss
)
site("mmseg", "cross_entropy", lambda: labelled(5, 2, 3, 3), "cross_entropy")(
    lambda: (lambda of: lambda x, y: of(x, y, ignore_index=255))(mmseg("cross_entropy_loss").cross_entropy)
)
site("mmseg", "OhemCrossEntropy", lambda: labelled(5, 2, 3, 3), "cross_entropy")(
    lambda: mmseg("ohem_cross_entropy_loss").OhemCrossEntropy(min_kept=4)
)


def kornia(name: str) -> Any:
    return shown("kornia", f"kornia.losses.{name}", absent=("kornia_rs",))


site("kornia", "binary_focal_loss_with_logits", lambda: hard(2, 1, 4, 4), "focal_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, reduction="mean", ignore_index=None))(
        kornia("focal").binary_focal_loss_with_logits
    )
)
site("kornia", "focal_loss", lambda: labelled(4, 2, 3, 3), "softmax_focal_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, None, reduction="mean", ignore_index=None))(kornia("focal").focal_loss)
)
site("kornia", "dice_loss", lambda: labelled(4, 2, 3, 3), why="dice_loss has a sigmoid inside, no softmax")(
    lambda: kornia("dice").dice_loss
)
site("kornia", "lovasz_hinge_loss", lambda: (scores(2, 1, 4, 4), torch.randint(0, 2, (2, 4, 4))), "lovasz_hinge_loss")(
    lambda: kornia("lovasz_hinge").lovasz_hinge_loss
)
site("kornia", "lovasz_softmax_loss", lambda: labelled(3, 2, 4, 4), "lovasz_softmax_loss")(
    lambda: kornia("lovasz_softmax").lovasz_softmax_loss
)
site("kornia", "charbonnier_loss", lambda: pairs(2, 3, 4), why="it is √(d² + 1) − 1, one less than charbonnier_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, reduction="mean"))(kornia("charbonnier").charbonnier_loss)
)


def catalyst(name: str) -> Any:
    return shown("catalyst", f"catalyst.contrib.losses.{name}")


site("catalyst", "HuberLossV0", lambda: pairs(6, 4), "huber_loss")(lambda: catalyst("regression").HuberLossV0(1.345))
site("catalyst", "LovaszLossBinary", lambda: hard(2, 4, 4), "lovasz_hinge_loss")(
    lambda: catalyst("lovasz").LovaszLossBinary()
)
site("catalyst", "sigmoid_focal_loss", lambda: hard(4, 5), "focal_loss")(
    lambda: module("catalyst.metrics.functional._focal").sigmoid_focal_loss
)
site("catalyst", "WingLoss", lambda: pairs(6, 4), "wing_loss")(lambda: catalyst("wing").WingLoss())

site("nnunetv2", "RobustCrossEntropyLoss", lambda: masks(2, 3, 4, 4), "cross_entropy")(
    lambda: shown("nnunetv2", "nnunetv2.training.loss.robust_ce_loss").RobustCrossEntropyLoss()
)
site("nnunetv2", "SoftDiceLoss, sigmoid", lambda: hard(3, 2, 4, 4), "dice_loss")(
    lambda: shown("nnunetv2", "nnunetv2.training.loss.dice").SoftDiceLoss(torch.sigmoid, smooth=1e-5)
)

# classification


def timm(name: str) -> Any:
    return shown("timm", f"timm.loss.{name}")


site("timm", "LabelSmoothingCrossEntropy", lambda: labelled(9, 7), "cross_entropy")(
    lambda: timm("cross_entropy").LabelSmoothingCrossEntropy()
)
site("timm", "SoftTargetCrossEntropy", lambda: (scores(7, 9), torch.rand(7, 9).softmax(1)), "cross_entropy")(
    lambda: timm("cross_entropy").SoftTargetCrossEntropy()
)
site("timm", "BinaryCrossEntropy", lambda: labelled(9, 7), "binary_cross_entropy_with_logits")(
    lambda: timm("binary_cross_entropy").BinaryCrossEntropy()
)
site("timm", "BinaryCrossEntropy, summed", lambda: (scores(7, 9), torch.rand(7, 9)),
     "binary_cross_entropy_with_logits")(
    lambda: timm("binary_cross_entropy").BinaryCrossEntropy(sum_classes=True)
)  # fmt: skip
site("timm", "AsymmetricLossMultiLabel", lambda: hard(4, 6), "asymmetric_loss")(
    lambda: timm("asymmetric_loss").AsymmetricLossMultiLabel()
)
site("timm", "JsdCrossEntropy", lambda: labelled(5, 6), "cross_entropy")(lambda: timm("jsd").JsdCrossEntropy())
site("timm", "PolyCrossEntropy", lambda: labelled(5, 6), "poly1_cross_entropy")(
    lambda: timm("poly_loss").PolyCrossEntropy()
)

site("fastai", "FocalLoss", lambda: labelled(5, 6), "softmax_focal_loss")(lambda: _fastai("FocalLoss"))
site("fastai", "LabelSmoothingCrossEntropy", lambda: labelled(5, 6), "cross_entropy")(
    lambda: _fastai("LabelSmoothingCrossEntropy")
)
PACKAGES["fastai"] = "fastai"


def _fastai(name: str) -> Any:
    return getattr(module("fastai.losses"), name)()


mmpretrain_focal = shown("mmpretrain", "mmpretrain.models.losses.focal_loss", absent=("mmpretrain.registry",))
site("mmpretrain", "sigmoid_focal_loss", lambda: hard(6, 4), "focal_loss")(lambda: mmpretrain_focal.sigmoid_focal_loss)
site("mmpretrain", "asymmetric_loss", lambda: hard(6, 4), "asymmetric_loss")(
    lambda: (
        shown("mmpretrain", "mmpretrain.models.losses.asymmetric_loss", absent=("mmpretrain.registry",)).asymmetric_loss
    )
)
site("mmpretrain", "soft_cross_entropy", lambda: (scores(7, 9), torch.rand(7, 9).softmax(1)), "cross_entropy")(
    lambda: (
        shown(
            "mmpretrain", "mmpretrain.models.losses.cross_entropy_loss", absent=("mmpretrain.registry",)
        ).soft_cross_entropy
    )
)

site("balanced-loss", "focal_loss", lambda: hard(6, 4), "focal_loss")(
    lambda: shown("balanced-loss", "balanced_loss.losses").focal_loss
)
site("simpletransformers", "FocalLoss", lambda: labelled(5, 7), "softmax_focal_loss")(
    lambda: shown("simpletransformers", "simpletransformers.losses.focal_loss").FocalLoss(alpha=1.0, reduction="mean")
)
site("super-gradients", "FocalLoss", lambda: hard(6, 4), "focal_loss")(
    lambda: shown(
        "super-gradients", "super_gradients.training.losses.focal_loss", absent=("super_gradients.common",)
    ).FocalLoss(nn.BCEWithLogitsLoss())
)
site("super-gradients", "KDklDivLoss", lambda: pairs(6, 4), "distillation_loss")(
    lambda: shown(
        "super-gradients", "super_gradients.training.losses.kd_losses", absent=("super_gradients.common",)
    ).KDklDivLoss()
)

# language

trainer = shown("transformers, language", "transformers.trainer_pt_utils")
PACKAGES["transformers, language"] = "transformers"
site("transformers, language", "LabelSmoother", lambda: ignored(9, 2, 5), "cross_entropy")(
    lambda: lambda x, y: trainer.LabelSmoother(0.1)({"logits": x}, y)
)
site("transformers, language", "ForCausalLMLoss", lambda: ignored(9, 2, 5), "cross_entropy")(
    lambda: (lambda of: lambda x, y: of(x, y, 9))(module("transformers.loss.loss_utils").ForCausalLMLoss)
)
site("transformers, language", "ForMaskedLMLoss", lambda: ignored(9, 2, 5), "cross_entropy")(
    lambda: (lambda of: lambda x, y: of(x, y, 9))(module("transformers.loss.loss_utils").ForMaskedLMLoss)
)

trl = shown("trl", "trl.trainer.utils")
site("trl", "selective_log_softmax", lambda: tokens(9, 2, 5), "cross_entropy")(lambda: _trl("selective_log_softmax"))


def _trl(name: str) -> Any:
    return getattr(trl, name)


def torchtune(name: str) -> Any:
    return shown("torchtune", f"torchtune.{name}")


site("torchtune", "CEWithChunkedOutputLoss", lambda: ignored(9, 2, 6), *("cross_entropy",) * 2)(
    lambda: (lambda of: lambda x, y: of(list(x.chunk(2, 1)), y))(
        module("torchtune.modules.loss.ce_chunked_output_loss").CEWithChunkedOutputLoss(2)
    )
)
site("torchtune", "ForwardKLLoss", lambda: (*pairs(2, 5, 9), torch.randint(0, 9, (2, 5))), "cross_entropy")(
    lambda: module("torchtune.modules.loss.kd_losses").ForwardKLLoss()
)
PACKAGES["torchtune"] = "torchtune"
for name in ("DPOLoss", "RSOLoss"):
    site("torchtune", name, lambda: (scores(6), scores(6), torch.randn(6), torch.randn(6)),
         why="two weighted softplus of one logit, or a hinge: a target that is the same everywhere")(
        lambda name=name: of_one(getattr(module("torchtune.rlhf.loss.dpo"), name)(), 0)
    )  # fmt: skip

site("espnet", "LabelSmoothingLoss", lambda: tokens(9, 2, 5), "kl_div", why="its smoothed target is made by hand")(
    lambda: shown("espnet", "espnet.nets.pytorch_backend.transformer.label_smoothing_loss").LabelSmoothingLoss(
        9, -1, 0.1
    )
)
site("allennlp", "sequence_cross_entropy_with_logits",
     lambda: (*tokens(9, 2, 5), torch.ones(2, 5)), "cross_entropy")(lambda: _allennlp())  # fmt: skip
PACKAGES["allennlp"] = "allennlp"


def _allennlp() -> Any:
    return module("allennlp.nn.util", absent=("allennlp.common",)).sequence_cross_entropy_with_logits


def sentences(name: str) -> Any:
    return shown("sentence-transformers", f"sentence_transformers.sentence_transformer.losses.{name}")


class Encoder(nn.Module):
    """A model of sentences that are vectors already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**features, "sentence_embedding": features["x"]}


def encoded(loss: Callable[..., Any]) -> Callable[..., Any]:
    def program(*args: Tensor) -> Any:
        *vectors, labels = args
        return loss([{"x": v} for v in vectors], labels)

    return program


site("sentence-transformers", "MultipleNegativesRankingLoss", lambda: (*two(), torch.zeros(6)), "cross_entropy")(
    lambda: encoded(sentences("multiple_negatives_ranking").MultipleNegativesRankingLoss(Encoder()))
)
site("sentence-transformers", "TripletLoss", lambda: (*three(), torch.zeros(6)), "triplet_margin_loss")(
    lambda: encoded(sentences("triplet").TripletLoss(Encoder()))
)
site("sentence-transformers", "CosineSimilarityLoss", lambda: (*two(), torch.rand(6)), "mse_loss")(
    lambda: encoded(sentences("cosine_similarity").CosineSimilarityLoss(Encoder()))
)
site("sentence-transformers", "MarginMSELoss", lambda: (*three(), torch.rand(6)), "mse_loss")(
    lambda: encoded(sentences("margin_mse").MarginMSELoss(Encoder()))
)

site("open_clip", "ClipLoss", lambda: (*two(), torch.tensor(14.0)), "clip_loss")(
    lambda: shown("open_clip", "open_clip.loss").ClipLoss()
)
site("open_clip", "SigLipLoss", lambda: (*two(), torch.tensor(14.0), torch.tensor(-10.0)), "siglip_loss")(
    lambda: shown("open_clip", "open_clip.loss").SigLipLoss()
)
site("open_clip", "DistillClipLoss", lambda: (*two(), torch.tensor(14.0), *pairs(6, 8), torch.tensor(9.0)),
     *("cross_entropy",) * 4)(
    lambda: (lambda of: lambda *a: sum(of(*a)))(shown("open_clip", "open_clip.loss").DistillClipLoss())
)  # fmt: skip

# metric learning, speech, forecasts


def lightly(name: str) -> Any:
    return shown("lightly", f"lightly.loss.{name}")


site("lightly", "NTXentLoss", two, "cross_entropy")(lambda: lightly("ntx_ent_loss").NTXentLoss())
site("lightly", "NegativeCosineSimilarity", two, why="no op computes a mean of cosines alone")(
    lambda: lightly("negative_cosine_similarity").NegativeCosineSimilarity()
)

speech = shown("speechbrain", "speechbrain.nnet.losses")
site("speechbrain", "nll_loss", lambda: tokens(9, 2, 5), "cross_entropy")(
    lambda: lambda x, y: speech.nll_loss(x.log_softmax(-1), y, torch.ones(2))
)
site("speechbrain", "mse_loss", lambda: (*pairs(2, 5), torch.tensor([1.0, 0.6])), "mse_loss")(
    lambda: lambda x, t, n: speech.mse_loss(x, t, n)
)
site("speechbrain", "l1_loss", lambda: (*pairs(2, 5), torch.tensor([1.0, 0.6])), "l1_loss")(
    lambda: lambda x, t, n: speech.l1_loss(x, t, n)
)
site("speechbrain", "bce_loss", lambda: hard(2, 5), "binary_cross_entropy_with_logits")(
    lambda: lambda x, t: speech.bce_loss(x, t)
)

neural = shown("neuralforecast", "neuralforecast.losses.pytorch")
for name, op in (("MAE", "l1_loss"), ("MSE", "mse_loss"), ("HuberLoss", "huber_loss")):
    site("neuralforecast", name, lambda: pairs(2, 5, 1), op)(
        lambda name=name: (lambda of: lambda x, y: of(y, x))(_neural(name))
    )
site("neuralforecast", "QuantileLoss", lambda: pairs(2, 5, 1), "quantile_loss")(
    lambda: lambda x, y: neural.QuantileLoss(0.3)(y, x)
)


def _neural(name: str) -> Any:
    return getattr(neural, name)()


# torchvision, whose C++ is not needed

PACKAGES["torchvision"] = "torchvision"
for name, op in (
    ("generalized_box_iou_loss", "giou_loss"),
    ("distance_box_iou_loss", "diou_loss"),
    ("complete_box_iou_loss", "ciou_loss"),
):
    site("torchvision", name, boxes, op)(
        lambda name=name: (lambda of: lambda a, b: of(a, b, reduction="mean"))(getattr(_vision(), name))
    )
site("torchvision", "sigmoid_focal_loss", lambda: hard(4, 5), "focal_loss")(
    lambda: (lambda of: lambda x, t: of(x, t, reduction="mean"))(_vision().sigmoid_focal_loss)
)


def _vision() -> Any:
    vision = torchvision_for_cpu.torchvision()
    if vision is None:
        raise ImportError("torchvision")
    return vision.ops


# the table


def version(source: str) -> str:
    """The version of the package that a source is of; empty where it is not known."""
    package = PACKAGES.get(source, "")
    if not package:
        return ""
    for name in (package, *importlib.metadata.packages_distributions().get(package, ())):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def result(program: Callable[..., Any]) -> Callable[..., Any]:
    """A program whose result is one tensor, whatever it returns."""

    def one(*args: Any) -> Tensor:
        made = program(*args)
        made = list(made.values()) if isinstance(made, dict) else made
        return sum(made) if isinstance(made, list | tuple) else made  # type: ignore[return-value]

    return one


def examine(s: Site) -> Found | str:
    """What the rewrite makes of a site; why it could not be tried."""
    torchvision_for_cpu.torchvision()
    try:
        torch.manual_seed(0)
        function = s.make()
        function(*s.inputs())
    except Exception as error:  # without what the library needs besides, its loss does not run at all
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return look(Program(s.source, s.name, result(function), s.inputs, s.ops, dict(s.options)))


def row(cells: Sequence[Any]) -> str:
    return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"


def written(found: Sequence[tuple[Found, str]]) -> str:
    """The table of sources, and that of their sites."""
    by_source: dict[str, list[tuple[Found, str]]] = {}
    for f, why in found:
        by_source.setdefault(f.program.source, []).append((f, why))
    lines = [
        row(("source", "version", "programs", "sites with an op", "swapped", "left", "missed", "differ")),
        row(["---"] * 8),
    ]
    total = [0] * 6
    for source, of in sorted(by_source.items()):
        counts = [
            len(of), sum(len(f.program.ops) for f, _ in of), sum(f.swapped for f, _ in of),
            sum(f.left for f, _ in of), sum(f.missed for f, _ in of), sum(bool(f.difference) for f, _ in of),
        ]  # fmt: skip
        total = [a + b for a, b in zip(total, counts, strict=True)]
        lines.append(row((source, version(source), *counts)))
    lines += [row(("**all**", "", *total)), "", row(("source", "program", "ops", "what became of it", "why"))]
    lines.append(row(["---"] * 5))
    for source, of in sorted(by_source.items()):
        for f, why in of:
            state = "missed" if f.missed else "left" if f.left else "swapped" if f.program.ops else "no op"
            lines.append(row((source, f.program.name, ", ".join(f.program.ops), state, f.why or why)))
    return "\n".join(lines) + "\n"


HEAD = """# The loss sites of libraries and scripts, and what the rewrite makes of them

`make survey` writes this. A program is a loss of a library, imported from it, or written anew in the manner
of a script; each was compiled behind the rewrite, and outputs and gradients were compared with eager mode. A
site is a place whose op exists; "left" is one that stays for a reason that the report gives, beside it; "no
op" is a program that no op computes.

"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="", help="sources and programs whose names hold this")
    parser.add_argument("--libraries", type=Path, help="a folder with libraries")
    parser.add_argument("--output", type=Path, help="the Markdown file to write")
    options = parser.parse_args()
    if options.libraries:
        sys.path.append(str(options.libraries))
        importlib.invalidate_caches()
    from survey import PROGRAMS

    found: list[tuple[Found, str]] = []
    absent: dict[str, str] = {}
    for p in PROGRAMS:
        if options.only in f"{p.source} {p.name}":
            found.append((look(replace(p, source=f"in the manner of {p.source}")), ""))
    for s in SITES:
        if options.only not in f"{s.source} {s.name}":
            continue
        one = examine(s)
        if isinstance(one, str):
            absent[f"{s.source}, {s.name}"] = one
            continue
        found.append((one, s.why))
        state = "MISSED" if one.missed else "left" if one.left else "swapped"
        print(
            f"{state:8}{s.source:28}{s.name:36}{','.join(s.ops)}  {one.why}",
            one.difference and f"DIFFERS {one.difference}",
        )
    for name, why in absent.items():
        print(f"not tried: {name}: {why}")
    sites = sum(len(f.program.ops) for f, _ in found)
    counts = [sum(getattr(f, what) for f, _ in found) for what in ("swapped", "left", "missed")]
    print(f"{sites} sites: {counts[0]} swapped, {counts[1]} left with a reason, {counts[2]} missed")
    if options.output:
        options.output.write_text(HEAD + written(found))


if __name__ == "__main__":
    os.environ.setdefault("YOLO_OFFLINE", "1")
    main()
