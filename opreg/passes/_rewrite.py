"""One graph, rewritten in place."""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from .. import _private
from ..op import Op
from ..registry import of_namespace, registered
from ._match import Match, matches
from ._native import Native, at, by_call, constants_with_grad, native_call
from ._report import Left, Report, Swapped, where
from ._rule import Rule
from .graph.calls import Attribute, Call, value_of
from .graph.view import GraphView
from .normal_form.algebra import rounded
from .normal_form.evaluate import handlers
from .normal_form.values import NEVER, sizes, sizes_of
from .rules.chains import ABSORBERS, scaled

# Calls that a hand-written formula ends in.
_LAST = frozenset({"sum", "mul", "div", "add", "sub", "rsub", "neg", "pow"})
# Calls whose results are taken apart.
_MANY_RESULTS = ("broadcast_tensors", "nll_loss_forward", "nll_loss2d_forward")
_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_DEVICES = {"cpu": "CPU", "cuda": "CUDA"}


class Refused(Exception):
    """A place that is left as it is, and why."""


class Rewriter:
    """Rewrites the graph of one module in place; what it did is in the report."""

    def __init__(
        self, module: fx.GraphModule, rules: Sequence[Rule], report: Report, *, activations: bool = True
    ) -> None:
        self.module, self.graph, self.rules, self.report = module, module.graph, rules, report
        self.activations = activations
        self.view = GraphView(self.graph, module)
        # places that were refused, so that each is named once
        self.refused: dict[str, Left] = {}

    def run(self) -> None:
        for child in self.module.children():
            if isinstance(child, fx.GraphModule):
                Rewriter(child, self.rules, self.report, activations=self.activations).run()
        before = len(self.report.swapped)
        self.compositions()
        self.natives()
        self.report.left.extend(self.refused.values())
        if len(self.report.swapped) > before:
            self.graph.lint()
            self.module.recompile()

    # compositions: hand-written formulas

    def compositions(self) -> None:
        for root in reversed(list(self.graph.nodes)):
            call = self.view.calls.get(root)
            if call is None or call.name not in _LAST:
                continue
            for match in matches(self.rules, self.view, root, self.module):
                try:
                    self.compose(match)
                except Refused as reason:
                    self.leave(match.rule.name, str(reason), root)
                    continue
                self.refused.pop(root.name, None)
                break
            if root in self.view.work.given_up:
                self.leave("a formula", "there are more ways to read it than are tried", root)

    def compose(self, match: Match) -> None:
        root, view = match.root, self.view
        reason = view.disturbed(match.interior, match.tensors.values(), root)
        reason = reason or self.mixed(match) or match.rule.condition(match.arguments)
        if reason:
            raise Refused(reason)
        if match.interior and not saves(match.interior, root):
            raise Refused("all its parts are used elsewhere too: nothing would be saved")
        bound = {**{n: view.holder(t) for n, t in match.tensors.items()}, **match.numbers}
        self.insert(
            root,
            lambda: self.copied(match.rule.calls, bound, match.reduction),
            lambda new: Swapped(_name(new), match.rule.name, where(root)),
        )

    def mixed(self, match: Match) -> str:
        """Why rounding or casts in between might matter."""
        root = value_of(match.root)
        if not isinstance(root, Tensor):
            return "it is of a complex dtype" if self.view.complex(match.root) else ""
        if root.dtype not in _FLOATING:
            return f"it is of dtype {root.dtype}"
        for node in match.interior:
            t = value_of(node)
            if isinstance(t, Tensor) and t.dtype not in (root.dtype, torch.int64, torch.int32, torch.bool):
                return f"its parts are of two dtypes, {root.dtype} and {t.dtype}"
        for name, node in match.tensors.items():
            t = value_of(node)
            if isinstance(t, Tensor) and t.dtype not in (root.dtype, torch.int64, torch.int32):
                return f"{name} is of dtype {t.dtype}, the result of {root.dtype}"
        return ""

    # torch's own calls

    def natives(self) -> None:
        ops = by_call()
        for node in list(self.graph.nodes):
            call = self.view.calls.get(node)
            if call is None:
                continue
            native = native_call(call, ops)
            if native is None or (native.op.inline and not self.activations):
                continue
            try:
                self.take_over(native, node)
            except Refused as reason:
                self.leave(call.name, str(reason), node)

    def take_over(self, native: Native, node: fx.Node) -> None:
        if native.reason:
            raise Refused(native.reason)
        if value_of(node) is None and any(map(self.view.complex, node.all_input_nodes)):
            raise Refused("it is of a complex dtype")
        native = at(native, node, self.view)
        for absorb in ABSORBERS:
            wider = absorb(native, self.view)
            if wider is not None:
                try:
                    if self.absorbed(wider, node, absorb.__doc__ or ""):
                        return
                except Refused:  # what it would absorb stays; the call itself may yet be taken over
                    continue
        self.replace(native, node, f"torch's {self.view.calls[node].name}")  # type: ignore[union-attr]

    def absorbed(self, wider: Native, node: fx.Node, rule: str) -> bool:
        """Replaces a call and its interior, and the product or quotient that follows it if the op computes that."""
        users = list(node.users)
        follower = users[0] if len(users) == 1 else None
        if wider.divided_by is not None:
            if follower is None or not divides_by(self.view, follower, node, wider.divided_by):
                return False
            root = follower
        elif wider.factor != 1 and follower is not None and multiplies_by(self.view, follower, node, 1 / wider.factor):
            root, wider = follower, replace(wider, factor=1.0)
        else:
            root = node
        parts = dict.fromkeys((*wider.interior, node, root))
        if self.view.disturbed(list(parts), wider.arguments.values(), root):
            return False
        if not self.view.one_gradient_mode(parts) or (wider.interior and not saves(wider.interior, node)):
            return False
        self.replace(wider, root, rule)
        return True

    def replace(self, native: Native, node: fx.Node, rule: str) -> None:
        reason = constants_with_grad(native, self.view)
        if reason:
            raise Refused(reason)
        op = native.op

        def make() -> list[fx.Node]:
            arguments = {n: self.attribute(a) if isinstance(a, Attribute) else a for n, a in native.arguments.items()}
            arguments = {n: self.view.holder(a) if isinstance(a, fx.Node) else a for n, a in arguments.items()}
            arguments = {n: self.operand(op, a) if isinstance(a, fx.Node) else a for n, a in arguments.items()}
            if op.accepts and any(not isinstance(value_of(arguments[n]), Tensor) for n in op.accepts if n in arguments):
                from .. import functional

                return [self.graph.call_function(getattr(functional, op.short), (), arguments)]
            new = [self.call(op, arguments)]
            if native.factor != 1:
                new.append(self.aten("call_function", operator.mul, (new[0], native.factor), {}))
            return new

        self.insert(node, make, lambda new: Swapped(op.short, rule, where(node)))

    def operand(self, op: Op, a: fx.Node) -> fx.Node:
        """The tensor itself, where the graph broadcasts it first and the op does that too."""
        call = self.view.calls.get(a)
        if call is None or call.name != "getitem" or op.rule.elements is None:
            return a
        of, index = call.args
        broadcast = self.view.calls.get(of)
        if broadcast is None or broadcast.name != "broadcast_tensors":
            return a
        tensors = broadcast.args[0] if isinstance(broadcast.args[0], list | tuple) else broadcast.args
        found: fx.Node = tensors[index]
        return found

    def call(self, op: Op, arguments: Mapping[str, Any]) -> fx.Node:
        """A call of the op, positional as far as its arguments are given in order."""
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
        owner: Any = self.module
        *path, last = a.path.split(".")
        for step in path:
            owner = getattr(owner, step)
        return None if getattr(owner, last) is None else self.graph.get_attr(a.path)

    # the surgery

    def insert(
        self, root: fx.Node, make: Callable[[], list[fx.Node]], swapped: Callable[[Sequence[fx.Node]], Swapped]
    ) -> None:
        """Puts new nodes in the place of one; raises ``Refused``, and changes nothing, where they do not fit."""
        call = self.view.calls[root]
        assert call is not None
        written = call.written
        if call.in_place and (
            not isinstance(written, fx.Node) or self.view.tensor[root] is root or self.view.aliased(written, root)
        ):
            raise Refused("it writes in place to a tensor that others may see")
        with self.graph.inserting_before(root):
            new = make()
        try:
            last = new[-1]
            self.kept(new, written, root)
            self.annotate(new, root)
            self.fits(last, root)
        except Refused:
            for n in reversed(new):
                self.graph.erase_node(n)
            raise
        if isinstance(written, fx.Node):
            for same in self.view.names[self.view.tensor[written]]:
                for u in list(same.users):
                    if self.view.position.get(u, -1) > self.view.position[root]:
                        u.replace_input_with(same, last)
        entry = swapped(new)
        root.replace_all_uses_with(last)
        name = root.name
        self.graph.erase_node(root)
        last.name = name
        self.view = GraphView(self.graph, self.module, self.view)
        self.fold_reduction(last)
        self.sweep()
        self.view = GraphView(self.graph, self.module, self.view)
        self.report.swapped.append(entry)

    def kept(self, new: Sequence[fx.Node], written: Any, root: fx.Node) -> None:
        """What the op keeps for its backward pass stays what it was, though what torch keeps may have been something
        else: its result perhaps."""
        inputs = {n for made in new for n in made.all_input_nodes if n in self.view.position}
        if any(map(self.view.reshaped, inputs)):
            raise Refused("one of its tensors gets another shape in place")
        inputs.discard(written)
        if all(self.view.requires_grad(n) is False for n in inputs):
            return
        if self.view.written_later(inputs, root):
            raise Refused("one of its tensors is written to later, and the op keeps it for the backward pass")

    def annotate(self, new: Sequence[fx.Node], root: fx.Node) -> None:
        """Metadata of the old node for the new ones, and what a fake run says of them."""
        known = value_of(root) is not None
        key = "val" if "val" in root.meta else "example_value"
        for n in new:
            n.meta = {k: v for k, v in root.meta.items() if k not in ("val", "example_value", "tensor_meta")}
            if known:
                n.meta[key] = self.fake(n)
                if "tensor_meta" in root.meta and isinstance(n.meta[key], Tensor):
                    n.meta["tensor_meta"] = _private.tensor_metadata(n.meta[key])

    def fake(self, n: fx.Node) -> Any:
        """What a fake run of a node gives."""
        if n.op == "get_attr":
            owner: Any = self.module
            for step in str(n.target).split("."):
                owner = getattr(owner, step)
            return owner
        args, kwargs = fx.node.map_aggregate((n.args, n.kwargs), lambda a: value_of(a) if isinstance(a, fx.Node) else a)
        missing = any(a is None for a in pytree.tree_leaves([value_of(i) for i in n.all_input_nodes]))
        if missing:
            return None
        try:
            if isinstance(n.target, str):
                return getattr(args[0], n.target)(*args[1:], **kwargs)
            return n.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            raise Refused(str(error).splitlines()[0]) from None

    def fits(self, new: fx.Node, root: fx.Node) -> None:
        """Shape, dtype and device are those of the old value; the op has a kernel there, and takes the options."""
        before, after = value_of(root), value_of(new)
        if not isinstance(before, Tensor) or not isinstance(after, Tensor):
            return
        op = _op_of(new)
        if before.device.type not in _DEVICES:
            raise Refused(f"there is no kernel for {before.device.type}")
        if op is not None and not _private.has_kernel(op.qualname, _DEVICES[before.device.type]):
            raise Refused(f"{op.short} has no kernel for {before.device.type} in this library")
        if before.dtype != after.dtype and op is not None and self.misreported(root, before.dtype):
            before = before.to(after.dtype)
        if before.dtype != after.dtype and op is not None and op.is_loss:
            new.kwargs = {**new.kwargs, "dtype": before.dtype}
            after = self.fake(new)
            new.meta["val" if "val" in new.meta else "example_value"] = after
        if (sizes(before), before.dtype, before.device) != (sizes(after), after.dtype, after.device):
            was, would = (f"{t.dtype} of shape {list(t.shape)}" for t in (before, after))
            raise Refused(f"the op would give {would}, not {was}")
        if op is not None:
            self.rehearse(op, new)

    def misreported(self, root: fx.Node, dtype: torch.dtype) -> bool:
        """Is the graph's dtype for a native loss of tensors of several dtypes only what torch's fakes say of it?

        Some of them promote, and the kernels do not. The op gives what the kernel gives, and so do programs that are
        not rewritten. Under autocast, the graph knows better than a fake run here.
        """
        call = self.view.calls[root]
        inputs = [value_of(n) for n in root.all_input_nodes]
        floating = {t.dtype for t in inputs if isinstance(t, Tensor) and t.is_floating_point()}
        if call is None or call.target is None or len(floating) < 2:
            return False
        args, kwargs = fx.node.map_aggregate(
            (call.args, dict(call.kwargs)), lambda a: value_of(a) if isinstance(a, fx.Node) else a
        )
        try:
            given = call.target(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError):
            return False
        return isinstance(given, Tensor) and given.dtype == dtype

    def rehearse(self, op: Op, new: fx.Node) -> None:
        """The kernel's own opinion of the options, asked with a few elements: fakes do not look at them."""
        if op.kernels is not None:
            return

        def small(a: Any) -> Any:
            t = value_of(a) if isinstance(a, fx.Node) else a
            if not isinstance(t, Tensor):
                return t if isinstance(t, bool | int | float | str | torch.dtype | list | tuple | None) else 1
            shape = [min(d, 4) if isinstance(d, int) else 2 for d in t.shape]
            return torch.full(shape, 0.5 if t.is_floating_point() else 0, dtype=t.dtype)

        with _private.without_fake_mode(), torch.no_grad():
            args, kwargs = fx.node.map_aggregate((new.args, new.kwargs), small)
            try:
                new.target(*args, **kwargs)  # type: ignore[operator]
            except RuntimeError as error:
                text = str(error).splitlines()[0]
                if text.startswith(f"{op.short}: expected"):
                    raise Refused(text) from None

    def copied(self, traced: fx.Graph, bound: Mapping[str, Any], reduction: str) -> list[fx.Node]:
        """The calls of a traced replacement, in this graph, and a reduction of their result."""
        new: list[fx.Node] = []
        values: dict[fx.Node, Any] = {}
        for n in traced.nodes:
            if n.op == "placeholder":
                values[n] = bound[str(n.target)]
            elif n.op == "output":
                continue
            else:
                target = n.target.default if isinstance(n.target, torch._ops.OpOverloadPacket) else n.target
                args, kwargs = fx.node.map_aggregate(
                    (n.args, n.kwargs), lambda a: values[a] if isinstance(a, fx.Node) else a
                )
                values[n] = self.aten(n.op, target, args, dict(kwargs))
                new.append(values[n])
        if reduction:
            op = _op_of(new[-1])
            if op is not None and self.reducible(op, new[-1], reduction):
                arguments = dict(zip(op.arguments, new[-1].args, strict=False)) | dict(new[-1].kwargs)
                self.graph.erase_node(new.pop())
                new.append(self.call(op, {**arguments, "reduction": reduction}))
            else:
                new.append(self.aten("call_function", getattr(torch, reduction), (new[-1],), {}))
        return new

    def aten(self, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.Node:
        """A call in the graph's own dialect: ATen where the graph holds nothing else."""
        plain = any("val" in n.meta for n in self.graph.nodes)
        if plain and not isinstance(target, torch._ops.OpOverload):
            name = target if isinstance(target, str) else target.__name__.replace("truediv", "div")
            packet = getattr(torch.ops.aten, name)
            second = args[1] if len(args) > 1 else None
            overloads = packet.overloads()
            preferred = "Tensor" if isinstance(second, fx.Node) or "Scalar" not in overloads else "Scalar"
            target = getattr(packet, preferred if preferred in overloads else overloads[0])
            op = "call_function"
        return self.graph.create_node(op, target, args, kwargs)

    def fold_reduction(self, new: fx.Node) -> None:
        """The mean or the sum that follows, where the op can do it in its one pass."""
        op, users = _op_of(new), list(new.users)
        if op is None or len(users) != 1:
            return
        user = users[0]
        call = self.view.calls.get(user)
        if call is None or call.name not in ("mean", "sum") or call.in_place or len(call.args) != 1 or call.kwargs:
            return
        before, after = value_of(user), value_of(new)
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype != after.dtype:
            return
        if not self.reducible(op, new, call.name) or not self.view.one_gradient_mode((new, user)):
            return
        if self.view.disturbed((new,), [self.view.current(n, new) for n in new.all_input_nodes], user):
            return
        bound = dict(zip(op.arguments, new.args, strict=False)) | dict(new.kwargs)
        with self.graph.inserting_before(user):
            folded = self.call(op, {**bound, "reduction": call.name})
        folded.meta = dict(user.meta)
        user.replace_all_uses_with(folded)
        name = user.name
        self.graph.erase_node(user)
        self.graph.erase_node(new)
        folded.name = name

    def reducible(self, op: Op, node: fx.Node, reduction: str) -> bool:
        """Is this reduction of the op's elements the op's own? Its mean may be that of what is not ignored alone."""
        # of an op from elsewhere nobody knows what its mean divides by
        if op not in of_namespace() or not op.reduces or self.reduction(op, node) != "none":
            return False
        if reduction == "sum" or not {"ignore_index", "target_lengths"} & set(op.arguments):
            return True
        return self.ignores_nothing(op, node)

    @staticmethod
    def ignores_nothing(op: Op, node: fx.Node) -> bool:
        bound = dict(zip(op.arguments, node.args, strict=False)) | dict(node.kwargs)
        by_sample = op.short == "dice_loss" and bound.get("batch") is not True  # its mean is that of all samples
        return by_sample or bool(bound.get("ignore_index") == NEVER and bound.get("weight") is None)

    @staticmethod
    def reduction(op: Op, node: fx.Node) -> str:
        bound = dict(zip(op.arguments, node.args, strict=False)) | dict(node.kwargs)
        return str(bound.get("reduction", op.defaults["reduction"]))

    def sweep(self) -> None:
        """Erases what nobody uses any more, in-place calls on tensors of their own too."""
        changed, writing = True, {w.node: w for w in self.view.writes}
        while changed:
            changed = False
            for node in reversed(list(self.graph.nodes)):
                call = self.view.calls.get(node)
                if node.users or call is None or call.name == "setitem":
                    continue
                if call.in_place:
                    written = call.written
                    if (
                        not isinstance(written, fx.Node)
                        or set(written.users) != {node}
                        or len(writing[node].tensors) > 1
                        or self.view.aliased(written, node)
                    ):
                        continue
                elif not _pure(call) or node in writing:
                    continue
                self.graph.erase_node(node)
                changed = True

    def leave(self, what: str, why: str, node: fx.Node) -> None:
        self.refused.setdefault(node.name, Left(what, why, where(node)))


def saves(interior: Iterable[fx.Node], root: fx.Node) -> bool:
    """Does something of the interior go, when the root does?"""
    inside = {*interior, root}
    return any(set(n.users) <= inside for n in interior)


def multiplies_by(view: GraphView, follower: fx.Node, node: fx.Node, number: float) -> bool:
    """Is the user of a node its product with this number?"""
    of, factor, _ = scaled(view, follower)
    return of is node and rounded(factor) == rounded(number)


def divides_by(view: GraphView, follower: fx.Node, node: fx.Node, count: Any) -> bool:
    """Is the user of a node its quotient by this number, a size perhaps?"""
    call = view.calls.get(follower)
    if call is None or call.name != "div" or call.in_place or len(call.args) != 2 or call.kwargs:
        return False
    by = call.args[1]
    by = value_of(by) if isinstance(by, fx.Node) else by
    if call.args[0] is not node or not isinstance(by, int | torch.SymInt):
        return False
    return sizes_of((by,)) == sizes_of((count,))


def _pure(call: Call) -> bool:
    """Has a call no effect but its result? Of torch's, all that a rewrite can have orphaned."""
    return call.name in handlers or call.name in by_call() or call.name in _MANY_RESULTS


def _op_of(node: fx.Node) -> Op | None:
    return next((op for op in registered() if node.target is op.value), None)


def _name(new: Sequence[fx.Node]) -> str:
    """What a report calls these: by the op among them."""
    return next((op.short for n in new if (op := _op_of(n)) is not None), str(new[-1].target))
