"""The rewrite of one graph, in place: first hand-written formulas, then torch's own calls."""

import itertools
import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..op import Op
from ..registry import of_namespace
from ._native import Native, Viewed, at, by_call, constants_with_grad, native_call
from ._report import Left, Report, Swapped, line_of, where
from ._rule import NearMiss, Rule, no_objection
from .graph.breaks import Break
from .graph.calls import Attribute, Call, sizes_of, spelled_elsewhere, value_of
from .graph.surgery import Refused, Surgery, op_of
from .graph.view import GraphView
from .normal_form.algebra import rounded
from .normal_form.evaluate import handlers
from .normal_form.values import NEVER
from .normal_form.vocabulary import words
from .rules import DOMAINS, LIBRARIES, RULES
from .rules.chains import CHAINS, HEADS, scaled
from .search.match import Match, argument
from .search.pool import Pool
from .search.search import matches

# The last call of a hand-written formula is one of these, or that of a pattern that is no rule of opreg's own.
_LAST = frozenset(
    {"sum", "mean", "mul", "div", "add", "sub", "rsub", "neg", "pow", "where", "squeeze", "select", "getitem", "index"}
    | {"square", "abs", "relu", "clamp", "clamp_min", "log_sigmoid", "softplus", "gather", "dot"}
    | {"maximum", "minimum", "max", "min"}
)
# Calls between the elements of a loss and their mean or sum.
_BEFORE_A_REDUCTION = frozenset(
    {"mul", "div", "neg", "where", "masked_fill", "masked_select", "getitem", "index", "reshape", "flatten", "squeeze"}
    | {"unsqueeze", "contiguous", "to", "float"}
)
# Calls that read the shape of a tensor.
OF_SHAPES = frozenset({"size", "dim", "numel"})
# Calls with several results. They are no functions of elements, so the algebra does not know them.
_MANY_RESULTS = ("broadcast_tensors", "nll_loss_forward", "nll_loss2d_forward")
# The call before a head's cross entropy.
_HEAD = ("linear",)
# Functions that say nothing of a loss: parts and views of tensors, indices, the sums of a layer.
# fmt: off
_OF_ANYBODY = frozenset({
    "component", "all but", "expanded", "transposed", "arange", "sum", "mean", "constant", "truncated", "one_hot",
    "eye",
})
# fmt: on
_HALF = (torch.bfloat16, torch.float16)
_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class Rewriter:
    """Rewrites the graph of one module, and the graphs of the modules in it; the report gets what was done."""

    def __init__(
        self,
        module: fx.GraphModule,
        rules: Sequence[Rule | NearMiss],
        report: Report,
        *,
        activations: bool = True,
        compiled: bool = False,
        values_checked: bool = False,
        heads: bool = False,
        ending: Break | None = None,
        written_after: Collection[str] = (),
    ) -> None:
        self.module, self.graph, self.rules, self.report = module, module.graph, rules, report
        # compiled: the graph goes on to Inductor, which inlines some of the ops
        self.activations, self.compiled = activations, compiled
        # values_checked: the caller sees to it that the values of a call lie in its domain
        self.values_checked = values_checked
        self.last = _LAST.union(rule.last_call for rule in rules if rule not in RULES)
        # heads: cross entropy over a linear layer becomes one op with it
        self.heads = heads
        # ending: the break after the graph, if its function goes on in another one
        self.ending = ending
        # the rules of formulas that are a loss wherever they are
        self.matrices = Pool.of(rule for rule in rules if of_matrices(rule))
        self.elements = Pool.of(rule for rule in rules if not of_matrices(rule))
        self.rare = Pool.of(rule for rule in self.elements.formulas if not rule.common)
        self.native_ops = by_call()
        # written_after: the names of the inputs to which an exported program writes after its graph
        self.surgery = Surgery(module, self.pure, self.native_ops, written_after)
        # by the name of the node, so that the report has each place once; and how many calls the refused formula has
        self.refused: dict[str, tuple[int, Left]] = {}

    @property
    def view(self) -> GraphView:
        return self.surgery.view

    def pure(self, call: Call) -> bool:
        """Has a call no effect but its result? Known of all calls that a swap can leave without a user."""
        known = (*_MANY_RESULTS, *_HEAD, *OF_SHAPES)
        return call.name in handlers or call.name in self.native_ops or call.name in known

    def run(self) -> None:
        for child in self.module.children():
            if isinstance(child, fx.GraphModule):
                options: dict[str, Any] = {
                    "activations": self.activations,
                    "compiled": self.compiled,
                    "heads": self.heads,
                }
                Rewriter(child, self.rules, self.report, **options).run()
        before = len(self.report.swapped)
        self.compositions()
        self.natives()
        self.near_misses()
        self.report.left.extend(left for _, left in self.refused.values())
        self.across_a_break()
        if len(self.report.swapped) > before:
            self.graph.lint()
            self.module.recompile()

    # hand-written formulas

    def compositions(self) -> None:
        for root in reversed(list(self.graph.nodes)):
            call = self.view.calls.get(root)
            if call is None or call.name not in self.last:
                continue
            reduced = call.name in ("mean", "sum") or reduced_later(self.view, root)
            found = matches(self.elements if reduced else self.rare, self.view, root)
            held = words(self.view, root)
            if held is None or "matmul" in held:  # a formula of a matrix before that of its elements, which is a part
                found = itertools.chain(matches(self.matrices, self.view, root), found)
            for match in found:
                try:
                    self.compose(match)
                except Refused as reason:
                    if not match.formula.common:
                        self.leave(match.formula.name, str(reason), root, len(match.interior))
                    continue
                self.refused.pop(root.name, None)
                break
        given_up = (n for n in self.view.work.given_up if n in self.view.position)  # otherwise a part of it was found
        for root in sorted(given_up, key=self.view.position.__getitem__):
            self.leave("a formula", "there are more ways to read it than are tried: call the op", root)

    def compose(self, match: Match[Rule | NearMiss]) -> None:
        rule, root, view = match.formula, match.root, self.view
        tensors, views = dict(match.tensors), tuple[fx.Node, ...]()
        if isinstance(rule, Rule) and rule.logits:
            tensors[rule.logits], views = before_sigmoid(view, tensors[rule.logits], root)
        interior = (*match.interior, *views)
        read = (*tensors.values(), *(t for t, _ in match.factors))
        reason = view.disturbed(interior, read, root) or self.mixed(match)
        if not reason:
            reason = rule.why if isinstance(rule, NearMiss) else rule.objection(match.arguments)
        if not reason and rule.cases and not match.arguments[rule.cases].values.binary:
            t = match.tensors[rule.cases].name
            reason = (
                f"it is for {rule.cases} of 0 and 1 only, and the graph does not show that {t} holds no others: "
                f"make it of a comparison, ({t} > 0.5).to(dtype)"
            )
        if reason or isinstance(rule, NearMiss):
            raise Refused(reason)
        for node in rule.replacement_graph.nodes:
            self.require_gain(op_of(node), match.tensors.values())
            self.require_constants(node, match)
        if interior and not saves(view, interior, root):
            raise Refused("all its parts are used elsewhere too: nothing would be saved")
        going = leaving(view, interior, root)
        for node in interior:
            if view.calls[node].name in rule.alone and node not in going:  # type: ignore[union-attr]
                raise Refused(f"{node.name} is used elsewhere too, and the op would compute it again")
        bound = {**{n: view.holder(t) for n, t in tensors.items()}, **match.numbers}

        def make() -> list[fx.Node]:
            made = self.viewed(view.holder(tensors[rule.logits]), views) if rule.logits else []
            given = {**bound, rule.logits: made[-1]} if made else bound
            new = self.reduced(self.surgery.copied(rule.replacement_graph, given), match.reduction)
            return self.times(kept_half([*made, *new], root), match)

        self.swap(root, make, rule.name)

    def viewed(self, of: fx.Node, views: Sequence[fx.Node]) -> list[fx.Node]:
        """The views of another tensor than the first of these nodes, which is the one that they are views of."""
        new, values = list[fx.Node](), {views[0]: of} if views else {}
        for v in views[1:]:
            args, kwargs = fx.node.map_arg((v.args, v.kwargs), lambda n: values.get(n, n))
            values[v] = self.graph.create_node(v.op, v.target, args, kwargs)
            new.append(values[v])
        return new

    def mixed(self, match: Match[Any]) -> str:
        """Why the dtypes of a formula forbid a swap: rounding in between may matter. Empty: they don't.

        Autocast computes parts of a float32 formula in bfloat16. The op, which has no such parts, loses nothing by it.
        """
        root = value_of(match.root)
        if not isinstance(root, Tensor):
            return "it is of a complex dtype" if self.view.complex(match.root) else ""
        if root.dtype not in _FLOATING:
            return f"it is of dtype {root.dtype}"
        alike = (root.dtype, torch.bfloat16) if root.dtype == torch.float32 else (root.dtype,)
        for node in match.interior:
            t = value_of(node)
            of_numbers = isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())
            if of_numbers and t.dtype not in alike:
                return f"its parts are of two dtypes, {root.dtype} and {t.dtype}"
        for name, node in match.tensors.items():
            t = value_of(node)
            if isinstance(t, Tensor) and t.dtype not in (*alike, torch.int64, torch.int32):
                return f"{name} is of dtype {t.dtype}, the result of {root.dtype}"
        return ""

    def require_gain(self, op: Op | None, operands: Iterable[fx.Node]) -> None:
        """Refuses what Inductor would take apart again."""
        if op is None or not self.compiled:
            return
        for t in map(value_of, operands):
            if isinstance(t, Tensor) and op.fuses_on(t.device.type):
                raise Refused(f"Inductor fuses this: on {t.device.type}, {op.short} would be a kernel of its own")

    def require_constants(self, node: fx.Node, match: Match[Any]) -> None:
        """Refuses a call of an op, in a replacement, that would take for a constant what requires grad.

        A formula may be the same in two tensors where the op is not: then another way to read it may do.
        """
        op = op_of(node)
        if op is None:
            return
        for name, a in given(op, node).items():
            if name not in op.tensor_arguments or name in (*op.differentiable, *op.detached):
                continue
            for source in inputs_of(a):
                tensor = match.tensors.get(source)
                if tensor is not None and self.view.requires_grad(tensor):
                    raise Refused(f"{tensor.name} requires grad, and {name} is a constant of {op.short}")

    def near_misses(self) -> None:
        """Tells of formulas that nearly are a known one, and where they differ: of each line of source, the nearest."""
        told = {left.where for _, left in self.refused.values()} | {s.where for s in self.report.swapped}
        for root, near in sorted(self.view.work.nearest.items(), key=lambda found: -found[1].likeness):
            if root in self.view.position and where(root) not in told:
                told.add(where(root))
                self.leave(near.name, near.difference, root)

    def across_a_break(self) -> None:
        """Tells that a formula may go on behind the break after the graph, if what is handed over is part of one."""
        if self.ending is None:
            return
        over = list(self.graph.output_node().all_input_nodes)
        found = next((n for n in over if (words(self.view, n) or frozenset()) - _OF_ANYBODY), None)
        if found is None:
            return
        place = line_of(self.ending.lines) or where(found)
        self.report.left.append(
            Left(
                "a formula that a graph break divides",
                f"{self.ending.cause}, so its parts are in several graphs: {self.ending.remedy}, or call the op",
                place,
            )
        )

    # torch's own calls

    def natives(self) -> None:
        for node in list(self.graph.nodes):
            call = self.view.calls.get(node)
            if call is None:
                continue
            native = native_call(call, self.native_ops)
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
        self.require_gain(native.op, node.all_input_nodes)
        if spelled_elsewhere(self.view.calls[node].target):  # type: ignore[union-attr]
            self.require_domain(native)
        native = at(native, node, self.view)
        for name, chain in {**(HEADS if self.heads else {}), **CHAINS}.items():
            wider = chain(native, self.view)
            if wider is not None:
                try:
                    if self.replace_chain(wider, node, name):
                        return
                except Refused:  # the chain stays, but the call alone may still be taken over
                    continue
        self.replace(native, node, f"torch's {self.view.calls[node].name}")  # type: ignore[union-attr]

    def require_domain(self, native: Native) -> None:
        """Refuses a function of another library where that is not the op."""
        arguments = {
            n: argument(self.view, a) if isinstance(a, fx.Node) else a
            for n, a in {**native.op.defaults, **native.arguments}.items()
        }
        domain = DOMAINS.get(native.op.short)
        objection = LIBRARIES.get(native.op.short, no_objection)  # an op of somebody's own has none
        reason = objection(arguments)
        if not reason and domain is not None and not self.values_checked:
            reason = domain.why
        if reason:
            raise Refused(reason)

    def replace_chain(self, wider: Native, node: fx.Node, rule: str) -> bool:
        """Replaces a chain of calls, and the product or quotient that follows it if the op computes that too.

        False: something else needs a part of the chain, or may change it.
        """
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
        read = [a.of if isinstance(a, Viewed) else a for a in wider.arguments.values()]
        if self.view.disturbed(list(parts), read, root):
            return False
        if not self.view.one_gradient_mode(parts) or (wider.interior and not saves(self.view, wider.interior, node)):
            return False
        self.replace(wider, root, rule)
        return True

    def replace(self, native: Native, node: fx.Node, rule: str) -> None:
        reason = constants_with_grad(native, self.view)
        if reason:
            raise Refused(reason)
        op = native.op

        def make() -> list[fx.Node]:
            arguments = {n: self.operand(op, a) for n, a in native.arguments.items()}
            views = list[fx.Node]()
            for n, a in native.arguments.items():
                if isinstance(a, Viewed):
                    views += self.viewed(self.view.holder(a.of), a.views)
                    arguments[n] = views[-1]
            if op.accepts and any(not isinstance(value_of(arguments[n]), Tensor) for n in op.accepts if n in arguments):
                from .. import functional

                return [self.graph.call_function(getattr(functional, op.short), (), arguments)]
            new = kept_half([*views, self.surgery.call(op, arguments)], node)
            if native.factor != 1:
                new.append(self.surgery.in_dialect("call_function", operator.mul, (new[-1], native.factor), {}))
            return new

        self.swap(node, make, rule, op.short)

    def swap(self, root: fx.Node, make: Callable[[], list[fx.Node]], rule: str, name: str = "") -> None:
        """Puts new nodes in the place of one, folds a reduction that follows, and reports it.

        The report's name for the new nodes is that of the op among them, unless another is given.
        """
        place = where(root)
        new = self.surgery.exchange(root, make)
        name = name or next((op.short for n in new if (op := op_of(n)) is not None), str(new[-1].target))
        self.fold_reduction(new[-1])
        self.surgery.sweep()
        self.report.swapped.append(Swapped(name, rule, place))

    def operand(self, op: Op, a: Any) -> Any:
        """What an op is given for an argument of torch's call.

        Where the graph broadcasts a tensor first and the op does that too, it is given the tensor itself.
        """
        if isinstance(a, Attribute):
            a = self.surgery.attribute(a)
        if not isinstance(a, fx.Node):
            return a
        a = self.view.holder(a)
        call = self.view.calls.get(a)
        if call is None or call.name != "getitem" or op.rule.elements is None:
            return a
        of, index = call.args
        broadcast = self.view.calls.get(of)
        if broadcast is None or broadcast.name != "broadcast_tensors":
            return a
        tensors = broadcast.args[0] if isinstance(broadcast.args[0], list | tuple) else broadcast.args
        return tensors[index]

    def times(self, new: list[fx.Node], match: Match[Any]) -> list[fx.Node]:
        """The nodes with the factors of a match after them."""
        functions = {1: operator.mul, -1: operator.truediv}
        if match.factor == -1:
            new = [*new, self.surgery.in_dialect("call_function", operator.neg, (new[-1],), {})]
        elif match.factor != 1:
            new = [*new, self.surgery.in_dialect("call_function", operator.mul, (new[-1], match.factor), {})]
        for t, exponent in match.factors:
            of = new[-1], self.view.holder(t)
            new = [*new, self.surgery.in_dialect("call_function", functions[int(exponent)], of, {})]
        return new

    # reductions

    def reduced(self, new: list[fx.Node], reduction: str) -> list[fx.Node]:
        """The nodes with the mean or the sum of the last one's elements, which is the op's own where it can be."""
        if not reduction:
            return new
        last = new[-1]
        op = op_of(last)
        if op is None or not self.reducible(op, last, reduction):
            return [*new, self.surgery.in_dialect("call_function", getattr(torch, reduction), (last,), {})]
        arguments = given(op, last)
        self.graph.erase_node(last)
        return [*new[:-1], self.surgery.call(op, {**arguments, "reduction": reduction})]

    def fold_reduction(self, new: fx.Node) -> None:
        """Makes the mean or the sum that follows an op its reduction, so that both are one pass over memory."""
        op, user = op_of(new), self.total(new)
        if op is None or user is None:
            return
        call = self.view.calls[user]
        assert call is not None
        before, after = value_of(user), value_of(new)
        if isinstance(before, Tensor) and isinstance(after, Tensor) and before.dtype != after.dtype:
            return
        if not self.reducible(op, new, call.name) or not self.view.one_gradient_mode((new, user)):
            return
        if self.view.disturbed((new,), [self.view.current(n, new) for n in new.all_input_nodes], user):
            return
        with self.graph.inserting_before(user):
            folded = self.surgery.call(op, {**given(op, new), "reduction": call.name})
        folded.meta = dict(user.meta)
        self.surgery.supersede(user, [folded])
        self.surgery.sweep()  # what was between the two
        self.surgery.erase(new)

    def total(self, node: fx.Node) -> fx.Node | None:
        """The mean or the sum of all elements of a node that nobody else reads, perhaps taken over one dimension after
        the other."""
        name = ""
        while len(node.users) == 1:
            (node,) = node.users
            call = self.view.calls.get(node)
            if call is None or call.in_place or call.kwargs.keys() - {"dim", "axis", "keepdim"}:
                return None
            if call.name in ("mean", "sum") and name in ("", call.name):
                name = call.name
                if len(call.args) == 1 and not call.kwargs:
                    return node
            elif call.name not in ("reshape", "flatten", "squeeze", "unsqueeze"):
                return None
        return None

    def reducible(self, op: Op, node: fx.Node, reduction: str) -> bool:
        """Is the mean or the sum of an op's elements what the op gives for that reduction?

        Its mean may be one over what is not ignored. What an op from elsewhere divides by, nobody knows.
        """
        if op not in of_namespace() or not op.reduces:
            return False
        arguments = given(op, node)
        if arguments.get("reduction", op.defaults["reduction"]) != "none":
            return False
        if reduction == "sum" or not {"ignore_index", "target_lengths"} & set(op.arguments):
            return True
        if op.short == "dice_loss" and arguments.get("batch") is not True:
            return True  # nothing ignores a whole sample
        return bool(arguments.get("ignore_index") == NEVER and arguments.get("weight") is None)

    def leave(self, what: str, why: str, node: fx.Node, calls: int = 0) -> None:
        """Notes why a place stays. Of several formulas that end there, the longest one tells most."""
        before = self.refused.get(node.name)
        if before is None or before[0] < calls:
            self.refused[node.name] = calls, Left(what, why, where(node))


