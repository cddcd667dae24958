"""The CUDA row kernels in the emulator: every way that a call can go, by strides, sizes and where tensors begin."""

import re
from collections.abc import Callable

import gpu_driver
import pytest
import torch
from test_emulator import compare
from torch import Tensor

import opreg
import row_losses
from conftest import DEVICE, run_raw

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
DTYPES = list(TOLERANCE)


def channels_last(t: Tensor) -> Tensor:
    return t.movedim(1, -1).contiguous().movedim(-1, 1)


def with_gaps(t: Tensor) -> Tensor:
    """Classes side by side, and rows that begin anywhere."""
    return torch.cat([t, t], 1)[:, 1 : 1 + t.shape[1]]


# The shape, how it lies in memory, the kernels that it is for: of the forward pass, and of the backward pass.
CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], str, str]] = {
    "a warp a row, one group": ((5, 72), torch.clone, "along", "along"),
    "a warp a row, rows begin anywhere": ((9, 333), torch.clone, "along", "along"),
    "a warp a row, many groups": ((4, 1023), torch.clone, "along", "along"),
    "a warp a row, scores misaligned": ((3, 150), gpu_driver.misaligned, "along", "any"),
    "a warp a row, gaps": ((3, 150), with_gaps, "along", "any"),
    "a warp a row, no dimension of rows": ((517,), torch.clone, "along", "along"),
    "a block a row": ((3, 1025), torch.clone, "along", "along"),
    "a block a row, many rows and groups": ((256, 5001), torch.clone, "along", "along"),
    "blocks share a row": ((3, 8193), torch.clone, "along", "along"),
    "blocks share a row of odd length": ((2, 20011), torch.clone, "along", "along"),
    "blocks share a row, misaligned": ((1, 12345), gpu_driver.misaligned, "along", "any"),
    "pixels, fewer than a tile": ((2, 19, 3, 8), torch.clone, "across", "across"),
    "pixels, a tile and a part": ((3, 5, 504), torch.clone, "across", "across"),
    "pixels, one class": ((2, 1, 16), torch.clone, "across", "across"),
    "pixels, many classes": ((2, 130, 8), torch.clone, "across", "across"),
    "pixels, an image that packs do not fill": ((2, 6, 5, 7), torch.clone, "any", "any"),
    "pixels, misaligned": ((2, 6, 16), gpu_driver.misaligned, "any", "any"),
    "rows beside each other": ((16, 70), lambda t: t.t().contiguous().t(), "across", "across"),
    "channels last": ((2, 19, 9, 11), channels_last, "any", "any"),
    "channels last, many classes": ((2, 75, 3, 5), channels_last, "along", "along"),
    "few classes": ((300, 10), torch.clone, "any", "any"),
    "few classes, in the same banks": ((130, 32), torch.clone, "any", "any"),
    "few classes, misaligned": ((257, 16), gpu_driver.misaligned, "any", "any"),
    "few classes, gaps": ((140, 7), with_gaps, "any", "any"),
    "two classes": ((1000, 2), torch.clone, "any", "any"),
    "one class": ((130, 1), torch.clone, "any", "any"),
    "one row of few classes": ((7,), torch.clone, "any", "any"),
    "classes apart": ((3, 100), gpu_driver.strided, "any", "any"),
    "no rows": ((0, 70), torch.clone, "along", ""),
}
LARGE = "a block a row, many rows and groups"


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    make = opreg.testing.Maker(dtype)
    classes = shape[min(1, len(shape) - 1)]
    rows = shape[:1] * (len(shape) > 1) + shape[2:]
    return layout(make.normal(*shape, scale=3.0)), make.index(classes, *rows, ignore=-100, dtype=torch.int64).long()


def ways(emulated) -> list[str]:
    names = (re.match(r"void lossreg::cuda::rows_(\w+?)<", symbol) for symbol in emulated.launched())
    return sorted(found[1] for found in names if found)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_ways(emulated, case, dtype):
    shape, layout, forward, backward = CASES[case]
    x, t = draw(shape, dtype, layout)
    if dtype == torch.float64:
        forward, backward = "any", backward and "any"
    small = case != LARGE
    if not small and dtype != torch.float32:
        pytest.skip("slow, and the same but for the size of a pack")
    calls = [("cross_entropy", {}), ("cross_entropy", {"reduction": "none"})][: 1 + small]
    small = small and dtype != torch.float16  # as bfloat16
    calls += [("cross_entropy", {"label_smoothing": 0.1, "weight": torch.rand(x.shape[t.dim() > 0])})] * small
    calls += [
        (name, row_losses.OPTIONS[name])
        for name in ("softmax_focal_loss", "poly1_cross_entropy", "amsoftmax_loss")
        if small
    ]
    calls += [(name, {}) for name in ("nll_loss", "pc_softmax_cross_entropy") if small]
    for options in ({"softcap": 2.0}, {"softcap": 2.0, "z_loss": 0.1, "label_smoothing": 0.1}, {"z_loss": 0.1}):
        calls += [("cross_entropy", {**options, "weight": torch.rand(x.shape[t.dim() > 0])})] * small
    for name, options in calls:
        args = row_losses.arguments(name, x.detach().requires_grad_(), t)
        if "weight" in options:
            args, options = (*args, options["weight"]), {k: v for k, v in options.items() if k != "weight"}
        emulated.forget()
        tolerance = TOLERANCE[dtype] * (20 if name == "amsoftmax_loss" and dtype.itemsize == 2 else 1)
        compare(emulated, opreg.get(name), opreg.Sample(args, options), tolerance)
        expected = [
            "forward_any" if name == "nll_loss" else f"forward_{forward}",
            f"grad_{backward}" if backward else "",
        ]
        assert ways(emulated) == sorted(filter(None, expected))


