"""Ops with several results: what the registry attaches to any op, it attaches to these."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import opreg
from opreg import registry
from opreg.testing import Maker

# The gradients of results that the kernel of several::standardize_backward was given.
GIVEN: list[tuple[bool, ...]] = []


def standardize(input: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows less their mean, over their deviation, times a weight; and mean and deviation."""
    mean = input.mean(-1)
    centred = input - mean.unsqueeze(-1)
    deviation = (centred.square().mean(-1) + eps).sqrt()
    return centred / deviation.unsqueeze(-1) * weight, mean, deviation


def standardize_gradients(
    grad_scaled: Tensor | None, grad_mean: Tensor | None, grad_deviation: Tensor | None,
    input: Tensor, weight: Tensor, eps: float = 1e-3, *, needs_input_grad: list[bool],
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    GIVEN.append(tuple(g is not None for g in (grad_scaled, grad_mean, grad_deviation)))
    _, mean, deviation = standardize(input, weight, eps)
    unit = (input - mean.unsqueeze(-1)) / deviation.unsqueeze(-1)
    in_input, in_weight = torch.zeros_like(input), torch.zeros_like(weight)
    if grad_scaled is not None:
        g = grad_scaled * weight
        along = (g * unit).mean(-1, keepdim=True)
        in_input += (g - g.mean(-1, keepdim=True) - unit * along) / deviation.unsqueeze(-1)
        in_weight += (grad_scaled * unit).flatten(0, -2).sum(0)
    if grad_mean is not None:
        in_input += grad_mean.unsqueeze(-1) / input.shape[-1]
    if grad_deviation is not None:
        in_input += grad_deviation.unsqueeze(-1) * unit / input.shape[-1]
    of_input, of_weight = needs_input_grad
    return in_input if of_input else None, in_weight if of_weight else None


def shapes(op: str, args: Any) -> list[Any]:
    x, w = args["input"], args["weight"]
    if w.shape != x.shape[-1:]:
        raise RuntimeError(f"{op}: expected weight of shape {list(x.shape[-1:])}, got {list(w.shape)}")
    return [x.shape, x.shape[:-1], x.shape[:-1]]


def samples(make: Maker) -> Iterator[opreg.Sample]:
    yield opreg.Sample((make.normal(3, 4), make.normal(4), 0.1))
    yield opreg.Sample((make.normal(2, 3, 5), make.normal(5)))


def errors(make: Maker) -> Iterator[opreg.ErrorSample]:
    yield opreg.ErrorSample((make.normal(3, 4), make.normal(3)), "standardize: expected weight of shape \\[4\\], got")


def declaration(name: str, **options: Any) -> opreg.Op:
    given: dict[str, Any] = {
        "name": f"several::{name}",
        "schema": "(Tensor input, Tensor weight, float eps=1e-3) -> (Tensor scaled, Tensor mean, Tensor deviation)",
        "kernels": {"CPU": standardize_kernel},
        "reference": standardize,
        "shape": shapes,
        "samples": samples,
        "errors": errors,
        "source": "a test",
        "batch_dims": {"weight": None},
    }
    return opreg.Op(**{**given, **options})


def standardize_kernel(input: Tensor, weight: Tensor, eps: float = 1e-3) -> tuple[Tensor, Tensor, Tensor]:
    return standardize(input, weight, eps)


def sine_and_cosine(input: Tensor, reduction: str = "mean", *, dtype: torch.dtype | None = None) -> Any:
    """Two losses of one shape, reduced."""
    each = input.sin(), input.cos()
    reduced = each if reduction == "none" else tuple(getattr(t, reduction)() for t in each)
    return tuple(t.to(dtype or input.dtype) for t in reduced)


def reductions(make: Maker) -> Iterator[opreg.Sample]:
    for reduction in ("none", "mean", "sum"):
        yield opreg.Sample((make.normal(3, 4),), {"reduction": reduction})


@pytest.fixture(scope="module")
def ops() -> Iterator[dict[str, opreg.Op]]:
    made = [
        declaration("standardize", backward_kernels={"CPU": standardize_gradients}),
        declaration("by_reference", inline=True, errors=lambda make: iter(())),
        declaration(
            "sine_and_cosine",
            schema='(Tensor input, str reduction="mean", *, ScalarType? dtype=None) -> (Tensor sine, Tensor cosine)',
            kernels={"CPU": sine_and_cosine}, reference=sine_and_cosine, shape=opreg.meta.same("input"),
            samples=reductions, errors=lambda make: iter(()), batch_dims={},
        ),
    ]  # fmt: skip
    yield {op.short: opreg.register(op) for op in made}
    for op in made:
        registry.unregister(op.qualname)


@pytest.mark.parametrize("name", ["standardize", "by_reference", "sine_and_cosine"])
def test_every_check_passes(ops, name):
    """Values, derivatives of first and second order, torch.func, opcheck, dtypes, autocast, messages."""
    report = opreg.testing.check(ops[name])
    assert report.tried["second derivatives against finite differences"] > 0
    assert report.tried["torch.func: grad, and vmap of it"] > 0


@pytest.mark.parametrize(
    ("backend", "used"),
    [*((None, used) for used in ((0,), (1,), (2,), (0, 2), (0, 1, 2))), ("aot_eager", (1,)), ("inductor", (0, 2))],
)
def test_a_result_that_is_not_differentiated_has_no_gradient(ops, backend, used):
    """The backward kernel gets None in its place, in eager and in compiled code, and the gradients are right."""
    torch._dynamo.reset()
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, requires_grad=True)

    def loss(results):
        return sum((results[k] * (k + 2)).square().sum() for k in used)

    def ours(x, w):
        return loss(torch.ops.several.standardize(x, w))

    function = ours if backend is None else torch.compile(ours, backend=backend, fullgraph=True)
    expected = torch.autograd.grad(loss(standardize(x, w, 1e-3)), (x, w), allow_unused=True)
    del GIVEN[:]
    found = torch.autograd.grad(function(x, w), (x, w), allow_unused=True)
    assert [tuple(k in used for k in range(3))] == GIVEN
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, torch.zeros_like(w) if want is None else want)


