"""Parts of the last dimension, above all the corners of boxes, and the elements where a mask holds."""

from dataclasses import replace
from typing import Any

from torch import fx

from ...graph.calls import sizes, value_of
from .. import algebra
from ..algebra import atom
from ..evaluate import Evaluator, handles
from ..values import (
    Masked,
    Opaque,
    Row,
    Value,
    Vector,
    combine,
    components,
    number,
    plain,
    rank_of,
    whole,
)
from . import sorting
from .losses import of_class
from .pointwise import choose


def part(entries: tuple[Value, ...]) -> Any:
    """Some entries of the last dimension; a single one is a column, ``x[..., 0:1]``."""
    if len(entries) != 1 or not isinstance(entries[0], Value) or entries[0].shape is None:
        return Vector(entries)
    return replace(entries[0], shape=(*entries[0].shape, 1))


@handles("unbind")
def _unbind(e: Evaluator, node: fx.Node, x: Any, dim: Any = None) -> Any:
    if dim is None or whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    return components(x).components


@handles("chunk", "split", "tensor_split", "split_with_sizes")
def _split(e: Evaluator, node: fx.Node, x: Any, count: Any, dim: Any = None) -> Any:
    if dim is None or whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    parts = value_of(node)
    if not isinstance(parts, tuple | list):
        raise Opaque("of unknown shape")
    every, start, result = components(x).components, 0, []
    for made in parts:
        size = int(made.shape[-1])
        result.append(part(every[start : start + size]))
        start += size
    return tuple(result)


@handles("select")
def _select(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any) -> Any:
    if whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    return entry(x, whole(index))


def entry(x: Any, index: int) -> Value:
    """One entry of the last dimension; the only one of a column is its element."""
    if isinstance(x, Value) and x.shape and x.shape[-1] == 1 and index in (0, -1):
        return replace(x, shape=x.shape[:-1])
    return components(x).components[index]


@handles("arange")
def _arange(e: Evaluator, node: fx.Node, *numbers: Any, **kwargs: Any) -> Any:
    """The indices 0, 1, …: all rows of a tensor."""
    if kwargs.get("start", kwargs.get("step")) is not None or len(numbers) > 2:
        raise Opaque("a range")
    if len(numbers) == 2 and plain(numbers[0]) != 0:
        raise Opaque("a range")
    shape = sizes(value_of(node))
    if shape is None:
        shape = (whole(numbers[-1] if numbers else kwargs.get("end")),)
    return Value(atom("arange", shape[0]), shape, shape)


@handles("slice")
def _slice(
    e: Evaluator, node: fx.Node, x: Any, dim: Any = None, start: Any = None, end: Any = None, step: Any = None
) -> Any:
    axis = 0 if dim is None else whole(dim)
    first, last = None if start is None else whole(start), None if end is None else whole(end)
    rank = rank_of(x)
    if axis % rank != rank - 1:
        if not first and (last is None or last >= 2**62) and step in (None, number(1)):
            return x
        raise Opaque("a slice")
    return part(components(x).components[slice(first, last, None if step is None else whole(step))])


@handles("getitem")
def _getitem(e: Evaluator, node: fx.Node, x: Any, index: Any) -> Any:
    if isinstance(x, tuple):
        return x[whole(index)]
    if isinstance(index, Value) and index.poly.number is None:
        return picked(x, index)
    if isinstance(index, Value) and isinstance(x, Value) and x.shape == x.base and len(x.shape or ()) > 1:
        return Row(x, whole(index))
    items = tuple(map(listed, index)) if isinstance(index, tuple) else (index,)
    rank, new = rank_of(x), sum(i is None for i in items)
    if len(items) == 2 and all(isinstance(i, Value) and not i.scalar for i in items):
        return of_classes(x, *items)
    at = next((k for k, i in enumerate(items) if i is Ellipsis), None)
    if at is not None:
        items = (*items[:at], *[slice(None)] * (rank + new - len(items) + 1), *items[at + 1 :])
    if new and isinstance(items[-1], slice) and items[-1] != slice(None):  # of corners, ``boxes[:, None, :2]``
        of = components(x).components[items[-1]]
        return part(tuple([with_new_dimensions(c, items[:-1]) for c in of]))
    if new or not items:
        return with_new_dimensions(x, items)
    if len(items) != rank or any(i != slice(None) for i in items[:-1]):
        raise Opaque("an index")
    last = items[-1]
    if isinstance(last, slice) and isinstance(x, Value) and x.poly.number is not None:
        return replace(x, base=None, shape=None)
    if isinstance(last, slice) and isinstance(x, Value) and x.shape and x.shape[-1] != 4:
        which = sorting.but_one(last, x.shape[-1])
        if which is None:
            raise Opaque("an index")
        return sorting.part(x, rank - 1, which, 1)
    if isinstance(last, slice):
        ends = [v if v is None or isinstance(v, int) else int(v) for v in (last.start, last.stop, last.step)]
        return part(components(x).components[slice(*ends)])
    return entry(x, whole(last))


