"""coord_conv2d and dynamic_conv2d: against the definitions written out, and what the conventions ask of them."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from conftest import DEVICE

coord_conv2d = torch.ops.lossreg.coord_conv2d
dynamic_conv2d = torch.ops.lossreg.dynamic_conv2d
OPTIONS = [
    {},
    {"stride": (2, 3), "padding": (1, 2), "dilation": (2, 1)},
    {"stride": 2, "padding": 1, "groups": 3},
]


def normal(*shape):
    return torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True)


def correlation(x, weight, bias, stride=1, padding=0, dilation=1, groups=1):
    """One output element after the other; x is a list of channels of rows."""
    (sh, sw), (ph, pw), (dh, dw) = ((v, v) if isinstance(v, int) else v for v in (stride, padding, dilation))
    channels, height, width = len(x), len(x[0]), len(x[0][0])
    out, seen, kh, kw = weight.shape
    weight = weight.tolist()
    places = [range((n + 2 * p - d * (k - 1) - 1) // s + 1) for n, p, d, k, s in
              ((height, ph, dh, kh, sh), (width, pw, dw, kw, sw))]  # fmt: skip
    result = torch.zeros(out, len(places[0]), len(places[1]), dtype=torch.float64)
    for o, i, j in itertools.product(range(out), *places):
        total = 0.0 if bias is None else bias[o].item()
        first = o // (out // groups) * (channels // groups)
        for c, a, b in itertools.product(range(seen), range(kh), range(kw)):
            row, column = i * sh - ph + a * dh, j * sw - pw + b * dw
            if 0 <= row < height and 0 <= column < width:
                total += weight[o][c][a][b] * x[first + c][row][column]
        result[o, i, j] = total
    return result


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("size", [(5, 4), (4, 1)], ids=str)
def test_coordinates_by_hand(options, size):
    height, width = size
    groups = options.get("groups", 1)
    x, weight, bias = normal(2, 4, height, width), normal(3, 6 // groups, 3, 2), normal(3)
    if width == 1:
        options = {**options, "padding": (1, 1), "dilation": 1}

    def place(i, n):
        return -1.0 if n == 1 else -1 + 2 * i / (n - 1)

    rows = [[place(i, height)] * width for i in range(height)]
    columns = [[place(j, width) for j in range(width)]] * height
    want = [correlation([rows, columns, *sample], weight, bias, **options) for sample in x.tolist()]
    torch.testing.assert_close(coord_conv2d(x, weight, bias, **options).cpu(), torch.stack(want), check_device=False)


def test_coordinates_are_those_of_linspace():
    """Read off by kernels of one element; padded with zeros."""
    weight = torch.zeros(2, 3, 1, 1, device=DEVICE)
    weight[0, 0] = weight[1, 1] = 1
    got = coord_conv2d(torch.randn(2, 1, 5, 7, device=DEVICE), weight, padding=1)
    want = torch.zeros(2, 7, 9, device=DEVICE)
    want[0, 1:-1, 1:-1] = torch.linspace(-1, 1, 5, device=DEVICE)[:, None]
    want[1, 1:-1, 1:-1] = torch.linspace(-1, 1, 7, device=DEVICE)
    torch.testing.assert_close(got, want.expand(2, 2, 7, 9))
    single = coord_conv2d(torch.randn(1, 1, 1, device=DEVICE), weight)
    assert single.flatten().tolist() == [-1, -1]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_kernel_of_each_sample(options):
    """Value and gradients of one convolution a sample."""
    groups = options.get("groups", 1)
    x, attention, weight, bias = normal(3, 6, 5, 4), normal(3, 2), normal(2, 3, 6 // groups, 3, 2), normal(2, 3)

    def definition(x, attention, weight, bias):
        return torch.cat([
            F.conv2d(x[n : n + 1], sum(a * k for a, k in zip(attention[n], weight, strict=True)),
                     sum(a * b for a, b in zip(attention[n], bias, strict=True)), **options)
            for n in range(len(x))
        ])  # fmt: skip

    got, want = (f(x, attention, weight, bias) for f in (lambda *a: dynamic_conv2d(*a, **options), definition))
    torch.testing.assert_close(got, want)
    factor = torch.randn_like(want)
    for g, e in zip(*(torch.autograd.grad(r, (x, attention, weight, bias), factor) for r in (got, want)), strict=True):
        torch.testing.assert_close(g, e)


CALLS = [
    lambda x: coord_conv2d(x, torch.ones(5, x.shape[1] + 2, 3, 3, device=DEVICE), padding=1, stride=2),
    lambda x: dynamic_conv2d(
        x, torch.ones(x.shape[0], 2, device=DEVICE), torch.ones(2, 5, x.shape[1], 3, 3, device=DEVICE), stride=2
    ),
]


@pytest.mark.parametrize("call", CALLS, ids=["coord", "dynamic"])
def test_channels_last(call):
    """The result is channels last where the input is, and the fake knows it."""
    x = torch.randn(2, 4, 8, 9, device=DEVICE)
    plain, last = call(x), call(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, check_stride=False)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert compiled(x.contiguous(memory_format=torch.channels_last)).stride() == last.stride()


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_no_coordinates_a_sample():
    """With one group no allocation is larger than those of the convolution without coordinates."""
    x, weight = torch.randn(16, 8, 64, 64), torch.randn(1, 10, 1, 1)

    def largest(call):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            call()
        return max(e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")

    assert largest(lambda: coord_conv2d(x, weight)) <= largest(lambda: F.conv2d(x, weight[:, 2:]))


def test_empty_batch_has_gradients_of_zero():
    x, attention, weight, bias = normal(0, 2, 4, 4), normal(0, 3), normal(3, 2, 2, 2, 2), normal(3, 2)
    result = dynamic_conv2d(x, attention, weight, bias)
    assert result.shape == (0, 2, 3, 3)
    assert all(not g.any() for g in torch.autograd.grad(result.sum(), (weight, bias)))
    weight, bias = normal(2, 4, 2, 2), normal(2)
    result = coord_conv2d(x, weight, bias)
    assert result.shape == (0, 2, 3, 3)
    assert all(not g.any() for g in torch.autograd.grad(result.sum(), (weight, bias)))


def test_autocast_lowers_all_operands():
    x, weight = torch.randn(2, 3, 5, 5, device=DEVICE, requires_grad=True), torch.randn(4, 5, 3, 3, device=DEVICE)
    attention, kernels = torch.rand(2, 2, device=DEVICE), torch.randn(2, 4, 3, 3, 3, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        results = coord_conv2d(x, weight), dynamic_conv2d(x, attention, kernels)
    low = coord_conv2d(x.bfloat16(), weight.bfloat16())
    assert torch.equal(results[0], low)
    for r in results:
        assert r.dtype == torch.bfloat16
        assert torch.autograd.grad(r.sum(), x)[0].dtype == torch.float32
