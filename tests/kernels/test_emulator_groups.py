"""The CUDA kernels over groups of members, in the emulator: every team that takes a group, every way that they lie."""

import pytest
import torch
from test_emulator import compare
from torch import Tensor

import opreg
from conftest import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the real kernels run there")

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
# A thread, some, a warp and a block a group; members that fill packs of 16 bytes, and that do not; a last warp that is
# not full
SHAPES = [(37, 1), (33, 2), (7, 3), (19, 8), (41, 16), (5, 40), (9, 128), (3, 129), (2, 512), (3, 1000), (2, 2304)]
NAMES = [
    "triplet_margin_loss", "triplet_soft_margin_loss", "cosine_embedding_loss", "zlpr_loss", "distribution_focal_loss",
]  # fmt: skip


def laid_out(t: Tensor, layout: str) -> Tensor:
    if layout == "misaligned":
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)
    if layout == "padded":
        return torch.cat([t, t[..., :1]], -1)[..., :-1]
    if layout == "across":
        return t.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "turned":
        return t.transpose(-1, -2).contiguous().transpose(-1, -2)
    return t.clone()


def vectors(name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, **options: object) -> opreg.Sample:
    count = {"cosine_embedding_loss": 2, "zlpr_loss": 1, "distribution_focal_loss": 1}.get(name, 3)
    args = [laid_out(torch.randn(shape).to(dtype), layout).requires_grad_() for _ in range(count)]
    if name == "cosine_embedding_loss":
        args.append(torch.randint(0, 2, shape[:1]).mul(2).sub(1).to(dtype))
    if name == "zlpr_loss":
        args.append(laid_out(torch.rand(shape).round().to(dtype), layout))
    if name == "distribution_focal_loss":
        places = torch.rand(shape[:1], dtype=torch.float64) * (shape[1] - 1)
        args.append(places.to(dtype).clamp(max=shape[1] - 1).requires_grad_())
    return opreg.Sample(tuple(args), options)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_vectors(emulated, name, shape, dtype):
    if name == "distribution_focal_loss" and shape[1] == 1:
        pytest.skip("of two bins at least")
    ways = [("packed", "mean"), ("padded", "none")]
    if dtype == torch.float32:
        ways += [("misaligned", "mean"), ("across", "none")]
    for layout, reduction in ways:
        sample = vectors(name, shape, dtype, layout, reduction=reduction)
        # the gradient of the cosine of single numbers is a difference of what is equal
        compare(emulated, opreg.get(name), sample, TOLERANCE[dtype] * (5 if shape[1] == 1 else 1))


@pytest.mark.parametrize("p", [1.0, 3.0, float("inf")])
@pytest.mark.parametrize("shape", [(19, 8), (3, 129), (2, 2304)], ids=str)
def test_any_norm(emulated, shape, p):
    sample = vectors("triplet_margin_loss", shape, torch.float32, "packed", p=p, swap=True)
    compare(emulated, opreg.get("triplet_margin_loss"), sample, 1e-5)


def test_broadcast_and_mixed_vectors(emulated):
    for dtypes in [(torch.float32,) * 3, (torch.float32, torch.bfloat16, torch.float16)]:
        a, p, n = (
            torch.randn(s).to(d).requires_grad_() for s, d in zip([(9, 16), (1, 16), (9, 1)], dtypes, strict=True)
        )
        compare(emulated, opreg.get("triplet_margin_loss"), opreg.Sample((a, p, n), {}), 1e-2)


