"""linear_log_prob: its three results and their gradients by hand, chunks, memory, what is masked or ignored."""

import math

import pytest
import torch
from test_linear import peak
from torch import Tensor

import opreg
from conftest import DEVICE, run_raw

OP = opreg.get("linear_log_prob")
linear_log_prob = torch.ops.lossreg.linear_log_prob


def by_hand(x, w, target, bias, temperature, softcap, ignore_index):
    """One row after the other, in Python's floats: log_prob, entropy and lse; and each one's gradient in the scores."""
    values, slopes = [], []
    for row, y in zip(x.tolist(), target.tolist(), strict=True):
        scores = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in w.tolist()]
        scores = [s + b for s, b in zip(scores, bias.tolist(), strict=True)]
        z = [(softcap * math.tanh(s / softcap) if softcap else s) / temperature for s in scores]
        dz = [(1 / math.cosh(s / softcap) ** 2 if softcap else 1) / temperature for s in scores]
        top = max(z)
        lse = top + math.log(math.fsum(math.exp(v - top) for v in z))
        p = [math.exp(v - lse) for v in z]
        mean = math.fsum(q * v for q, v in zip(p, z, strict=True))
        valid = y != ignore_index
        values.append([z[y] - lse if valid else 0.0, lse - mean, lse])
        each = range(len(z))
        slopes.append(
            [
                [valid * ((c == y) - p[c]) * dz[c] for c in each],
                [-p[c] * (z[c] - mean) * dz[c] for c in each],
                [p[c] * dz[c] for c in each],
            ]
        )
    made = torch.tensor(values, dtype=torch.float64), torch.tensor(slopes, dtype=torch.float64)
    return tuple(t.to(DEVICE) for t in made)


@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_by_hand(temperature, softcap, used):
    """Through any of the three, an ignored row among the others."""
    options = {"dtype": torch.float64, "device": DEVICE, "requires_grad": True}
    x, w, bias = torch.randn(5, 3, **options), torch.randn(9, 3, **options), torch.randn(9, **options)
    target = torch.tensor([0, 8, 4, 4, 2], device=DEVICE)
    values, slopes = by_hand(x, w, target, bias, temperature, softcap, 4)
    got = linear_log_prob(x, w, target, bias, temperature, softcap, 4)
    torch.testing.assert_close(torch.stack(got, 1), values)
    weights = torch.rand(5, 3, dtype=torch.float64, device=DEVICE)
    of_scores = sum(weights[:, k, None] * slopes[:, k] for k in used)
    want = of_scores @ w, of_scores.t() @ x, of_scores.sum(0)
    grads = torch.autograd.grad([got[k] for k in used], (x, w, bias), [weights[:, k] for k in used])
    for g, e in zip(grads, want, strict=True):
        torch.testing.assert_close(g, e)


def by_rows(x, w, target, bias, incoming):
    """The three in float64, and gradients for these gradients of them: 32 rows at a time."""
    values, gradients = [], [[], torch.zeros_like(w), torch.zeros_like(bias)]
    for start in range(0, len(x), 32):
        rows = slice(start, start + 32)
        log_p = (z := x[rows] @ w.t() + bias).log_softmax(1)
        place, p = (torch.arange(len(log_p), device=x.device), target[rows]), log_p.exp()
        entropy = -(p * log_p).sum(1)
        values.append(torch.stack([log_p[place], entropy, z.logsumexp(1)]))
        g, h, s = (t[rows, None] for t in incoming)
        slopes = p * (s - g - h * (log_p + entropy[:, None]))
        slopes[place] += g[:, 0]
        gradients[0].append(slopes @ w)
        gradients[1] += slopes.t() @ x[rows]
        gradients[2] += slopes.sum(0)
    return torch.cat(values, 1), [torch.cat(gradients[0]), *gradients[1:]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-4), (torch.bfloat16, 2e-2)], ids=str)
def test_several_chunks(dtype, tolerance):
    """50 000 classes: a chunk is of at most 335 rows in float32, of 671 in bfloat16."""
    rows, features, classes = 700, 3, 50_000
    shapes = ((rows, features), (classes, features), (classes,))
    x, w, bias = (torch.randn(s, device=DEVICE).to(dtype).requires_grad_() for s in shapes)
    target = torch.randint(classes, (rows,), device=DEVICE)
    incoming = torch.randn(3, rows, device=DEVICE)
    wide = [t.detach().double() for t in (x, w, bias)]
    values, want = by_rows(*wide[:2], target, wide[2], incoming.double())
    results = linear_log_prob(x, w, target, bias, dtype=torch.float32)
    for got, value in zip(results, values, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=tolerance / 4, atol=4 * tolerance)
    got = torch.autograd.grad(results, (x, w, bias), [*incoming])
    for g, e in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).norm() <= tolerance * e.norm()


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype):
    """No more than linear_cross_entropy takes: the scores, 262 MB, are there for a chunk of rows at a time."""
    rows, features, classes = 2048, 128, 32_000
    x, w = (torch.randn(n, features).to(dtype).requires_grad_() for n in (rows, classes))
    target = torch.randint(classes, (rows,))

    def ours():
        log_prob, entropy, lse = linear_log_prob(x, w, target)
        return torch.autograd.grad(log_prob.sum() + entropy.sum() + lse.sum(), (x, w))

    def losses():
        return torch.autograd.grad(torch.ops.lossreg.linear_cross_entropy(x, w, target), (x, w))

    most = peak(losses)
    assert peak(ours) <= 1.2 * most
    with torch.no_grad():
        assert peak(lambda: linear_log_prob(x, w, target)) < (64 << 20) + 1_000_000


