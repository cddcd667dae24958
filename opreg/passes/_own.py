"""Rules of the ops that are declared outside of opreg: what such an op's reference says, written out in a program."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from ..messages.options import complaint_outside
from ..op import Op
from ..registry import registered
from ._rule import Rule


def rules_of_others() -> tuple[Rule, ...]:
    """One for each of their ops whose reference has a normal form. Programs can't be told from it by its arithmetic
    alone: a reference without a function of torch, such as x (1 - x), gets no rule."""
    found = (rule_of(op) for op in registered() if not op.module_name.startswith("opreg.") and not op.mutated)
    return tuple(rule for rule in found if rule is not None)


@cache
def rule_of(op: Op) -> Rule | None:
    # what a program that is written out does not have
    fixed: dict[str, Any] = {n: None for n in op.tensor_arguments if n in op.defaults}
    fixed |= {n: v for n, v in op.defaults.items() if isinstance(v, bool)}
    if op.reduces:
        fixed["reduction"] = "none"
    rule = Rule.of(op, refusal(op), **fixed)
    try:
        return rule if rule.functions and rule.call_names else None
    except Exception:  # a reference that no pattern can be: it branches, or calls what has no normal form
        return None


def refusal(op: Op) -> Callable[[Mapping[str, Any]], str]:
    """Why the op does not take the numbers and tensors of a program."""

    def objection(arguments: Mapping[str, Any]) -> str:
        for name in op.tensor_arguments:
            dtype = arguments[name].dtype if name in arguments else None
            if name in arguments and (dtype is None or not dtype.is_floating_point):
                return f"{name} is of dtype {dtype or 'unknown'}, and the op computes in floating point"
        options = {n: v for n, v in arguments.items() if n not in op.tensor_arguments}
        for a in op.value._schema.arguments:
            if a.name in options and str(a.type) == "float":
                options[a.name] = float(options[a.name])
            elif a.name in options and options[a.name] != int(options[a.name]):
                return f"{a.name} is {options[a.name]}, and the op takes an integer"
            elif a.name in options:
                options[a.name] = int(options[a.name])
        return complaint_outside(op, tuple(options.items())) or ""

    return objection
