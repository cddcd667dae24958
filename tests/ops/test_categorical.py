"""What class indices bring along: ignored and invalid positions, huge vocabularies, digits at large scores."""

import math

import pytest
import torch
import torch.nn.functional as F

import opreg
from conftest import DEVICE
from row_losses import ANGULAR, NAMES, call, oracle

NATIVE = ["nll_loss", "cross_entropy"]


def scores(name, *shape, dtype=torch.float32):
    """What the loss takes: cosines, else any numbers."""
    x = torch.rand(shape, dtype=dtype, device=DEVICE) * 1.9 - 0.95
    return x if name in ANGULAR else 3 * x


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("ignore_index", [-100, -1, 0, 2, 5, 255, 10**12])
@pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 5)])
@pytest.mark.parametrize("weighted", [False, True])
def test_ignore_index_of_every_kind(name, ignore_index, shape, weighted):
    """Inside the classes, beyond them, negative: no loss, no part of the normaliser, gradient 0."""
    x = torch.randn(shape[0], 5, *shape[1:], dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.randint(0, 5, shape, device=DEVICE)
    t[0] = ignore_index
    w = torch.rand(5, dtype=torch.float64, device=DEVICE) if weighted else None
    op, native = getattr(torch.ops.lossreg, name), getattr(F, name)
    for reduction in ("none", "mean", "sum"):
        got = op(x, t, w, ignore_index=ignore_index, reduction=reduction)
        want = native(x, t, w, ignore_index=ignore_index, reduction=reduction)
        torch.testing.assert_close(got, want)
        grad = torch.autograd.grad(got.sum(), x)[0]
        torch.testing.assert_close(grad, torch.autograd.grad(want.sum(), x)[0])
        assert (grad.movedim(1, -1)[t == ignore_index] == 0).all()


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("ignore_index", [-100, 0, 2, 255, 10**12])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 5), (3, 200)])
def test_values_without_the_ignored(name, ignore_index, shape):
    """Against the definition, row by row; the mean divides by the number of rows that are left."""
    x = scores(name, shape[0], 5, *shape[1:], dtype=torch.float64).requires_grad_()
    t = torch.randint(0, 5, shape, device=DEVICE)
    t[0] = ignore_index
    valid = t != ignore_index
    want = oracle(name, x.detach().movedim(1, -1)[valid], t[valid])
    got = call(name, x, t, ignore_index=ignore_index, reduction="none")
    torch.testing.assert_close(got[valid], want)
    assert (got[~valid] == 0).all()
    assert (torch.autograd.grad(got.sum(), x)[0].movedim(1, -1)[~valid] == 0).all()
    torch.testing.assert_close(call(name, x, t, ignore_index=ignore_index, reduction="sum"), want.sum())
    torch.testing.assert_close(call(name, x, t, ignore_index=ignore_index), want.mean())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("classes", [3, 100])
