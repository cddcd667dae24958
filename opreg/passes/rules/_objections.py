"""Objections of rules: why a pattern and its replacement are not the same for some arguments, or nothing; and bounds of
their numbers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Objection = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Domain:
    """The values for which a function is the op: ``holds`` of its tensors, whatever their order; and why only there."""

    holds: Callable[..., bool]
    why: str


def first_of(*objections: Objection) -> Objection:
    return lambda arguments: next((why for objection in objections if (why := objection(arguments))), "")


def unless_same_shape(*names: str) -> Objection:
    """Of tensors of one shape, none is broadcast."""

    def objection(arguments: Mapping[str, Any]) -> str:
        shapes = [arguments[n].shape for n in names]
        if None in shapes:
            return f"the shapes of {' and '.join(names)} are not known: give example_inputs"
        if len(set(shapes)) > 1:
            return f"{' and '.join(names)} are of different shapes: {', '.join(str(list(s)) for s in shapes)}"
        return ""

    return objection


def unless_floating(name: str, otherwise: str = "") -> Objection:
    """``otherwise``: what a tensor of another dtype is for the op."""

    def objection(arguments: Mapping[str, Any]) -> str:
        dtype = arguments[name].dtype
        if dtype is None or not dtype.is_floating_point:
            return (
                f"{name} is of dtype {dtype or 'unknown'}{', and the op takes it for ' if otherwise else ''}{otherwise}"
            )
        return ""

    return objection


def unless_constant(name: str, op: str) -> Objection:
    """Of a tensor through which the op sends no gradient."""

    def objection(arguments: Mapping[str, Any]) -> str:
        if arguments[name].requires_grad is False:
            return ""
        may = "requires" if arguments[name].requires_grad else "may require"
        return f"{name} {may} grad, and is a constant of {op}: detach it"

    return objection


def unless_above(least: float, name: str) -> Objection:
    def objection(arguments: Mapping[str, Any]) -> str:
        return f"{name} is {arguments[name]}, not above {least}" if arguments[name] <= least else ""

    return objection


def unless_between(low: float, high: float, name: str) -> Objection:
    def objection(arguments: Mapping[str, Any]) -> str:
        return "" if low < arguments[name] < high else f"{name} is {arguments[name]}, not between {low} and {high}"

    return objection


def unless_at_least(least: float, name: str) -> Objection:
    def objection(arguments: Mapping[str, Any]) -> str:
        return f"{name} is {arguments[name]}, less than {least}" if arguments[name] < least else ""

    return objection


def unless_within(low: float, high: float, name: str, why: str) -> Objection:
    """``why`` what the bounds are for."""

    def objection(arguments: Mapping[str, Any]) -> str:
        if arguments[name].values.within(low, high):
            return ""
        return f"the graph does not show that {name} is between {low:g} and {high:g}: {why}"

    return objection


def between(low: float, high: float) -> Callable[[float], float]:
    """A number of a program that can be an option of these bounds: others are not tried."""

    def number(c: float) -> float:
        if not low <= c <= high:
            raise ValueError
        return c

    return number


# Of losses of elements that are the same in input and target.
ALIKE = first_of(unless_same_shape("input", "target"), unless_floating("input"), unless_floating("target"))
