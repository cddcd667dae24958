"""The C++ tests, compiled with sanitizers: formulas against dual numbers, mathematics against libm, the parser."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX", "g++")
FAMILIES = sorted(path.stem for path in (ROOT / "csrc" / "formulas").glob("*.h"))
TORCH_HEADERS = ["-isystem", str(Path(torch.__file__).parent / "include"), "-DTORCH_TARGET_VERSION=0x020b000000000000"]
# the flags that change floating point are those of csrc/CMakeLists.txt
FLAGS = [
    *("-std=c++17", "-g", "-fno-math-errno", "-fno-trapping-math", "-fopenmp-simd", "-Wall", "-Wextra", "-Werror"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
]

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"no C++ compiler {COMPILER}")


def build_and_run(tmp_path: Path, source: str, *flags: str) -> str:
    program = tmp_path / Path(source).stem
    command = [COMPILER, *FLAGS, *flags, "-I", "csrc", f"tests/kernels/cpp/{source}", "-o", str(program)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert build.returncode == 0, build.stderr
    # the leak checker can't run where the process is traced, as in many containers
    env = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run([str(program)], env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    print(run.stdout)
    return run.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_formulas(family: str, tmp_path: Path) -> None:
    report = build_and_run(tmp_path, "formulas_test.cpp", "-O0", f'-DLOSSREG_FAMILY="formulas/{family}.h"')
    text = (ROOT / "csrc" / "formulas" / f"{family}.h").read_text()
    scalar = "PointwiseOps<" in text or "BoxOps<" in text
    assert ("gradients compared" in report) if scalar else ("no scalar formulas" in report)


def test_schema_parser(tmp_path: Path) -> None:
    build_and_run(tmp_path, "schema_test.cpp")


GROUP_FAMILIES = [f for f in FAMILIES if "GroupOps<" in (ROOT / "csrc" / "formulas" / f"{f}.h").read_text()]


@pytest.mark.parametrize("family", GROUP_FAMILIES)
def test_groups(family: str, tmp_path: Path) -> None:
    family_flag = f'-DLOSSREG_FAMILY="formulas/{family}.h"'
    report = build_and_run(tmp_path, "groups_test.cpp", "-O0", family_flag, *TORCH_HEADERS)
    assert "gradients compared" in report


def compile_over_null_backend(family: str, *flags: str) -> str:
    """What the compiler says of the family's kernels over NullBackend."""
    command = [
        COMPILER,
        "-std=c++17",
        "-fsyntax-only",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        "csrc",
    ]
    command += [f'-DLOSSREG_FAMILY="{family}"', *TORCH_HEADERS, *flags, "tests/kernels/cpp/backend_test.cpp"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stderr


ALL_FAMILIES = sorted(
    str(path.relative_to(ROOT / "csrc"))
    for kind in ("formulas", "standalone")
    for path in (ROOT / "csrc" / kind).glob("*.h")
)


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_the_backend_s_contract_is_enough(family: str) -> None:
    assert not compile_over_null_backend(family)


@pytest.mark.parametrize("member", ["Guard", "checks_values", "each", "total", "wide_product"])
def test_a_missing_member_of_a_backend_is_one_error_that_names_it(member: str) -> None:
    said = compile_over_null_backend("formulas/box.h", f"-DLOSSREG_WITHOUT=NullBackend::{member}")
    assert said.count(" error: ") == 1
    assert f"with Member = member::{member}; Backend = Lacking" in said
    assert (
        "error: static assertion failed: the Backend lacks this Member; NullBackend of skeletons/backend.h has it"
        in said
    )


def test_a_missing_skeleton_of_a_backend_is_an_error_a_kernel() -> None:
    said = compile_over_null_backend("formulas/binary.h", "-DLOSSREG_WITHOUT=NullBackend::Boxes")
    assert said.count(" error: ") == 3
    assert all(f"with Member = member::boxes_{kernel}; Backend" in said for kernel in ("map", "sum", "grad"))


ROW_FAMILIES = [f for f in FAMILIES if "RowOps<" in (ROOT / "csrc" / "formulas" / f"{f}.h").read_text()]


@pytest.mark.parametrize("family", ROW_FAMILIES)
def test_rows(family: str, tmp_path: Path) -> None:
    report = build_and_run(tmp_path, "rows_test.cpp", "-O0", f'-DLOSSREG_FAMILY="formulas/{family}.h"')
    assert "gradients compared" in report


@pytest.mark.parametrize(
    "source", ["arrivals_test.cpp", "errors_test.cpp", "iteration_test.cpp", "log_sum_exp_test.cpp", "regions_test.cpp"]
)
def test_shared_mathematics(source: str, tmp_path: Path) -> None:
    assert "compared" in build_and_run(tmp_path, source, "-O1", "-pthread")


# native: with fused multiply-add, as the vector loops have it on a new processor
@pytest.mark.parametrize("machine", [[], ["-march=native"]], ids=["baseline", "native"])
def test_math(machine: list[str], tmp_path: Path) -> None:
    report = build_and_run(tmp_path, "math_test.cpp", "-O2", *machine)
    functions = ("exp", "log", "log1p_unit", "one_minus_exp", "pow_unit", "sigmoid", "softplus", "atan2", "Lean exp")
    for name in (*functions, "Float16", "BFloat16", "words"):
        assert f"\n{name} " in "\n" + report


def test_special_functions(tmp_path: Path) -> None:
    report = build_and_run(tmp_path, "special_test.cpp", "-O2", "-march=native")
    for name in ("expm1", "tanh", "log_cosh", "exp_of_square", "erfc", "erf", "sin", "cos", "floor", "pow"):
        assert f"\n{name} " in "\n" + report
