"""Class indices, and losses as parts of other losses."""

import operator
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph.calls import Sizes, sizes, value_of
from .. import algebra
from ..algebra import Poly, atom, constant
from ..evaluate import Evaluator, handles
from ..values import NEVER, Opaque, Value, combine, number, plain, whole


@handles("one_hot")
def _one_hot(e: Evaluator, node: fx.Node, target: Any, num_classes: Any = None) -> Any:
    shape = sizes(value_of(node))
    if shape is None and isinstance(num_classes, Value):  # in a pattern: the shape of a tensor that has the classes
        shape = num_classes.shape
    if not isinstance(target, Value) or shape is None or target.shape != target.base or len(shape) != 2:
        raise Opaque("class indices")
    return Value(atom("one_hot", target.poly), shape, shape)


@handles("scatter")
def _scatter(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, new: Any = None, **kwargs: Any) -> Any:
    new = kwargs.get("value", kwargs.get("src", new))
    if not isinstance(x, Value) or x.poly.number != 0 or plain(new) != 1 or x.shape is None or len(x.shape) != 2:
        raise Opaque("a write")
    column = class_column(index, x.shape)
    if whole(dim) % 2 != 1:
        raise Opaque("a write")
    return Value(atom("one_hot", column.poly), x.shape, x.shape)


def class_column(index: Any, shape: Sizes) -> Value:
    """A value that is a column of one class index for each row of a shape."""
    if not isinstance(index, Value) or index.base != shape[:-1] or index.shape != (*shape[:-1], 1):
        raise Opaque("class indices")
    return index


@handles("gather")
def _gather(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Value) or x.shape is None or len(x.shape) < 2 or x.shape != x.base:
        raise Opaque("an index")
    if whole(dim) % len(x.shape) != len(x.shape) - 1:
        raise Opaque("an index")
    target = class_column(index, x.shape)
    return Value(of_class(x, target.poly), target.base, index.shape)


def of_class(x: Value, target: Poly) -> Poly:
    """The log-probability or probability of each row's class, where a value is linear in such along the last dimension.

    Of one dimension before the classes it is a cross_entropy as torch takes it; with more of them, torch has the
    classes elsewhere.
    """
    assert x.shape is not None
    last = len(x.shape) - 1
    result = constant(0)
    for monomial, coefficient in x.poly.terms:
        ((found, exponent),) = monomial if len(monomial) == 1 else (((None,), 0),)
        if exponent != 1 or found[0] not in ("log_softmax", "softmax") or found[2] != last:
            raise Opaque("an index")
        loss = atom("cross_entropy", found[1], target, NEVER, *(("last",) if last > 1 else ()))
        value = -loss if found[0] == "log_softmax" else algebra.exponential(-loss)
        result = result + value.scaled(coefficient)
    return result


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


def unreduced(reduction: Any) -> None:
    if isinstance(reduction, Value):
        reduction = {0: "none", 1: "mean", 2: "sum"}.get(whole(reduction))
    if reduction != "none":
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
    unreduced(given.pop("reduction", "mean"))
    ignore = given.pop("ignore_index", number(-100))
    options(given, label_smoothing=0.0)
    if call is None or not isinstance(x, Value) or not isinstance(target, Value) or x.shape != x.base:
        raise Opaque("no rows")
    targets = value_of(next(i for i in list(call.inputs())[1:]))
    if isinstance(targets, Tensor) and targets.is_floating_point():
        raise Opaque("probabilities")
    poly = atom("cross_entropy", x.poly, target.poly, whole(ignore))
    return Value(poly, target.base, target.shape)
