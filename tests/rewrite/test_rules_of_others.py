"""An op of somebody's own is found in programs by what its reference says, without a rule."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import opreg
from opreg import registry

_names = itertools.count()


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))  # each test finds no other's ops


def register(reference, shape=None, least=0.0):
    """Its kernel is the reference, behind a check of its number."""

    def kernel(input, target, reduction="mean", eps=1e-3):
        if eps <= least:
            raise RuntimeError(f"expected eps > {least}, got {eps}")
        return reference(input, target, reduction, eps)

    return opreg.register(
        opreg.Op(
            name=f"found::op_{next(_names)}",
            reference=reference,
            shape=shape or opreg.meta.broadcast("input", "target"),
            schema='(Tensor input, Tensor target, str reduction="mean", float eps=0.001) -> Tensor',
            kernels={"CPU": kernel}, samples=lambda make: iter(()), errors=lambda make: iter(()), source="a test",
        )
    )  # fmt: skip


def reduced(loss, reduction):
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def multiquadric(input, target, reduction="mean", eps=1e-3):
    """The inverse one, which no op of ours computes."""
    return reduced(((input - target) ** 2 + eps**2).rsqrt(), reduction)


def log_cosh(input, target, reduction="mean", eps=1e-3):
    return reduced(torch.log(torch.cosh(eps * (input - target))), reduction)


def product(input, target, reduction="mean", eps=1e-3):
    return reduced(input * target * eps, reduction)


def fused(program, *shapes):
    class Program(torch.nn.Module):
        def forward(self, x, t):
            return program(x, t)

    inputs = tuple(torch.randn(shape) for shape in shapes or ((3, 4), (3, 4)))
    new, report = opreg.fuse(torch.export.export(Program(), inputs))
    torch.testing.assert_close(new.module()(*inputs), program(*inputs))
    return [swap.op for swap in report.swapped], [left.why for left in report.left]


@pytest.mark.parametrize(
    ("reference", "program"),
    [
        (multiquadric, lambda x, t: ((x - t) ** 2 + 0.01**2).rsqrt().mean()),
        (multiquadric, lambda x, t: 1 / torch.sqrt((t - x).square() + 1e-6)),
        (multiquadric, lambda x, t: (1e-6 + (x - t) * (x - t)).rsqrt().sum()),
        (log_cosh, lambda x, t: (1.5 * x - 1.5 * t).cosh().log().sum()),
    ],
)
def test_a_twin_is_found(reference, program):
    op = register(reference)
    assert fused(program) == ([op.short], [])


def test_what_it_refuses_is_left():
    register(multiquadric, opreg.meta.same("input", "target"))
    assert fused(lambda x, t: ((x - t) ** 2 + 1e-6).rsqrt(), (3, 4), (4,))[0] == []


def test_a_number_that_it_refuses_is_left():
    register(multiquadric, least=1.0)
    swapped, left = fused(lambda x, t: ((x - t) ** 2 + 0.25).rsqrt())
    assert (swapped, left) == ([], ["expected eps > 1.0, got 0.5"])


def test_arithmetic_is_nobodys():
    register(product)
    assert fused(lambda x, t: x * t * 2.0) == ([], [])


def test_the_compile_backend_finds_it_too():
    op = register(multiquadric)
    x, t = torch.randn(3, 4), torch.randn(3, 4)
    compiled = torch.compile(lambda x, t: F.relu(((x - t) ** 2 + 1e-4).rsqrt().mean()), backend="opreg")
    torch.testing.assert_close(compiled(x, t), ((x - t) ** 2 + 1e-4).rsqrt().mean())
    assert [swap.op for swap in opreg.last_report(compiled).swapped] == [op.short]
