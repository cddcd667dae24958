"""ssim_loss against its definition, window by window: the paper's formula over the pixels that a window holds."""

import pytest
import torch

import opreg
from conftest import DEVICE, run_raw

ssim_loss = torch.ops.lossreg.ssim_loss


def gaussian(size, sigma):
    place = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
    line = torch.exp(-(place**2) / (2 * sigma**2))
    plane = line[:, None] * line[None]
    return plane / plane.sum()


def definition(x, y, window_size=11, sigma=1.5, data_range=1.0, k1=0.01, k2=0.03):
    """One value an image, of tensors of float64; differentiable."""
    w = gaussian(window_size, sigma)
    windows = [t.cpu().double().unfold(2, window_size, 1).unfold(3, window_size, 1) for t in (x, y)]
    mx, my = (((t * w).sum((-2, -1))) for t in windows)
    dx, dy = (t - m[..., None, None] for t, m in zip(windows, (mx, my), strict=True))
    vx, vy, vxy = ((a * b * w).sum((-2, -1)) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    similar = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return 1 - similar.mean((1, 2, 3))


def pair(*shape, high=1.0, dtype=torch.float64):
    return [(torch.rand(shape, dtype=torch.float64) * high).to(DEVICE, dtype) for _ in range(2)]


def with_gradients(loss, x, y):
    x, y = (t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, y))
    value = loss(x, y)
    weights = torch.arange(1.0, value.numel() + 1, dtype=value.dtype, device=value.device)
    return [value.detach(), *torch.autograd.grad((value * weights).sum(), (x, y))]


CASES = [
    ((2, 3, 16, 19), {}),
    ((1, 1, 11, 11), {}),  # one window
    ((2, 1, 5, 300), {"window_size": 3, "sigma": 0.7}),  # strips of a row, the last one short
    ((1, 2, 40, 7), {"window_size": 7, "sigma": 3.0}),  # more rows than share memory
    ((3, 2, 6, 5), {"window_size": 1}),
    ((1, 1, 34, 35), {"window_size": 33, "sigma": 8.0}),
    ((2, 2, 9, 9), {"window_size": 5, "data_range": 0.1, "k1": 0.3, "k2": 0.0}),
]


@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_definition(shape, options):
    x, y = pair(*shape)
    got = with_gradients(lambda a, b: ssim_loss(a, b, **options, reduction="none"), x, y)
    want = with_gradients(lambda a, b: definition(a, b, **options), x, y)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), rtol=1e-10, atol=1e-13)
    for reduction in ("mean", "sum"):
        reduced = ssim_loss(x, y, **options, reduction=reduction)
        torch.testing.assert_close(reduced.cpu(), getattr(want[0], reduction)())


@pytest.mark.parametrize(("shape", "options"), CASES[:3], ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "transposed", "strided", "expanded"])
def test_layouts(shape, options, layout):
    def laid(t):
        if layout == "channels_last":
            return t.contiguous(memory_format=torch.channels_last)
        if layout == "transposed":
            return t.mT.contiguous().mT
        if layout == "strided":
            return torch.stack([t, t], -1)[..., 0]
        return t[:1].expand(t.shape)

    x, y = pair(*shape)
    got = with_gradients(lambda a, b: ssim_loss(a, b, **options, reduction="none"), laid(x), laid(y))
    want = with_gradients(
        lambda a, b: ssim_loss(a, b, **options, reduction="none"), laid(x).contiguous(), laid(y).contiguous()
    )
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype):
    x, y = pair(2, 3, 20, 140, dtype=dtype)
    got = with_gradients(lambda a, b: ssim_loss(a, b, reduction="none"), x, y)
    want = with_gradients(definition, x.double(), y.double())
    digits = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    for a, b in zip(got, want, strict=True):
        assert a.dtype == dtype
        torch.testing.assert_close(a.double().cpu(), b.cpu(), rtol=digits, atol=digits * float(b.abs().max()) / 10)


