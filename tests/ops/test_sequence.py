"""CTC against every alignment written out, against torch over a grid of lengths, and where torch gives up."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import opreg
from conftest import DEVICE, run_raw
from opreg import bench

ctc_loss = torch.ops.lossreg.ctc_loss


def collapsed(path, blank):
    """Repetitions merged, then blanks removed."""
    return [c for c, _ in itertools.groupby(path) if c != blank]


def written_out(probabilities, target, blank):
    """Loss and gradient in the log-probabilities of one sequence: the sum over all paths of classes."""
    steps, classes = len(probabilities), 3
    total, through = 0.0, [[0.0] * classes for _ in range(steps)]
    for path in itertools.product(range(classes), repeat=steps):
        if collapsed(path, blank) != target:
            continue
        likelihood = math.prod(p[c] for p, c in zip(probabilities, path, strict=True))
        total += likelihood
        for t, c in enumerate(path):
            through[t][c] += likelihood
    if total == 0:
        return math.inf, [[0.0] * classes for _ in range(steps)]
    posterior = [[x / total for x in row] for row in through]
    grad = [[p - q for p, q in zip(a, b, strict=True)] for a, b in zip(probabilities, posterior, strict=True)]
    return -math.log(total), grad


def draw(steps, samples, classes, dtype=torch.float64):
    return torch.randn(steps, samples, classes, dtype=dtype, device=DEVICE).log_softmax(-1).requires_grad_()


def whole(*values):
    return torch.tensor(list(values), device=DEVICE)


@pytest.mark.parametrize("blank", [0, 1, 2])
@pytest.mark.parametrize("concatenated", [False, True])
def test_every_alignment(blank, concatenated):
    """All targets of up to four labels, in up to four steps, at once."""
    labels = [c for c in range(3) if c != blank]
    cases = [
        (steps, list(target))
        for steps in range(5)
        for count in range(5)
        for target in itertools.product(labels, repeat=count)
    ]
    x = draw(4, len(cases), 3)
    filled = [c for _, target in cases for c in (target if concatenated else target + [99] * (4 - len(target)))]
    targets = whole(*filled) if concatenated else whole(*filled).reshape(len(cases), 4)
    lengths = whole(*(steps for steps, _ in cases)), whole(*(len(target) for _, target in cases))
    loss = ctc_loss(x, targets, *lengths, blank, "none")
    (grad,) = torch.autograd.grad(loss.sum(), x)
    probabilities = x.detach().exp().tolist()
    for n, (steps, target) in enumerate(cases):
        value, gradient = written_out([row[n] for row in probabilities[:steps]], target, blank)
        assert loss[n].item() == pytest.approx(value, abs=1e-12)
        gradient += [[0.0] * 3] * (4 - steps)
        torch.testing.assert_close(grad[:, n].tolist(), gradient, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 2, 1), (13, 40, 4, 6), (60, 9, 30, 25), (7, 3, 5, 20), (30, 2, 500, 8)])
@pytest.mark.parametrize("concatenated", [False, True])
def test_native_over_lengths(shape, concatenated):
    """Any lengths, 0 too; labels with many repetitions; any blank; normalised or not; more labels than steps."""
    steps, samples, classes, count = shape
    for normalised in (True, False):
        x = draw(steps, samples, classes)
        if not normalised:
            x = (x.detach() + torch.randn_like(x)).requires_grad_()
        blank = int(torch.randint(0, classes, ()))
        used = min(classes - 1, 4)
        targets = (blank + 1 + torch.randint(0, used, (samples, count), device=DEVICE)) % classes
        lengths = [torch.randint(0, most + 1, (samples,), device=DEVICE) for most in (steps, count)]
        if concatenated:
            targets = torch.cat([row[:n] for row, n in zip(targets, lengths[1].tolist(), strict=True)])
        for reduction in ("none", "mean", "sum"):
            for zero_infinity in (False, True):
                options = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
                got, want = ctc_loss(x, targets, *lengths, **options), F.ctc_loss(x, targets, *lengths, **options)
                torch.testing.assert_close(got, want)
                weights = torch.randn_like(got)
                (got_grad,) = torch.autograd.grad(got, x, weights)
                (want_grad,) = torch.autograd.grad(want, x, weights)
                torch.testing.assert_close(got_grad, want_grad.nan_to_num(0.0))  # NaN where the loss is infinite


def test_a_long_sequence_keeps_its_digits():
    """Thousands of steps in float32: torch's gradient has an error of 1e-2 there."""
    x = draw(2500, 2, 20).detach()
    targets = torch.randint(1, 20, (2, 300), device=DEVICE)
    lengths = whole(2500, 2311), whole(300, 289)
    loss, grad = [], []
    for dtype in (torch.float32, torch.float64):
        y = x.float().to(dtype).requires_grad_()
        loss.append(ctc_loss(y, targets, *lengths))
        grad.extend(torch.autograd.grad(loss[-1], y))
    torch.testing.assert_close(loss[0].double(), loss[1], rtol=1e-6, atol=0)
    assert (grad[0] - grad[1]).abs().max() < 5e-6 * grad[1].abs().max()


