"""The normal form of what a node computes: calls of torch as operations of the algebra."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from . import _algebra as algebra
from ._algebra import Poly, atom, constant
from ._calls import Attribute, Call, resolve, value_of


class Opaque(Exception):
    """A node that the algebra does not know."""


Sizes = tuple[Any, ...]


@dataclass(frozen=True)
class Value:
    """An elementwise function of leaves that are all of the shape ``base``, seen as of the shape ``shape``.

    Both are None where the shapes are not known.
    """

    poly: Poly
    base: Sizes | None
    shape: Sizes | None

    @property
    def scalar(self) -> bool:
        return self.base == ()


@dataclass(frozen=True)
class Vector:
    """Values beside each other along the last dimension: corners of boxes."""

    components: tuple[Value, ...]


@dataclass(frozen=True)
class Masked:
    """The elements of a value where a mask holds."""

    value: Value
    mask: Value


def sizes(value: Any) -> Sizes | None:
    """Sizes that can be compared without a guard: of a symbolic one its expression."""
    if not isinstance(value, Tensor):
        return None
    return tuple(d if isinstance(d, int) else d.node.expr for d in value.shape)


def number(x: float) -> Value:
    return Value(constant(x), (), ())


# name -> handler(evaluator, node, *args, **kwargs), the arguments evaluated
_handlers: dict[str, Callable[..., Any]] = {}


def handles(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(f: Callable[..., Any]) -> Callable[..., Any]:
        _handlers.update(dict.fromkeys(names, f))
        return f

    return add


class Evaluator:
    """Evaluates nodes of a graph, down to leaves.

    Args:
        leaves: the nodes at which to stop, with their values.
        module: the owner of the graph, for modules that it calls.
        open_ended: what the algebra does not know becomes a leaf; else it raises ``Opaque``.
    """

    def __init__(
        self,
        graph: "Order",
        leaves: Mapping[fx.Node, Any],
        module: torch.nn.Module | None,
        *,
        open_ended: bool = False,
    ) -> None:
        self.graph, self.module, self.open_ended = graph, module, open_ended
        self.values: dict[fx.Node, Any] = dict(leaves)
        self.interior: dict[fx.Node, None] = {}
        # tensors that a call of torch takes only where they are of one shape
        self.alike: list[frozenset[fx.Node]] = []

    def value(self, node: fx.Node) -> Any:
        if node in self.values:
            return self.values[node]
        try:
            call = resolve(node, self.module)
            if call is None or call.name not in _handlers:
                raise Opaque(node.name)
            if len(self.interior) > 200:
                raise Opaque(node.name)
            result = self._apply(node, call)
            self.interior[node] = None
        except (Opaque, algebra.TooLarge, TypeError, OverflowError, ZeroDivisionError):
            if not self.open_ended:
                raise Opaque(node.name) from None
            result = leaf(node)
        self.values[node] = result
        return result

    def argument(self, a: Any, user: fx.Node) -> Any:
        if isinstance(a, fx.Node):
            node = self.graph.current(a, user)
            result = self.value(node)
            if node in self.interior and self.graph.without_gradient(node) and not self.graph.without_gradient(user):
                return combine(detached, result)
            return result
        if isinstance(a, bool) or a is None or isinstance(a, str | torch.dtype | torch.device | slice):
            return a
        if isinstance(a, int | float):
            return number(a)
        if isinstance(a, Attribute):
            raise Opaque(a.path)
        if isinstance(a, tuple | list):
            return tuple(self.argument(item, user) for item in a)
        if a is Ellipsis:
            return a
        raise Opaque(str(a))

    def _apply(self, node: fx.Node, call: Call) -> Any:
        handler = _handlers[call.name]
        args = [self.argument(a, node) for a in call.args]
        kwargs = {k: self.argument(a, node) for k, a in call.kwargs.items()}
        if "self" in kwargs:
            args.insert(0, kwargs.pop("self"))
        elif "input" in kwargs:
            args.insert(0, kwargs.pop("input"))
        return handler(self, node, *args, **kwargs)


def leaf(node: fx.Node) -> Value:
    shape = sizes(value_of(node))
    return Value(atom("leaf", node), shape, shape)


class Order:
    """The order of a graph's nodes, and what in-place calls make of it."""

    VIEWS = frozenset(
        "reshape flatten getitem select unbind transpose unsqueeze squeeze expand detach chunk split narrow permute t "
        "alias slice contiguous to float double type_as view_as expand_as unflatten movedim diagonal".split()
    )

    def __init__(self, graph: fx.Graph, module: torch.nn.Module | None) -> None:
        self.position = {n: i for i, n in enumerate(graph.nodes)}
        self._gradient: dict[fx.Node, bool | None] = {}
        self.module = module
        # every read of an attribute is the same tensor
        self.attributes: dict[str, fx.Node] = {}
        for n in graph.nodes:
            if n.op == "get_attr":
                self.attributes.setdefault(str(n.target), n)
        self.calls: dict[fx.Node, Call | None] = {n: resolve(n, module) for n in graph.nodes}
        self.writes: dict[fx.Node, list[fx.Node]] = {}
        for n, call in self.calls.items():
            if call is not None and call.in_place and call.args and isinstance(call.args[0], fx.Node):
                self.writes.setdefault(call.args[0], []).append(n)
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
        if not isinstance(target, fx.Node):
            return True
        return self._aliased(target)

    def _aliased(self, node: fx.Node) -> bool:
        """May other nodes see what is written to this one?"""
        call = self.calls[node]
        if node.op in ("placeholder", "get_attr") or (call is None and node.op != "call_module"):
            return True
        if call is not None and call.name in self.VIEWS:
            return True
        views = (self.calls[u] for u in node.users)
        return any(c is not None and c.name in self.VIEWS and not c.in_place for c in views)

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
            self._gradient[node] = True if True in below else None if None in below or node.op == "call_module" else False
        return self._gradient[node]

    def current(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """The node whose value a user of ``node`` sees: the last one that wrote to it before."""
        node = self.attributes.get(str(node.target), node) if node.op == "get_attr" else node
        before = [w for w in self.writes.get(node, ()) if self.position[w] < self.position[user] and w is not user]
        return max(before, key=self.position.__getitem__) if before else node

    def undisturbed(self, nodes: Sequence[fx.Node]) -> str:
        """Why calls between the first and the last of the nodes may change what they mean; empty: none does."""
        places = [self.position[n] for n in nodes]
        low, high = min(places), max(places)
        if any(low < i < high for i in self.switches):
            return "autocast is switched between its parts"
        if any(low <= i <= high for i in self.opaque_writes):
            return "a tensor is written to between its parts"
        return ""


def _switches(target: Any) -> bool:
    name = getattr(target, "__name__", "")
    return name.startswith(("_enter_", "_exit_"))


# pointwise functions


def combine(f: Callable[..., Poly], *operands: Any) -> Any:
    """A function of elements, of operands of one shape; numbers and 0-d tensors broadcast."""
    if any(isinstance(v, Vector) for v in operands):
        count = next(len(v.components) for v in operands if isinstance(v, Vector))
        columns = [v.components if isinstance(v, Vector) else (v,) * count for v in operands]
        if any(len(c) != count for c in columns):
            raise Opaque("vectors of two lengths")
        return Vector(tuple(combine(f, *column) for column in zip(*columns, strict=True)))
    if any(isinstance(v, Masked) for v in operands):
        masks = {v.mask for v in operands if isinstance(v, Masked)}
        if len(masks) != 1:
            raise Opaque("two masks")
        return Masked(combine(f, *(v.value if isinstance(v, Masked) else v for v in operands)), masks.pop())
    if not all(isinstance(v, Value) for v in operands):
        raise Opaque("not a tensor")
    poly = f(*(v.poly for v in operands))
    shaped = [v for v in operands if not v.scalar]
    if not shaped:
        return Value(poly, (), ())
    first = shaped[0]
    for v in shaped[1:]:
        if v.base != first.base or v.shape != first.shape:
            raise Opaque("operands of two shapes")
    return Value(poly, first.base, first.shape)


def plain(value: Any) -> float:
    """The number that a value is."""
    if isinstance(value, Value):
        found = value.poly.number
        if found is not None:
            return found
    raise Opaque("not a number")


def whole(value: Any) -> int:
    found = plain(value)
    if found != int(found):
        raise Opaque("not a whole number")
    return int(found)


def unary(name: str, f: Callable[[Poly], Poly]) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any) -> Any:
        return combine(f, x)

    _handlers[name] = handler


