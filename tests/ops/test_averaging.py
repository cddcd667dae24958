"""ema_update_: values, what it refuses, and that compilers keep its writes in their place."""

import copy

import pytest
import torch
from torch import nn

import opreg
from conftest import DEVICE, samples_of
from opreg.testing import Maker

ema_update_ = torch.ops.lossreg.ema_update_
OP = opreg.get("ema_update_")
SAMPLES = range(len(samples_of(OP)))


def lists(sample):
    averages, params, decay = sample.args
    return [t.clone() for t in averages], params, decay


def expected(averages, params, decay):
    """Element by element, in Python."""

    def new(a, p):
        if not a.is_floating_point():
            return p.clone()
        values = [decay * x + (1 - decay) * y for x, y in zip(a.flatten().tolist(), p.flatten().tolist(), strict=True)]
        return torch.tensor(values, dtype=torch.float64).reshape(a.shape)

    return [new(a, p) for a, p in zip(averages, params, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("number", SAMPLES)
def test_values(number, dtype):
    sample = samples_of(OP, dtype=dtype)[number]
    averages, params, decay = lists(sample)
    want, kept = expected(averages, params, decay), [p.clone() for p in params]
    assert ema_update_(averages, params, decay) is None
    eps = torch.finfo(dtype).eps
    for a, w, p, k in zip(averages, want, params, kept, strict=True):
        torch.testing.assert_close(a, w.to(a.device, a.dtype), rtol=eps, atol=eps)
        assert torch.equal(p, k)


@pytest.mark.parametrize("number", SAMPLES)
def test_reference(number):
    sample = samples_of(OP)[number]
    averages, params, decay = lists(sample)
    others, _, _ = lists(sample)
    ema_update_(averages, params, decay)
    OP.write_reference(others, params, decay)
    torch.testing.assert_close(averages, others)


def test_large_and_strided():
    """Over several chunks and threads; a slice, a transposed and a channels-last tensor."""
    torch.manual_seed(0)
    base = torch.randn(300, 401, device=DEVICE)
    image = torch.randn(3, 5, 31, 33, device=DEVICE).contiguous(memory_format=torch.channels_last)
    averages = [base.clone()[:, ::2], base.clone().t(), image.clone()]
    params = [torch.randn(a.shape, device=DEVICE) for a in averages]
    want = [0.99 * a.double() + 0.01 * p.double() for a, p in zip(averages, params, strict=True)]
    ema_update_(averages, params, 0.99)
    for a, w in zip(averages, want, strict=True):
        torch.testing.assert_close(a.double(), w, rtol=1e-6, atol=1e-6)


def test_a_pair_may_be_one_tensor():
    t = torch.randn(5, device=DEVICE)
    before = t.clone()
    ema_update_([t], [t], 0.25)
    torch.testing.assert_close(t, before)


def random_view(buffer, generator):
    """Any sizes and strides in a buffer, and the places of its elements there."""

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    size = [draw(1, 4) for _ in range(draw(1, 4))]
    stride = [draw(0, 12) for _ in size]
    offset = draw(0, 20)
    view = buffer.as_strided(size, stride, offset)
    places = torch.arange(len(buffer)).as_strided(size, stride, offset).flatten().tolist()
    return view, places


def test_overlap_is_decided_by_element():
    """Random views of one buffer, in lists of two: refused just where an average meets another element."""
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(2000):
        buffer = torch.randn(160, device=DEVICE, dtype=torch.float64)
        drawn = [random_view(buffer, generator) for _ in range(2)]
        inside = int(torch.randint(0, 2, (), generator=generator))  # is the second one an average or a parameter?
        params = [torch.randn(view.shape, device=DEVICE, dtype=torch.float64) for view, _ in drawn]
        (first, places), (second, others) = drawn
        if inside:
            averages, clash = [first, second], len({*places, *others}) < len(places) + len(others)
        else:
            averages, params = [first, torch.zeros(second.shape, device=DEVICE).double()], [params[0], second]
            clash = len({*places}) < len(places) or bool({*places} & {*others})
        want = expected(averages, params, 0.25)
        if clash:
            with pytest.raises(RuntimeError, match=r"ema_update_: expected averages.* share"):
                ema_update_(averages, params, 0.25)
            refused += 1
        else:
            ema_update_(averages, params, 0.25)
            torch.testing.assert_close([a.cpu() for a in averages], want)
    assert 500 < refused < 1500


@pytest.mark.parametrize("columns", [slice(None, None, 2), slice(None, 3), slice(2, 5)], ids=str)
def test_parts_of_one_matrix(columns):
    """Columns lie between each other in memory, and are apart; so do blocks, and a matrix viewed as bytes."""
    matrix = torch.randn(50, 6, device=DEVICE)
    rest = [k for k in range(6) if k not in range(6)[columns]]
    averages = [matrix[:, columns], *(matrix[:, k] for k in rest)]
    params = [torch.randn(a.shape, device=DEVICE) for a in averages]
    want = expected(averages, params, 0.5)
    ema_update_(averages, params, 0.5)
    torch.testing.assert_close([a.double().cpu() for a in averages], want)
    ema_update_([matrix[:, 0]], [matrix[:, 1]], 0.5)
    counters = matrix.view(torch.int32)  # other elements in the same memory
    with pytest.raises(RuntimeError, match=r"share no memory with another tensor of the call, got averages.0. and "):
        ema_update_([matrix[:, 0], counters[3]], [params[0][:, 0], counters[3].clone()], 0.5)


def test_errors():
    """On real tensors and, where no address is needed, on fakes; and nothing was written before."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for sample in OP.errors(Maker(device=DEVICE)):
        before = [t.clone() for t in sample.args[0]]
        with pytest.raises(RuntimeError, match=sample.message):
            ema_update_(*sample.args)
        assert all(torch.equal(a, b) for a, b in zip(sample.args[0], before, strict=True))
        if not sample.values:
            mode = FakeTensorMode()
            fakes = [[mode.from_tensor(t) for t in tensors] for tensors in sample.args[:2]]
            with mode, pytest.raises(RuntimeError, match=sample.message):
                ema_update_(*fakes, sample.args[2])


def test_the_last_pair_is_checked_before_the_first_is_written():
    averages = [torch.zeros(2, device=DEVICE), torch.zeros(3, device=DEVICE)]
    with pytest.raises(RuntimeError, match="params\\[1\\]"):
        ema_update_(averages, [torch.ones(2, device=DEVICE), torch.ones(4, device=DEVICE)], 0.5)
    assert averages[0].tolist() == [0, 0]


def test_autograd():
    """Parameters are constants; an average that requires grad is refused; what is changed counts as changed."""
    p = torch.ones(3, device=DEVICE, requires_grad=True)
    a = torch.zeros(3, device=DEVICE)
    ema_update_([a], [p], 0.5)
    assert not a.requires_grad
    with pytest.raises(RuntimeError, match="expected averages without gradient, for they"):
        ema_update_([p], [a], 0.5)
    with torch.no_grad():
        ema_update_([p], [a], 0.5)
    assert p.tolist() == [0.75] * 3

    y = (p * a).sum()  # keeps a for the backward pass
    ema_update_([a], [p], 0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        version = a._version
        ema_update_([a, torch.zeros(3, device=DEVICE)], [p, p], 0.5)
    assert a._version > version


def test_by_its_declaration():
    """Values, torch.library.opcheck, messages."""
    opreg.testing.check(OP, DEVICE)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x))


def trained(compile_):
    """Two steps of SGD with an average after each: the average's tensors."""
    torch.manual_seed(0)
    model = Net().to(DEVICE, torch.float64)
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    xs = torch.randn(2, 8, 4, device=DEVICE, dtype=torch.float64)
    averages, tensors = (list(m.state_dict().values()) for m in (average, model))

    def step(x):
        optimizer.zero_grad()
        model(x).pow(3).sum().backward()
        optimizer.step()
        ema_update_(averages, tensors, 0.8)

    def after(x):
        """What the update reads is what the graph wrote before it, and what follows reads the update."""
        with torch.no_grad():
            tensors[0].mul_(0.5)
            ema_update_(averages, tensors, 0.8)
            averages[0].add_(1.0)
            return averages[0] * x.sum()

    step, after = compile_(step), compile_(after)
    results = [(step(x), after(x))[1] for x in xs]
    return [*results, *averages]


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_training_step(backend):
    torch._dynamo.reset()
    compiled = trained(lambda f: torch.compile(f, backend=backend))
    torch.testing.assert_close(compiled, trained(lambda f: f))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_whole_graph(backend):
    """No graph break: intermediate values as averages and as params, and arguments."""
    torch._dynamo.reset()

    def f(a, p):
        b = a * 2
        ema_update_([a, b], [p, p + 1], 0.75)
        return a + b

    def arguments():
        torch.manual_seed(1)
        return torch.randn(4, device=DEVICE), torch.randn(4, device=DEVICE)

    mine, theirs = arguments(), arguments()
    torch.testing.assert_close(torch.compile(f, backend=backend, fullgraph=True)(*mine), f(*theirs))
    torch.testing.assert_close(mine, theirs)


class Averager(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(3))

    def forward(self, x):
        ema_update_([self.average], [x.mean(0)], 0.5)
        return x - self.average


def test_export():
    """One node; the buffer is updated, in the program and in what decomposing makes of it."""
    x = torch.randn(5, 3)
    program = torch.export.export(Averager(), (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    assert [n.target for n in program.graph.nodes].count(OP.value) == 1
    decomposed = program.run_decompositions(opreg.decompositions())
    for module in (copy.deepcopy(program.module()), decomposed.module()):  # which share the buffer
        eager, y = Averager(), torch.randn(7, 3)
        for _ in range(2):
            torch.testing.assert_close(module(y), eager(y))
        torch.testing.assert_close(module.get_buffer("average"), eager.average)


def test_decomposition():
    """Plain ATen, where it comes before functionalisation. (torch.export wraps what writes, as it is, in a node.)"""
    from torch.fx.experimental.proxy_tensor import make_fx

    def f(a, p):
        ema_update_([a], [p], 0.75)
        return a * 1

    graph = make_fx(f, decomposition_table=opreg.decompositions())(torch.zeros(3), torch.ones(3))
    names = [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]
    assert "aten.copy_.default" in names
    assert not any("lossreg" in n for n in names)
    a = torch.zeros(3)
    torch.testing.assert_close(graph(a, torch.ones(3)), torch.full((3,), 0.25))
    torch.testing.assert_close(a, torch.full((3,), 0.25))


def test_vmap():
    averages, params = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    want = 0.9 * averages + 0.1 * params

    def f(a, p):
        ema_update_([a], [p], 0.9)
        return a

    torch.testing.assert_close(torch.func.vmap(f)(averages, params), want)
    torch.testing.assert_close(averages, want)


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_emulated(emulated):
    for sample in samples_of(OP, dtype=torch.float32)[:-1]:  # the last has no tensors
        results = []
        for seed, namespace in (
            (0, torch.ops.lossreg),
            (1, torch.ops.lossreg_emulated),
            (2, torch.ops.lossreg_emulated),
        ):
            emulated(seed)
            averages, params, decay = lists(sample)
            namespace.ema_update_(averages, params, decay)
            results.append(averages)
        torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-6)
        assert all(torch.equal(a, b) for a, b in zip(*results[1:], strict=True))


def test_declaration():
    assert (OP.mutated, OP.backward, OP.forward, OP.differentiable) == (["averages"], None, None, [])
    from opreg.catalogue import coverage, show

    missing = {what for what, there in coverage(OP).items() if not there}
    assert missing <= {"CUDA", "second derivative"}
    assert "nothing: it writes to averages" in show(OP)
