"""Losses of overlap against explicit loops over samples, classes and pixels in Python's floats."""

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


def sums_of(terms, x, t, weight, ignore_index, batch):
    """The sums of terms(s, y), one tuple a sample or one for all."""
    soft = t.is_floating_point()
    x, t = pixels_of(x, t)
    sums = []
    for scores, labels in zip(x, t, strict=True):
        each = []
        for c, plane in enumerate(scores):
            w = 1.0 if weight is None else weight[c].item()
            for i, score in enumerate(plane):
                if not soft and labels[i] == ignore_index:
                    continue
                s, y = 1 / (1 + math.exp(-score)), labels[c][i] if soft else float(labels[i] == c)
                each.append([w * term for term in terms(s, y)])
        sums.append(each)
    regions = [[pixel for each in sums for pixel in each]] if batch else sums
    nothing = [0.0 for _ in terms(0.5, 0.5)]
    return [[math.fsum(of_one) for of_one in zip(nothing, *region, strict=True)] for region in regions]


def dice(x, t, p=1.0, smooth=1.0, weight=None, ignore_index=-100, batch=False):
    """One value a sample, or one."""
    sums = sums_of(lambda s, y: (s * y, s**p + y**p), x, t, weight, ignore_index, batch)
    return [ratio_loss(shared, size, smooth) for shared, size in sums]


def tversky(x, t, alpha=0.5, beta=0.5, gamma=1.0, smooth=1.0, weight=None, ignore_index=-100, batch=False):
    sums = sums_of(lambda s, y: (s * y, s * (1 - y), (1 - s) * y), x, t, weight, ignore_index, batch)
    return [(1 - (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)) ** gamma for tp, fp, fn in sums]


def jaccard(x, t, smooth=1.0, weight=None, ignore_index=-100, batch=False):
    sums = sums_of(lambda s, y: (s * y, s, y), x, t, weight, ignore_index, batch)
    return [1 - (both + smooth) / (of_s + of_y - both + smooth) for both, of_s, of_y in sums]


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
@pytest.mark.parametrize(
    ("name", "definition", "options"),
    [
        ("dice_loss", dice, (1.0,)),
        ("dice_loss", dice, (1.7,)),
        ("dice_loss", dice, (2.0,)),
        ("tversky_loss", tversky, (0.3, 0.7, 1.0)),
        ("tversky_loss", tversky, (2.0, 0.0, 0.75)),
        ("jaccard_loss", jaccard, ()),
    ],
)
@pytest.mark.parametrize("batch", [False, True])
def test_overlaps_against_loops(shape, name, definition, options, batch):
    op = getattr(lossreg, name)
    x, t = random_case(shape)
    w = torch.rand(shape[1], dtype=torch.float64, device=DEVICE) + 0.1
    for target, weight in ((t, None), (t, w), (torch.rand_like(x), w)):
        got = op(x, target, *options, 0.3, weight, batch=batch, reduction="none")
        want = definition(x, target, *options, 0.3, weight, batch=batch)
        want = torch.tensor(want, dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(got.reshape(-1), want)
        assert got.shape == (() if batch else shape[:1])
        for reduction in ("mean", "sum"):
            reduced = op(x, target, *options, 0.3, weight, batch=batch, reduction=reduction)
            torch.testing.assert_close(reduced, getattr(want, reduction)())


def test_indices_that_are_each_other():
    """Tversky's index with α = β = ½ is Dice's, with twice the smoothing; with α = β = 1 it is Jaccard's."""
    x, t = random_case((3, 4, 17))
    for batch in (False, True):
        half, whole = (lossreg.tversky_loss(x, t, k, k, smooth=0.4, batch=batch) for k in (0.5, 1.0))
        torch.testing.assert_close(half, lossreg.dice_loss(x, t, smooth=0.8, batch=batch))
        torch.testing.assert_close(whole, lossreg.jaccard_loss(x, t, smooth=0.4, batch=batch))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.75, 1.0, 2.0])
def test_a_power_of_no_loss_has_no_slope(gamma):
    """(1 − index)^γ is rounded below 0 before it is 0: no NaN, and no infinite gradient."""
    x = torch.full((4, 3, 50), -60.0, device=DEVICE)
    t = torch.randint(0, 3, (4, 50), device=DEVICE)
    x = x.scatter(1, t[:, None], 60.0).requires_grad_()
    loss = lossreg.tversky_loss(x, t, 0.3, 0.7, gamma, reduction="none")
    torch.testing.assert_close(loss, torch.full_like(loss, gamma == 0), rtol=0, atol=1e-3)
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-5, 0.5])
def test_generalized_dice_against_loops(shape, eps):
    x, t = random_case(shape)
    t[0] = -100  # a sample without a valid pixel
    for target in (t, t.int()):
        got = lossreg.generalized_dice_loss(x, target, eps, reduction="none")
        want = torch.tensor(generalized_dice(x, target, eps), dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", ["dice_loss", "tversky_loss", "generalized_dice_loss"])
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
    # 1 of 3 pixels of the union; one false positive, one false negative
    assert lossreg.jaccard_loss(x, t, smooth=0.0).item() == pytest.approx(2 / 3)
    assert lossreg.tversky_loss(x, t, 0.2, 0.6, smooth=0.0).item() == pytest.approx(1 - 1 / 1.8)
    assert lossreg.tversky_loss(x, t, 0.2, 0.6, 2.0, 0.0).item() == pytest.approx((1 - 1 / 1.8) ** 2)
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
    overlaps = [
        getattr(lossreg, name)(x, ignored, smooth=0.0) for name in ("dice_loss", "tversky_loss", "jaccard_loss")
    ]
    for loss in (*overlaps, lossreg.generalized_dice_loss(x, ignored, eps=0.0)):
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


@pytest.mark.parametrize(
    ("name", "options"), [("dice_loss", {"p": 2.0}), ("tversky_loss", {"alpha": 0.1, "beta": 0.9})]
)
def test_target_that_requires_grad(name, options):
    op = getattr(lossreg, name)
    x, y = (torch.rand(2, 3, 4, device=DEVICE, requires_grad=True) for _ in range(2))
    both = torch.autograd.grad(op(x, y, **options), (x, y))
    (alone,) = torch.autograd.grad(op(x.detach(), y, **options), y)
    assert torch.equal(both[1], alone)
    weight = torch.rand(3, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match=f"{name}: expected weight that does not require grad"):
        op(x, y, weight=weight)


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
