"""Another processor: the C++ tests and the library, compiled by a cross compiler and run by qemu; and whether the loops
became vectors there. ``make cross`` has what it takes: g++-aarch64-linux-gnu, qemu-user, and torch's wheel for aarch64,
whose folder OPREG_AARCH64_TORCH names."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
FLAGS = (ROOT / "csrc" / "cxx_flags.txt").read_text().split()
TORCH_HEADERS = ["-isystem", str(Path(torch.__file__).parent / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# Debian's cross compiler brings the libraries of that processor
SYSTEM = "/usr/aarch64-linux-gnu"
FAMILIES = sorted(path.stem for path in (ROOT / "csrc" / "formulas").glob("*.h"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no {COMPILER}: Debian's g++-aarch64-linux-gnu"),
]
emulated = pytest.mark.skipif(shutil.which(EMULATOR) is None, reason=f"no {EMULATOR}: Debian's qemu-user")


def run(command: list[str], **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    said: str = done.stdout
    return said


def build_and_run(folder: Path, source: str, *flags: str) -> str:
    program = str(folder / Path(source).stem)
    options = ["-std=c++17", "-static", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra", "-Werror", *flags]
    run([COMPILER, *options, "-I", "csrc", f"tests/kernels/cpp/{source}", "-o", program])
    return run([EMULATOR, program])


@emulated
@pytest.mark.parametrize("family", FAMILIES)
def test_formulas(family: str, tmp_path: Path) -> None:
    """Gradients against dual numbers, as on the processor at hand."""
    report = build_and_run(tmp_path, "formulas_test.cpp", "-O1", f'-DLOSSREG_FAMILY="formulas/{family}.h"')
    assert "gradients compared" in report or "no scalar formulas" in report


@emulated
@pytest.mark.parametrize("kind", ["Row", "Group"])
def test_rows_and_groups(kind: str, tmp_path: Path) -> None:
    having = [f for f in FAMILIES if f"{kind}Ops<" in (ROOT / "csrc" / "formulas" / f"{f}.h").read_text()]
    assert having
    for family in having:
        flags = ["-O1", f'-DLOSSREG_FAMILY="formulas/{family}.h"', *TORCH_HEADERS]
        assert "gradients compared" in build_and_run(tmp_path, f"{kind.lower()}s_test.cpp", *flags)


@emulated
@pytest.mark.parametrize(
    "source",
    ["arrivals_test.cpp", "errors_test.cpp", "iteration_test.cpp", "log_sum_exp_test.cpp", "regions_test.cpp"],
)
def test_shared_mathematics(source: str, tmp_path: Path) -> None:
    assert "compared" in build_and_run(tmp_path, source, "-O1", "-pthread")


@emulated
@pytest.mark.parametrize("source", ["math_test.cpp", "special_test.cpp", "schema_test.cpp"])
def test_mathematics(source: str, tmp_path: Path) -> None:
    """The bounds of the functions hold with this processor's instructions: a fused multiply-add is in its baseline."""
    assert "worst error" in build_and_run(tmp_path, source, "-O2") or source == "schema_test.cpp"


# A function of the assembly, and which of its loops' instructions are of NEON's vectors. For a processor that has SVE
# too, GCC 12 makes the same ones: in 44 of 44 loops of regression losses, and none of SVE.
FUNCTION = re.compile(r"^\t\.type\t(\S+), %function\n(.*?)^\t\.size\t\1", re.MULTILINE | re.DOTALL)
VECTORS = r"\tf\w+\tv\d+\.4s"
MACHINES = {"baseline": [], "with SVE": ["-march=armv8.2-a+sve"]}


@pytest.mark.parametrize("machine", list(MACHINES))
@pytest.mark.parametrize("family", ["activation", "regression", "binary"])
def test_loops_are_vectors(family: str, machine: str, tmp_path: Path) -> None:
    """Every loop over float32 and bfloat16 of the pointwise kernels, value, sum and gradient: swish's exponential, the
    squares of mse_loss, the logarithm of binary_cross_entropy."""
    assembly = tmp_path / f"{family}.s"
    options = ["-std=c++17", *FLAGS, *MACHINES[machine], "-fPIC", "-fvisibility=hidden", "-S", "-I", "csrc"]
    unit = [*TORCH_HEADERS, f'-DLOSSREG_FAMILY="formulas/{family}.h"', "csrc/lossreg.cpp", "-o", str(assembly)]
    run([COMPILER, *options, *unit])
    functions = dict(FUNCTION.findall(assembly.read_text()))
    names = run(["c++filt"], input="\n".join(functions)).splitlines()
    loops = {
        name: body
        for name, body in zip(names, functions.values(), strict=True)
        if re.search(r"cpu::(map|sum)_loop<float, ", name)
    }
    assert len(loops) > 10
    scalar = [name for name, body in loops.items() if not re.search(VECTORS, body)]
    assert scalar == []
    # none calls libm, which has no vectors
    assert [name for name, body in loops.items() if re.search(r"\tbl\t(exp|log|pow|tanh)f?\b", body)] == []


