"""Native calls in a chain that are one op together: log_softmax and nll_loss are cross_entropy."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ...registry import get
from .._native import Native, Viewed
from .._rule import Formula
from ..graph.calls import Call, sizes, sizes_of, value_of
from ..graph.ranges import Ranges
from ..graph.view import GraphView
from ..normal_form.algebra import rounded
from ..search.match import Match
from ..search.pool import Pool
from ..search.search import matches
from . import angular

# Makes a call of one op of a native call and those before it (or the division after it), where they are such a chain.
Chain = Callable[[Native, GraphView], Native | None]


def functional_call(view: GraphView, a: Any) -> Call | None:
    """The call that made an argument, if it writes to nothing, with the values that its arguments had there."""
    call = view.calls.get(a) if isinstance(a, fx.Node) else None
    if call is None or call.in_place:
        return None
    args, kwargs = fx.node.map_arg((call.args, dict(call.kwargs)), lambda n: view.current(n, a))
    return replace(call, args=args, kwargs=kwargs)


def given(call: Call, index: int, *names: str) -> Any:
    """An argument of a call, by its position or by one of its names; None where it is not given."""
    if len(call.args) > index:
        return call.args[index]
    return next((call.kwargs[n] for n in names if n in call.kwargs), None)


def uncast(call: Call) -> bool:
    """Does a softmax keep its argument's dtype?"""
    return call.kwargs.get("dtype") is None and not any(isinstance(a, torch.dtype) or a is True for a in call.args)


def over_classes(dim: Any, x: Any, rank_free: bool) -> bool:
    """Is this the dimension of the classes: 1, or the only one of a single row?

    ``rank_free``: dimension 1 counts where the rank is not known.
    """
    if not isinstance(dim, int):
        return False
    t = value_of(x) if isinstance(x, fx.Node) else None
    if isinstance(t, Tensor):
        return dim % max(t.dim(), 1) == min(1, t.dim() - 1)
    return rank_free and dim == 1


def cross_entropy_of_logits(native: Native, view: GraphView) -> Native | None:
    inner: Any = native.arguments.get("input")
    if native.op.short == "nll_loss" and (viewed := of_views(native, view)) is not None:
        return viewed
    call = functional_call(view, inner)
    interior = [inner]
    if call is not None and call.name == "log":  # of a softmax
        inner = given(call, 0, "input", "self")
        call = functional_call(view, inner)
        call = call if call is not None and call.name == "softmax" else None
        interior.append(inner)
    elif call is not None and call.name != "log_softmax":
        call = None
    if native.op.short != "nll_loss" or call is None or not uncast(call):
        return None
    x = given(call, 0, "input", "self")
    if not over_classes(given(call, 1, "dim"), x, rank_free=True):
        return None
    return Native(get("cross_entropy"), {**native.arguments, "input": x}, interior=tuple(interior))


def of_views(native: Native, view: GraphView) -> Native | None:
    """nll_loss of views of a log_softmax, as with the classes moved to dimension 1: cross_entropy of these views."""
    node: Any = native.arguments.get("input")
    axis, views, t = 1, list[fx.Node](), value_of(node)
    if not isinstance(t, Tensor) or t.dim() < 2:
        return None
    while True:
        call = functional_call(view, node)
        inner = call.args[0] if call is not None and call.args else None
        if call is None or not isinstance(inner, fx.Node) or len(views) > 6:
            return None
        views.insert(0, node)
        before = value_of(inner)
        if not isinstance(before, Tensor):
            return None
        if call.name == "log_softmax":
            break
        found = axis_before(call, axis, before, value_of(node))
        if found is None or len(set(call.inputs())) != 1:
            return None
        node, axis = inner, found
    dim = given(call, 1, "dim")
    if len(views) == 1 or not uncast(call) or not isinstance(dim, int) or dim % before.dim() != axis:
        return None
    return Native(
        get("cross_entropy"), {**native.arguments, "input": Viewed(inner, tuple(views))}, interior=tuple(views)
    )


def axis_before(call: Call, axis: int, before: Tensor, after: Any) -> int | None:
    """Which dimension of a tensor is one of its view; None where that is no dimension of it, or is not known."""
    rank = before.dim()
    if call.name == "contiguous":
        return axis
    if call.name in ("reshape", "flatten"):  # with the classes last
        same = sizes_of(before.shape[-1:]) == sizes_of(after.shape[-1:])
        return rank - 1 if axis == after.dim() - 1 and same else None
    dims: list[Any] = [d for a in call.args[1:] for d in (a if isinstance(a, tuple | list) else (a,))]
    if call.kwargs or not all(isinstance(d, int) for d in dims):
        return None
    if call.name == "permute" and len(dims) == rank:
        return int(dims[axis]) % rank
    if call.name == "transpose" and len(dims) == 2:
        first, second = (d % rank for d in dims)
        return int({first: second, second: first}.get(axis, axis))
    if call.name in ("movedim", "moveaxis") and len(dims) == 2:
        source, place = (d % rank for d in dims)
        order = [d for d in range(rank) if d != source]
        order.insert(place, source)
        return int(order[axis])
    return None


