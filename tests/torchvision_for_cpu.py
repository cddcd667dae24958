"""torchvision beside a CPU build of torch: its wheel is linked to CUDA, so that its C++ ops do not load there."""

import importlib
import importlib.util
from typing import Any

import torch


def torchvision() -> Any:
    """The module, or None where it is not installed. timm, transformers and others import it too, so call this before.

    Its import fails where it registers the fakes of two ops that are not there; the rest of it is Python.
    """
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", schema)
        return importlib.import_module("torchvision")
