"""Affinity losses against loops over windows and pixels, ignored pixels, extremes, and how much memory they take."""

import itertools
import math

import numpy as np
import pytest
import torch

import opreg
from conftest import DEVICE, run_raw
from opreg.testing import Maker

NAMES = ["affinity_loss", "affinity_field_loss"]


def affinity_by_windows(x, y, kernel_size, ignore_index):
    """Literally: every window that fits, every ordered pair of its pixels."""
    batch, _, height, width = x.shape
    losses = []
    inside = list(itertools.product(range(kernel_size), repeat=2))
    for n, h, w in itertools.product(range(batch), range(height - kernel_size + 1), range(width - kernel_size + 1)):
        for (i, j), (k, m) in itertools.product(inside, repeat=2):
            a, b = (n, h + i, w + j), (n, h + k, w + m)
            if ignore_index in (y[a], y[b]):
                continue
            z = float(x[n, :, h + i, w + j] @ x[n, :, h + k, w + m])
            losses.append(np.logaddexp(0.0, -z if y[a] == y[b] else z))
    return math.fsum(losses) / max(len(losses), 1)


def field_by_pixels(x, y, kl_margin, lambda_edge, lambda_not_edge, ignore_index):
    batch, _, height, width = x.shape
    log_p = x - np.log(np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True)) - x.max(1, keepdims=True)
    total, valid = 0.0, 0
    for n, h, w in itertools.product(range(batch), range(height), range(width)):
        if y[n, h, w] == ignore_index:
            continue
        valid += 1
        for i, j in itertools.product((h - 1, h, h + 1), (w - 1, w, w + 1)):
            outside = not (0 <= i < height and 0 <= j < width)
            if (i, j) == (h, w) or outside or y[n, i, j] == ignore_index:
                continue
            of_neighbour, of_pixel = log_p[n, :, i, j], log_p[n, :, h, w]
            divergence = float((np.exp(of_neighbour) * (of_neighbour - of_pixel)).sum())
            same = y[n, i, j] == y[n, h, w]
            total += lambda_edge * divergence if same else lambda_not_edge * max(0.0, kl_margin - divergence)
    return total / (8 * valid) if valid else 0.0


def draw(*shape, labels=3, ignore=None, dtype=torch.float64):
    make = Maker(dtype, DEVICE, requires_grad=True, seed=sum(shape))
    return make.normal(*shape), make.index(labels, shape[0], *shape[2:], ignore=ignore)


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (1, 2, 6, 9), (1, 1, 7, 5)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("ignore_index", [-100, 1, 10**12])
def test_affinity_loss_is_the_mean_over_windows(shape, kernel_size, ignore_index):
    x, y = draw(*shape, ignore=ignore_index)
    got = torch.ops.lossreg.affinity_loss(x, y, kernel_size, ignore_index)
    want = affinity_by_windows(x.detach().cpu().numpy(), y.cpu().numpy(), kernel_size, ignore_index)
    assert got.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 1, 7), (1, 4, 6, 1), (1, 2, 1, 1)])
@pytest.mark.parametrize("options", [(3.0, 1.0, 1.0), (0.4, 0.3, 2.0)])
@pytest.mark.parametrize("ignore_index", [-100, 1])
def test_affinity_field_loss_is_the_sum_over_neighbours(shape, options, ignore_index):
    x, y = draw(*shape, ignore=ignore_index)
    got = torch.ops.lossreg.affinity_field_loss(x, y, *options, ignore_index)
    want = field_by_pixels(x.detach().cpu().numpy(), y.cpu().numpy(), *options, ignore_index)
    assert got.item() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 4, 127), (2, 3, 128), (2, 3, 300), (70, 3, 4)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed"])
def test_any_size_and_layout(name, channels, height, width, layout):
    """Around the strips' ends, and more channels than are summed at a time; in float32, against the reference."""
    x, y = draw(1, channels, height, width, ignore=2, dtype=torch.float32)
    x = (x.detach() / channels**0.5).requires_grad_()
    exact = x.detach().double().requires_grad_()
    op = opreg.get(name)
    options = {"ignore_index": 2}
    laid_out = x
    if layout == "channels_last":
        laid_out = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        laid_out = x.mT.contiguous().mT
    got, want = op.value(laid_out, y, **options), op.call_reference(exact, y, **options)
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    grad, want_grad = torch.autograd.grad(got, x)[0], torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=5e-6 * want_grad.abs().max().item())


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_large_kernels(kernel_size):
    """Runs of displacements that are not full, windows as large as the image."""
    x, y = draw(1, 2, 9, 11, ignore=-100)
    got = torch.ops.lossreg.affinity_loss(x, y, kernel_size)
    want = opreg.get("affinity_loss").call_reference(x, y, kernel_size)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_an_ignored_pixel_may_hold_anything(name):
    x, y = draw(1, 3, 4, 5)
    y[0, 1, 2] = y[0, 3, 0] = -100
    loss = getattr(torch.ops.lossreg, name)(x, y)
    (want,) = torch.autograd.grad(loss, x)
    spoilt = x.detach().clone()
    spoilt[0, :, 1, 2], spoilt[0, 1, 3, 0] = torch.nan, torch.inf
    spoilt.requires_grad_()
    got = getattr(torch.ops.lossreg, name)(spoilt, y)
    torch.testing.assert_close(got, loss)
    (grad,) = torch.autograd.grad(got, spoilt)
    torch.testing.assert_close(grad, want)
    assert (grad[0, :, 1, 2] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_no_valid_pixel_is_zero(name):
    x, y = draw(2, 3, 4, 5)
    loss = getattr(torch.ops.lossreg, name)(x, torch.full_like(y, -100))
    assert loss == 0
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_equality_of_labels_counts(name):
    x, y = draw(1, 3, 4, 5)
    labels = torch.tensor([10**15, -7, 3], device=DEVICE)
    op = getattr(torch.ops.lossreg, name)
    assert op(x, labels[y]) == op(x, y)
    assert op(x, y.to(torch.uint8)) == op(x, y.int()) == op(x, y)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e4), (torch.float16, 6e4)], ids=str)