def kept_half(new: list[fx.Node], root: fx.Node) -> list[fx.Node]:
    """New nodes whose losses are of 16 bits where the root is: autocast would make float32 of them."""
    result = value_of(root)
    if isinstance(result, Tensor) and result.dtype in _HALF:
        for n in new:
            op = op_of(n)
            if op is not None and op.is_loss:
                n.kwargs = {**n.kwargs, "dtype": result.dtype}
    return new


def of_matrices(rule: Rule | NearMiss) -> bool:
    return isinstance(rule, Rule) and bool(rule.alone)


def leaving(view: GraphView, interior: Iterable[fx.Node], root: fx.Node) -> set[fx.Node]:
    """The root, and the nodes of the interior that go together with it, since all their users go."""
    going = {root}

    def goes(user: fx.Node) -> bool:
        """Also what reads a shape, for nodes that go."""
        return user in going or (reads_shapes(view, user) and all(map(goes, user.users)))

    for n in sorted(interior, key=view.position.__getitem__, reverse=True):
        if all(map(goes, n.users)):
            going.add(n)
    return going


def reads_shapes(view: GraphView, node: fx.Node) -> bool:
    """Is a node the shape of a tensor, a part of it, its dtype or device?"""
    call = view.calls.get(node)
    if node.target is getattr and call is None:
        return True
    if call is not None and call.name == "getitem" and isinstance(node.args[0], fx.Node):
        return reads_shapes(view, node.args[0])
    return call is not None and call.name in OF_SHAPES


