"""Losses of whole distributions: against numpy and torch's KL divergence, far logits, ignored positions."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import DEVICE, run_raw
from opreg import Sample, get

ops = torch.ops.lossreg
SHAPES = [(7,), (5, 4), (3, 19, 2, 5), (2, 70), (3, 2500), (1, 3, 600)]


def draw(*shape, scale=1.0):
    return (scale * torch.randn(shape, dtype=torch.float64, device=DEVICE)).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.3, 7.0])
def test_distillation_is_the_divergence(shape, temperature):
    student, teacher = draw(*shape, scale=3), draw(*shape, scale=3).detach()
    axis = min(1, len(shape) - 1)
    log_q, p = F.log_softmax(student / temperature, axis), F.softmax(teacher / temperature, axis)
    rows = temperature**2 * F.kl_div(log_q, p, reduction="none").sum(axis)
    for reduction, want in (("none", rows), ("mean", rows.mean()), ("sum", rows.sum())):
        got = ops.distillation_loss(student, teacher, temperature, reduction)
        torch.testing.assert_close(got, want)
        weights = torch.rand_like(got)
        ours, theirs = (torch.autograd.grad(y, student, weights, retain_graph=True)[0] for y in (got, want))
        torch.testing.assert_close(ours, theirs)


def probabilities(logits, temperature):
    """Of one row, in numpy: probabilities and their logarithms."""
    z = logits / temperature
    z = z - z.max()
    log_p = z - np.log(np.exp(z).sum())
    return np.exp(log_p), log_p


def kl(p, q):
    return (p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum()


def jsd_row(x, t, temperature, beta):
    """The value, and the gradient by the chain rule: the softmax's Jacobian times the slopes in its probabilities."""
    q, p = probabilities(x, temperature)[0], probabilities(t, temperature)[0]
    if beta == 0:
        value, slope = kl(p, q), -p / q
    elif beta == 1:
        value, slope = kl(q, p), np.log(q / p) + 1
    else:
        m = beta * p + (1 - beta) * q
        value = beta * kl(p, m) + (1 - beta) * kl(q, m)
        slope = (1 - beta) * (-beta * p / m + np.log(q / m) + 1 - (1 - beta) * q / m)
    return value, (np.diag(q) - np.outer(q, q)) @ slope / temperature


def total_variation_row(x, t, temperature):
    q, p = probabilities(x, temperature)[0], probabilities(t, temperature)[0]
    return np.abs(q - p).sum() / 2, (np.diag(q) - np.outer(q, q)) @ np.sign(q - p) / 2 / temperature


MEASURES = [("total_variation_loss", {}), *(("jsd_loss", {"beta": beta}) for beta in (0.5, 0.0, 1.0, 0.1, 0.9))]


