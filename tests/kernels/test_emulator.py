"""The CUDA kernels themselves, on the CPU: the text of csrc compiled over tests/kernels/emulator/cuda_emulator.h."""

import itertools
import re

import gpu_driver
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import opreg
import row_losses
from conftest import DEVICE, ROOT, new_memory_filled, run_raw, samples_of
from opreg._private import names_in
from opreg.meta.schema import bind
from opreg.registry import of_namespace
from opreg.testing import tensors_with_grad

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")


CSRC = ROOT / "csrc"
KERNEL = r"__global__\s+void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\("


def test_every_op_is_emulated(emulated):
    assert names_in("lossreg_emulated") == names_in("lossreg")


def test_every_cuda_kernel_is_emulated(emulated):
    """Each ``__global__`` function of csrc was launched while the ops' samples ran."""
    text = "".join(file.read_text() for file in sorted(CSRC.rglob("*.*")))
    kernels = re.findall(KERNEL, text)
    assert len(kernels) == text.count("__global__")  # in a form that KERNEL knows
    emulated.forget()
    for op in of_namespace():
        for sample in samples_of(op, dtype=torch.float32, requires_grad=not op.mutated):
            if not op.mutated:
                run_raw(torch.ops.lossreg_emulated, op, sample)
            elif sample.args[0]:  # a list; an empty one belongs to no device
                getattr(torch.ops.lossreg_emulated, op.short)(*sample.args, **sample.kwargs)
    launched = (re.match(r"void lossreg::cuda::(\w+)", symbol) for symbol in emulated.launched())
    assert {found and found[1] for found in launched} == set(kernels)


def kept_on_cuda(op, sample):
    """What the fakes say that the op keeps for its backward pass on a GPU."""
    if op.forward is None:
        return None
    bound = bind(op.value, sample.args, sample.kwargs)
    wanted = tensors_with_grad(op, sample)
    if op.forward_takes_mask:
        bound["needs_input_grad"] = [n in wanted for n in op.differentiable]
    with FakeTensorMode(), torch.no_grad():
        of_cuda = {
            n: torch.empty_strided(a.shape, a.stride(), dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a
            for n, a in bound.items()
        }
        return op.forward(**of_cuda)[-1]


def compare(emulated, op, sample, tolerance):
    """CPU against emulated CUDA; and the emulated one bitwise the same in another order of lanes, warps and blocks, and
    in memory that held other things."""
    expected = run_raw(getattr(torch.ops, op.qualname.split("::")[0]), op, sample)
    emulated(1)
    with new_memory_filled():
        once = run_raw(torch.ops.lossreg_emulated, op, sample)
    emulated(2)
    again = run_raw(torch.ops.lossreg_emulated, op, sample)
    kept = kept_on_cuda(op, sample)
    for k, (want, a, b) in enumerate(zip(expected, once, again, strict=True)):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.nan_to_num(), b.nan_to_num()), "depends on the order of threads or on old memory"
        if k == len(op.results) and kept is not None:
            assert (a.shape, a.dtype) == (kept.shape, kept.dtype)
            if kept.shape != want.shape:  # other entries than the CPU's; the gradients show whether they are right
                continue
        assert (a.shape, a.dtype, a.stride()) == (want.shape, want.dtype, want.stride())
        torch.testing.assert_close(a, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 2e-6),
        (torch.bfloat16, 1e-2),
        # as bfloat16, but for its conversions
        pytest.param(torch.float16, 2e-3, marks=pytest.mark.thorough),
    ],
    ids=lambda v: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else "",
)
def test_samples(emulated, op, index, dtype, tolerance):
    sample = samples_of(op, dtype=dtype, requires_grad=True)[index]
    if sample.name == "kinks" and dtype in (torch.float32, torch.float16):
        tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # libm against math.h at 1e4
    compare(emulated, op, sample, tolerance)


