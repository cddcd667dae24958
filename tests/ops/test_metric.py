"""Losses of vectors: every option against torch's native op or the definition in numpy, kinks, layouts, extremes."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import DEVICE

ops = torch.ops.lossreg


def draw(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)


def assert_same(got, want, inputs, **tolerance):
    """Values, and the gradients of a weighted sum; where torch's gradient is NaN or infinite, ours is 0."""
    torch.testing.assert_close(got, want, **tolerance)
    weights = torch.rand_like(got)
    ours = torch.autograd.grad(got, inputs, weights)
    theirs = torch.autograd.grad(want, inputs, weights, materialize_grads=True)  # at p = 0 torch has none
    for x, a, b in zip(inputs, ours, theirs, strict=True):
        assert a.stride() == torch.empty_like(x).stride()
        torch.testing.assert_close(a, b.nan_to_num(0, 0, 0), **tolerance)


@pytest.mark.parametrize("p", [2.0, 1.0, 1.5, 3.0, 7.0, 0.3, 0.0, -1.0, -2.5, math.inf, -math.inf])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 33), (40, 3), (9,), ()], ids=str)
def test_triplet_margin_is_native(p, swap, shape):
    inputs = [draw(*shape) for _ in range(3)]
    for reduction, margin, eps in (("none", 1.0, 1e-6), ("mean", 0.1, 0.0), ("sum", 5.0, 0.01)):
        options = {"margin": margin, "p": p, "eps": eps, "swap": swap, "reduction": reduction}
        assert_same(ops.triplet_margin_loss(*inputs, **options), F.triplet_margin_loss(*inputs, **options), inputs)


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, math.inf])
def test_triplet_margin_broadcasts_as_native(p):
    """Every way to have one vector, or one number, for many; the gradient is summed back."""
    shapes = [(4, 3, 5), (1, 3, 5), (4, 1, 5), (1, 1, 5), (4, 3, 1), (1, 1, 1)]
    for k, three in enumerate(itertools.product(shapes, repeat=3)):
        if k % 7:
            continue  # a seventh of them
        inputs = [draw(*shape) for shape in three]
        options = {"p": p, "swap": bool(k % 2), "reduction": "none", "margin": 2.0}
        assert_same(ops.triplet_margin_loss(*inputs, **options), F.triplet_margin_loss(*inputs, **options), inputs)


def test_triplet_margin_any_layout_of_what_broadcasts():
    a, p, n = draw(6, 5), draw(5, 1).t(), draw(10, 6)[::2].t()
    assert_same(ops.triplet_margin_loss(a, p, n), F.triplet_margin_loss(a, p, n), (a, p, n))


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("swap", [False, True])
def test_triplet_margin_kinks(p, swap):
    """Small integers: distances of 0, violations of exactly 0, equal distances, several largest differences."""
    a, p_, n = (torch.randint(-1, 2, (300, 2), device=DEVICE).double().requires_grad_() for _ in range(3))
    options = {"p": p, "eps": 0.0, "swap": swap, "reduction": "none"}
    assert_same(ops.triplet_margin_loss(a, p_, n, **options), F.triplet_margin_loss(a, p_, n, **options), (a, p_, n))


@pytest.mark.parametrize("p", [2.0, 1.0, 3.0, 12.0])
def test_triplet_margin_large_differences(p):
    """No power overflows on the way: 2e4^12 has no float32."""
    a, p_, n = (t.detach().sign() * 1e4 for t in (draw(4, 130), draw(4, 130), draw(4, 130)))
    inputs = [t.float().requires_grad_() for t in (a, p_, n)]
    exact = [t.detach().double().requires_grad_() for t in inputs]
    got, want = (ops.triplet_margin_loss(*i, p=p, margin=1e4) for i in (inputs, exact))
    torch.testing.assert_close(want, F.triplet_margin_loss(*exact, p=p, margin=1e4))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
    for x, e in zip(torch.autograd.grad(got, inputs), torch.autograd.grad(want, exact), strict=True):
        torch.testing.assert_close(x.double(), e, rtol=1e-5, atol=1e-7)


def test_triplet_soft_margin_is_its_definition():
    for shape in ((5, 7), (3, 2, 70), (200, 3), (9,)):
        inputs = [draw(*shape) for _ in range(3)]
        a, p, n = (t.detach().cpu().numpy() for t in inputs)
        to_positive, to_negative = np.sqrt(((a - p) ** 2).sum(-1)), np.sqrt(((a - n) ** 2).sum(-1))
        got = ops.triplet_soft_margin_loss(*inputs, reduction="none")
        want = np.log1p(np.exp(to_positive - to_negative))
        np.testing.assert_allclose(got.detach().cpu().numpy(), want, rtol=1e-12)
        slope = (1 / (1 + np.exp(to_negative - to_positive)))[..., None]
        to_p, to_n = slope * (a - p) / to_positive[..., None], slope * (a - n) / to_negative[..., None]
        grads = torch.autograd.grad(got.sum(), inputs)
        for g, w in zip(grads, (to_p - to_n, -to_p, to_n), strict=True):
            np.testing.assert_allclose(g.cpu().numpy(), w, rtol=1e-10, atol=1e-14)


