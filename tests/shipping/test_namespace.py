"""A build whose ops have another namespace: they pass the tests of every op, beside the library of the usual one."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opreg
from conftest import ROOT

OTHER = "otherloss"


@pytest.fixture(scope="module")
def other() -> Path:
    """Two families of ops under another namespace, an activation's inlined formulas and a loss's kernels."""
    build = ROOT / "build" / "namespace"
    torch_dir = Path(torch.__file__).parent
    options = {"TORCH_DIR": torch_dir, "NAMESPACE": OTHER, "FAMILIES": "activation;lovasz", "CUDA": "OFF"}
    configure = ["cmake", "-S", ROOT / "csrc", "-B", build, *(f"-DLOSSREG_{k}={v}" for k, v in options.items())]
    for command in (configure, ["cmake", "--build", build, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / f"lib{OTHER}.so"


def run(text: str, *libraries: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OPREG_LIBRARY": os.pathsep.join(map(str, libraries))}
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, env=environment, cwd=ROOT)


# The usual library's kernels are there too, and compute the same.
BOTH = f"""
import torch, opreg
from opreg._library import NAMESPACE, OPS
from opreg.registry import of_namespace
assert (NAMESPACE, OPS) == ({OTHER!r}, torch.ops.{OTHER})
assert {{op.family for op in of_namespace()}} == {{"activation", "lovasz"}}
assert not of_namespace("lossreg")
scores, labels = torch.randn(2, 9), torch.randint(2, (2, 9))
ours, usual = (getattr(torch.ops, n + "_kernels").lovasz_hinge_loss(scores, labels) for n in ({OTHER!r}, "lossreg"))
assert torch.equal(ours, usual)
"""


def test_the_suite_beside_the_usual_library(other):
    files = [ROOT / "tests/every_op" / f"test_{name}.py" for name in ("registry", "values", "autograd", "compile")]
    chosen = ["-k", "registry or swish or lovasz_hinge_loss", *map(str, files)]
    text = f"""
import pytest, torch
torch.ops.load_library({str(opreg.library_path())!r})
status = pytest.main(["-q", "-x", "-p", "no:cacheprovider", *{chosen!r}])
{BOTH}
raise SystemExit(status)
"""
    done = run(text, other)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


def test_two_libraries_whose_symbols_everybody_sees(other):
    """As in a program that is linked to both."""
    load = "".join(f"ctypes.CDLL({str(path)!r}, ctypes.RTLD_GLOBAL)\n" for path in (opreg.library_path(), other))
    done = run(f"import ctypes, torch\n{load}{BOTH}", other)
    assert done.returncode == 0, done.stderr


def test_libraries_of_two_namespaces_are_refused(other):
    done = run("import opreg", opreg.library_path(), other)
    assert "opreg: expected libraries of one namespace, got lossreg and otherloss" in done.stderr


def test_a_library_of_something_else_is_refused(tmp_path):
    source = tmp_path / "other.c"
    source.write_text("int nothing;\n")
    subprocess.run(["cc", "-shared", "-o", tmp_path / "other.so", source], check=True)
    done = run("import opreg", tmp_path / "other.so")
    assert "RuntimeError: opreg: expected a library built of its sources as they are now, got " in done.stderr


def test_a_namespace_is_a_name(tmp_path):
    done = subprocess.run(
        ["cmake", "-S", ROOT / "csrc", "-B", tmp_path, "-DLOSSREG_NAMESPACE=a::b"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "expected a namespace of small letters, digits and _, got a::b" in " ".join(done.stderr.split())


def test_a_library_exports_what_it_says_of_itself_alone(other):
    """So that of two builds in one process each runs its own loops, however they were loaded."""
    for library in (opreg.library_path(), other):
        lines = subprocess.run(
            ["nm", "--dynamic", "--defined-only", library], capture_output=True, text=True, check=True
        ).stdout.splitlines()
        said = {"cuda_toolkit", "defined", "enter", "namespace", "partial", "refused", "version", "withdraw"}
        assert {line.split()[-1] for line in lines} == {f"lossreg_{name}" for name in said}
    said = ctypes.CDLL(str(other)).lossreg_namespace
    said.restype = ctypes.c_char_p
    assert said() == OTHER.encode()


def test_names_are_said_once():
    """The namespace is the build's: nothing in opreg's code has it but documentation, the names of C functions and of
    source files, and the text of C++ that is written, whose namespace is fixed."""
    found = []
    for path in sorted((*(ROOT / "opreg").rglob("*.py"), *(ROOT / "meta").rglob("*.py"))):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            rest = line.replace("``torch.ops.lossreg", "").replace("namespace lossreg", "")
            if path.name in ("_library.py", "hub.py"):
                rest = rest.replace("lossreg_", "")
            if path.name == "hub.py":
                rest = rest.replace("lossreg.", "")
            if "lossreg" in rest:
                found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []
