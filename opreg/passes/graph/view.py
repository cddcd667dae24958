"""A graph as the rewrite sees it: what its nodes call, what is written in place, what needs a gradient."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from ..._package import PACKAGE
from .calls import Call, assigns, held_at, resolve, value_of
from .gradients import constant, differentiable, either, gradient_of
from .writes import (
    FRESH_MODULES,
    WRITES_SILENTLY,
    Write,
    fresh,
    has_result,
    keeps_its_arguments,
    nodes_in,
    reshapes,
    written_by_schema,
)

# Functions that return complex tensors of real ones, and functions that return real tensors of complex ones.
_COMPLEX = frozenset({"complex", "polar", "view_as_complex", "cfloat", "cdouble", "chalf", "stft"})
_REAL = frozenset({"real", "imag", "abs", "angle", "view_as_real", "isfinite", "isnan", "eq", "fft_irfft", "fft_hfft"})


@dataclass
class Work:
    """What stays true of a graph's nodes while calls are replaced, and how much was tried."""

    # whether a call of a module, or of a function that is none of torch's, writes to its arguments; None: nobody knows
    opinions: dict[fx.Node, bool | None] = field(default_factory=dict)
    # the normal forms of patterns, by pattern, nodes and numbers
    forms: dict[Any, Any] = field(default_factory=dict)
    # the functions that normal forms of nodes may hold
    words: dict[fx.Node, frozenset[str] | None] = field(default_factory=dict)
    # the values of calls, by their nodes and the values of their arguments
    results: dict[Any, Any] = field(default_factory=dict)
    # the same where a tensor of zeros and ones holds one of them alone
    of_cases: dict[Any, Any] = field(default_factory=dict)
    # what the elements of nodes can be, as ``Ranges`` has found
    ranges: dict[fx.Node, Any] = field(default_factory=dict)
    # the formulas that nodes nearly are
    nearest: dict[fx.Node, Any] = field(default_factory=dict)
    # how many formulas and patterns were evaluated
    done: int = 0
    # the nodes at which this was too much
    given_up: set[fx.Node] = field(default_factory=set)


