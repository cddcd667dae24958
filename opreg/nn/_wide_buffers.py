"""Buffers to which small steps are added: float32 at least.

In bfloat16 a hundredth of a difference of 0.2 is rounded away, and the state stays where it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


class WideBuffers(torch.nn.Module):
    """A module some of whose buffers are float32 at least, whatever its dtype.

    ``module.bfloat16()`` and ``module.to(torch.float16)`` leave their dtype and their value alone; a state dict of such
    a dtype changes their value only.
    """

    wide_buffers: ClassVar[tuple[str, ...]]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = {name: self._buffers[name] for name in self.wide_buffers}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, before in kept.items():
            after = self._buffers[name]
            if before is not None and after is not None and after.dtype != wide(after.dtype):
                # from the values before: those after are rounded
                self._buffers[name] = before.to(after.device, wide(before.dtype))
        return self

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name in self.wide_buffers:
            t = self._buffers[name]
            if t is not None:  # an assignment may have brought another dtype
                self._buffers[name] = t.to(wide(t.dtype))
