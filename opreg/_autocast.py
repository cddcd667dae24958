"""Autocast: a loss is float32. The kernels read low-precision inputs as they are, so nothing is copied."""

from typing import TYPE_CHECKING, Any

import torch

from ._private import without_autocast
from .meta.fakes import result_dtype
from .meta.schema import bind

if TYPE_CHECKING:
    from .registry import Op


def attach(op: "Op", lib: torch.library.Library) -> None:
    if not op.is_loss:
        return  # activations fall through: their kernels return their input's dtype

    def for_device(device_type: str) -> Any:
        def value(*args: Any, **kwargs: Any) -> Any:
            if result_dtype(bind(op.value, args, kwargs)) in (torch.float16, torch.bfloat16):
                kwargs = {"dtype": torch.float32, **kwargs}
            with without_autocast(device_type):
                return op.value(*args, **kwargs)

        return value

    lib.impl(op.short, for_device("cpu"), "AutocastCPU")
    lib.impl(op.short, for_device("cuda"), "AutocastCUDA")
