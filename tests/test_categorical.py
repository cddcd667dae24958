"""What class indices bring along: ignored and invalid positions, huge vocabularies, digits at large scores."""

import pytest
import torch
import torch.nn.functional as F

import opreg
from conftest import DEVICE

NAMES = ["nll_loss", "cross_entropy"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 2, 5, 255, 10**12])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignore_index_of_every_kind(name, ignore_index, shape, weighted):
    """Inside the classes, beyond them, negative: no loss, no part of the normaliser, gradient 0."""
    x = torch.randn(shape[0], 5, *shape[1:], dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.randint(0, 5, shape, device=DEVICE)
    t[0] = ignore_index
    w = torch.rand(5, dtype=torch.float64, device=DEVICE) if weighted else None
    op, native = getattr(torch.ops.lossreg, name), getattr(F, name)
    for reduction in ("none", "mean", "sum"):
        got = op(x, t, w, ignore_index=ignore_index, reduction=reduction)
        want = native(x, t, w, ignore_index=ignore_index, reduction=reduction)
        torch.testing.assert_close(got, want)
        grad = torch.autograd.grad(got.sum(), x)[0]
        torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), x)[0])
        assert (grad.movedim(1, -1)[t == ignore_index] == 0).all()


def test_an_ignored_row_may_hold_anything():
    """NaN and infinity in ignored rows touch neither the loss nor any gradient."""
    x = torch.randn(4, 3, device=DEVICE)
    x[1], x[2, 0] = float("nan"), float("inf")
    x.requires_grad_()
    t = torch.tensor([0, -100, -100, 2], device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t)
    torch.testing.assert_close(loss, F.cross_entropy(x[[0, 3]], t[[0, 3]]))
    grad = torch.autograd.grad(loss, x)[0]
    assert (grad[1:3] == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_all_ignored_gradient_is_zero(name):
    x = torch.randn(4, 3, device=DEVICE, requires_grad=True)
    t = torch.full((4,), -100, device=DEVICE)
    loss = getattr(torch.ops.lossreg, name)(x, t)
    assert loss.isnan()
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU it is an error: see the error samples")
@pytest.mark.parametrize("name", NAMES)
def test_invalid_class_is_nan_on_a_gpu(name):
    x = torch.randn(3, 4, device=DEVICE, requires_grad=True)
    loss = getattr(torch.ops.lossreg, name)(x, torch.tensor([0, 9, 3], device=DEVICE), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    grad = torch.autograd.grad(loss.sum(), x)[0]
    assert grad.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 1023, 1025, 40_001])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_any_number_of_classes(classes, smoothing):
    """Around the tiles' edges, in float32, against float64."""
    x = torch.randn(3, classes, device=DEVICE, requires_grad=True)
    t = torch.randint(0, classes, (3,), device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t, label_smoothing=smoothing)
    exact = x.detach().double().requires_grad_()
    want = F.cross_entropy(exact, t, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    grad, want_grad = torch.autograd.grad(loss, x)[0], torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(grad.double(), want_grad, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_large_scores_keep_their_digits(offset):
    """log-sum-exp is kept in float64: a common offset of 1e4 costs no digit but those the input itself has lost."""
    x = (torch.randn(5, 7, device=DEVICE) * 4 + offset).requires_grad_()
    t = torch.randint(0, 7, (5,), device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t, reduction="none")
    exact = x.detach().double().requires_grad_()
    want = F.cross_entropy(exact, t, reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=2e-6)
    grad = torch.autograd.grad(loss.sum(), x)[0]
    torch.testing.assert_close(grad.double(), torch.autograd.grad(want.sum(), exact)[0], rtol=1e-5, atol=1e-7)


def test_infinite_scores():
    """A masked class (−inf) has probability and gradient 0; as in torch."""
    x = torch.randn(4, 5, device=DEVICE)
    x[:, 3] = -torch.inf
    x.requires_grad_()
    t = torch.tensor([0, 1, 2, 4], device=DEVICE)
    got, want = torch.ops.lossreg.cross_entropy(x, t), F.cross_entropy(x, t)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5), (5,)])
def test_probability_targets_and_weights_have_gradients(shape):
    x, t = (torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    w = torch.rand(shape[min(1, len(shape) - 1)], dtype=torch.float64, device=DEVICE, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        options = {"label_smoothing": 0.2, "reduction": reduction}
        got, want = torch.ops.lossreg.cross_entropy(x, t, w, **options), F.cross_entropy(x, t, w, **options)
        torch.testing.assert_close(got, want)
        ours, theirs = (torch.autograd.grad(loss.sum(), (x, t, w)) for loss in (got, want))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_class_weight_that_requires_grad_is_an_error():
    x, t = torch.randn(3, 4, device=DEVICE), torch.randint(0, 4, (3,), device=DEVICE)
    w = torch.rand(4, device=DEVICE, requires_grad=True)
    for name in NAMES:
        with pytest.raises(RuntimeError, match=f"{name}: expected weight that does not require grad"):
            opreg.get(name).value(x, t, w)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_forward_allocates_nothing_of_the_logits_size():
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(256, 4096, requires_grad=True), torch.randint(0, 4096, (256,))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.ops.lossreg.cross_entropy(x, t)
    allocated = max(e.cpu_memory_usage for e in seen.key_averages())
    assert 0 < allocated < 256 * 8 * 4  # the state and the result; the logits are 4 MB
