"""How often a call goes to the GPU: launches, allocations and operators of torch, at sizes that a GPU is used for.

The emulator runs the host's part of each call and none of its kernels. A count that changes is a decision: the reason
for it stands in the commit that changes this table, which ``EXPECTTEST_ACCEPT=1 pytest tests/kernels/test_launches.py``
writes anew.
"""

import collections

import pytest
import torch

import gpu_cases
import opreg
from conftest import DEVICE
from emulated import Emulator, Pass, passes
from opreg.registry import of_namespace

assert_expected_inline = pytest.importorskip("expecttest").assert_expected_inline
pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the emulator runs there")


def counts(found: Pass) -> str:
    """Launches and allocations, and the operators of torch by name."""
    calls = collections.Counter(line.split(" ")[0].removeprefix("aten::").rstrip(".") for line in found.calls)
    names = [name if n == 1 else f"{n} {name}" for name, n in sorted(calls.items())]
    return " + ".join([f"{len(found.launches)}, {found.allocations}", *names])


def row(emulator: Emulator, case: gpu_cases.GpuCase) -> str:
    found = passes(emulator, case.op, case.sample, 0)
    return f"{case.op.short} {case.shape}: ".replace("×", "x") + "; ".join(map(counts, found.values()))


def table(emulator: Emulator, dtype: str) -> dict[str, str]:
    rows = {}
    for op in of_namespace():
        if hasattr(torch.ops.lossreg_emulated, op.short):
            for case in gpu_cases.cases(op, dtype):
                rows[case.title.removesuffix(f" {dtype}")] = row(emulator, case)
    return rows


