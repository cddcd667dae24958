"""Values of tensor expressions: the normal form of their elements, and their shapes."""

import math
from collections.abc import Callable, Sequence
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
class Stacked:
    """Values along a new first dimension."""

    parts: tuple[Value, ...]


@dataclass(frozen=True)
class Row:
    """A part of a value along its first dimension, ``x[i]``: what is computed of it is that part of what is computed of
    the whole."""

    whole: Value
    index: int


@dataclass(frozen=True)
class Masked:
    """The elements of a value where a mask holds."""

    value: Value
    mask: Value


@dataclass(frozen=True)
class Pairs:
    """A matrix of one element a pair of rows: ``x[:, None]`` with ``y``. What is known of it is its diagonal."""

    diagonal: Value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise Opaque("a matrix of pairs")


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
    if any(isinstance(v, Row) for v in operands):
        return of_row(lambda *wholes: combine(f, *wholes), *operands)
    if any(isinstance(v, Masked) for v in operands):
        masks = {v.mask for v in operands if isinstance(v, Masked)}
        if len(masks) != 1:
            raise Opaque("two masks")
        return Masked(combine(f, *(v.value if isinstance(v, Masked) else v for v in operands)), masks.pop())
    if any(isinstance(v, Pairs) for v in operands) or columns_and_rows(operands):
        return Pairs(combine(f, *map(on_diagonal, operands)))
    if not all(isinstance(v, Value) for v in operands):
        raise Opaque("not a tensor")
    poly = f(*(v.poly for v in operands))
    shaped = [v for v in operands if not v.scalar]
    if not shaped:
        return Value(poly, (), ())
    first = shaped[0]
    if any(v.base != first.base or v.shape != first.shape for v in shaped[1:]):
        return beside_one_another(f, poly, operands)
    return Value(poly, first.base, first.shape)


def of_row(f: Callable[..., Any], *operands: Any) -> Row:
    """A function of parts of the same place, and of numbers, as that part of the function of the wholes."""
    places = {v.index for v in operands if isinstance(v, Row)}
    if len(places) != 1 or not all(isinstance(v, Row) or (isinstance(v, Value) and v.scalar) for v in operands):
        raise Opaque("parts of several places")
    found = f(*(v.whole if isinstance(v, Row) else v for v in operands))
    if not isinstance(found, Value):
        raise Opaque("no tensor")
    return Row(found, places.pop())


def beside_one_another(f: Callable[..., Poly], poly: Poly, operands: tuple[Value, ...]) -> Any:
    """A function, whose form is ``poly``, of operands of several shapes: of the few that have a normal form."""
    shaped = [v for v in operands if not v.scalar]
    columns = as_columns(shaped)
    if columns is not None:
        return Value(poly, columns, shaped[0].shape)
    if any("matmul" in algebra.names(v.poly) for v in shaped):
        return beside_products(poly, shaped)
    return combine(f, *expanded(operands))


def as_columns(shaped: Sequence[Value]) -> Sizes | None:
    """The base of a combination of columns, as (N, 1), where some have the base (N, 1) and some have (N), as what a
    sum kept and what was picked by class have. The numbers of dimensions are those of either."""
    bases = {v.base for v in shaped}
    shorter = min((b for b in bases if b is not None), key=len, default=None)
    if shorter is None or len({v.shape for v in shaped}) != 1 or shaped[0].shape != (*shorter, 1):
        return None
    return shorter if bases <= {shorter, (*shorter, 1)} else None


def columns_and_rows(operands: Sequence[Any]) -> bool:
    """Is one of the operands a column (N, 1), and another one a row (N) of as many elements?"""
    known = [v for v in operands if isinstance(v, Value) and v.base is not None and len(v.base) == 1]
    columns = {v.base for v in known if v.shape == (*v.base, 1)}  # type: ignore[misc]
    return bool(columns) and any(v.shape in (v.base, (1, *v.base)) and v.base in columns for v in known)  # type: ignore[misc]


def on_diagonal(v: Any) -> Any:
    """What a matrix of pairs, a column or a row of it, or a number is at the pairs (i, i)."""
    if isinstance(v, Pairs):
        return v.diagonal
    vector = isinstance(v, Value) and v.base is not None and len(v.base) == 1
    if vector and v.shape in (v.base, (*v.base, 1), (1, *v.base)):
        return Value(v.poly, v.base, v.base)
    if isinstance(v, Value) and v.scalar:
        return v
    raise Opaque("no row of pairs")


