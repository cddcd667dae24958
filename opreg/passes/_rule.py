"""What a rewriting rule is: a pattern in plain torch, and what may stand in its place."""

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx

from .graph.view import GraphView
from .normal_form import algebra
from .normal_form.algebra import TooLarge
from .normal_form.evaluate import Evaluator, known
from .normal_form.values import Opaque, Value, leaf, number

# Shapes of tensors that patterns are evaluated for, to see what is in them: boxes or scores, classes, numbers.
_SHAPES: tuple[tuple[int, ...], ...] = ((3, 4), (3,), ())


@dataclass(frozen=True)
class Argument:
    """What a program says of a tensor; None where it does not."""

    # one entry a dimension, a symbolic one as an expression; of unknown ones, equal for those that are the same
    shape: tuple[Any, ...] | None
    dtype: torch.dtype | None
    device: torch.device | None
    requires_grad: bool | None


@dataclass(frozen=True)
class Rule:
    """Where a program computes ``pattern``, it may compute ``replacement``.

    The pattern is found in whatever way it is written: order of operands, brackets, functions, methods, modules and
    ATen calls, casts and views that change nothing. What is compared is the normal form of the formula.

    Args:
        name: for the report: ``"focal_loss of a sigmoid and its cross entropy"``.
        pattern: a function of tensors (positional) and numbers (keyword-only), in plain torch, without branches. The
            numbers are those of the program; a default is one that the program need not write.
        replacement: a function of the same arguments.
        condition: ``condition(arguments)`` says why the two are not equal there, or "" where they are: arguments by
            name, numbers as they are, tensors as ``Argument``: shape, dtype, device and requires_grad, as far as the
            program says.
        numbers: what a number of the pattern may be, made of one that the program holds, where that is not the number
            itself: ``{"margin": math.acos}`` for a program that holds its cosine.
    """

    name: str
    pattern: Callable[..., Tensor]
    replacement: Callable[..., Tensor]
    condition: Callable[[Mapping[str, Any]], str] = lambda arguments: ""
    numbers: Mapping[str, Callable[[float], float]] = field(default_factory=dict)

    @cached_property
    def parameters(self) -> tuple[list[str], list[str]]:
        """The names of the tensors, and those of the numbers."""
        kinds = inspect.signature(self.pattern).parameters.values()
        tensors = [p.name for p in kinds if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        return tensors, [p.name for p in kinds if p.kind is inspect.Parameter.KEYWORD_ONLY]

    @cached_property
    def whole(self) -> set[str]:
        """The numbers that are integers, by their annotation."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name for p in kinds if p.annotation in (int, "int")}

    @cached_property
    def unwritten(self) -> dict[str, float]:
        """The defaults of the numbers: they need not be in the program."""
        kinds = inspect.signature(self.pattern).parameters.values()
        return {p.name: p.default for p in kinds if p.default is not p.empty}

    @cached_property
    def graph(self) -> fx.Graph:
        """The pattern's calls."""
        return self._trace(self.pattern)

    @cached_property
    def calls(self) -> fx.Graph:
        """The replacement's."""
        return self._trace(self.replacement)

    def _trace(self, function: Callable[..., Tensor]) -> fx.Graph:
        # by hand: fx would put defaults in the place of keyword-only arguments
        tracer = fx.Tracer()
        tracer.graph = fx.Graph()
        tracer.root, tracer.tensor_attrs = torch.nn.Module(), {}
        names = [n for group in self.parameters for n in group]
        given = {n: tracer.create_proxy("placeholder", n, (), {}) for n in names}
        tracer.create_node("output", "output", (tracer.create_arg(function(**given)),), {})
        return tracer.graph

    @cached_property
    def view(self) -> GraphView:
        return GraphView(self.graph, None)

    @cached_property
    def call_names(self) -> frozenset[str]:
        """The functions that the pattern calls. Those that are new to the algebra become atoms of it, if they work
        elementwise.

        Raises:
            ValueError: a function that does not, so that the pattern would never be found.
        """
        names = {call.name for call in self.view.calls.values() if call is not None}
        for n in self.graph.nodes:
            call = self.view.calls[n]
            if n.op in ("call_function", "call_method") and (call is None or not known(call.name)):
                got = n.target if call is None else call.name
                raise ValueError(f'rule "{self.name}": expected functions of torch that work elementwise, got {got}')
        return frozenset(names)

    @cached_property
    def functions(self) -> frozenset[str]:
        """Functions that are in the pattern's normal form whatever its tensors and numbers are."""
        names, number_names = self.parameters
        graph = fx.Graph()
        made = {shape: [graph.placeholder(f"{n}_{len(shape)}") for n in names] for shape in _SHAPES}
        for shape, nodes in made.items():
            for node in nodes:
                node.meta["example_value"] = torch.empty(shape, device="meta")
        found: list[frozenset[str]] = []
        for columns in itertools.product(_SHAPES, repeat=len(names)):
            leaves = tuple(made[shape][i] for i, shape in enumerate(columns))
            for given in (0.3, 0.0, 1.0, 2.0):
                form = self.normal_form(leaves, (given,) * len(number_names))
                if form is not None:
                    found.append(algebra.names(form.poly))
        return frozenset[str]().union(*found).intersection(*found) - {"sum of", "sum", "mean"}

    def normal_form(self, tensors: tuple[fx.Node, ...], given: tuple[float, ...]) -> Value | None:
        """Of the pattern, over these leaves and with these numbers."""
        names, number_names = self.parameters
        leaves: dict[str, Any] = {n: leaf(t) for n, t in zip(names, tensors, strict=True)}
        leaves |= {n: number(c) for n, c in zip(number_names, given, strict=True)}
        bound = {p: leaves[str(p.target)] for p in self.graph.nodes if p.op == "placeholder"}
        try:
            result = Evaluator(self.view, bound, None).value(self.graph.output_node().args[0])  # type: ignore[arg-type]
        except (Opaque, TooLarge, ValueError, OverflowError, ZeroDivisionError):
            return None
        return result if isinstance(result, Value) else None
