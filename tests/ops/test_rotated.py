"""prob_iou_loss against its definition in 200 bits, where nothing cancels: matrices, determinants, adjugates."""

import math

import pytest
import torch
from mpmath import mp, mpf

from conftest import DEVICE

EPS = 1e-7
prob_iou_loss = torch.ops.lossreg.prob_iou_loss


def covariance(w, h, angle):
    a, b, c, s = w * w / 12, h * h / 12, mp.cos(angle), mp.sin(angle)
    return a * c * c + b * s * s, a * s * s + b * c * c, (a - b) * c * s  # xx, yy, xy


def exact(first, second, eps):
    """Of numbers of mpmath."""
    x1, y1, w1, h1, t1 = first
    x2, y2, w2, h2, t2 = second
    xx, yy, xy = (p + q for p, q in zip(covariance(w1, h1, t1), covariance(w2, h2, t2), strict=True))
    dx, dy = x1 - x2, y1 - y2
    det, square = xx * yy - xy * xy, yy * dx * dx + xx * dy * dy - 2 * xy * dx * dy
    shape = mp.log(det / (4 * abs(w1 * h1 * w2 * h2) / 144 + eps) + eps)
    distance = min(max(square / (4 * (det + eps)) + shape / 2, eps), mpf(100))
    return mp.sqrt(1 - mp.exp(-distance) + eps)


def exact_losses(a, b, eps=EPS):
    with mp.workprec(200):
        pairs = zip(a.tolist(), b.tolist(), strict=True)
        return torch.tensor([float(exact(map(mpf, p), map(mpf, q), mpf(eps))) for p, q in pairs], dtype=torch.float64)


def exact_gradients(a, b, eps=EPS):
    """Differences so small that their error is none, in so many bits that they have digits."""
    with mp.workprec(400):
        step, rows = mpf(2) ** -100, []
        for pair in torch.cat([a, b], -1).tolist():
            c = [mpf(v) for v in pair]
            ends = [[[*c[:k], c[k] + d, *c[k + 1 :]] for d in (-step, step)] for k in range(10)]
            values = [[exact(e[:5], e[5:], mpf(eps)) for e in both] for both in ends]
            rows.append([float((after - before) / (2 * step)) for before, after in values])
        return torch.tensor(rows, dtype=torch.float64)


def draw(n, scale=1.0, thin=1.0, dtype=torch.float64):
    centre, size = torch.rand(n, 2, dtype=torch.float64), 0.1 + torch.rand(n, 2, dtype=torch.float64)
    size = size * torch.tensor([1.0, thin], dtype=torch.float64)
    angle = (torch.rand(n, 1, dtype=torch.float64) - 0.5) * 2 * math.pi
    return torch.cat([scale * centre, scale * size, angle], -1).to(dtype).to(DEVICE)


def near(a, shift):
    """Boxes beside these: their centres, sizes and angles off by about ``shift`` of themselves."""
    return (a.double() * (1 + shift * torch.randn(a.shape, dtype=torch.float64).to(a.device))).to(a.dtype)


def gradients(a, b, eps=EPS):
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = prob_iou_loss(a, b, reduction="none", eps=eps, dtype=torch.float64 if a.dtype == torch.float64 else None)
    return loss.detach(), torch.cat(torch.autograd.grad(loss.sum(), (a, b)), -1)


