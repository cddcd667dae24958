"""Which functions the normal form of a node may hold, found without evaluating it.

A formula that holds another one can't be there, so most places of a graph need not be read at all.
"""

from torch import fx

from ..graph.view import GraphView
from .evaluate import handlers

# Functions that turn into one another: 1 / (1 + eˣ) is a sigmoid, and the logarithm of a sigmoid a softplus. Those of
# classes come of one of these: the logarithm of a softmax is a log_softmax, a score the log-sum-exp less a loss.
_SMOOTH = frozenset({"sigmoid", "exp", "log", "softplus", "tanh", "abs"})
_OF_CLASSES = _SMOOTH | {"softmax", "log_softmax", "cross_entropy", "logsumexp"}
_KINKED = frozenset({"abs", "clamp", "maximum", "minimum"})
_CHOICE = frozenset({"gt", "ge", "eq", "where", "abs"})
_NONE = frozenset[str]()
# What each call adds to what its arguments hold. A call that is not among these may add anything.
# fmt: off
_ADDED: dict[str, frozenset[str]] = {
    **dict.fromkeys((
        "sigmoid", "exp", "expm1", "log", "log1p", "log_sigmoid", "softplus", "silu", "mish", "tanh", "cosh",
        "logaddexp", "binary_cross_entropy_with_logits",
    ), _SMOOTH),
    **dict.fromkeys(("softmax", "log_softmax", "gather", "logsumexp"), _OF_CLASSES),
    **dict.fromkeys((
        "relu", "relu6", "abs", "clamp", "clamp_min", "clamp_max", "hardtanh", "hardsigmoid", "hardswish", "maximum",
        "minimum", "max", "min",
    ), _KINKED),
    **dict.fromkeys((
        "gt", "ge", "lt", "le", "eq", "ne", "where", "masked_fill", "index_put",
    ), _CHOICE),
    "setitem": _CHOICE | {"steps"},
    **dict.fromkeys(("unbind", "chunk", "split", "tensor_split", "split_with_sizes", "select", "slice", "getitem"),
                    frozenset({"component", "all but", "expanded"})),
    **dict.fromkeys(("one_hot", "scatter"), frozenset({"one_hot"})),
    **dict.fromkeys(("sum", "mean", "einsum"), frozenset({"sum", "mean"})),  # a mean over a known number is a sum
    **{name: frozenset({name}) for name in ("atan", "atan2", "arange", "eye", "isinf")},
    **dict.fromkeys(("pairwise_distance", "linalg_vector_norm", "norm"), frozenset({"norm", "sum", "mean"})),
    "l1_loss": frozenset({"abs"}),
    "mse_loss": _NONE,
    "products": frozenset({"matmul", "transposed"}),
    **dict.fromkeys(("t", "mT", "numpy_T", "adjoint"), frozenset({"transposed"})),
    **dict.fromkeys(("diagonal", "diag"), _OF_CLASSES | {"arange", "transposed"}),
    **dict.fromkeys(("cross_entropy", "nll_loss"), _OF_CLASSES | {"eq", "sum", "mean"}),
    "kl_div": _SMOOTH | {"sum", "mean"},
    **dict.fromkeys(("to", "type", "long"), frozenset({"truncated"})),
    **dict.fromkeys(("erf", "erfc"), frozenset({"erf"})),
    "pow": frozenset({"pow"}),
    "sort": frozenset({"order", "ordered"}),
    "cumsum": frozenset({"cumsum"}),
    "diff": frozenset({"steps"}),
    "dot": frozenset({"sum", "mean"}),
    "data": frozenset({"constant"}),
    "gelu": frozenset({"erf"}) | _SMOOTH,
    "detach": frozenset({"constant"}),
    **dict.fromkeys(("permute", "movedim", "moveaxis", "transpose"), frozenset({"transposed"})),
    **dict.fromkeys((
        "add", "sub", "rsub", "mul", "div", "neg", "positive", "square", "sqrt", "rsqrt", "reciprocal", "cos",
        "sin", "zeros_like", "zeros", "new_zeros", "prod", "index", "logical_and", "bitwise_and", "and", "__and__",
        "logical_not", "bitwise_not", "ones_like", "ones", "new_ones", "stack", "tensor",
        "contiguous", "clone", "alias", "lift_fresh_copy", "detach_copy", "float", "double", "half", "bfloat16",
        "type_as", "reshape", "flatten", "unsqueeze", "squeeze", "view_as", "reshape_as", "unflatten",
    ), _NONE),
}
# fmt: on


def words(view: GraphView, node: fx.Node) -> frozenset[str] | None:
    """The functions that a node's normal form may hold, over whatever leaves; None: any."""
    known, waiting = view.work.words, [node]
    while waiting:
        n = waiting[-1]
        call = view.calls.get(n)
        if call is None or call.name not in handlers:
            known[n] = _NONE
        elif call.name not in _ADDED:
            known[n] = None
        missing = [] if n in known else [i for i in view.inputs(n) if i not in known]
        if missing:
            waiting += missing
            continue
        waiting.pop()
        if n not in known:
            assert call is not None
            parts = [known[i] for i in view.inputs(n)]
            constants = frozenset({"constant"} if view.gradient_switches else ())
            known[n] = None if None in parts else _ADDED[call.name].union(constants, *[p for p in parts if p])
    return known[node]
