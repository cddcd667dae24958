"""Autocast: a loss is float32, a matrix product runs in the dtype of autocast, an activation keeps its input's.

The kernels read low-precision inputs as they are, so nothing is copied for a loss. Where the reference runs in the op's
place (vmap, forward mode, decompositions), it gets what the kernel would have got, and runs without autocast, whose
lists of functions would change the dtypes inside it; or where a transform of torch.func brings that back, in float64.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._private import transform_active, without_autocast
from .meta.fakes import result_dtype
from .meta.schema import bind, call

if TYPE_CHECKING:
    from .registry import Op

DEVICES = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


def attach(op: "Op", lib: torch.library.Library) -> None:
    if not op.is_loss and not op.lowered:
        return  # activations fall through: their kernels return their input's dtype

    def for_device(device_type: str) -> Any:
        def value(*args: Any, **kwargs: Any) -> Any:
            bound = converted(op, bind(op.value, args, kwargs), device_type)
            if transform_active():  # the last place where autocast can be seen
                return op.evaluate_reference(bound, device_type)
            with without_autocast(device_type):
                return call(op.value, bound)

        return value

    for device_type, key in DEVICES.items():
        lib.impl(op.short, for_device(device_type), key)


def converted(op: "Op", bound: Mapping[str, Any], device_type: str) -> dict[str, Any]:
    """The arguments of a call as autocast makes them. Twice is once."""
    bound = dict(bound)
    for name in op.lowered:
        t = bound[name]
        if t is not None and t.is_floating_point() and t.dtype != torch.float64:
            bound[name] = t.to(torch.get_autocast_dtype(device_type))
    low = (torch.float16, torch.bfloat16)
    if op.is_loss and bound["dtype"] is None and result_dtype(bound, op.rule.typed_by) in low:
        bound["dtype"] = torch.float32
    return bound


def active(bound: Mapping[str, Any]) -> str:
    """The type of the device whose autocast a call of the op would see, or nothing."""
    device_type: str = next((a.device.type for a in bound.values() if isinstance(a, Tensor)), "")
    return device_type if device_type in DEVICES and torch.is_autocast_enabled(device_type) else ""


def suspended(device_type: str) -> AbstractContextManager[None]:
    """No autocast on this device, if one is named."""
    return _suspended(device_type) if device_type else nullcontext()


@contextmanager
def _suspended(device_type: str) -> Iterator[None]:
    torch.set_autocast_enabled(device_type, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, True)
