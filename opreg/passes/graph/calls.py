"""What a node of an FX graph calls, in whatever dialect the graph is written.

``F.silu(x)``, ``torch.nn.SiLU()(x)``, ``torch.ops.aten.silu_.default(x)`` and Dynamo's ``torch._C._nn.silu(x)`` are all
the call "silu".
"""

import inspect
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from ... import _private
from ...registry import registered

# The places of functions that are what their name says.
_LINALG = torch._C._linalg  # type: ignore[attr-defined]
_NAMESPACES = (torch, torch.nn.functional, torch._C._nn, _LINALG, torch.special, Tensor)
_OPERATORS = {
    operator.truediv: "div",
    operator.add: "add",
    operator.sub: "sub",
    operator.mul: "mul",
    operator.neg: "neg",
    operator.pow: "pow",
    operator.abs: "abs",
    operator.getitem: "getitem",
    operator.eq: "eq",
    operator.gt: "gt",
    operator.lt: "lt",
    operator.ge: "ge",
    operator.le: "le",
    operator.matmul: "matmul",
    operator.ne: "ne",
    operator.and_: "bitwise_and",
    operator.or_: "bitwise_or",
    operator.invert: "bitwise_not",
}
# Without operator.imatmul, which a tensor does not have: ``a @= b`` makes a new one.
IN_PLACE_OPERATORS = {
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.itruediv: "div",
    operator.ifloordiv: "floor_divide",
    operator.imod: "remainder",
    operator.ipow: "pow",
    operator.iand: "bitwise_and",
    operator.ior: "bitwise_or",
    operator.ixor: "bitwise_xor",
    operator.ilshift: "bitwise_left_shift",
    operator.irshift: "bitwise_right_shift",
    operator.setitem: "setitem",
}


def _of_anything(operate: Any) -> Any:
    """An in-place operator for the trace of a program in which the operand may be a number.

    A graph's code has ``a += b`` for a node of the operator itself. Where a is a number, whoever reads it later under
    that name would then read the sum.
    """

    def function(a: Any, b: Any) -> Any:
        return operate(a, b)

    function.__name__ = function.__qualname__ = f"{operate.__name__}_of_anything"
    return function


IN_PLACE_OF_ANYTHING = {f: _of_anything(f) for f in IN_PLACE_OPERATORS if f is not operator.setitem}
_OF_ANYTHING = {made: IN_PLACE_OPERATORS[f] for f, made in IN_PLACE_OF_ANYTHING.items()}
globals().update({made.__name__: made for made in _OF_ANYTHING})
# The same operators as methods.
_IN_PLACE_METHODS = {f"__{f.__name__}__": name for f, name in IN_PLACE_OPERATORS.items()}
# One name for functions that torch has under several.
_ALIASES = {
    "multiply": "mul",
    "subtract": "sub",
    "divide": "div",
    "true_divide": "div",
    "negative": "neg",
    "absolute": "abs",
    "clip": "clamp",
    "expit": "sigmoid",
    "special_expit": "sigmoid",
    "logsigmoid": "log_sigmoid",
    "concat": "cat",
    "concatenate": "cat",
    "swapaxes": "transpose",
    "view": "reshape",
    "_unsafe_view": "reshape",
    "_to_copy": "to",
    "cross_entropy_loss": "cross_entropy",
    "nll_loss_nd": "nll_loss",
    "nll_loss2d": "nll_loss",
    "special_softmax": "softmax",
    "special_log_softmax": "log_softmax",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
}


def aten_packet(name: str) -> Any:
    """ATen's function of a name, with all of its overloads; None where it has none. What else can be asked of the
    namespace, as of every object of Python's, is no function of torch: a graph may call ``__get__`` or ``__eq__``."""
    found = getattr(torch.ops.aten, name, None)
    return found if isinstance(found, torch._ops.OpOverloadPacket) else None


@dataclass(frozen=True)
class Attribute:
    """A tensor that a module holds, by its path from the root."""

    path: str


