"""torch.utils.flop_counter counts the products inside an op."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import opreg
from conftest import DEVICE, samples_of

# the ops whose definition multiplies matrices, or convolves
MULTIPLY = (
    *("linear_cross_entropy", "linear_log_prob", "coord_conv2d", "dynamic_conv2d"),
    *("clip_loss", "siglip_loss", "nt_xent_loss", "sup_con_loss"),
    "ssim_loss",
)


def counted(call, *inputs):
    with FlopCounterMode(display=False) as counter:
        result = call()
        torch.autograd.grad(result.sum(), inputs)
    return counter.get_total_flops()


def test_every_op(op):
    """An op counts where its definition does, and nowhere else."""
    sample = next(s for s in samples_of(op) if s.args[0].numel())
    counts = []
    for call in (op.value, op.call_reference):
        with FlopCounterMode(display=False) as counter:
            call(*sample.args, **sample.kwargs)
        counts.append(counter.get_total_flops() > 0)
    assert counts == [op.short in MULTIPLY] * 2


@pytest.mark.parametrize(
    "shape", [((6, 3), (5, 3), (6,)), ((6, 3), (5, 2, 3), (6, 2)), ((2, 3, 3), (5, 3), (2, 3))], ids=str
)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_linear_cross_entropy(shape, wanted):
    """What the layer and the loss apart count; a loss that is not reduced computes the scores twice."""
    x, w = (torch.randn(s, device=DEVICE).requires_grad_(g) for s, g in zip(shape, wanted, strict=False))
    target = torch.randint(5, shape[2], device=DEVICE)
    inputs = [t for t in (x, w) if t.requires_grad]
    scores = counted(lambda: F.linear(x, w.flatten(0, -2)).sum(), *inputs)
    assert scores == (1 + sum(wanted)) * 2 * x.numel() * w.shape[:-1].numel()
    for reduction, again in (("mean", 0), ("sum", 0), ("none", 2 * x.numel() * w.shape[:-1].numel())):
        loss = lambda r=reduction: opreg.functional.linear_cross_entropy(x, w, target, reduction=r)  # noqa: E731
        assert counted(loss, *inputs) == scores + again
    p = torch.rand(6, 5, device=DEVICE, requires_grad=True)
    if x.dim() == w.dim() == 2:
        loss = lambda: opreg.functional.linear_cross_entropy(x, w, p)  # noqa: E731
        assert counted(loss, *inputs, p) == scores + 2 * 6 * 5 * 3


def test_coord_conv2d():
    x, w = torch.randn(2, 3, 6, 5, device=DEVICE, requires_grad=True), torch.randn(4, 5, 3, 2, device=DEVICE)
    w.requires_grad_()
    for inputs in ((x, w), (x,), (w,)):
        for t in (x, w):
            t.requires_grad_(any(t is i for i in inputs))
        counts = [
            counted(lambda c=c: c(x, w, padding=1), *inputs) for c in (opreg.functional.coord_conv2d, with_places)
        ]
        assert counts[0] == counts[1] > 0


def with_places(x, w, padding):
    planes = torch.zeros(len(x), 2, *x.shape[2:], device=x.device)
    return F.conv2d(torch.cat([planes, x], 1), w, padding=padding)


def test_dynamic_conv2d():
    """As the same written with a product for the samples' kernels and one convolution, its samples as groups."""
    x, a = torch.randn(2, 3, 6, 5, device=DEVICE), torch.randn(2, 4, device=DEVICE)
    w, b = torch.randn(4, 7, 3, 3, 2, device=DEVICE), torch.randn(4, 7, device=DEVICE)
    convolution = 2 * (2 * 7 * 4 * 4) * 3 * 3 * 2
    kernels, biases = 2 * 2 * w.numel(), 2 * 2 * b.numel()
    op = opreg.functional.dynamic_conv2d
    with FlopCounterMode(display=False) as counter:
        op(x, a, w, b)
    assert counter.get_total_flops() == convolution + kernels + biases
    expected = {
        (0,): 2 * convolution + 2 * kernels,
        (1,): 2 * convolution + 3 * kernels + biases,
        (2,): 2 * convolution + 3 * kernels,
        (3,): convolution + 2 * kernels + biases,
        (0, 1, 2, 3): 3 * convolution + 4 * kernels + 2 * biases,
    }
    tensors = (x, a, w, b)
    for asked, count in expected.items():
        for k, t in enumerate(tensors):
            t.requires_grad_(k in asked)
        assert counted(lambda: op(*tensors), *(tensors[k] for k in asked)) == count + biases


def test_the_counter_is_not_imported():
    """It loads triton where there is one; and it knows the ops whichever is imported first."""
    code = """
import sys, {first}
assert {opreg_alone} or "torch.utils.flop_counter" in sys.modules
if {opreg_alone}:
    assert "torch.utils.flop_counter" not in sys.modules
import torch, torch.utils.flop_counter, opreg
assert all(getattr(torch.ops.lossreg, name) in torch.utils.flop_counter.flop_registry for name in {names})
"""
    kernels = torch.ops.lossreg_kernels.linear_cross_entropy  # the name in compiled code
    assert kernels in torch.utils.flop_counter.flop_registry
    for first in ("opreg", "torch.utils.flop_counter"):
        text = code.format(first=first, opreg_alone=first == "opreg", names=MULTIPLY)
        subprocess.run([sys.executable, "-c", text], check=True)
