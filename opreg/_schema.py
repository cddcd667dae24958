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
