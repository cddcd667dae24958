"""Contrastive losses: definitions pair by pair, chunks, and the memory that they are for."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg
from conftest import DEVICE
from opreg.bench import peak_memory
from opreg.testing import Maker

ops = torch.ops.lossreg
NAMES = ("clip_loss", "siglip_loss", "nt_xent_loss", "sup_con_loss")
if missing := [n for n in NAMES if not hasattr(ops, n)]:
    pytest.skip(f"no {missing[0]} in this library", allow_module_level=True)


def normal(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return (scale * torch.randn(shape, dtype=torch.float64)).to(DEVICE, dtype).requires_grad_()


def log_sum(scores: list[Tensor]) -> Tensor:
    """log Σ eˣ, as 0 + log of a sum of shifted exponentials."""
    top = max(s.item() for s in scores)
    return top + sum((s - top).exp() for s in scores).log()  # type: ignore[union-attr]


def clip_by_hand(a: Tensor, b: Tensor, s: Tensor, reduction: str = "mean") -> Tensor:
    n = len(a)
    z = [[s * sum(x * y for x, y in zip(a[i], b[j], strict=True)) for j in range(n)] for i in range(n)]
    of_images = [log_sum(z[i]) - z[i][i] for i in range(n)]
    of_texts = [log_sum([z[j][i] for j in range(n)]) - z[i][i] for i in range(n)]
    losses = torch.stack([(x + y) / 2 for x, y in zip(of_images, of_texts, strict=True)])
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def siglip_by_hand(a: Tensor, b: Tensor, s: Tensor, c: Tensor) -> Tensor:
    total = torch.zeros((), dtype=a.dtype)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            z = s * (x * y).sum() + c
            total = total + torch.log(1 + torch.exp(-z if i == j else z))
    return total / len(a)


def direction(x: Tensor) -> Tensor:
    norm = math.sqrt(math.fsum(v * v for v in x.tolist()))
    if norm == 0:
        return torch.zeros_like(x)
    return x / (x * x).sum().sqrt() if norm > 1e-12 else x / 1e-12


def contrast_by_hand(vectors: list[Tensor], positives: list[list[int]], temperature: float) -> Tensor:
    x = [direction(v) for v in vectors]
    losses = []
    for i, own in enumerate(positives):
        if own:
            z = {j: (x[i] * x[j]).sum() / temperature for j in range(len(x)) if j != i}
            losses.append(log_sum(list(z.values())) - sum(z[p] for p in own) / len(own))
    return sum(losses) / len(losses)  # type: ignore[return-value]


def nt_xent_by_hand(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    n = len(a)
    return contrast_by_hand([*a, *b], [[(i + n) % (2 * n)] for i in range(2 * n)], temperature)


def sup_con_by_hand(x: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    of = labels.tolist()
    same = [[j for j, other in enumerate(of) if other == own and j != i] for i, own in enumerate(of)]
    return contrast_by_hand([*x], same, temperature)


CALLS = {
    "clip": (clip_by_hand, ops.clip_loss, lambda: (normal(6, 3), normal(6, 3), normal())),
    "siglip": (siglip_by_hand, ops.siglip_loss, lambda: (normal(6, 3), normal(6, 3), normal(), normal())),
    "nt_xent": (nt_xent_by_hand, ops.nt_xent_loss, lambda: (normal(5, 3), normal(5, 3))),
    "sup_con": (
        sup_con_by_hand,
        ops.sup_con_loss,
        lambda: (normal(8, 3), torch.tensor([0, 1, 2, 1, 0, 5, 1, 9], device=DEVICE)),
    ),
}


def with_gradients(call, args, **options) -> list[Tensor]:
    result = call(*args, **options)
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)
    wanted = [a for a in args if a.requires_grad]
    return [result.detach(), *torch.autograd.grad(result, wanted, weights.reshape(result.shape))]


@pytest.mark.parametrize("name", CALLS)
def test_by_hand(name):
    """Pair by pair: the value and each gradient."""
    by_hand, op, draw = CALLS[name]
    args = draw()
    options = [{"reduction": r} for r in ("none", "mean", "sum")] if name == "clip" else [{}]
    if name in ("nt_xent", "sup_con"):
        options = [{"temperature": t} for t in (0.07, 0.5, 3.0)]
    on_host = [a.detach().cpu().requires_grad_(a.requires_grad) for a in args]
    for each in options:
        got = with_gradients(op, args, **each)
        want = with_gradients(by_hand, on_host, **each)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g.cpu(), w, rtol=1e-11, atol=1e-12)


def test_as_their_authors_write_them():
    """open_clip's two losses, with its labels; SimCLR's with similarities of all and a mask; SupCon's of two views."""
    a, b, s, c = normal(7, 4), normal(7, 4), normal(), normal()
    x, y = F.normalize(a, dim=-1), F.normalize(b, dim=-1)
    logits, labels = s * x @ y.t(), torch.arange(7, device=DEVICE)
    clip = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2
    torch.testing.assert_close(ops.clip_loss(x, y, s), clip)
    signs = 2 * torch.eye(7, dtype=s.dtype, device=DEVICE) - torch.ones(7, dtype=s.dtype, device=DEVICE)
    torch.testing.assert_close(ops.siglip_loss(x, y, s, c), -F.logsigmoid(signs * (logits + c)).sum() / 7)

    views = torch.cat([a, b])
    cosines = F.cosine_similarity(views[:, None], views[None], dim=-1)
    cosines = cosines.masked_fill(torch.eye(14, dtype=torch.bool, device=DEVICE), -9e15) / 0.5
    own = torch.eye(14, dtype=torch.bool, device=DEVICE).roll(7, 0)
    nt_xent = (-cosines[own] + cosines.logsumexp(-1)).mean()
    torch.testing.assert_close(ops.nt_xent_loss(a, b), nt_xent)
    # two views of each of seven things, each thing a label of its own: the same loss
    torch.testing.assert_close(ops.sup_con_loss(views, labels.repeat(2), 0.5), nt_xent)