def test_an_ignored_row_may_hold_anything(name, classes):
    """NaN and infinity in ignored rows touch neither the loss nor any gradient."""
    x = scores(name, 4, classes)
    x[1], x[2, 0] = float("nan"), float("inf")
    x.requires_grad_()
    t = torch.tensor([0, -100, -100, 2], device=DEVICE)
    loss = call(name, x, t)
    torch.testing.assert_close(loss, call(name, x[[0, 3]], t[[0, 3]]))
    grad = torch.autograd.grad(loss, x)[0]
    assert (grad[1:3] == 0).all()
    assert grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_all_ignored_gradient_is_zero(name):
    x = scores(name, 4, 3).requires_grad_()
    t = torch.full((4,), -100, device=DEVICE)
    loss = call(name, x, t)
    assert loss.isnan()
    assert call(name, x, t, reduction="sum") == 0
    assert (torch.autograd.grad(loss, x)[0] == 0).all()


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU it is an error: see the error samples")
@pytest.mark.parametrize("name", NAMES)
def test_invalid_class_is_nan_on_a_gpu(name):
    x = scores(name, 3, 4).requires_grad_()
    loss = call(name, x, torch.tensor([0, 9, 3], device=DEVICE), reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    grad = torch.autograd.grad(loss.sum(), x)[0]
    assert grad.isnan().all(1).tolist() == [False, True, False]


@pytest.mark.parametrize("classes", [1, 2, 63, 64, 65, 1023, 1025, 40_001])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_any_number_of_classes(classes, smoothing):
    """Around the tiles' edges, in float32, against float64."""
    x = torch.randn(3, classes, device=DEVICE, requires_grad=True)
    t = torch.randint(0, classes, (3,), device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t, label_smoothing=smoothing)
    exact = x.detach().double().requires_grad_()
    want = F.cross_entropy(exact, t, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-6)
    grad, want_grad = torch.autograd.grad(loss, x)[0], torch.autograd.grad(want, exact)[0]
    torch.testing.assert_close(grad.double(), want_grad, rtol=2e-6, atol=1e-8)


def with_threads(threads, run):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return run()
    finally:
        torch.set_num_threads(before)


def long_rows(name, dtype):
    """Rows so long that threads share them: one alone, and three, one of which is ignored; of other strides too."""
    x, t = scores(name, 3, 70_001).to(dtype), torch.tensor([0, -100, 69_998])
    yield x[:1], t[:1]
    yield x[2], t[2]
    yield x, t
    yield x.t().contiguous().t(), t
    yield x.repeat_interleave(2, 1)[:, ::2], t


@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_rows_that_threads_share(name, dtype):
    """Of the same bits whatever the number of threads, and in one pass; in float64 the oracle's."""
    for x, t in long_rows(name, dtype):
        x.requires_grad_()

        def run(x=x, t=t):
            found = []
            for reduction in ("none", "mean"):
                loss = call(name, x, t, reduction=reduction)
                found += [loss.detach(), torch.autograd.grad(loss.sum(), x)[0]]
            return found

        one = with_threads(1, run)
        for threads in (2, 3, 2):
            for a, b in zip(one, with_threads(threads, run), strict=True):
                assert torch.equal(a, b)
        if dtype == torch.float64:
            rows, targets = x.detach().reshape(-1, x.shape[-1]), t.reshape(-1)
            valid = targets != -100
            torch.testing.assert_close(one[0].reshape(-1)[valid], oracle(name, rows[valid], targets[valid]))
            assert (one[1].reshape(rows.shape)[~valid] == 0).all()


@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("probabilities", [False, True])
def test_shares_of_rows_that_threads_share(weighted, smoothing, probabilities):
    """Label smoothing, class weights and probabilities, with the gradients in these: the native function's."""
    x = torch.randn(2, 70_001, dtype=torch.float64, requires_grad=True)
    w = torch.rand(70_001, dtype=torch.float64) if weighted else None
    t = torch.randn(x.shape, dtype=torch.float64).softmax(1).requires_grad_() if probabilities else torch.tensor([5, 9])
    leaves = [x, t] if probabilities else [x]

    def run(op=torch.ops.lossreg.cross_entropy):
        loss = op(x, t, w, label_smoothing=smoothing)
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    one, two = with_threads(1, run), with_threads(2, run)
    for a, b, want in zip(one, two, run(F.cross_entropy), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, want)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
def test_nan_and_infinity_in_a_row_that_threads_share():
    for value in (float("nan"), float("inf"), -float("inf")):
        x = torch.randn(1, 70_001)
        x[0, 40_000] = value
        x.requires_grad_()
        t = torch.tensor([3])

        def run(op, x=x, t=t):
            loss = op(x, t)
            return loss.detach(), torch.autograd.grad(loss, x)[0]

        one, two = (with_threads(n, lambda: run(torch.ops.lossreg.cross_entropy)) for n in (1, 2))
        for a, b, want in zip(one, two, run(F.cross_entropy), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
            torch.testing.assert_close(a, want, rtol=1e-5, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("classes", [1, 2, 64, 65, 2049, 5001])
@pytest.mark.parametrize("trailing", [(), (5,)], ids=["along", "across"])
def test_any_number_of_classes_of_the_others(name, classes, trailing):
    """The same, with vectors along the classes and across rows; value and gradient."""
    x = scores(name, 3, classes, *trailing).requires_grad_()
    t = torch.randint(0, classes, (3, *trailing), device=DEVICE)
    rows = x.detach().double().movedim(1, -1).reshape(-1, classes).requires_grad_()
    want = oracle(name, rows, t.flatten())
    got = call(name, x, t, reduction="none")
    torch.testing.assert_close(got.flatten().double(), want, rtol=4e-6, atol=2e-6)
    grad, want_grad = torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(want.sum(), rows)[0]
    torch.testing.assert_close(grad.movedim(1, -1).reshape(-1, classes).double(), want_grad, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "name", ["softmax_focal_loss", "pc_softmax_cross_entropy", "poly1_cross_entropy", "ohem_cross_entropy"]
)
@pytest.mark.parametrize("offset", [1e4, -1e4])
@pytest.mark.parametrize("classes", [7, 100])
def test_large_scores_keep_their_digits_in_the_others(name, offset, classes):
    x = (torch.randn(5, classes, device=DEVICE) * 4 + offset).requires_grad_()
    t = torch.randint(0, classes, (5,), device=DEVICE)
    exact = x.detach().double().requires_grad_()
    got, want = call(name, x, t, reduction="none"), oracle(name, exact, t)
    torch.testing.assert_close(got.double(), want, rtol=4e-6, atol=2e-6)
    grad, want_grad = torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(want.sum(), exact)[0]
    torch.testing.assert_close(grad.double(), want_grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_large_scores_keep_their_digits(offset):
    """log-sum-exp is kept in float64: a common offset of 1e4 costs no digit but those the input itself has lost."""
    x = (torch.randn(5, 7, device=DEVICE) * 4 + offset).requires_grad_()
    t = torch.randint(0, 7, (5,), device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t, reduction="none")
    exact = x.detach().double().requires_grad_()
    want = F.cross_entropy(exact, t, reduction="none")
    torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=2e-6)
    grad = torch.autograd.grad(loss.sum(), x)[0]
    torch.testing.assert_close(grad.double(), torch.autograd.grad(want.sum(), exact)[0], rtol=1e-5, atol=1e-7)


def test_infinite_scores():
    """A masked class (−inf) has probability and gradient 0; as in torch."""
    x = torch.randn(4, 5, device=DEVICE)
    x[:, 3] = -torch.inf
    x.requires_grad_()
    t = torch.tensor([0, 1, 2, 4], device=DEVICE)
    got, want = torch.ops.lossreg.cross_entropy(x, t), F.cross_entropy(x, t)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, x)[0], torch.autograd.grad(want, x)[0])


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 5), (5,)])
def test_probability_targets_and_weights_have_gradients(shape):
    x, t = (torch.randn(shape, dtype=torch.float64, device=DEVICE, requires_grad=True) for _ in range(2))
    w = torch.rand(shape[min(1, len(shape) - 1)], dtype=torch.float64, device=DEVICE, requires_grad=True)
    for reduction in ("none", "mean", "sum"):
        options = {"label_smoothing": 0.2, "reduction": reduction}
        got, want = torch.ops.lossreg.cross_entropy(x, t, w, **options), F.cross_entropy(x, t, w, **options)
        torch.testing.assert_close(got, want)
        ours, theirs = (torch.autograd.grad(loss.sum(), (x, t, w)) for loss in (got, want))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)


