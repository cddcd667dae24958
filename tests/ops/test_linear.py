"""linear_cross_entropy: chunks, the memory that they are for, and gradients that the forward pass keeps."""

import importlib
import math

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import opreg
from conftest import DEVICE, run_raw

OP = opreg.get("linear_cross_entropy")
linear_cross_entropy = torch.ops.lossreg.linear_cross_entropy


def by_hand(x, w, target, bias=None, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    """One row after the other, in Python's floats."""
    classes, losses, total = len(w), [], 0.0
    for row, t in zip(x.tolist(), target.tolist(), strict=True):
        scores = [math.fsum(a * b for a, b in zip(row, column, strict=True)) for column in w.tolist()]
        scores = [s + (bias[c].item() if bias is not None else 0) for c, s in enumerate(scores)]
        top = max(scores)
        lse = top + math.log(math.fsum(math.exp(s - top) for s in scores))
        factor = [1.0] * classes if weight is None else weight.tolist()
        if isinstance(t, list):
            share, part = [p * (1 - label_smoothing) + label_smoothing / classes for p in t], 1.0
        elif t == ignore_index:
            share, part = [0.0] * classes, 0.0
        else:
            share, part = (
                [(1 - label_smoothing) * (c == t) + label_smoothing / classes for c in range(classes)],
                factor[t],
            )
        losses.append(math.fsum(u * f * (lse - s) for u, f, s in zip(share, factor, scores, strict=True)))
        total += part
    if reduction == "none":
        return torch.tensor(losses, dtype=torch.float64)
    return torch.tensor(math.fsum(losses) / (total if reduction == "mean" else 1.0), dtype=torch.float64)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_by_hand(reduction, label_smoothing):
    x, w = torch.randn(7, 3, dtype=torch.float64, device=DEVICE), torch.randn(9, 3, dtype=torch.float64, device=DEVICE)
    indices = torch.tensor([0, 8, 4, 4, 2, 5, 1], device=DEVICE)
    probabilities = torch.rand(7, 9, dtype=torch.float64, device=DEVICE)
    for target in (indices, probabilities):
        options = {"reduction": reduction, "label_smoothing": label_smoothing}
        if target is indices:
            options["ignore_index"] = 4
        for bias in (None, torch.randn(9, dtype=torch.float64, device=DEVICE)):
            weight = None if bias is None else torch.rand(9, dtype=torch.float64, device=DEVICE)
            got = linear_cross_entropy(x, w, target, bias, weight, **options)
            torch.testing.assert_close(got.cpu(), by_hand(x, w, target, bias, weight, **options))


@pytest.mark.parametrize(
    ("classes", "reduction"), [(9, "none"), (9, "mean"), (9, "sum"), (100_000, "none"), (100_000, "mean")]
)
@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(("softcap", "z_loss"), [(2.0, 0.0), (0.0, 0.1), (2.0, 0.1)])
def test_bounds_are_those_of_cross_entropy(reduction, probabilities, softcap, z_loss, classes):
    """Of several chunks too, in whose mean the z-loss counts rows and the rest weighs them: value and gradients."""
    rows = 7 if classes == 9 else 4 if probabilities else 350
    dtype = torch.float64 if classes == 9 else torch.float32
    x = (2 * torch.randn(rows, 3, dtype=dtype, device=DEVICE)).requires_grad_()
    w = torch.randn(classes, 3, dtype=dtype, device=DEVICE, requires_grad=True)
    bias = torch.randn(classes, dtype=dtype, device=DEVICE, requires_grad=True)
    weight = 0.1 + torch.rand(classes, dtype=dtype, device=DEVICE)
    target = torch.randint(classes, (rows,), device=DEVICE)
    target[1] = -100
    inputs = [x, w, bias]
    if probabilities:
        target = torch.rand(rows, classes, dtype=dtype, device=DEVICE).softmax(1).requires_grad_()
        inputs += [target, weight.requires_grad_()]
    options = {"reduction": reduction, "label_smoothing": 0.1, "softcap": softcap, "z_loss": z_loss}
    got = linear_cross_entropy(x, w, target, bias, weight, **options)
    scores = torch.nn.functional.linear(x, w, bias)
    want = torch.ops.lossreg.cross_entropy(scores, target, weight, **options)
    torch.testing.assert_close(got, want)
    scale = torch.rand_like(got)
    for a, b in zip(*(torch.autograd.grad(loss, inputs, scale) for loss in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * b.abs().max().item())


def in_float64(x, w, target, bias, grad_loss):
    """Loss of each row, and the gradients for these gradients of the losses: 32 rows at a time."""
    x, w, bias = x.double(), w.double(), bias.double()
    losses, grad_x, grad_w, grad_bias = [], [], torch.zeros_like(w), torch.zeros_like(bias)
    for start in range(0, len(x), 32):
        rows = slice(start, start + 32)
        log_p = (x[rows] @ w.t() + bias).log_softmax(1)
        place = torch.arange(len(log_p), device=x.device), target[rows]
        losses.append(-log_p[place])
        slopes = log_p.exp()
        slopes[place] -= 1
        slopes *= grad_loss[rows, None]
        grad_x.append(slopes @ w)
        grad_w += slopes.t() @ x[rows]
        grad_bias += slopes.sum(0)
    return torch.cat(losses), torch.cat(grad_x), grad_w, grad_bias


@pytest.mark.parametrize(
    ("dtype", "reduction", "tolerance"),
    [(torch.float32, "mean", 2e-4), (torch.float32, "none", 2e-4), (torch.bfloat16, "mean", 2e-2)],
    ids=str,
)
def test_several_chunks(dtype, reduction, tolerance):
    """100 000 classes: a chunk is of at most 167 rows in float32, of 335 in bfloat16."""
    rows, features, classes = 350, 3, 100_000
    x = torch.randn(rows, features, device=DEVICE).to(dtype).requires_grad_()
    w = torch.randn(classes, features, device=DEVICE).to(dtype).requires_grad_()
    bias = torch.randn(classes, device=DEVICE).to(dtype).requires_grad_()
    target = torch.randint(classes, (rows,), device=DEVICE)
    grad_loss = torch.rand(rows, device=DEVICE) if reduction == "none" else torch.full((rows,), 1 / rows, device=DEVICE)
    losses, *want = in_float64(x.detach(), w.detach(), target, bias.detach(), grad_loss.double())
    loss = linear_cross_entropy(x, w, target, bias, reduction=reduction, dtype=torch.float32)
    expected = losses if reduction == "none" else losses.mean()
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance / 4, atol=tolerance / 4)
    got = torch.autograd.grad(loss, (x, w, bias), grad_loss if reduction == "none" else None)
    for g, e in zip(got, want, strict=True):
        assert g.dtype == dtype
        assert (g.double() - e).norm() <= tolerance * e.norm()


def in_torch():
    """torch's own samples of its function, those with options for chunks too."""
    database = importlib.import_module("torch.testing._internal.common_methods_invocations")
    return [entry for entry in database.op_db if entry.name == "nn.functional.linear_cross_entropy"]


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="a torch without the function")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_samples_of_torch(dtype):
    """Each of them: value and every gradient those of torch; in bfloat16 both against torch's float64."""
    seen = 0
    # the others differ by the options of torch's chunks, and by one more reduction
    for entry in in_torch()[: None if dtype == torch.float64 else 1]:
        for sample in entry.sample_inputs(DEVICE, dtype, requires_grad=True):
            options = {k: v for k, v in sample.kwargs.items() if k != "options"}
            arguments = [sample.input, *sample.args, *options.values()]
            inputs = [t for t in arguments if isinstance(t, Tensor) and t.requires_grad]
            loss = linear_cross_entropy(sample.input, *sample.args, **options)
            wide = {id(t): t.detach().double().requires_grad_() for t in inputs}
            args, options = torch.utils._pytree.tree_map_only(
                Tensor, lambda t, w=wide: w.get(id(t), t.double() if t.is_floating_point() else t),
                ((sample.input, *sample.args), options),
            )  # fmt: skip
            want = torch.nn.functional.linear_cross_entropy(*args, **options)
            scale = torch.rand(want.shape, dtype=dtype, device=DEVICE)
            got = [loss, *torch.autograd.grad(loss, inputs, scale)]
            expected = [want, *torch.autograd.grad(want, [wide[id(t)] for t in inputs], scale.double())]
            for g, e in zip(got, expected, strict=True):
                assert g.dtype == dtype
                assert g.shape == e.shape
                error = (g.double() - e).norm()
                assert error <= {8: 1e-12, 4: 1e-5, 2: 3e-2}[dtype.itemsize] * (1 + e.norm())
            seen += 1
    assert seen > 100


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="a torch without the function")
def test_error_inputs_of_torch():
    for entry in in_torch():
        for error in entry.error_inputs(DEVICE):
            call = error.sample_input
            with pytest.raises(RuntimeError, match=r"linear_cross_entropy: expected .*, got"):
                linear_cross_entropy(call.input, *call.args, **call.kwargs)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_every_leading_dimension_is_of_rows(reduction, probabilities):
    """(B, T, D), of any strides: what the rows give, in their shape."""
    x = torch.randn(3, 2, 4, device=DEVICE, dtype=torch.float64).transpose(0, 1).requires_grad_()
    w = torch.randn(4, 5, device=DEVICE, dtype=torch.float64).t().requires_grad_()
    target = torch.randint(5, (3, 2), device=DEVICE).t()
    if probabilities:
        target = torch.rand(3, 2, 5, device=DEVICE, dtype=torch.float64).transpose(0, 1).requires_grad_()
    of_rows = target.reshape(6, 5) if probabilities else target.reshape(6)
    inputs = [t for t in (x, w, target) if t.requires_grad]
    got = linear_cross_entropy(x, w, target, reduction=reduction)
    want = linear_cross_entropy(x.reshape(6, 4), w, of_rows, reduction=reduction)
    torch.testing.assert_close(got, want.reshape(2, 3) if reduction == "none" else want)
    scale = torch.rand_like(got)
    grads = torch.autograd.grad(want, inputs, scale.reshape(want.shape))
    torch.testing.assert_close(torch.autograd.grad(got, inputs, scale), grads)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