def test_finite_in_finite_out(name, dtype, largest):
    _, y = draw(1, 2, 4, 5)
    signs = torch.randint(0, 3, (1, 2, 4, 5), device=DEVICE) - 1
    x = (signs * largest).to(dtype).requires_grad_()
    loss = getattr(torch.ops.lossreg, name)(x, y, dtype=torch.float32)
    assert loss.isfinite()
    assert torch.autograd.grad(loss * 1e-3, x)[0].isfinite().all()


def test_large_logits_keep_their_digits():
    """A common offset of 1e4 costs the field loss no digit but those that the input itself has lost."""
    x, y = draw(1, 4, 5, 6, dtype=torch.float32)
    x = (x.detach() + 1e4).requires_grad_()
    exact = x.detach().double().requires_grad_()
    got, want = (torch.ops.lossreg.affinity_field_loss(t, y) for t in (x, exact))
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    grads = torch.autograd.grad(got, x)[0], torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(grads[0].double(), grads[1], rtol=1e-5, atol=1e-8)


def test_confident_pairs_keep_their_digits():
    """Log-sum-exp of -20 is no difference of numbers near 20."""
    x = torch.full((1, 1, 1, 1), 20**0.5, dtype=torch.float32, device=DEVICE)
    loss = torch.ops.lossreg.affinity_loss(x, torch.zeros(1, 1, 1, dtype=torch.int64, device=DEVICE), 1)
    assert loss.item() == pytest.approx(math.exp(-20), rel=1e-5)


def test_the_kink_of_the_field_loss():
    """At D = kl_margin half of the slope, as of torch.maximum: at one of the numbers next to D."""
    x = torch.tensor([[[[0.0, 1.0]], [[0.0, -1.0]]]], dtype=torch.float64, device=DEVICE, requires_grad=True)
    y = torch.tensor([[[0, 1]]], device=DEVICE)
    log_p = torch.log_softmax(x.detach(), 1)[0, :, 0]
    divergence = (log_p[:, 1].exp() * (log_p[:, 1] - log_p[:, 0])).sum().item()
    margins = [divergence + k * math.ulp(divergence) for k in range(-8, 9)]
    grads = [torch.autograd.grad(torch.ops.lossreg.affinity_field_loss(x, y, m), x)[0] for m in margins]
    assert not torch.allclose(grads[0], grads[-1])
    assert any(torch.allclose(g, (grads[0] + grads[-1]) / 2, rtol=1e-12) for g in grads)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("name", NAMES)
def test_extra_memory(name):
    """A float64 a pixel and the gradient, whatever the kernel's size: nothing is unfolded."""
    from torch.profiler import ProfilerActivity, profile

    x, y = torch.randn(1, 16, 64, 64, requires_grad=True), torch.randint(0, 3, (1, 64, 64))
    options = {"kernel_size": 5} if name == "affinity_loss" else {}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss = getattr(torch.ops.lossreg, name)(x, y, **options)
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in seen.key_averages())
    assert 0 < allocated < 2 * 64 * 64 * 8
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss.backward()
    allocated = sum(max(0, e.self_cpu_memory_usage) for e in seen.key_averages())
    assert 0 < allocated < x.numel() * 4 + 2 * 64 * 64 * 8


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 20, 3, 5), (1, 2, 9, 40)])
def test_emulated_sizes(emulated, name, shape):
    """More channels than a GPU's thread sums at a time; more pixels than a block has threads."""
    x, y = draw(*shape, ignore=-100, dtype=torch.float32)
    op, sample = opreg.get(name), opreg.Sample((x, y))
    emulated(1)
    for want, got in zip(
        *(run_raw(n, op, sample) for n in (torch.ops.lossreg, torch.ops.lossreg_emulated)), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
