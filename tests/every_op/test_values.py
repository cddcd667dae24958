"""Values and gradients of every op: against the reference in float64, against torch's native op, in every dtype,
layout and shape, at kinks and extremes, and bitwise whatever the number of threads."""

import warnings

import pytest
import torch
from torch import Tensor

import opreg
from conftest import DEVICE, new_memory_filled, run_raw, samples_of
from opreg._library import OPS
from opreg.meta.schema import bind, results_of
from opreg.testing import Maker, as_function, batched, joined, repeated, tensors_with_grad

# What one rounding to the dtype may cost, with room for a sum of a few dozen terms.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
DTYPES = list(TOLERANCE)


def assert_near(got: Tensor, expected: Tensor, what: str, tolerance: float | None = None) -> None:
    tolerance = TOLERANCE[got.dtype] if tolerance is None else tolerance
    assert got.shape == expected.shape, what
    got, expected = got.double(), expected.double()
    assert torch.equal(got.isnan(), expected.isnan()), f"{what}: NaN in other places: {got} and {expected}"
    # beyond the format's range both are infinite
    largest = torch.finfo(torch.float32).max
    off = (got.nan_to_num().clamp(-largest, largest) - expected.nan_to_num().clamp(-largest, largest)).abs()
    bound = tolerance * (1 + expected.nan_to_num().abs())
    assert (off <= bound).all(), f"{what}: off by {(off / bound).max():.2g} tolerances: {got} and {expected}"


def gradients(op: opreg.Op, sample: opreg.Sample, call: object) -> tuple[Tensor, list[Tensor]]:
    """Result, and gradients of a weighted sum of it."""
    inputs = tensors_with_grad(op, sample)
    result = as_function(op, sample, call)(*inputs.values())
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=torch.float64, device=result.device)
    weights = weights.reshape(result.shape).to(result.dtype)
    grads = torch.autograd.grad(result, list(inputs.values()), weights, allow_unused=True)
    return result.detach(), [
        torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs.values(), strict=True)
    ]


def gradient_tolerance(op: opreg.Op, sample: opreg.Sample) -> float | None:
    """The format's, but where a probability of 1e-30 gives a gradient of 1e12: there 1e-8 is rounding of 1 − x."""
    return 1e-8 if (op.short, sample.name) == ("binary_cross_entropy", "kinks") else None


def test_reference(op, index):
    sample = samples_of(op, requires_grad=True)[index]
    result, grads = gradients(op, sample, op.value)
    expected, expected_grads = gradients(op, sample, op.call_reference)
    assert_near(result, expected, "value")
    for name, got, want in zip(tensors_with_grad(op, sample), grads, expected_grads, strict=True):
        assert_near(got, want, f"gradient in {name}", gradient_tolerance(op, sample))


def test_native(op, index):
    """The value and the gradient of torch's own function, kinks included."""
    if op.native is None:
        pytest.skip("no native op")
    sample = samples_of(op, requires_grad=True)[index]
    if sample.name == "extremes" and op.short == "soft_margin_loss":
        pytest.skip("native overflows where ours does not")
    if sample.name == "empty" and op.short in ("multi_margin_loss", "multilabel_margin_loss"):
        pytest.skip("native leaves its result as the allocator gave it")
    call = without_dtype(op.native)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, expected_grads = gradients(op, sample, call)
    result, grads = gradients(op, sample, op.value)
    assert_near(result, expected, "value")
    for name, got, want in zip(tensors_with_grad(op, sample), grads, expected_grads, strict=True):
        # where torch's gradient is NaN or infinite, ours is 0
        want = torch.where(want.isfinite() | got.isnan(), want, torch.zeros_like(want))
        assert_near(got, want, f"gradient in {name}", gradient_tolerance(op, sample))