def test_memory_of_places():
    """The scores of all places, 262 MB, are there for a chunk of rows at a time."""
    rows, features, classes, places = 2048, 16, 4000, (2, 4)
    x, w = torch.randn(rows, features, requires_grad=True), torch.randn(classes, *places, features, requires_grad=True)
    target = torch.randint(classes, (rows, *places))
    gradients = x.nbytes + w.nbytes

    def step():
        return torch.autograd.grad(linear_cross_entropy(x, w, target), (x, w))

    assert peak(step) - gradients < (64 << 20) + gradients + 1_000_000


def peak(call) -> int:
    """The most bytes that were allocated at once during a call, beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = call()
    assert kept is not None
    live = most = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_memory(reduction):
    """Over inputs and gradients: a chunk of scores, and the gradients once more. The scores would be 262 MB."""
    rows, features, classes = 2048, 64, 32_000
    x, w = torch.randn(rows, features, requires_grad=True), torch.randn(classes, features, requires_grad=True)
    target = torch.randint(classes, (rows,))
    gradients = x.nbytes + w.nbytes

    def step():
        loss = linear_cross_entropy(x, w, target, reduction=reduction)
        return torch.autograd.grad(loss, (x, w), torch.ones_like(loss))

    assert peak(step) - gradients < (64 << 20) + gradients + 100_000
    with torch.no_grad():
        assert peak(lambda: linear_cross_entropy(x, w, target, reduction=reduction)) < (64 << 20) + 100_000


def inputs(**options) -> tuple[Tensor, ...]:
    x, w, bias = (torch.randn(s, device=DEVICE, requires_grad=True, **options) for s in ((6, 3), (5, 3), (5,)))
    return x, w, torch.tensor([0, 4, 2, 2, 1, 3], device=DEVICE), bias


def test_the_state_holds_what_will_be_asked_for():
    """The gradients of input, linear_weight and linear_bias, and the mean's denominator."""
    x, w, target, bias = inputs()
    sizes = {}
    for mask in ([True, True, False, True, False], [True, False, False, False, False], [False] * 5):
        for reduction in ("mean", "none"):
            with torch.no_grad():
                _, state = OP.forward(x, w, target, bias, reduction=reduction, needs_input_grad=mask)
            sizes[sum(mask), reduction] = state.numel()
    assert sizes == {
        (3, "mean"): 18 + 15 + 5 + 1, (1, "mean"): 18 + 1, (0, "mean"): 1,
        (3, "none"): 1, (1, "none"): 1, (0, "none"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_part_of_the_gradients_and_twice(reduction):
    """Less asked for than the forward pass was told, and a second backward pass over the same graph."""
    x, w, target, bias = inputs()
    loss = linear_cross_entropy(x, w, target, bias, reduction=reduction)
    scale = torch.ones_like(loss)
    together = torch.autograd.grad(loss, (x, w, bias), scale, retain_graph=True)
    for tensor, want in zip((x, w, bias), together, strict=True):
        (alone,) = torch.autograd.grad(loss, tensor, 2 * scale, retain_graph=True)
        torch.testing.assert_close(alone, 2 * want)


def test_autocast_product():
    """The product in the autocast dtype, the loss in float32; gradients come back in the inputs' own dtype."""
    x, w, target, bias = inputs()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = linear_cross_entropy(x, w, target, bias)
    low = [t.detach().bfloat16() for t in (x, w, bias)]
    assert torch.equal(loss, linear_cross_entropy(*low[:2], target, low[2], dtype=torch.float32))
    assert [g.dtype for g in torch.autograd.grad(loss, (x, w, bias))] == [torch.float32] * 3


def test_class_weights_are_constants_for_indices_only():
    x, w, target, _ = inputs()
    weight = torch.rand(5, device=DEVICE, requires_grad=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: expected weight that does not require grad"):
        linear_cross_entropy(x, w, target, None, weight)
    p = torch.rand(6, 5, device=DEVICE)
    got = torch.autograd.grad(linear_cross_entropy(x, w, p, None, weight), (x, w, weight))
    want = torch.autograd.grad(torch.nn.functional.cross_entropy(x @ w.t(), p, weight), (x, w, weight))
    for g, e in zip(got, want, strict=True):
        torch.testing.assert_close(g, e)


def test_ignored_rows_have_no_gradient():
    """All of them: the mean is NaN, the gradient 0."""
    x, w, target, bias = inputs()
    loss = linear_cross_entropy(x, w, torch.full_like(target, -100), bias)
    assert loss.isnan()
    assert all(not g.any() for g in torch.autograd.grad(loss, (x, w, bias)))


@pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")
def test_invalid_class_is_nan_on_a_gpu(emulated):
    emulated(1)
    x, w, target, _ = inputs()
    target[1], target[4] = 5, -1
    sample = opreg.Sample((x, w.detach(), target), {"reduction": "none"})
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, OP, sample)
    for t in (loss, grad[:, 0]):
        assert t.isnan().tolist() == [False, True, False, False, True, False]
