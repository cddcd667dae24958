"""What Inductor gets on a GPU: the references of pointwise ops and boxes, which it fuses; the other ops as they are.

No GPU is needed: graphs are traced from fake tensors of a CUDA device, or on the CPU as if Inductor fused there.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.compile_fx import compile_fx
from torch._subclasses.fake_tensor import FakeTensorMode

import opreg
import opreg.op
from conftest import DEVICE, OPS, samples_of
from opreg._library import NAMESPACE
from opreg.passes._report import Report
from opreg.passes._rewrite import Rewriter
from opreg.passes.rules import RULES
from opreg.testing import tensors_with_grad

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the CPU stands in for a GPU")
FUSED = [op for op in map(opreg.get, OPS) if op.fuses_on("cuda")]
of_fused = pytest.mark.parametrize("fused", FUSED, ids=lambda op: op.short)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.fixture
def fused_here(monkeypatch):
    """The CPU is taken for a device on which Inductor fuses."""
    monkeypatch.setattr(opreg.op, "FUSING", frozenset({"cpu"}))


class Graphs:
    """A backend of ``torch.compile``: Inductor up to the graphs that it writes kernels for. These are kept, and run."""

    def __init__(self) -> None:
        self.seen: list[fx.GraphModule] = []

    def keep(self, graph, inputs, **options):
        self.seen.append(graph)
        return graph.forward

    def __call__(self, graph, inputs):
        # Inductor's own rewrites would be traced on the device
        return compile_fx(graph, inputs, inner_compile=self.keep, config_patches={"use_joint_graph_passes": False})

    def calls(self) -> list[str]:
        """The ops of ours in the graphs."""
        targets = [str(n.target) for graph in self.seen for n in graph.graph.nodes if n.op == "call_function"]
        return [t for t in targets if t.startswith(NAMESPACE)]


def fake(value, device):
    if not isinstance(value, Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_graph_that_inductor_gets(op, device):
    """Without a gradient: autograd's engine knows no CUDA device where torch was built without one."""
    graphs, sample = Graphs(), next(s for s in samples_of(op, dtype=torch.float32) if s.args[0].dim() > 1)
    with FakeTensorMode(), torch.no_grad():
        args = [fake(a, device) for a in sample.args]
        torch.compile(lambda *a: op.value(*a, **sample.kwargs), backend=graphs, fullgraph=True)(*args)
    assert graphs.seen
    assert graphs.calls() == ([] if op.inlined_on(device) else [f"{NAMESPACE}_kernels.{op.short}.default"])


@of_fused
@pytest.mark.parametrize(
    ("dtype", "most"),
    [(torch.float32, 4), (torch.bfloat16, 1), pytest.param(torch.float32, None, marks=pytest.mark.thorough)],
    ids=str,
)
def test_training(fused_here, fused, dtype, most):
    """Value and gradients of its samples, or of the first ones, are the kernels', with no op of ours in either half."""
    op, tolerance = fused, {torch.float32: 2e-5, torch.bfloat16: 2e-2}[dtype]
    for sample in samples_of(op, dtype=dtype, requires_grad=True)[:most]:
        torch._dynamo.reset()
        graphs, wanted = Graphs(), tensors_with_grad(op, sample)
        inputs = [a for n, a in zip(op.arguments, sample.args, strict=False) if n in wanted]

        def step(*args, sample=sample):
            return op.value(*args, **sample.kwargs)

        got, want = torch.compile(step, backend=graphs, fullgraph=True)(*sample.args), step(*sample.args)
        assert (got.shape, got.dtype, got.stride()) == (want.shape, want.dtype, want.stride())
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)
        if not inputs:
            continue
        scale = torch.linspace(0.5, 1.5, want.numel(), dtype=want.dtype).reshape(want.shape)
        both = [torch.autograd.grad(r, inputs, scale) for r in (got, want)]
        if sample.smooth:  # at a kink either side has its own choice
            torch.testing.assert_close(*both, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert graphs.calls() == []
        assert len(graphs.seen) == 2


def test_one_graph_for_every_batch(fused_here):
    counter = CompileCounterWithBackend(Graphs())

    def step(x, t):
        return opreg.functional.focal_loss(x.tanh(), t, reduction="none")

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=True)
    for n in (3, 5, 8, 13):
        # transposed: the result's strides are the input's
        x, t = torch.randn(4, n).t().requires_grad_(), torch.rand(n, 4)
        got, want = compiled(x, t), step(x, t)
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(r.sum(), x) for r in (got, want)))
    assert counter.frame_count == 1


