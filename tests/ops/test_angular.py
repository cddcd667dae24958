"""ArcFace and the additive margin softmax: by angles, at the seams of the target's logit, and at the extremes."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import DEVICE


def arcface_by_angles(cosine, target, margin, scale):
    """The paper's own way: through the angle."""
    theta = cosine.acos()
    handicapped = torch.where(theta < math.pi - margin, (theta + margin).cos(), cosine - margin * math.sin(margin))
    hot = F.one_hot(target, cosine.shape[1]).to(cosine)
    logits = scale * (hot * handicapped + (1 - hot) * cosine)
    return logits.logsumexp(1) - (hot * logits).sum(1)


@pytest.mark.parametrize("margin", [0.0, 0.3, 0.5, 1.5, 3.0])
@pytest.mark.parametrize("scale", [1.0, 64.0])
def test_arcface_by_angles(margin, scale):
    """Both branches, value and gradient, in float64."""
    x = (torch.rand(40, 6, dtype=torch.float64, device=DEVICE) * 1.98 - 0.99).requires_grad_()
    t = torch.randint(0, 6, (40,), device=DEVICE)
    got = torch.ops.lossreg.arcface_loss(x, t, margin, scale, reduction="none")
    want = arcface_by_angles(x, t, margin, scale)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0])
    if margin == 1.5:
        easy = x.detach().gather(1, t[:, None]) <= -math.cos(margin)
        assert easy.any()
        assert not easy.all()


def test_known_values():
    """One row by hand: cos 60° is 0.5, and with a margin of 30° the target's logit is cos 90° = 0."""
    x, t = torch.tensor([[0.5, 0.0]], dtype=torch.float64, device=DEVICE), torch.tensor([0], device=DEVICE)
    arcface = torch.ops.lossreg.arcface_loss(x, t, math.pi / 6, 10.0)
    torch.testing.assert_close(arcface.item(), math.log(2))
    # 2 (0.5 - 0.25) = 0.5 against 0
    torch.testing.assert_close(torch.ops.lossreg.amsoftmax_loss(x, t, 0.25, 2.0).item(), math.log1p(math.exp(-0.5)))


@pytest.mark.parametrize("margin", [0.0, 0.35])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 4), (5,), (3, 300)])
def test_amsoftmax_is_cross_entropy_of_shifted_logits(margin, shape):
    classes = shape[min(1, len(shape) - 1)]
    x = (torch.rand(shape, dtype=torch.float64, device=DEVICE) * 2 - 1).requires_grad_()
    t = torch.randint(0, classes, (*shape[:-1][:1], *shape[2:]), device=DEVICE)
    hot = F.one_hot(t, classes).to(x).movedim(-1, min(1, len(shape) - 1))
    for reduction in ("none", "mean", "sum"):
        got = torch.ops.lossreg.amsoftmax_loss(x, t, margin, 30.0, reduction=reduction)
        want = F.cross_entropy(30 * (x - margin * hot), t, reduction=reduction)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(want.sum(), x)[0])


@pytest.mark.parametrize("cosine", [1.0, -1.0, 1 - 1e-9, 1.5, -1e4])
def test_arcface_gradient_where_the_sine_is_clamped(cosine):
    """sin θ is constant there: the slope of the target's logit is s cos m, or s in the easy branch."""
    x = torch.tensor([[cosine, 0.3]], dtype=torch.float64, device=DEVICE, requires_grad=True)
    loss = torch.ops.lossreg.arcface_loss(x, torch.tensor([0], device=DEVICE), 0.5, 2.0)
    hard = cosine > -math.cos(0.5)
    own = cosine * math.cos(0.5) - math.sqrt(1e-7) * math.sin(0.5) if hard else cosine - 0.5 * math.sin(0.5)
    miss = 1 / (1 + math.exp(2 * (own - 0.3)))
    slope = 2 * (math.cos(0.5) if hard else 1)
    want = torch.tensor([[-slope * miss, 2 * miss]], dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(torch.autograd.grad(loss, x)[0], want)


@pytest.mark.parametrize("name", ["arcface_loss", "amsoftmax_loss"])
@pytest.mark.parametrize("shape", [(6, 3), (6, 100), (2, 3, 9)])
@pytest.mark.parametrize("largest", [1.0, 1e4])
def test_finite(name, shape, largest):
    """A scale of 64 and what no cosine is, in float32: no overflow on the way."""
    x = (torch.randint(-1, 2, shape, device=DEVICE) * largest).requires_grad_()
    t = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=DEVICE)
    loss = getattr(torch.ops.lossreg, name)(x, t, scale=64.0, reduction="none")
    assert loss.isfinite().all()
    assert (loss >= 0).all()
    assert torch.autograd.grad(loss.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("name", ["arcface_loss", "amsoftmax_loss"])
def test_gradient_of_the_right_answer_keeps_its_digits(name):
    """Where p_y is almost 1, the target's gradient is s (p_y - 1) times a slope, and p_y - 1 no difference."""
    x = -0.1 * torch.rand(8, 200, device=DEVICE)
    x[:, 2] = 0.9
    x.requires_grad_()
    t = torch.full((8,), 2, device=DEVICE)
    grads = []
    for dtype in (torch.float32, torch.float64):
        y = x.detach().to(dtype).requires_grad_()
        loss = getattr(torch.ops.lossreg, name)(y, t, scale=16.0, reduction="sum")
        grads.append(torch.autograd.grad(loss, y)[0].double())
    torch.testing.assert_close(*grads, rtol=3e-5, atol=0)
