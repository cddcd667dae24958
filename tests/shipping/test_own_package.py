"""A package of ops of one's own: written by ``python -m opreg new``, installed by pip, used with Python and without."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opreg
from conftest import ROOT

TORCH = Path(torch.__file__).parent


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """The folder that it was written to."""
    folder = tmp_path_factory.mktemp("package") / "theirs"
    files = run(sys.executable, "-m", "opreg", "new", "theirs", folder).split("wrote ")[1:]
    assert {str(Path(f.strip()).relative_to(folder)) for f in files} >= {
        "CMakeLists.txt", "README.md", "my_losses.h", "pyproject.toml", "tests/test_theirs.py", "theirs/__init__.py",
    }  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def installed(package, tmp_path_factory) -> dict[str, str]:
    """An environment in which it is installed, beside this one's opreg and torch."""
    site = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--target", site)
    tools = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    without_cuda = "-DCMAKE_CUDA_COMPILER=NOTFOUND"
    run(*pip, package, CMAKE_PREFIX_PATH=opreg.cmake_prefix_path, CMAKE_ARGS=without_cuda, PATH=tools)
    paths = (str(site), str(ROOT), os.environ.get("PYTHONPATH", ""))
    return {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "site": str(site)}


def test_it_passes_its_tests(package, installed):
    said = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests", **installed)
    assert "2 passed" in said


def test_the_command_line_knows_it(installed):
    lines = run(sys.executable, "-m", "opreg", "ops", **installed).splitlines()
    (row,) = (line.split() for line in lines if line.startswith("theirs::"))
    assert row == ["theirs::charbonnier_loss", "yes", "no", "yes", "yes", "yes", "yes"]


def test_a_program_without_python_runs_it(installed, tmp_path):
    include = (f"-isystem{TORCH / part}" for part in ("include", "include/torch/csrc/api/include"))
    libraries = (TORCH / "lib" / f"lib{name}.so" for name in ("torch", "torch_cpu", "c10"))
    link = ("-Wl,--no-as-needed,--unresolved-symbols=ignore-in-shared-libs", f"-Wl,-rpath,{TORCH / 'lib'}", "-ldl")
    program = tmp_path / "call_op"
    options = ("-std=c++17", "-DTORCH_TARGET_VERSION=0x020b000000000000", *include)
    run("c++", *options, Path(__file__).with_name("call_op.cpp"), "-o", program, *link, *libraries)
    (library,) = Path(installed["site"]).glob("theirs/lib*.so")
    assert run(program, library, "theirs::charbonnier_loss").strip() == "9"  # 4 + 5
    assert "libpython" not in run("ldd", program) + run("ldd", library)


def test_a_name_that_is_none(tmp_path):
    command = [sys.executable, "-m", "opreg", "new", "My-Losses", str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (
        2, "opreg: expected a name of small letters, digits and _, got 'My-Losses'\n",
    )  # fmt: skip
    command[-2:] = ["fine", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (2, f"opreg: expected a folder that is not there yet, got {tmp_path}\n")