@pytest.mark.parametrize("shape", [s for s in SHAPES if max(s) < 700], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 2.5, 0.4])
@pytest.mark.parametrize(("name", "options"), MEASURES, ids=str)
def test_measures_of_two_distributions(name, options, shape, temperature):
    student, teacher = draw(*shape, scale=2), draw(*shape, scale=2).detach()
    axis = min(1, len(shape) - 1)
    rows = [t.detach().movedim(axis, -1).reshape(-1, shape[axis]).cpu().numpy() for t in (student, teacher)]
    of_row = jsd_row if name == "jsd_loss" else total_variation_row
    pairs = [of_row(x, t, temperature, **options) for x, t in zip(*rows, strict=True)]
    value, grad = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    call = getattr(ops, name)
    got = call(student, teacher, temperature=temperature, reduction="none", **options)
    np.testing.assert_allclose(got.detach().flatten().cpu().numpy(), value, rtol=1e-11, atol=1e-14)
    for reduction, scale in (("mean", 1 / len(value)), ("sum", 1.0)):
        loss = call(student, teacher, temperature=temperature, reduction=reduction, **options)
        np.testing.assert_allclose(loss.item(), value.sum() * scale, rtol=1e-11, atol=1e-14)
        ours = torch.autograd.grad(loss, student)[0].movedim(axis, -1).reshape(-1, shape[axis])
        np.testing.assert_allclose(ours.cpu().numpy(), grad * scale, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize(("name", "options"), MEASURES, ids=str)
def test_measures_of_far_and_of_masked_logits(name, options):
    """In float32 what float64 says, with classes that are excluded by one of the two, or by both."""
    inf = math.inf
    x = [[1e4, 0.0, -1e4], [1e4, 9999.0, 9998.0], [-1e4, 1e4, 3.0], [5.0, 5.0, 5.0], [1.0, -inf, 2.0], [0.0, 1.0, 2.0]]
    t = [[1e4, 1.0, -1e4], [1e4, 9997.0, 9999.0], [-1e4, 1e4, 3.0], [5.0, 5.0, 5.0], [2.0, -inf, 2.0], [0.0, 1.0, -inf]]
    if options.get("beta") != 1.0:  # the reverse divergence is infinite there
        x, t = [*x, [3.0, -2.0, 1e4]], [*t, [3.0, -inf, 1e4]]
    else:
        x, t = x[:-1], t[:-1]
    x, t = (torch.tensor(a, device=DEVICE) for a in (x, t))
    x.requires_grad_()
    loss = getattr(ops, name)(x, t, reduction="none", **options)
    exact = x.detach().double().requires_grad_()
    want = get(name).call_reference(exact, t.double(), reduction="none", **options)
    assert want.isfinite().all()
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=1e-6)
    grad, expected = (torch.autograd.grad(a.sum(), b)[0] for a, b in ((loss, x), (want, exact)))
    assert expected.isfinite().all()
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_mixture_with_little_of_one():
    """A class that one excludes counts by the logarithm of the other's share; of a share of 0 in float32 too."""
    x, t = torch.tensor([[0.0, 30.0]], device=DEVICE), torch.tensor([[30.0, 0.0]], device=DEVICE)
    for beta in (1e-6, 1 - 1e-6, 1e-3):
        want, _ = jsd_row(*(a[0].double().cpu().numpy() for a in (x, t)), 1.0, beta)
        np.testing.assert_allclose(ops.jsd_loss(x, t, beta).item(), want, rtol=2e-6, atol=3e-8)
    assert ops.jsd_loss(x, t, 1e-50).isfinite()


@pytest.mark.parametrize("name", ["distillation_loss", "jsd_loss", "total_variation_loss"])
def test_a_teacher_that_requires_grad_gets_none(name):
    student, teacher = draw(3, 4), draw(3, 4)
    call = getattr(ops, name)
    grads = torch.autograd.grad(call(student, teacher), (student, teacher), allow_unused=True)
    assert grads[1] is None
    assert torch.equal(grads[0], torch.autograd.grad(call(student, teacher.detach()), student)[0])
    assert not call(student.detach(), teacher.detach()).requires_grad


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_distillation_of_far_logits(temperature):
    """Finite up to 1e4 in float32, and exact to float32's digits, since only differences of logits count."""
    x = torch.tensor([[1e4, 0.0, -1e4], [1e4, 9999.0, 9998.0], [-1e4, 1e4, 3.0], [5.0, 5.0, 5.0]], device=DEVICE)
    t = torch.tensor([[-1e4, 0.0, 1e4], [1e4, 9997.0, 9999.0], [-1e4, 1e4, 3.0], [5.0, 5.0, 5.0]], device=DEVICE)
    x.requires_grad_()
    loss = ops.distillation_loss(x, t, temperature, "none")
    u, v = (a.detach().double().cpu().numpy() / temperature for a in (x, t))
    log_q, log_p = (a - a.max(1, keepdims=True) for a in (u, v))
    log_q, log_p = (a - np.log(np.exp(a).sum(1, keepdims=True)) for a in (log_q, log_p))
    want = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum(1)
    np.testing.assert_allclose(loss.detach().cpu().numpy(), want, rtol=2e-6, atol=1e-6)
    grad = torch.autograd.grad(loss.sum(), x)[0]
    want = temperature * (np.exp(log_q) - np.exp(log_p))
    np.testing.assert_allclose(grad.cpu().numpy(), want, rtol=1e-5, atol=1e-6)


