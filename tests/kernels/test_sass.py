"""The sm_90 machine code of the kernels, held to what memory asks of it: wide loads, many under way, few instructions.

A GPU of that generation needs 32 KB under way in each multiprocessor to keep its memory busy, and moves 13 bytes a
cycle there, for which four schedulers issue four instructions. ``python tests/kernels/sass.py BUILD FAMILY NAME`` says
of a kernel what this test sees.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import opreg
import sass
from conftest import BUILD
from opreg.catalogue import coverage

STORED = "float|BFloat16|Float16"


@dataclass(frozen=True)
class Bar:
    """What kernels of a form must reach. 16-bit bars on instructions hold for float32 too."""

    kernels: str
    widest: int = 16  # bytes of the widest load, at least
    kilobytes: int = 32  # under way in a multiprocessor, at least
    a_thread: int = 0  # bytes under way of each thread, at least
    instructions: int | None = None  # an element, at most
    stores: bool = False  # elements are counted by what is stored, not by what is loaded


BARS = [
    Bar(rf"(map|sum)_kernel<float, ({STORED}),"),
    Bar(rf"rows_forward_along<float, ({STORED}), ", a_thread=64, instructions=8),
    Bar(rf"rows_grad_along<float, ({STORED}), ", a_thread=64, instructions=12, stores=True),
    Bar(rf"rows_forward_across<float, ({STORED}), ", instructions=14),
    Bar(rf"rows_grad_across<float, ({STORED}), ", instructions=14, stores=True),
    Bar(rf"region_(sums|grad)_\w+<float, ({STORED}), true", instructions=14),
    Bar(rf"region_(describe|keys)<float, ({STORED}), true"),
    Bar(rf"groups_forward<float, ({STORED}), \(Side\)[01], "),
    Bar(rf"groups_grad<float, ({STORED}), \(Side\)[01], "),
    Bar(rf"boxes_\w+<float, ({STORED})", widest=8),
]

# What falls short: the form of the kernels, the quantity, how far, and why, with what it costs. An element of 16 bits
# that is read leaves the schedulers time for 19 instructions, one that is read and written for 38, and one of float32
# for twice that: "free" is what stays below. 10 KB under way keep memory busy while nothing else waits for it; the bar
# is three times that, and what falls between is slower by a few percent where a GPU is shared.
EXCEPTIONS: list[tuple[str, str, float, str]] = [
    (r"rows_\w+<.* NLLLoss", "widest load", 8, "zeros are written, and one element a row: nothing is loaded; free"),
    (r"rows_\w+<.* NLLLoss", "KB a multiprocessor", 10, "the same"),
    (r"rows_\w+<.* NLLLoss", "bytes a thread", 8, "the same"),
    (r"rows_\w+<.* NLLLoss", "instructions an element", float("inf"), "the same: what the loop stores are scattered"),
    (r"rows_\w+<.* NLLLoss", "conversions from float64", 2, "a row's factor, once a row, which is its loop; free"),
    (
        r"rows_forward_along<.* 0, (AMSoftmax|ArcFace)Loss",
        "instructions an element",
        10.8,
        "the target's score is moved by a margin: looked for in every group of packs, hidden in one; free",
    ),
    (
        r"rows_forward_\w+<.* (CrossEntropyOp|WithSoftcap<)",
        "instructions an element",
        36.2,
        "softcap's tanh of every score; free in float32, up to 1.7 of the memory's time in 16 bits",
    ),
    (
        r"rows_forward_along<float, float, 2, (CrossEntropyOp|WithSoftcap<)",
        "bytes a thread",
        56,
        "the same, beside shares: registers",
    ),
    (
        r"rows_grad_\w+<.* (CrossEntropyOp|WithSoftcap<)",
        "instructions an element",
        77.6,
        "softcap's tanh and its slope at every score; free in float32, up to 1.9 of the memory's time in 16 bits",
    ),
    (r"rows_grad_along<float, float, 2, WithZLoss<", "bytes a thread", 44, "shares beside scores; free"),
    (r"rows_grad_along<float, float, 2, WithZLoss<", "instructions an element", 21, "the same"),
    (r"rows_grad_across<.* WithZLoss<", "instructions an element", 29.1, "a share of every class besides; free"),
    (
        r"rows_forward_across<.*, 2, WithZLoss<",
        "conversions from float64",
        1,
        "the rows' mean weight, once a row; free",
    ),
    (r"rows_forward_along<float, float, 1, ", "instructions an element", 10.6, "a share of every class besides; free"),
    (
        r"rows_forward_along<.*16, 2, ",
        "KB a multiprocessor",
        24,
        "shares in float32 beside scores of 16 bits: registers",
    ),
    (r"rows_grad_along<.* 0, PCSoftmax", "instructions an element", 14, "a bias of every class besides; free"),
    (r"rows_grad_along<.* 0, PCSoftmax", "bytes a thread", 40, "the same: the bias waits in the second-level cache"),
    (r"rows_grad_along<.*, 2, ", "instructions an element", 19.8, "a share of every class is read besides; free"),
    (r"rows_(forward|grad)_across<.*16, 1, ", "KB a multiprocessor", 16, "eight pixels of two sums: registers"),
    (r"rows_grad_across<.* 0, PCSoftmax", "KB a multiprocessor", 27, "the same"),
    (r"rows_grad_across<.* 0, PCSoftmax", "instructions an element", 20.5, "a bias of every class besides; free"),
    (r"rows_grad_across<.*, [12], ", "instructions an element", 28.8, "a share of every class besides; free"),
    (
        r"groups_grad<float, BFloat16, .* Triplet",
        "conversions from float64",
        1,
        "a group's factor, once a group, which is its loop; free",
    ),
    (
        r"groups_\w+<float, \w+16, \(Side\)0",
        "KB a multiprocessor",
        24,
        "three vectors of 128 in 16 bits are 48 bytes a lane and no more; free",
    ),
    (r"groups_\w+<float, \w+16, \(Side\)1", "KB a multiprocessor", 16, "eight groups' sums a thread: registers"),
    (
        r"region_\w+<float, \w+16, ",
        "KB a multiprocessor",
        12,
        "eight pixels' sums a thread: registers; 10 % in 16 bits",
    ),
    (r"region_grad_softmax<", "conversions from float64", 8, "a class's coefficients are float64 in the state; 5 %"),
    (r"region_sums_softmax<", "instructions an element", 15.4, "three sums a class, in shared memory; free"),
    (
        r"boxes_\w+<.* BoxBody<ProbIoULoss",
        "widest load",
        4,
        "a box of five numbers begins on no boundary of a wider load: each is one of its own, out of lines that the "
        "first one fetched; its formula takes longer than its memory",
    ),
    (r"boxes_\w+<.* BoxBody<ProbIoULoss", "KB a multiprocessor", 4, "the same"),
    (r"boxes_\w+<.* BoxBody<ProbIoULoss", "local memory", 1, "CUDA's own sine of an angle above 1e5; free elsewhere"),
    (r"region_grad_sigmoid<", "instructions an element", 27, "a sigmoid with its quotient; free but in 16 bits, 0.8"),
]


def width_of(kernel: sass.Kernel) -> int:
    """Bytes of an element, of the storage type among a kernel's arguments."""
    return 2 if re.search(r"<float, B?Float16", kernel.name) else 4