def listed(item: Any) -> Any:
    """A list or a range of the indices 0, 1, … as ``arange`` has them, and any other index as it is."""
    if isinstance(item, tuple) and all(isinstance(i, Value) and i.scalar for i in item):
        item = range(len(item)) if all(i.poly.number == k for k, i in enumerate(item)) else item
    if not isinstance(item, range) or item != range(len(item)):
        return item
    return Value(atom("arange", len(item)), (len(item),), (len(item),))


def with_new_dimensions(x: Any, items: tuple[Any, ...]) -> Value:
    """``x[:, None]``."""
    if not isinstance(x, Value) or x.shape is None or any(i is not None and i != slice(None) for i in items):
        raise Opaque("an index")
    if sum(i is not None for i in items) > len(x.shape):
        raise Opaque("an index")
    kept = iter(x.shape)
    shape = [1 if i is None else next(kept) for i in items]
    return replace(x, shape=(*shape, *kept))


def of_classes(x: Any, rows: Value, target: Value) -> Value:
    """``x[arange(N), target]``: of each row, the entry of its class."""
    if not isinstance(x, Value) or x.shape is None or len(x.shape) != 2 or x.shape != x.base:
        raise Opaque("an index")
    if rows.poly != atom("arange", x.shape[0]) or not target.base == target.shape == rows.shape == x.shape[:1]:
        raise Opaque("an index")
    return Value(of_class(x.poly, target.poly, 1, 2), target.base, target.shape)


def picked(x: Any, index: Any) -> Any:
    """The elements where a mask holds, or all of them in the order of a sort."""
    if isinstance(x, Value) and isinstance(index, Value) and index.shape and len(index.shape) == 1:
        found = algebra.single(index.poly)
        if found is not None and found[0][0] == "order":
            return sorting.ordered(x, index)
    return masked(x, index)


def masked(x: Any, mask: Any) -> Masked:
    if not isinstance(x, Value) or not isinstance(mask, Value) or x.base != mask.base or not algebra.mask(mask.poly):
        raise Opaque("an index")
    return Masked(x, mask)


@handles("index")
def _index(e: Evaluator, node: fx.Node, x: Any, indices: Any) -> Any:
    if isinstance(indices, tuple) and len(indices) == 2 and all(isinstance(i, Value) for i in indices):
        return of_classes(x, *indices)
    if not isinstance(indices, tuple) or len(indices) != 1:
        raise Opaque("an index")
    return picked(x, indices[0])


@handles("setitem")
def _setitem(e: Evaluator, node: fx.Node, x: Any, mask: Any, new: Any) -> Any:
    last = mask[-1] if isinstance(mask, tuple) and mask[:-1] in ((), (Ellipsis,)) and mask else mask
    if isinstance(last, slice) and isinstance(x, Value) and x.shape and (last is not mask or len(x.shape) == 1):
        if sorting.but_one(last, x.shape[-1]) != 1:
            raise Opaque("a write")
        return sorting.differences(x, len(x.shape) - 1, new)
    if isinstance(new, Value) and new.scalar:
        new = Masked(new, mask)
    if not isinstance(new, Masked) or not isinstance(mask, Value) or new.mask != mask or not algebra.mask(mask.poly):
        raise Opaque("a write")
    return combine(choose, mask, new.value, x)


@handles("index_put")
def _index_put(e: Evaluator, node: fx.Node, x: Any, indices: Any, new: Any, accumulate: Any = False) -> Any:
    if accumulate or not isinstance(indices, tuple) or len(indices) != 1:
        raise Opaque("a write")
    return _setitem(e, node, x, indices[0], new)