def drawn(name: str, n: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Arguments whose matrix of comparisons is (n, n), with products around 1."""
    sides, rows = (1 if name == "sup_con" else 2), (n // 2 if name == "nt_xent" else n)
    args = [normal(rows, d, dtype=dtype, scale=d**-0.25) for _ in range(sides)]
    numbers = {"clip": (2.0,), "siglip": (2.0, -3.0)}.get(name, ())
    args += [torch.tensor(v, dtype=dtype, device=DEVICE, requires_grad=True) for v in numbers]
    return [*args, torch.randint(500, (n,), device=DEVICE)] if name == "sup_con" else args


CASES = [(name, dtype) for name in CALLS for dtype in (torch.float32, torch.bfloat16)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_several_chunks(name, dtype):
    """A chunk of the CPU has 64 MB of float32; the emulator's are so small that the smallest call has several."""
    op, args = opreg.get(f"{name}_loss"), drawn(name, 4200, 8, dtype)
    exact = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in args]
    got = with_gradients(lambda *a: op.value(*a, dtype=torch.float32), args)
    want = with_gradients(op.call_reference, exact)
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w).norm() <= (1e-2 if dtype == torch.bfloat16 else 2e-5) * w.norm()


@pytest.mark.parametrize("name", CALLS)
def test_scores_of_bfloat16_are_not_rounded(name):
    """Of as many vectors that the CPU multiplies them in several parts."""
    op, args = opreg.get(f"{name}_loss"), [a.detach() for a in drawn(name, 1500, 32, torch.bfloat16)]
    exact = [a.double() if a.is_floating_point() else a for a in args]
    want = op.call_reference(*exact)
    assert (op.value(*args, dtype=torch.float32).double() - want).abs() <= 2e-5 * want.abs()


@pytest.mark.parametrize(("n", "d"), [(2, 1), (6, 63), (66, 64), (130, 515), (98, 1031)], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_products_of_bfloat16(name, n, d):
    """Products of a tile and more, of odd numbers of features, in layouts of all kinds: but for the result's rounding,
    value and gradients are those of float64."""
    op, drawn_args = opreg.get(f"{name}_loss"), drawn(name, n, d, torch.bfloat16)
    exact = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in drawn_args]
    want = with_gradients(op.call_reference, exact)

    def by_column(t: Tensor) -> Tensor:
        return t.detach().t().contiguous().t().requires_grad_() if t.dim() == 2 else t

    def with_gaps(t: Tensor) -> Tensor:
        return torch.stack([t.detach(), torch.full_like(t, torch.nan)], -1)[..., 0].requires_grad_() if t.dim() else t

    for layout in (by_column, with_gaps, Tensor.detach):
        args = [layout(a).requires_grad_() if a.is_floating_point() else a for a in drawn_args]
        for g, w in zip(with_gradients(lambda *a: op.value(*a, dtype=torch.float32), args), want, strict=True):
            assert (g.double() - w).abs().max() <= 2**-7 * w.abs().max()


@pytest.mark.parametrize("name", ["nt_xent", "sup_con"])
def test_gradients_of_bfloat16_among_like_vectors(name):
    """Vectors that share nearly all of their direction: what is left of a gradient without its part along its vector is
    small beside that part, and has bfloat16's digits nevertheless."""
    op = opreg.get(f"{name}_loss")
    args = drawn(name, 600, 48, torch.bfloat16)
    args = [(a.detach() * 0.1 + 1).requires_grad_() if a.is_floating_point() else a for a in args]
    exact = [a.detach().double().requires_grad_() if a.is_floating_point() else a for a in args]
    want = with_gradients(op.call_reference, exact)
    for g, w in zip(with_gradients(op.value, args), want, strict=True):
        assert (g.double() - w).norm() <= 2**-7 * w.norm()


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_memory(name, dtype):
    """A fifth more, at most, than linear_cross_entropy takes for as many rows and classes."""
    n, d, chunk = 5000, 256, 64 << 20
    op, args = opreg.get(f"{name}_loss"), drawn(name, n, d, dtype)
    wanted = [a for a in args if a.requires_grad]
    x, w = normal(n, d, dtype=dtype), normal(n, d, dtype=dtype)

    if hasattr(ops, "linear_cross_entropy"):
        target = torch.arange(n, device=DEVICE)
        most = peak_memory(lambda: torch.autograd.grad(ops.linear_cross_entropy(x, w, target), (x, w)))
    else:  # a library of this family alone: the chunk, the sums of the gradients in float32, and the gradients
        most = chunk + 4 * (x.numel() + w.numel()) + x.nbytes + w.nbytes
    assert peak_memory(lambda: torch.autograd.grad(op.value(*args), wanted)) <= 1.2 * most
    with torch.no_grad():
        assert peak_memory(lambda: op.value(*args)) <= 1.2 * chunk