def test_a_warp_a_row_of_many_classes_where_rows_are_many(emulated):
    make = opreg.testing.Maker(torch.float32, requires_grad=True)
    sample = opreg.Sample((make.normal(512, 1030), make.index(1030, 512)), {"reduction": "none"})
    compare(emulated, opreg.get("cross_entropy"), sample, 5e-6)


@pytest.mark.parametrize("shape", [(6, 9), (5, 100), (3, 1500), (2, 9000), (2, 5, 16), (2, 5, 7)])
@pytest.mark.parametrize("target_dtype", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.bfloat16, torch.int64], ids=str)
def test_targets_and_weights_of_any_dtype(emulated, shape, target_dtype, weight_dtype):
    x, t = draw(shape, torch.float32, torch.clone)
    t = t.clamp(0, 4).to(target_dtype)
    weight = None if weight_dtype is None else (torch.rand(2 * shape[1]) * 4).to(weight_dtype)[::2]
    for smoothing in (0.0, 0.2):
        options = {"label_smoothing": smoothing, "ignore_index": 1}
        compare(emulated, opreg.get("cross_entropy"), opreg.Sample((x.requires_grad_(), t, weight), options), 5e-6)


@pytest.mark.parametrize("shape", [(6, 9), (5, 104), (5, 101), (3, 1500), (2, 9000), (2, 5, 16), (2, 5, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["alike", "misaligned", "of float32"])
def test_probabilities(emulated, shape, dtype, layout):
    x, _ = draw(shape, dtype, torch.clone)
    share = torch.rand(shape, dtype=torch.float64).softmax(1).to(torch.float32 if layout == "of float32" else dtype)
    share = gpu_driver.misaligned(share) if layout == "misaligned" else share
    for smoothing, weight in ((0.0, None), (0.1, torch.rand(shape[1], dtype=torch.float32))):
        args = (x.detach().requires_grad_(), share.detach().requires_grad_(), weight)
        if weight is not None:
            weight.requires_grad_()
        sample = opreg.Sample(args, {"label_smoothing": smoothing})
        compare(emulated, opreg.get("cross_entropy"), sample, TOLERANCE[dtype])


EXTREMES = ("nan", "inf", "-inf", "lowest", "highest", "all lowest", "large")


@pytest.mark.parametrize("shape", [(10, 9), (10, 100), (10, 1500), (10, 9001), (10, 5, 16), (10, 5, 7)])
@pytest.mark.parametrize("name", ["cross_entropy", "smoothed", "softmax_focal_loss", "pc_softmax_cross_entropy"])
def test_extremes(emulated, name, shape):
    """A row of its own for each; the others keep their values."""
    x, t = draw(shape, torch.float32, torch.clone)
    t = t.clamp(min=0)
    limits = torch.finfo(torch.float32)
    for row, kind in enumerate(EXTREMES):
        value = {"lowest": limits.min, "highest": limits.max, "large": 3e4}.get(kind.removeprefix("all "))
        value = float(kind.removeprefix("all ")) if value is None else value
        if kind.startswith("all "):
            x[row] = value
        else:
            x[row, shape[1] // 2] = value
    x[9, 0] = torch.nan
    t[9] = -100
    options = {"label_smoothing": 0.1} if name == "smoothed" else {}
    name = "cross_entropy" if name == "smoothed" else name
    args = row_losses.arguments(name, x.requires_grad_(), t)
    compare(emulated, opreg.get(name), opreg.Sample(args, {**options, "reduction": "none"}), 5e-6)


@pytest.mark.parametrize("name", row_losses.NAMES)
@pytest.mark.parametrize("shape", [(4, 70), (4, 1500), (4, 9000), (4, 5, 8), (4, 5, 3)])
def test_an_unknown_class_is_nan_and_no_more(emulated, name, shape):
    x, t = draw(shape, torch.float32, torch.clone)
    t = t.clamp(min=0)
    x = (x / 20).requires_grad_()
    t[1], t[2] = shape[1], -1
    emulated(1)
    options = {**row_losses.OPTIONS[name], "reduction": "none"}
    sample = opreg.Sample(row_losses.arguments(name, x, t), options)
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, row_losses.op_of(name), sample)
    assert loss.reshape(4, -1).isnan().all(1).tolist() == [False, True, True, False]
    assert grad.reshape(4, -1).isnan().all(1).tolist() == [False, True, True, False]
    assert grad[[0, 3]].isfinite().all()


@pytest.mark.parametrize("shape", [(4, 9), (4, 70), (4, 1500), (4, 9000), (4, 5, 8), (4, 5, 3)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_row_of_minus_infinity_is_nan_and_no_more(emulated, shape, smoothing):
    """What its state holds is another matter: backends write down differently that there is no log-sum-exp."""
    x, t = draw(shape, torch.float32, torch.clone)
    t = t.clamp(min=0)
    x[1] = -torch.inf
    emulated(1)
    sample = opreg.Sample((x.requires_grad_(), t), {"label_smoothing": smoothing, "reduction": "none"})
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, opreg.get("cross_entropy"), sample)
    assert loss.reshape(4, -1).isnan().all(1).tolist() == [False, True, False, False]
    assert grad.reshape(4, -1).isnan().all(1).tolist() == [False, True, False, False]
    assert grad[[0, 2, 3]].isfinite().all()
