"""The order of a graph's calls: what writes in place, what is switched, what needs a gradient."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx

from ..nn._module import OpModule
from ._calls import Call, resolve, value_of

# What these return is a tensor of its own.
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
    """Does a call return a tensor of its own, whatever its arguments? What torch's schemas say of a view or an alias.

    Composite calls may return their argument without saying so: dropout with nothing to do, a cast to the same dtype.
    """
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or "dropout" in name or name in _MAY_RETURN_ARGUMENT:
        return False
    schemas = [getattr(packet, o)._schema for o in packet.overloads()]
    return all(r.alias_info is None for s in schemas for r in s.returns if not s.is_mutable)


_MAY_RETURN_ARGUMENT = frozenset({"reshape", "flatten", "contiguous", "to", "type_as", "ravel", "getitem", "expand_as"})


class Order:
    """The order of a graph's calls, and what in-place calls make of it.

    An in-place call's result is the tensor that it writes to; ``tensor`` gives the node that made that.
    """

    def __init__(self, graph: fx.Graph, module: torch.nn.Module | None, before: "Order | None" = None) -> None:
        """``before`` is the order of the same graph before a few nodes changed."""
        self.position = {n: i for i, n in enumerate(graph.nodes)}
        self._gradient: dict[fx.Node, bool | None] = {}
        self.module = module
        known = before.resolved if before is not None else {}
        self.resolved: dict[fx.Node, tuple[Any, Any, Call | None]] = {}
        for n in graph.nodes:
            args, kwargs, call = known.get(n, (None, None, None))
            if args is not n.args or kwargs is not n.kwargs:
                call = resolve(n, module)
            self.resolved[n] = (n.args, n.kwargs, call)
        self.calls: dict[fx.Node, Call | None] = {n: call for n, (_, _, call) in self.resolved.items()}
        attributes: dict[str, fx.Node] = {}
        self.tensor: dict[fx.Node, fx.Node] = {}
        self.writes: dict[fx.Node, list[fx.Node]] = {}
        for n, call in self.calls.items():
            if n.op == "get_attr":  # every read of an attribute is the same tensor
                self.tensor[n] = attributes.setdefault(str(n.target), n)
            elif call is not None and call.in_place and call.args and isinstance(call.args[0], fx.Node):
                self.tensor[n] = self.tensor[call.args[0]]
                self.writes.setdefault(self.tensor[n], []).append(n)
            else:
                self.tensor[n] = n
        self.names: dict[fx.Node, list[fx.Node]] = {}
        for n, t in self.tensor.items():
            self.names.setdefault(t, []).append(n)
        # calls after which the same text means something else
        self.switches = [i for n, i in self.position.items() if n.op == "call_function" and _switches(n.target)]
        self.gradients = [
            (i, bool(n.args[0]))
            for n, i in self.position.items()
            if n.op == "call_function" and getattr(n.target, "__name__", "") == "_set_grad_enabled"
        ]
        self.opaque_writes = [i for n, i in self.position.items() if self._writes_somewhere(n)]

    def _writes_somewhere(self, n: fx.Node) -> bool:
        """Does a call write where ``current`` does not follow it?"""
        call = self.calls[n]
        if call is None:
            if n.op == "call_function" and isinstance(n.target, torch._ops.OpOverload):
                return n.target._schema.is_mutable
            return False
        if "out" in call.kwargs:
            return True
        if not call.in_place:
            return False
        target = call.args[0] if call.args else None
        return not isinstance(target, fx.Node) or self.aliased(target, n)

    def aliased(self, node: fx.Node, write: fx.Node) -> bool:
        """May others see what a call writes to this one: the caller, or a view that was made before?"""
        tensor = self.tensor[node]
        if not self._fresh(tensor):
            return True
        users = {u for name in self.names[tensor] for u in name.users if self.position[u] < self.position[write]}
        return any(self.tensor[u] is not tensor and u.op != "output" and not self._fresh(u) for u in users)

    def _fresh(self, node: fx.Node) -> bool:
        """Is a node's value a tensor of its own?"""
        call = self.calls[node]
        if call is not None:
            return not call.in_place and fresh(call.name)
        if isinstance(node.target, torch._ops.OpOverload):
            return all(r.alias_info is None for r in node.target._schema.returns)
        if node.op == "call_module" and self.module is not None:
            return isinstance(self.module.get_submodule(str(node.target)), FRESH_MODULES)
        return False

    def without_gradient(self, node: fx.Node) -> bool:
        """Is a call made where gradients are off, while they are on elsewhere in the graph?"""
        before = [on for i, on in self.gradients if i < self.position[node]]
        return bool(before) and not before[-1]

    def requires_grad(self, node: fx.Node) -> bool | None:
        """May a gradient flow into a node's value? None: the graph does not say."""
        value = value_of(node)
        if node.op == "get_attr":
            owner: Any = self.module
            for step in str(node.target).split("."):
                owner = getattr(owner, step, None)
            return isinstance(owner, Tensor) and owner.requires_grad
        if isinstance(value, Tensor) and (not (value.is_floating_point() or value.is_complex())):
            return False
        if node.op == "placeholder" or "example_value" in node.meta:
            return value.requires_grad if isinstance(value, Tensor) else None
        call = self.calls.get(node)
        if call is not None and call.name in ("detach", "one_hot", "argmax", "zeros_like", "ones_like"):
            return False
        if getattr(node.target, "__name__", "") == "wrap_with_set_grad_enabled" and node.args[0] is False:
            return False
        if node not in self._gradient:
            self._gradient[node] = None  # of a loop, which graphs do not have
            below = [self.requires_grad(n) for n in node.all_input_nodes]
            self._gradient[node] = (
                True if True in below else None if None in below or node.op == "call_module" else False
            )
        return self._gradient[node]

    def current(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """The node whose value a user of ``node`` sees: the last one that wrote to it before."""
        tensor = self.tensor[node]
        before = [w for w in self.writes.get(tensor, ()) if self.position[w] < self.position[user] and w is not user]
        return max(before, key=self.position.__getitem__) if before else tensor

    def disturbed(self, parts: Sequence[fx.Node], leaves: Iterable[Any], root: fx.Node) -> str:
        """Why what the parts compute of the leaves may be something else at the root's place; empty: it is not."""
        places = [self.position[n] for n in (*parts, root)]
        low, high = min(places), self.position[root]
        if any(low < i < high for i in self.switches):
            return "autocast is switched between its parts"
        if any(low <= i <= high for i in self.opaque_writes):
            return "a tensor is written to between its parts"
        for node in leaves:
            if isinstance(node, fx.Node):
                since, writes = self.position[node], self.writes.get(self.tensor[node], ())
                if any(since < self.position[w] <= high and w is not root for w in writes):
                    return "one of its tensors is written to between its parts"
        return ""

    def written_later(self, nodes: Iterable[fx.Node], root: fx.Node) -> bool:
        """Is one of these tensors, or a view of one, written to behind a place?"""
        kept = {m for n in nodes for m in self._memory(n)}
        later = (w for ws in self.writes.values() for w in ws if self.position[w] > self.position[root])
        return any(kept & self._memory(w) for w in later)

    def _memory(self, node: fx.Node) -> set[fx.Node]:
        """The nodes whose memory a value may share."""
        tensor = self.tensor[node]
        if tensor.op in ("placeholder", "get_attr") or self._fresh(tensor):
            return {tensor}
        return {m for n in tensor.all_input_nodes for m in self._memory(n)} | {tensor}

    def one_gradient_mode(self, nodes: Iterable[fx.Node]) -> bool:
        return len({self.without_gradient(n) for n in nodes}) == 1


def _switches(target: Any) -> bool:
    name = getattr(target, "__name__", "")
    return name.startswith(("_enter_", "_exit_"))
