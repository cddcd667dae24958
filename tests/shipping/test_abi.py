"""The library asks only for what every torch since 2.11 and every machine of its manylinux tag has."""

import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

import opreg
import tag_wheel

LIBRARY = opreg.library_path()
HEADERS = Path(torch.__file__).parent / "include/torch/csrc"

# A symbol with a version is of the system; without one it is of torch's C interface, of the C++ runtime that torch
# brings along (libtorch_cpu.so has the newer parts of libstdc++ in it), or a mark of the toolchain. Compiled models ask
# for aoti_torch__reinterpret_tensor, two underscores included, in every version.
SYSTEM = re.compile(r"GLIBC_\d|GLIBCXX_3\.4|CXXABI_1\.3|GCC_\d")
TORCH = re.compile(r"(aoti_torch|torch)__?[a-z]\w*")
RUNTIME = re.compile(r"_Z(N?K?)(S[absiod]?t?|T[ISV]|n|d)")
TOOLCHAIN = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
# A mangled name holds each part of the qualified name after its length.
OF_TORCH = re.compile(r"3c10|2at|5torch|6caffe2")


def refused(symbols: list[tag_wheel.Symbol]) -> list[str]:
    def stable(s: tag_wheel.Symbol) -> bool:
        if s.name.startswith("_Z"):
            return not OF_TORCH.search(s.name) and bool(SYSTEM.match(s.version) or RUNTIME.match(s.name))
        return bool(SYSTEM.match(s.version) or TORCH.fullmatch(s.name)) or (s.weak and s.name in TOOLCHAIN)

    return [s.name for s in symbols if not stable(s)]


def test_undefined_symbols_are_stable():
    assert refused(tag_wheel.undefined(LIBRARY)) == []


@pytest.mark.parametrize(
    "name",
    [
        "_ZN3c105ErrorC1ENS_14SourceLocationENSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE",
        "_ZN2at4_ops3add6TensorE",
        "_ZNKSt6vectorIN3c106SymIntESaIS1_EE4sizeEv",
        "_ZN5torch7LibraryC1ENS0_4KindE",
        "PyObject_Call",
        "cudaMalloc",
        "omp_get_num_threads",
    ],
)
def test_audit_refuses(name):
    assert refused([tag_wheel.Symbol(name, "", weak=False)]) == [name]


def test_symbols_of_torch_are_declared_in_its_stable_headers():
    text = "".join(
        p.read_text() for folder in ("inductor/aoti_torch", "stable") for p in sorted((HEADERS / folder).rglob("*.h"))
    )
    # a name may be pasted together: aoti_torch_dtype_##TYPE; CUDA's are declared where torch is built with it
    declared = set(re.findall(r"\b(?:aoti_torch|torch)_\w+", text))
    asked = {s.name for s in tag_wheel.undefined(LIBRARY) if TORCH.fullmatch(s.name)}
    assert asked - declared == set()


def of_later_versions(header: str, oldest: str) -> set[str]:
    """Macros and functions that stand where a header asks for a torch later than ``oldest``, in either branch: what the
    other branch has in their place is of the later header too."""
    asks: list[bool] = []  # of each conditional that is open: is it one for a later torch?
    found = set()
    for line in header.replace("\\\n", " ").splitlines():
        if condition := re.match(r"\s*#\s*if(?:n?def)?\b(.*)", line):
            asked = re.findall(r"TORCH_VERSION_(\d+)_(\d+)_", condition[1])
            asks.append(any((int(a), int(b)) > tuple(map(int, oldest.split("."))) for a, b in asked))
        elif re.match(r"\s*#\s*endif\b", line):
            asks.pop()
        elif any(asks):
            found |= set(re.findall(r"#\s*define\s+(\w+)", line)) | set(re.findall(r"\b((?:aoti_)?torch_\w+)\(", line))
    return found


def test_headers_ask_for_the_oldest_torch_alone():
    """They are compiled beside whatever torch a user has, from 2.11 on, whose headers lack what came later."""
    later = {n for p in (HEADERS / "stable").rglob("*.h") for n in of_later_versions(p.read_text(), oldest="2.11")}
    assert "STABLE_TORCH_ERROR_CODE_CHECK" in later
    assert "torch_library_def_with_tags" in later
    root = Path(__file__).parents[2] / "csrc"
    ours = {
        p: set(re.findall(r"\w+", p.read_text())) & later for p in root.rglob("*") if p.suffix in (".h", ".cpp", ".cu")
    }
    assert len(ours) > 50
    assert {str(p.relative_to(root)): names for p, names in ours.items() if names} == {}


