"""``opreg.use``: calls of native losses and activations in eager mode go to the ops, and nothing else changes."""

import copy
import gc
import importlib.util
import inspect
import sys
import threading
import warnings
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision_for_cpu
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import opreg
from opreg.eager import _exchange, _use
from opreg.meta.schema import bind
from opreg.registry import of_namespace
from opreg.testing import Maker

# Of those that torch has in Python.
NATIVE, FUNCTIONS = [], {}
for declared in of_namespace():
    for spelling in declared.spellings:
        found = getattr(F, spelling.rsplit(".", 1)[1], None) if spelling.startswith("torch.nn.functional.") else None
        if isinstance(found, FunctionType):
            NATIVE.append(declared)
            FUNCTIONS[spelling] = found


@pytest.fixture(autouse=True)
def _whole_afterwards() -> Any:
    """Every function is what it was, whatever a test did."""
    codes = {s: f.__code__ for s, f in FUNCTIONS.items()}
    yield
    del _use._switches[:]
    _use._update()
    assert codes == {s: f.__code__ for s, f in FUNCTIONS.items()}
    assert not _use._blocks
    assert not _exchange._awaited
    assert not [f for f in sys.meta_path if getattr(getattr(f, "action", None), "func", None) is _exchange._exchange]


def swapped(used: opreg.use) -> dict[str, int]:
    found: dict[str, int] = {}
    for entry in used.report.swapped:
        found[entry.op] = found.get(entry.op, 0) + entry.times
    return found


def left(used: opreg.use) -> dict[str, str]:
    return {entry.what.rsplit(".", 1)[1]: entry.why for entry in used.report.left}


def scores() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 5, requires_grad=True), torch.randint(0, 5, (8,))


def with_gradients(call: Callable[..., Tensor], *tensors: Tensor) -> list[Tensor]:
    """The result of a call, its gradients, and the gradients of those."""
    leaves = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in tensors]
    wanted = [t for t in leaves if t.requires_grad]
    result = call(*leaves)
    first = torch.autograd.grad(result.sum(), wanted, create_graph=True)
    second = [g.square().sum() for g in first if g.requires_grad]
    return [result, *first, *(torch.autograd.grad(sum(second), wanted, allow_unused=True) if second else ())]  # type: ignore[call-overload]


# what is sent


@pytest.mark.parametrize("native", NATIVE, ids=lambda op: op.short)
def test_every_native_function_goes_to_its_op(native: opreg.Op) -> None:
    """Value and gradients are torch's. What torch's function does not give on its own is compared elsewhere: extremes,
    tensors without elements, and targets of int32, which only the op takes."""
    op = native
    name, sent = op.spellings[0].rsplit(".", 1)[1], 0
    parameters = inspect.signature(getattr(F, name)).parameters
    for sample in op.samples(Maker()):
        bound = bind(op.value, sample.args, sample.kwargs)
        tensors = {n: t for n, t in bound.items() if isinstance(t, Tensor)}
        unlike = any(t.dtype in (torch.int32, torch.uint8) or not t.numel() for t in tensors.values())
        extra = any(n not in parameters and bound[n] != op.defaults[n] for n in bound if n in op.defaults)
        if not sample.smooth or unlike or extra:
            continue
        given = {n: a for n, a in bound.items() if n in parameters}
        wanted = [n for n in op.differentiable_in(bound) if n in tensors and tensors[n].is_floating_point()]

        def run(given: dict[str, Any] = given, wanted: list[str] = wanted) -> list[Tensor]:
            leaves = {n: given[n].detach().clone().requires_grad_() for n in wanted}
            result = getattr(F, name)(**{**given, **leaves})
            return [result, *torch.autograd.grad(result.sum(), list(leaves.values()))]

        try:
            expected = run()
        except (RuntimeError, ValueError):  # a shape that torch's function does not take
            continue
        with opreg.use() as used:
            got = run()
        sent += swapped(used).get(op.short, 0)
        for e, g in zip(expected, got, strict=True):
            torch.testing.assert_close(g, e, rtol=2e-5, atol=2e-6)
    assert sent >= 2


