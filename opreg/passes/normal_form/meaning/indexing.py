"""Parts of the last dimension, above all the corners of boxes, and the elements where a mask holds."""

from dataclasses import replace
from typing import Any

from torch import fx

from ...graph.calls import value_of
from .. import algebra
from ..evaluate import Evaluator, handles
from ..values import (
    Masked,
    Opaque,
    Value,
    Vector,
    combine,
    components,
    number,
    rank_of,
    whole,
)
from .pointwise import choose


def part(entries: tuple[Value, ...]) -> Any:
    """Some entries of the last dimension; a single one is a column, ``x[..., 0:1]``."""
    if len(entries) != 1 or entries[0].shape is None:
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
    return components(x).components[whole(index)]


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
        return masked(x, index)
    items = index if isinstance(index, tuple) else (index,)
    rank = rank_of(x)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = (*items[:at], *[slice(None)] * (rank - len(items) + 1), *items[at + 1 :])
    if len(items) != rank or any(i != slice(None) for i in items[:-1]):
        raise Opaque("an index")
    last = items[-1]
    if isinstance(last, slice):
        ends = [v if v is None or isinstance(v, int) else int(v) for v in (last.start, last.stop, last.step)]
        return part(components(x).components[slice(*ends)])
    return components(x).components[whole(last)]


def masked(x: Any, mask: Any) -> Masked:
    if not isinstance(x, Value) or not isinstance(mask, Value) or x.base != mask.base or not algebra.mask(mask.poly):
        raise Opaque("an index")
    return Masked(x, mask)


@handles("index")
def _index(e: Evaluator, node: fx.Node, x: Any, indices: Any) -> Any:
    if not isinstance(indices, tuple) or len(indices) != 1:
        raise Opaque("an index")
    return masked(x, indices[0])


@handles("setitem")
def _setitem(e: Evaluator, node: fx.Node, x: Any, mask: Any, new: Any) -> Any:
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