def test_gradients_of_gradients_through_one_result(ops):
    """With the others undefined, and with a gradient of a result that is differentiated itself."""
    x, w = torch.randn(3, 4, dtype=torch.float64, requires_grad=True), torch.randn(4, dtype=torch.float64)

    def penalty(op, k):
        result = op(x, w, 0.1)[k]
        factor = torch.ones_like(result, requires_grad=True)
        (grad,) = torch.autograd.grad(result, x, factor, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), (x, factor), allow_unused=True, materialize_grads=True)

    for k in range(3):
        torch.testing.assert_close(penalty(torch.ops.several.standardize, k), penalty(standardize, k))


def test_a_gradient_that_nobody_asked_for_is_none(ops):
    """Of results without gradient nothing is computed; the backward op itself wants at least one."""
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4)
    scaled, mean, _ = torch.ops.several.standardize(x, w)
    torch.autograd.grad(mean.sum(), x)
    assert scaled.requires_grad
    expected = r"standardize: expected grad_scaled or grad_mean or grad_deviation to be a tensor, got None"
    with pytest.raises(RuntimeError, match=expected):
        torch.ops.several.standardize_backward(None, None, None, x.detach(), w, needs_input_grad=[True, False])


def test_export_and_decompositions(ops):
    class Model(torch.nn.Module):
        def forward(self, x, w):
            scaled, _, deviation = torch.ops.several.standardize(x, w)
            return scaled * 2, deviation

    x, w = torch.randn(6, 4), torch.randn(4)
    program = torch.export.export(Model(), (x, w), dynamic_shapes=({0: torch.export.Dim("batch", min=2)}, None))
    plain = program.run_decompositions(opreg.decompositions())
    assert not any("several" in str(n.target) for n in plain.graph.nodes)
    x = torch.randn(9, 4)
    for made in (program, plain):
        torch.testing.assert_close(made.module()(x, w), Model()(x, w))
    fused, report = opreg.fuse(program)
    assert not report.swapped
    torch.testing.assert_close(fused.module()(x, w), Model()(x, w))