def test_class_weight_that_requires_grad_is_an_error():
    x, t = torch.randn(3, 4, device=DEVICE), torch.randint(0, 4, (3,), device=DEVICE)
    w = torch.rand(4, device=DEVICE, requires_grad=True)
    for name in (*NATIVE, "softmax_focal_loss", "poly1_cross_entropy"):
        with pytest.raises(RuntimeError, match=f"{name}: expected weight that does not require grad"):
            opreg.get(name).value(x, t, w)


def test_class_prior_that_requires_grad_is_an_error():
    x, t = torch.randn(3, 4, device=DEVICE), torch.randint(0, 4, (3,), device=DEVICE)
    prior = torch.rand(4, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="pc_softmax_cross_entropy: expected class_prior that does not require grad"):
        torch.ops.lossreg.pc_softmax_cross_entropy(x, t, prior)


def test_a_uniform_prior_is_cross_entropy():
    """Up to the constant: -log p_y - log C; and the factor of a prior is only a constant too."""
    x, t = torch.randn(6, 9, device=DEVICE), torch.randint(0, 9, (6,), device=DEVICE)
    prior = torch.full((9,), 1 / 9, device=DEVICE)
    got = torch.ops.lossreg.pc_softmax_cross_entropy(x, t, prior)
    torch.testing.assert_close(got, F.cross_entropy(x, t) - torch.tensor(9.0, device=DEVICE).log())
    tiny = torch.ops.lossreg.pc_softmax_cross_entropy(x, t, prior * 1e-30)
    torch.testing.assert_close(tiny, got + torch.tensor(1e-30, dtype=torch.float64).log().float().item())


