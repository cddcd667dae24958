"""bfloat16 goes through the CPU's vector loops in words of two. What they give is what float32 gives, rounded: at odd
sizes, where words begin at odd elements, and whichever way the vectors run."""

import pytest
import torch
from torch import Tensor

import opreg
from conftest import DEVICE
from opreg.testing import Maker, joined, repeated, tensors_with_grad

ROWS = [
    "cross_entropy", "nll_loss", "softmax_focal_loss", "ohem_cross_entropy", "multi_margin_loss",
    "large_margin_softmax_loss", "arcface_loss", "amsoftmax_loss", "pc_softmax_cross_entropy", "poly1_cross_entropy",
]  # fmt: skip
BOXES = ["iou_loss", "giou_loss", "diou_loss", "ciou_loss", "eiou_loss", "siou_loss"]


def shifted(t: Tensor) -> Tensor:
    """The same, from an odd element of its memory on."""
    return torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)[1:].view(t.shape).copy_(t)


def compare(op: opreg.Op, sample: opreg.Sample) -> None:
    def run(convert):
        args = [convert(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in sample.args]
        inputs = [args[op.arguments.index(n)] for n in tensors_with_grad(op, sample)]
        result = joined(op.value(*args, **sample.kwargs))
        weights = (torch.arange(result.numel(), device=DEVICE) % 7 + 1).view(result.shape).to(result.dtype)
        return [result.detach(), *torch.autograd.grad(result, inputs, weights)]

    narrow = run(lambda a: shifted(a.detach()).requires_grad_(a.requires_grad))
    wide = run(lambda a: a.detach().float().requires_grad_(a.requires_grad))
    for got, want in zip(narrow, wide, strict=True):
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got, want.bfloat16(), rtol=2**-7, atol=float(want.abs().max()) * 1e-5)


def draw(*shape: int, least: float = -2.0, most: float = 2.0) -> Tensor:
    t = torch.rand(shape, device=DEVICE) * (most - least) + least
    return t.bfloat16().requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_samples(op, reduction):
    if op.lowered:
        pytest.skip("the matrix products round to bfloat16 in between")
    sample = next(iter(op.samples(Maker(torch.bfloat16, requires_grad=True))))
    args = repeated(op, sample, 20_011 if op.indices else 100_003 // sample.args[0].numel() * sample.args[0].shape[0])
    args = [a.detach().requires_grad_(s.requires_grad) if isinstance(a, Tensor) else a
            for a, s in zip(args, sample.args, strict=True)]  # fmt: skip
    compare(op, opreg.Sample(tuple(args), {**sample.kwargs, **({"reduction": reduction} if op.reduces else {})}))


@pytest.mark.parametrize("shape", [(5, 65), (3, 133), (2, 4099), (2, 19, 7, 33), (1, 8, 45, 47), (2, 3, 2051)], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_rows(name, shape):
    op = opreg.get(name)
    if name in ("multi_margin_loss", "large_margin_softmax_loss") and len(shape) > 2:
        pytest.skip("of rows (N, C) alone")
    target = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=DEVICE)
    prior = (torch.full((shape[1],), 1 / shape[1], device=DEVICE),) if name == "pc_softmax_cross_entropy" else ()
    x = draw(*shape, least=-0.9, most=0.9)
    if prior:  # a float32 prior would widen the result
        prior = (prior[0].bfloat16(),)
    compare(op, opreg.Sample((x, target, *prior), {}))
    compare(op, opreg.Sample((x, target, *prior), {"reduction": "none"}))
    if name == "cross_entropy":
        compare(op, opreg.Sample((x, target), {"label_smoothing": 0.1}))
        probabilities = torch.rand(shape, device=DEVICE).softmax(1).bfloat16()
        compare(op, opreg.Sample((x, probabilities), {"reduction": "none"}))


@pytest.mark.parametrize("shape", [(7, 17), (5, 131), (3, 2049)], ids=str)
@pytest.mark.parametrize("swap", [False, True])
def test_vectors(shape, swap):
    anchor, positive, negative = (draw(*shape) for _ in range(3))
    for name in ("triplet_margin_loss", "triplet_soft_margin_loss"):
        options = {"swap": swap} if name == "triplet_margin_loss" else {}
        compare(opreg.get(name), opreg.Sample((anchor, positive, negative), {"reduction": "none", **options}))
        constants = (anchor, positive.detach(), negative.detach())
        compare(opreg.get(name), opreg.Sample(constants, options))
    target = torch.tensor([1, -1] * shape[0], device=DEVICE)[: shape[0]]
    compare(opreg.get("cosine_embedding_loss"), opreg.Sample((anchor, positive, target), {"reduction": "none"}))
    compare(opreg.get("distillation_loss"), opreg.Sample((anchor, positive.detach()), {}))


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("both", [False, True])
def test_boxes(name, both):
    corners = [draw(4099, 2, least=0.0, most=8.0).detach() for _ in range(2)]
    boxes = [torch.cat([c, c + draw(4099, 2, least=1.0, most=4.0).detach()], 1).requires_grad_() for c in corners]
    if not both:
        boxes[1] = boxes[1].detach()
    compare(opreg.get(name), opreg.Sample(tuple(boxes), {"reduction": "none"}))
    compare(opreg.get(name), opreg.Sample(tuple(boxes), {}))


@pytest.mark.parametrize("name", ["swish", "hard_swish", "mish", "gelu", "quick_gelu", "relu_squared"])
def test_every_number(name):
    """Value and slope at each of the 65536 numbers: float64's, rounded, denormals too."""
    op = opreg.get(name)
    every = torch.arange(-(2**15), 2**15, device=DEVICE).to(torch.int16).view(torch.bfloat16)
    x, exact = every.clone().requires_grad_(), every.double().requires_grad_()
    got, want = op.value(x), op.value(exact)
    found = [got.detach(), *torch.autograd.grad(got.sum(), x)]
    wanted = [want.detach(), *torch.autograd.grad(want.sum(), exact)]
    # below 1e-36 an exponential may be 0; where a slope crosses 0, the last digit of a float is what is left of it
    for narrow, wide, least in zip(found, wanted, (1e-36, 2**-24), strict=True):
        rounded = wide.bfloat16()
        torch.testing.assert_close(narrow, rounded, rtol=2**-7, atol=least, equal_nan=True)
        tiny = every.abs() < 1e-30
        if DEVICE == "cpu":
            torch.testing.assert_close(narrow[tiny], rounded[tiny], rtol=2**-7, atol=2**-133)
