"""Modules over ops in the place of torch.nn's, which ``opreg.fuse`` puts there before any input is seen."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .. import _autocast
from .._library import KERNEL_KEYS
from ..op import Op

# Ops whose functions in torch autocast leaves as they are: of 16 bits these give 16 bits, and the ops 32.
LEFT_BY_AUTOCAST = frozenset({"gaussian_nll_loss", "multilabel_soft_margin_loss"})
_HALF = (torch.bfloat16, torch.float16)


def declined(op: Op, given: Mapping[str, Any]) -> str:
    """Why torch's own function, and not the op, has to compute a call; empty: the op can.

    No value is read, so that it can be asked in tracing too. What makes the call wrong for both is not looked for.

    Args:
        op: the op.
        given: the arguments by name, those that are missing left out.
    """
    first = op.arguments[0]
    floating: list[Tensor] = []
    for name in op.tensor_arguments:
        t = given.get(name)
        if not isinstance(t, Tensor):
            if t is None or name in op.accepts or hasattr(type(t), "__torch_function__"):  # a tracer's proxy
                continue
            return f"{name} is no tensor"
        if kind := of_no_op(t):
            return f"{name} is {kind}"
        if t.device.type not in KERNEL_KEYS and not t.is_meta:
            return f"there is no kernel for {t.device.type}"
        if t.is_floating_point():
            floating.append(t)
            wrong = name in op.indices and name not in op.differentiable
        else:
            wrong = name == first or (name in op.indices and t.dtype == torch.bool)
        if wrong:
            return f"{name} is of dtype {t.dtype}"
        if name != first and t.requires_grad and torch.is_grad_enabled() and is_constant(op, name, given):
            return f"{name} requires grad, and is a constant of {op.short}"
    if op.short in LEFT_BY_AUTOCAST and _autocast.active(given) and all(t.dtype in _HALF for t in floating):
        return "autocast leaves torch's own in 16 bits"
    if given.get("reduction") == "none" and not alike(floating):
        return "the tensors lie in memory in several orders, and so might the result"
    return ""


def of_no_op(t: Tensor) -> str:
    """What a tensor is, if that is something that no op takes; else empty."""
    if t.layout is not torch.strided or t.is_nested:
        return "sparse or nested"
    return "complex" if t.is_complex() else ""


def is_constant(op: Op, name: str, given: Mapping[str, Any]) -> bool:
    """Is a tensor one that the op refuses if it requires grad?"""
    return name not in (*op.differentiable_in(dict.fromkeys(op.arguments) | dict(given)), *op.detached)


def alike(tensors: list[Tensor]) -> bool:
    """Do tensors lie in memory in the order of the first one, as far as they have one: with two dimensions or more?"""
    for t in tensors[1:]:
        first = tensors[0]
        if t.dim() < 2:
            continue
        if t.shape == first.shape:
            if t.stride() != first.stride():
                return False
        elif not (t.is_contiguous() and first.is_contiguous()):
            return False
    return True


def warn(module: torch.nn.Module, why: str) -> None:
    """Tells once for each place that torch's own forward ran."""
    if not torch.compiler.is_compiling():
        text = f"opreg.fuse: a call of {type(module).__name__} was left to torch's own forward: {why}"
        warnings.warn(text, stacklevel=5)