# around a pack of 4, a block of 256 and its packs; none divides the blocks evenly
SIZES = [1, 3, 4, 5, 255, 256, 1023, 1024, 1027, 5001]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["aligned", "misaligned", "strided", "mixed dtypes"])
@pytest.mark.parametrize("name", ["focal_loss", "gaussian_nll_loss"])
def test_pointwise_sizes_and_layouts(emulated, name, size, layout):
    op = opreg.get(name)
    make = opreg.testing.Maker(torch.float32, requires_grad=True)

    def draw():
        t = make.uniform(2 * size + 3, low=0.1).detach()
        start = t.data_ptr() % 16 // 4 + {"misaligned": 1}.get(layout, 0)
        t = t[::2][:size] if layout == "strided" else t[start : start + size]
        return t.requires_grad_()

    args = [draw() for _ in op.tensor_arguments]
    if layout == "mixed dtypes":
        args[0] = args[0].detach().bfloat16().requires_grad_()
    for reduction in ("none", "mean"):
        compare(emulated, op, opreg.Sample(tuple(args), {"reduction": reduction}), 2e-2 if "dtypes" in layout else 2e-6)


LAYOUTS = [torch.clone, gpu_driver.misaligned, gpu_driver.strided]
ROWS = (1, 51, 257, 1027)
# a block takes a row, many times over
FEW_ROWS = (1, 11)
SLOW = [
    "linear_cross_entropy",
    "linear_log_prob",
    "clip_loss",
    "siglip_loss",
    "nt_xent_loss",
    "sup_con_loss",
    "dice_loss",
    "tversky_loss",
    "jaccard_loss",
    "generalized_dice_loss",
    "lovasz_softmax_loss",
    "lovasz_hinge_loss",
    "ctc_loss",
    "rnnt_loss",
]


def odd(op):
    """Samples of sizes that fill no pack, no warp, no block, laid out as LAYOUTS in turn; values don't repeat soon."""
    layouts = itertools.cycle(LAYOUTS)
    most = 1300 if op.short == "multilabel_margin_loss" else 6000  # its work grows with the square
    sizes = [(size, False) for size in (FEW_ROWS if op.short in SLOW else ROWS)] + [(size, True) for size in ROWS]
    seeds = [gpu_driver.samples(op, torch.float32, "cpu", seed) for seed in range(4)]
    for parts in zip(*seeds, strict=True):
        x = parts[0].args[0]
        # a sum is a mean without its division
        if parts[0].name or parts[0].kwargs.get("reduction") == "sum" or not gpu_driver.has_rows(parts[0]):
            continue
        for size, columns in sizes:
            before = gpu_driver.rows_of(op, parts[0], columns)
            if before and x.numel() // before * size <= most:
                yield gpu_driver.combined([gpu_driver.grown(op, parts, size, columns)], next(layouts))


def test_odd_sizes_and_layouts(emulated, op):
    samples = list(odd(op))
    assert len(samples) > len(LAYOUTS)
    # the difference of two distances loses digits of both
    tolerance = 1e-5 if op.short.startswith("triplet") else 5e-6
    for sample in samples:
        compare(emulated, op, sample, tolerance)