def test_the_benchmark_lets_float64_decide():
    """Where torch's own float32 gradient is too far off to be compared with."""
    (case,) = bench.cases(opreg.get("ctc_loss"), "usual", torch.float32, DEVICE)
    ours, eager = (bench.value_and_gradient(case, f) for f in (case.op.value, bench.eager_of(case.op)))
    with pytest.raises(bench.Disagreement):
        bench.check_agreement(case.title, ours, eager, torch.float32)
    bench.check_values(case, torch.float32)


def test_integers_of_every_kind():
    x, rows, together = draw(6, 2, 5), whole([1, 2, 4], [3, 3, 0]), whole(1, 2, 4, 3, 3)
    steps, counts = whole(6, 5), whole(3, 2)
    want = F.ctc_loss(x, rows, steps, counts)
    for targets in (rows, together):
        for dtype in (torch.int64, torch.int32, torch.uint8):
            torch.testing.assert_close(ctc_loss(x, targets.to(dtype), steps, counts), want)
        for dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
            torch.testing.assert_close(ctc_loss(x, targets, steps.to(dtype), counts.to(dtype)), want)


def test_sizes_of_nothing():
    """No steps, no sequences, no labels at all."""
    x, none = draw(0, 2, 3), whole([], []).long()
    for targets, lengths in ((whole([1, 2], [1, 2]), whole(0, 1)), (whole(1), whole(0, 1))):
        loss = ctc_loss(x, targets, whole(0, 0), lengths, reduction="none")
        assert loss.tolist() == [0, math.inf]
        assert torch.autograd.grad(loss.sum(), x)[0].shape == x.shape
    y = draw(3, 2, 3)
    for targets in (none, none[0]):
        loss = ctc_loss(y, targets, whole(3, 2), whole(0, 0), reduction="none")
        torch.testing.assert_close(loss, -torch.stack([y[:, 0, 0].sum(), y[:2, 1, 0].sum()]))
    for targets in (none[:0], none[0]):
        assert ctc_loss(y[:, :0], targets, none[0], none[0]).isnan()
        assert ctc_loss(y[:, :0], targets, none[0], none[0], reduction="sum") == 0


def test_float64_of_float32_scores():
    """The dtype option: all of it in float64, and the gradient in the dtype of the scores."""
    x = draw(300, 2, 7, torch.float32)
    arguments = torch.randint(1, 7, (2, 30), device=DEVICE), whole(300, 290), whole(30, 7)
    loss = ctc_loss(x, *arguments, dtype=torch.float64)
    y = x.detach().double().requires_grad_()
    want = F.ctc_loss(y, *arguments)
    torch.testing.assert_close(loss, want)
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.float32
    torch.testing.assert_close(grad, torch.autograd.grad(want, y)[0].float(), rtol=1e-6, atol=1e-12)


def test_kept_for_the_backward_pass():
    """Concatenated labels need as much room as there are labels, however they are divided: not N times the longest."""
    x = draw(10, 50, 5)
    lengths = torch.zeros(50, dtype=torch.int64, device=DEVICE)
    lengths[7] = 9
    targets = torch.arange(9, device=DEVICE) % 4 + 1
    _, state = torch.ops.lossreg.ctc_loss_forward(x, targets, torch.full_like(lengths, 10), lengths)
    assert state.numel() == 11 * (2 * 9 + 3 * 50)


