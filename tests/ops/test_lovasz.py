"""Lovász losses against the definition of the Lovász extension: of a function of sets, over every set of pixels."""

import itertools

import numpy as np
import pytest
import torch

import opreg
from conftest import DEVICE, run_raw

lossreg = torch.ops.lossreg


def jaccard(wrong, truth):
    """The Jaccard loss of a segmentation that is wrong at exactly these pixels: a function of sets, 0 at none."""
    predicted = wrong ^ truth
    union = truth | predicted
    return 1 - len(truth & predicted) / len(union) if union else 0.0


def extension(errors, truth):
    """Σ e_(i) (Δ({1 … i}) − Δ({1 … i − 1})) along the descending order: arXiv 1705.08790, definition 1."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    sets = [frozenset(order[:k]) for k in range(len(errors) + 1)]
    return sum(errors[order[k]] * (jaccard(sets[k + 1], truth) - jaccard(sets[k], truth)) for k in range(len(errors)))


def regions_of(arrays, per_image):
    """The arrays of each image, or of the batch as one, flat."""
    if not per_image:
        return [[a.ravel() for a in arrays]]
    return [[a[n].ravel() for a in arrays] for n in range(len(arrays[0]))]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def softmax_loss(x, t, classes="present", per_image=False, ignore_index=-100):
    x = x.double().cpu().numpy()
    p = np.exp(x) / np.exp(x).sum(1, keepdims=True)
    t = t.cpu().numpy()
    losses = []
    for labels, *planes in regions_of([t, *(p[:, c] for c in range(p.shape[1]))], per_image):
        valid = labels != ignore_index
        of_class = {}
        for c, plane in enumerate(planes):
            truth = frozenset(np.flatnonzero(labels[valid] == c).tolist())
            if truth or classes == "all":
                of_class[c] = extension(abs((labels[valid] == c) - plane[valid]).tolist(), truth)
        losses.append(mean(of_class.values()))
    return mean(losses)


def hinge_loss(x, t, per_image=True, ignore_index=-100):
    losses = []
    for scores, labels in regions_of([x.double().cpu().numpy(), t.cpu().numpy()], per_image):
        valid = labels != ignore_index
        y = labels[valid] == 1
        errors = np.maximum(1 - scores[valid] * (2 * y - 1), 0).tolist()
        losses.append(extension(errors, frozenset(np.flatnonzero(y).tolist())))
    return mean(losses)


def labels_of(classes, *shape, ignored=0.25, ignore_index=-100):
    t = torch.randint(0, classes, shape, device=DEVICE)
    t[torch.rand(shape, device=DEVICE) < ignored] = ignore_index
    return t


@pytest.mark.parametrize("shape", [(2, 3, 11), (3, 4, 5, 3), (2, 2, 2, 3, 2), (6, 5), (1, 7, 40)], ids=str)
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("per_image", [False, True])
def test_softmax_against_the_definition(shape, classes, per_image):
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE) * 2
    t = labels_of(shape[1], shape[0], *shape[2:], ignore_index=2)
    t[0] = 2  # an image without a valid pixel
    got = lossreg.lovasz_softmax_loss(x, t, classes, per_image, 2)
    assert got.item() == pytest.approx(softmax_loss(x, t, classes, per_image, 2), abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 13), (3, 4, 5), (2, 2, 3, 4), (6,)], ids=str)
@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.float32], ids=str)
def test_hinge_against_the_definition(shape, per_image, dtype):
    x = torch.randn(shape, dtype=torch.float64, device=DEVICE)
    t = labels_of(3, *shape, ignore_index=255).to(dtype)
    got = lossreg.lovasz_hinge_loss(x, t, per_image, 255)
    assert got.item() == pytest.approx(hinge_loss(x, t, per_image, 255), abs=1e-12)


def test_it_extends_the_jaccard_loss():
    """Where each pixel is all right or all wrong, the loss is the Jaccard loss itself: every set of wrong pixels."""
    truth = frozenset({0, 2})
    t = torch.tensor([[int(i in truth) for i in range(4)]], device=DEVICE)
    for wrong in itertools.chain.from_iterable(itertools.combinations(range(4), k) for k in range(5)):
        # an error of 1 (x = 0) or of 0
        sign = 2 * t - 1
        x = sign * torch.tensor([[float(i not in wrong) for i in range(4)]], dtype=torch.float64, device=DEVICE)
        got = lossreg.lovasz_hinge_loss(x, t)
        assert got.item() == pytest.approx(jaccard(frozenset(wrong), truth), abs=1e-15)


def test_it_is_the_convex_closure():
    """The largest of the sums along all orders, since the Jaccard loss is submodular."""
    x = torch.randn(1, 5, dtype=torch.float64, device=DEVICE)
    t = torch.tensor([[1, 0, 1, 0, 0]], device=DEVICE)
    errors = (1 - x * (2 * t - 1)).relu()[0].tolist()
    truth = frozenset({0, 2})
    values = []
    for order in itertools.permutations(range(5)):
        sets = [frozenset(order[:k]) for k in range(6)]
        values.append(sum(errors[order[k]] * (jaccard(sets[k + 1], truth) - jaccard(sets[k], truth)) for k in range(5)))
    assert lossreg.lovasz_hinge_loss(x, t).item() == pytest.approx(max(values), abs=1e-12)


def test_ties_go_by_the_flat_index():
    """Equal errors: the steps 1/2, 1/2, 0, 0 and 1/3, 1/6, 1/2, 0 fall to the pixels in their order, in any layout."""
    x = torch.zeros(1, 2, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)
    for labels, steps in (([[1, 1], [0, 0]], [-0.5, -0.5, 0, 0]), ([[0, 0], [1, 1]], [1 / 3, 1 / 6, -1 / 4, -1 / 4])):
        t = torch.tensor([labels], device=DEVICE)
        want = torch.tensor(steps, dtype=torch.float64, device=DEVICE).reshape(1, 2, 2)
        (grad,) = torch.autograd.grad(lossreg.lovasz_hinge_loss(x, t), x)
        torch.testing.assert_close(grad, want)
        swapped = x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        (grad,) = torch.autograd.grad(lossreg.lovasz_hinge_loss(swapped, t), swapped)
        torch.testing.assert_close(grad, want)


def test_no_slope_at_the_kink():
    """relu at 0, as torch has it."""
    x = torch.tensor([[1.0, -1.0, 0.5]], device=DEVICE, requires_grad=True)
    t = torch.tensor([[1, 0, 1]], device=DEVICE)
    (grad,) = torch.autograd.grad(lossreg.lovasz_hinge_loss(x, t), x)
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.0, -0.5]], device=DEVICE))


@pytest.mark.parametrize("pixels", [4096, 4099, 40_003])
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
def test_many_pixels(pixels, layout):
    """More than a chunk of the order, and than the smallest vector that torch sorts by digits; float32 keys."""
    x, t = torch.randn(1, 2, pixels, device=DEVICE), labels_of(2, 1, pixels)
    if layout == "transposed":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    for op in (opreg.get("lovasz_softmax_loss"), opreg.get("lovasz_hinge_loss")):
        y = (x if op.short == "lovasz_softmax_loss" else x[:, 0]).detach().requires_grad_()
        exact = y.detach().double().requires_grad_()
        loss, want = op.value(y, t), op.call_reference(exact, t)
        torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
        (grad,), (want_grad,) = torch.autograd.grad(loss, y), torch.autograd.grad(want, exact)
        # where two errors are equal in float32 but not in float64, two neighbouring steps change places
        close = (grad.double() - want_grad).abs() <= 1e-5 * want_grad.abs() + 1e-12
        assert close.float().mean() > 0.98
        torch.testing.assert_close(grad.double().sum(), want_grad.sum(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("per_image", [False, True])
def test_no_valid_pixel(per_image):
    x = torch.randn(2, 3, 4, device=DEVICE, requires_grad=True)
    t = torch.full((2, 4), 255, dtype=torch.uint8, device=DEVICE)
    for loss in (
        lossreg.lovasz_softmax_loss(x, t, "present", per_image, 255),
        lossreg.lovasz_softmax_loss(x, t, "all", per_image, 255),
        lossreg.lovasz_hinge_loss(x[:, 0], t, per_image, 255),
    ):
        assert loss.item() == 0
        assert (torch.autograd.grad(loss, x)[0] == 0).all()
    assert lossreg.lovasz_softmax_loss(x[:0], t[:0], per_image=per_image).item() == 0
    assert lossreg.lovasz_hinge_loss(x[:0, 0], t[:0], per_image=per_image).item() == 0


def test_nan_stays():
    x = torch.randn(2, 3, 4, device=DEVICE)
    x[0, 1, 2] = float("nan")
    t = torch.zeros(2, 4, dtype=torch.int64, device=DEVICE)
    assert lossreg.lovasz_softmax_loss(x, t).isnan()
    assert lossreg.lovasz_hinge_loss(x[:, 1], t).isnan()
    assert lossreg.lovasz_hinge_loss(-x[:, 1], t).isnan()  # a NaN with a sign


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_sizes_of_blocks(emulated, seed):
    """Several chunks of the order, and several planes at once, in any order of threads."""
    for name, shape in (("lovasz_softmax_loss", (1, 2, 4500)), ("lovasz_hinge_loss", (1, 4500))):
        op = opreg.get(name)
        x, t = torch.randn(shape, dtype=torch.float64, requires_grad=True), labels_of(2, 1, 4500)
        sample = opreg.Sample((x, t))
        want = run_raw(lossreg, op, sample)
        emulated(seed)
        for a, b in zip(run_raw(torch.ops.lossreg_emulated, op, sample), want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_memory_is_the_state_and_a_few_planes():
    """Beside the state: two floats and a label a pixel of the batch; two keys, a place, a byte a pixel of a plane."""
    from torch.profiler import ProfilerActivity, profile

    classes, pixels = 16, 256 * 256
    x, t = torch.randn(1, classes, 256, 256, requires_grad=True), torch.randint(0, classes, (1, 256, 256))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        lossreg.lovasz_softmax_loss(x, t)
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    state = 4 * classes * pixels
    assert state < peak < state + (12 + 4 + 4 + 8 + 1 + 16) * pixels  # 16: the sort's own