def test_every_spelling_is_exchanged() -> None:
    """A function with *args or a closure could not be, and one in C has no code: there the module over it is."""
    with opreg.use():
        for spelling, function in FUNCTIONS.items():
            assert function.__code__ is _exchange.functions[spelling].code


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_a_module_over_a_function_in_c(approximate: str) -> None:
    """nn.GELU is reached, by whoever calls it, F.gelu itself is not; a compiled one and a traced one stay torch's."""
    x, module = torch.randn(5, 3, requires_grad=True), torch.nn.GELU(approximate)
    expected, (gradient,) = module(x), torch.autograd.grad(module(x).sum(), x)
    before = torch.nn.GELU.forward.__code__
    with opreg.use() as used:
        got = torch.nn.Sequential(module)(x)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], gradient)
        assert [(s.op, s.rule, s.times) for s in used.report.swapped] == [("gelu", "torch.nn.functional.gelu", 1)]
        F.gelu(x)
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), expected)
        traced = torch.fx.symbolic_trace(torch.nn.Sequential(module))
        assert len(used.report.swapped) == 1
        torch.testing.assert_close(module(x.double()), F.gelu(x.double(), approximate=approximate))
        with opreg.use(activations=False):
            module(x)
    assert torch.nn.GELU.forward.__code__ is before
    torch.testing.assert_close(traced(x), expected)
    assert sum(s.times or 0 for s in used.report.swapped) == 2


def test_modules_and_names_imported_earlier() -> None:
    x, y = scores()
    with opreg.use() as used:
        a, b, c = torch.nn.CrossEntropyLoss()(x, y), cross_entropy(x, y), F.cross_entropy(x, y)
        torch.nn.SiLU()(x), torch.nn.BCEWithLogitsLoss()(x, torch.rand(8, 5))
    assert a == b == c
    assert swapped(used) == {"cross_entropy": 3, "swish": 1, "binary_cross_entropy_with_logits": 1}
    assert {entry.where.split(":")[0] for entry in used.report.swapped} == {__file__}
    assert "times" in str(used.report)


def test_second_derivatives() -> None:
    """The op's second derivative runs its definition, which is torch's own function, and not the op again."""
    x, y = torch.randn(4, 3), torch.randn(4, 3)

    def call(a: Tensor, b: Tensor) -> Tensor:
        return F.huber_loss(a**2, b) + F.cross_entropy(a, b.argmax(1))

    expected = with_gradients(call, x, y)
    with opreg.use() as used:
        got = with_gradients(call, x, y)
    assert swapped(used) == {"huber_loss": 1, "cross_entropy": 1}
    for e, g in zip(expected, got, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-5)


def test_kinds_of_calls_are_told_apart() -> None:
    """One call after the other of one function, each with another answer."""
    x, y, target = torch.randn(4, 3), torch.rand(4, 3), torch.ones(4, 3, requires_grad=True)
    with opreg.use() as used:
        for _ in range(2):
            F.binary_cross_entropy_with_logits(x, y)
            F.hinge_embedding_loss(x, target)  # only torch has a gradient for the target
            with torch.no_grad():
                F.hinge_embedding_loss(x, target)
            F.mse_loss(x, y), F.mse_loss(x.double(), y.double())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                F.mse_loss(x, y[0])
            F.mse_loss(torch.randn(7, 7), torch.randn(7, 7))
            with pytest.raises((ValueError, RuntimeError)):
                F.binary_cross_entropy_with_logits(x, y[:3])
    assert swapped(used) == {"binary_cross_entropy_with_logits": 2, "hinge_embedding_loss": 2, "mse_loss": 8}
    assert {e.why.split(",")[0]: e.times for e in used.report.left if "loss" in e.what} == {"target requires grad": 2}


@pytest.mark.parametrize("inplace", [False, True])
def test_in_place(inplace: bool) -> None:
    x = torch.randn(5)
    expected, y = F.silu(x), x.clone()
    with opreg.use() as used:
        got = F.silu(y, inplace=inplace)
    torch.testing.assert_close(got, expected)
    assert (got is y) == inplace
    assert bool(swapped(used)) != inplace
    assert bool(left(used)) == inplace


def test_errors_are_those_of_torch() -> None:
    x, y = scores()
    wrong: list[tuple[type[Exception], Callable[[], Any]]] = [
        (IndexError, lambda: F.cross_entropy(x, y + 7)),
        (ValueError, lambda: F.cross_entropy(x, y[:3])),
        (ValueError, lambda: F.cross_entropy(x, y, reduction="average")),
        (TypeError, lambda: F.cross_entropy(x)),
        (RuntimeError, lambda: F.binary_cross_entropy(x * 9, torch.rand(8, 5))),
    ]
    for kind, call in wrong:
        with pytest.raises(kind) as native:
            call()
        with opreg.use() as used, pytest.raises(kind) as ours:
            call()
        assert str(ours.value) == str(native.value)
        assert not used.report.swapped


