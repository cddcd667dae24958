"""Python functions as ops: compiled, and with everything that our own ops have."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg

NAMESPACE = "formulas_test"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPREG_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def cauchy_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, width: float = 1.0) -> Tensor:
    """Grows with the logarithm of the difference, from ``width`` on."""
    loss = width**2 / 2 * torch.log(1 + ((input - target) / width) ** 2)
    return loss if weight is None else loss * weight


def poly1_loss(nll: Tensor, *, eps: float = 1.0, squared: bool = False) -> Tensor:
    loss = nll + eps * (1 - torch.exp(-nll))
    return loss**2 if squared else loss


def rooted_tversky_loss(
    tp: Tensor, fp: Tensor, fn: Tensor, *, alpha: float, softmax: float = 1.0, rooted: bool = False
) -> Tensor:
    """An option that has no default, and one whose name csrc has for something else."""
    loss = 1 - (tp + softmax) / (tp + alpha * fp + (1 - alpha) * fn + softmax)
    return loss + torch.sqrt(fp) if rooted else loss


@pytest.fixture(scope="module")
def cauchy(cache: None):  # type: ignore[no-untyped-def]
    return opreg.pointwise(NAMESPACE, domain={"width": "> 0"})(cauchy_loss)


@pytest.fixture(scope="module")
def poly1(cache: None):  # type: ignore[no-untyped-def]
    return opreg.row(NAMESPACE)(poly1_loss)


def test_pointwise(cauchy) -> None:  # type: ignore[no-untyped-def]
    opreg.testing.check(cauchy.op)
    with pytest.raises(RuntimeError, match="cauchy_loss: expected width > 0, got -1"):
        cauchy(torch.ones(2), torch.ones(2), width=-1.0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(cauchy, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    exact = [8 * torch.randn(300), 8 * torch.randn(300), torch.rand(300)]
    ours = [t.to(dtype).requires_grad_() for t in exact]
    theirs = [t.detach().double().requires_grad_() for t in ours]
    cauchy(*ours, reduction="sum").backward()
    cauchy_loss(*theirs).sum().backward()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=tolerance, atol=tolerance)  # type: ignore[union-attr]


def test_row(poly1) -> None:  # type: ignore[no-untyped-def]
    x, t, w = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, -100]), torch.rand(5).double()
    torch.testing.assert_close(poly1(x, t, w, eps=0.0), F.cross_entropy(x, t, w))
    assert all(
        torch.autograd.gradcheck(lambda x, s=s: poly1(x, t, w, squared=s), x.requires_grad_()) for s in (True, False)
    )
    assert next(iter(poly1.op.samples(opreg.testing.Maker()))).args[1].dtype == torch.int64


@pytest.fixture(scope="module")
def tversky(cache: None):  # type: ignore[no-untyped-def]
    return opreg.region(NAMESPACE, domain={"softmax": ">= 0"})(rooted_tversky_loss)


def test_region(tversky) -> None:  # type: ignore[no-untyped-def]
    x, t, w = 3 * torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7)), torch.rand(3)
    t[0, :2] = 255
    for options in ({"weight": w}, {"batch": True}, {"reduction": "none"}, {"reduction": "sum", "softmax": 0.0}):
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        shared = {"ignore_index": 255, **options}
        loss = tversky(ours, t, alpha=0.3, **shared)
        smooth = shared.pop("softmax", 1.0)
        expected = torch.ops.lossreg.tversky_loss(theirs, t, alpha=0.3, beta=0.7, smooth=smooth, **shared)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss.sum(), ours)[0], torch.autograd.grad(expected.sum(), theirs)[0]
        )
    y = torch.rand(2, 3, 4, dtype=torch.float64, requires_grad=True)
    z = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, y: tversky(z, y, alpha=0.3, rooted=True), (z, y))
    with pytest.raises(RuntimeError, match="rooted_tversky_loss: expected softmax >= 0, got -1"):
        tversky(x, t, alpha=0.3, softmax=-1.0)


def test_an_option_without_a_default_under_a_transform_and_in_a_module(tversky) -> None:  # type: ignore[no-untyped-def]
    x, t = torch.randn(2, 3, 4), torch.randint(0, 3, (2, 4))
    module = tversky.Module(alpha=0.3)
    slope = torch.func.grad(lambda x: module(x, t))(x)
    torch.testing.assert_close(slope, torch.autograd.grad(module(x.requires_grad_(), t), x)[0])
    with pytest.raises(RuntimeError, match="rooted_tversky_loss: expected softmax >= 0, got -1"):
        tversky.Module(alpha=0.3, softmax=-1.0)


def confident_loss(nll: Tensor, entropy: Tensor, *, beta: float = 0.1, focal: bool = False) -> Tensor:
    loss = nll - beta * entropy
    return loss * (1 - torch.exp(-nll)) ** 2 if focal else loss


@pytest.fixture(scope="module")
def confident(cache: None):  # type: ignore[no-untyped-def]
    return opreg.row(NAMESPACE)(confident_loss)


def test_row_with_its_entropy(confident) -> None:  # type: ignore[no-untyped-def]
    x, t = 4 * torch.randn(6, 5, 2, dtype=torch.float64), torch.randint(0, 5, (6, 2))
    t[0] = -100
    p = x.softmax(1)
    expected = F.cross_entropy(x, t, reduction="none") + 0.3 * (p * p.log()).sum(1)
    torch.testing.assert_close(confident(x, t, beta=0.3), expected[t != -100].mean())
    assert all(
        torch.autograd.gradcheck(lambda x, f=f: confident(x, t, focal=f), x.requires_grad_()) for f in (True, False)
    )
    # classes that are masked out, and a row whose probability is all in one class
    x = torch.tensor([[0.0, -torch.inf, 1.0], [200.0, 0.0, -200.0]], requires_grad=True)
    loss = confident(x, torch.tensor([2, 0]), beta=1.0, reduction="none")
    p = torch.tensor([0.0, 1.0]).softmax(0)
    torch.testing.assert_close(loss.detach(), torch.stack([-p[1].log() + (p * p.log()).sum(), torch.tensor(0.0)]))
    (slope,) = torch.autograd.grad(loss.sum(), x)
    assert slope.isfinite().all()
    assert slope[0, 1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("of", ["poly1", "tversky", "confident"])
def test_every_check_of_rows_and_regions(of: str, request: pytest.FixtureRequest) -> None:
    opreg.testing.check(request.getfixturevalue(of).op)


def test_tensors_and_options_of_rows_and_regions() -> None:
    def of_inputs(input: Tensor, tp: Tensor) -> Tensor:
        return tp * input

    def weighted(tp: Tensor, *, weight: float = 1.0) -> Tensor:
        return tp * weight

    def optional(tp: Tensor, fp: Tensor | None = None) -> Tensor:
        return tp

    def optional_entropy(nll: Tensor, entropy: Tensor | None = None) -> Tensor:
        return nll

    def of_options(nll: Tensor, *, weight: float = 1.0) -> Tensor:
        return nll * weight

    names = "tp, fp, fn, intersection, predicted, true, union"
    with pytest.raises(TypeError, match=f"of_inputs: expected tensors of the names {names}, got input, tp"):
        opreg.region(NAMESPACE)(of_inputs)
    with pytest.raises(TypeError, match=f"optional: expected tensors of the names {names}, got tp, Tensor\\? fp=None"):
        opreg.region(NAMESPACE)(optional)
    with pytest.raises(TypeError, match="weighted: expected options of other names than input, target, weight, batch"):
        opreg.region(NAMESPACE)(weighted)
    with pytest.raises(
        TypeError, match="expected a tensor, the cross entropy of a row, and perhaps one of the name ent"
    ):
        opreg.row(NAMESPACE)(optional_entropy)
    with pytest.raises(TypeError, match="of_options: expected options of other names than input, target, weight"):
        opreg.row(NAMESPACE)(of_options)


def test_faces(cauchy) -> None:  # type: ignore[no-untyped-def]
    module = cauchy.Module(width=2.0, reduction="sum")
    assert repr(module) == "CauchyLoss(width=2.0, reduction='sum')"
    x, t = torch.randn(7), torch.randn(7)
    torch.testing.assert_close(module(x, t), cauchy_loss(x, t, width=2.0).sum())
    assert cauchy.formula is cauchy_loss
    assert cauchy.__doc__.startswith("Grows with the logarithm")
    assert opreg.get(f"{NAMESPACE}::cauchy_loss") is cauchy.op


def test_emitted_text_is_a_family(cauchy) -> None:  # type: ignore[no-untyped-def]
    text = opreg.emit(cauchy)
    assert "struct CauchyLoss {" in text
    assert "using Ops = PointwiseOps<CauchyLoss>;" in text
    assert "T(width) * T(width)" in text.split("value(")[0]  # in make(), once a call
    assert text.count("log1p(") == 2  # of the value, and of the gradient in the weight
    assert max(map(len, text.splitlines())) <= 120
    with pytest.raises(TypeError, match="expected a function that opreg"):
        opreg.emit(cauchy_loss)


def test_compiled_and_exported(cauchy) -> None:  # type: ignore[no-untyped-def]
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return cauchy(2 * x, t, width=3.0)  # type: ignore[no-any-return]

    x, t = torch.randn(9, requires_grad=True), torch.randn(9)
    expected = Model()(x, t)
    (grad,) = torch.autograd.grad(expected, x)
    compiled = torch.compile(Model(), fullgraph=True)(x, t)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(torch.autograd.grad(compiled, x)[0], grad)
    program = torch.export.export(Model(), (x, t))
    assert any(n.target is cauchy.op.value for n in program.graph.nodes)
    plain = program.run_decompositions(opreg.decompositions())
    assert not any(NAMESPACE in str(n.target) for n in plain.graph.nodes)
    torch.testing.assert_close(plain.module()(x, t), expected)


def test_a_twin_in_a_model_is_found_without_a_rule(cauchy) -> None:  # type: ignore[no-untyped-def]
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            ratio = (t - x) / 2.5
            return (3.125 * torch.log1p(ratio * ratio)).mean()

    x, t = 4 * torch.randn(50), torch.randn(50)
    fused, report = opreg.fuse(torch.export.export(Model(), (x, t)))
    assert [s.op for s in report.swapped] == ["cauchy_loss"], report
    torch.testing.assert_close(fused.module()(x, t), Model()(x, t))


CELL = """
import sys, torch, opreg
from torch import Tensor

def cell(power, **options):
    text = f"def my_loss(x: Tensor, t: Tensor) -> Tensor:\\n    return (x - t).abs() ** {power}\\n"
    scope = {"Tensor": Tensor, "__name__": "__main__"}
    exec(text, scope)
    return opreg.pointwise("cells", **options)(scope["my_loss"])

x, t = torch.tensor([3.0]), torch.tensor([1.0])
assert cell(2).op is cell(2).op, "the same text again is the same op"
assert cell(2)(x, t).item() == 4.0
try:
    cell(3)
except ValueError as error:
    assert "replace=True" in str(error), error
else:
    raise AssertionError("another text took the op's place without a word")
assert cell(3, replace=True)(x, t).item() == 8.0
assert torch.ops.cells.my_loss(x, t).item() == 8.0
assert not {"torch._dynamo", "sympy"} & sys.modules.keys(), "importing these takes longer than loading a kept op"
"""


def test_a_notebooks_cell_can_be_run_again(tmp_path: Path) -> None:
    cell = tmp_path / "cell.py"
    cell.write_text(CELL)
    done = subprocess.run([sys.executable, str(cell)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