@pytest.mark.parametrize("target", [torch.float64, torch.bfloat16, torch.uint8], ids=str)
def test_targets_of_another_dtype(target):
    x = torch.rand(2, 1, 12, 13, device=DEVICE) * 255
    y = (torch.rand(2, 1, 12, 13, device=DEVICE) * 255).to(target)
    x.requires_grad_()
    loss = ssim_loss(x, y, data_range=255.0)
    (grad,) = torch.autograd.grad(loss, x)
    exact = x.detach().double().requires_grad_()
    want = definition(exact, y.double(), data_range=255.0).mean()
    (want_grad,) = torch.autograd.grad(want, exact)
    torch.testing.assert_close(loss.double().cpu(), want.detach().cpu(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-4, atol=1e-5 * float(want_grad.abs().max()))


def test_equal_images_lose_nothing():
    x = torch.rand(2, 3, 20, 20, device=DEVICE, requires_grad=True)
    loss = ssim_loss(x, x.detach())
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


def test_nearly_equal_images_keep_their_digits():
    """In float32 1 − 0.9999999 has none."""
    x = torch.rand(1, 1, 24, 24, device=DEVICE)
    y = x + 1e-4 * torch.randn_like(x)
    got = with_gradients(lambda a, b: ssim_loss(a, b, reduction="none"), x, y)
    want = with_gradients(definition, x.double(), y.double())
    assert want[0] < 1e-6
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double().cpu(), b.cpu(), rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_a_constant_costs_no_digits():
    """Variances of 1e-2 beside squares of 1e6: their difference would be noise in float32, and below 0."""
    x, y = (1000 + t for t in pair(1, 1, 20, 20, dtype=torch.float32))
    got = with_gradients(lambda a, b: ssim_loss(a, b, reduction="none"), x, y)
    want = with_gradients(definition, x.double(), y.double())
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double().cpu(), b.cpu(), rtol=1e-2, atol=2e-3 * float(b.abs().max()))


def test_flat_images():
    """No variance; and without constants, nothing at all."""
    x, y = torch.full((1, 1, 5, 5), 0.5, device=DEVICE), torch.full((1, 1, 5, 5), 0.25, device=DEVICE)
    want = 1 - (2 * 0.5 * 0.25 + 1e-4) / (0.5**2 + 0.25**2 + 1e-4)
    assert ssim_loss(x, y, 3).item() == pytest.approx(want, rel=1e-6)
    black = torch.zeros(1, 1, 5, 5, device=DEVICE, requires_grad=True)
    loss = ssim_loss(black, black.detach(), 3, k1=0.0, k2=0.0)
    assert loss.item() == 0
    assert (torch.autograd.grad(loss, black)[0] == 0).all()


def test_planes_of_several_passes():
    """Beyond a bound on memory, planes are taken one after the other."""
    x, y = pair(1, 3, 1100, 1100, dtype=torch.float32)
    whole = with_gradients(lambda a, b: ssim_loss(a, b, 3, reduction="none"), x, y)
    planes = [
        with_gradients(lambda a, b: ssim_loss(a, b, 3, reduction="none"), x[:, c : c + 1], y[:, c : c + 1])
        for c in range(3)
    ]
    torch.testing.assert_close(whole[0], sum(p[0] for p in planes) / 3)
    for k in (1, 2):
        torch.testing.assert_close(whole[k], torch.cat([p[k] for p in planes], 1) / 3, rtol=1e-5, atol=0)


def test_one_gradient_alone():
    x, y = pair(2, 1, 12, 12)
    both = with_gradients(lambda a, b: ssim_loss(a, b), x, y)
    for k, (a, b) in enumerate(((x.requires_grad_(), y.detach()), (x.detach(), y.requires_grad_()))):
        (grad,) = torch.autograd.grad(ssim_loss(a, b), (a, b)[k])
        assert torch.equal(grad, both[1 + k])


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize(("shape", "options"), CASES[:4], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_the_emulator(emulated, shape, options, dtype):
    op = opreg.get("ssim_loss")
    x, y = (t.requires_grad_() for t in pair(*shape, dtype=dtype))
    sample = opreg.Sample((x, y), {**options, "reduction": "none"})
    want = run_raw(torch.ops.lossreg, op, sample)
    emulated(5)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for a, b in zip(run_raw(torch.ops.lossreg_emulated, op, sample), want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * float(b.abs().max()) / 10)
