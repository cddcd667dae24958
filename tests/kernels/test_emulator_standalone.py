"""The CUDA kernels of standalone/ in the emulator: the paths that sizes, layouts and dtypes choose."""

import pytest
import torch
from test_emulator import compare

import opreg
from opreg.testing import Maker


@pytest.mark.parametrize("name", ["affinity_loss", "affinity_field_loss"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 9), (1, 2, 3, 3), (1, 33, 3, 8), (1, 70, 3, 5), (1, 1, 40, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "narrow"])
def test_neighbours(emulated, name, shape, layout):
    """At the borders and inside, columns side by side and not, more channels than are summed at a time."""
    n, c, h, w = shape
    make = Maker(torch.float32)
    x = make.normal(n, c, h, w + 2) / c**0.5
    x = x[..., 1:-1] if layout == "narrow" else x[..., :w].contiguous()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    y = make.index(3, n, h, w, ignore=-100)
    if name == "affinity_field_loss":
        sizes: list[dict[str, int]] = [{}]
    else:
        sizes = [{"kernel_size": k} for k in (1, 3, 5) if k <= min(h, w)]
    for options in sizes:
        compare(emulated, opreg.get(name), opreg.Sample((x.detach().requires_grad_(), y), options), 1e-5)


def misaligned(*shape, dtype=torch.float32):
    """On no boundary that 16 bytes have."""
    numel = torch.Size(shape).numel()
    buffer = torch.randn(numel + 17).to(dtype)
    start = buffer.data_ptr() % 16 // buffer.element_size() + 1
    return buffer[start : start + numel].reshape(shape)


def model(dtype):
    """Sizes around a pack and a block's share, and layouts: a list of averages and one of parameters."""
    sizes = [0, 1, 3, 4, 5, 8, 255, 1024, 4095, 4096, 4097, 8191, 8192, 8200, 20000]
    averages = [torch.randn(n).to(dtype) for n in sizes]
    params = [torch.randn(n).to(dtype) for n in sizes]
    averages += [misaligned(4100, dtype=dtype), torch.randn(130, dtype=torch.float32).to(dtype), averages[3].clone()]
    params += [torch.randn(4100).to(dtype), misaligned(130, dtype=dtype), params[3].clone()]
    for layout in (lambda t: t[:, ::2], lambda t: t.t(), lambda t: t.unsqueeze(0).expand(2, -1, -1)):
        shape = layout(torch.empty(30, 42)).shape
        averages += [torch.randn(shape).to(dtype), layout(torch.randn(30, 42).to(dtype)).clone()]
        params += [layout(torch.randn(30, 42).to(dtype)), torch.randn(shape).to(dtype)]
    return averages, params


def update(namespace, averages, params, decay=0.9):
    averages = [a.clone() if a.is_contiguous() and a.data_ptr() % 16 == 0 else a for a in averages]
    kept = [a.clone() for a in averages]
    namespace.ema_update_(averages, params, decay)
    written = [a.clone() for a in averages]
    for a, before in zip(averages, kept, strict=True):
        a.copy_(before)
    return written


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, "mixed"], ids=str)
def test_averages_of_many_tensors(emulated, dtype):
    emulated(1)
    drawn = [model(d) for d in ([torch.float32, torch.float64, torch.bfloat16] if dtype == "mixed" else [dtype])]
    pairs = [pair for one in drawn for pair in zip(*one, strict=True)]
    pairs += [(torch.tensor(3), torch.tensor(5)), (torch.zeros(7, dtype=torch.bool), torch.arange(7) > 3)]
    averages, params = map(list, zip(*pairs, strict=True))
    want = update(torch.ops.lossreg, averages, params)
    for got, expected in zip(update(torch.ops.lossreg_emulated, averages, params), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-2 if got.dtype.itemsize == 2 else 1e-6, atol=1e-6)


@pytest.mark.parametrize(("tensors", "launches"), [(1, 1), (106, 1), (107, 2), (160, 2), (320, 4)])
def test_averages_take_few_launches(emulated, tensors, launches):
    emulated(1)
    averages = [torch.randn(i % 7 + 1) for i in range(tensors)]
    params = [torch.randn(a.shape) for a in averages]
    want = [0.9 * a + 0.1 * p for a, p in zip(averages, params, strict=True)]
    emulated.forget()
    torch.ops.lossreg_emulated.ema_update_(averages, params, 0.9)
    assert len(emulated.launches()) == launches
    torch.testing.assert_close(averages, want)


# labels of a sample: the scores of eight steps fit into a block's memory, of fewer, of one, of none
LABELS = [(n, torch.float32) for n in (0, 1, 20, 150, 300, 460, 500)]
LABELS += [(n, dtype) for n in (0, 20, 120) for dtype in (torch.bfloat16, torch.float64)]


