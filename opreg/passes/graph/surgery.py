"""Nodes of a graph in the place of others, and the checks that they fit there."""

import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ... import _private
from ...op import Op
from ...registry import called
from .calls import Attribute, Call, sizes, sizes_of, value_of
from .following import FollowingView


class Refused(Exception):
    """A place that is left as it is, and why."""


class Surgery:
    """Exchanges nodes of a module's graph.

    Args:
        module: the owner of the graph.
        pure: has a call no effect but its result? Such a call is erased when nobody uses it any more.
        natives: the names of torch's own losses and activations.
        written_after: the names of the inputs that are written to after the graph.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        pure: Callable[[Call], bool],
        natives: Container[str],
        written_after: Container[str] = (),
    ) -> None:
        self.module, self.graph, self.pure, self.natives = module, module.graph, pure, natives
        self.view = FollowingView(self.graph, module)
        self._written_after = [n for n in self.graph.nodes if n.op == "placeholder" and n.name in written_after]
        self._only_aten = any("val" in n.meta for n in self.graph.nodes)
        # the nodes that may have lost their last user; None: any node of the graph may have none
        self._loose: list[fx.Node] | None = None
        # what is known of calls of ops, by what decides it: how their results look, and why the kernel refuses them
        self._looks: dict[Any, Any] = {}
        self._refusals: dict[Any, str] = {}

    # new nodes

    def call(self, op: Op, arguments: Mapping[str, Any]) -> fx.Node:
        """A call of an op. Arguments are positional as far as they are given without a gap; defaults are left out."""
        args, names = [], list(op.value._schema.arguments)
        rest = dict(arguments)
        for a in names:
            if a.kwarg_only or a.name not in rest:
                break
            args.append(rest.pop(a.name))
        defaults = op.defaults
        while args and len(args) > 1 and not isinstance(args[-1], fx.Node) and names[len(args) - 1].name in defaults:
            if args[-1] != defaults[names[len(args) - 1].name]:
                break
            args.pop()
        rest = {n: a for n, a in rest.items() if isinstance(a, fx.Node) or n not in defaults or a != defaults[n]}
        return self.graph.call_function(op.value, tuple(args), rest)

    def attribute(self, a: Attribute) -> fx.Node | None:
        """A read of a module's tensor; None where the module holds None there."""
        return None if self.held(a.path) is None else self.graph.get_attr(a.path)

    def held(self, path: str) -> Any:
        """What the module holds at a path."""
        owner: Any = self.module
        for step in path.split("."):
            owner = getattr(owner, step)
        return owner

    def in_dialect(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """A call in the graph's own dialect: an ATen overload where the graph holds nothing else."""
        if self._only_aten and not isinstance(target, torch._ops.OpOverload):
            name = target if isinstance(target, str) else target.__name__.replace("truediv", "div")
            target = overload(getattr(torch.ops.aten, name), args, kwargs)
            op = "call_function"
        return self.graph.create_node(op, target, args, kwargs)

    def copied(self, traced: fx.Graph, given: Mapping[str, Any]) -> list[fx.Node]:
        """The calls of another graph, of the arguments that are given for its placeholders."""
        new: list[fx.Node] = []
        values: dict[fx.Node, Any] = {}
        for n in traced.nodes:
            if n.op == "placeholder":
                values[n] = given[str(n.target)]
            elif n.op != "output":
                target = n.target.default if isinstance(n.target, torch._ops.OpOverloadPacket) else n.target
                args, kwargs = fx.node.map_aggregate(
                    (n.args, n.kwargs), lambda a: values[a] if isinstance(a, fx.Node) else a
                )
                if n.op == "call_function" and not kwargs and all(isinstance(a, int | float) for a in args):
                    values[n] = target(*args)  # of numbers
                    continue
                values[n] = self.in_dialect(n.op, target, args, dict(kwargs))
                new.append(values[n])
        return new

    # the exchange

    def exchange(self, root: fx.Node, make: Callable[[], list[fx.Node]]) -> list[fx.Node]:
        """Puts the nodes that ``make`` makes in the place of one; the last of them has its value.

        Raises:
            Refused: they do not fit there. Then the graph is what it was.
        """
        call = self.view.calls[root]
        assert call is not None
        written = call.written
        if call.in_place and (
            not isinstance(written, fx.Node) or self.view.tensor[root] is root or self.view.aliased(written, root)
        ):
            raise Refused("it writes in place to a tensor that others may see")
        if not call.in_place and self.view.shares_what_is_written(root):
            raise Refused("its result is a view of a tensor that is written to later")
        with self.graph.inserting_before(root):
            new = make()
        last = new[-1]
        try:
            self._keeps_what_it_reads(new, written, root)
            self._annotate(new, root)
            self._fits(last, root)
        except Refused:
            for n in reversed(new):
                self.graph.erase_node(n)
            raise
        later: list[fx.Node] = []
        if isinstance(written, fx.Node):
            for same in self.view.names[self.view.tensor[written]]:
                for u in list(same.users):
                    if self.view.position.get(u, -1) > self.view.position[root]:
                        u.replace_input_with(same, last)
                        later.append(u)
                self._loosen([same])
        self.supersede(root, new, later)
        return new

    def supersede(self, old: fx.Node, new: Sequence[fx.Node], others: Iterable[fx.Node] = ()) -> None:
        """Gives all users of a node the last of the new nodes that stand before it, which takes its name.

        ``others`` read that one already, in the place of something else.
        """
        last, inputs = new[-1], old.all_input_nodes
        readers = list(dict.fromkeys((*old.users, *others)))
        old.replace_all_uses_with(last)
        name = old.name
        self.graph.erase_node(old)
        last.name = name
        self._loosen(inputs)
        if not self.view.exchanged(old, new, readers):
            self.refresh()

    def erase(self, node: fx.Node) -> None:
        """Erases a node without users."""
        inputs = node.all_input_nodes
        self.graph.erase_node(node)
        self._loosen(inputs)
        if not self.view.erased(node):
            self.refresh()

    def refresh(self) -> None:
        """Looks at the graph anew, after nodes have changed."""
        self.view = FollowingView(self.graph, self.module, self.view)

    def sweep(self) -> None:
        """Erases what nobody uses any more, in-place calls on tensors of their own too."""
        waiting = list(self.graph.nodes) if self._loose is None else self._loose
        self._loose, followed = [], True
        gone: set[fx.Node] = set()
        while waiting:
            node = waiting.pop()
            if node in gone or node not in self.view.position or not self._dead(node):
                continue
            gone.add(node)
            inputs = node.all_input_nodes
            self.graph.erase_node(node)
            self._loosen(inputs)
            waiting, self._loose = waiting + self._loose, []
            followed = self.view.erased(node) and followed
        if not followed:
            self.refresh()

    def _loosen(self, nodes: Sequence[fx.Node]) -> None:
        """Notes that nodes have lost a user: they may be dead now, and so may who writes to them."""
        if self._loose is not None:
            self._loose += nodes
            if self.view.writes:
                tensors = [self.view.tensor[n] for n in nodes if n in self.view.position]
                self._loose += [u for t in tensors for same in self.view.names[t] for u in same.users]

    def _dead(self, node: fx.Node) -> bool:
        """Has a call neither a user nor an effect that anybody sees?"""
        call = self.view.calls[node]
        if not node.users and node.target is getattr:
            return True
        if node.users or call is None or call.name == "setitem":
            return False
        if not call.in_place:
            return self.pure(call) and node not in self.view.writing
        written = call.written
        return (
            isinstance(written, fx.Node)
            and set(written.users) == {node}
            and len(self.view.writing[node].tensors) == 1
            and not self.view.aliased(written, node)
        )

    # the checks

    def _keeps_what_it_reads(self, new: Sequence[fx.Node], written: Any, root: fx.Node) -> None:
        """Refuses an op that would keep a tensor for its backward pass that a later call writes to.

        What torch's own call keeps may be another tensor, its result perhaps, and then the program is without an error.
        """
        inputs = {n for made in new for n in made.all_input_nodes if n in self.view.position}
        if any(map(self.view.reshaped, inputs)):
            raise Refused("one of its tensors gets another shape in place")
        inputs.discard(written)
        if all(self.view.requires_grad(n) is False for n in inputs):
            return
        if self.view.written_later(inputs, root) or self.view.share_memory(inputs, self._written_after):
            raise Refused("one of its tensors is written to later, and the op keeps it for the backward pass")

    def _annotate(self, new: Sequence[fx.Node], root: fx.Node) -> None:
        """Gives new nodes the old one's metadata, and the values of a fake run."""
        known = value_of(root) is not None
        key = "val" if "val" in root.meta else "example_value"
        for n in new:
            n.meta = {k: v for k, v in root.meta.items() if k not in ("val", "example_value", "tensor_meta")}
            if known:
                n.meta[key] = self._fake(n, root if n is new[-1] else None)
                if "tensor_meta" in root.meta and isinstance(n.meta[key], Tensor):
                    n.meta["tensor_meta"] = _private.tensor_metadata(n.meta[key])

    def _fake(self, n: fx.Node, old: fx.Node | None = None) -> Any:
        """What a node gives for the fake values of its inputs; None where one of these is not known.

        Where an equal call has shown that this is what the old node has, which is about to go, it is that.
        """
        if n.op == "get_attr":
            return self.held(str(n.target))
        args, kwargs = _with_values((n.args, n.kwargs))
        if any(a is None for a in pytree.tree_leaves([value_of(i) for i in n.all_input_nodes])):
            return None
        # what an exported graph says of gradients is true of its inputs alone
        gradients = not self._only_aten
        key = (n.target, looks((args, kwargs), gradients))
        before = None if old is None or old in self.view.writing else value_of(old)
        if isinstance(before, Tensor) and self._looks.get(key) == looks(before, gradients):
            return before
        try:
            if isinstance(n.target, str):
                return getattr(args[0], n.target)(*args[1:], **kwargs)
            result = n.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Refused(str(error).splitlines()[0]) from None
        self._looks[key] = looks(result, gradients)
        return result

    def _fits(self, new: fx.Node, root: fx.Node) -> None:
        """Shape, dtype and device are those of the old value; the op has a kernel there, and takes the options."""
        before, after = value_of(root), value_of(new)
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return
        op, device = op_of(new), before.device.type
        if device == "meta":
            raise Refused("there is no kernel for meta")
        if op is not None and not _private.has_kernel_for(op.qualname, device):
            raise Refused(f"{op.short} has no kernel for {device} in this library")
        if before.dtype != after.dtype and op is not None and self._misreported(root, before.dtype):
            before = before.to(after.dtype)
        if before.dtype != after.dtype and op is not None and op.is_loss:
            new.kwargs = {**new.kwargs, "dtype": before.dtype}
            after = self._fake(new)
            new.meta["val" if "val" in new.meta else "example_value"] = after
        if (sizes(before), before.dtype, before.device) != (sizes(after), after.dtype, after.device):
            was, would = (f"{t.dtype} of shape {list(t.shape)}" for t in (before, after))
            raise Refused(f"the op would give {would}, not {was}")
        orders = order_of(before), order_of(after)
        if None not in orders and orders[0] != orders[1]:
            raise Refused(
                "the op's result would lie in memory in another order, which views and their writes would see"
            )
        if op is not None:
            self._rehearse(op, new)

    def _rehearse(self, op: Op, new: fx.Node) -> None:
        """Refuses options that the kernel does not take. Fakes do not look at them, so the kernel gets a few
        elements."""
        if op.kernels is not None:
            return
        arguments = _small((new.args, new.kwargs))
        key = (op, looks(arguments, True))
        if key not in self._refusals:
            self._refusals[key] = ""
            with _private.without_fake_mode(), torch.no_grad():
                args, kwargs = pytree.tree_map_only(_Like, _Like.filled, arguments)
                try:
                    op.value(*args, **kwargs)
                except RuntimeError as error:
                    text = str(error).splitlines()[0]
                    if text.startswith(f"{op.short}: expected"):
                        self._refusals[key] = text
        if self._refusals[key]:
            raise Refused(self._refusals[key])

    def _misreported(self, root: fx.Node, dtype: torch.dtype) -> bool:
        """Is the graph's dtype for a native loss of tensors of several dtypes only what torch's fakes say of it?

        Some of them promote, and the kernels do not. The op gives what the kernel gives, and so do programs that are
        not rewritten. Under autocast, the graph knows better than a fake run here. Arithmetic promotes in its kernels
        too: at the end of a formula, the graph's dtype is the program's.
        """
        call = self.view.calls[root]
        inputs = [value_of(n) for n in root.all_input_nodes]
        floating = {t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point()}
        if call is None or call.target is None or call.name not in self.natives or len(floating) < 2:
            return False
        args, kwargs = _with_values((call.args, dict(call.kwargs)))
        try:
            given = call.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):
            return False
        return isinstance(given, Tensor) and given.dtype == dtype


