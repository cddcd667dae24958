"""What torch.utils.flop_counter counts of an op: the products inside it, of which no call shows."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch

from ._private import when_imported
from .meta.schema import bind

if TYPE_CHECKING:
    from .registry import Op

# From the arguments by name and the result.
Flops = Callable[[Mapping[str, Any], Any], int]


def attach(op: "Op") -> None:
    """Registers the op's formulas: not before somebody counts, for the counter's module loads triton where that is."""

    def register(counter: ModuleType) -> None:
        for suffix, formula in op.flops.items():
            packet = getattr(getattr(torch.ops, op.qualname.split("::")[0]), op.short + suffix)
            counter.flop_registry.pop(packet, None)
            counter.register_flop_formula(packet, get_raw=True)(counted(packet.default, formula))

    if op.flops:
        when_imported("torch.utils.flop_counter", register)


def counted(overload: Any, formula: Flops) -> Callable[..., int]:
    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(bind(overload, args, kwargs), out_val)

    return count