ONE = constant(1)
for _name, _f in {
    "sigmoid": algebra.sigmoid,
    "exp": algebra.exponential,
    "expm1": lambda p: algebra.exponential(p) - ONE,
    "log": algebra.logarithm,
    "log1p": lambda p: algebra.logarithm(p + ONE),
    "log_sigmoid": lambda p: -algebra.softplus(-p),
    "tanh": algebra.odd("tanh"),
    "atan": algebra.odd("atan"),
    "relu": algebra.relu,
    "relu6": lambda p: algebra.clamp(p, 0, 6),
    "hardsigmoid": lambda p: algebra.clamp(p + constant(3), 0, 6).scaled(1 / 6),
    "abs": algebra.absolute,
    "neg": operator.neg,
    "positive": lambda p: p,
    "square": lambda p: algebra.power(p, 2),
    "sqrt": lambda p: algebra.power(p, 0.5),
    "rsqrt": lambda p: algebra.power(p, -0.5),
    "reciprocal": lambda p: algebra.power(p, -1),
    "silu": lambda p: p * algebra.sigmoid(p),
    "hardswish": lambda p: p * algebra.clamp(p + constant(3), 0, 6).scaled(1 / 6),
    "mish": lambda p: p * algebra.odd("tanh")(algebra.softplus(p)),
}.items():
    unary(_name, _f)


