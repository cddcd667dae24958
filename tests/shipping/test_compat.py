"""``make compat``: the wheel, built against one torch, in clean environments with others.

Minutes, and gigabytes where an index has no CPU build: outside the default run. ``OPREG_COMPAT`` names the versions of
torch ("2.11.0 newest"). The environments are kept in ``build/compat``, the wheel in them is new each time.
"""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tag_wheel

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = os.environ.get("OPREG_COMPAT", "2.11.0 newest").split()
# each op's samples, forwards and backwards, against its reference, in every dtype; the derivatives of every order; what
# opreg takes from torch's private parts; the programs of torch.export; the rewrite, which reads each version's graphs
SUITE = [
    "every_op/test_values.py",
    "every_op/test_autograd.py",
    "every_op/test_registry.py",
    "shipping/test_saved_program.py",
    "rewrite/test_fuse.py",
    "rewrite/test_use.py",
]

pytestmark = pytest.mark.slow

ASK = """
import json, pathlib, torch, opreg
from opreg.registry import of_namespace
print(json.dumps([torch.__version__, opreg.__file__, str(opreg.library_path()), len(of_namespace())]))
"""


FORMULAS = """
import torch, opreg
from torch import Tensor

@opreg.pointwise("formulas")
def quartic_loss(input: Tensor, target: Tensor) -> Tensor:
    return (input - target) ** 4

@opreg.row("formulas")
def poly1_loss(nll: Tensor, *, eps: float = 1.0) -> Tensor:
    return nll + eps * (1 - torch.exp(-nll))

@opreg.region("formulas")
def tversky(tp: Tensor, fp: Tensor, fn: Tensor) -> Tensor:
    return 1 - (tp + 1) / (tp + 0.3 * fp + 0.7 * fn + 1)

for f in (quartic_loss, poly1_loss, tversky):
    opreg.testing.check(f.op)
"""


# torch 2.15 gave clamp another slope at its bounds: where the references clamp, they then differ from the kernels,
# which keep the slope of 2.13, at the samples that lie on a bound
SLOPE = "import torch; x = torch.zeros(1, requires_grad=True); x.clamp(min=0).backward(); print(x.grad.item())"


def run(*command: object, check: bool = True) -> str:
    """Away from the checkout, whose opreg is another one."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OPREG_LIBRARY", "PYTHONPATH")}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT / "build", env=environment)
    assert not check or done.returncode == 0, done.stdout[-20000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    found = sorted((ROOT / "dist").glob("opreg-*.whl"))
    assert len(found) == 1, f"expected one wheel in dist/, made by `make wheel`, got {[p.name for p in found]}"
    return found[0]


@pytest.fixture(scope="module", params=VERSIONS)
def environment(request: pytest.FixtureRequest, wheel: Path) -> tuple[str, Path]:
    """A version of torch, and the folder with the programs of an environment that has it and the wheel."""
    version = request.param
    if version == "newest":
        version = run(sys.executable, "-m", "pip", "index", "versions", "torch").split("(")[1].split(")")[0]
    folder = ROOT / "build" / "compat" / f"torch-{version}"
    binaries = folder / "bin"
    if not (folder / "complete").exists():
        run(sys.executable, "-m", "venv", folder)
        run(binaries / "pip", "install", "--quiet", f"torch=={version}", "numpy")
        run(binaries / "pip", "install", "--quiet", "pytest>=8", "pytest-xdist", "expecttest", "setuptools")
        (folder / "complete").touch()
    # no other torch may come with it
    run(binaries / "pip", "install", "--quiet", "--force-reinstall", "--no-deps", wheel)
    run(binaries / "pip", "check")
    return version, binaries


def test_name_of_the_wheel(wheel: Path) -> None:
    """Any CPython 3, and the manylinux tag of the library inside."""
    assert re.fullmatch(r"opreg-[\d.]+-py3-none-manylinux_2_\d+_x86_64.whl", wheel.name)
    assert tag_wheel.retag(wheel) == wheel


def test_stubs_are_in_the_wheel(wheel: Path) -> None:
    """For the type checkers and the editors of who installs it."""
    assert {"opreg/__init__.pyi", "opreg/functional.pyi", "opreg/nn/__init__.pyi", "opreg/py.typed"} <= set(
        zipfile.ZipFile(wheel).namelist()
    )


def test_headers_are_in_the_wheel(wheel: Path) -> None:
    """For who compiles ops against it: in a folder of their own, without opreg's own formulas."""
    names = zipfile.ZipFile(wheel).namelist()
    of_headers = {n for n in names if n.startswith("opreg/include/")}
    assert all(n.startswith("opreg/include/opreg/") for n in of_headers)
    assert {"opreg/include/opreg/opreg.h", "opreg/include/opreg/base/math.h"} <= of_headers
    assert not any("/formulas/" in n or "/standalone/" in n for n in of_headers)
    assert {"opreg/cmake/opregConfig.cmake", "opreg/building/own_package/CMakeLists.txt"} <= set(names)


