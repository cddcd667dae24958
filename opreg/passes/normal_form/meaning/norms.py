"""Lengths of vectors, and distances, which are lengths of differences."""

from typing import Any

from torch import Tensor, fx

from ...graph.calls import value_of
from .. import algebra
from ..algebra import Poly, atom, constant
from ..evaluate import Evaluator, handles
from ..values import Opaque, Value, aligned_dims, atom_of_each, combine, plain


def length(x: Any, degree: float, dim: Any, keepdim: bool = False) -> Value:
    """The norm over some dimensions; that of all is of the dimension None."""
    if not isinstance(x, Value) or x.base is None or x.shape is None or x.poly.number is not None:
        raise Opaque("no vectors")
    over, kept = aligned_dims(x, dim, keepdim)
    z = x.poly if x.poly.sign() > 0 else -x.poly
    return Value(atom("norm", z, degree, over, x.base), kept, kept)


@handles("pairwise_distance")
def _pairwise_distance(
    e: Evaluator, node: fx.Node, x: Any, y: Any, p: Any = None, eps: Any = None, keepdim: Any = False
) -> Any:
    if not isinstance(x, Value) or not isinstance(y, Value) or keepdim or not x.shape:
        raise Opaque("no vectors")
    if not x.shape == x.base == y.shape == y.base:
        raise Opaque("vectors of two shapes")
    degree, floor = 2.0 if p is None else plain(p), 1e-6 if eps is None else plain(eps)
    apart = combine(lambda a, b: a - b + constant(floor), x, y)
    return length(apart, degree, Value(constant(-1), (), ()))


@handles("linalg_vector_norm")
def _vector_norm(
    e: Evaluator, node: fx.Node, x: Any, ord: Any = None, dim: Any = None, keepdim: Any = False, *, dtype: Any = None
) -> Any:
    return _of_dtype(e, node, x, 2.0 if ord is None else plain(ord), dim, keepdim, dtype)


@handles("norm")
def _norm(
    e: Evaluator, node: fx.Node, x: Any, p: Any = None, dim: Any = None, keepdim: Any = False, dtype: Any = None
) -> Any:
    if dim is None:  # a number alone, after which the other arguments may mean others
        raise Opaque("a norm of all")
    return _of_dtype(e, node, x, 2.0 if p in (None, "fro") else plain(p), dim, keepdim, dtype)


def _of_dtype(e: Evaluator, node: fx.Node, x: Any, degree: float, dim: Any, keepdim: Any, dtype: Any) -> Value:
    call = e.view.calls[node]
    before = value_of(next(call.inputs())) if call is not None else None
    if dtype is not None and (not isinstance(before, Tensor) or before.dtype != dtype):
        raise Opaque("a cast")
    return length(x, degree, dim, bool(keepdim))


def powered(p: Poly, exponent: float) -> Poly:
    """A power; that of a Euclidean norm by an even number is one of a sum of squares, with its gradient at 0 too."""
    found = algebra.single(p)
    euclidean = found is not None and found[0][0] == "norm" and found[0][2] == 2
    if found is None or not euclidean or not algebra.whole(exponent / 2) or exponent <= 0:
        return algebra.power(p, exponent)
    _, z, _, dims, base = found[0]
    squares = atom_of_each(z * z, "sum", dims, base)
    return algebra.power(squares, exponent / 2).scaled(found[1] ** exponent)