def test_a_tiny_prior_cannot_make_the_softmax_empty():
    """The class that leads by far has a prior of 1e-37: the sum is that of the others, which must not underflow."""
    x = torch.tensor([[100.0, 10.0, 9.0]], device=DEVICE, requires_grad=True)
    prior = torch.tensor([1e-37, 0.5, 0.5], device=DEVICE)
    loss = torch.ops.lossreg.pc_softmax_cross_entropy(x, torch.tensor([1], device=DEVICE), prior)
    terms = prior.double() * x.detach().double()[0].exp()
    torch.testing.assert_close(loss.double(), terms.sum().log() - 10, rtol=1e-6, atol=0)
    grad = torch.autograd.grad(loss, x)[0][0].double()
    want = terms / terms.sum() - torch.tensor([0.0, 1, 0], device=DEVICE).double()
    torch.testing.assert_close(grad, want, rtol=1e-5, atol=0)


@pytest.mark.skipif(DEVICE == "cpu", reason="on the CPU it is an error: see the error samples")
def test_a_prior_that_is_not_positive_is_nan_on_a_gpu():
    x, t = torch.randn(3, 4, device=DEVICE), torch.randint(0, 4, (3,), device=DEVICE)
    prior = torch.tensor([0.5, 0.5, 0.0, 1.0], device=DEVICE)
    assert torch.ops.lossreg.pc_softmax_cross_entropy(x, t, prior).isnan()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.7])
def test_focal_where_the_model_is_right(gamma):
    """p_y up to 0.9998: (1 - p_y)^gamma is small, as exact as float32's log-sum-exp allows. Beyond: 0, and finite."""
    lead = torch.linspace(1, 80, 80, device=DEVICE)
    x = torch.stack([lead, torch.zeros_like(lead)], 1).requires_grad_()
    loss = torch.ops.lossreg.softmax_focal_loss(x, torch.zeros(80, device=DEVICE).long(), None, gamma, reduction="none")
    grad = torch.autograd.grad(loss.sum(), x)[0]
    odds = (-lead.double()).exp()  # (1 - p) / p
    miss, nll = odds / (1 + odds), odds.log1p()
    slope = miss**gamma * (1 + gamma * (1 - miss) * nll / miss)
    torch.testing.assert_close(loss[:8].double(), (miss**gamma * nll)[:8], rtol=2e-3, atol=0)
    torch.testing.assert_close(grad[:8, 1].double(), (slope * miss)[:8], rtol=2e-3, atol=0)
    assert (loss[20:] == 0).all()
    assert grad.isfinite().all()


def test_focal_of_gamma_zero_is_weighted_cross_entropy():
    x, t = torch.randn(8, 5, device=DEVICE), torch.randint(0, 5, (8,), device=DEVICE)
    w = torch.rand(5, device=DEVICE)
    got = torch.ops.lossreg.softmax_focal_loss(x, t, w, 0.0)
    torch.testing.assert_close(got, F.cross_entropy(x, t, w, reduction="sum") / 8)  # the mean counts, and weighs not


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("epsilon", [-1.0, 0.0, 2.5])
@pytest.mark.parametrize("shape", [(6, 5), (3, 4, 7), (9,), (3, 200)], ids=str)
def test_poly1_adds_the_weighted_miss_to_cross_entropy(shape, epsilon, smoothing):
    """What a mean divides by is cross entropy's; smoothing changes nothing of the miss."""
    axis = min(1, len(shape) - 1)
    x = (3 * torch.randn(shape, dtype=torch.float64, device=DEVICE)).requires_grad_()
    w = 0.1 + torch.rand(shape[axis], dtype=torch.float64, device=DEVICE)
    t = torch.randint(0, shape[axis], shape[:axis] + shape[axis + 1 :], device=DEVICE)
    if t.dim():
        t[0] = -100
    counted = torch.where(t == -100, 0.0, w[t.clamp(min=0)])
    p = (x.softmax(axis) * F.one_hot(t.clamp(min=0), shape[axis]).movedim(-1, axis)).sum(axis)
    miss = epsilon * counted * (1 - p)
    for reduction, of in (("none", miss), ("sum", miss.sum()), ("mean", miss.sum() / counted.sum())):
        options = {"reduction": reduction, "label_smoothing": smoothing}
        got = torch.ops.lossreg.poly1_cross_entropy(x, t, w, epsilon, **options)
        want = F.cross_entropy(x, t, w, **options) + of
        torch.testing.assert_close(got, want)
        grad, expected = (torch.autograd.grad(loss.sum(), x, retain_graph=True)[0] for loss in (got, want))
        torch.testing.assert_close(grad, expected)


