"""Margin losses against loops over classes and against torch's own: lists of classes, weights, invalid indices."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import opreg
from conftest import DEVICE, run_raw
from opreg.testing import Maker


def multilabel_by_loops(x, lists):
    """Every listed class before the first -1, as often as it is listed, against every class that is not listed."""
    losses = []
    for row, listed in zip(x, lists, strict=True):
        end = listed.index(-1) if -1 in listed else len(listed)
        targets = listed[:end]
        others = [c for c in range(len(row)) if c not in targets]
        losses.append(sum(max(0.0, 1 - row[y] + row[c]) for y in targets for c in others) / len(row))
    return losses


@pytest.mark.parametrize("classes", [1, 2, 5, 63, 64, 65, 200])
@pytest.mark.parametrize("listed", [0, 1, 3, 70])
def test_multilabel_lists(classes, listed):
    """Lists of any length with repetitions; what follows the first -1 may be anything, for native only from -1 on."""
    x = torch.randn(4, classes, dtype=torch.float64)
    t = torch.randint(0, classes, (4, classes))
    t[:, min(listed, classes) :] = -1
    want = torch.tensor(multilabel_by_loops(x.tolist(), t.tolist()), dtype=torch.float64)
    x = x.to(DEVICE).requires_grad_()
    got = torch.ops.lossreg.multilabel_margin_loss(x, t.to(DEVICE), "none")
    torch.testing.assert_close(got.cpu(), want)
    native = F.multilabel_margin_loss(x, t.to(DEVICE), reduction="none")
    torch.testing.assert_close(got, native)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(native.sum(), x)[0])


def test_what_follows_the_end_of_a_list_is_ignored():
    x = torch.randn(2, 5, device=DEVICE, requires_grad=True)
    t = torch.tensor([[2, -1, 0, 99, -7], [-1, 3, 3, 3, 3]], device=DEVICE)
    clean = torch.tensor([[2, -1, -1, -1, -1], [-1, -1, -1, -1, -1]], device=DEVICE)
    op = torch.ops.lossreg.multilabel_margin_loss
    torch.testing.assert_close(op(x, t, "none"), F.multilabel_margin_loss(x, clean, reduction="none"))
    assert op(x, t, "none")[1] == 0


@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 1000])
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_multi_margin_of_any_number_of_classes(classes, p, weighted, dtype):
    x = torch.randn(5, classes, device=DEVICE).to(dtype).requires_grad_()
    t = torch.randint(0, classes, (5,), device=DEVICE)
    w = torch.rand(classes, device=DEVICE) if weighted else None
    exact = x.detach().double().requires_grad_()
    loss = torch.ops.lossreg.multi_margin_loss(x, t, p, 0.7, w, "none", dtype=torch.float32)
    want = F.multi_margin_loss(exact, t, p, 0.7, None if w is None else w.double(), reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-7)
    grad, want_grad = torch.autograd.grad(loss.sum(), x)[0], torch.autograd.grad(want.sum(), exact)[0]
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(grad.double(), want_grad, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("p", [1, 2])
def test_second_derivative_where_native_has_none(p):
    """d/dx of |d loss/dx|² by hand: of squares 2 w/C (z_c), of hinges nothing."""
    x = torch.randn(3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.tensor([1, 0, 3], device=DEVICE)
    loss = torch.ops.lossreg.multi_margin_loss(x, t, p, reduction="sum")
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    hessian = torch.func.hessian(lambda x: torch.ops.lossreg.multi_margin_loss(x, t, p, reduction="sum"))(x.detach())
    expected = torch.zeros_like(hessian)
    for i in range(3):
        y = t[i].item()
        for c in range(4):
            if p == 2 and c != y and 1 - x[i, y] + x[i, c] > 0:
                e = torch.zeros(4, dtype=torch.float64, device=DEVICE)
                e[c], e[y] = 1, -1
                expected[i, :, i, :] += 2 / 4 * torch.outer(e, e)
    torch.testing.assert_close(hessian, expected)
    (gg,) = torch.autograd.grad(g.pow(2).sum() / 2, x)
    torch.testing.assert_close(gg, torch.einsum("ijkl,kl->ij", expected, g.detach()))


def test_soft_margin_broadcasts_as_native():
    """Every operand smaller than the others somewhere; gradients in all three."""
    shapes = [((4, 3), (3,), (4, 1)), ((3,), (4, 3), (1,)), ((2, 1, 3), (4, 3), (2, 4, 1)), ((4, 3), (4, 3), (2, 4, 1))]
    make = Maker(torch.float64, DEVICE, requires_grad=True)
    for shape in shapes:
        x, t, w = (make.uniform(*s, low=-2.0) for s in shape)
        for reduction in ("none", "mean", "sum"):
            got = torch.ops.lossreg.multilabel_soft_margin_loss(x, t, w, reduction)
            want = F.multilabel_soft_margin_loss(x, t, w, reduction=reduction)
            torch.testing.assert_close(got, want)
            factor = torch.rand_like(want)
            ours, theirs = (torch.autograd.grad(loss, (x, t, w), factor) for loss in (got, want))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a, b)


def test_soft_margin_of_integer_targets():
    x, t = torch.randn(4, 5, device=DEVICE), torch.randint(0, 2, (4, 5), device=DEVICE)
    op = torch.ops.lossreg.multilabel_soft_margin_loss
    assert op(x, t) == op(x, t.bool()) == op(x, t.float())
    # a stray digit in place of t · log σ(x) + (1 − t) · log σ(−x)
    sure = torch.tensor([[20.0, -20.0]], device=DEVICE)
    loss = op(sure, torch.tensor([[1, 0]], device=DEVICE))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-6)


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e4), (torch.float16, 6e4)], ids=str)
def test_finite_in_finite_out(dtype, largest):
    x = torch.tensor([[largest, -largest, 0.0]] * 2, dtype=dtype, device=DEVICE, requires_grad=True)
    calls = {
        "multi_margin_loss": (x, torch.tensor([0, 1], device=DEVICE)),
        "multilabel_margin_loss": (x, torch.tensor([[0, -1, -1], [1, 2, -1]], device=DEVICE)),
        "multilabel_soft_margin_loss": (x, torch.tensor([[1, 0, 1], [0, 1, 0]], device=DEVICE)),
    }
    for name, args in calls.items():
        loss = getattr(torch.ops.lossreg, name)(*args, dtype=torch.float32)
        assert loss.isfinite()
        assert torch.autograd.grad(loss, x)[0].isfinite().all()


def test_a_nan_score_is_seen():
    """Native's comparison drops it without a word."""
    x = torch.tensor([[0.0, torch.nan, 1.0], [0.0, 1.0, 2.0]], device=DEVICE)
    loss = torch.ops.lossreg.multi_margin_loss(x, torch.tensor([0, 2], device=DEVICE), reduction="none")
    assert loss.isnan().tolist() == [True, False]