def without_dtype(native):
    def call(dtype=None, **options):
        return native(**options)

    return call


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(op, index, dtype):
    """Arithmetic in float32: only the result is rounded to the dtype."""
    sample = samples_of(op, dtype=dtype, requires_grad=True)[index]
    result, grads = gradients(op, sample, op.value)
    assert result.dtype == dtype
    exact = opreg.Sample(tuple(double(a) for a in sample.args), {k: double(v) for k, v in sample.kwargs.items()})
    expected, expected_grads = gradients(op, exact, op.call_reference)
    limit = torch.finfo(dtype).max
    expected = torch.where(expected.abs() > limit, torch.inf * expected.sign(), expected)
    finite = expected.isfinite() | expected.isnan()
    assert_near(result[finite], expected[finite], "value")
    assert torch.equal(result[~finite].double(), expected[~finite])
    for name, got, want in zip(tensors_with_grad(op, sample), grads, expected_grads, strict=True):
        assert got.dtype == dtype
        keep = want.abs() < limit
        if sample.name in ("kinks", "extremes"):  # 1 - x and sums of 1e4 lose digits in float32 itself
            assert_near(got[keep], want[keep], f"gradient in {name}", 10 * TOLERANCE[dtype] + 1e-4)
        else:
            assert_near(got[keep], want[keep], f"gradient in {name}", 2 * TOLERANCE[dtype])


def double(a: object) -> object:
    if isinstance(a, Tensor) and a.is_floating_point():
        return a.detach().double().requires_grad_(a.requires_grad)
    return a


def layouts(t: Tensor) -> list[Tensor]:
    """The same values, laid out otherwise."""
    strided = torch.empty((*t.shape, 2), dtype=t.dtype, device=t.device)[..., 0].copy_(t)
    result = [strided]
    if t.dim() >= 2:
        result.append(t.transpose(0, 1).contiguous().transpose(0, 1))
        result.append(t.flip(0).contiguous().flip(0))
    if t.dim() == 4:
        result.append(t.contiguous(memory_format=torch.channels_last))
    if t.dim() >= 1 and t.shape[-1] > 0:
        padded = torch.zeros((*t.shape[:-1], t.shape[-1] + 3), dtype=t.dtype, device=t.device)
        padded[..., 1:-2] = t
        result.append(padded[..., 1:-2])
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides(op, index, dtype):
    """Any layout of any argument gives the values of the contiguous one."""
    sample = samples_of(op, dtype=dtype, requires_grad=True)[index]
    expected, expected_grads = gradients(op, sample, op.value)
    # its products are torch's convolution, which rounds in other places for other layouts where the processor has no
    # products of bfloat16
    tolerance = 3 * TOLERANCE[dtype] if op.short == "coord_conv2d" and dtype == torch.bfloat16 else None
    for k, a in enumerate(sample.args):
        for other in layouts(a.detach()) if isinstance(a, Tensor) else ():
            args = list(sample.args)
            args[k] = other.requires_grad_(a.requires_grad)
            result, grads = gradients(op, opreg.Sample(tuple(args), sample.kwargs), op.value)
            assert_near(result, expected, f"value, argument {k} of strides {other.stride()}")
            for got, want in zip(grads, expected_grads, strict=True):
                assert_near(got, want, f"gradient, argument {k} of strides {other.stride()}", tolerance)


def test_expanded_input(op):
    """A stride of 0 in the input, and gradients of its whole shape."""
    sample = next(s for s in samples_of(op) if isinstance(s.args[0], Tensor) and s.args[0].dim() >= 2)
    x = sample.args[0][:1].expand(sample.args[0].shape)
    got = joined(op.value(x, *sample.args[1:], **sample.kwargs))
    assert_near(got, joined(op.value(x.contiguous(), *sample.args[1:], **sample.kwargs)), "value")