def bounded_by_hand(x, t, weight, smoothing, softcap, z_loss):
    """One row after the other, in Python's floats, of scores (R, C), class indices or probabilities: by reduction."""
    losses, squares, weights, weight = [], [], [], weight.tolist()
    for row, y in zip(x.tolist(), t.tolist(), strict=True):
        if y == -100:
            losses.append(0.0)
            squares.append(0.0)
            continue
        z = [softcap * math.tanh(score / softcap) if softcap else score for score in row]
        top = max(z)
        lse = top + math.log(math.fsum(math.exp(score - top) for score in z))
        share = y if isinstance(y, list) else [float(c == y) for c in range(len(z))]
        share = [(1 - smoothing) * s + smoothing / len(z) for s in share]
        losses.append(math.fsum(w * s * (lse - score) for w, s, score in zip(weight, share, z, strict=True)))
        squares.append(z_loss * lse * lse)
        weights.append(1.0 if isinstance(y, list) else weight[y])
    sums = math.fsum(losses), math.fsum(squares)
    of = {"none": [a + b for a, b in zip(losses, squares, strict=True)], "sum": sum(sums)}
    of["mean"] = sums[0] / sum(weights) + sums[1] / len(weights)
    return {reduction: torch.tensor(value, dtype=torch.float64) for reduction, value in of.items()}


BOUNDS = [(2.0, 0.0), (0.0, 0.1), (1.5, 0.25), (30.0, 1e-4)]


@pytest.mark.parametrize(("softcap", "z_loss"), BOUNDS)
@pytest.mark.parametrize("classes", [5, 70, 300])
def test_softcap_and_z_loss_by_hand(softcap, z_loss, classes):
    """The mean divides what z_loss adds by the number of rows, and the rest by their weights; in all four dtypes."""
    x = 4 * torch.randn(6, classes, dtype=torch.float64, device=DEVICE)
    indices = torch.randint(0, classes, (6,), device=DEVICE)
    indices[2] = -100
    probabilities = torch.rand(6, classes, dtype=torch.float64, device=DEVICE)
    weight = 0.1 + torch.rand(classes, dtype=torch.float64, device=DEVICE)
    for target, smoothing in ((indices, 0.0), (indices, 0.1), (probabilities, 0.1)):
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            t = target if target is indices else target.to(dtype)
            args, tolerance = (x.to(dtype), t, weight.to(dtype)), 1e-12 if dtype == torch.float64 else 1e-5
            exact = [a.double() if a.is_floating_point() else a for a in args]
            for reduction, want in bounded_by_hand(*exact, smoothing, softcap, z_loss).items():
                options = {"reduction": reduction, "label_smoothing": smoothing, "softcap": softcap, "z_loss": z_loss}
                wide = torch.promote_types(dtype, torch.float32)
                got = torch.ops.lossreg.cross_entropy(*args, **options, dtype=wide)
                torch.testing.assert_close(got.cpu().double(), want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("softcap", "z_loss"), BOUNDS[:3])
def test_second_derivatives_with_softcap_and_z_loss(softcap, z_loss):
    x = torch.randn(3, 4, dtype=torch.float64, device=DEVICE, requires_grad=True)
    t = torch.tensor([0, -100, 3], device=DEVICE)
    w = 0.1 + torch.rand(4, dtype=torch.float64, device=DEVICE)

    def loss(x):
        return torch.ops.lossreg.cross_entropy(x, t, w, label_smoothing=0.1, softcap=softcap, z_loss=z_loss)

    assert torch.autograd.gradcheck(loss, x)
    assert torch.autograd.gradgradcheck(loss, x)


@pytest.mark.parametrize("shape", [(3, 7), (3, 200), (2, 7, 5)])
def test_no_softcap_and_no_z_loss_is_the_call_without_them(shape):
    """Bit for bit, state and gradient too; and a call by the arguments of before, as old programs make it."""
    x = torch.randn(shape, device=DEVICE)
    t = torch.randint(0, shape[1], shape[:1] + shape[2:], device=DEVICE)
    forward, backward = torch.ops.lossreg.cross_entropy_forward, torch.ops.lossreg.cross_entropy_backward
    old, new = forward(x, t, None, -100, "mean", 0.1), forward(x, t, None, -100, "mean", 0.1, 0.0, 0.0)
    grads = [
        backward(
            torch.ones_like(loss), state, x, t, None, -100, "mean", 0.1, *rest, needs_input_grad=[True, False, False]
        )
        for (loss, state), rest in ((old, ()), (new, (0.0, 0.0)))
    ]
    for a, b in zip((*old, grads[0][0]), (*new, grads[1][0]), strict=True):
        assert torch.equal(a, b)


