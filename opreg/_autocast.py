"""Autocast as a call finds it: on which device it is on, and a context without it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ._library import KERNEL_KEYS

# The dispatcher's key of each device's autocast.
KEYS = {device_type: f"Autocast{key}" for device_type, key in KERNEL_KEYS.items()}


def active(bound: Mapping[str, Any]) -> str:
    """The type of the device whose autocast a call of the op would see, or nothing."""
    device_type: str = next((a.device.type for a in bound.values() if isinstance(a, Tensor)), "")
    return device_type if device_type in KEYS and torch.is_autocast_enabled(device_type) else ""


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