def test_activations_keep_the_memory_format(op):
    if op.is_loss or len(op.tensor_arguments) > 1:
        pytest.skip("no activation")
    x = torch.randn(2, 3, 4, 5, device=DEVICE).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = op.value(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(DEVICE != "cpu", reason="threads are the CPU's")
def test_threads_do_not_change_a_bit(op):
    """Sizes that fill no chunk and no tile, one thread and two, and again."""
    make = Maker(torch.float32, requires_grad=True)
    sample = next(iter(op.samples(make)))
    large = opreg.Sample(tuple(enlarged(op, sample)), sample.kwargs)
    for reduction in ("mean", "sum", "none") if op.reduces else (None,):
        kwargs = {**large.kwargs, **({"reduction": reduction} if reduction else {})}
        runs = []
        threads = torch.get_num_threads()
        for n in (1, 2, 3, 2):
            torch.set_num_threads(n)
            runs.append(run_raw(OPS, op, opreg.Sample(large.args, kwargs)))
        torch.set_num_threads(threads)
        for other in runs[1:]:
            for a, b in zip(runs[0], other, strict=True):
                if op.lowered:  # torch's own products and convolutions make no such promise
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
                else:
                    assert torch.equal(a, b)


def enlarged(op: opreg.Op, sample: opreg.Sample) -> list[object]:
    """The sample repeated to an odd size of several chunks; class dimensions stay."""
    if op.family == "contrast":  # its work grows with the square
        return repeated(op, sample, 301)
    return repeated(op, sample, 20_011 if op.indices else 100_003 // sample.args[0].numel() * sample.args[0].shape[0])


def test_mixed_dtypes_promote(op):
    """Bfloat16 logits with float32 targets: the dtype of torch's own function; where there is none, float32 unless the
    op says that the target gives no dtype. Of each gradient its input's."""
    if len(op.tensor_arguments) < 2 or op.indices or op.lowered:
        pytest.skip("one floating tensor, or operands of a product, which are of one dtype")
    sample = next(iter(op.samples(Maker(torch.float32, device=DEVICE, requires_grad=True))))
    low = sample.args[0].detach().bfloat16().requires_grad_()
    result = op.value(low, *sample.args[1:], **sample.kwargs)
    bound = bind(op.value, (low, *sample.args[1:]), sample.kwargs)
    bound.pop("dtype", None)
    try:
        of_input_alone = op.rule.typed_by == tuple(op.arguments[:1])
        promoted = low.dtype if of_input_alone else torch.float32
        wanted = op.native(**bound).dtype if op.native is not None else promoted
    except RuntimeError:  # torch's own takes no two dtypes here
        wanted = low.dtype
    assert result.dtype == wanted
    expected = op.value(low.float(), *sample.args[1:], **sample.kwargs)
    assert torch.equal(result, expected.to(result.dtype))
    (grad,) = torch.autograd.grad(result.sum(), low)
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8], ids=str)
@pytest.mark.parametrize("name", ["focal_loss", "binary_cross_entropy_with_logits", "mse_loss"])
def test_integer_targets(name, dtype):
    op = opreg.get(name)
    x, t = torch.randn(9, device=DEVICE), torch.arange(9, device=DEVICE) % 2
    assert torch.equal(op.value(x, t.to(dtype)), op.value(x, t.float()))


def test_empty_batch(op):
    """As in torch: the mean of nothing is NaN, the sum 0, and no element comes back as none."""
    if not op.reduces:
        pytest.skip("no reduction")
    sample = next(s for s in samples_of(op) if isinstance(s.args[0], Tensor) and s.args[0].dim() >= 2)
    args = batched(op, sample, lambda t, dim: t.narrow(dim, 0, 0))
    options = {k: v for k, v in sample.kwargs.items() if k not in ("weight", "reduction")}
    assert op.value(*args, **options, reduction="mean").isnan()
    assert op.value(*args, **options, reduction="sum") == 0
    assert op.value(*args, **options, reduction="none").shape[0] == 0


