"""An op as a Python function: its parameters and their types are those of its schema."""

import inspect
import typing
from collections.abc import Callable, Sequence
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor

from ..op import Op
from .docstrings import function_docstring

# the types of a schema, as TorchScript prints them
TYPES: dict[str, Any] = {
    "Tensor": Tensor,
    "Optional[Tensor]": Tensor | None,
    "List[Tensor]": Sequence[Tensor],
    "bool": bool,
    "int": int,
    "float": float,
    "str": str,
    "List[int]": int | Sequence[int],
    "Optional[ScalarType]": torch.dtype | None,
}


def parameters(op: Op) -> list[Parameter]:
    """A schema's arguments, as Python has them."""
    result = []
    for a in op.value._schema.arguments:
        annotation = TYPES[str(a.real_type)]
        if a.name in op.accepts:
            annotation = next(iter(typing.get_type_hints(op.accepts[a.name]).values()))
        default = Parameter.empty
        if a.has_default_value():
            default = a.default_value
            if isinstance(default, list) and len(set(default)) == 1:
                default = default[0]  # an int[2] takes one number for both
        kind = Parameter.KEYWORD_ONLY if a.kwarg_only else Parameter.POSITIONAL_OR_KEYWORD
        result.append(Parameter(a.name, kind, default=default, annotation=annotation))
    return result


def result_type(op: Op) -> Any:
    """What a call returns, as Python has it."""
    count = len(op.value._schema.returns)
    return None if count == 0 else Tensor if count == 1 else tuple[(Tensor,) * count]  # type: ignore[misc]


def function(op: Op, module: str) -> Callable[..., Any]:
    """The op as a function of this module, with signature and documentation."""
    call = converting(op)

    def face(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    returns = result_type(op)
    signature = inspect.Signature(parameters(op), return_annotation=returns)
    # code of its own: Dynamo counts recompilations, and learns which sizes change, for each code object
    face.__code__ = face.__code__.replace(co_name=op.short)
    face.__name__ = face.__qualname__ = op.short
    face.__module__ = module
    face.__doc__ = function_docstring(op)
    face.__signature__ = signature  # type: ignore[attr-defined]
    face.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()} | {"return": returns}
    return face


def converting(op: Op) -> Callable[..., Any]:
    """The op, behind its conversions where it has any."""
    if not op.accepts:
        overload: Callable[..., Any] = op.value
        return overload
    value, names, accepts = op.value, op.arguments, dict(op.accepts)

    def call(*args: Any, **kwargs: Any) -> Any:
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        made = {n: convert(given[n], given) for n, convert in accepts.items() if n in given}
        positional = [made.get(n, a) for n, a in zip(names, args, strict=False)]
        by_name = {n: made.get(n, a) for n, a in kwargs.items()}
        return value(*positional, *args[len(names) :], **by_name)

    return call