def test_a_softcap_bounds_what_is_infinite():
    """A score of −inf is −c, and has no gradient; a NaN stays one."""
    x = torch.tensor([[0.5, -torch.inf, torch.inf], [torch.nan, 0.0, 1.0]], device=DEVICE, requires_grad=True)
    t = torch.tensor([0, 1], device=DEVICE)
    loss = torch.ops.lossreg.cross_entropy(x, t, reduction="none", softcap=2.0)
    capped = torch.tensor([2 * math.tanh(0.25), -2.0, 2.0], device=DEVICE)
    torch.testing.assert_close(loss[0], F.cross_entropy(capped, t[0]))
    assert loss[1].isnan()
    grad = torch.autograd.grad(loss[0], x)[0]
    assert grad[0, 0] != 0
    assert (grad.flatten()[1:] == 0).all()


def test_the_z_loss_of_masked_classes():
    """Scores of −inf add nothing to the log-sum-exp."""
    x, t = torch.randn(4, 9, device=DEVICE), torch.tensor([0, 1, 2, 4], device=DEVICE)
    x[:, 5:] = -torch.inf
    got = torch.ops.lossreg.cross_entropy(x.requires_grad_(), t, z_loss=0.3)
    part = x.detach()[:, :5].requires_grad_()
    want = torch.ops.lossreg.cross_entropy(part, t, z_loss=0.3)
    torch.testing.assert_close(got, want)
    grad = torch.autograd.grad(got, x)[0]
    torch.testing.assert_close(grad[:, :5], torch.autograd.grad(want, part)[0])
    assert (grad[:, 5:] == 0).all()


def test_mixed_dtypes_of_scores_and_weights():
    """Result and fake agree: the dtype that both promote to."""
    x, t = torch.randn(3, 4, device=DEVICE).bfloat16(), torch.randint(0, 4, (3,), device=DEVICE)
    w = torch.rand(4, device=DEVICE)
    for name in ("cross_entropy", "softmax_focal_loss", "pc_softmax_cross_entropy"):
        got = opreg.get(name).value(x, t, w)
        assert got.dtype == opreg.get(name).value(x.to("meta"), t.to("meta"), w.to("meta")).dtype == torch.float32
        torch.testing.assert_close(got, opreg.get(name).value(x.float(), t, w))


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_forward_allocates_nothing_of_the_logits_size():
    from torch.profiler import ProfilerActivity, profile

    x, t = torch.randn(256, 4096), torch.randint(0, 4096, (256,))
    few = 256 * 8 * 4  # the state and the result; the logits are 4 MB
    for leaf, most in ((x, few), (x.clone().requires_grad_(), x.nbytes + few)):  # beside a gradient that is wanted
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            torch.ops.lossreg.cross_entropy(leaf, t)
        allocated = max(e.cpu_memory_usage for e in seen.key_averages())
        assert 0 < allocated < most


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's way of writing")
@pytest.mark.parametrize("size", [(1000, 1024), (997, 1013)], ids=["aligned planes", "planes at any address"])
def test_gradient_too_large_for_the_caches(size):
    """nll_loss writes such a one past them: 64 MiB and more."""
    x = torch.randn(1, 17, *size).requires_grad_()
    target = torch.randint(17, (1, *size))
    target[0, :5] = -100
    (grad,) = torch.autograd.grad(torch.ops.lossreg.nll_loss(x, target), x)
    (want,) = torch.autograd.grad(F.nll_loss(x, target), x)
    assert grad.nbytes >= 64 << 20
    torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 19, 1001, 1003), (601, 32_003)], ids=str)
def test_a_large_gradient_of_nll_loss_is_zero_but_at_the_targets(dtype, shape):
    """Beyond 32 MiB it goes past the caches by whole lines; at these sizes most runs begin and end inside of one."""
    x = torch.zeros(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    t = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=DEVICE)
    grad = torch.autograd.grad(torch.ops.lossreg.nll_loss(x, t, reduction="sum"), x)[0]
    assert grad.numel() * grad.element_size() >= 2**25
    assert torch.equal(grad, torch.zeros_like(grad).scatter_(1, t.unsqueeze(1), -1.0))
