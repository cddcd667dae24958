"""Dice losses against explicit loops over samples, classes and pixels in Python's floats."""

import math

import pytest
import torch

import opreg
from conftest import DEVICE, run_raw

lossreg = torch.ops.lossreg


def ratio_loss(shared, size, smooth):
    return 0.0 if size + smooth == 0 else 1 - (2 * shared + smooth) / (size + smooth)


def pixels_of(x, t):
    """(N, C, pixels) and (N, pixels) as lists; soft targets (N, C, pixels)."""
    x = x.double().reshape(*x.shape[:2], -1)
    t = t.double().reshape(*x.shape) if t.is_floating_point() else t.reshape(x.shape[0], -1)
    return x.tolist(), t.tolist()


def dice(x, t, p=1.0, smooth=1.0, weight=None, ignore_index=-100, batch=False):
    """One value a sample, or one."""
    soft = t.is_floating_point()
    x, t = pixels_of(x, t)
    sums = []
    for scores, labels in zip(x, t, strict=True):
        shared = size = 0.0
        for c, plane in enumerate(scores):
            w = 1.0 if weight is None else weight[c].item()
            for i, score in enumerate(plane):
                if not soft and labels[i] == ignore_index:
                    continue
                s, y = 1 / (1 + math.exp(-score)), labels[c][i] if soft else float(labels[i] == c)
                shared += w * s * y
                size += w * (s**p + y**p)
        sums.append((shared, size))
    if batch:
        return [ratio_loss(sum(a for a, _ in sums), sum(b for _, b in sums), smooth)]
    return [ratio_loss(a, b, smooth) for a, b in sums]


def generalized_dice(x, t, eps=1e-5, ignore_index=-100):
    losses = []
    for scores, labels in zip(*pixels_of(x, t), strict=True):
        classes = range(len(scores))
        counts, shared, predicted = ([0.0 for _ in classes] for _ in range(3))
        for i, label in enumerate(labels):
            if label == ignore_index:
                continue
            total = sum(math.exp(plane[i]) for plane in scores)
            for c in classes:
                p = math.exp(scores[c][i]) / total
                counts[c] += label == c
                shared[c] += p * (label == c)
                predicted[c] += p
        largest = max((1 / n**2 for n in counts if n), default=1.0)
        w = [1 / n**2 if n else largest for n in counts]
        both = sum(w[c] * shared[c] for c in classes)
        losses.append(ratio_loss(both, sum(w[c] * (counts[c] + predicted[c]) for c in classes), eps))
    return losses


def random_case(shape, dtype=torch.float64, ignored=0.2):
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE) * 2
    t = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=DEVICE)
    t[torch.rand(t.shape, device=DEVICE) < ignored] = -100
    return x.to(dtype), t


