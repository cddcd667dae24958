"""The committed predictions of benchmarks/predict.py: none gets worse unseen, and what they promise holds."""

import json

import pytest
from torch import zeros

import gpu_cases
import opreg
import predict
import roofline
import sass
from conftest import BUILD, DEVICE
from emulated import Launch, Traffic
from opreg.catalogue import coverage

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="the emulator runs there")

WORSE = 1.10  # an addition of so much is argued: make predict writes the file anew
# Least share of the memory's speed, geometric mean over the catalogue.
SHARES = {"float32": 0.85, "bfloat16": 0.80}
# Ops that need not move what their floor counts, and why.
LESS = {
    "nll_loss": "of a row it reads one score, and writes zeros and one slope",
    "lovasz_hinge_loss": "its backward pass reads the slopes that were kept, and neither scores nor labels",
    "linear_cross_entropy": "its backward pass finds the gradients kept, and computes no product",
    "clip_loss": "the same",
    "siglip_loss": "the same",
    "zlpr_loss": "three teams in four have five rows, the others four; here one of two blocks has the latter",
    "rnnt_loss": "what lies behind the lengths is not read",
}
# Passes that are predicted slower than eager torch, and why.
SLOWER = {
    "coord_conv2d 16×64×64×64 float32": "torch's convolution in both, and three copies of its gradients besides",
    "coord_conv2d 16×64×64×64 bfloat16": "the same",
}


@pytest.fixture(scope="module")
def committed():
    return {predict.key(row): row for row in json.loads(predict.RESULTS.read_text())["predictions"]}


def test_no_prediction_gets_worse(emulated, committed):
    if not coverage(opreg.get("swish"))["CUDA"] or BUILD is None or not sass.objects(BUILD):
        pytest.skip("the library was not built here by nvcc")
    if sass.tool("nvdisasm") is None or sass.tool("cuobjdump") is None:
        pytest.skip("expected nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump: make test installs them")
    now = {predict.key(row): row for row in predict.predictions(BUILD, emulated)}
    assert now.keys() == committed.keys(), "run make predict"
    worse = {
        " ".join(name): f"{committed[name]['predicted']} µs before, {row['predicted']} now: {row['bound']}"
        for name, row in now.items()
        if row["predicted"] > WORSE * committed[name]["predicted"]
    }
    assert not worse


@pytest.mark.parametrize("dtype", SHARES)
def test_shares_of_memory(committed, dtype):
    assert predict.share(committed.values(), dtype) >= SHARES[dtype]


def test_nothing_is_faster_than_its_bytes(committed):
    """That would be traffic which went uncounted."""
    faster = {row["op"] for row in committed.values() if row["predicted"] < row["floor"]}
    assert faster == LESS.keys()


def test_nothing_is_slower_than_eager(committed):
    assert predict.slower(committed.values()) == list(SLOWER)


def test_the_machine_is_that_of_the_model():
    machine = json.loads(predict.RESULTS.read_text())["machine"]
    assert all(getattr(roofline.H100, name) == value for name, value in machine.items())


def a_launch(blocks: int, sectors: int) -> Launch:
    """Whose threads all load 16 bytes, once."""
    loads = Traffic(sectors // 16, sectors, sectors, 32 * sectors)
    return Launch("kernel", blocks, 256, blocks, loads, Traffic(0, 0, 0, 0))


def test_bytes_and_launches_bound():
    """Without machine code there are bytes; and where there are few, launches."""
    large = roofline.of_launch(a_launch(2**16, 2**23), None)
    assert large.bound == "bytes"
    assert large.seconds == pytest.approx(2**28 / 3.0e12)
    assert roofline.total([large]).seconds == pytest.approx(large.seconds + 2e-6)
    assert roofline.total([roofline.of_launch(a_launch(1, 128), None)] * 2).bound == "launches"


def test_a_product_is_bound_by_its_operations():
    found = roofline.of_operator("aten::mm.out 8192x4096 4096x128256", "bfloat16")
    assert found.bound == "products"
    assert found.seconds == pytest.approx(2 * 8192 * 4096 * 128256 / 650e12)


def test_eager_is_counted_by_its_operators():
    """A composition reads and writes what lies between its operators; a view costs nothing."""
    x = zeros(2**20, device="meta")
    moved = {"fused": lambda: x.square(), "composed": lambda: (x * 2).view(4, -1).exp()}
    times = {name: roofline.of_eager(call, [])["forward"][0].seconds for name, call in moved.items()}
    one = 2 * 2**22 / 3.0e12
    assert times == {"fused": pytest.approx(one + 2e-6), "composed": pytest.approx(2 * one + 4e-6)}


def test_cases_take_no_memory():
    """The largest holds gigabytes, of zeros that nobody wrote."""
    shapes = {case.shape: case for case in gpu_cases.cases(opreg.get("cross_entropy"), "float32")}
    case = shapes["4096×128256"]
    assert gpu_cases.floor_bytes(case) == {"forward": 4096 * (4 * 128256 + 8), "backward": 4096 * (8 * 128256 + 8)}