def test_autocast(fused_here):
    """As without a compiler: the loss is float32."""
    x, t = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3)

    def step(x, t):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return opreg.functional.mse_loss(x @ x.t(), t @ t.t())

    graphs = Graphs()
    got, want = torch.compile(step, backend=graphs, fullgraph=True)(x, t), step(x, t)
    assert got.dtype == want.dtype == torch.float32
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(r, x) for r in (got, want)), rtol=1e-2, atol=1e-2)
    assert graphs.calls() == []


def test_who_is_not_inductor_sees_the_op(fused_here):
    """Programs that are exported, and other backends."""
    x, t = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3)

    class Loss(torch.nn.Module):
        def forward(self, x, t):
            return opreg.functional.mse_loss(x, t)

    exported = torch.export.export(Loss(), (x, t))
    assert f"torch.ops.{NAMESPACE}.mse_loss" in exported.graph_module.code
    counter = CompileCounterWithBackend("aot_eager")
    loss = torch.compile(Loss(), backend=counter, fullgraph=True)(x, t)
    torch.testing.assert_close(loss, torch.nn.functional.mse_loss(x, t))
    torch.testing.assert_close(torch.compile(exported.module(), backend=(graphs := Graphs()))(x, t), loss)
    assert graphs.calls() == []


def test_derivatives_of_a_derivative(fused_here):
    def penalty(x, t):
        return torch.func.grad(lambda x: opreg.functional.mse_loss(x.sin(), t))(x).square().sum()

    x, t = torch.randn(5, 3, requires_grad=True), torch.rand(5, 3)
    got, want = torch.compile(penalty, backend=Graphs(), fullgraph=True)(x, t), penalty(x, t)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(r, x) for r in (got, want)))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_rewrite_leaves_to_inductor_what_that_fuses(device):
    """Native and hand-written, and says so; a row loss it takes over everywhere."""

    def step(x, t, labels):
        p = torch.sigmoid(x)
        p_t = p * t + (1 - p) * (1 - t)
        focal = (1 - p_t) ** 2 * F.binary_cross_entropy_with_logits(x, t, reduction="none")
        return F.mse_loss(p, t) + F.cross_entropy(x, labels) + focal.mean() + F.silu(x).sum()

    module = fx.symbolic_trace(step)

    class Note(fx.Interpreter):
        def run_node(self, n):
            n.meta["example_value"] = result = super().run_node(n)
            return result

    with FakeTensorMode():
        x, t = (torch.empty(4, 3, device=device) for _ in range(2))
        Note(module).run(x, t, torch.empty(4, dtype=torch.int64, device=device))
    report = Report()
    Rewriter(module, RULES, report, compiled=True).run()
    if device == "cpu":
        assert sorted(s.op for s in report.swapped) == ["cross_entropy", "focal_loss", "mse_loss", "swish"]
        return
    assert [s.op for s in report.swapped] == ["cross_entropy"]
    hand_written = "focal_loss without alpha, p_t written out"
    natives = ["binary_cross_entropy_with_logits", "mse_loss", "silu"]
    assert {left.what for left in report.left} >= {hand_written, *natives}
    for left in report.left:
        assert left.why.startswith("Inductor fuses this: on cuda, ")
    assert "would be a kernel of its own" in str(report)
