"""The RNN transducer against every alignment written out, against plain dynamic programming over a grid of lengths, and
what is behind the lengths."""

import itertools
import math

import pytest
import torch

import opreg
from conftest import DEVICE, run_raw
from opreg.bench import peak_memory

rnnt_loss = torch.ops.lossreg.rnnt_loss


def whole(*values):
    return torch.tensor(list(values), device=DEVICE)


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, device=DEVICE).requires_grad_()


def written_out(probabilities, target, steps, blank):
    """Of one sequence: each label at one of the steps, in order; with each of its probabilities in turn."""
    total, through = 0.0, {}
    for places in itertools.combinations_with_replacement(range(steps), len(target)):
        path, u = [], 0
        for t in range(steps):
            while u < len(target) and places[u] == t:
                path.append((t, u, target[u]))
                u += 1
            path.append((t, u, blank))
        likelihood = math.prod(probabilities[t][u][c] for t, u, c in path)
        total += likelihood
        for step in path:
            through[step] = through.get(step, 0.0) + likelihood
    return total, through


@pytest.mark.parametrize("blank", [0, 2, -1])
def test_every_alignment(blank):
    """All targets of up to three labels, in one to four steps, at once: loss and gradient."""
    labels = [c for c in range(3) if c != blank % 3]
    cases = [
        (steps, list(target))
        for steps in range(1, 5)
        for count in range(4)
        for target in itertools.product(labels, repeat=count)
    ]
    x = draw(len(cases), 4, 4, 3)
    targets = whole(*(target + [99] * (3 - len(target)) for _, target in cases))
    lengths = whole(*(steps for steps, _ in cases)), whole(*(len(target) for _, target in cases))
    loss = rnnt_loss(x, targets, *lengths, blank, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    p = x.detach().softmax(-1)
    for n, (steps, target) in enumerate(cases):
        total, through = written_out(p[n].tolist(), target, steps, blank % 3)
        assert loss[n].item() == pytest.approx(-math.log(total), abs=1e-12)
        # d loss / d log p, and through the softmax
        slope = torch.zeros_like(p[n])
        for (t, u, c), likelihood in through.items():
            slope[t, u, c] = -likelihood / total
        want = slope - p[n] * slope.sum(-1, keepdim=True)
        torch.testing.assert_close(grad[n], want, atol=1e-12, rtol=1e-12)


def dynamic_program(x, target, steps, blank):
    """Of one sequence, a node after the other."""
    log_p = x.log_softmax(-1)
    alpha = {}
    for t, u in itertools.product(range(steps), range(len(target) + 1)):
        ways = [] if t == 0 else [alpha[t - 1, u] + log_p[t - 1, u, blank]]
        ways += [] if u == 0 else [alpha[t, u - 1] + log_p[t, u - 1, target[u - 1]]]
        alpha[t, u] = torch.logsumexp(torch.stack(ways), 0) if ways else x.new_zeros(())
    return -(alpha[steps - 1, len(target)] + log_p[steps - 1, len(target), blank])


def expected(x, targets, steps, lengths, blank, clamp=-1.0):
    """Losses and, of each, the gradient."""
    losses, grad = [], torch.zeros_like(x)
    for n, (t, u) in enumerate(zip(steps.tolist(), lengths.tolist(), strict=True)):
        own = x[n, :t, : u + 1].detach().requires_grad_()
        losses.append(dynamic_program(own, targets[n, :u].tolist(), t, blank % x.shape[-1]))
        (slope,) = torch.autograd.grad(losses[-1], own)
        grad[n, :t, : u + 1] = slope.clamp(-clamp, clamp) if clamp > 0 else slope
    return torch.stack(losses).detach(), grad


@pytest.mark.parametrize("shape", [(1, 1, 0, 1), (3, 9, 4, 5), (4, 3, 8, 70), (2, 12, 1, 300)])
@pytest.mark.parametrize("clamp", [-1.0, 0.05])
def test_over_lengths(shape, clamp):
    """Any lengths, of logits in any layout; what is behind them may be anything, and gets 0."""
    samples, steps, most, classes = shape
    blank = int(torch.randint(-classes, classes, ()))
    targets = torch.randint(0, classes, (samples, most), device=DEVICE)
    t, u = torch.randint(1, steps + 1, (samples,), device=DEVICE), torch.randint(0, most + 1, (samples,), device=DEVICE)
    base = draw(samples, steps, most + 1, classes).detach()
    losses, grads = expected(base, targets, t, u, blank, clamp)
    behind = (torch.arange(steps, device=DEVICE)[:, None] >= t[:, None, None]) | (
        torch.arange(most + 1, device=DEVICE) > u[:, None, None]
    )
    weights = torch.randn_like(losses)
    filled = targets.where(torch.arange(most, device=DEVICE) < u[:, None], torch.full_like(targets, -5))
    for filling in (0.0, math.nan, math.inf):
        x = base.masked_fill(behind[..., None], filling)
        for layout in (x, x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0), x.repeat(1, 1, 1, 2)[..., :classes]):
            y = layout.detach().requires_grad_()
            got = rnnt_loss(y, filled, t, u, blank, clamp, "none")
            torch.testing.assert_close(got, losses, rtol=1e-12, atol=1e-12)
            (grad,) = torch.autograd.grad(got, y, weights)
            torch.testing.assert_close(grad, weights[:, None, None, None] * grads, rtol=1e-10, atol=1e-12)
    for reduction, whole_loss in (("mean", losses.mean()), ("sum", losses.sum())):
        y = base.clone().requires_grad_()
        got = rnnt_loss(y, targets, t, u, blank, clamp, reduction)
        torch.testing.assert_close(got, whole_loss, rtol=1e-12, atol=1e-12)
        (grad,) = torch.autograd.grad(got, y, torch.tensor(-3.0, dtype=torch.float64, device=DEVICE))
        scale = -3.0 / (samples if reduction == "mean" else 1)
        torch.testing.assert_close(grad, scale * grads, rtol=1e-10, atol=1e-12)