def test_masked_classes_and_certain_rows():
    """A class whose score is -inf has no part in anything; where p is nearly 1, 1 - p is no difference of floats."""
    x = torch.tensor([[1.0, 0.0], [8.0, 0.0]], device=DEVICE, requires_grad=True)
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], device=DEVICE, requires_grad=True)
    bias = torch.tensor([0.0, 0.0, -torch.inf], device=DEVICE)
    target = torch.tensor([0, 0], device=DEVICE)
    got = linear_log_prob(x, w, target, bias)
    want = linear_log_prob(x.double(), w[:2].double(), target, None)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-7)
    for a, b in zip(got, want, strict=True):
        grads = torch.autograd.grad(a.sum(), (x, w), retain_graph=True)
        expected = torch.autograd.grad(b.sum(), (x, w), retain_graph=True)
        for g, e in zip(grads, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-7)
    (slope,) = torch.autograd.grad(got[0][1], x)
    assert slope[1, 0].item() == pytest.approx(1 / (1 + math.exp(8)), rel=1e-3)


def test_a_saturated_softcap_keeps_its_slope():
    """Where tanh is 1 in float32, the slope is still that of the formula."""
    x = torch.tensor([[12.0]], device=DEVICE, requires_grad=True)
    w = torch.tensor([[1.0], [-1.0]], device=DEVICE)
    _, _, lse = linear_log_prob(x, w, torch.tensor([0], device=DEVICE), softcap=1.0)
    (slope,) = torch.autograd.grad(lse.sum(), x)
    p = 1 / (1 + math.exp(-2 * math.tanh(12.0)))
    assert slope.item() == pytest.approx((2 * p - 1) / math.cosh(12.0) ** 2, rel=1e-4)


def test_an_ignored_row_keeps_entropy_and_lse():
    x, w = torch.randn(3, 4, device=DEVICE, requires_grad=True), torch.randn(6, 4, device=DEVICE)
    ignored = torch.full((3,), -100, device=DEVICE)
    log_prob, entropy, lse = linear_log_prob(x, w, ignored)
    assert not log_prob.any()
    assert not torch.autograd.grad(log_prob.sum(), x, retain_graph=True)[0].any()
    any_class = linear_log_prob(x, w, torch.zeros_like(ignored))
    for got, want in ((entropy, any_class[1]), (lse, any_class[2])):
        assert torch.equal(got, want)
        grads = (torch.autograd.grad(t.sum(), x, retain_graph=True)[0] for t in (got, want))
        torch.testing.assert_close(*grads)


def test_is_the_negative_cross_entropy():
    """Of one temperature and no softcap, with any strides and leading dimensions."""
    x = torch.randn(2, 5, 4, device=DEVICE, dtype=torch.float64).transpose(0, 1).requires_grad_()
    w = torch.randn(4, 7, device=DEVICE, dtype=torch.float64).t().requires_grad_()
    target = torch.randint(7, (5, 2), device=DEVICE)
    log_prob, _, _ = linear_log_prob(x, w, target)
    loss = torch.ops.lossreg.linear_cross_entropy(x, w, target, reduction="none")
    torch.testing.assert_close(log_prob, -loss)
    scale = torch.rand_like(loss)
    want = torch.autograd.grad(loss, (x, w), -scale)
    torch.testing.assert_close(torch.autograd.grad(log_prob, (x, w), scale), want)


def test_autocast_product():
    """The product in the autocast dtype, the results in float32."""
    x, w = torch.randn(5, 8, device=DEVICE, requires_grad=True), torch.randn(7, 8, device=DEVICE, requires_grad=True)
    target = torch.randint(7, (5,), device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        results = linear_log_prob(x, w, target)
    same = linear_log_prob(x.bfloat16(), w.bfloat16(), target, dtype=torch.float32)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(results, same, strict=True))
    assert [g.dtype for g in torch.autograd.grad(results[0].sum(), (x, w))] == [torch.float32] * 2


def test_module():
    head = opreg.nn.LinearLogProb(4, 6, bias=True, temperature=0.5, softcap=3.0).to(DEVICE)
    x, target = torch.randn(2, 3, 4, device=DEVICE), torch.randint(6, (2, 3), device=DEVICE)
    want = linear_log_prob(x, head.linear.weight, target, head.linear.bias, 0.5, 3.0)
    assert all(torch.equal(a, b) for a, b in zip(head(x, target), want, strict=True))
    places = opreg.nn.LinearLogProb(4, 6, out_features=(2,)).to(DEVICE)
    assert [t.shape for t in places(x[0], target[0, :, None].expand(3, 2))] == [(3, 2)] * 3
    with pytest.raises(RuntimeError, match="linear_log_prob: expected a finite temperature > 0, got 0"):
        opreg.nn.LinearLogProb(4, 6, temperature=0.0)


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_invalid_class_is_nan_on_a_gpu(emulated):
    """Its log-probability, and the gradients through it; entropy and log-sum-exp stand."""
    emulated(1)
    x, w = torch.randn(6, 3, requires_grad=True), torch.randn(5, 3)
    target = torch.tensor([0, 5, 2, -100, -1, 3])
    log_prob, entropy, lse, _, grad = run_raw(torch.ops.lossreg_emulated, OP, opreg.Sample((x, w, target)))
    for t in (log_prob, grad[:, 0]):
        assert t.isnan().tolist() == [False, True, False, False, True, False]
    valid = target.clamp(0, 4)
    for got, want in zip((entropy, lse), linear_log_prob(x, w, valid)[1:], strict=True):
        assert isinstance(got, Tensor)
        torch.testing.assert_close(got, want.detach())
