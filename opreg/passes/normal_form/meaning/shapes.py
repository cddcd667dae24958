"""Views, casts, reductions, functions along a dimension."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.calls import Sizes, sizes, value_of
from .. import algebra
from ..algebra import Poly, atom, constant
from ..evaluate import Evaluator, handlers, handles
from ..values import (
    Opaque,
    Row,
    Stacked,
    Value,
    Vector,
    aligned_dims,
    atom_of_each,
    combine,
    number,
    over_all,
    stacked_sum,
    whole,
)
from .losses import at_indicated


@handles("contiguous", "clone", "alias", "lift_fresh_copy", "detach_copy")
def _same(e: Evaluator, node: fx.Node, x: Any, **kwargs: Any) -> Any:
    return x


@handles("to", "float", "double", "half", "bfloat16", "type_as", "type", "long")
def _cast(e: Evaluator, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast that keeps dtype and device, that makes another dtype of whole numbers, or whole numbers of others."""
    call = e.view.calls[node]
    before, after = value_of(next(call.inputs())) if call else None, value_of(node)
    kinds = [(t.dtype, t.device) if isinstance(t, Tensor) else None for t in (before, after)]
    if kinds[0] is not None and kinds[0] == kinds[1]:
        return x
    if not isinstance(x, Value):
        raise Opaque("a cast")
    labels = isinstance(before, Tensor) and before.dtype != torch.bool and small(x.poly.number)
    if (algebra.choices(x.poly) and holds(after, x.poly)) or labels or counted(x, before, after):
        return x
    if truncates(call, before, after):
        return combine(lambda p: atom("truncated", p), x)
    raise Opaque("a cast")


def holds(tensor: Any, p: Poly) -> bool:
    """Does a tensor's dtype hold small whole numbers? One without a sign, as bool, holds what is 0 or 1."""
    signed = not isinstance(tensor, Tensor) or tensor.is_floating_point() or tensor.dtype.is_signed
    return signed or algebra.indicator(p) or algebra.indicator(constant(1) - p)


def small(number: float | None) -> bool:
    """Is it a whole number that every dtype has?"""
    return number is not None and algebra.whole(number) and 0 <= number <= 1


def truncates(call: Any, before: Any, after: Any) -> bool:
    """Does a cast make class indices of a floating dtype, on one device? A pattern's tensor has none yet."""
    if not isinstance(before, Tensor) or not isinstance(after, Tensor):
        return before is None and after is None and call is not None and call.name == "long"
    return before.is_floating_point() and after.dtype == torch.int64 and before.device == after.device


def counted(x: Value, before: Any, after: Any) -> bool:
    """Is a tensor of whole numbers, or a mask, cast to a floating dtype, or these in the order of a sort, or 1 less
    these? A match reads it after the cast."""
    found = algebra.single(x.poly) or algebra.single(constant(1) - x.poly)
    if found is not None and found[0][0] == "ordered":
        found = algebra.single(found[0][1])
    leaf = found is not None and found[0][0] == "leaf" and found[1] == 1
    known = isinstance(before, Tensor) and isinstance(after, Tensor) and before.device == after.device
    return leaf and known and not before.is_floating_point() and not before.is_complex() and after.is_floating_point()


