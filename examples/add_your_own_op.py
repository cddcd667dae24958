"""An op of your own, from nothing: a schema, a kernel, a definition; opreg attaches the rest.

The log-cosh loss, log cosh(x - t), quadratic near zero and linear far away. The kernel below is Python; one from a
library of yours works the same (load the library first and leave out schema= and kernels=).

    python examples/add_your_own_op.py
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

import opreg
from opreg import ErrorSample, Op, Sample, meta
from opreg.testing import Maker


def log_cosh_loss(input: Tensor, target: Tensor, reduction: str) -> Tensor:
    """The definition: tests, derivatives of higher order, vmap and export's decomposition come from it."""
    d = input - target
    near = d.abs() < 1
    small = torch.log1p(2 * torch.sinh(torch.where(near, d, 0.0) / 2) ** 2)  # which keeps its digits near 0
    large = d.abs() + torch.log1p(torch.exp(-2 * d.abs())) - math.log(2)
    loss = torch.where(near, small, large)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def kernel(input: Tensor, target: Tensor, reduction: str = "mean", *, dtype: torch.dtype | None = None) -> Tensor:
    """What runs. Here it is ATen again; yours may be numpy, Triton, a compiled library."""
    wide = torch.promote_types(torch.result_type(input, target), torch.float32)
    result = log_cosh_loss(input.to(wide), target.to(wide), reduction)
    return result.to(dtype or torch.result_type(input, target))


def samples(make: Maker) -> Iterator[Sample]:
    """Calls that opreg.testing.check tries in every way."""
    for reduction in ("none", "mean", "sum"):
        yield Sample((make.normal(3, 4), make.normal(3, 4)), {"reduction": reduction})


def errors(make: Maker) -> Iterator[ErrorSample]:
    """Calls that must fail, with their message."""
    message = r"log_cosh_loss: expected target of the shape of input, got \[3\] and \[4\]"
    yield ErrorSample((make.normal(3), make.normal(4)), message)


log_cosh = opreg.register(
    Op(
        name="mylib::log_cosh_loss",
        schema='(Tensor input, Tensor target, str reduction="mean", *, ScalarType? dtype=None) -> Tensor',
        kernels={"CPU": kernel, "CUDA": kernel},
        reference=log_cosh_loss,
        shape=meta.same("input", "target"),
        samples=samples,
        errors=errors,
        source="log cosh, as in robust regression",
    )
)


def main() -> None:
    x, t = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    loss = torch.ops.mylib.log_cosh_loss(x, t)
    (gradient,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(gradient, torch.tanh(x - t).detach() / x.numel())

    compiled = torch.compile(torch.ops.mylib.log_cosh_loss, fullgraph=True)
    torch.testing.assert_close(compiled(x, t), loss)

    hessian = torch.func.hessian(lambda x: torch.ops.mylib.log_cosh_loss(x, t, reduction="sum"))(x.detach())
    torch.testing.assert_close(hessian.reshape(12, 12).diagonal(), (1 - torch.tanh(x - t) ** 2).detach().reshape(12))

    with torch.autocast("cpu"):
        assert torch.ops.mylib.log_cosh_loss(x.bfloat16(), t.bfloat16()).dtype == torch.float32

    opreg.testing.check(log_cosh)
    print("mylib::log_cosh_loss: gradient, compile, hessian, autocast and every check of opreg.testing passed")


if __name__ == "__main__":
    main()
