"""What single calls do to memory: which of them write to a tensor, and which return a tensor of their own."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from ..._package import PACKAGE
from ...faces.modules import OpModule
from ...registry import registered
from .calls import assigns, aten_packet, writes_perhaps

# Modules whose result shares no memory with their input.
FRESH_MODULES = (
    torch.nn.Linear,
    torch.nn.modules.conv._ConvNd,
    torch.nn.modules.batchnorm._NormBase,
    torch.nn.GroupNorm,
    torch.nn.LayerNorm,
    OpModule,
)


@cache
def fresh(name: str) -> bool:
    """Does a function return a tensor that shares no memory with its arguments, whatever these are?

    Torch's schemas say so of a function that has a kernel, and losses that it has in Python alone make a new tensor.
    Composite functions may return their argument although their schema does not say it: dropout with nothing to do, a
    cast to the same dtype.
    """
    packet = aten_packet("matmul" if name == "products" else name)
    if packet is None:  # losses that torch has in Python alone
        return any(spelling.rsplit(".", 1)[-1] == name for op in registered() for spelling in op.spellings)
    if "dropout" in name or name in _MAY_RETURN_ARGUMENT:
        return False
    schemas = [getattr(packet, o)._schema for o in packet.overloads()]
    return all(r.alias_info is None for s in schemas for r in s.returns if not s.is_mutable)


# Composite functions that return their argument, or a view of it, where there is nothing to do.
# fmt: off
_MAY_RETURN_ARGUMENT = frozenset({
    "reshape", "flatten", "contiguous", "to", "type_as", "ravel", "getitem", "expand_as", "atleast_1d", "atleast_2d",
    "atleast_3d", "broadcast_tensors", "meshgrid", "einsum", "sum_to_size", "conj_physical", "to_dense", "lift", "data",
    "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes", "unflatten_dense_tensors", "pin_memory",
    "cartesian_prod", "histogramdd",
})
# Functions that write to more than their schema says: running statistics, or the noise that they drew.
WRITES_SILENTLY = frozenset({
    "batch_norm", "instance_norm", "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "rrelu_with_noise",
})
# fmt: on
# In-place functions after which a tensor may have another shape, or share other memory.
_RESHAPES = frozenset({"resize", "resize_as", "set", "rename"})


@dataclass(frozen=True)
class Write:
    """A call that writes to tensors, or may."""

    node: fx.Node
    # the arguments that it writes to
    tensors: tuple[fx.Node, ...]
    # False: it may write to them, as any function or module that is not known may write to its arguments
    certain: bool
    # True: all who read the tensor later read it through a node that ``GraphView.current`` finds
    followed: bool = False


def nodes_in(arguments: Any) -> tuple[fx.Node, ...]:
    """The nodes among the arguments of a call, in lists and dictionaries too."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return tuple(found)


def _schema(node: fx.Node) -> Any:
    """The schema of a call that may write to its arguments; None where torch has none."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    packet = aten_packet(name) if name.endswith("_") and not name.endswith("__") else None
    return getattr(packet, packet.overloads()[0])._schema if packet is not None else None


def written_by_schema(node: fx.Node) -> tuple[fx.Node, ...]:
    """The nodes that a call writes to by its schema."""
    schema = _schema(node)
    if schema is None or not schema.is_mutable:
        return ()
    written: list[Any] = []
    for i, a in enumerate(schema.arguments):
        if a.alias_info is not None and a.alias_info.is_write:
            written.append(node.args[i] if i < len(node.args) else node.kwargs.get(a.name))
    return nodes_in(written)


def reshapes(node: fx.Node) -> bool:
    """May the tensor that a call writes to have another shape after it, or share other memory?"""
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "").split(".")[0]
    if not name.endswith("_") or name.endswith("__"):
        return False
    packet = aten_packet(name)
    if name.rstrip("_") in _RESHAPES:
        return True
    return packet is not None and any(torch.Tag.inplace_view in getattr(packet, o).tags for o in packet.overloads())


def has_result(node: fx.Node) -> bool:
    """Does an in-place call return the tensor that it writes to? An assignment to items counts: it returns nothing, but
    ``GraphView.holder`` finds its tensor."""
    if assigns(node):
        return True
    value = node.meta.get("example_value", node.meta.get("val", ...))
    unknown = value is ... and not writes_perhaps(node)
    return unknown or isinstance(value, Tensor)


def keeps_its_arguments(root: torch.nn.Module | None, path: str) -> bool:
    """Is a module known not to write to its arguments? Those of torch do not, unless they have ``inplace=True``."""
    if root is None:
        return False
    for m in root.get_submodule(path).modules():
        if not type(m).__module__.startswith(("torch.nn.modules.", f"{PACKAGE}.")) or getattr(m, "inplace", False):
            return False
        if m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m):
            return False
    return True
