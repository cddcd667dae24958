"""Every op of this package passes opreg's checks; and once by hand, against the formula."""

import math

import mylib
import pytest
import torch

import opreg

OPS = [op for op in opreg.registered() if op.qualname in mylib.library.ops]


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.short)
def test_checks(op):
    opreg.testing.check(op)


def test_by_hand():
    x, t = torch.tensor([1.0, -2.0], requires_grad=True), torch.tensor([1.0, 1.0])
    loss = torch.compile(mylib.charbonnier_loss)(x, t, reduction="sum", eps=4.0)
    assert loss.item() == pytest.approx(4 + 5)
    loss.backward()
    assert x.grad.tolist() == pytest.approx([0, -3 / 5])
    assert math.isclose(mylib.charbonnier_loss(x.detach(), t, eps=4.0).item(), 9 / 2)