def test_legacy_arguments() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = F.mse_loss(x, y, size_average=False)
        with opreg.use() as used:
            got = F.mse_loss(x, y, size_average=False)
    torch.testing.assert_close(got, expected)
    assert swapped(used) == {"mse_loss": 1}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, y = torch.randn(16, 5, dtype=dtype, requires_grad=True), torch.randint(0, 5, (16,))
    with torch.autocast("cpu", dtype):
        expected = F.cross_entropy(x, y)
        with opreg.use() as used:
            got = F.cross_entropy(x, y)
    assert got.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    assert swapped(used) == {"cross_entropy": 1}
    with opreg.use():  # and not what was found out under autocast
        assert F.cross_entropy(x, y).dtype == dtype


# what is not


class Subclass(Tensor):
    pass


def test_subclasses_and_layouts_are_left() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    with opreg.use() as used:
        assert type(F.mse_loss(x.as_subclass(Subclass), y)) is Subclass
        F.silu(torch.nested.nested_tensor([x[0], y[0]]))
        F.mse_loss(x.to("meta"), y.to("meta"))
    assert not used.report.swapped
    assert {e.why for e in used.report.left} == {
        "one of its arguments is a Subclass",
        "one of its tensors is sparse or nested",
        "there is no kernel for meta",
    }


def test_transforms_are_left() -> None:
    x, y = torch.randn(4, 3), torch.randint(0, 3, (4,))
    expected = torch.func.hessian(F.cross_entropy)(x, y), torch.func.vmap(F.silu)(x)
    with opreg.use() as used:
        got = torch.func.hessian(F.cross_entropy)(x, y), torch.func.vmap(F.silu)(x)
    torch.testing.assert_close(got, expected)
    assert not used.report.swapped


def test_modes_see_the_native_function() -> None:
    """A function mode sees torch's function, before that is swapped; a dispatch mode sees its operations."""
    x, y = scores()
    seen: list[Any] = []

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with opreg.use() as used:
        with Functions():
            F.cross_entropy(x, y)
        assert F.cross_entropy in seen
        assert swapped(used) == {"cross_entropy": 1}
        with Operations():
            F.cross_entropy(x, y)
        assert torch.ops.aten._log_softmax.default in seen
        assert swapped(used) == {"cross_entropy": 1}


def test_activations_may_be_left() -> None:
    x, y = scores()
    with opreg.use(activations=False) as used:
        F.silu(x), F.cross_entropy(x, y)
    assert swapped(used) == {"cross_entropy": 1}
    assert left(used) == {"silu": "opreg.use(activations=False)"}


# compilers and tracers


def native_graph(function: Callable[..., Any], *args: Any) -> str:
    """The calls in Dynamo's graph."""
    torch._dynamo.reset()
    found: list[str] = []

    def backend(module: torch.fx.GraphModule, _: Any) -> Any:
        found.extend(f"{n.op} {n.target}" for n in module.graph.nodes)
        return module

    torch.compile(function, backend=backend, fullgraph=True)(*args)
    return "\n".join(found)


