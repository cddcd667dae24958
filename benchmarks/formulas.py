"""Ten formulas as Python functions, against the same by hand in C++ (formulas_by_hand.h) and Inductor's code for them.

    python benchmarks/formulas.py [elements]

One thread, float32, forward and backward, the least of fifteen times in milliseconds.
"""

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import opreg

# Compiles one of them, by its name.
TEN: dict[str, Callable[[], Any]] = {}


def later(kind: Callable[..., Any], **options: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """The decorator ``kind``, once somebody calls what TEN has."""

    def note(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        TEN[function.__name__] = lambda: kind("formulas", **options)(function)
        return function

    return note


@later(opreg.pointwise, domain={"eps": "> 0"})
def charbonnier_loss(input: Tensor, target: Tensor, *, eps: float = 1e-3) -> Tensor:
    return ((input - target) ** 2 + eps**2).sqrt()


@later(opreg.pointwise)
def log_cosh_loss(input: Tensor, target: Tensor) -> Tensor:
    d = input - target
    return d + F.softplus(-2 * d) - math.log(2)


@later(opreg.pointwise, domain={"tau": "in [0, 1]"})
def pinball_loss(input: Tensor, target: Tensor, *, tau: float = 0.5) -> Tensor:
    d = target - input
    return torch.maximum(tau * d, (tau - 1) * d)


@later(opreg.pointwise, domain={"width": "> 0", "curvature": "> 0"})
def wing_loss(input: Tensor, target: Tensor, *, width: float = 5.0, curvature: float = 0.5) -> Tensor:
    d = (input - target).abs()
    c = width - width * math.log(1 + width / curvature)
    return torch.where(d < width, width * torch.log(1 + d / curvature), d - c)


@later(opreg.pointwise)
def tanh_gelu(input: Tensor) -> Tensor:
    return 0.5 * input * (1 + torch.tanh(math.sqrt(2 / math.pi) * (input + 0.044715 * input**3)))


@later(opreg.pointwise, domain={"beta": "> 0"})
def softplus_beta(input: Tensor, *, beta: float = 1.0) -> Tensor:
    return torch.log(1 + torch.exp(beta * input)) / beta


@later(opreg.pointwise, domain={"gamma_pos": ">= 0", "gamma_neg": ">= 0", "clip": "in [0, 1)", "target": "in [0, 1]"})
def asymmetric_focal_loss(
    input: Tensor, target: Tensor, *, gamma_pos: float = 1.0, gamma_neg: float = 4.0, clip: float = 0.05
) -> Tensor:
    p = torch.sigmoid(input)
    q = (1 - p + clip).clamp(max=1)
    return -(
        target * (1 - p) ** gamma_pos * torch.log(p)
        + (1 - target) * (1 - q) ** gamma_neg * torch.log(q.clamp(min=1e-8))
    )


@later(opreg.row, domain={"q": "in (0, 1]"})
def generalized_cross_entropy(nll: Tensor, *, q: float = 0.7) -> Tensor:
    return (1 - torch.exp(-nll) ** q) / q


@later(opreg.row)
def poly1_loss(nll: Tensor, *, eps: float = 1.0) -> Tensor:
    return nll + eps * (1 - torch.exp(-nll))


@later(opreg.pointwise, domain={"c": "> 0"})
def welsch_loss(input: Tensor, target: Tensor, *, c: float = 1.0) -> Tensor:
    return c**2 / 2 * (1 - torch.exp(-(((input - target) / c) ** 2)))


def least(call: Callable[[], object]) -> float:
    times = []
    for _ in range(18):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times[3:])


def main(elements: int) -> None:
    torch.set_num_threads(1)
    opreg.build(Path(__file__).with_name("formulas_by_hand.h"), namespace="by_hand")
    ratios = []
    for made in TEN.values():
        op = made().op
        fields = {"indices": op.indices, "state": op.state, "batch_dims": op.batch_dims}
        hand = opreg.register(
            opreg.Op(f"by_hand::{op.short}", op.reference, op.shape, op.samples, op.errors, "by hand", **fields)
        )
        rows = "target" in op.indices
        args = [torch.randn(elements // 64, 64) if rows else torch.randn(elements, requires_grad=True)]
        args[0].requires_grad_()
        if len(op.tensor_arguments) > 1:
            args.append(torch.randint(64, (elements // 64,)) if rows else torch.rand(elements).round())
        options = {n: v for n, v in op.defaults.items() if n != "dtype" and n not in op.tensor_arguments}

        def reference(*args: Tensor, op: opreg.Op = op, options: dict[str, object] = options) -> Tensor:
            return op.reference(**dict(zip(op.tensor_arguments, args, strict=False)), **options)

        def step(call: Callable[..., Tensor], args: list[Tensor] = args) -> float:
            return least(lambda: torch.autograd.grad(call(*args).sum(), args[0]))

        torch._dynamo.reset()  # all references share the code of one function, which is compiled so many times at most
        ours, theirs, inductor = step(op.value), step(hand.value), step(torch.compile(reference))
        ratios.append(ours / theirs)
        print(f"{op.short:28} {ours:8.3f}  by hand {theirs:8.3f} ({ours / theirs:.2f})  Inductor {inductor:8.3f}")
    print(f"geometric mean {math.exp(sum(map(math.log, ratios)) / len(ratios)):.3f}, worst {max(ratios):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1 << 20)
