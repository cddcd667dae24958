"""The pointwise CUDA kernels in the emulator: operands of every dtype, wherever they lie in memory."""

import itertools

import gpu_driver
import pytest
import torch
from test_emulator import compare
from torch import Tensor

import opreg
from conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")

FLOATING = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
DTYPES = [*FLOATING, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def tolerance(*dtypes: torch.dtype) -> float:
    return max(TOLERANCE.get(dtype, 0) for dtype in dtypes)


def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Numbers between 0 and 1, or 0 and 1 themselves."""
    x = torch.rand(shape, dtype=torch.float64)
    return x.to(dtype) if dtype.is_floating_point else (x > 0.5).to(dtype)


def begun_at(x: Tensor, elements: int) -> Tensor:
    """The same, so many elements behind a boundary of 16 bytes."""
    memory = torch.zeros(x.numel() + elements + 16, dtype=x.dtype)
    start = -(memory.data_ptr() // x.element_size()) % (16 // x.element_size()) + elements
    place = memory[start : start + x.numel()].view(x.shape)
    place.copy_(x)
    assert place.data_ptr() % 16 == elements * x.element_size() % 16
    return place


def with_grad(x: Tensor) -> Tensor:
    return x.detach().requires_grad_(x.is_floating_point())


# none fills a pack; one and more tiles, and what is over
@pytest.mark.parametrize("size", [1, 15, 257, 2049, 4101])
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_a_target_of_every_dtype(emulated, dtype, size):
    op = opreg.get("focal_loss")
    for position, target in enumerate(DTYPES):
        x = begun_at(draw((size,), dtype) - 0.5, position % 3)
        t = begun_at(draw((size,), target), (position + 1) % 4)
        sample = opreg.Sample((with_grad(x), t), {"reduction": "none" if position % 2 else "mean"})
        compare(emulated, op, sample, tolerance(dtype, target))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("elements", range(1, 8))
def test_one_dtype_that_begins_anywhere(emulated, dtype, elements):
    op = opreg.get("mse_loss")
    for size, reduction in itertools.product((3, 1031), ("none", "sum")):
        x, t = draw((size,), dtype), draw((size,), dtype)
        args = (with_grad(begun_at(x, elements)), with_grad(begun_at(t, elements // 2)))
        scale = size if reduction == "sum" else 1
        compare(emulated, op, opreg.Sample(args, {"reduction": reduction}), scale * tolerance(dtype))


SHAPE = (5, 37, 67)
# of a weight beside that: columns, rows, planes, one of all, all
BROADCAST = [(67,), (37, 1), (5, 1, 1), (1,), (5, 1, 67), SHAPE]


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("shape", BROADCAST, ids=str)
def test_weights_that_broadcast(emulated, dtype, shape):
    op = opreg.get("binary_cross_entropy_with_logits")
    layouts = itertools.cycle([torch.clone, gpu_driver.misaligned, gpu_driver.strided])
    for position, weight in enumerate(FLOATING):
        x, t = draw(SHAPE, dtype) - 0.5, draw(SHAPE, DTYPES[2 * position])
        weights = [draw(shape, weight), draw(BROADCAST[position], dtype)]
        args = (with_grad(next(layouts)(x)), t, *(next(layouts)(w) for w in weights))
        sample = opreg.Sample(args, {"reduction": "mean" if position % 2 else "none"})
        compare(emulated, op, sample, tolerance(dtype, weight, t.dtype))


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_operands_in_another_order_of_memory(emulated, dtype):
    """Elements one by one, of every size, in inputs and in gradients."""
    op = opreg.get("smooth_l1_loss")
    for target in FLOATING:
        for x, t in (
            (draw((9, 65, 8), dtype).permute(2, 0, 1), draw((8, 9, 65), target)),
            (draw((33, 130), dtype)[:, 1:66], draw((65, 33), target).t()),
        ):
            args = (with_grad(x), with_grad(t))
            for reduction in ("none", "mean"):
                compare(emulated, op, opreg.Sample(args, {"reduction": reduction}), tolerance(dtype, target))


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)], ids=str)
def test_sums_of_several_rounds_a_block(emulated, dtypes):
    """More packs, and more tiles, than a sum has blocks."""
    size = 4096 * 2048 + 5
    x, t = (torch.rand(size).to(dtype).requires_grad_(False) for dtype in dtypes)
    emulated(1)  # millions of threads: one order of them is enough
    torch.testing.assert_close(torch.ops.lossreg_emulated.l1_loss(x, t), torch.ops.lossreg.l1_loss(x, t))
