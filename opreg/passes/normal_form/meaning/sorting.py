"""Elements in the order of a sort, running sums, and differences of neighbours: what Lovász extensions are made of."""

import operator
from typing import Any

from torch import fx

from .. import algebra
from ..algebra import atom
from ..evaluate import Evaluator, handles
from ..values import Opaque, Value, combine, detached, over_all, plain, whole


def along(x: Any, dim: Any) -> tuple[Value, int]:
    """A tensor that is no view of another shape in its values' eyes any more, and a dimension of it."""
    if not isinstance(x, Value) or not x.shape:
        raise Opaque("of unknown shape")
    return x, whole(dim) % len(x.shape)


@handles("sort")
def _sort(
    e: Evaluator, node: fx.Node, x: Any, dim: Any = -1, descending: Any = False, *, stable: Any = None
) -> tuple[Value, Value]:
    """From the greatest down; which of equal ones comes first is no part of the function."""
    if descending is not True and not (isinstance(descending, Value) and descending.poly.number == 1):
        raise Opaque("sorted upwards")
    x, axis = along(x, -1 if dim == -1 and isinstance(dim, int) else dim)
    order = Value(atom("order", x.poly, axis, x.base, x.shape), x.shape, x.shape)
    return ordered(x, order), order


def ordered(x: Value, order: Value) -> Value:
    """Elements in the order of a sort of a tensor of their shape."""
    found = algebra.single(order.poly)
    if found is None or found[0][0] != "order" or found[1] != 1 or found[0][3:] != (x.base, x.shape):
        raise Opaque("an index")
    _, of, axis, *_ = found[0]
    return Value(atom("ordered", x.poly, of, axis), x.shape, x.shape)


@handles("data")
def _data(e: Evaluator, node: fx.Node, x: Any) -> Any:
    """Places in an order have no gradient anyway."""
    found = algebra.single(x.poly) if isinstance(x, Value) else None
    return x if found is not None and found[0][0] == "order" else combine(detached, x)


@handles("cumsum")
def _cumsum(e: Evaluator, node: fx.Node, x: Any, dim: Any, *, dtype: Any = None) -> Value:
    if dtype is not None:
        raise Opaque("a cast")
    x, axis = along(x, dim)
    if x.base != x.shape:
        raise Opaque("a view")
    return Value(atom("cumsum", x.poly, axis), x.shape, x.shape)


@handles("diff")
def _diff(
    e: Evaluator, node: fx.Node, x: Any, n: Any = 1, dim: Any = -1, prepend: Any = None, append: Any = None
) -> Value:
    """Each element less the one before it, of the first one less 0."""
    if append is not None or plain(n if isinstance(n, Value) else Value(algebra.constant(n), (), ())) != 1:
        raise Opaque("differences")
    if not isinstance(prepend, Value) or prepend.poly.number != 0:
        raise Opaque("differences without the first")
    x, axis = along(x, dim)
    return steps(x, axis)


def steps(x: Value, axis: int) -> Value:
    if x.base != x.shape:
        raise Opaque("a view")
    return Value(atom("steps", x.poly, axis), x.shape, x.shape)


def part(x: Value, axis: int, start: int, left_out: int) -> Value:
    """All but some elements at the beginning, or at the end, of a dimension."""
    if x.base != x.shape or x.shape is None:
        raise Opaque("a view")
    shape = tuple(d - left_out if i == axis else d for i, d in enumerate(x.shape))
    return Value(atom("all but", x.poly, axis, start, left_out), shape, shape)


def but_one(item: Any, size: Any) -> int | None:
    """0 of a slice that leaves out the last element alone, 1 of one that leaves out the first; None of others."""
    if not isinstance(item, slice) or item.step not in (None, 1):
        return None
    if item.start in (None, 0) and item.stop in (-1, size - 1):
        return 0
    return 1 if item.start == 1 and item.stop in (None, size, 2**63 - 1) else None


def differences(x: Any, axis: int, new: Any) -> Value:
    """``x[1:] = x[1:] - x[:-1]``."""
    if not isinstance(x, Value) or not isinstance(new, Value):
        raise Opaque("a write")
    if new.poly != part(x, axis, 1, 1).poly - part(x, axis, 0, 1).poly:
        raise Opaque("a write")
    return steps(x, axis)


@handles("dot")
def _dot(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Value:
    product = combine(operator.mul, x, other)
    if not isinstance(product, Value) or product.shape is None or len(product.shape) != 1:
        raise Opaque("no vectors")
    return over_all(product, "sum")