@dataclass(frozen=True)
class Call:
    """A call, by the name that torch's documentation has for the function; the arguments are as in the graph."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    in_place: bool = False
    # the function itself, where its signature says what the arguments are
    target: Any = None

    @property
    def written(self) -> Any:
        """The argument that an in-place call writes to; None where there is none, or it is not known."""
        if not self.in_place:
            return None
        return self.args[0] if self.args else self.kwargs.get("input", self.kwargs.get("self"))

    def inputs(self) -> Iterator[fx.Node]:
        """The nodes among the arguments, those in lists too."""
        found: list[fx.Node] = []
        fx.node.map_arg((self.args, dict(self.kwargs)), found.append)
        return iter(found)


def resolve(node: fx.Node, root: torch.nn.Module | None) -> Call | None:
    """What a node calls; None where that is no function of torch.

    A product that may be that of N vectors with N others is the call "products".
    """
    call = _resolve(node, root)
    if call is not None and call.name in ("matmul", "mm"):
        shape = sizes(value_of(node))
        if shape is None or (len(shape) == 2 and shape[0] == shape[1]):
            return replace(call, name="products")
    if call is not None and call.name == "cat" and call.args and "out" not in call.kwargs:
        tensors = call.args[0]
        if isinstance(tensors, list | tuple) and len(tensors) == 1:
            return Call("clone", tuple(tensors), {})
    return call


def _resolve(node: fx.Node, root: torch.nn.Module | None) -> Call | None:
    if node.op == "call_module":
        assert isinstance(node.target, str)
        return _module_call(node, root)
    if node.op == "call_method":
        assert isinstance(node.target, str)
        return _named(node.target, node.args, node.kwargs, None)
    if node.op != "call_function":
        return None
    target: Any = node.target
    if target is operator.getitem and (call := _first_result(node.args)) is not None:
        return call
    if target in _OPERATORS:
        return Call(_OPERATORS[target], node.args, node.kwargs)
    if target is getattr and node.args[1] in ("T", "mT"):  # attributes of a tensor that are views of it
        return Call("t" if node.args[1] == "T" else "mT", node.args[:1], {})
    if target in IN_PLACE_OPERATORS:
        of = value_of(node.args[0])  # of a number, these operators make another number
        return Call(IN_PLACE_OPERATORS[target], node.args, node.kwargs, in_place=of is None or isinstance(of, Tensor))
    if target in _OF_ANYTHING:
        return Call(_OF_ANYTHING[target], node.args, node.kwargs, in_place=True)
    if isinstance(target, torch._ops.OpOverload):
        namespace, name = target._schema.name.split("::")
        return _named(name, node.args, node.kwargs, target) if namespace == "aten" else None
    name = getattr(target, "__name__", "")
    if (target is getattr and node.args[1:] == ("data",)) or name == "_get_data_attr":
        return Call("data", node.args[:1], {})
    if _is_torchs(target, name):
        return _named(name, node.args, node.kwargs, target)
    if spelled_elsewhere(target):
        return Call(name, node.args, node.kwargs, target=target)
    return None


# The functions that were found to be torch's.
_OF_TORCH: set[Any] = set()


def _is_torchs(target: Any, name: str) -> bool:
    """Is this a function that torch has under this name?"""
    if target in _OF_TORCH:
        return True
    found = any(getattr(space, name, None) is target for space in _NAMESPACES)
    if found:
        _OF_TORCH.add(target)
    return found


def spelled_elsewhere(target: Any) -> bool:
    """Is this a function of another library than torch that the registry says an op computes?"""
    if isinstance(target, torch._ops.OpOverload) or target in _OF_TORCH:
        return False
    name = getattr(target, "__name__", "")
    for op in registered():
        for module in _elsewhere(op.spellings).get(name, ()):
            if module in sys.modules:
                return getattr(sys.modules[module], name, None) is target
    return False


@cache
def _elsewhere(spellings: tuple[str, ...]) -> dict[str, list[str]]:
    """The modules of other libraries than torch among spellings, by the name of the function."""
    found: dict[str, list[str]] = {}
    for spelling in spellings:
        module, _, name = spelling.rpartition(".")
        if not module.startswith("torch."):
            found.setdefault(name, []).append(module)
    return found


def _first_result(args: tuple[Any, ...]) -> Call | None:
    """The call of nll_loss whose first result is read: in core ATen, a second one is the sum of the weights."""
    of, index = args
    if index != 0 or not isinstance(of, fx.Node) or of.target not in _FORWARDS:
        return None
    return Call("nll_loss", of.args, of.kwargs, target=torch.ops.aten.nll_loss_nd.default)


_FORWARDS = (torch.ops.aten.nll_loss_forward.default, torch.ops.aten.nll_loss2d_forward.default)


@cache
def _inplace_index(target: Any) -> int | None:
    """The position of the parameter ``inplace`` of a function in torch.nn.functional."""
    if getattr(target, "__module__", None) != "torch.nn.functional":
        return None
    names = list(inspect.signature(target).parameters)
    return names.index("inplace") if "inplace" in names else None


def _named(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], target: Any) -> Call:
    if name in _IN_PLACE_METHODS:
        return Call(_IN_PLACE_METHODS[name], args, kwargs, in_place=True)
    in_place = name.endswith("_") and not name.endswith("__")
    name = name.rstrip("_") if in_place else name
    kwargs = dict(kwargs)
    at = _inplace_index(target)
    if at is not None and len(args) > at:
        args, in_place = args[:at] + args[at + 1 :], bool(args[at]) or in_place
    in_place = bool(kwargs.pop("inplace", False)) or in_place
    return Call(_ALIASES.get(name, name), args, kwargs, in_place, target)


def _module_call(node: fx.Node, root: torch.nn.Module | None) -> Call | None:
    if root is None:
        return None
    return module_call(root.get_submodule(str(node.target)), node.args, node.kwargs, f"{node.target}.")


def module_call(
    module: torch.nn.Module, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, prefix: str = ""
) -> Call | None:
    """The one call of a function that the forward of a module of torch.nn makes; None where it does something else."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    kind = type(module)
    if hooks or not kind.__module__.startswith("torch.nn.modules.") or "forward" in vars(module):
        return None
    if any(True for _ in module.parameters()) or any(True for _ in module.children()):
        return None
    graph = _trace(module)
    if graph is None:
        return None
    calls: list[fx.Node] = [n for n in graph.nodes if n.op in ("call_function", "call_method")]
    if len(calls) != 1 or graph.output_node().args[0] is not calls[0]:
        return None
    inner = resolve(calls[0], module)
    if inner is None:
        return None
    names = [str(n.target) for n in graph.nodes if n.op == "placeholder"]
    given: dict[str, Any] = {**dict(zip(names, args, strict=False)), **(kwargs or {})}

    def outer(a: Any) -> Any:
        if not isinstance(a, fx.Node):
            return a
        return Attribute(f"{prefix}{a.target}") if a.op == "get_attr" else given.get(str(a.target))

    new_args, new_kwargs = fx.node.map_aggregate((inner.args, dict(inner.kwargs)), outer)
    return Call(inner.name, tuple(new_args), new_kwargs, inner.in_place, inner.target)


