"""Calls and schemas."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from torch import Tensor


@cache
def defaults(overload: Any) -> dict[str, Any]:
    """Every argument of a schema by name, in order, with its default or None. Not to be written to."""
    return {a.name: a.default_value for a in overload._schema.arguments}


def bind(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument of a schema by name, in order, defaults filled in."""
    of_schema = defaults(overload)
    return {**of_schema, **dict(zip(of_schema, args, strict=False)), **kwargs}


def call(overload: Any, bound: Mapping[str, Any]) -> Any:
    """The call of a bound schema: what may be positional is, in order, and the rest goes by keyword."""
    arguments = overload._schema.arguments
    positional = [bound[a.name] for a in arguments if not a.kwarg_only]
    return overload(*positional, **{a.name: bound[a.name] for a in arguments if a.kwarg_only})


@cache
def result_names(overload: Any) -> tuple[str, ...]:
    """What the results of an op are called, as its schema has it. One alone is the ``output``."""
    returns = overload._schema.returns
    return ("output",) if len(returns) == 1 else tuple(r.name for r in returns)


@cache
def gradient_names(overload: Any) -> tuple[str, ...]:
    """What ``NAME_backward`` calls the gradients of these results, its first arguments."""
    return tuple(f"grad_{name}" for name in result_names(overload))


def results_of(returned: Any) -> tuple[Tensor, ...]:
    """What a call returned, as a tuple: the dispatcher hands out one Tensor by itself."""
    return (returned,) if isinstance(returned, Tensor) else tuple(returned)


def returned(results: Sequence[Tensor]) -> Any:
    """The other way round: what a kernel in Python returns for them."""
    return results[0] if len(results) == 1 else tuple(results)


def require_tensors(overload: Any, bound: Mapping[str, Any]) -> None:
    """An error where an argument that must be a tensor is None."""
    for a in overload._schema.arguments:
        if str(a.type) == "Tensor" and bound[a.name] is None:
            op = overload._schema.name.split("::")[1]
            raise RuntimeError(f"{op}: expected {a.name} to be a tensor, got None")