# Overloads for dimensions with names, whose place among the others is another one in each version of torch.
_NAMES = re.compile(r"[Dd]imname|names")


def overload(packet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The overload of an ATen function that takes these arguments.

    Raises:
        Refused: there is none.
    """
    second = args[1] if len(args) > 1 else None
    names = packet.overloads()
    preferred = ("Tensor", "default") if isinstance(second, fx.Node) else ("Scalar", "default", "Tensor")
    for name in dict.fromkeys((*(n for n in preferred if n in names), *names)):
        found = getattr(packet, name)
        expected = found._schema.arguments
        given = {a.name for a in expected[: len(args)]} | kwargs.keys()
        required = {a.name for a in expected if not a.has_default_value()}
        keywords = {a.name for a in expected[: len(args)] if a.kwarg_only} | (
            kwargs.keys() - {a.name for a in expected}
        )
        if not expected or str(expected[0].type) != "Tensor" or _NAMES.search(name):  # of numbers
            continue
        if len(args) <= len(expected) and required <= given and not keywords and not found._schema.is_mutable:
            return found
    raise Refused(f"ATen has no {packet.__name__} of these arguments")


def _with_values(arguments: Any) -> Any:
    """Arguments of a call with the values of nodes in their place."""
    return fx.node.map_aggregate(arguments, lambda a: value_of(a) if isinstance(a, fx.Node) else a)


def looks(a: Any, gradients: bool) -> Any:
    """What decides how the result of a call looks: a hashable image of arguments, without the elements of tensors."""
    if isinstance(a, Tensor):
        strides = sizes_of(a.stride()) if a.layout == torch.strided else None
        return ("tensor", sizes(a), strides, a.dtype, a.device, a.layout, gradients and a.requires_grad)
    if isinstance(a, torch.SymInt | torch.SymFloat | torch.SymBool):
        return ("symbol", a.node.expr)
    if isinstance(a, tuple | list):
        return tuple([looks(item, gradients) for item in a])
    if isinstance(a, dict):
        return tuple([(k, looks(item, gradients)) for k, item in a.items()])
    if isinstance(a, slice):
        return ("slice", looks((a.start, a.stop, a.step), gradients))
    return (type(a), a)


@dataclass(frozen=True)
class _Like:
    """A tensor of a few elements."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def filled(self) -> Tensor:
        return torch.full(self.shape, 0.5 if self.dtype.is_floating_point else 0, dtype=self.dtype)


def _small(arguments: Any) -> Any:
    """The arguments of a call with few elements in the place of each tensor.

    What is of one size stays so. A symbolic size may be equal to any other, so beside one all sizes become one.
    """
    nodes: list[fx.Node] = []
    fx.node.map_arg(arguments, nodes.append)
    shapes = [t.shape for n in nodes if isinstance(t := value_of(n), Tensor)]
    fixed = all(isinstance(d, int) for shape in shapes for d in shape)

    def size(d: Any) -> int:
        return min(d, 4) if fixed or (isinstance(d, int) and d < 2) else 4

    def small(a: Any) -> Any:
        t = value_of(a) if isinstance(a, fx.Node) else a
        if isinstance(t, Tensor):
            return _Like(tuple(map(size, t.shape)), t.dtype)
        return t if isinstance(t, bool | int | float | str | torch.dtype | list | tuple | None) else 1

    return fx.node.map_aggregate(arguments, small)


def op_of(node: fx.Node) -> Op | None:
    """The op that a node calls, if it is one."""
    return called(node.target)


def order_of(t: Tensor) -> list[int] | None:
    """The strides of the dimensions that have more than one element, as far as they are known; symbolic ones as they
    were when the graph was traced, which no guard is made of."""
    if t.layout != torch.strided:
        return None
    shape, strides = ([a if isinstance(a, int) else a.node.hint for a in of] for of in (t.shape, t.stride()))
    if None in shape or None in strides or 0 in shape:
        return None
    return [stride for size, stride in zip(shape, strides, strict=True) if size > 1]