@pytest.mark.parametrize("shape", [(3, 65), (2, 1025), (5, 70, 3), (300, 3), (1, 5001), (2, 3, 7, 11)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_row_sizes(emulated, shape, smoothing):
    make = opreg.testing.Maker(torch.float32, requires_grad=True)
    t = make.index(shape[1], shape[0], *shape[2:], ignore=-100)
    options = {"label_smoothing": smoothing}
    compare(emulated, opreg.get("cross_entropy"), opreg.Sample((make.normal(*shape), t), options), 5e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_box_layouts(emulated, dtype):
    """Whole boxes in one load, and coordinate by coordinate; more pairs than a block has threads."""
    corner, size = torch.rand(2, 5, 67, 2), torch.rand(2, 5, 67, 2)
    a, b = torch.cat([corner, corner + size], -1).to(dtype)
    rows_of_eight, rows_of_five = torch.cat([a, a], -1)[..., :4], torch.cat([a[..., :1], a], -1)[..., 1:]
    coordinates_first = a.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for x in (a, rows_of_eight, rows_of_five, coordinates_first, a.transpose(0, 1).contiguous().transpose(0, 1)):
        for y in (b, b[:1, :1].expand(5, 67, 4)):
            for reduction in ("none", "mean"):
                args = tuple(t.detach().requires_grad_() for t in (x, y))
                sample = opreg.Sample(args, {"reduction": reduction})
                compare(emulated, opreg.get("giou_loss"), sample, 2e-6 if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_one_number_of_another_dtype_beside_boxes_of_16_bits(emulated, dtype):
    """The gradient of a mean that was asked for in float32, and a running mean in float32 or float64."""
    corner, size = torch.rand(2, 67, 2), torch.rand(2, 67, 2)
    a, b = torch.cat([corner, corner + size], -1).to(dtype)
    args = tuple(t.detach().requires_grad_() for t in (a, b))
    for options in ({"reduction": "mean", "dtype": torch.float32}, {"reduction": "none", "dtype": torch.float32}):
        compare(emulated, opreg.get("giou_loss"), opreg.Sample(args, options), 2e-2)
    for mean in (torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.5, dtype=dtype)):
        compare(emulated, opreg.get("wiou_loss"), opreg.Sample((*args, mean), {"reduction": "mean"}), 2e-2)


@pytest.mark.parametrize("name", row_losses.NAMES)
@pytest.mark.parametrize("shape", [(4, 3), (4, 100)])
def test_invalid_class_is_nan_and_no_more(emulated, name, shape):
    """On a GPU an invalid class must neither stop the process nor touch another row."""
    emulated(1)
    x, t = (torch.rand(shape) - 0.5).requires_grad_(), torch.tensor([0, shape[1], -1, 2])
    op = row_losses.op_of(name)
    options = {**row_losses.OPTIONS[name], "reduction": "none"}
    sample = opreg.Sample(row_losses.arguments(name, x, t), options)
    loss, _, grad = run_raw(torch.ops.lossreg_emulated, op, sample)
    assert loss.isnan().tolist() == [False, True, True, False]
    assert grad.isnan().all(1).tolist() == [False, True, True, False]
    assert grad[[0, 3]].isfinite().all()


@pytest.mark.parametrize("classes", [3, 100])
def test_a_prior_that_is_not_positive_is_nan(emulated, classes):
    """An error on the CPU; a GPU doesn't look."""
    emulated(1)
    x, t, prior = torch.randn(2, classes), torch.tensor([0, 2]), torch.ones(classes)
    prior[1] = 0
    assert torch.ops.lossreg_emulated.pc_softmax_cross_entropy(x, t, prior, reduction="none").isnan().all()


@pytest.mark.parametrize(
    ("name", "shape", "argument"),
    [("ctc_loss", (4, 2, 3), "input_lengths"), ("rnnt_loss", (2, 4, 3, 3), "logit_lengths")],
)
def test_a_captured_call_with_lengths_on_the_host_is_refused(emulated, name, shape, argument):
    """A replay would send what their memory holds by then. The meta device stands for the GPU: nothing is launched."""
    scores, targets = torch.empty(shape, device="meta"), torch.ones(2, 2, dtype=torch.int64, device="meta")
    lengths = torch.full((2,), 4), torch.full((2,), 2, device="meta")
    emulated.functions.lossreg_emulator_record(True)
    try:
        with pytest.raises(RuntimeError, match=f"expected {argument} on .* while a graph is captured, got cpu"):
            getattr(torch.ops.lossreg_emulated, name)(scores, targets, *lengths)
    finally:
        emulated.functions.lossreg_emulator_record(False)


def test_products_of_a_large_head(emulated):
    """Three a chunk, and no chunk has fewer than 1024 rows; the state is as large as the gradients are."""
    rows, features, classes = 8192, 2304, 256_000
    x, w = (torch.empty(n, features, dtype=torch.bfloat16) for n in (rows, classes))
    target = torch.empty(rows, dtype=torch.int64)
    with emulated.only(0):
        forward = torch.ops.lossreg_emulated.linear_cross_entropy_forward
        _, state = forward(x, w, target, needs_input_grad=[True, True, False, False, False])
        host = emulated.host()
    products = [line for line in host if line.startswith(("aten::mm", "aten::addmm"))]
    chunks = len(products) // 3
    assert len(products) == 3 * chunks
    assert chunks <= rows // 1024
    # over the results, which are not there yet: chunk and state, in bytes
    extra = sum(int(line.split()[1]) for line in host if line.startswith("empty")) - x.nbytes - w.nbytes
    assert state.nbytes <= x.nbytes + w.nbytes + 8
    assert extra <= 1.2 * 2**30