def _trace(module: torch.nn.Module) -> fx.Graph | None:
    with _private.without_fake_mode():
        try:
            return fx.Tracer().trace(module)
        except Exception:  # a forward may do anything to a proxy; this one can't be traced
            return None


def writes_perhaps(node: fx.Node) -> bool:
    """Is a node an operator that writes to its operand if that is a tensor, but makes another number of a number?"""
    return node.target in IN_PLACE_OPERATORS or node.target in _OF_ANYTHING


def assigns(node: Any) -> bool:
    """Is a node an assignment to items of a tensor, ``x[i] = y``?"""
    return isinstance(node, fx.Node) and bool(node.args) and node.target in _ASSIGNMENTS


_ASSIGNMENTS = (operator.setitem, "__setitem__", Tensor.__setitem__)


def value_of(node: Any) -> Any:
    """The fake tensor (or number) that tracing left on a node; None where there is none.

    An assignment to items returns nothing; its value is that of the tensor that it writes to.
    """
    while assigns(node):
        node = node.args[0]
    if not isinstance(node, fx.Node):
        return None
    for key in ("val", "example_value"):
        if key in node.meta:
            return node.meta[key]
    return None


# A shape whose sizes can be compared without a guard: a symbolic size is its expression.
Sizes = tuple[Any, ...]


def sizes(value: Any) -> Sizes | None:
    """The shape of a tensor; None of anything else."""
    return sizes_of(value.shape) if isinstance(value, Tensor) else None


def sizes_of(shape: Sequence[Any]) -> Sizes:
    return tuple(d if isinstance(d, int) else d.node.expr for d in shape)


def held_at(module: torch.nn.Module | None, path: str) -> Any:
    """What a module holds at a path; None where it holds nothing there."""
    owner: Any = module
    for step in path.split("."):
        owner = getattr(owner, step, None)
    return owner