@handles("softplus")
def _softplus(e: Evaluator, node: fx.Node, x: Any, beta: Any = None, threshold: Any = None) -> Any:
    if beta is not None and plain(beta) != 1 or threshold is not None and plain(threshold) < 20:
        raise Opaque("softplus")
    return combine(algebra.softplus, x)


@handles("add")
def _add(e: Evaluator, node: fx.Node, x: Any, other: Any, *, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: a + b.scaled(factor), x, other)


@handles("sub")
def _sub(e: Evaluator, node: fx.Node, x: Any, other: Any, *, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: a - b.scaled(factor), x, other)


@handles("rsub")
def _rsub(e: Evaluator, node: fx.Node, x: Any, other: Any, alpha: Any = None) -> Any:
    factor = 1.0 if alpha is None else plain(alpha)
    return combine(lambda a, b: b - a.scaled(factor), x, other)


@handles("mul")
def _mul(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    return combine(operator.mul, x, other)


@handles("div")
def _div(e: Evaluator, node: fx.Node, x: Any, other: Any, *, rounding_mode: Any = None) -> Any:
    if rounding_mode is not None:
        raise Opaque("rounds")
    return combine(lambda a, b: a * algebra.power(b, -1), x, other)


@handles("pow")
def _pow(e: Evaluator, node: fx.Node, x: Any, exponent: Any) -> Any:
    by = plain(exponent)
    return combine(lambda a: algebra.power(a, by), x)


def bound(limit: Any) -> float | None:
    return None if limit is None else plain(limit)


@handles("clamp", "hardtanh")
def _clamp(e: Evaluator, node: fx.Node, x: Any, low: Any = None, high: Any = None, **kwargs: Any) -> Any:
    low, high = kwargs.get("min", kwargs.get("min_val", low)), kwargs.get("max", kwargs.get("max_val", high))
    call = e.graph.calls.get(node)
    if call is not None and call.name == "hardtanh":
        low, high = number(-1) if low is None else low, number(1) if high is None else high
    lowest, highest = bound(low), bound(high)
    return combine(lambda a: algebra.clamp(a, lowest, highest), x)


@handles("clamp_min")
def _clamp_min(e: Evaluator, node: fx.Node, x: Any, min: Any) -> Any:
    return _clamp(e, node, x, min)


@handles("clamp_max")
def _clamp_max(e: Evaluator, node: fx.Node, x: Any, max: Any) -> Any:
    return _clamp(e, node, x, None, max)


def extremum(name: str) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
        def f(a: Poly, b: Poly) -> Poly:
            if a.number == 0 or b.number == 0:
                kept = b if a.number == 0 else a
                return algebra.relu(kept) if name == "maximum" else -algebra.relu(-kept)
            return a if a == b else atom(name, frozenset({a, b}))

        return combine(f, x, other)

    _handlers[name] = handler


extremum("maximum")
extremum("minimum")


@handles("max")
def _max(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    if isinstance(other, Value) and other.poly.number is not None:
        raise Opaque("max over a dimension")
    return _handlers["maximum"](e, node, x, other)


@handles("min")
def _min(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    if isinstance(other, Value) and other.poly.number is not None:
        raise Opaque("min over a dimension")
    return _handlers["minimum"](e, node, x, other)


def comparison(name: str, swapped: str) -> None:
    def handler(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
        if name in ("lt", "le"):
            return combine(lambda a, b: atom(swapped, b - a), x, other)
        return combine(lambda a, b: atom(name, a - b), x, other)

    _handlers[name] = handler


for _name, _swapped in {"gt": "lt", "ge": "le", "lt": "gt", "le": "ge"}.items():
    comparison(_name, _swapped)


@handles("logical_and", "bitwise_and", "and", "__and__")
def _and(e: Evaluator, node: fx.Node, x: Any, other: Any) -> Any:
    return combine(operator.mul, x, other)  # of atoms that are 0 or 1


@handles("where")
def _where(e: Evaluator, node: fx.Node, condition: Any, x: Any, other: Any) -> Any:
    return combine(choose, condition, x, other)


def choose(condition: Poly, a: Poly, b: Poly) -> Poly:
    """a where the condition holds, else b."""
    if len(condition.terms) == 1:
        ((monomial, _),) = condition.terms
        sides = [found[1] for found, _ in monomial if found[0] in ("gt", "ge")]
        if len(sides) == len(monomial) and a - b == math.prod(sides[1:], start=sides[0]):
            clipped = [algebra.relu(z) for z in sides]  # a·b where a > 0 and b > 0, else 0
            return b + math.prod(clipped[1:], start=clipped[0])
    return b + atom("where", condition, a - b)


def detached(p: Poly) -> Poly:
    return p if p.number is not None else atom("constant", p)


@handles("detach")
def _detach(e: Evaluator, node: fx.Node, x: Any) -> Any:
    call = e.graph.calls[node]
    of = next(call.inputs()) if call else None
    if of is None or e.graph.current(of, node) not in e.interior:
        raise Opaque("a tensor of its own")
    return combine(detached, x)


@handles("zeros_like", "zeros", "new_zeros")
def _zeros(e: Evaluator, node: fx.Node, *args: Any, **kwargs: Any) -> Any:
    shape = sizes(value_of(node))
    if shape is None and args and isinstance(args[0], Value) and args[0].poly.number is None:
        return combine(lambda a: constant(0), args[0])
    return Value(constant(0), shape, shape)


# shapes


@handles("contiguous", "clone", "alias", "lift_fresh_copy", "detach_copy")
def _same(e: Evaluator, node: fx.Node, x: Any, **kwargs: Any) -> Any:
    return x


@handles("to", "float", "double", "half", "bfloat16", "type_as", "type")
def _cast(e: Evaluator, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Nothing, where dtype and device stay."""
    call = e.graph.calls[node]
    before, after = value_of(next(call.inputs())) if call else None, value_of(node)
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        if before.dtype == after.dtype and before.device == after.device:
            return x
    if isinstance(x, Value) and all({a[0] for a, _ in m} == {"one_hot"} for m, _ in x.poly.terms) and x.poly.terms:
        return x  # 0 and 1 are exact in any dtype
    raise Opaque("a cast")


@handles("reshape", "flatten", "unsqueeze", "squeeze", "view_as", "reshape_as", "unflatten")
def _reshape(e: Evaluator, node: fx.Node, x: Any, *args: Any, **kwargs: Any) -> Any:
    shape = sizes(value_of(node))
    call = e.graph.calls[node]
    if not isinstance(x, Value) or x.shape is None:
        raise Opaque("a view of unknown shape")
    if shape is None and call is not None and call.name == "flatten" and len(args) == 1:
        start = whole(args[0])
        if start >= len(x.shape):
            raise Opaque("a view of too few dimensions")
        shape = (*x.shape[:start], math.prod(x.shape[start:]))
    if shape is None:
        raise Opaque("a view of unknown shape")
    return replace(x, shape=shape)


def aligned(base: Sizes, shape: Sizes, dims: set[int]) -> set[int]:
    """The dimensions of ``base`` that the dimensions ``dims`` of its view ``shape`` are."""
    found: set[int] = set()
    i = j = 0
    while i < len(base) or j < len(shape):
        left, right = {i} if i < len(base) else set(), {j} if j < len(shape) else set()
        a = base[i] if i < len(base) else 1
        b = shape[j] if j < len(shape) else 1
        i, j = i + 1, j + 1
        while sympy.simplify(a - b) != 0:
            smaller = i < len(base) and (j >= len(shape) or _smaller(a, b))
            if smaller:
                a, left, i = a * base[i], left | {i}, i + 1
            elif j < len(shape):
                b, right, j = b * shape[j], right | {j}, j + 1
            else:
                raise Opaque("a view that does not align")
        if right & dims:
            if not right <= dims and any(shape[d] != 1 for d in right - dims):
                raise Opaque("a reduction over part of a dimension")
            found |= left
    return found


def _smaller(a: Any, b: Any) -> bool:
    if isinstance(a, int) and isinstance(b, int):
        return a < b
    quotient = sympy.simplify(b / a)
    return not quotient.is_number and sympy.denom(quotient) == 1 or bool(quotient.is_number and quotient > 1)


def reduction(name: str) -> None:
    def handler(
        e: Evaluator, node: fx.Node, x: Any, dim: Any = None, keepdim: Any = False, *, dtype: Any = None, **kwargs: Any
    ) -> Any:
        dim = kwargs.get("axis", dim)
        if dtype is not None:
            raise Opaque("a cast")
        if isinstance(x, Vector):
            if dim is None or whole(dim) != -1 or name != "sum":
                raise Opaque("a reduction of a vector")
            return combine(lambda *p: sum(p[1:], p[0]), *x.components)
        if not isinstance(x, Value):
            raise Opaque("no tensor")
        dims: Any = "all"
        if dim is not None and dim != ():
            if x.base is None or x.shape is None:
                raise Opaque("of unknown shape")
            rank = len(x.shape)
            given = {whole(d) % rank for d in (dim if isinstance(dim, tuple) else (dim,))}
            over = aligned(x.base, x.shape, given)
            kept = tuple(1 if d in given else s for d, s in enumerate(x.shape) if keepdim or d not in given)
            if over != set(range(len(x.base))):
                dims = tuple(sorted(over))
        else:
            kept = (1,) * len(x.shape or ()) if keepdim else ()
        rest = atom_of_each(x.poly, name, dims, x.base)
        return Value(rest, kept, kept)

    _handlers[name] = handler


def over_all(value: Value, name: str) -> Value:
    """The mean or the sum of all elements."""
    return Value(atom_of_each(value.poly, name, "all", value.base), (), ())


def atom_of_each(p: Poly, name: str, dims: Any, base: Sizes | None) -> Poly:
    """A linear reduction: term by term, coefficients outside."""
    result = constant(0)
    for monomial, coefficient in p.terms:
        if monomial == algebra.ONE and name == "mean":
            result = result + constant(coefficient)
            continue
        inner = Poly(frozenset({(monomial, 1.0)}))
        counted = (base,) if monomial == algebra.ONE else ()
        result = result + atom(name, inner, dims, *counted).scaled(coefficient)
    return result


reduction("sum")
reduction("mean")


@handles("prod")
def _prod(e: Evaluator, node: fx.Node, x: Any, dim: Any = None, keepdim: Any = False) -> Any:
    if not isinstance(x, Vector) or dim is None or whole(dim) != -1 or keepdim:
        raise Opaque("a product")
    return combine(lambda *p: math.prod(p[1:], start=p[0]), *x.components)


def along(name: str) -> None:
    """softmax and its relatives, over one dimension."""

    def handler(e: Evaluator, node: fx.Node, x: Any, dim: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(x, Value) or x.shape is None or x.shape != x.base or dim is None:
            raise Opaque("over an unknown dimension")
        if kwargs.get("dtype") is not None or any(isinstance(a, torch.dtype) or a is True for a in args):
            raise Opaque("a cast")
        axis = whole(dim) % len(x.shape)
        return Value(atom(name, x.poly, axis), x.base, x.shape)

    _handlers[name] = handler


along("softmax")
along("log_softmax")


# boxes


def components(x: Any) -> Vector:
    if isinstance(x, Vector):
        return x
    if not isinstance(x, Value) or not x.shape or x.shape != x.base or x.shape[-1] != 4:
        raise Opaque("no boxes")
    lead = x.shape[:-1]
    return Vector(tuple(Value(atom("component", x.poly, i), lead, lead) for i in range(4)))


def rank_of(x: Any) -> int:
    if isinstance(x, Vector):
        return rank_of(x.components[0]) + 1
    if not isinstance(x, Value) or x.shape is None:
        raise Opaque("of unknown shape")
    return len(x.shape)


@handles("unbind")
def _unbind(e: Evaluator, node: fx.Node, x: Any, dim: Any = None) -> Any:
    if dim is None or whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    return components(x).components


@handles("chunk", "split", "tensor_split", "split_with_sizes")
def _split(e: Evaluator, node: fx.Node, x: Any, count: Any, dim: Any = None) -> Any:
    if dim is None or whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    parts = value_of(node)
    if not isinstance(parts, tuple | list):
        raise Opaque("of unknown shape")
    every, start, result = components(x).components, 0, []
    for part in parts:
        size = int(part.shape[-1])
        result.append(Vector(every[start : start + size]))
        start += size
    return tuple(result)


@handles("select")
def _select(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any) -> Any:
    if whole(dim) % rank_of(x) != rank_of(x) - 1:
        raise Opaque("not the last dimension")
    return components(x).components[whole(index)]


@handles("slice")
def _slice(
    e: Evaluator, node: fx.Node, x: Any, dim: Any = None, start: Any = None, end: Any = None, step: Any = None
) -> Any:
    axis = 0 if dim is None else whole(dim)
    first, last = None if start is None else whole(start), None if end is None else whole(end)
    rank = rank_of(x)
    if axis % rank != rank - 1:
        if not first and (last is None or last >= 2**62) and step in (None, number(1)):
            return x
        raise Opaque("a slice")
    return Vector(components(x).components[slice(first, last, None if step is None else whole(step))])


@handles("getitem")
def _getitem(e: Evaluator, node: fx.Node, x: Any, index: Any) -> Any:
    if isinstance(x, tuple):
        return x[whole(index)]
    if isinstance(index, Value) and index.poly.number is None:
        return masked(x, index)
    items = index if isinstance(index, tuple) else (index,)
    rank = rank_of(x)
    if Ellipsis in items:
        at = items.index(Ellipsis)
        items = (*items[:at], *[slice(None)] * (rank - len(items) + 1), *items[at + 1 :])
    if len(items) != rank or any(i != slice(None) for i in items[:-1]):
        raise Opaque("an index")
    last = items[-1]
    if isinstance(last, slice):
        ends = [v if v is None or isinstance(v, int) else int(v) for v in (last.start, last.stop, last.step)]
        return Vector(components(x).components[slice(*ends)])
    return components(x).components[whole(last)]


def masked(x: Any, mask: Value) -> Masked:
    if not isinstance(x, Value) or x.base != mask.base or not algebra.names(mask.poly) & {"gt", "ge"}:
        raise Opaque("an index")
    return Masked(x, mask)


@handles("index")
def _index(e: Evaluator, node: fx.Node, x: Any, indices: Any) -> Any:
    if not isinstance(indices, tuple) or len(indices) != 1:
        raise Opaque("an index")
    return masked(x, indices[0])


@handles("setitem")
def _setitem(e: Evaluator, node: fx.Node, x: Any, mask: Any, new: Any) -> Any:
    if isinstance(new, Value) and new.scalar:
        new = Masked(new, mask)
    if not isinstance(new, Masked) or not isinstance(mask, Value) or new.mask != mask:
        raise Opaque("a write")
    return combine(choose, mask, new.value, x)


@handles("index_put")
def _index_put(e: Evaluator, node: fx.Node, x: Any, indices: Any, new: Any, accumulate: Any = False) -> Any:
    if accumulate or not isinstance(indices, tuple) or len(indices) != 1:
        raise Opaque("a write")
    return _setitem(e, node, x, indices[0], new)


# class indices

# an ignore_index that no target has
NEVER = -(2**31)


@handles("one_hot")
def _one_hot(e: Evaluator, node: fx.Node, target: Any, num_classes: Any = None) -> Any:
    shape = sizes(value_of(node))
    if not isinstance(target, Value) or shape is None or target.shape != target.base or len(shape) != 2:
        raise Opaque("class indices")
    return Value(atom("one_hot", target.poly), shape, shape)


@handles("scatter")
def _scatter(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, new: Any = None, **kwargs: Any) -> Any:
    new = kwargs.get("value", kwargs.get("src", new))
    if not isinstance(x, Value) or x.poly.number != 0 or plain(new) != 1 or x.shape is None or len(x.shape) != 2:
        raise Opaque("a write")
    column = class_column(index, x.shape)
    if whole(dim) % 2 != 1:
        raise Opaque("a write")
    return Value(atom("one_hot", column.poly), x.shape, x.shape)


def class_column(index: Any, shape: Sizes) -> Value:
    """One class index a row, as a column."""
    if not isinstance(index, Value) or index.base != shape[:1] or index.shape != (shape[0], 1):
        raise Opaque("class indices")
    return index


@handles("gather")
def _gather(e: Evaluator, node: fx.Node, x: Any, dim: Any, index: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Value) or x.shape is None or len(x.shape) != 2 or whole(dim) % 2 != 1 or x.shape != x.base:
        raise Opaque("an index")
    target = class_column(index, x.shape)
    result = constant(0)
    for monomial, coefficient in x.poly.terms:
        ((found, exponent),) = monomial if len(monomial) == 1 else (((None,), 0),)
        if exponent != 1 or found[0] not in ("log_softmax", "softmax") or found[2] != 1:
            raise Opaque("an index")
        loss = atom("cross_entropy", found[1], target.poly, NEVER)
        value = -loss if found[0] == "log_softmax" else algebra.exponential(-loss)
        result = result + value.scaled(coefficient)
    return Value(result, target.base, index.shape)


@handles("nll_loss")
def _nll_loss(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
    found = algebra.single(x.poly) if isinstance(x, Value) else None
    if found is None or found[0][0] != "log_softmax" or found[1] != 1 or found[0][2] != min(1, len(x.shape) - 1):
        raise Opaque("no log-probabilities")
    return _cross_entropy(e, node, replace(x, poly=found[0][1]), target, *others, **kwargs)


@handles("cos", "sin")
def _of_number(e: Evaluator, node: fx.Node, x: Any) -> Any:
    call = e.graph.calls[node]
    assert call is not None
    return number(getattr(math, call.name)(plain(x)))


# losses as parts of others: one value an element or a row


def options(given: Mapping[str, Any], **allowed: Any) -> None:
    """Every option has a value that the algebra knows it by, or its default."""
    for name, value in given.items():
        expected = allowed.get(name)
        value = value.poly.number if isinstance(value, Value) else value
        if value is not None and value != expected:
            raise Opaque(name)


def unreduced(reduction: Any) -> None:
    if isinstance(reduction, Value):
        reduction = {0: "none", 1: "mean", 2: "sum"}.get(whole(reduction))
    if reduction != "none":
        raise Opaque("a reduced loss")


@handles("binary_cross_entropy_with_logits")
def _bce_with_logits(
    e: Evaluator,
    node: fx.Node,
    x: Any,
    target: Any,
    weight: Any = None,
    *others: Any,
    reduction: Any = "mean",
    pos_weight: Any = None,
    **kwargs: Any,
) -> Any:
    if len(others) == 2:  # aten: pos_weight, reduction
        pos_weight, reduction = others
    elif others:
        raise Opaque("its legacy arguments")
    unreduced(reduction)
    if pos_weight is not None:
        raise Opaque("pos_weight")
    options(kwargs)
    e.alike.append(frozenset(algebra.leaves(x.poly) | algebra.leaves(target.poly)))
    loss = combine(lambda a, t: algebra.softplus(a) - a * t, x, target)
    return loss if weight is None else combine(operator.mul, loss, weight)


@handles("cross_entropy")
def _cross_entropy(e: Evaluator, node: fx.Node, x: Any, target: Any, *others: Any, **kwargs: Any) -> Any:
    call = e.graph.calls[node]
    functional = not isinstance(node.target, torch._ops.OpOverload)
    order = (
        ("weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")
        if functional
        else ("weight", "reduction", "ignore_index", "label_smoothing")
    )
    if call is not None and call.name == "nll_loss":
        order = tuple(n for n in order if n != "label_smoothing")
    given = {**dict(zip(order, others, strict=False)), **kwargs}
    unreduced(given.pop("reduction", "mean"))
    ignore = given.pop("ignore_index", number(-100))
    options(given, label_smoothing=0.0)
    if call is None or not isinstance(x, Value) or not isinstance(target, Value) or x.shape != x.base:
        raise Opaque("no rows")
    targets = value_of(next(i for i in list(call.inputs())[1:]))
    if isinstance(targets, Tensor) and targets.is_floating_point():
        raise Opaque("probabilities")
    poly = atom("cross_entropy", x.poly, target.poly, whole(ignore))
    return Value(poly, target.base, target.shape)