def test_weights_of_the_classes_are_constants():
    x, w = torch.randn(2, 3, device=DEVICE), torch.rand(3, device=DEVICE, requires_grad=True)
    t = torch.tensor([0, 2], device=DEVICE)
    with pytest.raises(RuntimeError, match="multi_margin_loss: expected weight that does not require grad"):
        torch.ops.lossreg.multi_margin_loss(x, t, weight=w)


INVALID = {
    "multi_margin_loss": [0, 4, -1],
    "multilabel_margin_loss": [[0, 2, -1, 9], [1, 4, -1, -1], [-2, 1, -1, -1]],
}


def check_invalid_is_nan(namespace, name, device):
    """NaN in the row's loss and gradient, and in no other row."""
    make = Maker(torch.float32, device, requires_grad=True)
    for classes in (4, 70):  # a thread and a block of threads a row
        t = torch.tensor(INVALID[name], device=device)
        t = F.pad(t, (0, classes - 4), value=-1) if t.dim() == 2 else t
        t[t == 4] = classes
        sample = opreg.Sample((make.normal(3, classes), t), {"reduction": "none"})
        loss, grad = run_raw(namespace, opreg.get(name), sample)
        assert loss.isnan().tolist() == [False, True, True]
        assert grad.isnan().any(1).tolist() == grad.isnan().all(1).tolist() == [False, True, True]


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU it is an error: see the error samples")
@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_class_is_nan_on_a_gpu(name):
    check_invalid_is_nan(torch.ops.lossreg, name, DEVICE)


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_class_is_nan_when_emulated(emulated, name):
    emulated(1)
    check_invalid_is_nan(torch.ops.lossreg_emulated, name, "cpu")
