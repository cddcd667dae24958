"""Gated units: halves of one tensor are read where they are."""

import pytest
import torch

import opreg
from conftest import DEVICE
from opreg.bench import peak_memory

GATED = ("swiglu", "geglu", "reglu", "clamped_swiglu")
HALVES = {
    "side by side": lambda x: x.chunk(2, -1),
    "one after the other": lambda x: x.chunk(2, 0),
    "every other one": lambda x: (x[..., ::2], x[..., 1::2]),
}


@pytest.mark.skipif(DEVICE != "cpu", reason="counts the CPU's allocations")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("halves", HALVES)
@pytest.mark.parametrize("name", GATED)
def test_memory(name, halves, dtype):
    """The result, and of each half its gradient: no copy of a half, and no tensor that the backward pass keeps."""
    op = opreg.get(name).value
    gate, up = (half.detach().requires_grad_() for half in HALVES[halves](torch.randn(256, 2048).to(dtype)))
    incoming, a_half = torch.ones(gate.shape, dtype=dtype), gate.numel() * dtype.itemsize
    assert not (gate.is_contiguous() and halves != "one after the other")

    def step():
        return torch.autograd.grad(op(gate, up), (gate, up), incoming)

    step()
    assert peak_memory(step) < 3 * a_half + (1 << 14)
    assert peak_memory(lambda: torch.autograd.grad(op(gate, up.detach()), gate, incoming)) < 2 * a_half + (1 << 14)
    with torch.no_grad():
        assert peak_memory(lambda: op(gate, up)) < a_half + (1 << 14)


@pytest.mark.parametrize("halves", HALVES)
@pytest.mark.parametrize("name", GATED)
def test_halves_of_one_tensor(name, halves):
    """They give what copies of them give, and their gradients come together in the tensor that they are halves of."""
    op = opreg.get(name).value
    x = torch.randn(6, 10, dtype=torch.float64, device=DEVICE, requires_grad=True)
    copies = [half.detach().clone().requires_grad_() for half in HALVES[halves](x)]
    got, want = op(*HALVES[halves](x)), op(*copies)
    torch.testing.assert_close(got, want)
    (whole,) = torch.autograd.grad(got.square().sum(), x)
    for part, of_copy in zip(HALVES[halves](whole), torch.autograd.grad(want.square().sum(), copies), strict=True):
        torch.testing.assert_close(part, of_copy)