def stand_in(path: Path, symbols: list[str]) -> Path:
    """A library that has nothing but these functions, none of which is called: of CUDA, where there is no GPU."""
    source = path.with_suffix(".s")
    aliases = "".join(f"\t.globl\t{s}\n\t.type\t{s}, %function\n\t.set\t{s}, stop\n" for s in symbols)
    source.write_text(f"\t.text\nstop:\n\tbrk\t#1\n{aliases}")
    run(["aarch64-linux-gnu-gcc", "-shared", "-nostdlib", f"-Wl,-soname,{path.name}", str(source), "-o", str(path)])
    return path


def undefined(library: Path) -> list[str]:
    listed = run(["aarch64-linux-gnu-nm", "--dynamic", "--undefined-only", str(library)]).splitlines()
    return [line.split()[-1].partition("@")[0] for line in listed if line.split()[0] == "U"]


# Of a Neoverse N1, as Linux says it.
CPUINFO = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1

"""


@emulated
def test_the_library_runs(tmp_path: Path) -> None:
    """Compiled, linked to torch's own build for aarch64, loaded in qemu, and called, without Python."""
    torch_dir = os.environ.get("OPREG_AARCH64_TORCH")
    if not torch_dir:
        pytest.skip("OPREG_AARCH64_TORCH does not name the folder of torch for aarch64: make cross downloads it")
    given = Path(torch_dir) / "lib"
    # that torch is built for CUDA: what it asks of the runtime is never called here, and its kernels stay out
    libraries = tmp_path / "lib"
    libraries.mkdir()
    for library in given.iterdir():
        if library.name not in ("libtorch.so", "libtorch_cuda.so"):
            (libraries / library.name).symlink_to(library)
    of_cuda = [s for s in undefined(given / "libtorch_cpu.so") if re.match("cu(da|pti)", s)]
    for name in ("libcudart.so.13", "libcupti.so.13"):
        stand_in(libraries / name, of_cuda)
    stand_in(libraries / "libtorch.so", [])
    build = ROOT / "build" / "aarch64" / "library"
    toolchain = tmp_path / "aarch64.cmake"
    toolchain.write_text(
        "set(CMAKE_SYSTEM_NAME Linux)\nset(CMAKE_SYSTEM_PROCESSOR aarch64)\n"
        f"set(CMAKE_CXX_COMPILER {COMPILER})\nset(CMAKE_FIND_ROOT_PATH {SYSTEM})\n"
    )
    options = {
        "CMAKE_TOOLCHAIN_FILE": toolchain, "LOSSREG_CUDA": "OFF", "LOSSREG_TORCH_DIR": torch_dir,
        "LOSSREG_FAMILIES": os.environ.get("OPREG_AARCH64_FAMILIES", "regression"),
    }  # fmt: skip
    run(["cmake", "-S", "csrc", "-B", str(build), *(f"-D{name}={value}" for name, value in options.items())])
    run(["cmake", "--build", str(build)])
    program = tmp_path / "call_op"
    headers = ["-isystem", str(Path(torch_dir) / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    link = [f"-L{libraries}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch", "-lc10", "-Wl,--allow-shlib-undefined"]
    run([COMPILER, "-std=c++17", *headers, "tests/shipping/call_op.cpp", "-o", str(program), *link])
    library = build / "liblossreg.so"
    # torch asks /proc/cpuinfo which processor it runs on, and the emulator would show that of this machine
    system = tmp_path / "system"
    (system / "proc").mkdir(parents=True)
    (system / "proc" / "cpuinfo").write_text(CPUINFO)
    (system / "lib").symlink_to(f"{SYSTEM}/lib")
    emulator = [EMULATOR, "-L", str(system), "-E", f"LD_LIBRARY_PATH={libraries}:{system}/lib"]
    said = run([*emulator, str(program), str(library), "lossreg::huber_loss"])
    assert said.strip() == "4.5"  # differences of 0 and 3, delta 4
