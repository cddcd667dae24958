"""Conditions of rules: why a pattern and its replacement are not the same, or nothing."""

from collections.abc import Callable, Mapping
from typing import Any

Condition = Callable[[Mapping[str, Any]], str]


def always(arguments: Mapping[str, Any]) -> str:
    return ""


def never(why: str) -> Condition:
    """For what a reader might take for the same, and is not: the report gives the reason."""
    return lambda arguments: why


def every(*conditions: Condition) -> Condition:
    return lambda arguments: next((why for c in conditions if (why := c(arguments))), "")


def same_shape(*names: str) -> Condition:
    """Tensors of one shape, so that none is broadcast."""

    def condition(arguments: Mapping[str, Any]) -> str:
        shapes = [arguments[n].shape for n in names]
        if None in shapes:
            return f"the shapes of {' and '.join(names)} are not known: give example_inputs"
        if len(set(shapes)) > 1:
            return f"{' and '.join(names)} are of different shapes: {', '.join(str(list(s)) for s in shapes)}"
        return ""

    return condition


def floating(name: str) -> Condition:
    def condition(arguments: Mapping[str, Any]) -> str:
        dtype = arguments[name].dtype
        if dtype is None or not dtype.is_floating_point:
            return f"{name} is of dtype {dtype or 'unknown'}, and the op takes it for class indices"
        return ""

    return condition


def above(least: float, *names: str) -> Condition:
    """Numbers in the op's domain, or where it is no other op's."""

    def condition(arguments: Mapping[str, Any]) -> str:
        return next((f"{n} is {arguments[n]}, not above {least}" for n in names if arguments[n] <= least), "")

    return condition


def at_least(least: float, *names: str) -> Condition:
    """Numbers in the op's domain."""

    def condition(arguments: Mapping[str, Any]) -> str:
        return next((f"{n} is {arguments[n]}, less than {least}" for n in names if arguments[n] < least), "")

    return condition