# the classes are members: neighbours of each other, or the positions are neighbours
CLASSES = [(5, 3), (4, 64), (2, 1001), (2, 2304), (2, 5, 4, 8), (2, 19, 3, 16), (1, 70, 7), (300, 2), (1, 3, 9000)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", CLASSES, ids=str)
def test_classes(emulated, shape, dtype):
    ways = [("packed", "mean"), ("misaligned", "none"), ("across", "mean")]
    if len(shape) > 3:
        ways.append(("turned", "none"))
    for layout, reduction in ways:
        x = laid_out(torch.randn(shape).mul(3).to(dtype), layout).requires_grad_()
        y = laid_out(torch.randn(shape).mul(3).to(dtype), layout)
        sample = opreg.Sample((x, y), {"reduction": reduction})
        compare(emulated, opreg.get("distillation_loss"), sample, TOLERANCE[dtype])
        compare(emulated, opreg.get("jsd_loss"), sample, TOLERANCE[dtype])
        t = torch.randint(0, shape[1] + 1, (shape[0], *shape[2:]))
        t[t == shape[1]] = -100
        sample = opreg.Sample((x, t), {"reduction": reduction})
        compare(emulated, opreg.get("large_margin_softmax_loss"), sample, TOLERANCE[dtype])


@pytest.mark.parametrize("shape", [(3, 300), (2, 40, 16)], ids=str)
def test_scores_far_apart(emulated, shape):
    """Maxima that rise late, by much; members of -inf, which masks leave, first and last."""
    for rising in (1.0, 30.0, 1e5):
        ramp = torch.arange(shape[1]).view(-1, *[1] * (len(shape) - 2)) * rising
        for student, teacher in ((ramp, ramp), (ramp, -ramp), (-ramp, ramp)):
            x, y = (torch.randn(shape) + part for part in (student, teacher))
            sample = opreg.Sample((x.requires_grad_(), y), {"reduction": "none"})
            for name in ("distillation_loss", "jsd_loss", "total_variation_loss"):
                compare(emulated, opreg.get(name), sample, 1e-5)
            for target in (0, shape[1] // 2, shape[1] - 1):
                t = torch.full((shape[0], *shape[2:]), target)
                sample = opreg.Sample((x, t), {"reduction": "none"})
                compare(emulated, opreg.get("large_margin_softmax_loss"), sample, 1e-5)
    x, y = torch.randn(shape), torch.randn(shape)
    x[:, :37] = y[:, :37] = y[:, -2:] = -float("inf")
    compare(
        emulated, opreg.get("distillation_loss"), opreg.Sample((x.requires_grad_(), y), {"reduction": "none"}), 1e-5
    )
    # the target's own score; that of another class would make the mean infinite
    x = torch.randn(shape)
    x[:, 5] = -float("inf")
    t = torch.full((shape[0], *shape[2:]), 5)
    sample = opreg.Sample((x.requires_grad_(), t), {"reduction": "none"})
    compare(emulated, opreg.get("large_margin_softmax_loss"), sample, 1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(3, 300), (2, 40, 16)], ids=str)
def test_what_is_no_number_stays_so(emulated, shape, value):
    emulated(1)
    for k in range(2):
        for at in (0, shape[1] - 1):
            args = [torch.randn(shape), torch.randn(shape)]
            args[k][0, at] = value
            loss = torch.ops.lossreg_emulated.distillation_loss(*args, reduction="none")
            expected = torch.ops.lossreg.distillation_loss(*args, reduction="none")
            assert torch.equal(loss.isnan(), expected.isnan())
            assert loss.isnan().any()
            args[1] = torch.full((shape[0], *shape[2:]), 7)
            loss = torch.ops.lossreg_emulated.large_margin_softmax_loss(*args, reduction="none")
            expected = torch.ops.lossreg.large_margin_softmax_loss(*args, reduction="none")
            assert torch.equal(loss.isnan(), expected.isnan())


@pytest.mark.parametrize("label", [torch.int64, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(3, 12), (2, 5, 4, 8)], ids=str)
def test_class_indices_of_any_dtype(emulated, shape, label):
    x, t = torch.randn(shape).requires_grad_(), torch.randint(0, shape[1], (shape[0], *shape[2:]))
    t[0] = 200 if label == torch.uint8 else -5
    options = {"ignore_index": 200 if label == torch.uint8 else -5}
    compare(emulated, opreg.get("large_margin_softmax_loss"), opreg.Sample((x, t.to(label)), options), 1e-5)
