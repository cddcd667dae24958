"""Averages of a model's tensors over time."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..meta.rules import Arguments
from ..meta.sizes import dtype_text, fail, same_shape, shape_text
from ..op import ErrorSample, Op, Sample
from ..registry import register
from ..testing import Maker


def ema_update_(averages: Sequence[Tensor], params: Sequence[Tensor], decay: float) -> list[Tensor]:
    """Exponential moving average of many tensors, in place, in one call.

    The average of a model's weights is often better than the weights; this is its step after each step of the
    optimizer. Integers and bools, such as counters, are copied. Everything is checked before anything is written.

    Args:
        averages: the tensors to update: float64, float32, bfloat16, float16, integer or bool, of any strides. Outside
            of ``torch.no_grad()``, none may require grad.
        params: as many tensors, each of the shape, dtype and device of its average. They are constants. No element of
            an average may be in memory that it shares with another tensor of the call; with its own parameter, it may
            share all.
        decay: in [0, 1], the average's part.

    Returns:
        Nothing.

    Raises:
        RuntimeError: lists, shapes, dtypes or devices do not fit, averages share memory with another tensor or
            require grad, or ``decay`` is out of range.

    Formula:
        average ← decay·average + (1 − decay)·param, in float32 (float64)

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> averages = [p.detach().clone() for p in model.parameters()]
        >>> opreg.functional.ema_update_(averages, list(model.parameters()), decay=0.999)
    """
    return [average(a, p.detach(), decay) for a, p in zip(averages, params, strict=True)]


def average(a: Tensor, p: Tensor, decay: float) -> Tensor:
    if not a.is_floating_point():
        return p
    compute = torch.promote_types(a.dtype, torch.float32)
    return (decay * a.to(compute) + (1 - decay) * p.to(compute)).to(a.dtype)


def pairs(op: str, args: Arguments) -> Sequence[int]:
    """The kernels' checks, but for those of addresses, which a fake tensor does not have."""
    averages, params, decay = args["averages"], args["params"], args["decay"]
    if not 0 <= decay <= 1:
        raise fail(op, "decay in [0, 1]", decay)
    if len(averages) != len(params):
        raise fail(op, "as many averages as params", len(averages), len(params))
    for i, (a, p) in enumerate(zip(averages, params, strict=True)):
        if not same_shape(a.shape, p.shape):
            raise fail(op, f"params[{i}] of the shape of averages[{i}]", shape_text(a), shape_text(p))
        if a.is_complex():
            raise fail(op, f"averages[{i}] of a real dtype", dtype_text(a.dtype))
        if a.dtype != p.dtype:
            raise fail(op, f"params[{i}] of the dtype of averages[{i}]", dtype_text(a.dtype), dtype_text(p.dtype))
        if a.device != p.device or a.device.type != averages[0].device.type:
            raise fail(op, "all tensors on one device", a.device, p.device)
        if any(step == 0 and size > 1 for step, size in zip(a.stride(), a.shape, strict=True)):
            raise fail(op, f"averages[{i}] whose elements share no memory", f"strides {list(a.stride())}")
    return ()


def samples(make: Maker) -> Iterator[Sample]:
    def of(*tensors: Tensor) -> list[Tensor]:
        return [make.constant(t) for t in tensors]

    averages, params = of(make.normal(3, 2), make.normal(5)), of(make.normal(3, 2), make.normal(5))
    yield Sample((averages, params, 0.9))
    counters, bits = make.index(9, 2), make.bits(3).bool()
    mixed = of(make.normal(), make.normal(0, 2), make.normal(2, 3, 4).transpose(0, 2))
    others = of(make.normal(), make.normal(0, 2), make.normal(4, 3, 2))
    yield Sample(([*mixed, counters, bits], [*others, counters + 1, ~bits], 0.5), name="integers, empty, strides")
    for decay in (0.0, 1.0):
        yield Sample((of(make.normal(4)), of(make.normal(4)), decay), name=f"decay {decay:.0f}")
    yield Sample(([], [], 0.5), name="no tensors")


def errors(make: Maker) -> Iterator[ErrorSample]:
    op = "ema_update_"
    a, b = make.constant(make.normal(2, 3)), make.constant(make.normal(2, 3))
    for decay in (-0.1, 1.5, float("nan")):
        yield ErrorSample(([a], [b], decay), f"{op}: expected decay in \\[0, 1\\], got")
    yield ErrorSample(([a], [b, b], 0.5), f"{op}: expected as many averages as params, got 1 and 2")
    message = f"{op}: expected params\\[1\\] of the shape of averages\\[1\\], got \\[2, 3\\] and \\[3, 2\\]"
    yield ErrorSample(([b, a], [a, b.mT], 0.5), message)
    message = f"{op}: expected params\\[0\\] of the dtype of averages\\[0\\], got float64 and float32"
    yield ErrorSample(([a], [b.float()], 0.5), message)
    complex_pair = ([a.to(torch.complex64)], [b.to(torch.complex64)], 0.5)
    yield ErrorSample(complex_pair, f"{op}: expected averages\\[0\\] of a real dtype, got complex64")
    message = f"{op}: expected averages\\[0\\] whose elements share no memory, got strides \\[0, 1\\]"
    yield ErrorSample(([a[0].expand(2, 3)], [b], 0.5), message)
    windows = a.flatten().as_strided((2, 3), (1, 1))
    yield ErrorSample(
        ([windows], [b], 0.5), message.replace("0, 1\\]", "1, 1\\]").replace("s\\[1", "s\\[0"), values=True
    )
    apart = f"{op}: expected averages that share no memory with another tensor of the call, got"
    other = [make.constant(make.normal(2, 3)) for _ in range(3)]
    yield ErrorSample(([a, b, a], other, 0.5), f"{apart} averages\\[0\\] and averages\\[2\\]", values=True)
    yield ErrorSample(([a, b], [other[0], a], 0.5), f"{apart} averages\\[0\\] and params\\[1\\]", values=True)
    line, others = make.constant(make.normal(5)), [make.constant(make.normal(4)) for _ in range(2)]
    yield ErrorSample(([line[:4], line[1:]], others, 0.5), f"{apart} averages\\[0\\] and averages\\[1\\]", values=True)
    yield ErrorSample(([line[1:]], [line[:4]], 0.5), f"{apart} params\\[0\\] and averages\\[0\\]", values=True)


register(
    Op(
        "ema_update_",
        reference=ema_update_,
        shape=pairs,
        samples=samples,
        errors=errors,
        source="Polyak and Juditsky 1992",
    )
)
