"""``@opreg.pointwise`` and ``@opreg.row``: a Python function becomes an op, with kernels that are compiled of its formula."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..faces.functions import function as face
from ..op import Op
from ..registry import register
from .compiling import build
from .declaring import pointwise_op, row_op
from .expression import Expr, Variable, replaced, tensor, ONE
from .algebra import remade
from .signature import Signature
from .structs import branches, family, pointwise_struct, row_struct
from .tracing import Formula

Function = Callable[..., Any]
_NLL = Variable("nll", 0.0)


def pointwise(
    namespace: str, *, domain: Mapping[str, str] | None = None, reduction: bool | None = None, source: str = "", replace: bool = False
) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        signature = Signature.of(function, domain or {})
        reduces = len(signature.required) > 1 if reduction is None else reduction
        build(pointwise_text(function, signature, reduces), namespace=namespace)
        op = pointwise_op(f"{namespace}::{signature.name}", function, signature, reduction=reduces, source=source)
        return _face(register(op, replace=replace), function)

    return decorate


def row(
    namespace: str, *, domain: Mapping[str, str] | None = None, source: str = "", replace: bool = False
) -> Callable[[Function], Function]:
    def decorate(function: Function) -> Function:
        signature = Signature.of(function, domain or {})
        build(row_text(function, signature), namespace=namespace)
        return _face(register(row_op(f"{namespace}::{signature.name}", function, signature, source=source), replace=replace), function)

    return decorate


def _face(op: Op, function: Function) -> Function:
    made = face(op, function.__module__)
    made.op = op  # type: ignore[attr-defined]
    made.formula = function  # type: ignore[attr-defined]
    return made


def _traced(function: Function, signature: Signature, tensors: list[Variable]) -> list[tuple[dict[str, bool], Expr]]:
    found = []
    absent = [a for a in signature.tensors if a.optional]
    for flags in signature.flag_choices():
        options = [a.variable for a in signature.numbers]
        value = Formula(function, tensors, options, flags).expression()
        for a in absent:
            kept = [t for t in tensors if t.name != a.name]
            without = Formula(function, kept, options, {**flags, a.name: None}).expression()
            if replaced([value], {tensor(a.variable): ONE}, remade)[0] is not without:
                raise NotImplementedError(
                    f"{signature.name}: expected a formula that without {a.name} is what it is for a {a.name} of 1, got another"
                )
        found.append((flags, value))
    return found


def pointwise_text(function: Function, signature: Signature, reduction: bool) -> str:
    tensors = [a.variable for a in signature.tensors]
    made = branches(signature, _traced(function, signature, tensors), tensors)
    text = pointwise_struct(signature, made, reduction=reduction)
    return family(_struct_name(signature), text, "PointwiseOps", "skeletons/formula.h")


def row_text(function: Function, signature: Signature) -> str:
    nll = Variable(signature.required[0].name, 0.0)
    made = branches(signature, _traced(function, signature, [nll]), [nll])
    return family(_struct_name(signature), row_struct(signature, made, nll.name), "RowOps", "skeletons/rowwise/formula.h")


def _struct_name(signature: Signature) -> str:
    return "".join(word.capitalize() for word in signature.name.split("_"))