def test_cuda_entry_points_may_be_missing():
    """A torch built for the CPU has them not."""
    cuda = [s for s in tag_wheel.undefined(LIBRARY) if TORCH.fullmatch(s.name) and re.search("cuda_(?!type)", s.name)]
    assert [s.name for s in cuda if not s.weak] == []


def test_linked_to_torch_and_the_system_alone():
    system = {"libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2"}
    older = {"libpthread.so.0", "libdl.so.2", "librt.so.1"}  # parts of libc.so.6 since glibc 2.34
    assert set(tag_wheel.needed(LIBRARY)) - system - older == {"libtorch.so", "libtorch_cpu.so", "libc10.so"}


@pytest.mark.parametrize(
    ("versions", "floor"),
    [
        ([], 17),
        (["GLIBC_2.2.5", "GLIBC_2.14", ""], 17),
        (["GLIBC_2.34", "GLIBC_2.4"], 34),
        (["GLIBC_2.17", "GLIBCXX_3.4.21"], 27),
        (["GLIBC_2.17", "GLIBCXX_3.4.29", "CXXABI_1.3.9", "GCC_3.0"], 34),
    ],
)
def test_glibc_floor(versions, floor):
    assert tag_wheel.glibc_floor([tag_wheel.Symbol("f", version, weak=False) for version in versions]) == floor


def test_glibc_floor_of_an_unknown_libstdcxx():
    with pytest.raises(ValueError, match=r"f: expected GLIBCXX_3.4.33 at most, got 3.4.99"):
        tag_wheel.glibc_floor([tag_wheel.Symbol("f", "GLIBCXX_3.4.99", weak=False)])


def test_retagged_wheel(tmp_path):
    """By `make wheel`: the name and the metadata say what the library inside needs."""
    wheelfile = pytest.importorskip("wheel.wheelfile")
    made = tmp_path / "opreg-0.1.0-py3-none-linux_x86_64.whl"
    info = "opreg-0.1.0.dist-info"
    with wheelfile.WheelFile(str(made), "w") as archive:  # which lists the files and their sums by itself
        archive.write(str(LIBRARY), "opreg/liblossreg.so")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: opreg\nVersion: 0.1.0\n")
        tags = "Root-Is-Purelib: false\nTag: py3-none-linux_x86_64\n"
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\n{tags}")
    tag = tag_wheel.platform_tag(LIBRARY)
    retagged = tag_wheel.retag(made)
    assert list(tmp_path.iterdir()) == [retagged]
    assert retagged.name == f"opreg-0.1.0-py3-none-{tag}.whl"
    with zipfile.ZipFile(retagged) as archive:
        assert f"Tag: py3-none-{tag}" in archive.read(f"{info}/WHEEL").decode().splitlines()
        assert archive.getinfo("opreg/liblossreg.so").file_size == LIBRARY.stat().st_size
    assert tag_wheel.retag(retagged) == retagged


def test_wheel_with_another_library(tmp_path):
    with zipfile.ZipFile(tmp_path / "opreg.whl", "w") as archive:
        archive.writestr("opreg/other.so", "")
    with pytest.raises(ValueError, match=r"expected opreg/lib\*.so and no other library, got \['opreg/other.so'"):
        tag_wheel.retag(tmp_path / "opreg.whl")


def test_tools_of_the_audit_are_there():
    assert shutil.which("nm")
    assert shutil.which("readelf")


def test_builds_of_the_makefile_take_its_torch():
    """A source distribution is built with any torch of a range; the Makefile's environment has one exact version, which
    is in that range, and no build of it is isolated: pip would fetch the newest torch, with CUDA, for it."""
    root = Path(__file__).parents[2]
    makefile, project = (root / "Makefile").read_text(), (root / "pyproject.toml").read_text()
    (exact,) = re.findall(r"^TORCH \?= torch==([\d.]+)$", makefile, re.M)
    (requires,) = re.findall(r"^requires = \[(.*)\]$", project, re.M)
    (oldest,) = re.findall(r'"torch>=([\d.]+)"', requires)
    numbers = [[int(n) for n in text.split(".")] for text in (oldest, exact)]
    assert numbers[0] <= numbers[1]
    here = [line for line in makefile.splitlines() if re.search(r'pip (install|wheel).*[ "]\.(\[|$|"| )', line)]
    assert len(here) == 3
    assert all("--no-build-isolation" in line for line in here)