def binary_cross_entropy_of_logits(native: Native, view: GraphView) -> Native | None:
    inner: Any = native.arguments.get("input")
    call = functional_call(view, inner)
    if native.op.short != "binary_cross_entropy" or call is None or call.name != "sigmoid":
        return None
    # binary_cross_entropy refuses another target, which an op of logits takes
    if not Ranges(view).of(native.arguments.get("target")).within(0, 1):
        return None
    arguments = {**native.arguments, "input": given(call, 0, "input", "self")}
    return Native(get("binary_cross_entropy_with_logits"), arguments, interior=(inner,))


def scaled(view: GraphView, a: Any) -> tuple[Any, float, tuple[fx.Node, ...]]:
    """An argument as a product: a node, the number that it is multiplied by, and the call that does it, if any."""
    call = functional_call(view, a)
    if call is None or call.name not in ("div", "mul") or len(call.args) != 2 or call.kwargs:
        return a, 1.0, ()
    left, right = call.args
    if isinstance(left, int | float) and call.name == "mul":
        left, right = right, left
    if not isinstance(left, fx.Node) or not isinstance(right, int | float) or right == 0:
        return a, 1.0, ()
    return left, 1 / right if call.name == "div" else float(right), (a,)


def distillation(native: Native, view: GraphView) -> Native | None:
    arguments = native.arguments
    if native.op.short != "kl_div" or arguments.get("reduction", "mean") not in ("sum", "batchmean"):
        return None
    sides: list[tuple[Any, float]] = []
    interior: list[fx.Node] = []
    teacher_function = "log_softmax" if arguments.get("log_target", False) else "softmax"
    for name, function in (("input", "log_softmax"), ("target", teacher_function)):
        inner: Any = arguments.get(name)
        call = functional_call(view, inner)
        if call is None or call.name != function or not uncast(call):
            return None
        logits = given(call, 0, "input", "self")
        if not over_classes(given(call, 1, "dim"), logits, rank_free=False):
            return None
        x, factor, division = scaled(view, logits)
        sides.append((x, factor))
        interior += [inner, *division]
    (student, factor), (teacher, same) = sides
    t = value_of(student)
    if factor != same or factor <= 0 or not isinstance(t, Tensor) or view.requires_grad(teacher) is not False:
        return None
    if t.dim() != 2:  # batchmean divides by the size of the batch, the op's mean by the number of rows
        return None
    reduction = "sum" if arguments["reduction"] == "sum" else "mean"
    call_of = {"input": student, "target": teacher, "temperature": rounded(1 / factor), "reduction": reduction}
    return Native(get("distillation_loss"), call_of, interior=tuple(interior), factor=factor**2)


def batch_mean(native: Native, view: GraphView) -> Native | None:
    """``F.kl_div(reduction="batchmean")``, which is two calls in an exported graph."""
    t = value_of(native.arguments.get("input"))
    if native.op.short != "kl_div" or native.arguments.get("reduction") != "sum" or not isinstance(t, Tensor):
        return None
    if t.dim() == 0:  # there is no batch
        return None
    return Native(native.op, {**native.arguments, "reduction": "batchmean"}, divided_by=t.shape[0])


def margin_loss(native: Native, view: GraphView) -> Native | None:
    arguments = native.arguments
    if native.op.short != "cross_entropy" or arguments.get("weight") is not None or arguments.get("label_smoothing"):
        return None
    root = arguments.get("input")
    if not isinstance(root, fx.Node):
        return None
    for name, formulas in angular.FORMULAS.items():
        for match in matches(Pool.of(formulas), view, root):
            if match.tensors["target"] is arguments["target"]:
                options: dict[str, Any] = {n: a for n, a in arguments.items() if n in ("ignore_index", "reduction")}
                call: dict[str, Any] = {**match.tensors, **match.numbers, **options}
                return Native(get(name), call, interior=(*match.interior, root))
    return None


