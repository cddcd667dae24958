"""What the translator makes of Python functions, without a compiler: values, derivatives, kinks, errors."""

import inspect
import math
import re
import typing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg
from interpreted import interpreted
from opreg.formulas.derivative import derivative
from opreg.formulas.domains import Domain
from opreg.formulas.expression import Expr, Variable, depends_on, tensor, walk
from opreg.formulas.lowering import lowered
from opreg.formulas.signature import Signature
from opreg.formulas.structs import struct_name
from opreg.formulas.tracing import Formula
from opreg.meta.schema import bind
from opreg.op import Op
from opreg.testing import Maker


def traced(function: Callable[..., Tensor], *options: str, **fixed: Any) -> Expr:
    names = [n for n in inspect.signature(function).parameters if n not in options and n not in fixed]
    return Formula(function, [Variable(n) for n in names], [Variable(n, 0.0) for n in options], fixed).expression()


def both_agree(function: Callable[..., Tensor], e: Expr, tensors: dict[str, Tensor], options: dict[str, float]) -> None:
    """The expression and its derivatives, as they are and as the kernels compute them, against torch's autograd."""
    leaves = {n: t.detach().double().requires_grad_() for n, t in tensors.items()}
    expected = function(**leaves, **options)
    slopes = torch.autograd.grad(expected.sum(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    given = {n: t.detach() for n, t in leaves.items()} | options
    for form in (lambda e: e, lambda e: lowered([e])[0]):
        torch.testing.assert_close(interpreted(form(e), given).broadcast_to(expected.shape), expected, equal_nan=True)
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
            got = interpreted(form(derivative(e, tensor(Variable(name)))), given).broadcast_to(expected.shape)
            while got.dim() > leaf.dim():
                got = got.sum(0)
            wide = tuple(d for d in range(leaf.dim()) if leaf.shape[d] == 1)
            torch.testing.assert_close(got.sum(wide, keepdim=True) if wide else got, slope)


# Of the registry's own: those that are pointwise, and whose reference any tensors of one shape suit.
POINTWISE = [
    op for op in opreg.registered()
    if op.rule.pointwise and not op.mutated and not re.search("box|rotated|averaging", op.module_name)
    and op.short not in ("gaussian_nll_loss", "kl_div", "triplet_margin_loss", "cosine_embedding_loss")
    and op.short != "multilabel_soft_margin_loss"
]  # fmt: skip


@pytest.mark.parametrize("of", POINTWISE, ids=lambda op: op.short)
def test_the_registrys_own_references(of: Op) -> None:
    op = of
    sample = next(op.samples(Maker(torch.float64)))
    options = {n: v for n, v in op.defaults.items() if n not in ("dtype", "reduction") and n not in op.tensor_arguments}
    numbers = {n: float(v) for n, v in options.items() if isinstance(v, float)}
    fixed = {n: v for n, v in options.items() if n not in numbers} | ({"reduction": "none"} if op.reduces else {})
    names = [n for n in op.tensor_arguments if n not in op.defaults]
    fixed |= {n: None for n in op.tensor_arguments if n in op.defaults}

    def function(**args: Any) -> Tensor:
        return op.reference(**args, **fixed)

    try:
        e = Formula(function, [Variable(n) for n in names], [Variable(n, 0.0) for n in numbers], {}).expression()
    except NotImplementedError as error:  # a reference that branches on an option: for that option as it is
        if "does not depend on the option" not in str(error):
            raise
        fixed |= numbers
        numbers = {}
        e = Formula(function, [Variable(n) for n in names], [], {}).expression()
    for sample in op.samples(Maker(torch.float64)):
        bound = bind(op.value, sample.args, sample.kwargs)
        if any(bound[n] is not None for n in fixed if n in op.tensor_arguments) or not sample.smooth:
            continue
        if any(bound[n] != v for n, v in fixed.items() if n not in op.tensor_arguments and n != "reduction"):
            continue
        both_agree(function, e, {n: bound[n] for n in names}, {n: bound[n] for n in numbers})


def at_kinks(function: Callable[..., Tensor], **options: float) -> None:
    x = torch.tensor([-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    both_agree(function, traced(function, *options), {"x": x}, options)


KINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "where": lambda x: torch.where(x > 0, x * x, -2 * x),
    "maximum": lambda x: torch.maximum(x, 2 * x),
    "minimum": lambda x: torch.minimum(x, x * x),
    "clamp": lambda x: x.clamp(-1, 2) * x,
    "clamp_min": lambda x: x.clamp(min=0.5),
    "relu": lambda x: F.relu(x) * x,
    "abs": lambda x: x.abs() + (x - 1).abs(),
    "hardtanh": lambda x: F.hardtanh(x),
    "relu6": lambda x: F.relu6(3 * x),
    "hardswish": lambda x: F.hardswish(x),
    "hardsigmoid": lambda x: F.hardsigmoid(x),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "elu": lambda x: F.elu(x, 1.5),
    "selu": lambda x: F.selu(x),
    "celu": lambda x: F.celu(x, 0.7),
    "softsign": lambda x: F.softsign(x),
    "gelu": lambda x: F.gelu(x),
    "mish": lambda x: F.mish(x),
    "huber": lambda x: F.huber_loss(x, torch.zeros_like(x), reduction="none"),
    "smooth_l1": lambda x: F.smooth_l1_loss(x, torch.zeros_like(x), reduction="none"),
    "mask": lambda x: (x > 1) * x + x.sign() * (x < -1),
    "in place": lambda x: (x + 1).mul_(x).sub_(2),
    "sin": lambda x: x + torch.sin(x) ** 2 - torch.cos(3 * x),
    "floor": lambda x: x - torch.floor(x),
    "masked_fill": lambda x: x.masked_fill(x > 1, 1.0) ** 3,
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_are_torchs(name: str) -> None:
    at_kinks(KINKS[name])


def test_no_nan_of_a_dead_branch() -> None:
    def function(x: Tensor) -> Tensor:
        return torch.where(x > 0, torch.sqrt(x) * torch.log(x), x)

    slope = derivative(traced(function), tensor(Variable("x")))
    x = torch.tensor([-1.0, 0.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(
        interpreted(slope, {"x": x}), torch.tensor([1.0, 1.0, math.log(4) / 4 + 0.5], dtype=torch.float64)
    )


# What loses digits as it is written, and the function that it becomes.
STABLE: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "1 + tanh": (lambda x: 1 + torch.tanh(x), "sigmoid"),
    "1 - tanh": (lambda x: 1 - torch.tanh(x), "sigmoid"),
    "1 - tanh squared": (lambda x: 1 - torch.tanh(x) ** 2, "dsigmoid"),
    "log sigmoid": (lambda x: torch.log(torch.sigmoid(x)), "softplus"),
    "log(1 - sigmoid)": (lambda x: torch.log(1 - torch.sigmoid(x)), "softplus"),
    "1 - sigmoid": (lambda x: 1 - torch.sigmoid(x), "sigmoid"),
    "sigmoid written out": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "sigmoid the other way": (lambda x: torch.exp(x) / (1 + torch.exp(x)), "sigmoid"),
    "1 - exp": (lambda x: 1 - torch.exp(x), "expm1"),
    "exp - 1": (lambda x: torch.exp(x) - 1, "expm1"),
    "log(1 + exp)": (lambda x: torch.log(1 + torch.exp(x)), "softplus"),
    "log(exp + 1)": (lambda x: (x.exp() + 1).log(), "softplus"),
    "log(1 + x)": (lambda x: torch.log(1 + x**2), "log1p"),
    "log cosh": (lambda x: torch.log(torch.cosh(x)), "log_cosh"),
    "log cosh by softplus": (lambda x: x + F.softplus(-2 * x) - math.log(2), "log_cosh"),
    "log cosh by exponentials": (lambda x: torch.log((x.exp() + (-x).exp()) / 2), "log_cosh"),
    "1 + erf": (lambda x: 1 + torch.erf(x), "erfc"),
    "1 - cos": (lambda x: 1 - torch.cos(x), "sin"),
}


@pytest.mark.parametrize("name", STABLE)
def test_forms_that_lose_digits(name: str) -> None:
    function, becomes = STABLE[name]
    e = traced(function)
    assert depends_on(e, becomes)
    assert not {"tanh", "erf", "cos", "cosh"} & {n.op for n in walk(e)}
    both_agree(function, e, {"x": torch.linspace(-2, 2, 9, dtype=torch.float64)}, {})


def test_a_subexpression_is_there_once() -> None:
    def function(x: Tensor, t: Tensor) -> Tensor:
        return torch.exp(x - t) * (t - x) + torch.exp(-(t - x))

    e = traced(function)
    assert [n.op for n in walk(e)].count("exp") == 1
    assert [n.op for n in walk(e)].count("sub") == 2  # x - t, and the sum of both terms


def test_options_are_followed_through_math() -> None:
    def function(x: Tensor, a: float) -> Tensor:
        return x * math.log(1 + a) + math.sqrt(a) / (2 - a)

    e = traced(function, "a")
    given = {"x": torch.tensor(3.0, dtype=torch.float64), "a": 0.7}
    torch.testing.assert_close(interpreted(e, given), torch.tensor(function(3.0, 0.7), dtype=torch.float64))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "struct"),
    [("tversky", "TverskyOp"), ("t", "TOp"), ("mode", "ModeOp"), ("tensor", "TensorOp"), ("row_loss", "RowLossOp"),
     ("reduction", "ReductionOp"), ("cauchy_loss", "CauchyLoss")],
)  # fmt: skip
def test_names_that_the_headers_have_already(function: str, struct: str) -> None:
    assert struct_name(Signature(function, ())) == struct


def mean(x: Tensor) -> Tensor:
    return x - x.mean()


def branch(x: Tensor, a: float) -> Tensor:
    return x if a > 1 else -x


def shape(x: Tensor) -> Tensor:
    return x / x.numel()


def special(x: Tensor) -> Tensor:
    y = x * 2
    return torch.special.digamma(y)


def random(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


def value_of(x: Tensor) -> Tensor:
    return x if x.sum().item() > 0 else -x


def truncated(x: Tensor, a: float) -> Tensor:
    return x ** int(a)


def unfollowed(x: Tensor, a: float) -> Tensor:
    return x * math.gamma(a)


def into_its_argument(x: Tensor) -> Tensor:
    return x.add_(1)


def outer(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) * x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (mean, r"mean, .*test_translator.py\", line \d+ \(return x - x.mean\(\)\): .*single elements.*torch's mean"),
        (branch, r"line \d+ .*a > 1.*: expected .*does not depend on the option a"),
        (shape, "depends on the shape"),
        (special, r"line \d+ \(return torch.special.digamma\(y\)\): .*digamma"),
        (random, "rand_like"),
        (value_of, "expected operations on single elements"),
        (truncated, "the option a"),
        (unfollowed, "how a is computed with"),
        (into_its_argument, "leaves its arguments as they are"),
        (outer, "expected a number an element, got shape"),
    ],
    ids=lambda f: getattr(f, "__name__", None),
)  # fmt: skip
def test_what_cant_be_translated_is_named(function: Callable[..., Tensor], message: str) -> None:
    options = [n for n in inspect.signature(function).parameters if n == "a"]
    with pytest.raises(NotImplementedError, match=message):
        traced(function, *options)


def words(x: Tensor, kind: str = "a") -> Tensor:
    return x


def no_annotation(x, t: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
    return t


def bad_default(x: Tensor, a: float = -1.0) -> Tensor:
    return x


def reduction(x: Tensor, reduction: float = 1.0) -> Tensor:
    return x


@pytest.mark.parametrize(
    ("function", "domains", "message"),
    [
        (words, {}, "expected kind to be annotated as"),
        (no_annotation, {}, "expected x to be annotated as"),
        (bad_default, {"a": "> 0"}, "expected a default a > 0, got -1.0"),
        (reduction, {}, "adds reduction and dtype itself"),
        (bad_default, {"b": "> 0"}, "expected domains of its arguments, x, a, got one of b"),
        (bad_default, {"a": "about 1"}, 'expected a domain of a such as "> 0"'),
    ],
)
def test_signatures_that_no_op_can_have(function: Callable[..., Tensor], domains: dict[str, str], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Signature.of(function, domains)


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("> 0", [1e-9, 5.0], [0.0, -1.0]),
        (">= 0", [0.0, 3.0], [-1e-9]),
        ("<= 1", [1.0, -5.0], [1.1]),
        ("in [0, 1)", [0.0, 0.9], [1.0, -0.1]),
        ("in (0, 1]", [1.0, 0.1], [0.0, 1.1]),
        ("in [0, inf)", [0.0, 1e30], [math.inf, -1.0]),
    ],
)
def test_domains(text: str, inside: list[float], outside: list[float]) -> None:
    domain = Domain.of("a", text)
    assert all(x in domain for x in inside)
    assert not any(x in domain for x in [*outside, math.nan])


def test_hints_are_those_of_the_reader() -> None:
    assert typing.get_type_hints(opreg.pointwise)["namespace"] is str
