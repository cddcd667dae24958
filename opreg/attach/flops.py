"""What torch.utils.flop_counter counts of an op: the products inside it, of which no call shows."""

from collections.abc import Callable
from typing import Any

import torch

from .._imports import when_imported
from .._private import has_op
from ..meta.schema import bind
from ..op import Flops, Op


def attach(op: Op) -> None:
    """Registers the op's formulas: not before somebody counts, for the counter's module loads triton where that is."""

    def register() -> None:
        from torch.utils.flop_counter import flop_registry, register_flop_formula

        # the second name is what compiled code calls
        for name in (op.qualname, op.kernels_name):
            for suffix, formula in op.flops.items():
                if has_op(name + suffix):
                    namespace, short = (name + suffix).split("::")
                    packet = getattr(getattr(torch.ops, namespace), short)
                    flop_registry.pop(packet, None)
                    register_flop_formula(packet, get_raw=True)(counted(packet.default, formula))

    if op.flops:
        when_imported("torch.utils.flop_counter", register)


def counted(overload: Any, formula: Flops) -> Callable[..., int]:
    def count(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return formula(bind(overload, args, kwargs), out_val)

    return count