def test_triplet_soft_margin_extremes():
    """Distances of 0 have gradient 0; a lead of 1e4 either way neither overflows nor loses the loss."""
    a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    p = torch.tensor([[0.0, 0.0], [1e4, 0.0], [0.0, 0.0]], device=DEVICE, requires_grad=True)
    n = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 30.0]], device=DEVICE, requires_grad=True)
    loss = ops.triplet_soft_margin_loss(a, p, n, "none")
    torch.testing.assert_close(loss.tolist(), [math.log(2), 1e4, math.exp(-30)], rtol=1e-6, atol=0)
    grads = torch.autograd.grad(loss.sum(), (a, p, n))
    assert grads[0].tolist() == [[0, 0], [-1, 0], [0, pytest.approx(math.exp(-30), rel=1e-5)]]
    assert grads[1].tolist() == [[0, 0], [1, 0], [0, 0]]
    assert grads[2].tolist() == [[0, 0], [0, 0], [0, pytest.approx(-math.exp(-30), rel=1e-5)]]


@pytest.mark.parametrize("margin", [0.0, 0.4, -0.3, 2.0])
def test_cosine_embedding_is_native(margin):
    for one, other, n in (((5, 7), (5, 7), 5), ((6, 70), (1, 70), 6), ((1, 4), (1, 4), 5), ((50, 3), (50, 3), 50)):
        inputs = [draw(*one), draw(*other)]
        target = torch.randint(-1, 2, (n,), device=DEVICE)
        for reduction in ("none", "mean", "sum"):
            args = (*inputs, target, margin)
            got = ops.cosine_embedding_loss(*args, reduction)
            want = F.cosine_embedding_loss(*args, reduction=reduction)
            assert_same(got, want, inputs)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float16], ids=str)
def test_cosine_embedding_target_of_any_dtype(dtype):
    inputs = [draw(4, 3), draw(4, 3)]
    target = torch.tensor([1, 0, 1, 1], device=DEVICE).to(dtype)
    assert_same(ops.cosine_embedding_loss(*inputs, target), F.cosine_embedding_loss(*inputs, target), inputs)


def test_cosine_embedding_of_numbers_that_broadcast():
    """torch takes an operand's length before it broadcasts."""
    for one, other in (((4, 1), (4, 6)), ((4, 6), (1, 1)), ((4, 1), (4, 1))):
        inputs = [draw(*one), draw(*other)]
        target = torch.tensor([1, -1, 1, -1], device=DEVICE)
        assert_same(
            ops.cosine_embedding_loss(*inputs, target, -2.0), F.cosine_embedding_loss(*inputs, target, -2.0), inputs
        )


def test_cosine_embedding_of_zeros():
    """The gradient at a vector of 0 is large and finite, as torch's is."""
    x, y = torch.zeros(3, 4, device=DEVICE, dtype=torch.float64), draw(3, 4)
    x.requires_grad_()
    target = torch.tensor([1, -1, 0], device=DEVICE)
    options = {"margin": -0.1, "reduction": "none"}
    got, want = (f(x, y, target, **options) for f in (ops.cosine_embedding_loss, F.cosine_embedding_loss))
    assert_same(got, want, (x, y))


def test_target_that_requires_grad_is_an_error():
    x, t = draw(3, 4), torch.ones(3, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="cosine_embedding_loss: expected target that does not require grad"):
        ops.cosine_embedding_loss(x, x, t)


def test_vectors_of_no_number():
    """Their distance is 0, their cosine 0."""
    x = torch.zeros(3, 0, device=DEVICE, requires_grad=True)
    for p in (1.0, 2.0, 3.0, math.inf):
        assert ops.triplet_margin_loss(x, x, x, margin=0.5, p=p, swap=True, reduction="none").tolist() == [0.5] * 3
    loss = ops.cosine_embedding_loss(x, x, torch.tensor([1, -1, 0], device=DEVICE), -0.5, "none")
    assert loss.tolist() == [1, 0.5, 0]
    assert torch.autograd.grad(loss.sum(), x)[0].shape == (3, 0)


@pytest.mark.parametrize("members", [1, 15, 16, 17, 64, 65, 2047, 2049, 5000])
@pytest.mark.parametrize("transposed", [False, True])
def test_any_length(members, transposed):
    """Around the tiles' and blocks' edges, both ways of going through memory, in float32 against float64."""
    shape = (members, 3) if transposed else (3, members)
    inputs = [draw(*shape, dtype=torch.float32) for _ in range(3)]
    views = [t.t() if transposed else t for t in inputs]
    exact = [t.detach().double().requires_grad_() for t in views]
    got, want = ops.triplet_margin_loss(*views, margin=9.0), F.triplet_margin_loss(*exact, margin=9.0)
    torch.testing.assert_close(got.double(), want, rtol=2e-6, atol=0)
    for a, b in zip(torch.autograd.grad(got, views), torch.autograd.grad(want, exact), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)


def test_nan_stays_in_its_vector():
    a, p, n = (draw(4, 5).detach() for _ in range(3))
    a[1, 2], p[2, 0] = math.nan, math.nan
    for loss in (
        ops.triplet_margin_loss(a, p, n, reduction="none"),
        ops.triplet_margin_loss(a, p, n, p=3.0, reduction="none"),
        ops.triplet_soft_margin_loss(a, p, n, reduction="none"),
        ops.cosine_embedding_loss(a, p, torch.ones(4, device=DEVICE), reduction="none"),
    ):
        assert loss.isnan().tolist() == [False, True, True, False]