@handles("reshape", "flatten", "unsqueeze", "squeeze", "view_as", "reshape_as", "unflatten")
def _reshape(e: Evaluator, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    shape = sizes(value_of(node))
    call = e.view.calls[node]
    if not isinstance(x, Value) or x.shape is None:
        raise Opaque("a view of unknown shape")
    if shape is None and call is not None and len(args) == 1:
        shape = _reshaped(call.name, x.shape, whole(args[0]))
    if shape is None:
        raise Opaque("a view of unknown shape")
    return replace(x, shape=shape)


def _reshaped(name: str, shape: Sizes, dim: int) -> Sizes:
    """The shape after a view at one dimension: that of a pattern, whose calls have no values."""
    rank = len(shape)
    if name == "flatten" and 0 <= dim < rank:
        return (*shape[:dim], math.prod(shape[dim:]))
    if name == "unsqueeze" and -rank - 1 <= dim <= rank:
        dim %= rank + 1
        return (*shape[:dim], 1, *shape[dim:])
    if name == "squeeze" and -rank <= dim < rank and shape[dim] == 1:
        dim %= rank
        return (*shape[:dim], *shape[dim + 1 :])
    raise Opaque("a view of unknown shape")


def reduction(name: str) -> None:
    def handler(
        e: Evaluator, node: fx.Node, x: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None, **kwargs: Any
    ) -> Any:
        dim = kwargs.get("axis", dim)
        if dtype is not None:
            call = e.view.calls[node]
            before = value_of(next(call.inputs())) if call is not None else None
            if not isinstance(before, Tensor) or before.dtype != dtype:
                raise Opaque("a cast")
        if isinstance(x, Stacked):
            total = stacked_sum(x.parts, dim, keepdim)
            return total if name == "sum" else combine(lambda p: p.scaled(1 / len(x.parts)), total)
        if isinstance(x, Vector):
            if dim is None or whole(dim) != -1 or name != "sum":
                raise Opaque("a reduction of a vector")
            return combine(lambda *p: sum(p[1:], p[0]), *x.components)
        if not isinstance(x, Value):
            raise Opaque("no tensor")
        dims, kept = aligned_dims(x, dim, keepdim)
        indicated = at_indicated(x, dims, name)
        if indicated is not None:
            if dims != "all":
                return replace(indicated, shape=kept)
            return over_all(indicated, name)
        rest = atom_of_each(x.poly, name, dims, x.base)
        return Value(rest, kept, kept)

    handlers[name] = handler


reduction("sum")
reduction("mean")


@handles("stack")
def _stack(e: Evaluator, node: fx.Node, tensors: Any, dim: Any = None) -> Any:
    if dim is not None and whole(dim) != 0:
        raise Opaque("stacked along another dimension")
    if isinstance(tensors, tuple) and tensors and all(isinstance(v, Row) for v in tensors):
        every, rows = tensors[0].whole, len(tensors)
        if every.shape is None or every.shape[:1] != (rows,) or any(v != Row(every, i) for i, v in enumerate(tensors)):
            raise Opaque("some of the parts")
        return every
    if not isinstance(tensors, tuple) or not all(isinstance(v, Value) for v in tensors):
        raise Opaque("no tensors")
    return Stacked(tensors)


@handles("einsum")
def _einsum(e: Evaluator, node: fx.Node, equation: Any, *operands: Any) -> Any:
    """A sum of products of tensors of one shape, ``"nchw,nchw->n"``."""
    if len(operands) == 1 and isinstance(operands[0], tuple):
        operands = operands[0]
    left, arrow, result = str(equation).replace(" ", "").partition("->")
    subscripts = left.split(",")
    letters = subscripts[0]
    if not arrow or set(subscripts) != {letters} or len(set(letters)) < len(letters) or "." in letters:
        raise Opaque("an einsum")
    if [x for x in letters if x in result] != list(result):  # transposed
        raise Opaque("an einsum")
    product = combine(lambda *polys: math.prod(polys[1:], start=polys[0]), *operands)
    dims = tuple(number(d) for d, x in enumerate(letters) if x not in result)
    return handlers["sum"](e, node, product, dims) if dims else product


@handles("prod")
def _prod(e: Evaluator, node: fx.Node, x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    if not isinstance(x, Vector) or dim is None or whole(dim) != -1 or keepdim:
        raise Opaque("a product")
    return combine(lambda *p: math.prod(p[1:], start=p[0]), *x.components)


def along(name: str) -> None:
    """A function of the entries along one dimension."""

    def handler(e: Evaluator, node: fx.Node, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Value) or x.shape is None or x.shape != x.base or dim is None:
            raise Opaque("over an unknown dimension")
        dtypes = [a for a in (*args, kwargs.get("dtype")) if isinstance(a, torch.dtype)]
        call = e.view.calls[node]
        before = value_of(next(call.inputs())) if call is not None else None
        if any(not isinstance(before, Tensor) or before.dtype != a for a in dtypes) or any(a is True for a in args):
            raise Opaque("a cast")
        axis = whole(dim) % len(x.shape)
        return Value(atom(name, x.poly, axis), x.base, x.shape)

    handlers[name] = handler


along("softmax")
along("log_softmax")
