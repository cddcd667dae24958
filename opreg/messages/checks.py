"""Errors before the kernel would make them: in a module's constructor, and where the reference runs in its place."""

from collections.abc import Mapping
from typing import Any

import torch

from ..meta.fakes import check_tensors
from ..meta.schema import require_tensors
from ..op import Op
from .binding import require_plain, wrong_binding
from .options import complaint_outside, option_complaint


def check_options(op: Op, options: Mapping[str, Any]) -> None:
    """An error where the op would refuse one of these options in any call."""
    kinds = {a.name: str(a.real_type) for a in op.value._schema.arguments}
    stand_in = torch.empty(0, device="meta")
    tensors = {n: stand_in for n, kind in kinds.items() if kind == "Tensor" and n not in options}
    if wrong := wrong_binding(op, op.value, (), {**tensors, **options}):
        raise RuntimeError(f"{op.short}: {wrong}")
    require_plain(op.short, op.value, (), options)
    if text := option_complaint(op, {n: v for n, v in options.items() if "Tensor" not in kinds[n]}):
        raise RuntimeError(text)


def check_call(op: Op, bound: Mapping[str, Any]) -> None:
    """An error where the kernel would refuse the call, for the paths on which the reference runs in its place.

    No tensor is made and no value is read, so that it can be asked under every transform and in tracing.
    """
    options = {n: a for n, a in bound.items() if n not in op.tensor_arguments and n != "dtype"}
    plain = tuple((n, tuple(a) if isinstance(a, list) else a) for n, a in options.items())
    if all(type(a) in (bool, int, float, str, tuple) for _, a in plain) and (text := complaint_outside(op, plain)):
        raise RuntimeError(text)
    require_tensors(op.value, bound)
    check_tensors(op.short, bound, op.rule.on_host)
    op.rule(op.short, bound)