def shortfalls(kernel: sass.Kernel, bar: Bar) -> Iterator[tuple[str, float]]:
    """Quantity and value, where it is not what the bar asks for."""
    hot = kernel.hot
    if (widest := hot.widest(sass.LOADS)) < bar.widest:
        yield "widest load", widest
    if (kilobytes := kernel.in_flight() / 1024) < bar.kilobytes:
        yield "KB a multiprocessor", round(kilobytes, 1)
    if (of_thread := hot.in_flight) < bar.a_thread:
        yield "bytes a thread", of_thread
    moved = hot.bytes_of(sass.STORES if bar.stores else sass.LOADS) / width_of(kernel)
    if bar.instructions is not None and (moved == 0 or len(hot.code) / moved > bar.instructions):
        yield "instructions an element", round(len(hot.code) / moved, 1) if moved else float("inf")
    yield from everywhere(kernel)


def everywhere(kernel: sass.Kernel) -> Iterator[tuple[str, float]]:
    """What no kernel of float32 and 16-bit operands has where its time is spent."""
    hot = kernel.hot
    if hot.is_loop:
        if calls := [name for name in hot.calls if "slowpath" not in name]:
            yield "calls", len(calls)
        # options that are kept as float64; a sum of many is added up in float64, once a turn
        if conversions := hot.count(r"F2F\.F32\.F64"):
            yield "conversions from float64", conversions
    if local := hot.count("LDL|STL"):
        yield "local memory", local


def is_excused(kernel: sass.Kernel, quantity: str, value: float) -> bool:
    for form, of, limit, _ in EXCEPTIONS:
        if of == quantity and re.match(form, kernel.name):
            within = value <= limit if quantity in MOST else value >= limit
            if within:
                return True
    return False