def saves(view: GraphView, interior: Iterable[fx.Node], root: fx.Node) -> bool:
    return len(leaving(view, interior, root)) > 1


# Views, whose elements are elements of their one tensor.
_VIEWS = frozenset(
    {"getitem", "slice", "select", "narrow", "reshape", "flatten", "squeeze", "unsqueeze", "contiguous", "unflatten"}
    | {"permute", "transpose", "movedim", "moveaxis"}
)


def before_sigmoid(view: GraphView, node: fx.Node, root: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The argument of the sigmoid that a node is a view of; the sigmoid, and the views in between.

    The root is computed with gradients where these are.

    Raises:
        Refused: it is no view of a sigmoid.
    """
    views = [node]
    while len(views) < 8:
        call = view.calls.get(views[0])
        inputs = list(call.inputs()) if call is not None and not call.in_place else []
        if call is None or len(inputs) != 1 or call.args[:1] != (inputs[0],):
            break
        of = view.current(inputs[0], views[0])
        if call.name == "sigmoid" and alike(of, views[0]) and view.one_gradient_mode((*views, root)):
            return of, tuple(views)
        if call.name not in _VIEWS or of is not inputs[0]:
            break
        views.insert(0, of)
    raise Refused(
        "its input is a probability, and the op takes logits: call it with these where a sigmoid made it; of a softmax "
        "there is generalized_dice_loss alone"
    )


def alike(a: fx.Node, b: fx.Node) -> bool:
    """Are two tensors of one dtype, as far as the graph says?"""
    values = [value_of(n) for n in (a, b)]
    return not all(isinstance(v, Tensor) for v in values) or values[0].dtype == values[1].dtype


def reduced_later(view: GraphView, node: fx.Node, steps: int = 4) -> bool:
    """Does the mean or the sum of a node's elements follow, perhaps with weights or under a mask?"""
    for user in node.users:
        call = view.calls.get(user)
        name = "" if call is None else call.name
        if name in ("mean", "sum") or (name in _BEFORE_A_REDUCTION and steps and reduced_later(view, user, steps - 1)):
            return True
    return False


def multiplies_by(view: GraphView, follower: fx.Node, node: fx.Node, number: float) -> bool:
    """Is the user of a node its product with a number?"""
    of, factor, _ = scaled(view, follower)
    return of is node and rounded(factor) == rounded(number)


def divides_by(view: GraphView, follower: fx.Node, node: fx.Node, count: Any) -> bool:
    """Is the user of a node its quotient by a number, which may be a symbolic size?"""
    call = view.calls.get(follower)
    if call is None or call.name != "div" or call.in_place or len(call.args) != 2 or call.kwargs:
        return False
    by = call.args[1]
    by = value_of(by) if isinstance(by, fx.Node) else by
    if call.args[0] is not node or not isinstance(by, int | torch.SymInt):
        return False
    return sizes_of((by,)) == sizes_of((count,))


def inputs_of(value: Any) -> set[str]:
    """The names of a replacement's inputs of which a value in it is computed."""
    if not isinstance(value, fx.Node):
        return set()
    if value.op == "placeholder":
        return {str(value.target)}
    return {name for source in value.all_input_nodes for name in inputs_of(source)}


def given(op: Op, node: fx.Node) -> dict[str, Any]:
    """The arguments that a node gives to an op, by name."""
    return dict(zip(op.arguments, node.args, strict=False)) | dict(node.kwargs)
