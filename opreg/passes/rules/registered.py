"""Rules that come with the ops of others: what an op's own reference says, wherever it has a normal form."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from ...op import Op, no_constants
from ...registry import of_namespace, registered
from .._rule import Argument, Rule
from ._objections import Objection

# A formula of these alone, a product say, is no more one op's than anybody's.
_ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "pow", "square", "sum", "mean"})

# Each op's rules. An op that takes another's place is another object.
_rules: dict[Op, tuple[Rule, ...]] = {}


def rules_of_others() -> tuple[Rule, ...]:
    """The rules of all ops that are registered now from elsewhere than opreg."""
    own = set(of_namespace())
    found = [
        _rules[op] if op in _rules else _rules.setdefault(op, tuple(_rules_of(op)))
        for op in registered()
        if op not in own
    ]
    return tuple(rule for rules in found for rule in rules)


def _rules_of(op: Op) -> list[Rule]:
    if op.rules is None:
        rule = _rule_of(op)
        return [] if rule is None else [rule]
    every = op.rules(op, _unless_it_takes_them(op, {"weight": None} if "weight" in op.arguments else {}))
    return [rule for rule in every if _is_formula(rule)]


def _is_formula(rule: Rule) -> bool:
    """Has it a pattern of tensors and numbers, whose functions have a meaning, and not arithmetic's alone?"""
    try:
        return bool(rule.words) and not rule.call_names <= _ARITHMETIC
    except Exception:
        return False


def _rule_of(op: Op) -> Rule | None:
    if op.mutated or len(op.results) > 1 or op.reference is op.native:
        return None
    options: dict[str, Any] = {n: None for n in op.tensor_arguments if n in op.defaults}
    if op.reduces:
        options["reduction"] = "none"
    try:
        rule = Rule.of(op, _unless_it_takes_them(op, options), **options)
        if rule.call_names <= _ARITHMETIC:
            return None
        rule.words  # noqa: B018  raises the error of a pattern without a normal form
    except Exception:  # its reference is no formula of tensors and numbers
        return None
    # a program in which eps ** 2 was computed holds the square
    squared = {str(n.target): math.sqrt for n in rule.pattern_graph.nodes if _is_squared(n)}
    return Rule(rule.name, rule.pattern, rule.replacement, rule.objection, numbers=squared)


def _is_squared(number: fx.Node) -> bool:
    users = list(number.users)
    return number.op == "placeholder" and bool(users) and all(u.args == (number, 2) for u in users)


def _unless_it_takes_them(op: Op, options: Mapping[str, Any]) -> Objection:
    """Shapes and dtypes that the op's rule refuses, and numbers that its kernel does."""
    # where they may be probabilities too, the rules are of these
    indices = () if op.constants is not no_constants else op.indices

    def objection(arguments: Mapping[str, Any]) -> str:
        known = {n: a for n, a in arguments.items() if isinstance(a, Argument)}
        for name, a in known.items():
            if a.shape is None:
                return f"the shape of {name} is not known: give example_inputs"
            floating = a.dtype is not None and a.dtype.is_floating_point
            if a.dtype is None or floating is (name in indices) or a.dtype is torch.bool:
                return f"{name} is of dtype {a.dtype or 'unknown'}"
        sizes: dict[Any, int] = {}
        shapes = {n: [_size(s, sizes) for s in a.shape or ()] for n, a in known.items()}
        given = {**op.defaults, **arguments, **options}
        try:
            dtypes = {n: torch.int64 if n in indices else torch.float32 for n in shapes}
            on_meta = {n: torch.empty(shape, device="meta", dtype=dtypes[n]) for n, shape in shapes.items()}
            op.rule(op.short, {**given, **on_meta})
            small = {n: torch.full([min(s, 2) for s in shape], 0.5).to(dtypes[n]) for n, shape in shapes.items()}
            op.value(**{**given, **small})
        except (RuntimeError, NotImplementedError) as error:
            return str(error).splitlines()[0]
        return ""

    return objection


def _size(size: Any, sizes: dict[Any, int]) -> int:
    """A number for a size that is none: another for each, and none that programs have."""
    return size if isinstance(size, int) else sizes.setdefault(str(size), 1009 + len(sizes))
