"""OHEM cross entropy against brute force: sorted lists of (probability, flat index)."""

import math

import pytest
import torch
import torch.nn.functional as F

from conftest import DEVICE, run_raw
from opreg import Sample, get

ohem = torch.ops.lossreg.ohem_cross_entropy


def kept_by_brute_force(x, t, thresh, n_min, ignore_index=-100):
    """The flat indices that are kept."""
    rows, targets = x.double().movedim(1, -1).reshape(-1, x.shape[1]).tolist(), t.flatten().tolist()
    candidates = []
    for i, (row, y) in enumerate(zip(rows, targets, strict=True)):
        if y != ignore_index:
            candidates.append((1 / sum(math.exp(z - row[y]) for z in row), i))
    hard = [i for p, i in candidates if p <= thresh]
    n_min = len(targets) // 16 if n_min < 0 else n_min
    return hard if len(hard) >= n_min else sorted(i for _, i in sorted(candidates)[:n_min])


@pytest.mark.parametrize("shape", [(40, 3), (2, 3, 5, 7), (3, 80), (70, 100)])
@pytest.mark.parametrize("n_min", [-1, 0, 1, 9, 10**6])
@pytest.mark.parametrize("thresh", [0.0, 0.2, 0.7, 1.0])
def test_against_brute_force(shape, n_min, thresh):
    """Which are kept, the loss in every reduction, and the gradient: that of the kept alone."""
    x = (2 * torch.randn(shape, dtype=torch.float64, device=DEVICE)).requires_grad_()
    t = torch.randint(-1, shape[1], (shape[0], *shape[2:]), device=DEVICE)  # -1 is ignored
    kept = torch.zeros(t.numel(), dtype=torch.bool, device=DEVICE)
    kept[kept_by_brute_force(x, t, thresh, n_min, -1)] = True
    only = torch.where(kept.reshape(t.shape), t, -100)
    for reduction in ("none", "sum", "mean"):
        got = ohem(x, t, thresh, n_min, -1, reduction)
        want = F.cross_entropy(x, only, reduction=reduction)
        torch.testing.assert_close(got, want, equal_nan=True)
        grad = torch.autograd.grad(got.sum(), x)[0]
        expected = torch.autograd.grad(want.sum(), x)[0] if kept.any() else torch.zeros_like(x)
        torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_min", [1, 3, 6, 10, 11, 19])
def test_ties_go_to_the_lowest_flat_index(dtype, n_min):
    """Rows of two kinds only, twenty positions in a transposed layout: order is that of the index, not of memory."""
    rows = torch.tensor([[0.0, 2.0], [0.0, 3.0]], dtype=dtype, device=DEVICE)
    which = torch.randint(0, 2, (4, 5), device=DEVICE)
    x = rows[which].movedim(-1, 1)  # (4, 2, 5), classes next to each other
    for t in (torch.ones(4, 5, device=DEVICE).long(), torch.ones(5, 4, device=DEVICE).long().T):
        loss = ohem(x, t, 0.1, n_min, reduction="none")
        assert (loss != 0).flatten().nonzero().flatten().tolist() == kept_by_brute_force(x, t, 0.1, n_min)


def test_threshold_is_inclusive():
    """p_y = 1/2 exactly is hard at 0.5, and not at the next smaller float."""
    x, t = torch.zeros(4, 2, device=DEVICE), torch.tensor([0, 1, 1, 0], device=DEVICE)
    assert (ohem(x, t, 0.5, 0, reduction="none") != 0).all()
    assert (ohem(x, t, 0.49999997, 0, reduction="none") == 0).all()


def test_default_n_min_is_a_sixteenth():
    """Of all positions, ignored ones too."""
    x = torch.stack([torch.linspace(4, 9, 70), torch.zeros(70)], 1).to(DEVICE)
    t = torch.zeros(70, dtype=torch.int64, device=DEVICE)
    t[10:] = -100
    loss = ohem(x, t, reduction="none")
    assert (loss != 0).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_nothing_kept():
    """The mean of nothing is NaN, as in torch; no gradient."""
    x = torch.tensor([[9.0, 0.0]] * 3, device=DEVICE, requires_grad=True)
    t = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    loss = ohem(x, t)
    assert loss.isnan()
    assert ohem(x, t, reduction="sum") == 0
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


def test_a_nan_is_kept():
    """It must not pass for an easy example, by the threshold or among the n_min smallest."""
    x = torch.tensor([[9.0, 0.0], [float("nan"), 0.0], [9.0, 0.0]], device=DEVICE)
    t = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    for n_min in (0, 1, 2):
        assert ohem(x, t, 0.7, n_min, reduction="none").isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_selection_is_float32s_whatever_the_results_dtype(dtype):
    x = torch.randn(300, 4, device=DEVICE).to(dtype)
    t = torch.randint(0, 4, (300,), device=DEVICE)
    kept = ohem(x, t, 0.3, 50, reduction="none") != 0
    for wider in (torch.float32, torch.float64):
        assert torch.equal(ohem(x, t, 0.3, 50, reduction="none", dtype=wider) != 0, kept)


def test_the_backward_pass_does_not_select_again():
    """It takes the marks in the state: with all of them removed, there is no gradient."""
    op, x, t = get("ohem_cross_entropy"), torch.randn(6, 3, device=DEVICE), torch.randint(0, 3, (6,), device=DEVICE)
    result, state, grad = run_raw(torch.ops.lossreg, op, Sample((x.requires_grad_(), t), {"thresh": 1.0}))
    assert result > 0
    assert (grad != 0).all()
    assert state[12:].tolist() == [1, 1, 1, 1, 1, 1, 6]
    state[12:18] = 0
    none = op.backward(torch.ones((), device=DEVICE), state, x.detach(), t, thresh=1.0, needs_input_grad=[True])
    assert (none == 0).all()


@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU selects always, because its host cannot look")
def test_the_cpu_selects_only_where_too_few_are_hard():
    """A selection takes memory of its own, its 16 bytes between the keys and the result."""
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(64, 4), torch.randint(0, 4, (64,))
    allocations = {}
    for thresh in (1.0, 0.0):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            ohem(x, t, thresh, 8)
        found = [e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        allocations[thresh] = [n for n in found if n > 0]
    assert 16 not in allocations[1.0]
    assert allocations[0.0] == [*allocations[1.0], 16]