@pytest.mark.parametrize(("labels", "dtype"), LABELS, ids=str)
def test_alignments_of_any_length(emulated, labels, dtype):
    """Several samples, of which some are shorter, have no path, or lengths out of range."""
    make = Maker(dtype, requires_grad=True)
    steps, classes = labels + 7, 5
    scores = make.normal(steps, 4, classes).detach().log_softmax(-1).requires_grad_()
    targets = make.index(classes - 1, 4, max(labels, 1)) + 1
    inputs = torch.tensor([steps, steps - 3, labels // 2, steps])
    lengths = torch.tensor([labels, labels // 3, labels, max(labels - 1, 0)])
    sample = opreg.Sample((scores, targets, inputs, lengths), {"reduction": "none", "zero_infinity": labels % 2 == 0})
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}[dtype]
    compare(emulated, opreg.get("ctc_loss"), sample, tolerance)


# labels of a sample: of the lattice's diagonals eight fit into a block's memory, fewer, one, none; with as many rows of
# logits, of so many classes: a thread takes a row, or a warp, in packs or not
LATTICES = [(4, 1, 28), (3, 20, 100), (2, 3, 64), (2, 2, 67), (1, 2, 1100), (2, 300, 5)]
LATTICES = [(*sizes, torch.float32) for sizes in LATTICES]
LATTICES += [(3, 9, classes, dtype) for classes in (28, 128, 131) for dtype in (torch.bfloat16, torch.float64)]
LONG = [pytest.param(1, n, 2, torch.float32, marks=pytest.mark.slow) for n in (700, 1300, 2000)]


@pytest.mark.parametrize(("steps", "labels", "classes", "dtype"), LATTICES + LONG, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "misaligned", "classes apart"])
def test_lattices_of_any_size(emulated, steps, labels, classes, dtype, layout):
    """Several samples, of which some are shorter, or without a step."""
    if layout != "contiguous" and labels > 20:
        pytest.skip("rows of other layouts are tried with fewer of them")
    make = Maker(dtype)
    logits = make.normal(3, steps, labels + 1, classes)
    if layout == "misaligned":
        logits = misaligned(*logits.shape, dtype=dtype)
    elif layout == "classes apart":
        logits = logits.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    targets = make.index(classes, 3, labels)
    inputs, lengths = torch.tensor([steps, max(steps - 1, 1), 0]), torch.tensor([labels, labels // 3, labels // 2])
    options = {"reduction": "none", "clamp": 0.05 * (labels % 2)}
    sample = opreg.Sample((logits.detach().requires_grad_(), targets, inputs, lengths), options)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}[dtype]
    compare(emulated, opreg.get("rnnt_loss"), sample, tolerance)


VALUES = [(v, torch.float32) for v in ("few", "many", "nan", "ignored")]
VALUES += [("few", torch.bfloat16), ("many", torch.float64)]


@pytest.mark.parametrize("rows", [1, 2, 257, 1030])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [(v, torch.float32) for v in ("few", "many", "nan", "ignored")]
    + [("few", torch.bfloat16), ("many", torch.float64)],
    ids=str,
)
def test_hard_examples_are_selected(emulated, rows, values, dtype):
    """Enough hard ones and too few, with and without ties at the cut, which go by place over more than one digit."""
    make = Maker(dtype)
    x = make.normal(rows, 3)
    if values == "few":
        x = x.sign() * 2
    if values == "nan":
        x[::7, 1] = torch.nan
    t = make.index(3, rows, ignore=-100)
    if values == "ignored":
        t[1:] = -100
    for least in {1, rows // 3, rows, rows + 5} - {0}:
        options = {"thresh": 0.3 if least == 1 else 0.0, "n_min": least, "reduction": "none"}
        sample = opreg.Sample((x.detach().requires_grad_(), t), options)
        compare(emulated, opreg.get("ohem_cross_entropy"), sample, 1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("pixels", [255, 256, 257, 4096, 4097, 9001])
@pytest.mark.parametrize("ties", [False, True])
def test_sorted_pixels(emulated, pixels, ties):
    """Turns of a block that are full and not, several chunks of a plane, errors that are equal."""
    make = Maker(torch.float32)
    x = make.normal(2, pixels)
    if ties:
        x = (2 * x).round() / 2
    y = make.index(2, 2, pixels, ignore=-100)
    sample = opreg.Sample((x.detach().requires_grad_(), y), {})
    compare(emulated, opreg.get("lovasz_hinge_loss"), sample, 5e-6)


def test_more_pairs_than_a_block_has_threads(emulated):
    """Rows in several turns of a block, columns in several segments, and the last of neither is full; two chunks."""
    make = Maker(torch.float32, requires_grad=True)
    x, y = make.normal(261, 160, scale=160**-0.25), make.normal(261, 160, scale=160**-0.25)
    compare(emulated, opreg.get("clip_loss"), opreg.Sample((x, y, make.tensor(3.0))), 5e-6)
