"""What ptxas said of the CUDA kernels when the library was built: they keep everything in registers.

Local memory is memory: what ptxas spills for want of registers, and arrays that are indexed at run time, a stack frame.
"""

import re

import gpu_check
import pytest

import opreg
from conftest import BUILD
from opreg.catalogue import coverage


@pytest.fixture(scope="module")
def local_memory():
    """Bytes by architecture and function."""
    if not coverage(opreg.get("swish"))["CUDA"]:
        pytest.skip("the library was built without nvcc")
    if BUILD is None:
        pytest.skip("the library was not built here: make install leaves its folder")
    found = gpu_check.local_memory(BUILD)
    assert found, f"expected the logs of csrc/keep_log.sh in {BUILD}, found none"
    return found


# Kernels that use local memory, kind() and the mangled name: bytes at most, and why. The others use none.
USING = {
    r"\w+<double(, void)?> ": (320, "float64 is there to verify; most in the gradient of a box loss, unrolled"),
    r"__internal_accurate_pow ": (48, "of CUDA's own library, in float64"),
    r"\w+<float, void> ": (192, "operands of any dtype, each element through a call: not the fast path"),
    r"(map|sum)_tiles<float> ": (144, "the same, by way of shared memory; most on sm_80, in focal_loss"),
    r"boxes_\w+<float> .*ProbIoU": (
        32,
        "CUDA's own sine, where an angle is so large that it takes its reduction there",
    ),
    r"groups_forward<float> .*Float16ELNS0_4SideE1ELi2ENS_7JSDLoss": (
        104,
        "eight groups a thread of 16 bits, twelve numbers each; its logarithms take five times its memory's time",
    ),
    r"rows_\w+<float> ": (32, "a register or two, where classes have weights: more of them cost more than that"),
}


def kind(function: str) -> str:
    """Kernel, arithmetic, and void where that is not the fast path for one dtype, of a mangled name:
    _ZN7lossreg4cuda10map_kernelIff… is map_kernel<float>."""
    name = re.match(r"_ZN7lossreg4cuda(\d+)", function)
    if name is None:
        return function
    end = name.end() + int(name[1])
    kernel, arguments = function[name.end() : end], function[end : end + 3]
    arithmetic = {"If": "float", "Id": "double"}.get(arguments[:2])
    if arithmetic is None:
        return kernel
    return f"{kernel}<{arithmetic}, void>" if arguments[2:] == "v" else f"{kernel}<{arithmetic}>"


def allowed(function: str) -> int:
    """Bytes."""
    name = f"{kind(function)} {function}"
    return max((most for form, (most, _) in USING.items() if re.match(form, name)), default=0)


def test_kinds():
    assert kind("_ZN7lossreg4cuda10map_kernelIffLi1EEEvv") == "map_kernel<float>"
    assert kind("_ZN7lossreg4cuda9boxes_sumIdvLi1EEEvv") == "boxes_sum<double, void>"
    assert kind("_ZN7lossreg4cuda11each_kernelINS_4BodyIdEEEEvv") == "each_kernel"
    names = ["_ZN7lossreg4cuda10map_kernelIffE", "_ZN7lossreg4cuda12teams_kernelIE", "_ZN7lossreg4cuda10map_kernelIfvE"]
    assert [allowed(n) for n in names] == [0, 0, 192]


def test_kernels_keep_to_registers(local_memory):
    streaming = {"map_kernel<float>", "sum_kernel<float>", "boxes_map<float>", "boxes_sum<float>", "boxes_grad<float>"}
    for architecture, functions in local_memory.items():
        assert streaming <= {kind(name) for name in functions}, architecture
        too_much = {name: count for name, count in functions.items() if count > allowed(name)}
        assert not too_much, architecture
