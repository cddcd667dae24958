"""The declaration of an op that is a Python function: its reference, shape rule, samples and errors."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import meta
from ..op import ErrorSample, Op, Sample
from ..ops._common import REDUCTIONS, outside, reduce, refused
from ..ops._regions import NOTHING_IN_COMMON, OVERLAP, overlap_errors, overlap_samples, region_sums
from ..ops._rows import number_of_valid, row_errors, row_samples
from ..testing import Maker
from .domains import Domain
from .signature import Argument, Signature
from .structs import ENTROPY, REGION_SUMS

Function = Callable[..., Tensor]


def pointwise_op(qualname: str, function: Function, signature: Signature, reduction: bool, source: str) -> Op:
    """Of ``@opreg.pointwise``."""
    names = [a.name for a in signature.required]
    optional = [a.name for a in signature.tensors if a.optional]
    rule = meta.same(*names, optional=optional) if len(names) == 1 else meta.broadcast(*names, optional=optional)
    return _op(
        qualname,
        function,
        _reduced(function) if reduction else function,
        functools.partial(_pointwise_samples, signature, reduction),
        functools.partial(_pointwise_errors, signature, reduction),
        shape=rule,
        inline=not reduction,
        source=source or _origin(function),
    )


def row_op(qualname: str, function: Function, signature: Signature, source: str) -> Op:
    """Of ``@opreg.row``."""
    names = [a.name for a in signature.tensors]
    fields: dict[str, Any] = {"shape": meta.rows("input", "target", weight="weight"), "state": meta.per_row(2)}
    fields["batch_dims"] = {"weight": None}
    if ENTROPY in names:
        fields = {"shape": meta.classes("input", target="target"), "state": meta.per_group(5), "count": number_of_valid}
    return _op(
        qualname,
        function,
        _of_rows(function, names),
        functools.partial(_row_samples, signature),
        functools.partial(_row_errors, signature),
        indices=("target",),
        source=source or _origin(function),
        rules=functools.partial(_row_rules, function, names),
        **fields,
    )


def region_op(qualname: str, function: Function, signature: Signature, source: str) -> Op:
    """Of ``@opreg.region``."""
    reference = _of_regions(function, [a.name for a in signature.tensors])
    return _op(
        qualname,
        function,
        reference,
        functools.partial(_region_samples, signature, reference),
        functools.partial(_region_errors, signature),
        source=source or _origin(function),
        rules=functools.partial(_region_rules, function, [a.name for a in signature.tensors]),
        **OVERLAP,
    )


# The rewrite is imported by who compiles.
def _row_rules(function: Function, names: Sequence[str], op: Op, takes: Any) -> Iterator[Any]:
    from ..passes.rules.formulas import rules_of_rows

    (nll,) = (n for n in names if n != ENTROPY)
    return rules_of_rows(op, function, nll, ENTROPY if ENTROPY in names else None, takes)


def _region_rules(function: Function, names: Sequence[str], op: Op, takes: Any) -> Iterator[Any]:
    from ..passes.rules.formulas import rules_of_regions

    return rules_of_regions(op, function, {n: REGION_SUMS[n] for n in names}, takes)


def _op(qualname: str, function: Function, reference: Function, samples: Any, errors: Any, **fields: Any) -> Op:
    def of_module(f: Any) -> Any:
        def call(make: Maker) -> Iterator[Any]:
            return f(make)  # type: ignore[no-any-return]

        # an op belongs to the module that declares it, and that is the user's
        call.__module__ = function.__module__
        return call

    doc = inspect.getdoc(function) or f"{function.__name__.replace('_', ' ')}, of the formula in {function.__module__}."
    return Op(qualname, reference, samples=of_module(samples), errors=of_module(errors), doc=doc, **fields)


def _origin(function: Function) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _reduced(function: Function) -> Function:
    @functools.wraps(function)
    def reference(*, reduction: str = "mean", **args: Any) -> Tensor:
        return reduce(function(**args), reduction)

    return reference


def _of_rows(function: Function, names: Sequence[str]) -> Function:
    (nll,) = (n for n in names if n != ENTROPY)

    @functools.wraps(function)
    def reference(
        *, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100,
        reduction: str = "mean", **given: Any,
    ) -> Tensor:  # fmt: skip
        axis = min(1, input.dim() - 1)
        target = target.reshape(input.shape[:axis] + input.shape[axis + 1 :]).long()
        valid = target != ignore_index
        index = torch.where(valid, target, 0)
        log_p = torch.log_softmax(input, axis)
        of_row = {nll: -log_p.gather(axis, index.unsqueeze(axis)).squeeze(axis)}
        if ENTROPY in names:
            # a class of probability 0 adds nothing
            of_row[ENTROPY] = -(log_p.exp() * log_p.clamp(min=-1000)).sum(axis)
        loss = function(**of_row, **given)
        weights = torch.ones_like(loss) if weight is None else weight.to(loss.dtype)[index]
        weights = torch.where(valid, weights, 0)
        loss = torch.where(valid, loss * weights, 0)
        if reduction == "mean":
            return loss.sum() / weights.sum()
        return loss.sum() if reduction == "sum" else loss

    return reference


def _of_regions(function: Function, names: Sequence[str]) -> Function:
    @functools.wraps(function)
    def reference(
        *, input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, batch: bool = False,
        reduction: str = "mean", **given: Any,
    ) -> Tensor:  # fmt: skip
        sums = region_sums(input, target, weight, ignore_index, batch)
        loss = function(**{name: sums[name] for name in names}, **given)
        return loss if batch else reduce(loss, reduction)

    return reference


def _drawn(make: Maker, a: Argument, *shape: int) -> Tensor:
    d = a.domain
    if not d.text:
        return make.normal(*shape)
    low, high = (
        (d.low if d.low > -1e3 else min(-1.0, d.high - 3.0)),
        (d.high if d.high < 1e3 else max(2.0, d.low + 3.0)),
    )
    margin = 0.02 * (high - low)
    return make.uniform(*shape, low=low + margin, high=high - margin)


def _option_choices(signature: Signature) -> Iterator[dict[str, Any]]:
    """Values of the options: each at a few numbers of its domain, the others at their defaults; and every flag."""
    usual = {o.name: _usual(o) for o in signature.options}
    required = {o.name: usual[o.name] for o in signature.options if not o.has_default}
    yield required
    for o in signature.options:
        others = (
            (not usual[o.name],) if o.kind is bool else [_of_kind(o, x) for x in o.domain.inside(usual[o.name])[1:]]
        )
        for value in others:
            if value != usual[o.name]:
                yield {**required, o.name: value}


def _usual(o: Argument) -> Any:
    if o.has_default:
        return o.default
    return False if o.kind is bool else _of_kind(o, o.domain.inside(0.5)[0])


def _of_kind(o: Argument, x: float) -> Any:
    return o.kind(round(x) if o.kind is int else x)


def _pointwise_samples(signature: Signature, reduction: bool, make: Maker) -> Iterator[Sample]:
    required, optional = signature.required, [a for a in signature.tensors if a.optional]

    def sample(
        shapes: Sequence[Sequence[int]], options: dict[str, Any], name: str = "", *, every: bool = False
    ) -> Sample:
        tensors = [_drawn(make, a, *shape) for a, shape in zip(required, shapes, strict=True)]
        extra = {a.name: _drawn(make, a, *shapes[0]) for a in optional} if every else {}
        return Sample(tuple(tensors), {**extra, **options}, name)

    n = len(required)
    first, *others = _option_choices(signature)
    for choice in REDUCTIONS if reduction else (None,):
        reduced: dict[str, Any] = {} if choice is None else {"reduction": choice}
        yield sample([(3, 5)] * n, first | reduced)
        if n > 1:
            yield sample([(3, 1), (4,), *[(1,)] * (n - 2)], first | reduced, "broadcast")
        if optional:
            yield sample([(3, 5)] * n, first | reduced, "all tensors", every=True)
    for options in others:
        yield sample([(7,)] * n, options)
    yield sample([(2, 3, 4, 5)] * n, first)
    yield sample([()] * n, first)
    yield sample([(0, 3)] * n, first | ({"reduction": "sum"} if reduction else {}), "empty")
    if all(not a.domain.text for a in required):
        grid = make.tensor([0.0, 1.0, -1.0, 2.0, -2.0, 20.0, -20.0])
        rest = [make.constant(torch.zeros_like(grid)) for _ in required[1:]]
        kinks = {**first, **({"reduction": "none"} if reduction else {})}
        yield Sample((grid, *rest), kinks, "kinks", smooth=False)


def _pointwise_errors(signature: Signature, reduction: bool, make: Maker) -> Iterator[ErrorSample]:
    op, required = signature.name, signature.required
    first, *_ = _option_choices(signature)
    args = tuple(_drawn(make, a, 2, 3) for a in required)
    for error in refused(op, *args, input=required[0].name, reduces=reduction):
        yield ErrorSample(error.args, error.message, {**first, **error.kwargs}, error.values)
    if len(required) > 1:
        wrong = (args[0], _drawn(make, required[1], 2, 4), *args[2:])
        yield ErrorSample(wrong, f"{op}: expected .*, got \\[2, 3\\] and \\[2, 4\\]", first)
    yield from _option_errors(signature, args, first)


def _option_errors(signature: Signature, args: tuple[Tensor, ...], first: dict[str, Any]) -> Iterator[ErrorSample]:
    for o in signature.numbers:
        if o.kind is float:
            said = _escaped(o.domain, o.name)
            for error in outside(signature.name, args, said, o.name, *o.domain.outside()):
                yield ErrorSample(error.args, error.message, {**first, **error.kwargs}, error.values)


def _escaped(d: Domain, name: str) -> str:
    said = d.said(name)
    return "".join(f"\\{c}" if c in "[]()." else c for c in said)


def _row_samples(signature: Signature, make: Maker) -> Iterator[Sample]:
    first, *others = _option_choices(signature)
    weight = all(a.name != ENTROPY for a in signature.tensors)
    yield from row_samples(make, make.normal, weight=weight, **first)
    for options in others:
        yield Sample((make.normal(4, 3), make.index(3, 4)), options)


def _row_errors(signature: Signature, make: Maker) -> Iterator[ErrorSample]:
    first, *_ = _option_choices(signature)
    for error in row_errors(signature.name, make):
        yield ErrorSample(error.args, error.message, {**first, **error.kwargs}, error.values)
    yield from _option_errors(signature, (make.normal(4, 3), make.index(3, 4)), first)


def _region_samples(signature: Signature, reference: Function, make: Maker) -> Iterator[Sample]:
    first, *others = _option_choices(signature)
    for sample in overlap_samples(make, *(others or [first]), required=first):
        # where a region is empty, or all is wrong, a quotient or a root may have no number
        if sample.name not in NOTHING_IN_COMMON or _is_finite(reference, sample):
            yield sample


def _is_finite(reference: Function, sample: Sample) -> bool:
    """Are the loss and its slopes numbers there?"""
    x, target = (t.detach().double() if t.is_floating_point() else t for t in sample.args)
    loss = reference(input=x.requires_grad_(), target=target, **sample.kwargs)
    slopes = torch.autograd.grad(loss.sum(), x, allow_unused=True) if loss.requires_grad else ()
    return all(bool(t.isfinite().all()) for t in (loss, *slopes) if t is not None)


def _region_errors(signature: Signature, make: Maker) -> Iterator[ErrorSample]:
    first, *_ = _option_choices(signature)
    for error in overlap_errors(signature.name)(make):
        yield ErrorSample(error.args, error.message, {**first, **error.kwargs}, error.values)
    yield from _option_errors(signature, (make.normal(2, 3, 4), make.index(3, 2, 4)), first)
