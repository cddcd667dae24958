"""torch.compile and torch.export: no graph break, no recompile per batch size, one node a loss, inlined activations."""

import operator

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import run_and_get_code

import opreg
from conftest import DEVICE
from opreg._library import NAMESPACE
from opreg.testing import Maker, joined, repeated


def first_batch(op, n=6, seed=0):
    """The op's first sample with a batch of n: its tensors, repeated along the first dimension."""
    sample = next(s for s in op.samples(Maker(torch.float32, device=DEVICE, seed=seed)) if s.args[0].dim() >= 2)
    return repeated(op, sample, n), sample.kwargs


# absent from some machines that have a GPU; their graphs are the CPU's
assert_expected_inline = pytest.importorskip("expecttest").assert_expected_inline


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_training_step_compiles_whole(op, dynamic):
    """Value and gradient under fullgraph=True, equal to eager; one compilation for all batch sizes when dynamic."""
    counter = CompileCounterWithBackend("aot_eager")

    def step(x, *rest):
        return joined(op.value(x * 0.9, *rest, **kwargs))

    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=dynamic or None)
    _, kwargs = first_batch(op)
    compiled_once = None
    for n in (3, 5, 8, 13) if dynamic else (3,):
        args, _ = first_batch(op, n)
        x = args[0].clone().requires_grad_()
        got, want = compiled(x, *args[1:]), step(x, *args[1:])
        torch.testing.assert_close(got, want)
        got_grad, want_grad = (torch.autograd.grad(r.sum(), x)[0] for r in (got, want))
        torch.testing.assert_close(got_grad, want_grad)
        # Dynamo may count an empty frame before it takes a float option as a constant
        compiled_once = compiled_once or counter.frame_count
        assert counter.frame_count == compiled_once
    assert sum(NAMESPACE in graph.code for graph in counter.graphs) == 1


def test_no_recompile_by_default(op):
    """Left to itself, Dynamo makes the batch dynamic at its second size, and is content with that."""
    counter = CompileCounterWithBackend("eager")
    _, kwargs = first_batch(op)
    compiled = torch.compile(lambda *args: op.value(*args, **kwargs), backend=counter, fullgraph=True)
    for n in (3, 5, 8, 13, 21):
        compiled(*first_batch(op, n)[0])
    assert counter.frame_count == 2


@pytest.mark.one_of_a_family
def test_inductor_inference_and_training(op):
    """The real backend, both modes."""
    args, kwargs = first_batch(op)
    x = args[0].requires_grad_()
    compiled = torch.compile(lambda x, *rest: joined(op.value(x.sin(), *rest, **kwargs)).sum() * 2, fullgraph=True)
    if op.short == "binary_cross_entropy":  # sin leaves its domain
        compiled = torch.compile(
            lambda x, *rest: joined(op.value(x.sigmoid(), *rest, **kwargs)).sum() * 2, fullgraph=True
        )
    got = compiled(x, *args[1:])
    inner = x.sigmoid() if op.short == "binary_cross_entropy" else x.sin()
    want = joined(op.value(inner, *args[1:], **kwargs)).sum() * 2
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x, *args[1:]), want)


def test_activations_are_inlined(op):
    """An activation fuses with its neighbours: one kernel forward, one backward, no call of the op left in the code."""
    if not op.inline:
        pytest.skip("opaque to Inductor")
    x = torch.randn(64, 33, device=DEVICE, requires_grad=True)
    tensors = len(op.differentiable)

    def between(x):
        return (op.value(*[x * 2 + 1] * tensors) * x).sin()

    compiled = torch.compile(between, fullgraph=True)

    def step(x):
        y = compiled(x)
        y.sum().backward()
        return y

    result, codes = run_and_get_code(step, x)
    torch.testing.assert_close(result, between(x))
    assert len(codes) == 2  # forward, backward
    for code in codes:
        assert NAMESPACE not in code
        kernels = code.count("async_compile.cpp_pybinding(") + code.count("async_compile.triton(")
        assert kernels == 1


def test_losses_stay_ops(op):
    if op.inline:
        pytest.skip("inlined")
    args, kwargs = first_batch(op)
    x = args[0].requires_grad_()
    compiled = torch.compile(lambda x, *rest: joined(op.value(x, *rest, **kwargs)), fullgraph=True)

    def step():
        result = compiled(x, *args[1:])
        result.sum().backward()
        return result

    _, codes = run_and_get_code(step)
    assert f"torch.ops.{NAMESPACE}_kernels.{op.short}" in codes[0]
    assert f"torch.ops.{NAMESPACE}_kernels.{op.short}_backward" in codes[1]


@pytest.mark.one_of_a_family
def test_compile_of_a_transform(op):
    args, kwargs = first_batch(op)
    compiled = torch.compile(
        torch.func.grad(lambda x, *rest: joined(op.value(x, *rest, **kwargs)).sum()),
        backend="aot_eager",
        fullgraph=True,
    )
    got = compiled(*args)
    x = args[0].clone().requires_grad_()
    want = torch.autograd.grad(joined(op.value(x, *args[1:], **kwargs)).sum(), x)[0]
    torch.testing.assert_close(got, want)


class Model(torch.nn.Module):
    def __init__(self, op, kwargs):
        super().__init__()
        self.op, self.kwargs = op, kwargs

    def forward(self, *args):
        return self.op(*args, **self.kwargs)


def exported(op, **options):
    args, kwargs = first_batch(op)
    batch, shapes = torch.export.Dim("batch", min=2), []
    for name, a in zip(op.arguments, args, strict=False):
        dim = op.batch_dims.get(name, 0)
        shapes.append({dim: batch} if dim is not None and a.dim() > dim else {})
    return torch.export.export(Model(op.value, kwargs), tuple(args), dynamic_shapes=(tuple(shapes),), **options), kwargs