def large_margin(x, target, lam):
    """One row, as the paper writes it, in numpy; and its gradient."""
    others = np.delete(np.arange(len(x)), target)
    z = x[others] - x[others].max()
    q = np.exp(z) / np.exp(z).sum()
    log_q = z - np.log(np.exp(z).sum())
    shift = x - x.max()
    log_p = shift - np.log(np.exp(shift).sum())
    uniform = 1 / len(others)
    value = -log_p[target] + lam / 2 * ((q - uniform) * log_q).sum()
    grad = np.exp(log_p)
    grad[target] -= 1
    # d/dx_j of sum_c (q_c - 1/(C-1)) log q_c = q_j (log q_j - sum_c q_c log q_c) + q_j - 1/(C-1)
    grad[others] += lam / 2 * (q * (log_q - (q * log_q).sum()) + q - uniform)
    return value, grad


@pytest.mark.parametrize("shape", [*SHAPES, (6, 2)], ids=str)
@pytest.mark.parametrize("lam", [0.0, 0.3, 2.0])
def test_large_margin_is_the_papers(shape, lam):
    x = draw(*shape, scale=3)
    classes = shape[min(1, len(shape) - 1)]
    target = torch.randint(0, classes, shape[:1] * (len(shape) > 1) + shape[2:], device=DEVICE)
    rows = x.detach().movedim(min(1, len(shape) - 1), -1).reshape(-1, classes).cpu().numpy()
    pairs = [large_margin(row, t, lam) for row, t in zip(rows, target.flatten().tolist(), strict=True)]
    value, grad = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    got = ops.large_margin_softmax_loss(x, target, lam, reduction="none")
    assert got.shape == target.shape
    np.testing.assert_allclose(got.detach().flatten().cpu().numpy(), value, rtol=1e-11, atol=1e-13)
    for reduction, scale in (("mean", 1 / len(value)), ("sum", 1.0)):
        loss = ops.large_margin_softmax_loss(x, target, lam, reduction=reduction)
        np.testing.assert_allclose(loss.item(), value.sum() * scale, rtol=1e-11)
        ours = torch.autograd.grad(loss, x)[0].movedim(min(1, len(shape) - 1), -1).reshape(-1, classes)
        np.testing.assert_allclose(ours.cpu().numpy(), grad * scale, rtol=1e-9, atol=1e-13)


def test_without_the_regulariser_it_is_cross_entropy():
    x, t = draw(4, 5, 3), torch.randint(0, 5, (4, 3), device=DEVICE)
    torch.testing.assert_close(ops.large_margin_softmax_loss(x, t, 0.0), F.cross_entropy(x, t))