def every_function(x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(x)
    losses = [f(x, y) for f in (F.mse_loss, F.l1_loss, F.huber_loss, F.smooth_l1_loss, F.kl_div, F.soft_margin_loss)]
    losses += [F.binary_cross_entropy(p, y), F.binary_cross_entropy_with_logits(x, y), F.poisson_nll_loss(x, y)]
    losses += [F.cross_entropy(x, y), F.nll_loss(x.log_softmax(1), y.argmax(1)), F.triplet_margin_loss(x, y, p)]
    losses += [f(x).sum() for f in (F.silu, F.mish, F.hardswish)]
    return torch.stack(losses).sum()


def test_dynamo_sees_the_same() -> None:
    x, y = torch.randn(4, 3), torch.rand(4, 3)
    expected = native_graph(every_function, x, y)
    assert "cross_entropy" in expected
    with opreg.use():
        assert native_graph(every_function, x, y) == expected
        exported = torch.export.export(_Module(), (x, y))
    assert "lossreg" not in str(exported)
    with opreg.use():
        symbolic = torch.fx.symbolic_trace(_Module())
        scripted = torch.jit.script(scriptable)
        traced = torch.jit.trace(scriptable, (x, y))
    assert F.cross_entropy in [n.target for n in symbolic.graph.nodes]
    for module in (scripted, traced):
        assert "lossreg" not in str(module.graph)
        torch.testing.assert_close(module(x, y), scriptable(x, y))


class _Module(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return every_function(x, y)


def scriptable(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x, y) + F.silu(x).sum()


def test_around_a_model_that_is_compiled() -> None:
    """Inside, the backend swaps; outside, ``use`` does. Nothing is swapped twice, and training is the same."""
    torch._dynamo.reset()

    def train(backend: str | None) -> list[float]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.SiLU(), torch.nn.Linear(6, 3))
        run = torch.compile(model, backend=backend) if backend else model
        optimizer, losses = torch.optim.SGD(model.parameters(), 0.1), []
        x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))
        for _ in range(3):
            loss = F.cross_entropy(run(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    expected = train(None)
    with opreg.use() as used:
        assert train("opreg") == pytest.approx(expected, rel=1e-5)
    assert swapped(used) == {"cross_entropy": 3}
    assert not used.report.left


def test_a_decorated_function_is_compiled() -> None:
    x, y = torch.randn(4, 3), torch.randint(0, 3, (4,))
    found = native_graph(opreg.use()(scriptable), x, y)
    assert "cross_entropy" in found
    assert found.splitlines()[2:] == native_graph(scriptable, x, y).splitlines()[2:]  # without the arguments' names


# scopes


def test_switch() -> None:
    x, y = scores()
    code = F.cross_entropy.__code__
    first = opreg.use()
    F.cross_entropy(x, y)
    with opreg.use(False):
        F.cross_entropy(x, y)
        with opreg.use() as inner:
            F.cross_entropy(x, y)
    assert swapped(first) == {"cross_entropy": 2}
    assert swapped(inner) == {"cross_entropy": 1}
    opreg.use(False)
    assert F.cross_entropy.__code__ is code
    F.cross_entropy(x, y)
    assert swapped(first) == {"cross_entropy": 2}
    for _ in range(200):
        opreg.use()
    assert len(_use._switches) < 100


def test_decorator() -> None:
    x, y = scores()
    used = opreg.use()

    @used
    def step(depth: int) -> Tensor:
        """A step."""
        return F.cross_entropy(x, y) if depth == 0 else step(depth - 1) + 1

    assert F.cross_entropy.__code__ is not _exchange.functions.get("torch.nn.functional.cross_entropy")
    assert not _use._installed
    assert step.__doc__ == "A step."
    step(2)
    step(0)
    with pytest.raises(IndexError):
        opreg.use()(lambda: F.cross_entropy(x, y + 9))()
    assert not _use._installed
    assert swapped(used) == {"cross_entropy": 2}
    with pytest.raises(TypeError, match="use: expected a function to decorate, got <class"):
        opreg.use()(torch.nn.SiLU)


def test_what_held_before_holds_after_a_block() -> None:
    opreg.use(activations=False)
    with opreg.use(), opreg.use(False):
        pass
    assert _use._in_force is not None
    assert not _use._in_force.activations


def test_threads() -> None:
    """All threads see it; blocks of several overlap as they like, and none is left behind."""
    x, y = torch.randn(64, 5), torch.randint(0, 5, (64,))
    expected, wrong, used = F.cross_entropy(x, y), [], opreg.use()

    def work(switching: bool) -> None:
        for _ in range(200):
            if switching:
                with opreg.use():
                    got = F.cross_entropy(x, y)
            else:
                got = F.cross_entropy(x, y)
            if abs(got - expected) > 1e-5:
                wrong.append(got)

    with used:
        threads = [threading.Thread(target=work, args=(i % 2 == 0,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = swapped(used)["cross_entropy"]
    assert not wrong
    assert not _use._installed
    assert seen == 800
    with opreg.use() as used:
        thread = threading.Thread(target=work, args=(False,))
        thread.start()
        thread.join()
    assert swapped(used) == {"cross_entropy": 200}


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant: bool) -> None:
    """The second run of a region makes the calls of the first one, though it comes when the block is over."""
    x = torch.randn(8, 5, requires_grad=True)
    y = torch.randint(0, 5, (8,))

    def region(x: Tensor) -> Tensor:
        return F.cross_entropy(F.mish(x), y)

    (expected,) = torch.autograd.grad(region(x), x)
    with opreg.use():
        loss = checkpoint(region, x, use_reentrant=reentrant)
    loss.backward()
    torch.testing.assert_close(x.grad, expected)
    x.grad, loss = None, checkpoint(region, x, use_reentrant=reentrant)
    with opreg.use():
        loss.backward()
    torch.testing.assert_close(x.grad, expected)


class Losses(torch.utils.data.Dataset[Tensor]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        used = _use._in_force
        loss = F.mse_loss(torch.full((3,), float(index)), torch.zeros(3))
        return torch.stack([loss, torch.tensor(float(used is not None and sum(swapped(used).values())))])


def test_worker_processes() -> None:
    with opreg.use():
        loader = torch.utils.data.DataLoader(Losses(), num_workers=2, multiprocessing_context="fork")
        rows = torch.cat(list(loader))
    assert rows[:, 0].tolist() == [0.0, 1.0, 4.0, 9.0]
    assert (rows[:, 1] > 0).all()


def test_inference_and_parameters() -> None:
    x = torch.nn.Parameter(torch.randn(4, 3))
    with opreg.use() as used:
        with torch.inference_mode():
            F.silu(x)
        F.silu(x).sum().backward()
        copy.deepcopy(torch.nn.SiLU())(x)
    assert swapped(used) == {"swish": 3}
    assert x.grad is not None


def test_nothing_of_a_call_is_kept() -> None:
    x = torch.randn(3)
    with opreg.use():
        F.silu(x)
        gc.collect()
        assert not [r for r in gc.get_referrers(x) if isinstance(r, tuple | list)]


# functions of other libraries


@pytest.fixture(scope="module")
def library() -> Any:
    """torchvision.ops."""
    if torchvision_for_cpu.torchvision() is None:
        pytest.skip("torchvision is not installed")
    import torchvision.ops

    return torchvision.ops


def boxes(n: int) -> Tensor:
    corner, size = torch.rand(n, 2), torch.rand(n, 2) + 0.01
    return torch.cat([corner, corner + size], 1)


PAIRS = {
    "generalized_box_iou_loss": "giou_loss",
    "distance_box_iou_loss": "diou_loss",
    "complete_box_iou_loss": "ciou_loss",
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_torchvision(library: ModuleType, reduction: str) -> None:
    calls: list[tuple[str, Any, Callable[..., Tensor]]] = [
        ("focal_loss", (torch.randn(4, 5), torch.rand(4, 5)), library.sigmoid_focal_loss),
        *((op, (boxes(6), boxes(6)), getattr(library, name)) for name, op in PAIRS.items()),
        *((op, (boxes(6).bfloat16(), boxes(6).bfloat16()), getattr(library, name)) for name, op in PAIRS.items()),
    ]
    for op, tensors, function in calls:
        expected = with_gradients(lambda *t, f=function: f(*t, reduction=reduction), *tensors)
        with opreg.use() as used:
            got = with_gradients(lambda *t, f=function: f(*t, reduction=reduction), *tensors)
        assert swapped(used) == {op: 1}
        for e, g in zip(expected[:3], got[:3], strict=True):
            assert e.dtype == g.dtype
            torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4 if tensors[0].dtype == torch.float32 else 2e-2)


def test_torchvision_where_the_op_is_another(library: ModuleType) -> None:
    def call(name: str, *tensors: Tensor, **options: Any) -> str:
        function = getattr(library, name)
        expected = function(*tensors, **options)
        with opreg.use() as used:
            got = function(*tensors, **options)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
        return left(used).get(name, "")

    assert "eps is 0.001" in call("complete_box_iou_loss", boxes(6), boxes(6), eps=1e-3)
    assert "atan2" in call("complete_box_iou_loss", boxes(6).flip(1), boxes(6))
    assert call("complete_box_iou_loss", boxes(6), boxes(6)) == ""
    assert "no boxes" in call("generalized_box_iou_loss", boxes(0), boxes(0), reduction="mean")
    assert "gamma is 0" in call("sigmoid_focal_loss", torch.randn(4), torch.rand(4), gamma=0)
    assert call("sigmoid_focal_loss", torch.randn(4), torch.rand(4), alpha=-1) == ""


def test_dynamo_looks_into_torchvision(library: ModuleType) -> None:
    x, y = torch.randn(4, 3), torch.rand(4, 3)
    expected = native_graph(library.sigmoid_focal_loss, x, y)
    with opreg.use():
        assert native_graph(library.sigmoid_focal_loss, x, y) == expected


def test_a_library_that_is_imported_later(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions are exchanged as soon as they are there, and by no import after the block."""
    (tmp_path / "later_losses.py").write_text("def smooth(a, b, reduction='sum'):\n    return (a - b).abs().sum()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    op = opreg.get("l1_loss")
    monkeypatch.setitem(vars(op), "spellings", (*op.spellings, "later_losses.smooth"))
    with opreg.use() as used:
        assert importlib.util.find_spec("later_losses") is not None  # a look is no import
        import later_losses  # type: ignore[import-not-found]

        assert later_losses.smooth.__code__ is _exchange.functions["later_losses.smooth"].code
        assert later_losses.smooth(torch.ones(3), torch.zeros(3)) == 3
    assert swapped(used) == {"l1_loss": 1}
    assert later_losses.smooth(torch.ones(3), torch.zeros(3)) == 3
    del sys.modules["later_losses"], _exchange.functions["later_losses.smooth"]
    importlib.import_module("later_losses")
    assert "later_losses.smooth" not in _exchange.functions