def test_counts(emulated):
    """Forward; backward: launches, allocations + operators of torch. Of bfloat16 what differs from float32."""
    wide, narrow = table(emulated, "float32"), table(emulated, "bfloat16")
    lines = list(wide.values())
    lines += [f"bfloat16 {text}" for name, text in narrow.items() if text != wide.get(name)]
    assert_expected_inline(
        "\n".join(lines),
        """\
swish 16777216: 1, 1; 1, 1
hard_swish 16777216: 1, 1; 1, 1
mish 16777216: 1, 1; 1, 1
gelu 16777216: 1, 1; 1, 1
quick_gelu 16777216: 1, 1; 1, 1
relu_squared 16777216: 1, 1; 1, 1
affinity_loss 8x19x512x512: 1, 3 + contiguous + to.dtype_layout; 1, 1 + contiguous + to.dtype_layout
affinity_field_loss 8x19x512x512: 2, 3 + contiguous + to.dtype_layout; 1, 1 + contiguous + to.dtype_layout
nll_loss 1024x32000: 1, 3; 1, 1
nll_loss 8x19x512x512: 1, 3; 1, 1
cross_entropy 1024x32000: 1, 3; 1, 1
cross_entropy 8x19x512x512: 1, 3; 1, 1
cross_entropy 64x128256: 1, 4; 1, 1
cross_entropy 4096x128256: 1, 3; 1, 1
cross_entropy 65536x1000: 1, 3; 1, 1
cross_entropy 65536x10: 1, 3; 1, 1
softmax_focal_loss 1024x32000: 1, 3; 1, 1
softmax_focal_loss 8x19x512x512: 1, 3; 1, 1
pc_softmax_cross_entropy 1024x32000: 2, 4; 2, 2
pc_softmax_cross_entropy 8x19x512x512: 2, 4; 2, 2
poly1_cross_entropy 1024x32000: 1, 3; 1, 1
poly1_cross_entropy 8x19x512x512: 1, 3; 1, 1
arcface_loss 1024x32000: 1, 3; 1, 1
arcface_loss 8x19x512x512: 1, 3; 1, 1
amsoftmax_loss 1024x32000: 1, 3; 1, 1
amsoftmax_loss 8x19x512x512: 1, 3; 1, 1
ema_update_ 160 tensors: 2, 0
binary_cross_entropy 16777216: 1, 2; 1, 1
binary_cross_entropy_with_logits 16777216: 1, 2; 1, 1
focal_loss 16777216: 1, 2; 1, 1
iou_loss 1048576x4: 1, 2; 1, 1
giou_loss 1048576x4: 1, 2; 1, 1
diou_loss 1048576x4: 1, 2; 1, 1
ciou_loss 1048576x4: 1, 2; 1, 1
eiou_loss 1048576x4: 1, 2; 1, 1
focal_eiou_loss 1048576x4: 1, 2; 1, 1
alpha_iou_loss 1048576x4: 1, 2; 1, 1
siou_loss 1048576x4: 1, 2; 1, 1
wiou_loss 1048576x4: 1, 2; 1, 1
clip_loss 4096x512: 6, 10 + 3 mm.out + 2 to.dtype_layout; 5, 5
siglip_loss 4096x512: 2, 5 + 3 mm.out + 2 to.dtype_layout; 6, 6
nt_xent_loss 4096x512: 3, 7 + 2 copy_ + mm.out + 2 to.dtype_layout; 4, 7 + 4 copy_ + 2 mm.out + 2 to.dtype_layout
sup_con_loss 4096x512: 3, 7 + contiguous + copy_ + mm.out + 3 to.dtype_layout; 4, 6 + contiguous + 2 copy_ + 2 mm.out + 3 to.dtype_layout
coord_conv2d 16x64x64x64: 2, 2 + 2 convolution + 2 to.dtype_layout; 1, 3 + 2 convolution_backward + 3 copy_ + sum.dim_IntList + 2 to.dtype_layout
dynamic_conv2d 16x64x64x64: 0, 1 + convolution + copy_ + 2 matmul + 5 reshape; 1, 3 + convolution_backward + 3 copy_ + 4 matmul + 9 reshape + to.dtype_layout
quality_focal_loss 16777216: 1, 2; 1, 1
varifocal_loss 16777216: 1, 2; 1, 1
gaussian_focal_loss 16777216: 1, 2; 1, 1
asymmetric_loss 16777216: 1, 2; 1, 1
distribution_focal_loss 1024x32000: 1, 3; 1, 1
zlpr_loss 1024x32000: 1, 3; 1, 1
zlpr_loss 8x19x512x512: 1, 3; 1, 1
swiglu 16777216: 1, 1; 1, 1
geglu 16777216: 1, 1; 1, 1
reglu 16777216: 1, 1; 1, 1
clamped_swiglu 16777216: 1, 1; 1, 1
ssim_loss 8x3x512x512: 5, 5 + 2 to.dtype_layout; 7, 4 + 3 to.dtype_layout
poisson_nll_loss 16777216: 1, 2; 1, 1
gaussian_nll_loss 16777216: 1, 2; 1, 1
kl_div 16777216: 1, 2; 1, 1
linear_cross_entropy 1024x512x32000: 3, 11 + 2 copy_ + 3 mm.out + 3 reshape; 2, 3 + 5 reshape
linear_log_prob 1024x512x32000: 2, 8 + mm.out + 4 reshape; 3, 7 + 3 mm.out + 7 reshape
lovasz_softmax_loss 8x19x512x512: 33, 28 + 10 sort.stable; 1, 1
lovasz_hinge_loss 8x512x512: 6, 9 + sort.stable; 1, 1
soft_margin_loss 16777216: 1, 2; 1, 1
hinge_embedding_loss 16777216: 1, 2; 1, 1
margin_ranking_loss 16777216: 1, 2; 1, 1
triplet_margin_loss 65536x128: 1, 3; 1, 3
triplet_soft_margin_loss 65536x128: 1, 3; 1, 1
cosine_embedding_loss 65536x128: 1, 3; 1, 1
ohem_cross_entropy 1024x32000: 8, 10 + contiguous + to.dtype_layout + zero_; 2, 2 + contiguous + to.dtype_layout
ohem_cross_entropy 8x19x512x512: 10, 10 + contiguous + to.dtype_layout + zero_; 2, 2 + contiguous + to.dtype_layout
multi_margin_loss 1024x32000: 2, 3; 1, 1
multilabel_margin_loss 32768x128: 2, 4; 1, 2
multilabel_soft_margin_loss 1024x32000: 1, 2; 1, 1
multilabel_soft_margin_loss 8x19x512x512: 1, 2; 1, 1
l1_loss 16777216: 1, 2; 1, 1
mse_loss 16777216: 1, 2; 1, 1
smooth_l1_loss 16777216: 1, 2; 1, 1
huber_loss 16777216: 1, 2; 1, 1
charbonnier_loss 16777216: 1, 2; 1, 1
log_cosh_loss 16777216: 1, 2; 1, 1
quantile_loss 16777216: 1, 2; 1, 1
wing_loss 16777216: 1, 2; 1, 1
prob_iou_loss 1048576x5: 1, 2; 1, 1
dice_loss 8x19x512x512: 2, 4; 1, 1
tversky_loss 8x19x512x512: 2, 4; 1, 1
jaccard_loss 8x19x512x512: 2, 4; 1, 1
generalized_dice_loss 8x19x512x512: 2, 4; 1, 1
ctc_loss 512x32x128: 2, 7; 3, 9
distillation_loss 1024x32000: 1, 3; 1, 1
distillation_loss 8x19x512x512: 1, 3; 1, 1
jsd_loss 1024x32000: 1, 3; 1, 1
jsd_loss 8x19x512x512: 1, 3; 1, 1
total_variation_loss 1024x32000: 1, 3; 1, 1
total_variation_loss 8x19x512x512: 1, 3; 1, 1
large_margin_softmax_loss 1024x32000: 1, 3; 1, 1
large_margin_softmax_loss 8x19x512x512: 1, 3; 1, 1
rnnt_loss 8x200x41x256: 3, 5; 1, 1
bfloat16 clip_loss 4096x512: 6, 11 + copy_ + mm + 2 mm.out + 2 to.dtype_layout + view.dtype; 5, 5 + view.dtype
bfloat16 siglip_loss 4096x512: 2, 6 + copy_ + mm + 2 mm.out + 2 to.dtype_layout + view.dtype; 6, 6 + view.dtype
bfloat16 nt_xent_loss 4096x512: 3, 7 + 3 copy_ + mm + 2 to.dtype_layout; 4, 8 + 6 copy_ + 2 mm + 2 to.dtype_layout
bfloat16 sup_con_loss 4096x512: 3, 7 + contiguous + 2 copy_ + mm + 3 to.dtype_layout; 4, 7 + contiguous + 4 copy_ + 2 mm + 3 to.dtype_layout
bfloat16 linear_cross_entropy 1024x512x32000: 3, 11 + 2 copy_ + 3 mm.out + 3 reshape + view.dtype; 2, 3 + 5 reshape + view.dtype
bfloat16 linear_cross_entropy 8192x4096x128256: 5, 14 + addmm.out + 4 copy_ + 5 mm.out + 3 reshape + view.dtype; 2, 3 + 5 reshape + view.dtype
bfloat16 linear_cross_entropy 8192x2304x256000: 9, 20 + 3 addmm.out + 8 copy_ + 9 mm.out + 3 reshape + view.dtype; 2, 3 + 5 reshape + view.dtype
bfloat16 linear_log_prob 8192x4096x128256: 4, 10 + 2 mm.out + 4 reshape; 6, 9 + addmm.out + 5 mm.out + 7 reshape
bfloat16 linear_log_prob 8192x2304x256000: 8, 14 + 4 mm.out + 4 reshape; 12, 13 + 3 addmm.out + 9 mm.out + 7 reshape""",
    )


def test_nothing_is_computed(emulated):
    """Real sizes take milliseconds, for no kernel runs."""
    op = opreg.get("mse_loss")
    x = torch.zeros(2**20).requires_grad_()
    found = passes(emulated, op, opreg.Sample((x, torch.ones(2**20))), 0)
    assert [launch.ran for launch in found["forward"].launches] == [0]
    assert all(launch.blocks > 100 for launch in found["forward"].launches)