def test_faces(ops):
    face = opreg.functional.several.standardize
    assert inspect.signature(face).return_annotation == tuple[Tensor, Tensor, Tensor]
    x, w = torch.randn(3, 4), torch.randn(4)
    torch.testing.assert_close(face(x, w, 0.5), standardize(x, w, 0.5))
    module = opreg.nn.several.SineAndCosine("sum")
    torch.testing.assert_close(module(x), (x.sin().sum(), x.cos().sum()))
    assert inspect.signature(module.forward).return_annotation == tuple[Tensor, Tensor]


def test_meta_tensors_have_each_result_s_shape(ops):
    x, w = torch.empty(5, 4, device="meta", dtype=torch.bfloat16), torch.empty(4, device="meta", dtype=torch.bfloat16)
    results = torch.ops.several.standardize(x, w)
    assert [tuple(t.shape) for t in results] == [(5, 4), (5,), (5,)]
    assert {t.dtype for t in results} == {torch.bfloat16}
    wrong = r"standardize: expected grad_mean of shape \[5\], got \[4\]"
    with pytest.raises(RuntimeError, match=wrong):
        torch.ops.several.standardize_backward(None, w, None, x, w, needs_input_grad=[True, False])


@pytest.mark.parametrize(
    "returns", ["Tensor[]", "(Tensor, Tensor)", "(Tensor scaled, Tensor)", "(Tensor scaled, int count)", "()"]
)
def test_a_schema_without_names_is_refused(returns):
    wrong = declaration("refused", schema=f"(Tensor input, Tensor weight) -> {returns}")
    with pytest.raises(ValueError, match=r"several::refused: expected a schema \"\(\.\.\.\) -> Tensor\", or .*, got"):
        opreg.register(wrong)


def test_a_library_s_schemas_are_looked_at():
    lib = torch.library.Library("several", "FRAGMENT")
    lib.define("unnamed(Tensor input) -> (Tensor, Tensor)")
    lib.define("unnamed_backward(Tensor? grad_a, Tensor input, *, bool[1] needs_input_grad) -> Tensor")
    with pytest.raises(ValueError, match="several::unnamed: expected a schema with a name for each of several results"):
        opreg.register(declaration("unnamed", schema="", kernels=None))
    lib.define("one(Tensor input) -> (Tensor a, Tensor b)")
    lib.define("one_backward(Tensor grad_output, Tensor input, *, bool[1] needs_input_grad) -> Tensor")
    expected = r"several::one: expected a schema one_backward\(Tensor\? grad_a, Tensor\? grad_b, \.\.\., \*, bool\[1\]"
    with pytest.raises(ValueError, match=expected):
        opreg.register(declaration("one", schema="", kernels=None))


@pytest.mark.parametrize(
    ("made", "got"),
    [
        (lambda x: x, "a float32 tensor"),
        (lambda x: (x, x), "a tuple of 2 tensors"),
        (lambda x: (x, x, None), "a tuple"),
    ],
)
def test_a_kernel_that_returns_something_else(made, got):
    op = opreg.register(declaration("wrong_results", kernels={"CPU": lambda input, weight, eps=1e-3: made(input)}))
    expected = f"wrong_results: expected its kernel to return a tuple of scaled, mean, deviation, got {got}"
    with pytest.raises(RuntimeError, match=expected):
        op.value(torch.randn(3, 4), torch.randn(4))
    registry.unregister(op.qualname)