def expanded(operands: tuple[Value, ...]) -> list[Value]:
    """Operands of one shape of those of which some are sums of sorted elements, one a row: these get an atom for that.

    Of other operands nobody knows here which of their leaves is broadcast.
    """
    largest = max(
        (v for v in operands if v.shape is not None), key=lambda v: sum(d != 1 for d in v.shape or ()), default=None
    )
    if largest is None:
        raise Opaque("of unknown shape")
    result = []
    for v in operands:
        of_rows = bool(v.shape) and largest.shape is not None and v.shape == (*largest.shape[:-1], 1)
        plain_views = v.base == v.shape and largest.base == largest.shape
        if of_rows and plain_views and v.shape != largest.shape and "ordered" in algebra.names(v.poly):
            v = Value(atom("expanded", v.poly, v.shape, largest.shape), largest.base, largest.shape)
        if not v.scalar and (v.base, v.shape) != (largest.base, largest.shape):
            raise Opaque("operands of two shapes")
        result.append(v)
    return result


def beside_products(poly: Poly, operands: list[Value]) -> Value:
    """Of operands of two shapes: products of vectors, and numbers, which some models hold in one dimension."""
    matrices = [v for v in operands if not v.base == v.shape == (1,)]
    shapes = {(v.base, v.shape) for v in matrices}
    if len(shapes) != 1:
        raise Opaque("operands of two shapes")
    return Value(poly, *shapes.pop())


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
    if isinstance(x, Pairs):
        return 2
    if not isinstance(x, Value) or x.shape is None:
        raise Opaque("of unknown shape")
    return len(x.shape)


def stacked_sum(parts: Any, dim: Any, keepdim: Any) -> Any:
    """The sum over the dimension along which values are stacked."""
    dims = dim if isinstance(dim, tuple) else (dim,)
    if keepdim or len(dims) != 1 or dims[0] is None or whole(dims[0]) != 0:
        raise Opaque("a reduction of stacked tensors")
    return combine(lambda *p: sum(p[1:], p[0]), *parts)


def over_all(value: Value, name: str) -> Value:
    """The mean or the sum of all elements."""
    return Value(atom_of_each(value.poly, name, "all", value.base), (), ())


def atom_of_each(p: Poly, name: str, dims: Any, base: Sizes | None) -> Poly:
    """A linear reduction: each term is reduced by itself, and its coefficient stays outside.

    Over dimensions whose sizes are numbers, a mean is a sum divided by their product.
    """
    key = (name, dims, base)
    if key not in p.reduced:
        p.reduced[key] = _atom_of_each(p, name, dims, base)
    return p.reduced[key]


def _atom_of_each(p: Poly, name: str, dims: Any, base: Sizes | None) -> Poly:
    count = None
    if base is not None:
        over = base if dims == "all" else [base[d] for d in dims]
        if all(isinstance(d, int) for d in over) and 0 not in over:
            count = math.prod(over)
    if name == "mean" and count is not None:
        return atom_of_each(p, "sum", dims, base).scaled(1 / count)
    each = 1.0 if name == "mean" else count  # what 1 in every place gives
    numbers = bool(base) and any(map(algebra.is_number, algebra.leaves(p)))
    terms: list[tuple[algebra.Monomial, float]] = []
    for monomial, coefficient in p.terms:
        inner = Poly(frozenset({(monomial, 1.0)}))
        if monomial == algebra.ONE and each is not None:
            reduced = constant(each)
        elif numbers and inner.of_numbers:  # the same in every place
            reduced = inner.scaled(each) if each is not None else atom(name, inner, dims, base)
        else:
            found = algebra.single(inner)
            part: Poly | None = None
            while dims == "all" and found is not None and found[0][0] == name and len(found[0]) == 3 and found[1] == 1:
                part, found = found[0][1], algebra.single(found[0][1])  # of sums over some
            if part is not None:
                reduced = atom(name, part, "all")
            else:
                reduced = atom(name, inner, dims, *((base,) if monomial == algebra.ONE else ()))
        terms += [(m, c * coefficient) for m, c in reduced.terms]
    return algebra.collect(terms)


def aligned_dims(x: Value, dim: Any, keepdim: Any) -> tuple[Any, Sizes]:
    """Over which dimensions of its elements a tensor is reduced, "all" or some; and the shape that is left."""
    if dim is None or dim == ():
        return "all", (1,) * len(x.shape or ()) if keepdim else ()
    if x.base is None or x.shape is None:
        raise Opaque("of unknown shape")
    rank = len(x.shape)
    given = {whole(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))}
    over = aligned(x.base, x.shape, given)
    kept = tuple(1 if d in given else s for d, s in enumerate(x.shape) if keepdim or d not in given)
    return ("all" if over == set(range(len(x.base))) else tuple(sorted(over))), kept


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