def test_a_long_sequence_keeps_its_digits():
    """Hundreds of steps in float32."""
    x = 3 * draw(2, 400, 31, 20).detach()
    arguments = torch.randint(0, 19, (2, 30), device=DEVICE), whole(400, 311), whole(30, 29)
    loss, grad = [], []
    for dtype in (torch.float32, torch.float64):
        y = x.float().to(dtype).requires_grad_()
        loss.append(rnnt_loss(y, *arguments))
        grad.extend(torch.autograd.grad(loss[-1], y))
    torch.testing.assert_close(loss[0].double(), loss[1], rtol=1e-6, atol=0)
    assert (grad[0] - grad[1]).abs().max() < 5e-6 * grad[1].abs().max()


def test_integers_of_every_kind():
    x, rows, steps, counts = draw(2, 6, 4, 5), whole([1, 2, 3], [3, 3, 0]), whole(6, 5), whole(3, 2)
    want = rnnt_loss(x, rows, steps, counts)
    for dtype in (torch.int64, torch.int32, torch.uint8):
        assert torch.equal(rnnt_loss(x, rows.to(dtype), steps, counts), want)
    for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        assert torch.equal(rnnt_loss(x, rows, steps.to(dtype), counts.to(dtype)), want)
    same = opreg.functional.rnnt_loss(x, rows, (6, 5), [3, 2])
    assert torch.equal(same, want)
    assert torch.equal(opreg.nn.RNNTLoss(blank=-1, clamp=-1.0)(x, rows, steps, counts), want)


def test_sizes_of_nothing():
    """No steps, no sequences, no labels at all; one class."""
    none = whole([], []).long()
    x = draw(2, 0, 3, 4)
    loss = rnnt_loss(x, whole([1, 2], [1, 2]), whole(0, 0), whole(0, 1), reduction="none")
    assert loss.tolist() == [0, math.inf]
    assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape
    y = draw(2, 3, 1, 4)
    loss = rnnt_loss(y, none, whole(3, 2), whole(0, 0), reduction="none")
    log_p = y.log_softmax(-1)[..., -1]
    torch.testing.assert_close(loss, -torch.stack([log_p[0].sum(), log_p[1, :2].sum()]))
    assert rnnt_loss(y[:0], none[:0], none[0], none[0]).isnan()
    assert rnnt_loss(y[:0], none[:0], none[0], none[0], reduction="sum") == 0
    # of one class every path is certain: of C(steps + labels - 1, labels) paths, each is counted
    one = rnnt_loss(draw(1, 4, 4, 1), whole([0, 0, 0]), whole(4), whole(3))
    assert one.item() == pytest.approx(-math.log(math.comb(6, 3)))


def test_an_infinite_loss_has_no_gradient():
    x = draw(3, 3, 3, 4).detach()
    x[0, :, :, 1] = -math.inf  # its label
    x[1, 2, 2, 3] = -math.inf  # the blank at its end
    x.requires_grad_()
    loss = rnnt_loss(x, whole([1, 0], [1, 0], [1, 0]), whole(3, 3, 3), whole(2, 2, 2), reduction="none")
    assert loss.isinf().tolist() == [True, True, False]
    (grad,) = torch.autograd.grad(loss.sum(), x)
    assert not grad[:2].any()
    assert grad[2].isfinite().all()
    assert grad[2].any()


