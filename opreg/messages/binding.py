"""The arguments of a call held against a schema: the dispatcher reads them before any kernel runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._private import has_tangent
from ..op import Op
from .options import allowed
from .words import fits_list, kind_of, said, wrong_names


def wrong_binding(op: Op, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why the arguments are none of this schema: beside their names, one is missing, or of another type."""
    arguments = overload._schema.arguments
    positional = [a.name for a in arguments if not a.kwarg_only]
    if wrong := wrong_names(positional, [a.name for a in arguments if a.kwarg_only], args, kwargs):
        return wrong
    given = {**dict(zip(positional, args, strict=False)), **kwargs}
    for a in arguments:
        kind, fits = kind_of(str(a.real_type))
        if a.name not in given:
            if a.has_default_value():
                continue
            # its name before the gradients came as a tuple
            saved = "; a program of opreg 0.1 calls it so: export it again" if a.name == "needs_input_grad" else ""
            return f"expected {a.name} to be {kind}, got no such argument{saved}"
        value = given[a.name]
        if fits(value) or (hasattr(value, "__torch_function__") and not isinstance(value, Tensor)):
            continue
        got = said(value)
        strange = [e for e in value if not fits_list(kind, e)] if isinstance(value, (list, tuple)) else []
        if "list" in kind and strange:
            got += f" that holds {said(strange[0])}"
        expected = (kind == "a string" and allowed(op, a.name)) or f"{a.name} to be {kind}"
        return f"expected {expected}, got {got}{_made(op, a, value)}"
    return None


def _made(op: Op, argument: Any, value: Any) -> str:
    """How to make the value one that the op takes, if that is plain."""
    kind = str(argument.real_type)
    if kind == "Optional[ScalarType]":
        name = getattr(value, "__name__", str(value))
        return f"; pass torch.{name}" if isinstance(getattr(torch, name, None), torch.dtype) else ""
    if "Tensor" not in kind or value is None or isinstance(value, (str, dict)):
        return ""
    if argument.name in op.accepts and isinstance(value, (int, float, list, tuple)):
        return f"; opreg.functional.{op.short} takes that too"
    if kind == "List[Tensor]":
        return f"; pass [{argument.name}]" if isinstance(value, Tensor) else ""
    if type(value).__module__ == "numpy":
        return f"; pass torch.as_tensor({argument.name})"
    return f"; pass torch.tensor({argument.name})" if isinstance(value, (int, float, complex, list, tuple)) else ""


def wrong_layout(bound: Mapping[str, Any]) -> str | None:
    """Why a tensor is of no kind that a kernel can read."""
    lists = {f"{n}[{i}]": t for n, a in bound.items() if isinstance(a, (list, tuple)) for i, t in enumerate(a)}
    for name, t in {**bound, **lists}.items():
        if not isinstance(t, Tensor):
            continue
        if t.is_nested:
            return f"expected {name} to be one strided tensor, got a nested one; pass its values(), or pad it"
        if t.layout is not torch.strided:
            return f"expected {name} to be a strided tensor, got one of layout {t.layout}; pass {name}.to_dense()"
        if t.is_quantized:
            return f"expected {name} to be a floating tensor, got a quantized one; pass {name}.dequantize()"
    return None


def require_plain(name: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """The dispatcher makes a number of a tensor with one element: without a word its gradient would be lost, and what
    an integer has no place for."""
    kinds = {a.name: str(a.real_type) for a in overload._schema.arguments}
    for option, a in (*zip(kinds, args, strict=False), *kwargs.items()):
        if not isinstance(a, Tensor) or "Tensor" in kinds.get(option, "Tensor"):
            continue
        if (a.requires_grad and torch.is_grad_enabled()) or has_tangent(a):
            raise RuntimeError(
                f"{name}: expected {option} that does not require grad (it is a number, a constant of this op), "
                "got one that does; pass it detached, or write the formula out to learn it"
            )
        kind, fits = kind_of(kinds[option])
        if not fits(a):
            raise RuntimeError(f"{name}: expected {option} to be {kind}, got {said(a)}")