MOST = ("instructions an element", "calls", "conversions from float64", "local memory")


@pytest.fixture(scope="module")
def kernels() -> dict[str, sass.Kernel]:
    if not coverage(opreg.get("swish"))["CUDA"] or BUILD is None or not sass.objects(BUILD):
        pytest.skip("the library was not built here by nvcc")
    if sass.tool("nvdisasm") is None or sass.tool("cuobjdump") is None:
        pytest.skip("expected nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump: make test installs them")
    return sass.kernels(BUILD)


@pytest.mark.parametrize("bar", BARS, ids=lambda bar: re.match(r"[\w()|\\+]+", bar.kernels)[0])
def test_bars(kernels, bar):
    chosen = [k for k in kernels.values() if re.match(bar.kernels, k.name)]
    assert chosen, "no kernel has this form any more"
    missed = [
        f"{k.name}: {quantity} {value}"
        for k in chosen
        for quantity, value in shortfalls(k, bar)
        if not is_excused(k, quantity, value)
    ]
    assert not missed, f"{len(missed)} of {len(chosen)}:\n" + "\n".join(missed)


def test_every_exception_is_needed(kernels):
    """One that nothing falls under any more is deleted."""
    found = [
        (k.name, quantity)
        for bar in BARS
        for k in kernels.values()
        if re.match(bar.kernels, k.name)
        for quantity, _ in shortfalls(k, bar)
    ]
    idle = [
        (form, quantity)
        for form, quantity, _, _ in EXCEPTIONS
        if not any(of == quantity and re.match(form, name) for name, of in found)
    ]
    assert not idle


LISTING = """
        /*0000*/                   MOV R0, R1 ;
        /*0010*/              @!P0 EXIT ;
.L_x_1:
        /*0020*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.128 R8, desc[UR4][R2.64+0x10] ;
        /*0040*/                   FADD R4, R4, R8 ;
        /*0050*/               @P1 BRA `(.L_x_3) ;
        /*0060*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm3x_div_rn_noftz_f32_slowpath) ;
.L_x_3:
        /*0070*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0080*/               @P0 BRA `(.L_x_1) ;
.L_x_4:
        /*0090*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*00a0*/                   STG.E.U16 desc[UR4][R2.64], R4 ;
        /*00b0*/               @P2 BRA `(.L_x_4) ;
        /*00c0*/                   EXIT ;
$callee:
        /*00d0*/                   RET.REL.NODEC R2 `(kernel) ;
"""


def test_a_loop_is_read():
    """The one that moves most; its loads are under way together, and the slow path is no part of it."""
    kernel = sass.Kernel("kernel", LISTING, sass.Resources(40, 0, 0, 0))
    assert len(kernel.loops) == 2
    assert [i.opcode for i in kernel.hot.code] == ["LDG.E.128", "LDG.E.128", "FADD", "BRA", "STG.E.64", "BRA"]
    assert (kernel.hot.is_loop, kernel.hot.calls) == (True, ())
    assert (kernel.hot.bytes_of(sass.LOADS), kernel.hot.widest(sass.STORES), kernel.hot.in_flight) == (32, 8, 32)
    # 40 registers: 6 blocks of 256 threads
    assert kernel.in_flight() == 6 * 256 * 32
    assert kernel.hot.cycles() == {"issue": 6, "special": 0, "double": 0, "memory": 12, "integer": 0}


def test_a_load_that_is_waited_for_is_not_under_way():
    text = LISTING.replace("FADD R4, R4, R8", "MOV R12, R4").replace("/*0030*/", "/*0031*/")
    lines = text.splitlines()
    at = next(n for n, line in enumerate(lines) if "MOV R12" in line)
    lines[at - 1], lines[at] = lines[at], lines[at - 1]
    kernel = sass.Kernel("kernel", "\n".join(lines), sass.Resources(40, 0, 0, 0))
    assert kernel.hot.in_flight == 32  # the first of the next turn, while nobody has read the second
    serial = sass.Region(kernel.hot.code[:3], (), False)
    assert serial.in_flight == 16


def test_resources_are_read():
    log = """ptxas info    : Compiling entry function '_Z3one' for 'sm_90'
ptxas info    : Function properties for _Z3one
    8 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 784 bytes smem
ptxas info    : Compiling entry function '_Z3two' for 'sm_80'
ptxas info    : Function properties for _Z3two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers
"""
    assert sass.resources(log) == {"_Z3one": sass.Resources(40, 784, 8, 4)}
