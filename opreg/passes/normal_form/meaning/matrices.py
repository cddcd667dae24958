"""Products of the vectors of two tensors, each with each, as contrastive losses compare them."""

from typing import Any

from torch import fx

from ...graph.calls import sizes, value_of
from ..algebra import atom, constant
from ..evaluate import Evaluator, handles
from ..matrices import multiplied, transposed_value
from ..values import Opaque, Pairs, Value, plain, whole
from .losses import of_class


def square(shape: Any) -> bool:
    return shape is not None and len(shape) == 2 and shape[0] == shape[1]


@handles("products")
def _products(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    """The products of N vectors with N others. Of a layer's there are as many as it has outputs: those are a tensor."""
    if not isinstance(x, Value) or not isinstance(other, Value) or x.shape is None or other.shape is None:
        raise Opaque("no matrices")
    shape = x.shape[:1] + other.shape[1:]
    if len(x.shape) != 2 or not square(shape) or x.shape != x.base or other.shape != other.base:
        raise Opaque("not of as many with as many")
    return Value(multiplied(x.poly, other.poly), shape, shape)


@handles("t", "mT", "numpy_T", "adjoint")
def _turned(e: Evaluator, node: fx.Node, x: Any) -> Any:
    if not isinstance(x, Value):
        raise Opaque("no matrix")
    return transposed_value(x)


@handles("eye")
def _eye(e: Evaluator, node: fx.Node, rows: Any = None, columns: Any = None, **kwargs: Any) -> Any:
    """The indicator of the diagonal."""
    shape = sizes(value_of(node))
    if shape is None:  # in a pattern, a tensor stands for the number of its rows
        count = rows.shape[0] if isinstance(rows, Value) and rows.shape else whole(rows)
        if columns is not None:
            raise Opaque("a matrix")
        shape = (count, count)
    if not square(shape):
        raise Opaque("a matrix")
    return Value(atom("eye", shape[0]), shape, shape)


@handles("ones_like", "ones", "new_ones")
def _ones(e: Evaluator, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    shape = sizes(value_of(node))
    if shape is None and args and isinstance(args[0], Value):  # in a pattern
        shape = args[0].shape
    if not square(shape):
        raise Opaque("no matrix")
    return Value(constant(1), shape, shape)


@handles("diagonal", "diag")
def _diagonal(e: Evaluator, node: fx.Node, x: Any, offset: Any = None, *dims: Any, **kwargs: Any) -> Any:
    """Of a matrix of pairs the pairs (i, i); of log-probabilities the one of each row's own column."""
    if dims or kwargs or (offset is not None and plain(offset) != 0):
        raise Opaque("a diagonal")
    if isinstance(x, Pairs):
        return x.diagonal
    if not isinstance(x, Value) or x.shape is None or not square(x.shape) or x.shape != x.base:
        raise Opaque("a diagonal")
    return Value(of_class(x.poly, atom("arange", x.shape[0]), 1, 2), x.shape[:1], x.shape[:1])
