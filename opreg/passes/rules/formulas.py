"""Rules of the losses of rows and of regions that are Python functions (``opreg.row``, ``opreg.region``).

Their references take every shape and kind of target, which a pattern has no branches for. These are of what people
write: the function of the cross entropy of each row, and of sums over regions.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...op import Op
from .._rule import Rule
from ..normal_form.values import NEVER
from ._objections import Objection, first_of, unless_floating, unless_same_shape
from .segmentation import WAYS, Sums, rule, unless_rows_and_classes

Function = Callable[..., Tensor]

# The arguments that such an op has beside those of its function.
_OF_THE_OP = frozenset({"input", "target", "weight", "ignore_index", "batch", "reduction", "dtype"})
_IGNORE_INDEX = inspect.Parameter("ignore_index", inspect.Parameter.KEYWORD_ONLY, default=-100, annotation=int)


def rules_of_rows(op: Op, function: Function, nll: str, entropy: str | None, takes: Objection) -> Iterator[Rule]:
    """``nll`` and ``entropy``: what the function calls its tensors. ``takes``: does the op take what a program has?"""
    weight = {"weight": None} if "weight" in op.arguments else {}
    for flags, numbers in _options(op):

        def of_classes(
            input: Tensor, target: Tensor, *, ignore_index: int, flags: Mapping[str, bool] = flags, **given: Any
        ) -> Tensor:
            of_row = {nll: F.cross_entropy(input, target, ignore_index=ignore_index, reduction="none")}
            if entropy is not None:
                of_row[entropy] = _entropy(input, 1)
            return function(**of_row, **flags, **given)

        def of_tokens(input: Tensor, target: Tensor, *, flags: Mapping[str, bool] = flags, **given: Any) -> Tensor:
            log_p = F.log_softmax(input, -1)
            of_row = {nll: -log_p.gather(-1, target.unsqueeze(-1)).squeeze(-1)}
            if entropy is not None:
                of_row[entropy] = _entropy(input, -1)
            return function(**of_row, **flags, **given)

        def call(
            input: Tensor, target: Tensor, *, ignore_index: int = NEVER, flags: Mapping[str, bool] = flags, **given: Any
        ) -> Tensor:
            result: Tensor = op.value(
                input=input, target=target, **weight, **flags, **given, ignore_index=ignore_index, reduction="none"
            )
            return result

        def call_of_tokens(input: Tensor, target: Tensor, call: Function = call, **given: Any) -> Tensor:
            return call(input.flatten(0, -2), target.flatten(), **given).view_as(target)

        def of_every_target(input: Tensor, target: Tensor, of_classes: Function = of_classes, **given: Any) -> Tensor:
            return of_classes(input, target, ignore_index=NEVER, **given)

        if entropy is None:
            nothing = _unless_ignored_add(op, function, nll, flags)
            yield _rule(op, "of class indices", of_classes, call, [*numbers, _IGNORE_INDEX], first_of(takes, nothing))
        yield _rule(op, "of gathered log-probabilities", of_every_target, call, numbers, takes)
        yield _rule(op, "of tokens", of_tokens, call_of_tokens, numbers, _of_tokens(takes))


def rules_of_regions(
    op: Op, function: Function, sums_of: Mapping[str, Sequence[int]], takes: Objection
) -> Iterator[Rule]:
    """``sums_of``: the function's tensors, each as a sum of what the regions share, and of the size of either."""
    objection = first_of(
        takes,
        unless_same_shape("input", "target"),
        unless_rows_and_classes,
        unless_floating("target", "class indices"),
    )
    for flags, numbers in _options(op):

        def index(sums: Sums, *, flags: Mapping[str, bool] = flags, **given: Any) -> Tensor:
            named = {name: _combined(signs, sums) for name, signs in sums_of.items()}
            return function(**named, **flags, **given)

        first = inspect.Parameter("sums", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        index.__signature__ = inspect.Signature([first, *numbers])  # type: ignore[attr-defined]
        for way in WAYS:
            yield rule(op.qualname, index, way, objection, **flags)


def _combined(signs: Sequence[int], sums: Sums) -> Tensor:
    result: Any = 0
    for sign, part in zip(signs, sums, strict=True):
        result = result + part if sign > 0 else result - part if sign < 0 else result
    return result  # type: ignore[no-any-return]


def _entropy(input: Tensor, axis: int) -> Tensor:
    log_p = F.log_softmax(input, axis)
    return -(log_p.exp() * log_p).sum(axis)


def _options(op: Op) -> Iterator[tuple[dict[str, bool], list[inspect.Parameter]]]:
    """Each choice of the function's flags, and its numbers."""
    own = [a for a in op.value._schema.arguments if a.name not in _OF_THE_OP]
    flags = [a.name for a in own if str(a.type) == "bool"]
    numbers = [
        inspect.Parameter(
            a.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=a.default_value if a.has_default_value() else inspect.Parameter.empty,
            annotation=int if str(a.type) == "int" else float,
        )
        for a in own
        if a.name not in flags
    ]
    for chosen in itertools.product((False, True), repeat=len(flags)):
        yield dict(zip(flags, chosen, strict=True)), numbers


def _rule(
    op: Op, name: str, pattern: Function, call: Function, numbers: Sequence[inspect.Parameter], objection: Objection
) -> Rule:
    tensors = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in ("input", "target")]
    signature = inspect.Signature([*tensors, *numbers])

    def with_signature(f: Function) -> Function:
        def g(*args: Any, **kwargs: Any) -> Tensor:
            return f(**signature.bind(*args, **kwargs).arguments)

        g.__signature__ = signature  # type: ignore[attr-defined]
        return g

    return Rule(f"{op.short} {name}, written out", with_signature(pattern), with_signature(call), objection)


def _unless_ignored_add(op: Op, function: Function, nll: str, flags: Mapping[str, bool]) -> Objection:
    """A row whose target is ignored has a cross entropy of 0 in torch, and the op gives 0 for it."""

    def objection(arguments: Mapping[str, Any]) -> str:
        given = {n: a for n, a in arguments.items() if n not in _OF_THE_OP}
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        with torch.enable_grad():
            loss = function(**{nll: zero}, **flags, **given)
            (slope,) = torch.autograd.grad(loss, zero, allow_unused=True) if loss.requires_grad else (None,)
        if loss.item() == 0 and (slope is None or bool(slope.isfinite())):
            return ""
        return f"a target of ignore_index adds {loss.item():g} here, and nothing in {op.short}"

    return objection


def _of_tokens(takes: Objection) -> Objection:
    """Of rows in any number of dimensions, the classes last: they reach the op as (N, C)."""

    def objection(arguments: Mapping[str, Any]) -> str:
        shape, rows = arguments["input"].shape, arguments["target"].shape
        if shape is None or rows is None or len(shape) < 2 or shape[:-1] != rows:
            return "the shapes of input and target are not known, or not those of rows"
        flat = {"input": replace(arguments["input"], shape=(2, shape[-1]))}
        flat["target"] = replace(arguments["target"], shape=(2,))
        return takes({**arguments, **flat})

    return objection
