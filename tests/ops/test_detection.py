"""Losses of detectors that are no function of one element: a place among bins, and any number of labels a row."""

import math

import pytest
import torch
import torch.nn.functional as F

import opreg
from conftest import DEVICE, run_raw

ops = torch.ops.lossreg


def places(*shape: int, bins: int) -> torch.Tensor:
    y = torch.rand(shape, dtype=torch.float64, device=DEVICE) * (bins - 1)
    return torch.where(torch.rand_like(y) < 0.2, y.round(), y)


def of_detectors(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """As detectors write it: two cross entropies. The last bin has none to its right: it is itself the right one."""
    left = y.detach().floor().clamp(max=x.shape[-1] - 2)
    rows, low = x.reshape(-1, x.shape[-1]), left.flatten().long()
    nll = [F.cross_entropy(rows, at, reduction="none").reshape(y.shape) for at in (low, low + 1)]
    return nll[0] * (left + 1 - y) + nll[1] * (y - left)


@pytest.mark.parametrize("shape", [(7, 2), (5, 4, 16), (3, 4, 17), (9,), (3, 130), (2, 2500)], ids=str)
def test_a_place_is_two_cross_entropies(shape):
    x = (3 * torch.randn(shape, dtype=torch.float64, device=DEVICE)).requires_grad_()
    y = places(*shape[:-1], bins=shape[-1]).requires_grad_()
    rows = of_detectors(x, y)
    for reduction, want in (("none", rows), ("mean", rows.mean()), ("sum", rows.sum())):
        got = ops.distribution_focal_loss(x, y, reduction)
        torch.testing.assert_close(got, want)
        weights = torch.rand_like(got)
        ours, theirs = (torch.autograd.grad(loss, (x, y), weights, retain_graph=True) for loss in (got, want))
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("wanted", ["input", "target"])
def test_one_gradient_alone(wanted):
    x, y = torch.randn(6, 16, device=DEVICE), places(6, bins=16).float()
    both = [x.clone().requires_grad_(), y.clone().requires_grad_()]
    grads = dict(zip(("input", "target"), torch.autograd.grad(ops.distribution_focal_loss(*both), both), strict=True))
    one = (x if wanted == "input" else y).requires_grad_()
    assert torch.equal(torch.autograd.grad(ops.distribution_focal_loss(x, y), one)[0], grads[wanted])


def test_every_bin_is_reached():
    """At a bin the loss is its cross entropy, the first and the last included; the slope leads to the next bin."""
    x = torch.randn(16, 16, dtype=torch.float64, device=DEVICE)
    y = torch.arange(16, dtype=torch.float64, device=DEVICE).requires_grad_()
    loss = ops.distribution_focal_loss(x, y, "none")
    torch.testing.assert_close(loss, F.cross_entropy(x, torch.arange(16, device=DEVICE), reduction="none"))
    slope = torch.autograd.grad(loss.sum(), y)[0]
    row = torch.arange(16, device=DEVICE)
    left = row.clamp(max=14)
    torch.testing.assert_close(slope, x[row, left] - x[row, left + 1])


def test_a_place_that_is_none_stops_no_gpu():
    """An error on the CPU (see the error samples); NaN at its place on a GPU."""
    if DEVICE == "cpu":
        pytest.skip("an error there")
    x, y = torch.randn(3, 4, device=DEVICE, requires_grad=True), torch.tensor([0.5, 3.5, 2.0], device=DEVICE)
    loss = ops.distribution_focal_loss(x, y, "none")
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(loss.sum(), x)[0].isnan().all(1).tolist() == [False, True, False]


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("bins", [2, 5, 16, 100, 1025])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_place_that_is_none_of_the_emulated_kernels(emulated, bins, dtype):
    emulated(1)
    x = torch.randn(6, bins).to(dtype).requires_grad_()
    # beyond the last bin by more than bfloat16 rounds
    y = torch.tensor([0.5, 2.0 * bins, -0.25, bins - 1, math.nan, 0.0]).to(dtype).requires_grad_()
    sample = opreg.Sample((x, y), {"reduction": "none"})
    namespace, op = torch.ops.lossreg_emulated, opreg.get("distribution_focal_loss")
    loss, _, grad, slope = run_raw(namespace, op, sample)
    expected = [False, True, True, False, True, False]
    assert loss.isnan().tolist() == expected
    assert slope.isnan().tolist() == expected
    assert grad.isnan().all(1).tolist() == expected
    assert grad.isnan().any(1).tolist() == expected


def of_labels(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """As its authors write it: the scores of the other side are moved out of the way."""
    x = (1 - 2 * t) * x
    zeros = torch.zeros_like(x[..., :1])
    negative, positive = x - t * 1e12, x - (1 - t) * 1e12
    return torch.logsumexp(torch.cat([negative, zeros], -1), -1) + torch.logsumexp(torch.cat([positive, zeros], -1), -1)


@pytest.mark.parametrize("shape", [(7, 2), (5, 4, 16), (9,), (3, 130), (2, 2500), (4, 1)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_any_number_of_labels(shape, share):
    x = (3 * torch.randn(shape, dtype=torch.float64, device=DEVICE)).requires_grad_()
    t = (torch.rand(shape, dtype=torch.float64, device=DEVICE) < share).double()
    rows = of_labels(x, t)
    for reduction, want in (("none", rows), ("mean", rows.mean()), ("sum", rows.sum())):
        for target in (t, t.bool(), t.long(), 0.4 + 0.2 * t):
            got = ops.zlpr_loss(x, target, reduction)
            torch.testing.assert_close(got, want)
        weights = torch.rand_like(got)
        ours, theirs = (torch.autograd.grad(loss, x, weights, retain_graph=True)[0] for loss in (got, want))
        torch.testing.assert_close(ours, theirs)


def test_labels_told_apart_keep_their_digits():
    """A loss of 1e-9 is no 0 in float32; far on the wrong side it is the score."""
    lead = torch.tensor([0.0, 1.0, 10.0, 20.0, 60.0], dtype=torch.float64, device=DEVICE)
    for sign in (1, -1):
        scores = sign * torch.stack([lead, -lead, -lead - 1], 1)
        x = scores.float().requires_grad_()
        exact = scores.clone().requires_grad_()
        t = torch.tensor([1.0, 0.0, 0.0], device=DEVICE).expand(5, 3)
        got = ops.zlpr_loss(x, t, "none")
        want = torch.log1p((-exact[:, 0]).exp()) + torch.log1p(exact[:, 1:].exp().sum(1))
        torch.testing.assert_close(got.double(), want, rtol=3e-6, atol=0)
        grad, expected = (torch.autograd.grad(a.sum(), b)[0] for a, b in ((got, x), (want, exact)))
        torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-30)


def test_without_classes_there_is_no_loss():
    x = torch.zeros(3, 0, device=DEVICE, requires_grad=True)
    assert ops.zlpr_loss(x, torch.zeros(3, 0, device=DEVICE), "none").tolist() == [0, 0, 0]


def test_the_labels_give_no_dtype_and_get_no_gradient():
    x, t = torch.randn(3, 4, device=DEVICE).bfloat16(), torch.rand(3, 4, device=DEVICE, requires_grad=True)
    loss = ops.zlpr_loss(x.requires_grad_(), t)
    assert loss.dtype == torch.bfloat16
    assert torch.autograd.grad(loss, (x, t), allow_unused=True)[1] is None
