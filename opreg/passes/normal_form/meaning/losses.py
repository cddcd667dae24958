"""Class indices, and losses as parts of other losses."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.calls import Sizes, sizes, value_of
from ...graph.ranges import CASTS
from ...graph.view import GraphView
from .. import algebra
from ..algebra import Poly, atom, constant
from ..evaluate import Evaluator, handlers, handles
from ..matrices import transposed, transposed_value
from ..values import (
    NEVER,
    Opaque,
    Row,
    Stacked,
    Value,
    combine,
    number,
    of_row,
    over_all,
    plain,
    stacked_sum,
    whole,
)
from . import sorting


@handles("one_hot")
def _one_hot(e: Evaluator, node: fx.Node, target: Any, num_classes: Any = None) -> Any:
    shape = sizes(value_of(node))
    if shape is None and isinstance(num_classes, Value):  # in a pattern: the shape of a tensor that has the classes
        shape = num_classes.shape
    if (
        not isinstance(target, Value)
        or shape is None
        or not target.shape == target.base == shape[:-1]
        or not shape[:-1]
    ):
        raise Opaque("class indices")
    return Value(atom("one_hot", target.poly, len(shape) - 1), shape, shape)


@handles("permute", "movedim", "moveaxis", "transpose")
def _permute(e: Evaluator, node: fx.Node, x: Any, *dims: Any, **kwargs: Any) -> Any:
    """Class indicators whose classes move to another dimension."""
    found = algebra.single(x.poly) if isinstance(x, Value) else None
    shape = sizes(value_of(node))
    if found is None or found[0][0] != "one_hot" or found[1] != 1:
        return _turn(e, node, x, *dims, **kwargs)
    if x.shape != x.base or shape is None or kwargs:
        raise Opaque("a view")
    order = list(range(len(shape)))
    call = e.view.calls[node]
    if call is not None and call.name == "permute":
        given = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple) else dims
        order = [whole(d) % len(shape) for d in given]
    else:
        first, second = (whole(d) % len(shape) for d in dims)
        if call is not None and call.name == "transpose":
            order[first], order[second] = second, first
        else:
            order.insert(second, order.pop(first))
    axis = found[0][2]
    if [d for d in order if d != axis] != [d for d in range(len(shape)) if d != axis]:
        raise Opaque("a view")
    return Value(atom("one_hot", found[0][1], order.index(axis)), shape, shape)


def _turn(e: Evaluator, node: fx.Node, x: Any, *dims: Any, **kwargs: Any) -> Any:
    """A matrix with rows for columns."""
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple) else dims
    if kwargs or not isinstance(x, Value) or sorted(whole(d) % 2 for d in dims) != [0, 1]:
        raise Opaque("a view")
    call = e.view.calls[node]
    if call is not None and call.name == "permute" and whole(dims[0]) % 2 == 0:
        return x
    return transposed_value(x)


@handles("scatter")
def _scatter(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, new: Any = None, **kwargs: Any) -> Any:
    new = kwargs.get("value", kwargs.get("src", new))
    if not isinstance(x, Value) or x.poly.number != 0 or plain(new) != 1 or x.shape is None or len(x.shape) < 2:
        raise Opaque("a write")
    axis = whole(dim) % len(x.shape)
    column = class_column(e, index, x.shape, axis)
    return Value(atom("one_hot", column.poly, axis), x.shape, x.shape)


# Calls that make a column of rows.
_COLUMNS = ("unsqueeze", "reshape", "getitem")


def class_column(e: Evaluator, index: Any, shape: Sizes, axis: int) -> Value:
    """A value that holds one class index in the place of the classes of a shape."""
    rows, column = (*shape[:axis], *shape[axis + 1 :]), (*shape[:axis], 1, *shape[axis + 1 :])
    if not isinstance(index, Value) or index.shape != column:
        raise Opaque("class indices")
    if index.base != rows and (index.base != column or is_view_of_rows(e.view, index, rows)):
        raise Opaque("class indices")
    return index


def is_view_of_rows(view: GraphView, index: Value, rows: Sizes) -> bool:
    """Is a column of class indices a leaf that the graph makes of rows? Then these are the leaf that suits an op."""
    found = algebra.single(index.poly)
    node: Any = found[0][1] if found is not None and found[0][0] == "leaf" else None
    while (call := view.calls.get(node)) is not None and call.name in (*CASTS, *_COLUMNS):
        node = next(call.inputs(), None)
        if call.name in _COLUMNS:
            return sizes(value_of(node)) == rows
    return False


@handles("gather")
def _gather(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    sorts = algebra.single(index.poly) if isinstance(index, Value) else None
    if isinstance(x, Value) and sorts is not None and sorts[0][0] == "order" and x.shape:
        if sorts[0][2] != whole(dim) % len(x.shape):
            raise Opaque("an index")
        return sorting.ordered(x, index)
    if not isinstance(x, Value) or x.shape is None or len(x.shape) < 2 or x.shape != x.base:
        raise Opaque("an index")
    axis = whole(dim) % len(x.shape)
    target = class_column(e, index, x.shape, axis)
    return Value(of_class(x.poly, target.poly, axis, len(x.shape)), target.base, index.shape)


def of_class(p: Poly, target: Poly, axis: int, rank: int) -> Poly:
    """What a function of class scores, or of their logarithms and probabilities, is at each row's class.

    With the classes in dimension 1 the loss is a cross_entropy as torch takes it, and with the classes last another one
    where there are more dimensions. A score itself is the log-sum-exp of its row less that loss.
    """
    if axis not in (1, rank - 1):
        raise Opaque("an index")
    # of each row the entry in its own column: of the transposed matrix it is the same one
    indices = algebra.single(target)
    own = rank == 2 and indices is not None and indices[0][0] == "arange" and indices[1] == 1

    def loss(scores: Poly) -> Poly:
        return atom("cross_entropy", scores, target, NEVER, *(("last",) if axis != 1 else ()))

    def chosen(p: Poly) -> Poly:
        result = constant(0)
        for monomial, coefficient in p.terms:
            term = constant(coefficient)
            for found, exponent in monomial:
                if found[0] == "sum of":
                    value = chosen(found[1])
                elif found[0] in ("log_softmax", "softmax") and (found[2] == axis or own):
                    value = -loss(found[1] if found[2] == axis else transposed(found[1]))
                    value = value if found[0] == "log_softmax" else algebra.exponential(value)
                else:
                    raise Opaque("an index")
                term = term * algebra.power(value, exponent)
            result = result + term
        return result

    if not algebra.names(p) & {"log_softmax", "softmax", "cross_entropy", "one_hot"} and p.number is None:
        return atom("logsumexp", p, axis) - loss(p)
    return chosen(p)


def at_indicated(value: Value, over: Any, name: str) -> Value | None:
    """The sum (or the mean) of a function of class scores times class indicators, over the classes or over everything,
    as a sum over the rows; None of any other value."""
    base, result, found = value.base, constant(0), None
    if base is None:
        return None
    for monomial, coefficient in value.poly.terms:
        indicators = [a for a, e in monomial if a[0] == "one_hot" and e == 1]
        if len(indicators) != 1 or found not in (None, indicators[0]):
            return None
        found = indicators[0]
        rest = Poly(frozenset({(monomial - {(found, 1.0)}, coefficient)}))
        if rest.number is not None:
            return None
        result = result + of_class(rest, found[1], found[2], len(base))
    if found is None or over not in ("all", (found[2],)):
        return None
    axis: int = found[2]
    if name == "mean":
        if not isinstance(base[axis], int) or base[axis] == 0:
            return None
        result = result.scaled(1 / base[axis])
    rows = (*base[:axis], *base[axis + 1 :])
    return Value(result, rows, rows)


@handles("logsumexp")
def _logsumexp(e: Evaluator, node: fx.Node, x: Any, dim: Any, keepdim: Any = False) -> Any:
    if isinstance(x, Stacked):
        return combine(algebra.logarithm, stacked_sum([combine(algebra.exponential, v) for v in x.parts], dim, keepdim))
    if isinstance(x, Row):
        place = whole(dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim)
        return of_row(lambda every: _logsumexp(e, node, every, number(place + (place >= 0)), keepdim), x)
    if not isinstance(x, Value) or x.shape is None or x.shape != x.base or keepdim:
        raise Opaque("over an unknown dimension")
    axis = whole(dim[0] if isinstance(dim, tuple) and len(dim) == 1 else dim) % len(x.shape)
    rows = (*x.shape[:axis], *x.shape[axis + 1 :])
    return Value(atom("logsumexp", x.poly, axis), rows, rows)


@handles("nll_loss")
def _nll_loss(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
    found = algebra.single(x.poly) if isinstance(x, Value) else None
    if found is None or found[0][0] != "log_softmax" or found[1] != 1 or found[0][2] != min(1, len(x.shape) - 1):
        raise Opaque("no log-probabilities")
    return _cross_entropy(e, node, replace(x, poly=found[0][1]), target, *others, **kwargs)


def options(given: Mapping[str, Any], **allowed: Any) -> None:
    """Raises ``Opaque`` unless every option has the one value that is allowed, or None."""
    for name, value in given.items():
        expected = allowed.get(name)
        if isinstance(value, Value):
            value = plain(value)  # a tensor is Opaque
        if value is not None and value != expected:
            raise Opaque(name)


def reduction_named(reduction: Any) -> str:
    if isinstance(reduction, Value):
        reduction = {0: "none", 1: "mean", 2: "sum"}.get(whole(reduction))
    if reduction not in ("none", "mean", "sum"):
        raise Opaque("a reduction")
    return str(reduction)


def unreduced(reduction: Any) -> None:
    if reduction_named(reduction) != "none":
        raise Opaque("a reduced loss")


@handles("binary_cross_entropy_with_logits")
def _bce_with_logits(
    e: Evaluator,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any = None,
    *others: Any,
    reduction: Any = "mean",
    pos_weight: Any = None,
    **kwargs: Any,
) -> Any:
    if len(others) == 2:  # those of ATen: pos_weight, reduction
        pos_weight, reduction = others
    elif others:
        raise Opaque("its legacy arguments")
    unreduced(reduction)
    if pos_weight is not None:
        raise Opaque("pos_weight")
    options(kwargs)
    sides = [algebra.leaves(side.poly) for side in (x, target)]
    if all(len(side) == 1 for side in sides):  # of several leaves, one may be broadcast
        e.alike.append(frozenset().union(*sides))
    loss = combine(lambda a, t: algebra.softplus(a) - a * t, x, target)
    return loss if weight is None else combine(operator.mul, loss, weight)


def of_differences(name: str, f: Callable[[Poly], Poly]) -> None:
    """A loss that is a function of the difference of two elements."""

    def handler(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
        call = e.view.calls[node]
        functional = call is None or not isinstance(call.target, torch._ops.OpOverload)
        order = ("size_average", "reduce", "reduction", "weight") if functional else ("reduction",)
        given = {**dict(zip(order, others, strict=False)), **kwargs}
        unreduced(given.pop("reduction", "mean"))
        options(given)
        return combine(lambda a, b: f(a - b), x, target)

    handlers[name] = handler


of_differences("l1_loss", algebra.absolute)
of_differences("mse_loss", lambda d: algebra.power(d, 2))


@handles("cross_entropy")
def _cross_entropy(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
    call = e.view.calls[node]
    functional = call is None or not isinstance(call.target, torch._ops.OpOverload)
    order: tuple[str, ...] = (
        ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        if functional
        else ("weight", "reduction", "ignore_index", "label_smoothing")
    )
    if call is not None and call.name == "nll_loss":
        order = tuple(n for n in order if n != "label_smoothing")
    given = {**dict(zip(order, others, strict=False)), **kwargs}
    reduction = reduction_named(given.pop("reduction", "mean"))
    ignore = whole(given.pop("ignore_index", number(-100)))
    options(given, label_smoothing=0.0)
    if call is None or not isinstance(x, Value) or not isinstance(target, Value) or x.shape != x.base:
        raise Opaque("no rows")
    targets = value_of(next(i for i in list(call.inputs())[1:]))
    if isinstance(targets, Tensor) and targets.is_floating_point():
        raise Opaque("probabilities")
    found = algebra.single(target.poly)
    if ignore < 0 and found is not None and found[0][0] == "arange" and found[1] == 1:
        ignore = NEVER
    loss = Value(atom("cross_entropy", x.poly, target.poly, ignore), target.base, target.shape)
    if reduction == "none":
        return loss
    if reduction == "sum" or ignore == NEVER:
        return over_all(loss, reduction)
    # the mean over the rows that are not ignored, whose loss is 0
    counted = replace(loss, poly=constant(1) - algebra.compare("eq", target.poly - constant(ignore)))
    return combine(lambda a, b: a * algebra.power(b, -1), over_all(loss, "sum"), over_all(counted, "sum"))


@handles("kl_div")
def _kl_div(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
    call = e.view.calls[node]
    functional = call is None or not isinstance(call.target, torch._ops.OpOverload)
    order = ("size_average", "reduce", "reduction", "log_target") if functional else ("reduction", "log_target")
    given = {**dict(zip(order, others, strict=False)), **kwargs}
    reduction, of_logarithms = given.pop("reduction", "mean"), bool(given.pop("log_target", False))
    options(given)

    def divergence(log_q: Poly, p: Poly) -> Poly:
        if of_logarithms:
            return algebra.exponential(p) * (p - log_q)
        if not algebra.positive(p):
            raise Opaque("a target that may be 0, where torch leaves its logarithm out")
        return p * (algebra.logarithm(p) - log_q)

    loss = combine(divergence, x, target)
    if reduction == "batchmean":
        rows = loss.shape[0] if loss.shape else None
        if not isinstance(rows, int) or rows == 0:
            raise Opaque("a batch of unknown size")
        total = over_all(loss, "sum")
        return replace(total, poly=total.poly.scaled(1 / rows))
    reduction = reduction_named(reduction)
    return loss if reduction == "none" else over_all(loss, reduction)
