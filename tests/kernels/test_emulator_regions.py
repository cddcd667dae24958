"""The CUDA kernels over regions of pixels, in the emulator: each way that pixels can lie, and every kind of label."""

import pytest
import torch
from test_emulator import compare
from torch import Tensor

import opreg
from conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")

NAMES = ["dice_loss", "generalized_dice_loss", "lovasz_softmax_loss"]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def misaligned(t: Tensor) -> Tensor:
    """The same behind one element, so that no pack begins on its boundary."""
    flat = t.new_empty(t.numel() + 1)
    flat[1:] = t.flatten()
    return flat[1:].view(t.shape)


def classes_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2)


def every_second(t: Tensor) -> Tensor:
    return torch.stack([t, t], -1)[..., 0]


# 16 bytes of pixels from each class on, and sizes that no pack divides; more classes and fewer than a block has warps
SHAPES = [(2, 3, 8, 16), (1, 11, 4, 38), (2, 70, 8), (2, 5, 7, 9), (1, 1, 33, 33), (2, 1, 64, 40)]
LAYOUTS = [torch.clone, misaligned, classes_last, transposed, every_second]


def drawn(shape: tuple[int, ...], dtype: torch.dtype, label: torch.dtype = torch.int64) -> tuple[Tensor, Tensor]:
    x = torch.randn(shape).mul(3).to(dtype)
    t = torch.randint(0, shape[1] + 1, (shape[0], *shape[2:]))
    t[t == shape[1]] = 255  # ignored
    return x, t.to(label)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_layouts(emulated, name, shape, dtype):
    if name not in NAMES[:2] and shape[1] > 5:
        return  # its sort takes long here, plane by plane
    for layout in LAYOUTS:
        if len(shape) == 3 and layout is transposed:
            continue
        x, t = drawn(shape, dtype)
        x = layout(x).requires_grad_()
        if layout is not classes_last:
            t = layout(t)
        compare(emulated, opreg.get(name), opreg.Sample((x, t), {"ignore_index": 255}), TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("target", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 5, 7, 9), (2, 300)], ids=str)
def test_soft_targets_of_any_dtype(emulated, shape, target, dtype):
    uneven = ("tversky_loss", {"alpha": 0.2, "beta": 1.5, "gamma": 0.75})
    for name, own in (*(("dice_loss", {"p": p}) for p in (1.0, 2.0, 1.5)), uneven):
        x, y = torch.randn(shape).to(dtype).requires_grad_(), torch.rand(shape).to(target).requires_grad_()
        sample = opreg.Sample((x, y), {**own, "reduction": "none", "weight": torch.rand(shape[1]).to(dtype)})
        compare(emulated, opreg.get(name), sample, max(TOLERANCE[dtype], TOLERANCE[target]))


@pytest.mark.parametrize("label", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_labels_of_any_dtype(emulated, name, shape, label):
    x, t = drawn(shape, torch.float32, label)
    compare(emulated, opreg.get(name), opreg.Sample((x.requires_grad_(), t), {"ignore_index": 255}), 2e-6)


@pytest.mark.parametrize("label", [torch.int64, torch.int16, torch.bool, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 16), (2, 7, 9)], ids=str)
def test_binary_labels_of_any_dtype(emulated, shape, label):
    for layout in LAYOUTS[:2]:
        x, t = layout(torch.randn(shape)), torch.randint(0, 2, shape).to(label)
        compare(emulated, opreg.get("lovasz_hinge_loss"), opreg.Sample((x.requires_grad_(), t), {}), 2e-6)


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 3, 0), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("name", NAMES[:2])
def test_nothing_to_add_up(emulated, name, shape):
    """No sample, no pixel, none that counts."""
    x, t = torch.randn(shape).requires_grad_(), torch.full((shape[0], *shape[2:]), 255)
    for reduction in ("none", "mean", "sum"):
        compare(emulated, opreg.get(name), opreg.Sample((x, t), {"ignore_index": 255, "reduction": reduction}), 2e-6)


def test_more_classes_than_shared_memory_has_coefficients_for(emulated):
    x, t = drawn((1, 300, 8), torch.float32)
    sample = opreg.Sample((x.requires_grad_(), t), {"ignore_index": 255})
    compare(emulated, opreg.get("generalized_dice_loss"), sample, 2e-6)


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_what_ignored_pixels_hold_is_nothing(emulated, name, shape):
    for hold in (float("nan"), float("inf"), -float("inf")):
        x, t = drawn(shape, torch.float32)
        t[..., :3] = 255
        x[..., :2] = hold
        sample = opreg.Sample((x.requires_grad_(), t), {"ignore_index": 255})
        compare(emulated, opreg.get(name), sample, 2e-6)
        result = getattr(torch.ops.lossreg_emulated, name)(x.detach(), t, ignore_index=255)
        assert result.isfinite()


@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES[:2])
def test_an_invalid_class_is_nan_in_its_sample(emulated, name, shape):
    x, t = drawn(shape, torch.float32)
    t[t == 255] = 0
    t[1, 0, 1] = shape[1]
    loss = getattr(torch.ops.lossreg_emulated, name)(x, t, reduction="none")
    assert loss.isnan().tolist() == [False, True]


@pytest.mark.parametrize("scale", [1e4, 1e30, 3e38])
@pytest.mark.parametrize("shape", [(2, 3, 8, 16), (2, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_scores_far_apart(emulated, name, shape, scale):
    x, t = drawn(shape, torch.float32)
    x = (x.sign() * scale).requires_grad_()
    compare(emulated, opreg.get(name), opreg.Sample((x, t), {"ignore_index": 255}), 2e-6)


def test_chunks_of_several_tiles(emulated):
    """So many pixels that a chunk has more than a block's threads take at once."""
    x, t = drawn((1, 2, 1025, 513), torch.bfloat16)
    emulated(1)
    once = torch.ops.lossreg_emulated.generalized_dice_loss(x, t, ignore_index=255)
    torch.testing.assert_close(once, opreg.functional.generalized_dice_loss(x, t, ignore_index=255))