CASES = {
    "any": lambda dtype: (draw(25, dtype=dtype), draw(25, dtype=dtype)),
    "pixels": lambda dtype: (draw(25, 1e3, dtype=dtype), draw(25, 1e3, dtype=dtype)),
    "alike": lambda dtype: (a := draw(25, 100, dtype=dtype), near(a, 1e-2)),
    "thin and alike": lambda dtype: (a := draw(25, 100, 1e-3, dtype), near(a, 1e-4)),
    "thin, about parallel": lambda dtype: (a := draw(25, 100, 1e-4, dtype), near(a, 1e-6)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("eps", [EPS, 1e-3])
def test_definition(case, eps):
    a, b = CASES[case](torch.float64)
    loss, grad = gradients(a, b, eps)
    torch.testing.assert_close(loss.cpu(), exact_losses(a, b, eps), rtol=1e-11, atol=1e-12)
    want = exact_gradients(a, b, eps)
    torch.testing.assert_close(grad.cpu(), want, rtol=1e-8, atol=1e-10 * float(want.abs().max()))


@pytest.mark.parametrize("case", CASES)
def test_float32_keeps_its_digits(case):
    """Thin boxes too, whose determinant is what is left of squares that are 1e8 times as large."""
    a, b = CASES[case](torch.float32)
    loss, grad = gradients(a, b)
    torch.testing.assert_close(loss.double().cpu(), exact_losses(a, b), rtol=2e-5, atol=2e-6)
    want = exact_gradients(a, b)
    # beside the greatest of a pair's in the same kind of number
    for k in range(10):
        worst = want[:, k].abs().max()
        torch.testing.assert_close(grad[:, k].double().cpu(), want[:, k], rtol=1e-3, atol=2e-4 * float(worst))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [EPS, 0.0])
def test_boxes_of_nothing_are_finite(dtype, eps):
    """Points and lines, in the same place and apart, turned or not."""
    places, sizes, angles = (0.0, 3.0), (0.0, 2.0), (0.0, 0.5)
    boxes = [[x, 0.0, w, h, t] for x in places for w in sizes for h in sizes for t in angles]
    grid = torch.tensor(boxes, dtype=dtype, device=DEVICE)
    a, b = (t.reshape(-1, 5) for t in torch.broadcast_tensors(grid[:, None], grid[None]))
    a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
    loss = prob_iou_loss(a, b, reduction="none", eps=eps, dtype=torch.float64)
    assert loss.isfinite().all()
    assert (loss <= 1 + 1e-6).all()
    for t, grad in zip((a, b), torch.autograd.grad(loss.sum(), (a, b)), strict=True):
        assert grad.isfinite().all() or (dtype == torch.float16 and not grad.isnan().any())
        assert (grad[:, 2:4][t[:, 2:4] == 0] == 0).all()  # no slope in a side of length 0
    same = (a == b).all(-1)
    assert (loss[same] <= 1e-3).all()
    # a point has no extent that a distance could be measured by
    if eps == 0:
        points = (a[:, 2:4] == 0).all(-1) & (b[:, 2:4] == 0).all(-1)
        assert (loss[points] < 1e-6).all()


def test_what_does_not_change_a_box():
    """A quarter turn with the sides exchanged, half a turn, the sign of a side; and which of the two comes first."""
    a, b = draw(20), draw(20)
    want = prob_iou_loss(a, b, reduction="none")
    x, y, w, h, t = a.unbind(-1)
    told_otherwise = [(x, y, h, w, t + math.pi / 2), (x, y, w, h, t + math.pi), (x, y, -w, h, t), (x, y, w, -h, t)]
    for other in told_otherwise:
        torch.testing.assert_close(prob_iou_loss(torch.stack(other, -1), b, reduction="none"), want)
    torch.testing.assert_close(prob_iou_loss(b, a, reduction="none"), want)


def test_boxes_far_apart_are_clamped():
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0, 0.0]], device=DEVICE, requires_grad=True)
    loss = prob_iou_loss(a, a.detach() + torch.tensor([100.0, 0, 0, 0, 0], device=DEVICE))
    assert loss.item() == pytest.approx(1)
    assert (torch.autograd.grad(loss, a)[0] == 0).all()


def layouts(t):
    """The same boxes (n, m, 5): numbers first in memory, every other row, a part of longer rows."""
    yield t.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    yield t.repeat_interleave(2, 1)[:, ::2]
    yield torch.cat([t, t.new_zeros(*t.shape[:2], 3)], -1)[..., :5]
    yield t.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_layouts(dtype):
    a, b = (draw(7 * 37, dtype=dtype).view(7, 37, 5) for _ in range(2))
    want, grad = gradients(a, b)
    for p, q in zip(layouts(a), layouts(b), strict=True):
        p = p.detach().requires_grad_()
        loss = prob_iou_loss(p, q, reduction="none", dtype=want.dtype)
        # other pairs are then those that a vector has no room for
        near = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 0}
        torch.testing.assert_close(loss, want, **near)
        torch.testing.assert_close(torch.autograd.grad(loss.sum(), p)[0], grad[..., :5], **near)
