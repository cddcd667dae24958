"""Views, casts, reductions, functions along a dimension."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.calls import Sizes, sizes, value_of
from .. import algebra
from ..algebra import atom
from ..evaluate import Evaluator, handlers, handles
from ..values import Opaque, Value, Vector, atom_of_each, combine, number, over_all, whole
from .losses import at_indicated


@handles("contiguous", "clone", "alias", "lift_fresh_copy", "detach_copy")
def _same(e: Evaluator, node: fx.Node, x: Any, **kwargs: Any) -> Any:
    return x


@handles("to", "float", "double", "half", "bfloat16", "type_as", "type")
def _cast(e: Evaluator, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """A cast that keeps dtype and device, or that makes another dtype of whole numbers."""
    call = e.view.calls[node]
    before, after = value_of(next(call.inputs())) if call else None, value_of(node)
    kinds = [(t.dtype, t.device) if isinstance(t, Tensor) else None for t in (before, after)]
    if kinds[0] is not None and kinds[0] == kinds[1]:
        return x
    if isinstance(x, Value) and (algebra.choices(x.poly) or counted(x, before, after)):
        return x
    raise Opaque("a cast")


def counted(x: Value, before: Any, after: Any) -> bool:
    """Is a tensor of whole numbers, or a mask, cast to a floating dtype? A match reads it after the cast."""
    found = algebra.single(x.poly)
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


def aligned(base: Sizes, shape: Sizes, dims: set[int]) -> set[int]:
    """The dimensions of a tensor of the shape ``base`` that are the dimensions ``dims`` of its view ``shape``."""
    found: set[int] = set()
    i = j = 0
    while i < len(base) or j < len(shape):
        left, right = {i} if i < len(base) else set(), {j} if j < len(shape) else set()
        a = base[i] if i < len(base) else 1
        b = shape[j] if j < len(shape) else 1
        i, j = i + 1, j + 1
        while not equal(a, b):
            smaller = i < len(base) and (j >= len(shape) or _smaller(a, b))
            if smaller:
                a, left, i = a * base[i], left | {i}, i + 1
            elif j < len(shape):
                b, right, j = b * shape[j], right | {j}, j + 1
            else:
                raise Opaque("a view that does not align")
        if right & dims:
            if not right <= dims and any(shape[d] != 1 for d in right - dims):
                raise Opaque("a reduction over part of a dimension")
            found |= left
    return found


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    import sympy  # type: ignore[import-untyped]

    return bool(a == b or sympy.expand(a - b) == 0)


def _smaller(a: Any, b: Any) -> bool:
    """Is a size, which may be symbolic, less than another that it divides?"""
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    import sympy

    quotient = sympy.cancel(b / a)
    if quotient.is_number:
        return bool(quotient > 1)
    return bool(sympy.denom(quotient) == 1)


def reduction(name: str) -> None:
    def handler(
        e: Evaluator, node: fx.Node, x: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None, **kwargs: Any
    ) -> Any:
        dim = kwargs.get("axis", dim)
        if dtype is not None:
            raise Opaque("a cast")
        if isinstance(x, Vector):
            if dim is None or whole(dim) != -1 or name != "sum":
                raise Opaque("a reduction of a vector")
            return combine(lambda *p: sum(p[1:], p[0]), *x.components)
        if not isinstance(x, Value):
            raise Opaque("no tensor")
        dims: Any = "all"
        if dim is not None and dim != ():
            if x.base is None or x.shape is None:
                raise Opaque("of unknown shape")
            rank = len(x.shape)
            given = {whole(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))}
            over = aligned(x.base, x.shape, given)
            kept = tuple(1 if d in given else s for d, s in enumerate(x.shape) if keepdim or d not in given)
            if over != set(range(len(x.base))):
                dims = tuple(sorted(over))
        else:
            kept = (1,) * len(x.shape or ()) if keepdim else ()
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
        if kwargs.get("dtype") is not None or any(isinstance(a, torch.dtype) or a is True for a in args):
            raise Opaque("a cast")
        axis = whole(dim) % len(x.shape)
        return Value(atom(name, x.poly, axis), x.base, x.shape)

    handlers[name] = handler


along("softmax")
along("log_softmax")