@pytest.mark.parametrize("name", ["nt_xent", "sup_con"])
def test_the_length_of_vectors_does_not_count(name):
    """Where it is above 1e-12; a row of zeros has no direction, and gets no gradient."""
    _, op, draw = CALLS[name]
    first, *rest = draw()
    want = op(first, *rest)
    lengths = torch.logspace(-11, 30, len(first), dtype=first.dtype, device=DEVICE)
    torch.testing.assert_close(op(first * lengths[:, None], *rest), want)
    x = first.detach().clone()
    x[1] = 0
    x.requires_grad_()
    (grad,) = torch.autograd.grad(op(x, *rest), x)
    assert not grad[1].any()
    assert grad.isfinite().all()
    assert grad[0].norm() > 0
    assert (grad @ x.t()).diagonal().abs().max() < 1e-12


def test_labels_without_positives():
    """Such a vector counts for nothing but as one of the others; where all are, the loss and its gradient are 0."""
    x = normal(5, 3)
    got = with_gradients(ops.sup_con_loss, (x, torch.arange(5, device=DEVICE)))
    assert [t.abs().max().item() for t in got] == [0, 0]
    labels = torch.tensor([4, -(2**40), 4, -1, 2**62], device=DEVICE)
    want = with_gradients(sup_con_by_hand, (x, labels))
    for g, w in zip(with_gradients(ops.sup_con_loss, (x, labels)), want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_large_scores_keep_their_digits(name):
    """Scores of 1e4 in float32, whose differences are what counts."""
    x = torch.tensor([[100.0, 0.0], [0.0, 100.0], [70.0, 70.0]], device=DEVICE)
    y = torch.tensor([[100.0, 1.0], [1.0, 100.0], [71.0, 70.0]], device=DEVICE)
    numbers = [torch.tensor(v, device=DEVICE, requires_grad=True) for v in (1.0, -1e4)[: 1 + (name == "siglip")]]
    args = [x.requires_grad_(), y.requires_grad_(), *numbers]
    op = opreg.get(f"{name}_loss")
    want = with_gradients(op.call_reference, [a.detach().double().requires_grad_() for a in args])
    for g, w in zip(with_gradients(op.value, args), want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-5)


def test_numbers_of_python():
    """The functions take a number where the op takes a 0-d tensor."""
    a, b = normal(4, 3), normal(4, 3)
    scale, bias = torch.tensor(3.0, dtype=torch.float64, device=DEVICE), torch.tensor(-2.0, device=DEVICE)
    assert torch.equal(opreg.functional.clip_loss(a, b, 3.0), ops.clip_loss(a, b, scale))
    assert torch.equal(opreg.functional.siglip_loss(a, b, 3, logit_bias=-2), ops.siglip_loss(a, b, scale, bias))
    assert torch.equal(opreg.nn.CLIPLoss("sum")(a, b, 3.0), ops.clip_loss(a, b, scale, "sum"))
    assert torch.equal(opreg.nn.SigLipLoss()(a, b, scale, bias), ops.siglip_loss(a, b, scale, bias))
    assert torch.equal(opreg.nn.NTXentLoss(0.2)(a, b), ops.nt_xent_loss(a, b, 0.2))
    labels = torch.tensor([0, 1, 0, 1], device=DEVICE)
    assert torch.equal(opreg.nn.SupConLoss()(a, labels), ops.sup_con_loss(a, labels, 0.1))


def test_a_number_of_one_dimension():
    """As open_clip keeps its scale on demand: the error says what to pass."""
    a, b = normal(4, 3), normal(4, 3)
    with pytest.raises(RuntimeError, match=r"logit_scale of shape \[\], got \[1\]; pass logit_scale.squeeze\(\)"):
        ops.clip_loss(a, b, torch.ones(1, device=DEVICE))


@pytest.mark.parametrize("name", CALLS)
def test_autocast_product(name):
    """The product in the autocast dtype, the loss in float32; gradients come back in the features' own dtype."""
    op = opreg.get(f"{name}_loss")
    sample = next(iter(op.samples(Maker(torch.float32, DEVICE, requires_grad=True))))
    lowered = [a.detach().bfloat16() if n in op.lowered else a for n, a in zip(op.arguments, sample.args, strict=False)]
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = op.value(*sample.args, **sample.kwargs)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, op.value(*lowered, **sample.kwargs, dtype=torch.float32))
    wanted = [a for a in sample.args if a.requires_grad]
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(loss.sum(), wanted))