@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 2, 255, 10**12])
def test_ignored_positions(ignore_index):
    """No loss, no part of the mean, gradient 0 whatever they hold."""
    x, t = draw(6, 5, 2).detach(), torch.randint(0, 5, (6, 2), device=DEVICE)
    t[::2] = ignore_index
    valid = t != ignore_index
    x.movedim(1, -1)[~valid] = math.nan
    x.requires_grad_()
    rows = x.detach().movedim(1, -1)[valid].requires_grad_()
    for reduction in ("mean", "sum"):
        got = ops.large_margin_softmax_loss(x, t, ignore_index=ignore_index, reduction=reduction)
        want = ops.large_margin_softmax_loss(rows, t[valid], ignore_index=-(10**6), reduction=reduction)
        torch.testing.assert_close(got, want)
        grad = torch.autograd.grad(got, x)[0].movedim(1, -1)
        assert (grad[~valid] == 0).all()
        torch.testing.assert_close(grad[valid], torch.autograd.grad(want, rows)[0])
    every = torch.full_like(t, ignore_index)
    loss = ops.large_margin_softmax_loss(x, every, ignore_index=ignore_index)
    assert loss.isnan()
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.parametrize("lead", [20.0, 60.0, 1e4, -1e4])
@pytest.mark.parametrize("classes", [3, 100])
def test_a_target_far_ahead_or_behind(lead, classes):
    """The regulariser keeps its digits beside a far target; a tiny cross entropy keeps its own."""
    x = torch.linspace(-1, 1, classes, device=DEVICE)
    x[1] += lead
    x.requires_grad_()
    exact = x.detach().double().cpu().numpy()
    others = np.delete(exact, 1)
    odds = np.logaddexp.reduce(others) - exact[1]
    loss = ops.large_margin_softmax_loss(x, torch.tensor(1, device=DEVICE), 0.0)
    torch.testing.assert_close(loss.item(), float(np.logaddexp(0, odds)), rtol=1e-5, atol=1e-37)
    loss = ops.large_margin_softmax_loss(x, torch.tensor(1, device=DEVICE), 0.3)
    want, grad = large_margin(exact, 1, 0.3)
    torch.testing.assert_close(loss.item(), want, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(torch.autograd.grad(loss, x)[0].cpu().numpy(), grad, rtol=1e-5, atol=1e-8)


def test_an_invalid_class_stops_no_gpu():
    """An error on the CPU (see the error samples); NaN at its place on a GPU."""
    if DEVICE == "cpu":
        pytest.skip("an error there")
    x, t = draw(3, 4), torch.tensor([0, 9, 3], device=DEVICE)
    loss = ops.large_margin_softmax_loss(x, t, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(loss.sum(), x)[0].isnan().all(1).tolist() == [False, True, False]


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("shape", [(4, 3), (4, 5), (4, 100), (4, 1100)])
def test_an_invalid_class_of_the_emulated_kernels(emulated, shape):
    emulated(1)
    x, t = torch.randn(shape, requires_grad=True), torch.tensor([0, shape[1], -1, 2])
    sample = Sample((x, t), {"reduction": "none"})
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, get("large_margin_softmax_loss"), sample)
    assert loss.isnan().tolist() == [False, True, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, True, False]
    assert grad[[0, 3]].isfinite().all()


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("shape", [(3, 1025), (2, 1030, 3), (70, 3), (2, 33, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["distillation_loss", "jsd_loss"])
def test_emulated_kernels_share_a_group_as_it_fits(emulated, name, shape, dtype):
    """A block, a warp or a thread a group: the CPU's result and state, in any order of threads."""
    x, t = torch.randn(shape).to(dtype).requires_grad_(), torch.randn(shape).to(dtype)
    op, sample = get(name), Sample((x, t), {"reduction": "mean"})
    want = run_raw(torch.ops.lossreg, op, sample)
    runs = []
    for seed in (1, 2):
        emulated(seed)
        runs.append(run_raw(torch.ops.lossreg_emulated, op, sample))
    for a, b, w in zip(*runs, want, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, w, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-6)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("name", ["distillation_loss", "jsd_loss", "large_margin_softmax_loss"])
def test_forward_allocates_a_few_numbers_a_row(name):
    from torch.profiler import ProfilerActivity, profile

    x = torch.randn(256, 4096)
    t = torch.randint(0, 4096, (256,)) if "margin" in name else torch.randn(256, 4096)
    few = 256 * 5 * 4 + 1024
    for leaf, most in ((x, few), (x.clone().requires_grad_(), x.nbytes + few)):  # beside a gradient that is wanted
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            get(name).value(leaf, t)
        allocated = max(e.cpu_memory_usage for e in seen.key_averages())
        assert 0 < allocated < most
