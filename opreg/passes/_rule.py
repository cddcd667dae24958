"""What is looked for in programs: formulas that an op computes, and formulas that only look like one."""

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from ..op import Op
from .graph.ranges import ANYTHING, Range
from .graph.view import GraphView
from .normal_form import algebra
from .normal_form.algebra import TooLarge
from .normal_form.evaluate import Evaluator, known
from .normal_form.values import Opaque, Value, leaf, number

# The shapes and numbers for which patterns are evaluated, to see which functions every program that computes one calls:
# boxes or scores, class indices, scalars.
_SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (3,), ())
# Regions of pixels, for a pattern that needs them.
_REGIONS: tuple[tuple[int, ...], ...] = ((3, 4, 5),)
# Scores of rows, and a column of class indices.
_COLUMNS: tuple[tuple[int, ...], ...] = ((3, 4), (3, 1))
_NUMBERS = (0.3, 0.0, 1.0, 2.0)
# Functions that a pattern has for all its tensors and numbers, or for none.
_TELLING = frozenset(
    {"cross_entropy", "log_softmax", "softmax", "logsumexp", "one_hot", "ordered", "cumsum", "steps", "sigmoid"}
    | {"softplus", "atan", "atan2", "erf", "tanh", "eq", "norm", "component"}
)
# Functions that a reduction adds to a formula or takes from it.
REDUCTIONS = frozenset({"sum", "mean", "sum of"})
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


