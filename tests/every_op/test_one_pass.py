"""A loss whose gradient the forward pass computes: it is the gradient of the two passes, whatever is asked for."""

import gc
import weakref

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import row_losses
from conftest import DEVICE, samples_of
from opreg.attach.one_pass import DTYPES
from opreg.meta.schema import bind
from opreg.meta.schema import call as call_bound


def calls(op, dtype, **options):
    """Of each sample and reduction a function that calls the op with a new leaf, and returns leaf and loss."""
    if op.one_pass_entry is None or DEVICE != "cpu":
        pytest.skip("no kernel for both at once")
    first = op.arguments[0]
    for sample in samples_of(op, dtype=dtype):
        x = sample.args[0]
        for reduction in ("mean", "sum"):

            def call(sample=sample, x=x, reduction=reduction):
                leaf = x.detach().requires_grad_()
                bound = bind(op.value, sample.args, {**sample.kwargs, "reduction": reduction, **options})
                return leaf, call_bound(op.value, {**bound, first: leaf})

            yield call


def in_two_passes(call):
    """The same call where the tensors that are saved for the backward pass go through hooks."""
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
        return call()


def is_ahead(loss):
    return "gradients" in vars(loss.grad_fn)


def assert_close(one, two, dtype, factors=1):
    # the same numbers, in another order of operations; factors: of products of rounded numbers
    rtol = {torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float64: 1e-14}[dtype] * factors
    scale = two[two.isfinite()].abs().max().item() if two.isfinite().any() else 0.0
    torch.testing.assert_close(one, two, rtol=rtol, atol=rtol * min(scale, 1e30) * 0.5, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_value_and_gradient(op, dtype):
    for call in calls(op, dtype):
        x, loss = call()
        y, other = in_two_passes(call)
        assert is_ahead(loss)
        assert not is_ahead(other)
        assert_close(loss.detach(), other.detach(), loss.dtype)
        loss.backward()
        other.backward()
        assert_close(x.grad, y.grad, x.dtype)
        assert x.grad.stride() == y.grad.stride()
        assert x.grad.dtype == y.grad.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_in_all_that_is_differentiable(op, dtype):
    """Where the kernel takes a mask; and a part of them, again, and differentiable."""
    if op.one_pass_entry is None or not op.one_pass_takes_mask or DEVICE != "cpu":
        pytest.skip("no kernel for several gradients at once")
    for sample in samples_of(op, dtype=dtype):
        for reduction in ("mean", "sum"):
            bound = bind(op.value, sample.args, {**sample.kwargs, "reduction": reduction})
            tensors = [n for n in op.differentiable_in(bound) if isinstance(bound[n], torch.Tensor)]
            names = [n for n in tensors if bound[n].is_floating_point()]

            def call(bound=bound, names=names):
                leaves = {n: bound[n].detach().requires_grad_() for n in names}
                return list(leaves.values()), call_bound(op.value, {**bound, **leaves})

            (xs, one), (ys, two) = call(), in_two_passes(call)
            assert is_ahead(one)
            assert not is_ahead(two)
            assert_close(one.detach(), two.detach(), one.dtype)
            once = torch.autograd.grad(one, xs, retain_graph=True)
            for a, b in zip(once, torch.autograd.grad(two, ys), strict=True):
                assert_close(a, b, a.dtype, 4 if op.lowered else 1)
                assert a.stride() == b.stride()
                assert a.dtype == b.dtype
            (again,) = torch.autograd.grad(2 * one, xs[-1:], retain_graph=True)
            assert_close(again, 2 * once[-1], again.dtype)
            if dtype == torch.float64:
                for a, b in zip(torch.autograd.grad(one, xs, create_graph=True), once, strict=True):
                    assert_close(a.detach(), b, dtype, 4 if op.lowered else 1)


@pytest.mark.parametrize("factor", [2.0, -3.0, 0.0, float("inf"), float("nan"), 1e-3])
def test_times_the_gradient_of_the_value(op, factor):
    for call in calls(op, torch.bfloat16):
        (x, loss), (y, other) = call(), in_two_passes(call)
        for one in (loss, other):
            one.backward(torch.tensor(factor, dtype=one.dtype))
        assert_close(x.grad, y.grad, x.dtype)


def test_asked_for_again(op):
    """A second backward pass gives the same bits, and nothing that was handed out changes."""
    for call in calls(op, torch.float64):
        x, loss = call()
        first, second, third = (
            torch.autograd.grad(loss * factor, x, retain_graph=True)[0] for factor in (1.0, 2.0, 0.5)
        )
        torch.testing.assert_close(second, 2 * first, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(third, first / 2, rtol=0, atol=0, equal_nan=True)


def test_differentiated_twice(op):
    for call in calls(op, torch.float64):
        pairs = [call(), in_two_passes(call)]
        once = [torch.autograd.grad(loss, x, create_graph=True)[0] for x, loss in pairs]
        assert_close(*(g.detach() for g in once), torch.float64)
        if op.second_derivative and once[0].requires_grad:
            gradients = [
                torch.autograd.grad(g.sum(), x, allow_unused=True)[0] for g, (x, _) in zip(once, pairs, strict=True)
            ]
            if gradients[0] is None:  # piecewise linear
                assert gradients[1] is None
            else:
                assert_close(*gradients, torch.float64)


def test_the_gradient_is_memory_of_its_own(op):
    """And the caller's stays as it was."""
    for call in calls(op, torch.float32):
        x, loss = call()
        before = x.detach().clone()
        (gradient,) = torch.autograd.grad(loss, x, torch.tensor(2.0, dtype=loss.dtype))
        assert gradient.numel() == 0 or gradient.data_ptr() != x.data_ptr()
        torch.testing.assert_close(x.detach(), before, rtol=0, atol=0, equal_nan=True)


def test_it_goes_with_the_graph(op):
    for call in calls(op, torch.float32):
        _, loss = call()
        kept = weakref.ref(vars(loss.grad_fn)["gradients"][0])
        del loss
        if kept() is not None:
            gc.collect()
        assert kept() is None
        break


def test_where_it_is_not_computed_ahead(op):
    """float16, which has no room for it; no reduction; a graph that is traced, which is to hold the op by its name."""
    for call in calls(op, torch.float16):
        assert not is_ahead(call()[1])
    for call in calls(op, torch.float32, reduction="none"):
        assert not is_ahead(call()[1])
    call = next(calls(op, torch.float32))

    def step(one):
        x, loss = call()
        return torch.autograd.grad(loss * one, x)

    graph = make_fx(step)(torch.ones(())).graph
    assert not [n for n in graph.nodes if "_kernels" in str(n.target)]
    assert [n for n in graph.nodes if op.short in str(n.target)]


ROW_SHAPES = [(37, 3), (300, 10), (65, 64), (300, 100), (5, 200), (3, 5003), (1, 40000), (2, 19, 9, 7), (700,), (0, 5)]


def layouts(x):
    """The same numbers as they lie in other memory: classes apart, rows with gaps, planes, a row that is expanded."""
    yield x
    if x.dim() > 1:
        yield x.transpose(0, -1).contiguous().transpose(0, -1)
        yield x.repeat_interleave(2, 0)[::2]
        yield x.movedim(1, -1).contiguous().movedim(-1, 1)
        yield x[:1].expand_as(x)


@pytest.mark.skipif(DEVICE != "cpu", reason="no kernel for both at once")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in row_losses.NAMES if row_losses.op_of(n).one_pass_entry is not None])
def test_rows_of_every_length(name, dtype):
    torch.manual_seed(1)
    for shape in ROW_SHAPES:
        classes = shape[min(1, len(shape) - 1)]
        scores = (
            torch.rand(shape, dtype=dtype) * 1.8 - 0.9 if name in row_losses.ANGULAR else torch.randn(shape).to(dtype)
        )
        target = torch.randint(classes, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
        if target.dim():
            target = torch.where(torch.rand(target.shape) < 0.2, -100, target)
        for x in layouts(scores):

            def call(x=x, target=target):
                leaf = x.detach().requires_grad_()
                return leaf, row_losses.call(name, leaf, target)

            (x_one, one), (x_two, two) = call(), in_two_passes(call)
            assert is_ahead(one)
            one.backward()
            two.backward()
            assert_close(one.detach(), two.detach(), dtype)
            assert_close(x_one.grad, x_two.grad, dtype)
