"""Autocast: a loss is float32, a matrix product runs in the dtype of autocast, an activation keeps its input's.

The kernels read low-precision inputs as they are, so nothing is copied for a loss. Where the reference runs in the op's
place (vmap, forward mode, decompositions), it gets what the kernel would have got, and runs without autocast, whose
lists of functions would change the dtypes inside it; or where a transform of torch.func brings that back, in float64.
"""

from typing import Any

import torch

from .._autocast import KEYS
from .._private import transform_active, without_key
from ..meta.schema import bind, call
from ..op import Op


def attach(op: Op, lib: torch.library.Library) -> None:
    if not op.is_loss and not op.lowered:
        return  # activations fall through: their kernels return their input's dtype

    def for_device(device_type: str) -> Any:
        def value(*args: Any, **kwargs: Any) -> Any:
            bound = op.under_autocast(bind(op.value, args, kwargs), device_type)
            if transform_active():  # the last place where autocast can be seen
                return op.evaluate_reference(bound, device_type)
            with without_key(KEYS[device_type]):
                return call(op.value, bound)

        return value

    for device_type, key in KEYS.items():
        lib.impl(op.short, for_device(device_type), key)