@dataclass(frozen=True)
class Argument:
    """What a program says of a tensor; None where it does not."""

    # one entry a dimension, a symbolic size as an expression; of unknown shapes, equal for those that are the same
    shape: tuple[Any, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    requires_grad: bool | None
    # what its elements can be
    values: Range = ANYTHING


@dataclass(frozen=True)
class Formula:
    """A formula that is looked for; its arguments are those of a ``Rule``."""

    name: str
    pattern: Callable[..., Tensor]
    numbers: Mapping[str, Callable[[float], float]] = field(default_factory=dict, kw_only=True)
    cases: str = field(default="", kw_only=True)
    common: bool = field(default=False, kw_only=True)

    @cached_property
    def parameters(self) -> tuple[list[str], list[str]]:
        """The names of the tensors, and those of the numbers."""
        kinds = inspect.signature(self.pattern).parameters.values()
        tensors = [p.name for p in kinds if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return tensors, [p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @cached_property
    def integers(self) -> set[str]:
        """The names of the numbers that are annotated as integers."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name for p in kinds if p.annotation in (int, "int")}

    @cached_property
    def defaults(self) -> dict[str, float]:
        """The numbers that a program need not write, by name."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name: p.default for p in kinds if p.default is not p.empty}

    @cached_property
    def pattern_graph(self) -> fx.Graph:
        return self._trace(self.pattern)

    def _trace(self, function: Callable[..., Tensor]) -> fx.Graph:
        # by hand, since fx would put their defaults in the place of keyword-only arguments
        tracer = fx.Tracer()
        tracer.graph = fx.Graph()
        tracer.root, tracer.tensor_attrs = torch.nn.Module(), {}
        names = [n for group in self.parameters for n in group]
        given = {n: tracer.create_proxy("placeholder", n, (), {}) for n in names}
        tracer.create_node("output", "output", (tracer.create_arg(function(**given)),), {})
        return tracer.graph

    @cached_property
    def view(self) -> GraphView:
        return GraphView(self.pattern_graph, None)

    @cached_property
    def call_names(self) -> frozenset[str]:
        """The names of the functions that the pattern calls.

        An elementwise function that the algebra does not know yet becomes an atom of it.

        Raises:
            ValueError: a function that is neither known nor elementwise, so that the pattern would never be found.
        """
        names = {call.name for call in self.view.calls.values() if call is not None}
        for n in self.pattern_graph.nodes:
            call = self.view.calls[n]
            if n.op in ("call_function", "call_method") and (call is None or not known(call.name)):
                got = n.target if call is None else call.name
                raise ValueError(f'rule "{self.name}": expected functions of torch that work elementwise, got {got}')
        return frozenset(names)

    @cached_property
    def last_call(self) -> str:
        """The name of the function that gives the pattern's value."""
        call = self.view.calls.get(self.pattern_graph.output_node().args[0])  # type: ignore[arg-type]
        return call.name if call is not None else ""

    @cached_property
    def functions(self) -> frozenset[str]:
        """The functions in the pattern's normal form, whatever its tensors and numbers are, without its reductions.

        A value without them is not the pattern's, which is seen at once.
        """
        return self.words - REDUCTIONS

    @cached_property
    def arithmetic(self) -> bool:
        """Has the pattern no functions but sums, products and reductions?"""
        return not self.functions

    @cached_property
    def words(self) -> frozenset[str]:
        """The functions and reductions in the pattern's normal form, whatever its tensors and numbers are."""
        return self._held - {"sum of"}

    @cached_property
    def functions_by_case(self) -> frozenset[str]:
        """The functions in its normal forms for zeros and for ones, together, whatever its numbers are."""
        held = list[frozenset[str]]()
        for given in _NUMBERS:
            forms = [self._form_of_case((given,) * len(self.parameters[1]), case) for case in (0.0, 1.0)]
            if None not in forms:
                held.append(frozenset[str]().union(*(algebra.names(form.poly) for form in forms if form is not None)))
        return frozenset[str]().union(*held).intersection(*held)

    @cached_property
    def numbers_by_case(self) -> dict[float, list[int]]:
        """The places of the numbers that its normal form for zeros, and that for ones, depends on."""
        found = {}
        some = [0.3 + 0.7 * k for k in range(len(self.parameters[1]))]
        for case in (0.0, 1.0):
            form = self._form_of_case(tuple(some), case)
            others = [(*some[:k], some[k] + 0.2, *some[k + 1 :]) for k in range(len(some))]
            found[case] = [k for k, o in enumerate(others) if form is None or self._form_of_case(o, case) != form]
        return found

    def _form_of_case(self, given: tuple[float, ...], case: float) -> Value | None:
        with algebra.finite():
            return self.normal_form(self._leaves, given, {}, case)

    @cached_property
    def _leaves(self) -> tuple[fx.Node, ...]:
        graph = fx.Graph()
        leaves = tuple(graph.placeholder(n) for n in self.parameters[0])
        for node in leaves:
            node.meta["example_value"] = torch.empty(_SHAPES[0], device="meta")
        return leaves

    @cached_property
    def of_sums(self) -> bool:
        """Has the pattern's normal form, whatever its tensors and numbers are, a power of a sum?"""
        return "sum of" in self._held

    @cached_property
    def powers(self) -> frozenset[str]:
        """The functions that have an exponent in the pattern's normal form, whatever its tensors and numbers are."""
        each = [poly.powers for poly in self._polynomials]
        return frozenset[str]().union(*each).intersection(*each)

    @cached_property
    def functions_of(self) -> list[tuple[frozenset[str], frozenset[str] | None]]:
        """For each tensor, the functions that it is an argument of whatever the tensors and numbers are, and those of
        the telling ones that it ever is an argument of; None: of any.
        """
        always, ever = [], []
        for place in range(len(self.parameters[0])):
            each = [poly.above.get(leaves[place], frozenset[str]()) for leaves, poly in self._forms_over]
            always.append(frozenset[str]().union(*each).intersection(*each) - REDUCTIONS)
            ever.append(frozenset[str]().union(*each) & _TELLING if each else None)
        return list(zip(always, ever, strict=True))

    def fits(self, place: int, above: frozenset[str]) -> bool:
        """May a leaf that is an argument of these functions be the tensor of this place?"""
        always, ever = self.functions_of[place]
        return always <= above and (ever is None or above & _TELLING <= ever)

    @cached_property
    def _held(self) -> frozenset[str]:
        return frozenset[str]().union(*self._forms).intersection(*self._forms)

    @cached_property
    def _forms(self) -> list[frozenset[str]]:
        return [algebra.names(poly) for poly in self._polynomials]

    @cached_property
    def _polynomials(self) -> list[algebra.Poly]:
        return [poly for _, poly in self._forms_over]

    @cached_property
    def _forms_over(self) -> list[tuple[tuple[fx.Node, ...], algebra.Poly]]:
        return self._over(_SHAPES) or self._over(_REGIONS) or self._over(_COLUMNS)

    def may_have(self, names: frozenset[str]) -> bool:
        """May the pattern's value be one with these functions?

        Not without one that it always has, nor with a telling one that it never has. By cases, other functions may be
        those of the pattern: two at the least.
        """
        if self.cases:
            return len(names - {"sum of"}) >= 2
        always = self.functions <= names and ("sum of" in names or not self.of_sums)
        return always and (self._ever is None or names & _TELLING <= self._ever)

    @cached_property
    def _ever(self) -> frozenset[str] | None:
        """The functions that its normal form may have; None: any."""
        return frozenset[str]().union(*self._forms) if self._forms else None

    def _over(self, shapes: Sequence[tuple[int, ...]]) -> list[tuple[tuple[fx.Node, ...], algebra.Poly]]:
        """The normal form for each choice of shapes and numbers that has one, and its leaves."""
        names, number_names = self.parameters
        graph = fx.Graph()
        made = {shape: [graph.placeholder(f"{n}_{len(shape)}") for n in names] for shape in shapes}
        for shape, nodes in made.items():
            for node in nodes:
                node.meta["example_value"] = torch.empty(shape, device="meta")
        found: list[tuple[tuple[fx.Node, ...], algebra.Poly]] = []
        results: dict[Any, Any] = {}
        for columns in itertools.product(shapes, repeat=len(names)):
            leaves = tuple(made[shape][i] for i, shape in enumerate(columns))
            for given in _NUMBERS:
                form = self.normal_form(leaves, (given,) * len(number_names), results)
                if form is not None:
                    found.append((leaves, form.poly))
        return found

    def normal_form(
        self,
        tensors: tuple[fx.Node, ...],
        given: tuple[float, ...],
        results: dict[Any, Any],
        case: float | None = None,
    ) -> Value | None:
        """The pattern's normal form over these leaves and with these numbers; None where it has none.

        ``results``: those of an ``Evaluator``. ``case``: the one value of all elements of the tensor ``cases``.
        """
        names, number_names = self.parameters
        leaves: dict[str, Any] = {n: leaf(t) for n, t in zip(names, tensors, strict=True)}
        if case is not None:
            leaves[self.cases] = replace(leaves[self.cases], poly=algebra.constant(case))
        leaves |= {n: number(c) for n, c in zip(number_names, given, strict=True)}
        bound = {p: leaves[str(p.target)] for p in self.pattern_graph.nodes if p.op == "placeholder"}
        try:
            result = Evaluator(self.view, bound, results).value(self.pattern_graph.output_node().args[0])  # type: ignore[arg-type]
        except (Opaque, TooLarge, ValueError, OverflowError, ZeroDivisionError):
            return None
        return result if isinstance(result, Value) else None


class _Number(fx.Proxy):
    """A number of a program in a definition that branches on it: compared, it is the op's default."""

    def __init__(self, number: fx.Proxy, default: float) -> None:
        super().__init__(number.node, number.tracer)
        self.default = default

    def __gt__(self, other: float) -> bool:
        return self.default > other

    def __ge__(self, other: float) -> bool:
        return self.default >= other

    def __lt__(self, other: float) -> bool:
        return self.default < other

    def __le__(self, other: float) -> bool:
        return self.default <= other


def no_objection(arguments: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Rule(Formula):
    """Where a program computes ``pattern``, it may compute ``replacement``.

    The pattern is found in whatever way it is written: order of operands, brackets, functions, methods, modules and
    ATen calls, casts and views that change nothing. What is compared is the normal form of the formula.

    Args:
        name: for the report: ``"focal_loss of a sigmoid and its cross entropy"``.
        pattern: a function of tensors (positional) and numbers (keyword-only), in plain torch, without branches. The
            numbers are those of the program; a default is one that the program need not write.
        replacement: a function of the same arguments.
        objection: ``objection(arguments)`` says why the two are not equal there, or "" where they are. It gets the
            arguments by name: numbers as they are, tensors as an ``Argument`` with shape, dtype, device and
            requires_grad, as far as the program says.
        numbers: how a number of the pattern is made of one that the program holds, where it is not that number itself:
            ``{"margin": math.acos}`` for a program that holds the cosine of its margin.
        cases: the name of a tensor whose elements are to be 0 or 1, shown by the graph. Pattern and program, which are
            functions of elements then, are compared for 0 and for 1, where many spellings are one.
        logits: the name of a tensor that has to be a view of a sigmoid, as what a slice leaves of one; the replacement
            gets the same view of the sigmoid's argument. Elsewhere the place is left, and the report says so.
        common: programs compute this for other purposes than a loss, too: it is swapped only where the mean or the sum
            of its elements follows, and left without a word otherwise.
        alone: the names of calls whose results nobody else may read: where one stays, the op would compute it again.
    """

    replacement: Callable[..., Tensor]
    objection: Callable[[Mapping[str, Any]], str] = no_objection
    logits: str = field(default="", kw_only=True)
    alone: frozenset[str] = field(default=frozenset(), kw_only=True)

    @classmethod
    def of(
        cls,
        op: Op,
        objection: Callable[[Mapping[str, Any]], str] = no_objection,
        *,
        definition: Callable[..., Tensor] | None = None,
        defaults: Mapping[str, float] | None = None,
        **options: Any,
    ) -> "Rule":
        """The rule that finds an op's own definition, written out in a program.

        The definition may branch on a number that has a default: the pattern is what it does for that.

        Args:
            op: its tensors are those of the pattern, its other arguments the numbers.
            objection: as above.
            definition: of the op's arguments without ``dtype``; by default the op's reference.
            defaults: the numbers that a program need not write.
            options: arguments of the op that are fixed: ``reduction="none"``, ``weight=None``.
        """
        names = [n for n in op.arguments if n != "dtype"]
        tensors, known = op.tensor_arguments, defaults or {}
        parameters = [inspect.Parameter(n, _POSITIONAL) for n in names if n in tensors and n not in options]
        parameters += [
            inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=known.get(n, inspect.Parameter.empty))
            for n in names
            if n not in tensors and n not in options
        ]
        signature = inspect.Signature(parameters)

        def pattern(*args: Any, **kwargs: Any) -> Tensor:
            given = signature.bind(*args, **kwargs).arguments
            for n in given.keys() & op.defaults.keys():
                if isinstance(given[n], fx.Proxy) and n not in tensors:
                    given[n] = _Number(given[n], op.defaults[n])
            return (definition or op.reference)(**options, **given)

        def replacement(*args: Any, **kwargs: Any) -> Tensor:
            given = {**options, **signature.bind(*args, **kwargs).arguments}
            result: Tensor = op.value(*(given[n] for n in names))
            return result

        pattern.__signature__ = replacement.__signature__ = signature  # type: ignore[attr-defined]
        return cls(f"{op.short}, written out", pattern, replacement, objection)

    @cached_property
    def replacement_graph(self) -> fx.Graph:
        return self._trace(self.replacement)


@dataclass(frozen=True)
class NearMiss(Formula):
    """A formula that a reader might take for an op's, and why it is not. It stays, and the report says why.

    Args:
        name: for the report.
        pattern: as that of a ``Rule``.
        why: what differs: ``"its input is a probability, and dice_loss takes logits"``.
        numbers: as those of a ``Rule``.
    """

    why: str