def test_float64_of_float32_logits():
    """The dtype option: all of it in float64, and the gradient in the dtype of the logits."""
    x = draw(2, 30, 6, 7, dtype=torch.float32)
    arguments = torch.randint(0, 6, (2, 5), device=DEVICE), whole(30, 29), whole(5, 3)
    loss = rnnt_loss(x, *arguments, dtype=torch.float64)
    y = x.detach().double().requires_grad_()
    want = rnnt_loss(y, *arguments)
    assert torch.equal(loss, want)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.float32
    assert torch.equal(grad, torch.autograd.grad(want, y)[0].float())


def test_kept_for_the_backward_pass():
    """Four numbers for each node of the lattices, whatever the number of classes."""
    x = draw(2, 10, 4, 500)
    arguments = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE), whole(10, 7), whole(3, 1)
    _, state = torch.ops.lossreg.rnnt_loss_forward(x, *arguments)
    assert state.numel() == 4 * 2 * 10 * 4


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(dtype):
    """Nothing of the logits' size is made but their gradient; without one, nothing at all."""
    x = torch.randn(3, 60, 12, 400).to(dtype).requires_grad_()
    arguments = torch.randint(1, 400, (3, 11)), whole(60, 41, 7), whole(11, 3, 0)
    nodes, a_node = 3 * 60 * 12, 4 * 4  # what is kept of each node of the lattices

    def step():
        return torch.autograd.grad(rnnt_loss(x, *arguments), x)

    step()
    assert peak_memory(step) < x.nbytes + 2 * nodes * a_node + 1024
    with torch.no_grad():
        assert peak_memory(lambda: rnnt_loss(x, *arguments)) < 2 * nodes * a_node + 1024


def test_gradient_by_torch_func():
    """Transforms differentiate the reference; of each sample alone, and clipped."""
    x, targets, steps, counts = draw(3, 4, 3, 5).detach(), whole([1, 2], [2, 0], [3, 3]), whole(4, 3, 1), whole(2, 1, 2)
    for clamp in (-1.0, 0.1):

        def loss(x, targets, steps, counts, clamp=clamp):
            return rnnt_loss(x[None], targets[None], steps[None], counts[None], clamp=clamp)

        got = torch.func.vmap(torch.func.grad(loss))(x, targets, steps, counts)
        y = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(rnnt_loss(y, targets, steps, counts, clamp=clamp, reduction="sum"), y)
        torch.testing.assert_close(got, want)


def test_lengths_on_the_cpu_for_logits_on_a_gpu():
    """As far as fakes show it; tests that run on a GPU show the rest."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        x, targets = torch.empty(2, 5, 3, 4, device="cuda"), torch.empty(2, 2, dtype=torch.int64, device="cuda")
        lengths = torch.empty(2, dtype=torch.int64)
        assert rnnt_loss(x, targets, lengths, lengths).device.type == "cuda"
        with pytest.raises(RuntimeError, match=r"rnnt_loss: expected all tensors on one device, got cuda:0 and cpu"):
            rnnt_loss(x, targets.cpu(), lengths, lengths)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs two devices")
def test_lengths_on_the_cpu():
    x, targets, lengths = draw(2, 6, 4, 5), whole([1, 2, 4], [3, 3, 0]), (whole(6, 5), whole(3, 2))
    assert torch.equal(rnnt_loss(x, targets, *(n.cpu() for n in lengths)), rnnt_loss(x, targets, *lengths))


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_invalid_values_are_nan_and_no_more(emulated):
    """On a GPU a wrong length or label must neither stop the process nor touch another sequence; an error here."""
    emulated(1)
    x = draw(8, 4, 3, 5)
    rows = whole([1, 2], [1, 5], [-1, 1], [1, 1], [2, 1], [2, 2], [1, 1], [0, 3])
    steps = whole(4, 4, 3, 5, -1, 4, 2**62, 3)
    counts = whole(2, 2, 1, 1, 1, 3, 1, 1)
    sample = opreg.Sample((x, rows, steps, counts), {"reduction": "none"})
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, opreg.get("rnnt_loss"), sample)
    assert loss.isnan().tolist() == [False, True, True, True, True, True, True, False]
    assert grad[[0, 7]].isfinite().all()
    assert grad[3:7].isnan().all()
    assert grad[2, :3, :2].isnan().all()
    assert not grad[2, 3].any()
    assert not grad[2, :, 2].any()
    good = [0, 7]
    torch.testing.assert_close(loss[good], rnnt_loss(x[good], rows[good], steps[good], counts[good], reduction="none"))
    for n in range(1, 7):
        with pytest.raises(RuntimeError, match=r"rnnt_loss: expected (logit_lengths|target_lengths|a class index) in"):
            rnnt_loss(x[[n]], rows[[n]], steps[[n]], counts[[n]])