SHAPES = [(3, 4, 17), (2, 19, 9, 13), (2, 2, 3, 5, 4), (5, 7), (1, 1, 600), (3, 130, 5), (1, 3, 1, 2100)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("p", [1.0, 1.7, 2.0])
@pytest.mark.parametrize("batch", [False, True])
def test_dice_against_loops(shape, p, batch):
    x, t = random_case(shape)
    w = torch.rand(shape[1], dtype=torch.float64, device=DEVICE) + 0.1
    for target, weight in ((t, None), (t, w), (torch.rand_like(x), w)):
        got = lossreg.dice_loss(x, target, p, 0.3, weight, batch=batch, reduction="none")
        want = torch.tensor(dice(x, target, p, 0.3, weight, batch=batch), dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(got.reshape(-1), want)
        assert got.shape == (() if batch else shape[:1])
        for reduction in ("mean", "sum"):
            reduced = lossreg.dice_loss(x, target, p, 0.3, weight, batch=batch, reduction=reduction)
            torch.testing.assert_close(reduced, getattr(want, reduction)())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_generalized_dice_against_loops(shape, eps):
    x, t = random_case(shape)
    t[0] = -100  # a sample without a valid pixel
    for target in (t, t.int()):
        got = lossreg.generalized_dice_loss(x, target, eps, reduction="none")
        want = torch.tensor(generalized_dice(x, target, eps), dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["dice_loss", "generalized_dice_loss"])
def test_gradient_of_float32_over_many_tiles(name):
    """Every tile, in every layout, against the reference in float64."""
    op = opreg.get(name)
    x, t = random_case((2, 5, 67, 71), torch.float32)
    exact = x.double().requires_grad_()
    want = op.call_reference(exact, t)
    want.backward()
    for format in (torch.contiguous_format, torch.channels_last):
        y = x.clone(memory_format=format).requires_grad_()
        loss = op.value(y, t)
        loss.backward()
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(y.grad.double(), exact.grad, rtol=2e-5, atol=1e-10)
        assert y.grad.is_contiguous(memory_format=format)


def test_values_by_hand():
    """σ(0) = ½: two pixels of two classes, one right half of the time."""
    x, t = torch.zeros(1, 2, 2, device=DEVICE), torch.tensor([[0, 1]], device=DEVICE)
    # overlap 2·½, sizes 4·½ + 2
    assert lossreg.dice_loss(x, t, smooth=0.0).item() == 0.5
    assert lossreg.dice_loss(x, t, p=2.0, smooth=0.0).item() == pytest.approx(1 - 2 / 3)
    assert lossreg.dice_loss(x, t).item() == pytest.approx(1 - 3 / 5)
    assert lossreg.generalized_dice_loss(x, t, eps=0.0).item() == 0.5


def test_small_probabilities_keep_their_gradient():
    """1 − σ(x) at x = 20 is 2e-9: a float's 1 − q would be 0."""
    x = torch.tensor([[[20.0, -20.0]]], device=DEVICE, requires_grad=True)
    t = torch.tensor([[[0.0, 1.0]]], device=DEVICE)
    (grad,) = torch.autograd.grad(lossreg.dice_loss(x, t), x)
    exact = x.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(opreg.get("dice_loss").call_reference(exact, t), exact)
    torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=0)
    assert (grad != 0).all()


@pytest.mark.parametrize("name", ["dice_loss", "generalized_dice_loss", "lovasz_softmax_loss"])
def test_ignored_pixels_may_hold_anything(name):
    op = getattr(lossreg, name)
    x, t = torch.randn(2, 3, 6, device=DEVICE), torch.randint(0, 3, (2, 6), device=DEVICE)
    t[:, 2:4] = -100
    clean = x.clone().requires_grad_()
    x[:, :, 2], x[:, 1, 3] = float("nan"), float("inf")
    x.requires_grad_()
    torch.testing.assert_close(op(x, t), op(clean, t))
    grad, want = torch.autograd.grad(op(x, t), x)[0], torch.autograd.grad(op(clean, t), clean)[0]
    torch.testing.assert_close(grad, want)
    assert (grad[:, :, 2:4] == 0).all()


def test_nothing_to_overlap_with():
    """0/0 is the limit of smooth to 0: no loss, no gradient; and an empty batch's one value is the empty sum's."""
    x = torch.randn(2, 3, 4, device=DEVICE, requires_grad=True)
    ignored = torch.full((2, 4), -100, device=DEVICE)
    for loss in (lossreg.dice_loss(x, ignored, smooth=0.0), lossreg.generalized_dice_loss(x, ignored, eps=0.0)):
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()
    assert lossreg.dice_loss(x[:0], ignored[:0], batch=True).item() == 0
    # predicted, but not there, and nothing added: as wrong as can be
    far = torch.full((1, 1, 3), -80.0, device=DEVICE, requires_grad=True)
    loss = lossreg.dice_loss(far, torch.zeros_like(far), smooth=0.0)
    assert loss.item() == 1
    assert torch.autograd.grad(loss, far)[0].isfinite().all()


def test_an_absent_class_takes_the_largest_weight():
    """4 pixels of class 0, 1 of class 1, none of class 2: weights 1/16, 1, 1."""
    x = torch.randn(1, 3, 5, dtype=torch.float64, device=DEVICE)
    t = torch.tensor([[0, 0, 1, 0, 0]], device=DEVICE)
    p = x.softmax(1)[0]
    w = torch.tensor([1 / 16, 1.0, 1.0], dtype=torch.float64, device=DEVICE)
    shared = w[0] * (p[0].sum() - p[0, 2]) + w[1] * p[1, 2]
    size = (w * p.sum(1)).sum() + 4 * w[0] + w[1]
    torch.testing.assert_close(lossreg.generalized_dice_loss(x, t, eps=0.0), 1 - 2 * shared / size)


def test_target_that_requires_grad():
    x, y = (torch.rand(2, 3, 4, device=DEVICE, requires_grad=True) for _ in range(2))
    both = torch.autograd.grad(lossreg.dice_loss(x, y, p=2.0), (x, y))
    (alone,) = torch.autograd.grad(lossreg.dice_loss(x.detach(), y, p=2.0), y)
    assert torch.equal(both[1], alone)
    weight = torch.rand(3, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="dice_loss: expected weight that does not require grad"):
        lossreg.dice_loss(x, y, weight=weight)


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("name", ["dice_loss", "generalized_dice_loss", "lovasz_softmax_loss"])
def test_invalid_class_is_nan_and_no_more(emulated, name):
    """On a GPU an invalid class must neither stop the process nor touch another sample."""
    emulated(1)
    op = opreg.get(name)
    x, t = torch.randn(3, 3, 4, requires_grad=True), torch.randint(0, 3, (3, 4))
    t[1, 2], t[1, 3] = 3, -100
    options = {"per_image": True} if "lovasz" in name else {"reduction": "none"}
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, op, opreg.Sample((x, t), options))
    assert grad[[0, 2]].isfinite().all()
    assert grad[1, :, 2].isnan().all()
    assert (grad[1, :, 3] == 0).all()
    assert loss.isnan().reshape(-1).tolist() == ([True] if "lovasz" in name else [False, True, False])


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("dice_loss", (3, 5, 300)),
        ("dice_loss", (2, 300)),
        ("dice_loss", (1, 2, 5000)),
        ("dice_loss", (2, 70, 3)),
        ("generalized_dice_loss", (2, 3, 300)),
        ("generalized_dice_loss", (1, 2, 1500)),
    ],
    ids=str,
)
def test_sizes_of_blocks(emulated, name, shape):
    """Around a block's threads: pixels that share them, and pixels of several items."""
    op = opreg.get(name)
    x, t = random_case(shape, torch.float32)
    sample = opreg.Sample((x.requires_grad_(), t), {"reduction": "none"})
    want = run_raw(lossreg, op, sample)
    emulated(3)
    for a, b in zip(run_raw(torch.ops.lossreg_emulated, op, sample), want, strict=True):
        torch.testing.assert_close(a, b, rtol=5e-6, atol=1e-7)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("name", ["dice_loss", "generalized_dice_loss"])
def test_forward_allocates_nothing_of_the_logits_size(name):
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(2, 8, 128, 128, requires_grad=True), torch.randint(0, 8, (2, 128, 128))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        getattr(lossreg, name)(x, t)
    assert 0 < max(e.cpu_memory_usage for e in seen.key_averages()) < 1 << 14  # the logits are 1 MB
