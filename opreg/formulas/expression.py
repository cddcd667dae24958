"""Expressions of scalars: a graph in which whatever is equal is there once.

An expression is a real number or a truth value. Nodes are made by ``node``, which gives the same object for the same
operation of the same operands: so ``is`` compares, and a subexpression that two others share is computed once.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Expr:
    """One operation. ``value`` is a constant's number, and which input or option it is."""

    op: str
    args: tuple["Expr", ...]
    value: "float | Variable | None"
    order: int

    @property
    def is_truth(self) -> bool:
        return self.op in _TRUTHS

    def __repr__(self) -> str:
        if not self.args:
            return f"{self.value}"
        return f"{self.op}({', '.join(map(repr, self.args))})"


@dataclass(frozen=True)
class Variable:
    """A tensor or an option by its name, and the numbers that it may be."""

    name: str
    low: float = -math.inf
    high: float = math.inf

    def __str__(self) -> str:
        return self.name


_TRUTHS = frozenset({"lt", "le", "eq", "and", "or", "not"})

_nodes: WeakValueDictionary[tuple[object, ...], Expr] = WeakValueDictionary()
_made = 0


def node(op: str, *args: Expr, value: "float | Variable | None" = None) -> Expr:
    """The node of an operation as it is, without any algebra: see ``algebra`` for that."""
    global _made
    # 0.0 and -0.0 are equal, and are not the same constant
    key = (op, *map(id, args), value, isinstance(value, float) and math.copysign(1.0, value))
    there = _nodes.get(key)
    if there is None:
        _made += 1
        there = _nodes[key] = Expr(op, args, value, _made)
    return there


def const(value: float) -> Expr:
    value = float(value)
    return NAN if value != value else node("const", value=value)


def tensor(it: Variable) -> Expr:
    return node("input", value=it)


def option(it: Variable) -> Expr:
    return node("option", value=it)


def name_of(e: Expr) -> str:
    """Of a tensor or an option."""
    assert isinstance(e.value, Variable)
    return e.value.name


NAN = node("const", value=math.nan)
ZERO, ONE, TWO = const(0.0), const(1.0), const(2.0)


def is_const(e: Expr, value: float | None = None) -> bool:
    return e.op == "const" and (value is None or e.value == value)


def number(e: Expr) -> float:
    """The number of a constant."""
    assert isinstance(e.value, float)
    return e.value


def walk(*roots: Expr) -> Iterator[Expr]:
    """Every node under these, each once, operands before what is made of them."""
    seen: set[Expr] = set()
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        e, done = stack.pop()
        if done:
            yield e
        elif e not in seen:
            seen.add(e)
            stack.append((e, True))
            stack.extend((a, False) for a in reversed(e.args))


def rebuilt(roots: Sequence[Expr], make: Callable[[Expr, tuple[Expr, ...]], Expr]) -> list[Expr]:
    """The same with every node made anew: ``make(node, its new operands)``."""
    new: dict[Expr, Expr] = {}
    for e in walk(*roots):
        new[e] = make(e, tuple(new[a] for a in e.args))
    return [new[root] for root in roots]


def depends_on(e: Expr, op: str) -> bool:
    """Is there a node of this operation in it?"""
    return any(n.op == op for n in walk(e))


def replaced(
    roots: Sequence[Expr], new: Mapping[Expr, Expr], make: Callable[[Expr, tuple[Expr, ...]], Expr]
) -> list[Expr]:
    """The same with other nodes in the place of some."""
    return rebuilt(roots, lambda e, args: new[e] if e in new else make(e, args))
