"""Calls and schemas."""

from collections.abc import Mapping, Sequence
from typing import Any


def bind(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a schema by name, in order, defaults filled in."""
    bound = {}
    for i, a in enumerate(overload._schema.arguments):
        if i < len(args):
            bound[a.name] = args[i]
        elif a.name in kwargs:
            bound[a.name] = kwargs[a.name]
        else:
            bound[a.name] = a.default_value
    return bound


def call(overload: Any, bound: Mapping[str, Any]) -> Any:
    """The call of a bound schema: positional what may be, in order, and the rest by keyword."""
    arguments = overload._schema.arguments
    positional = [bound[a.name] for a in arguments if not a.kwarg_only]
    return overload(*positional, **{a.name: bound[a.name] for a in arguments if a.kwarg_only})


def require_tensors(overload: Any, bound: Mapping[str, Any]) -> None:
    """An error where an argument that must be a tensor is None."""
    for a in overload._schema.arguments:
        if str(a.type) == "Tensor" and bound[a.name] is None:
            op = overload._schema.name.split("::")[1]
            raise RuntimeError(f"{op}: expected {a.name} to be a tensor, got None")