def test_inputs_are_not_written(op, index):
    sample = samples_of(op, requires_grad=True)[index]
    tensors = [a for a in (*sample.args, *sample.kwargs.values()) if isinstance(a, Tensor)]
    before = [t.detach().clone() for t in tensors]
    gradients(op, sample, op.value)
    for t, b in zip(tensors, before, strict=True):
        assert torch.equal(t.detach(), b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_byte_is_written(op, dtype):
    """Results, states and gradients, whatever the memory held that they were given."""
    for sample in samples_of(op, dtype=dtype, requires_grad=True):
        usual = run_raw(OPS, op, sample)
        with new_memory_filled():
            filled = run_raw(OPS, op, sample)
        for a, b in zip(usual, filled, strict=True):
            if op.lowered:  # torch's own products
                assert torch.equal(a.isnan(), b.isnan())
            else:
                assert torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)), sample.name


FINITE = {
    "l1_loss", "mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy_with_logits", "focal_loss",
    "soft_margin_loss", "hinge_embedding_loss", "swish", "hard_swish", "mish",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FINITE))
@pytest.mark.parametrize(("dtype", "largest"), [(torch.float32, 1e4), (torch.float16, 6e4)], ids=["float32", "float16"])
def test_finite_in_finite_out(name, dtype, largest):
    op = opreg.get(name)
    x = torch.tensor([largest, -largest, 0.0], dtype=dtype, device=DEVICE).repeat_interleave(2).requires_grad_()
    t = torch.tensor([1.0, -1.0 if "margin" in name or "hinge" in name else 0.0], dtype=dtype, device=DEVICE).repeat(3)
    args = (x,) if not op.is_loss else (x, t)
    options = {"dtype": torch.float32} if op.is_loss else {}
    result = op.value(*args, **options, **({"reduction": "none"} if op.is_loss else {}))
    assert result.isfinite().all()
    (grad,) = torch.autograd.grad(result.sum(), x)
    if not (name == "mse_loss" and dtype == torch.float16):  # 2 · 6e4 does not fit
        assert grad.isfinite().all()


def test_negative_variance_is_nan_at_its_element():
    x, t = torch.randn(3, device=DEVICE, requires_grad=True), torch.randn(3, device=DEVICE)
    var = torch.tensor([1.0, -1.0, 2.0], device=DEVICE)
    loss = torch.ops.lossreg.gaussian_nll_loss(x, t, var, reduction="none")
    assert loss.isnan().tolist() == [False, True, False]
    assert torch.autograd.grad(loss.sum(), x)[0].isnan().tolist() == [False, True, False]


def test_more_elements_than_an_int32_counts():
    """The last of 2^31 + 7 elements is read, and where strides are 0, counted."""
    n = 2**31 + 7
    x = torch.zeros(n, dtype=torch.float16, device=DEVICE)
    x[-1] = 3
    assert torch.ops.lossreg.l1_loss(x, torch.zeros((), device=DEVICE), "sum", dtype=torch.float32) == 3
    ones = torch.ones((), dtype=torch.float64, device=DEVICE).expand(n)
    assert torch.ops.lossreg.mse_loss(ones, torch.zeros_like(ones[:1]), "sum") == n
    rows, classes = 60_000, 40_000
    scores = torch.zeros((), device=DEVICE).expand(rows, classes)
    loss = torch.ops.lossreg.cross_entropy(scores, torch.zeros((), dtype=torch.int64, device=DEVICE).expand(rows))
    torch.testing.assert_close(loss, torch.tensor(float(classes), device=DEVICE).log())


def test_results_are_memory_of_their_own(op, index):
    """Result, state and gradients share none with an argument or with each other."""
    sample = samples_of(op, requires_grad=True)[index]
    made = [t for t in run_raw(OPS, op, sample) if t.numel()]
    made += [t for t in results_of(op.value(*sample.args, **sample.kwargs)) if t.numel()]
    given = {a.untyped_storage().data_ptr() for a in sample.args if isinstance(a, Tensor) and a.numel()}
    storages = [t.untyped_storage().data_ptr() for t in made]
    assert len({*storages}) == len(storages)
    assert not given & {*storages}