def test_the_wheel_is_what_is_imported(environment: tuple[str, Path]) -> None:
    version, binaries = environment
    torch, package, library, ops = json.loads(run(binaries / "python", "-I", "-c", ASK))
    assert torch.split("+")[0] == version.split("+")[0]
    site = Path(package).parent.parent
    assert site.is_relative_to(binaries.parent)
    assert Path(library) == site / "opreg" / "liblossreg.so"
    assert ops > 50


def test_doctor_finds_nothing_wrong(environment: tuple[str, Path]) -> None:
    _, binaries = environment
    assert run(binaries / "python", "-I", "-m", "opreg", "doctor").endswith("Nothing is wrong.\n")


def test_ops_of_ones_own(environment: tuple[str, Path], tmp_path: Path) -> None:
    """With the wheel and a compiler alone: a package of ops is written, compiled, installed and tested."""
    _, binaries = environment
    python, package = binaries / "python", tmp_path / "theirs"
    run(binaries / "pip", "install", "--quiet", "scikit-build-core>=0.10", "cmake<4", "ninja")
    run(python, "-I", "-m", "opreg", "new", "theirs", package)
    options = (f"PATH={binaries}:{os.environ['PATH']}", "CMAKE_ARGS=-DCMAKE_CUDA_COMPILER=NOTFOUND")
    pip = (binaries / "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--force-reinstall", package)
    run("env", *options, *pip)
    assert "2 passed" in run(python, "-I", "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests")
    ask = f"import opreg; print(*opreg.build({str(package / 'my_losses.h')!r}, namespace='other').ops)"
    assert run("env", f"OPREG_CACHE={tmp_path / 'cache'}", python, "-I", "-c", ask) == "other::charbonnier_loss\n"
    run(binaries / "pip", "uninstall", "--quiet", "--yes", "theirs")
    (tmp_path / "formulas.py").write_text(FORMULAS)
    for _ in range(2):  # compiled, and then found
        run("env", f"OPREG_CACHE={tmp_path / 'cache'}", python, "-I", tmp_path / "formulas.py")


def test_suite(environment: tuple[str, Path]) -> None:
    version, binaries = environment
    files = [ROOT / "tests" / name for name in SUITE]
    of_2_13 = run(binaries / "python", "-I", "-c", SLOPE) == "1.0\n"
    options = ["-q", "-n", "2", "--tb=short", "-p", "no:cacheprovider", *([] if of_2_13 else ["-k", "not kinks"])]
    printed = run(binaries / "pytest", *options, *files, check=False)
    end = printed.splitlines()[-1] if printed else "nothing printed"
    print(f"torch {version}: {end}")
    assert re.search(r"\d+ passed", end), printed[-20000:]
    assert "failed" not in end, printed[-20000:]
    assert "error" not in end, printed[-20000:]