def test_hessian_by_torch_func():
    """Transforms differentiate the reference: the derivative of the gradient, against differences of it."""
    arguments = whole([1, 2, 2], [2, 1, 0]), whole(5, 4), whole(3, 2)
    x = torch.randn(5, 2, 3, dtype=torch.float64, device=DEVICE)

    def loss(x):
        return ctc_loss(x.log_softmax(-1), *arguments)

    def gradient(x):
        y = x.clone().requires_grad_()
        return torch.autograd.grad(loss(y), y)[0]

    direction, step = torch.randn_like(x), 1e-5
    want = (gradient(x + step * direction) - gradient(x - step * direction)) / (2 * step)
    got = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(torch.stack([x, 2 * x]))[1], gradient(2 * x))


def test_lengths_on_the_cpu_for_scores_on_a_gpu():
    """As far as fakes show it; tests that run on a GPU show the rest."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        x, targets = torch.empty(5, 2, 3, device="cuda"), torch.empty(2, 2, dtype=torch.int64, device="cuda")
        lengths = torch.empty(2, dtype=torch.int64)
        assert ctc_loss(x, targets, lengths, lengths).device.type == "cuda"
        with pytest.raises(RuntimeError, match="ctc_loss: expected all tensors on one device, got cuda:0 and cpu"):
            ctc_loss(x, targets.cpu(), lengths, lengths)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs two devices")
def test_lengths_on_the_cpu():
    x, targets, lengths = draw(6, 2, 5), whole([1, 2, 4], [3, 3, 0]), (whole(6, 5), whole(3, 2))
    assert torch.equal(ctc_loss(x, targets, *(n.cpu() for n in lengths)), ctc_loss(x, targets, *lengths))


def emulated_run(emulated, seed, *arguments, **options):
    emulated(seed)
    sample = opreg.Sample(arguments, {"reduction": "none", **options})
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, opreg.get("ctc_loss"), sample)
    return loss, grad


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_more_states_than_threads(emulated):
    """301 states for the 256 threads of a block, against torch in float64; whatever the order of threads."""
    x = draw(155, 2, 5, torch.float32)
    targets, lengths = torch.arange(300).reshape(2, 150) % 4 + 1, (whole(155, 151), whole(150, 150))
    loss, grad = emulated_run(emulated, 1, x, targets, *lengths)
    again, grad_again = emulated_run(emulated, 2, x, targets, *lengths)
    assert torch.equal(loss, again)
    assert torch.equal(grad, grad_again)
    # without a gradient two rows of states take turns
    assert torch.equal(torch.ops.lossreg_emulated.ctc_loss(x.detach(), targets, *lengths, reduction="none"), loss)
    y = x.detach().double().requires_grad_()
    want = F.ctc_loss(y, targets, *lengths, reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=0)
    (want_grad,) = torch.autograd.grad(want, y, torch.linspace(0.5, 1.5, 2, dtype=torch.float64))
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=2e-6)


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
@pytest.mark.parametrize("concatenated", [False, True])
def test_invalid_values_are_nan_and_no_more(emulated, concatenated):
    """On a GPU a wrong length or label must neither stop the process nor touch another sequence."""
    x = draw(4, 6, 3)
    rows = whole([1, 2], [1, 3], [-1, 1], [1, 1], [2, 1], [2, 2])
    steps, lengths = whole(4, 4, 3, 5, -1, 4), whole(2, 2, 1, 1, 1, 1)
    targets = torch.cat([row[:n] for row, n in zip(rows, lengths.tolist(), strict=True)]) if concatenated else rows
    loss, grad = emulated_run(emulated, 1, x, targets, steps, lengths)
    assert loss.isnan().tolist() == [False, True, True, True, True, False]
    assert grad[:, [0, 5]].isfinite().all()
    assert grad[:3, 1:5].isnan().all()
    good = [0, 5]
    want = F.ctc_loss(x[:, good], rows[good], steps[good], lengths[good], reduction="none")
    torch.testing.assert_close(loss[good], want)
    lengths = whole(2, 7, 1, -1, 1, 1)
    loss, grad = emulated_run(emulated, 1, x, targets, whole(4, 4, 4, 4, 4, 4), lengths)
    assert loss[[1, 3]].isnan().all()
    assert loss[0] == F.ctc_loss(x[:, :1], rows[:1], whole(4), whole(2), reduction="none")[0]
    assert grad[:, [1, 3]].isnan().all()
    assert grad[:, 0].isfinite().all()