def input_by(formula: Formula, native: Native, view: GraphView) -> Match[Formula] | None:
    """How the input of a native call is computed, where that is all in one dtype and the formula as it stands."""
    root = native.arguments.get("input")
    if not isinstance(root, fx.Node):
        return None
    for match in matches(Pool.of((formula,)), view, root):
        parts = [value_of(n) for n in (*match.interior, *match.tensors.values(), root)]
        dtypes = {t.dtype for t in parts if isinstance(t, Tensor)}
        unscaled = not match.reduction and match.factor == 1 and not match.factors
        if unscaled and len(dtypes) == 1:
            return match
    return None


# What nll_loss picks each row's class of.
FADING = Formula(
    "softmax_focal_loss of nll_loss",
    lambda input, *, gamma: (1 - F.softmax(input, 1)) ** gamma * F.log_softmax(input, 1),
)


def fading_loss(native: Native, view: GraphView) -> Native | None:
    """nll_loss of log-probabilities that fade where they are near 0: softmax_focal_loss.

    A class weight is another one there: the mean of nll_loss divides by the weights, that of the op by their number.
    """
    arguments = native.arguments
    root: Any = arguments.get("input")
    if native.op.short != "nll_loss" or arguments.get("weight") is not None:
        return None
    match = input_by(FADING, native, view)
    if match is None or match.numbers["gamma"] <= 0:
        return None
    call: dict[str, Any] = {**arguments, **match.tensors, **match.numbers}
    return Native(get("softmax_focal_loss"), call, interior=(*match.interior, root))


CAPPED = Formula(
    "cross_entropy of bounded scores",
    lambda input, *, softcap: softcap * torch.tanh(input / softcap),
)


def capped_loss(native: Native, view: GraphView) -> Native | None:
    """cross_entropy of scores that tanh bounds, as Gemma 2 has them."""
    root: Any = native.arguments.get("input")
    if native.op.short != "cross_entropy":
        return None
    match = input_by(CAPPED, native, view)
    if match is None or match.numbers["softcap"] <= 0:
        return None
    call: dict[str, Any] = {**native.arguments, **match.tensors, **match.numbers}
    return Native(get("cross_entropy"), call, interior=(*match.interior, root))


def head(native: Native, view: GraphView) -> Native | None:
    """Cross entropy of a linear layer's scores, which nobody else reads."""
    arguments: dict[str, Any] = dict(native.arguments)
    scores: Any = arguments.get("input")
    target: Any = arguments.get("target")
    classes, labels = value_of(scores), value_of(target)
    if native.op.short != "cross_entropy" or not isinstance(classes, Tensor) or not isinstance(labels, Tensor):
        return None
    if classes.dim() != 2 or labels.is_floating_point():
        return None
    interior = [scores]
    call = functional_call(view, scores)
    if call is not None and call.name in ("reshape", "flatten"):  # of the scores of tokens
        scores = given(call, 0, "input", "self")
        interior.append(scores)
        flat = functional_call(view, target)
        whole = value_of(scores)
        if flat is None or flat.name not in ("reshape", "flatten") or arguments.get("reduction") == "none":
            return None
        target = given(flat, 0, "input", "self")
        if not isinstance(whole, Tensor) or sizes(value_of(target)) != (sizes(whole) or ())[:-1]:
            return None
        if sizes_of(whole.shape[-1:]) != sizes_of(classes.shape[-1:]):
            return None
        call = functional_call(view, scores)
    if call is None or call.name != "linear" or any(len(n.users) != 1 for n in interior):
        return None
    hidden, matrix, bias = given(call, 0, "input"), given(call, 1, "weight"), given(call, 2, "bias")
    if any(isinstance(t := value_of(n), Tensor) and t.dtype != classes.dtype for n in (hidden, matrix, bias)):
        return None  # autocast computes the scores in another dtype
    arguments |= {"input": hidden, "linear_weight": matrix, "target": target}
    if bias is not None:
        arguments["linear_bias"] = bias
    return Native(get("linear_cross_entropy"), arguments, interior=tuple(interior))


# What changes how much memory a program takes, and is done where somebody asks for it.
HEADS: dict[str, Chain] = {"linear and cross_entropy": head}
# By the name that the report has for each.
CHAINS: dict[str, Chain] = {
    "log_softmax and nll_loss": cross_entropy_of_logits,
    "sigmoid and binary_cross_entropy": binary_cross_entropy_of_logits,
    "distillation_loss, softmax and kl_div": distillation,
    "kl_div and its division by the batch": batch_mean,
    "cross_entropy of logits with a margin": margin_loss,
    "nll_loss of log-probabilities that fade": fading_loss,
    "cross_entropy of bounded scores": capped_loss,
}