def assert_one_node(op, program):
    calls = [n.target for n in program.graph.nodes if n.op == "call_function"]
    assert [call for call in calls if call is not operator.getitem] == [op.value]


@pytest.mark.one_of_a_family
def test_export_by_dynamo_keeps_one_node(op):
    program, kwargs = exported(op, strict=True)
    assert_one_node(op, program)
    other, _ = first_batch(op, 11, seed=1)
    torch.testing.assert_close(program.module()(*other), op.value(*other, **kwargs))


def test_export_keeps_one_node(op):
    """With a dynamic batch; the program runs at another size, and decomposes."""
    program, kwargs = exported(op)
    assert_one_node(op, program)
    other, _ = first_batch(op, 11, seed=1)
    want = op.value(*other, **kwargs)
    torch.testing.assert_close(program.module()(*other), want)
    decomposed = program.run_decompositions(opreg.decompositions())
    names = {str(n.target) for n in decomposed.graph.nodes if n.op == "call_function"}
    assert names
    assert not any(NAMESPACE in n for n in names)
    torch.testing.assert_close(decomposed.module()(*other), want)


def test_exported_program_round_trips(op, tmp_path):
    program, kwargs = exported(op)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2")
    other, _ = first_batch(op, 4, seed=2)
    torch.testing.assert_close(loaded.module()(*other), op.value(*other, **kwargs))


def test_exported_graph():
    """The graph of a small classifier, whole."""

    class Classifier(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(8, 3)

        def forward(self, x, target):
            scores = self.linear(torch.ops.lossreg.swish(x))
            loss = torch.ops.lossreg.cross_entropy(scores, target, label_smoothing=0.1)
            return loss, torch.ops.lossreg.focal_loss(scores, torch.zeros_like(scores), gamma=1.5)

    batch = torch.export.Dim("batch")
    program = torch.export.export(
        Classifier(), (torch.randn(4, 8), torch.tensor([0, 1, 2, 0])), dynamic_shapes=({0: batch}, {0: batch})
    )
    assert_expected_inline(
        program.graph_module.code.strip(),
        """\
def forward(self, p_linear_weight, p_linear_bias, x, target):
    swish = torch.ops.lossreg.swish.default(x);  x = None
    linear = torch.ops.aten.linear.default(swish, p_linear_weight, p_linear_bias);  swish = p_linear_weight = p_linear_bias = None
    cross_entropy = torch.ops.lossreg.cross_entropy.default(linear, target, None, -100, 'mean', 0.1);  target = None
    zeros_like = torch.ops.aten.zeros_like.default(linear, pin_memory = False)
    focal_loss = torch.ops.lossreg.focal_loss.default(linear, zeros_like, 0.25, 1.5);  linear = zeros_like = None
    return (cross_entropy, focal_loss)""",
    )


def training_graphs(function, *args):
    """What AOTAutograd makes of a function: the forward and the backward graph."""
    from functorch.compile import aot_function

    graphs = []

    def keep(graph, _):
        graphs.append(graph.code.strip())
        return graph

    aot_function(function, keep, keep)(*args).sum().backward()
    return "\n\n".join(graphs)


def test_training_graph_of_a_pointwise_loss():
    """Saved for the backward pass: the inputs, and nothing else."""
    x, t = torch.randn(4, requires_grad=True), torch.rand(4)
    assert_expected_inline(
        training_graphs(torch.ops.lossreg.focal_loss, x, t),
        """\
def forward(self, primals_1, primals_2):
    focal_loss = torch.ops.lossreg.focal_loss.default(primals_1, primals_2)
    return (focal_loss, primals_1, primals_2)

def forward(self, primals_1, primals_2, tangents_1):
    focal_loss_backward = torch.ops.lossreg.focal_loss_backward.default(tangents_1, primals_1, primals_2, needs_input_grad = [True, False]);  tangents_1 = primals_1 = primals_2 = None
    getitem = focal_loss_backward[0];  focal_loss_backward = None
    return (getitem, None)""",
    )


def test_training_graph_of_cross_entropy():
    """Saved for the backward pass: the inputs, and one value a row."""
    x, t = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    assert_expected_inline(
        training_graphs(torch.ops.lossreg.cross_entropy, x, t),
        """\
def forward(self, primals_1, primals_2):
    cross_entropy_forward = torch.ops.lossreg.cross_entropy_forward.default(primals_1, primals_2)
    getitem = cross_entropy_forward[0]
    getitem_1 = cross_entropy_forward[1];  cross_entropy_forward = None
    return (getitem, primals_1, primals_2, getitem_1)

def forward(self, primals_1, primals_2, getitem_1, tangents_1):
    cross_entropy_backward = torch.ops.lossreg.cross_entropy_backward.default(tangents_1, getitem_1, primals_1, primals_2, needs_input_grad = [True, False, False]);  tangents_1 = getitem_1 = primals_1 = primals_2 = None
    getitem_2 = cross_entropy_backward[0];  cross_entropy_backward = None
    return (getitem_2, None)""",
    )


def test_autocast_inside_the_graph():
    """Captured under autocast, a loss on bfloat16 scores is float32, with no cast of the scores in the graph."""

    def step(x, t):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            return torch.ops.lossreg.focal_loss(x, t)

    x, t = torch.randn(4, device=DEVICE).bfloat16(), torch.rand(4, device=DEVICE)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    assert compiled(x, t).dtype == torch.float32
    torch.testing.assert_close(compiled(x, t), step(x, t))
