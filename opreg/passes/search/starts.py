"""Where a formula may start: the nodes that one looks like a function of."""

from collections.abc import Iterable

from torch import fx

from ..graph.view import GraphView

# Calls that patterns hold. A formula starts from the first argument of one of them, or from what that argument is made
# of by calls of one tensor.
# fmt: off
ANCHORS = frozenset({
    "sigmoid", "exp", "tanh", "softplus", "log_sigmoid", "clamp", "clamp_min", "relu", "relu6", "hardsigmoid",
    "hardtanh", "silu", "softmax", "log_softmax", "cross_entropy", "binary_cross_entropy_with_logits", "sum", "mean",
    "where", "scatter", "one_hot", "erf", "erfc", "cosh",
})
# fmt: on
# Calls that nearly every formula holds: they say nothing of where one starts.
ARITHMETIC = frozenset({"add", "sub", "rsub", "mul", "div", "neg", "pow", "square"})
# Functions of differences and products, or of those and numbers: a square may be a product of two.
_OF_DIFFERENCES = frozenset({"pow", "square", "mul", "abs", "relu", "clamp", "clamp_min", "log_sigmoid", "softplus"})
# Calls that take boxes apart.
PARTS = frozenset({"unbind", "select", "getitem", "chunk", "split"})


def starts(view: GraphView, nodes: Iterable[fx.Node], anchors: frozenset[str]) -> list[fx.Node]:
    """The nodes that a formula may start from."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is not None and call.name in PARTS:  # boxes that are computed
            found.update(dict.fromkeys(view.inputs(node)))
        if call is None or call.name not in anchors:
            continue
        at = next(call.inputs(), None)
        for _ in range(6):
            if at is None:
                break
            at = view.current(at, node)
            found[at] = None
            call = view.calls.get(at)
            inputs = list(call.inputs()) if call else []
            at = inputs[0] if len(set(inputs)) == 1 else None
    return list(found)


def operands(view: GraphView, nodes: Iterable[fx.Node]) -> list[tuple[fx.Node, ...]]:
    """Two tensors whose difference or product a formula may be a function of; or three, where one of the two is a
    difference itself."""
    found: dict[tuple[fx.Node, ...], None] = {}
    for node in nodes:
        call = view.calls.get(node)
        if call is None or call.name not in _OF_DIFFERENCES or len(set(view.inputs(node))) != 1:
            continue
        both, name = view.inputs(node)[:1], ""
        for _ in range(4):  # sums and products with numbers
            inner = view.calls.get(both[0])
            if inner is None or inner.name not in ARITHMETIC:
                break
            both, name = tuple(dict.fromkeys(view.inputs(both[0]))), inner.name
            if len(both) != 1:
                break
        if len(both) != 2 or name not in ("sub", "mul"):
            continue
        found[both] = None
        for one, other in (both, both[::-1]):
            inner = view.calls.get(one)
            if inner is not None and inner.name == "sub":
                found[tuple(dict.fromkeys((*view.inputs(one), other)))] = None
    return list(found)
