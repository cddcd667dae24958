"""Autocast: a loss is float32, a matrix product runs in the dtype of autocast, an activation keeps its input's.

The kernels read low-precision inputs as they are, so nothing is copied for a loss.
"""

from typing import TYPE_CHECKING, Any

import torch

from ._private import without_autocast
from .meta.fakes import result_dtype
from .meta.schema import bind, call

if TYPE_CHECKING:
    from .registry import Op


def attach(op: "Op", lib: torch.library.Library) -> None:
    if not op.is_loss and not op.lowered:
        return  # activations fall through: their kernels return their input's dtype

    def for_device(device_type: str) -> Any:
        def value(*args: Any, **kwargs: Any) -> Any:
            bound = bind(op.value, args, kwargs)
            for name in op.lowered:
                t = bound[name]
                if t is not None and t.is_floating_point() and t.dtype != torch.float64:
                    bound[name] = t.to(torch.get_autocast_dtype(device_type))
            low = (torch.float16, torch.bfloat16)
            if op.is_loss and bound["dtype"] is None and result_dtype(bound, op.shape) in low:
                bound["dtype"] = torch.float32
            with without_autocast(device_type):
                return call(op.value, bound)

        return value

    lib.impl(op.short, for_device("cpu"), "AutocastCPU")
    lib.impl(op.short, for_device("cuda"), "AutocastCUDA")