class GraphView:
    """A graph's calls in order, and what in-place calls make of them.

    A tensor that is written to in place has one value after the other, and several nodes: the one that made it, and the
    in-place calls, whose result is the same tensor. A node stands for the value that its tensor has after it.

    Args:
        graph: is read once; a graph that has changed needs a new view, or a ``FollowingView``.
        module: its owner.
        before: the view of the same graph before nodes changed; what is still true is taken from it.

    Attributes:
        position: orders nodes as the graph does.
        calls: what a node calls, None where that is no function of torch.
        tensor: the node that made the tensor that is a node's result.
        names: the nodes whose result is a tensor, by the node that made it.
        versions: the nodes that wrote to a tensor, in order, by the node that made it.
        writes: the calls that write to tensors, or may.
    """

    def __init__(self, graph: fx.Graph, module: torch.nn.Module | None, before: "GraphView | None" = None) -> None:
        self.graph, self.module = graph, module
        self.work: Work = before.work if before is not None else Work()
        self.position: dict[fx.Node, float] = {}
        self.calls: dict[fx.Node, Call | None] = {}
        self.tensor: dict[fx.Node, fx.Node] = {}
        self.writes: list[Write] = []
        # the places where autocast or the like is switched, after which the same call may give another dtype
        self.switches: list[int] = []
        # the places where gradients are switched, and whether on or off
        self.gradient_switches: list[tuple[int, bool]] = []
        # what an evaluation has made of the arguments of calls
        self.prepared: dict[fx.Node, Any] = {}
        # the values of nodes over leaves, as a search for formulas has read them
        self.readings: Any = None
        # each node without its neighbours, and these, as a search for formulas compares them
        self.spelled: dict[fx.Node, Any] = {}
        self._inputs: dict[fx.Node, tuple[fx.Node, ...]] = {}
        # the nodes that write to nothing and switch nothing, with their arguments
        self._quiet: dict[fx.Node, tuple[Any, Any]] = {}
        self._read(graph, before)
        self.versions: dict[fx.Node, list[fx.Node]] = {}
        for w in self.writes:
            if self.tensor[w.node] is not w.node:
                self.versions.setdefault(self.tensor[w.node], []).append(w.node)

    def _read(self, graph: fx.Graph, before: "GraphView | None") -> None:
        """Looks at every node; at one that is quiet, and was before with the same arguments, only briefly."""
        attributes: dict[str, fx.Node] = {}
        quiet = before._quiet if before is not None else {}
        changed: list[fx.Node] = []
        for i, n in enumerate(graph.nodes):
            self.position[n], self.tensor[n] = i, n
            args, kwargs = quiet.get(n, (None, None))
            if before is not None and args is n.args and kwargs is n.kwargs:
                self.calls[n], self._quiet[n] = before.calls[n], quiet[n]
                continue
            call = self.calls[n] = resolve(n, self.module)
            if n.op == "get_attr":  # every read of an attribute is the same tensor
                self.tensor[n] = attributes.setdefault(str(n.target), n)
            elif call is not None and isinstance(call.written, fx.Node) and has_result(n):
                self.tensor[n] = self.tensor[call.written]
            elif n.op == "call_function" and _switches(n.target):
                self.switches.append(i)
            elif n.op == "call_function" and getattr(n.target, "__name__", "") == "_set_grad_enabled":
                self.gradient_switches.append((i, bool(n.args[0])))
            changed.append(n)
        switched = {*self.switches, *(i for i, _ in self.gradient_switches)}
        for n in changed:
            found = list(self._writes(n))
            self.writes += found
            if not found and n.op != "get_attr" and self.position[n] not in switched:
                self._quiet[n] = (n.args, n.kwargs)
        # the answers of ``requires_grad`` where nothing is written, as far as somebody has asked, and below those
        self._gradients: dict[fx.Node, bool | None] = {}

    def order(self) -> list[fx.Node]:
        """The nodes in the graph's order."""
        return [n for n in self.graph.nodes if n in self.position]

    @cached_property
    def writing(self) -> dict[fx.Node, Write]:
        """The writes by the nodes that write."""
        return {w.node: w for w in self.writes}

    @cached_property
    def names(self) -> dict[fx.Node, list[fx.Node]]:
        found: dict[fx.Node, list[fx.Node]] = {}
        for n, t in self.tensor.items():
            found.setdefault(t, []).append(n)
        return found

    def _writes(self, n: fx.Node) -> Iterator[Write]:
        """The writes of a call: one, or none."""
        call, opinions = self.calls[n], self.work.opinions
        if self.tensor[n] is not n and n.op != "get_attr":
            assert call is not None
            others = tuple(a for a in written_by_schema(n) if a is not call.written)
            followed = not others and not reshapes(n) and not self.aliased(call.written, n)
            yield Write(n, (call.written, *others), certain=True, followed=followed)
        elif call is not None:
            written = nodes_in((call.written, call.kwargs.get("out"))) + written_by_schema(n)
            if written or call.in_place:
                yield Write(n, written, certain=True)
            elif call.name in WRITES_SILENTLY or (call.name == "embedding" and len(n.args) + len(n.kwargs) > 2):
                yield Write(n, tuple(n.all_input_nodes)[1:], certain=False)
        elif n.op == "call_module":
            if n not in opinions:
                opinions[n] = not keeps_its_arguments(self.module, str(n.target))
            if opinions[n]:
                yield Write(n, tuple(n.all_input_nodes), certain=False)
        elif n.op == "call_function":
            if n not in opinions:
                opinions[n] = self._function_writes(n)
            if opinions[n] is not False:
                known = isinstance(n.target, torch._ops.OpOverload)
                tensors = written_by_schema(n) if known else tuple(n.all_input_nodes)
                yield Write(n, tensors, certain=bool(opinions[n]))

    def _function_writes(self, n: fx.Node) -> bool | None:
        """Does a function write to its arguments? It is none of torch's tensor functions. None: nobody knows."""
        target: Any = n.target
        if isinstance(target, torch._ops.OpOverload):
            return bool(target._schema.is_mutable)
        if isinstance(target, torch._ops.OpOverloadPacket):
            return any(getattr(target, o)._schema.is_mutable for o in target.overloads())
        if isinstance(target, torch._ops.HigherOrderOperator):
            graphs = [g for a in n.all_input_nodes if isinstance(g := self._attribute(a), fx.GraphModule)]
            return any(_writes_to_inputs(g) for g in graphs) if graphs else "functional" not in target.name()
        name = getattr(target, "__name__", "")
        if "out" in n.kwargs or target is setattr or (name.endswith("_") and not name.endswith("__")):
            return True
        home = (getattr(target, "__module__", None) or "torch").split(".")[0]
        return False if home in ("torch", "builtins", "_operator", "operator", "math", PACKAGE) else None

    def _attribute(self, node: fx.Node) -> Any:
        """What a node reads from the module; None where it reads nothing there."""
        return held_at(self.module, str(node.target)) if node.op == "get_attr" else None

    def aliased(self, node: fx.Node, write: fx.Node) -> bool:
        """May somebody else see what a call writes to a node: the graph's caller, or who reads a view that was made
        before?"""
        tensor = self.tensor[node]
        if not self._fresh(tensor):
            return True
        users = {u for name in self.names[tensor] for u in name.users if self.position[u] < self.position[write]}
        views = (u for u in users if self.tensor[u] is not tensor and u.op != "output" and not self._fresh(u))
        return any(self._read_from(view, self.position[write]) for view in views)

    def _read_from(self, view: fx.Node, place: float) -> bool:
        """Does anything from a place on read a view, or a view of it? A function that is not known may keep what it is
        given, and read it then."""
        waiting, seen = [view], {view}
        while waiting:
            node = waiting.pop()
            if self.calls.get(node) is None:
                return True
            for user in node.users:
                if self.position.get(user, place) >= place:
                    return True
                if user not in seen and not self._fresh(user):
                    seen.add(user)
                    waiting.append(user)
        return False

    def _fresh(self, node: fx.Node) -> bool:
        """Is a node's result a tensor that shares no memory with others?"""
        call = self.calls[node]
        if call is not None:
            return not call.in_place and "out" not in call.kwargs and fresh(call.name)
        if isinstance(node.target, torch._ops.OpOverload):
            return all(r.alias_info is None for r in node.target._schema.returns)
        if node.op == "call_module" and self.module is not None:
            return isinstance(self.module.get_submodule(str(node.target)), FRESH_MODULES)
        return False

    def without_gradient(self, node: fx.Node) -> bool:
        """Is a call made where gradients are off, while they are on elsewhere in the graph?"""
        if not self.gradient_switches:
            return False
        before = [on for i, on in self.gradient_switches if i < self.position[node]]
        return bool(before) and not before[-1]

    def requires_grad(self, node: fx.Node) -> bool | None:
        """May a gradient flow into a node's value, or into what is written to it? None: the graph does not say."""
        if not self.writes:
            waiting = [node]
            while waiting:
                inputs = waiting[-1].all_input_nodes
                missing = [i for i in inputs if i not in self._gradients]
                if missing:
                    waiting += missing
                else:
                    n = waiting.pop()
                    self._gradients[n] = self._gradient_of(n, [self._gradients[i] for i in inputs])
            return self._gradients[node]
        own, written = self._gradients_and_writes
        value = value_of(node)
        if isinstance(value, Tensor) and not differentiable(value):
            return False
        return either(own[node], written.get(self._memory[node], False))

    @cached_property
    def _gradients_and_writes(self) -> tuple[dict[fx.Node, bool | None], dict[fx.Node, bool | None]]:
        """What ``requires_grad`` is of nodes but for the gradients that are written to their memory; and these."""
        own: dict[fx.Node, bool | None] = {}
        written: dict[fx.Node, bool | None] = {}
        writes = {w.node: w for w in self.writes if w.certain}
        for n in self.order():
            below = [own[i] for i in n.all_input_nodes]
            below += [written.get(self._memory[i], False) for i in n.all_input_nodes]
            own[n] = self._gradient_of(n, below)
            if n in writes and not self.without_gradient(n):
                for t in writes[n].tensors:
                    memory = self._memory[t]
                    brought = either(*(own[i] for i in n.all_input_nodes if i is not t and not constant(i)))
                    written[memory] = either(written.get(memory, False), brought)
        return own, written

    def _gradient_of(self, node: fx.Node, below: Sequence[bool | None]) -> bool | None:
        return gradient_of(node, self.calls[node], self._attribute(node), below)

    def complex(self, node: fx.Node) -> bool:
        """Is a value complex, as far as the graph says?"""
        value = value_of(node)
        return value.is_complex() if isinstance(value, Tensor) else node in self._complex

    @cached_property
    def _complex(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for n in self.order():
            call = self.calls[n]
            name = call.name if call is not None else getattr(n.target, "__name__", "")
            if name in _REAL or name in ("size", "getattr"):
                continue
            makes = name in _COMPLEX or name.startswith("fft_") or bool(_complex_constants((n.args, n.kwargs)))
            if makes or any(i in found for i in n.all_input_nodes):
                found.add(n)
        return found

    def current(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """The node whose value a user of ``node`` reads: the last one that wrote to its tensor before the user."""
        tensor = self.tensor[node]
        versions = self.versions.get(tensor)
        if versions is None:
            return tensor
        place = self.position[user]
        return next((w for w in reversed(versions) if self.position[w] < place), tensor)

    def inputs(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The nodes whose values a call reads; none of what is no call of a function of torch."""
        if node not in self._inputs:
            call = self.calls.get(node)
            self._inputs[node] = () if call is None else tuple(self.current(n, node) for n in call.inputs())
        return self._inputs[node]

    def holder(self, node: fx.Node) -> fx.Node:
        """A node to read a node's value from, as long as nothing writes to it again: not an assignment to items, which
        returns nothing."""
        while assigns(node) and self.tensor[node] is not node:
            node = self.current(node.args[0], node)  # type: ignore[arg-type]
        return node

    def disturbed(self, parts: Sequence[fx.Node], leaves: Iterable[Any], root: fx.Node) -> str:
        """Why the value that the parts compute of the leaves may be another one if it is computed at the root's place;
        empty: it is the same, and so is its gradient."""
        read = [n for n in leaves if isinstance(n, fx.Node)]
        low, high = min(self.position[n] for n in (*parts, root)), self.position[root]
        if any(low < i < high for i in self.switches):
            return "autocast is switched between its parts"
        if not self.writes:
            return ""
        memory = {self._memory[n] for n in (*parts, *read)}
        if memory & self._reshaped:
            return "one of its tensors gets another shape in place"
        for w in self.writes:
            if w.followed or not low <= self.position[w.node] <= high:
                continue
            if w.certain:
                return "a tensor is written to between its parts"
            if any(self._memory[t] in memory for t in w.tensors):
                return "a tensor may be written to between its parts"
        for node in read:
            since, writes = self.position[node], self.versions.get(self.tensor[node], ())
            if any(since < self.position[w] <= high and w is not root for w in writes):
                return "one of its tensors is written to between its parts"
        # Torch's gradient reads the parts again, and the result, and sees what was written to them past its counter of
        # versions. Any other write to what the gradient reads is an error in the program itself.
        if self.requires_grad(root) is not False and self.written_later((*parts, root), root, uncounted=True):
            return "one of its parts is written to through .data later, and torch's gradient would read that"
        return ""

    def written_later(self, nodes: Iterable[fx.Node], root: fx.Node, uncounted: bool = False) -> bool:
        """Is one of these tensors, or memory that it shares, written to after the root?

        ``uncounted``: only writes count of which autograd does not know.
        """
        if not self.writes:
            return False
        kept, place = {self._memory[n] for n in nodes}, self.position[root]
        later = (w for w in self.writes if w.certain and self.position[w.node] > place)
        return any(
            self._memory[t] in kept and not (uncounted and self._counted(w, t)) for w in later for t in w.tensors
        )

    def share_memory(self, nodes: Iterable[fx.Node], others: Iterable[fx.Node]) -> bool:
        """May one of these tensors be memory of one of the others?"""
        memory = {self._memory[n] for n in others}
        return bool(memory) and any(self._memory[n] in memory for n in nodes)

    def shares_what_is_written(self, node: fx.Node) -> bool:
        """May a node's result be memory of others, to which something is written after it, or may be? Then that
        memory is what counts, and no other tensor of the same value can take its place."""
        if not self.writes or self._fresh(node):
            return False
        memory, place = self._memory[node], self.position[node]
        return any(self._memory[t] is memory for w in self.writes if self.position[w.node] > place for t in w.tensors)

    def _counted(self, write: Write, written: fx.Node) -> bool:
        """Does a write raise the version that autograd checks? One by a function of torch does, unless the tensor, or
        one that it is a view of, was read as ``.data``."""
        if self.calls[write.node] is None:
            return False
        waiting, seen = [written], {written}
        while waiting:
            node = waiting.pop()
            if self.tensor[node] is node and (node.op in ("placeholder", "get_attr") or self._fresh(node)):
                continue
            if self.calls[node] is None or self.calls[node].name == "data":  # type: ignore[union-attr]
                return False
            found = [n for n in node.all_input_nodes if n not in seen]
            seen.update(found)
            waiting += found
        return True

    def reshaped(self, node: fx.Node) -> bool:
        """Does a tensor get another shape in place? Then what tracing noted of it does not hold everywhere."""
        return bool(self.writes) and self._memory[node] in self._reshaped

    @cached_property
    def _reshaped(self) -> set[fx.Node]:
        return {self._memory[t] for w in self.writes if reshapes(w.node) for t in w.tensors}

    @cached_property
    def _memory(self) -> dict[fx.Node, fx.Node]:
        """The first node with which each node may share memory: two that share it have the same first one."""
        found: dict[fx.Node, fx.Node] = {}

        def first(n: fx.Node) -> fx.Node:
            while found[n] is not n:
                found[n] = n = found[found[n]]
            return n

        written = {w.node: w.tensors for w in self.writes if self.calls[w.node] is not None and not reshapes(w.node)}
        for n in self.order():
            found[n] = n
            value = value_of(n)
            if n.op in ("placeholder", "output") or isinstance(value, int | float | torch.SymInt | torch.SymFloat):
                continue
            if self.tensor[n] is not n and not reshapes(n):
                found[n] = first(self.tensor[n])
            elif not self._fresh(n):
                for i in written.get(n) or n.all_input_nodes:
                    a, b = sorted((first(i), first(n)), key=self.position.__getitem__)
                    found[b] = a
        return {n: first(n) for n in found}

    @cached_property
    def _sharing(self) -> dict[fx.Node, list[fx.Node]]:
        """The nodes that may share memory, by the first of them."""
        found: dict[fx.Node, list[fx.Node]] = {}
        for n, first in self._memory.items():
            found.setdefault(first, []).append(n)
        return found

    def one_gradient_mode(self, nodes: Iterable[fx.Node]) -> bool:
        return len({self.without_gradient(n) for n in nodes}) == 1


def _switches(target: Any) -> bool:
    name = getattr(target, "__name__", "")
    return name.startswith(("_enter_", "_exit_"))


def _writes_to_inputs(module: fx.GraphModule) -> bool:
    """Does a graph write to what it is given?"""
    view = GraphView(module.graph, module)
    outside = {view._memory[n] for n in view.order() if n.op in ("placeholder", "get_attr")}
    return any(not w.tensors or any(view._memory[t] in outside for t in w.tensors) for w in view.writes)


def _complex_constants(arguments: Any) -> list[Any]:
    """The complex numbers and dtypes among the arguments of a call."""
    found: list[Any] = []

    def visit(a: Any) -> Any:
        if isinstance(a, complex) or (isinstance(a, torch.dtype) and a.is_complex):
            found.append(a)
        return a

    fx.node.map_aggregate(arguments, visit)
    return found
