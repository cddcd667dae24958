"""Values of tensor expressions: the normal form of their elements, and their shapes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from ..graph.calls import Sizes, sizes, value_of
from . import algebra
from .algebra import Poly, atom, constant

# An ignore_index that no target has: nothing is ignored.
NEVER = -(2**31)


class Opaque(Exception):
    """A node computes something that the algebra does not know."""


@dataclass(frozen=True)
class Value:
    """An elementwise function of leaves of the shape ``base``, whose result is viewed as one of the shape ``shape``.

    Both are None where they are not known.
    """

    poly: Poly
    base: Sizes | None
    shape: Sizes | None

    @property
    def scalar(self) -> bool:
        return self.base == ()


@dataclass(frozen=True)
class Vector:
    """The values of the entries along the last dimension, as the corners of boxes."""

    components: tuple[Value, ...]


@dataclass(frozen=True)
class Masked:
    """The elements of a value where a mask holds."""

    value: Value
    mask: Value


def number(x: float) -> Value:
    return Value(constant(x), (), ())


def leaf(node: fx.Node) -> Value:
    shape = sizes(value_of(node))
    return Value(atom("leaf", node), shape, shape)


def combine(f: Callable[..., Poly], *operands: Any) -> Any:
    """A function of elements of operands that have one shape, or are numbers or 0-d tensors."""
    if any(isinstance(v, Vector) for v in operands):
        count = next(len(v.components) for v in operands if isinstance(v, Vector))
        columns = [v.components if isinstance(v, Vector) else (v,) * count for v in operands]
        if any(len(c) != count for c in columns):
            raise Opaque("vectors of two lengths")
        return Vector(tuple(combine(f, *column) for column in zip(*columns, strict=True)))
    if any(isinstance(v, Masked) for v in operands):
        masks = {v.mask for v in operands if isinstance(v, Masked)}
        if len(masks) != 1:
            raise Opaque("two masks")
        return Masked(combine(f, *(v.value if isinstance(v, Masked) else v for v in operands)), masks.pop())
    if not all(isinstance(v, Value) for v in operands):
        raise Opaque("not a tensor")
    poly = f(*(v.poly for v in operands))
    shaped = [v for v in operands if not v.scalar]
    if not shaped:
        return Value(poly, (), ())
    first = shaped[0]
    for v in shaped[1:]:
        if v.base != first.base or v.shape != first.shape:
            raise Opaque("operands of two shapes")
    return Value(poly, first.base, first.shape)


def plain(value: Any) -> float:
    """The number that a value is.

    Raises:
        Opaque: it is not constant.
    """
    if isinstance(value, Value):
        found = value.poly.number
        if found is not None:
            return found
    raise Opaque("not a number")


def whole(value: Any) -> int:
    found = plain(value)
    if found != int(found):
        raise Opaque("not a whole number")
    return int(found)


def bound(limit: Any) -> float | None:
    return None if limit is None else plain(limit)


def detached(p: Poly) -> Poly:
    """The same values without a gradient: another function, unless it is a number."""
    return p if p.number is not None else atom("constant", p)


def components(x: Any) -> Vector:
    """The corners of boxes."""
    if isinstance(x, Vector):
        return x
    if not isinstance(x, Value) or not x.shape or x.shape != x.base or x.shape[-1] != 4:
        raise Opaque("no boxes")
    lead = x.shape[:-1]
    return Vector(tuple(Value(atom("component", x.poly, i), lead, lead) for i in range(4)))


def rank_of(x: Any) -> int:
    if isinstance(x, Vector):
        return rank_of(x.components[0]) + 1
    if not isinstance(x, Value) or x.shape is None:
        raise Opaque("of unknown shape")
    return len(x.shape)


def over_all(value: Value, name: str) -> Value:
    """The mean or the sum of all elements."""
    return Value(atom_of_each(value.poly, name, "all", value.base), (), ())


def atom_of_each(p: Poly, name: str, dims: Any, base: Sizes | None) -> Poly:
    """A linear reduction: each term is reduced by itself, and its coefficient stays outside.

    Over dimensions whose sizes are numbers, a mean is a sum divided by their product.
    """
    count = None
    if base is not None:
        over = base if dims == "all" else [base[d] for d in dims]
        if all(isinstance(d, int) for d in over) and 0 not in over:
            count = math.prod(over)
    if name == "mean" and count is not None:
        return atom_of_each(p, "sum", dims, base).scaled(1 / count)
    result = constant(0)
    for monomial, coefficient in p.terms:
        if monomial == algebra.ONE and (name == "mean" or count is not None):
            result = result + constant(coefficient if name == "mean" or count is None else coefficient * count)
            continue
        inner = Poly(frozenset({(monomial, 1.0)}))
        found = algebra.single(inner)
        if dims == "all" and found is not None and found[0][0] == name and len(found[0]) == 3:  # of sums over some
            result = result + atom(name, found[0][1], "all").scaled(coefficient)
            continue
        counted = (base,) if monomial == algebra.ONE else ()
        result = result + atom(name, inner, dims, *counted).scaled(coefficient)
    return result
