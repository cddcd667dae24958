"""opreg as a kernel of a hub: ``python -m opreg hub FOLDER`` writes what ``kernels.get_local_kernel`` loads, and with
``--sources`` what ``kernel-builder`` makes kernels of."""

import hashlib
import json
import platform
import re
import shutil
from pathlib import Path

import torch

from . import __version__, meta
from ._library import SUFFIX, library_path, toolkit_of

_HERE = Path(__file__).parent
# The oldest torch whose stable ABI the library is compiled for: TORCH_TARGET_VERSION of csrc.
_ABI = "211"


def backend() -> str:
    """As the variant's name has it: ``cpu``, or where torch and the library have CUDA, ``cu130`` of toolkit 13.0."""
    toolkit = toolkit_of(library_path()) if torch.version.cuda else ""
    return "cu" + "".join(toolkit.split(".")[:2]) if toolkit else "cpu"


def write_kernel(folder: Path, name: str = "opreg") -> list[Path]:
    """Writes the installed package into ``folder/build/VARIANT``, where the Hub's loader looks for it.

    The variant is that of the stable ABI, for every torch from 2.11 on. Where the package and the kernel are to be in
    one process, build the kernel's library with a namespace of its own, ``-DLOSSREG_NAMESPACE=opreg_hub``, and name it
    in ``OPREG_LIBRARY`` when this runs.

    Args:
        folder: of the kernel; a variant that is there already is refused.
        name: of the kernel: small letters, digits and -.

    Raises:
        ValueError: the name is none for a kernel.
        FileExistsError: the variant is there.
    """
    _check(name)
    system = f"{platform.machine()}-{platform.system().lower()}"
    variant = folder / "build" / f"torch-stable-abi{_ABI}-{backend()}-{system}"
    if variant.exists():
        raise FileExistsError(f"opreg: expected a folder that is not there yet, got {variant}")
    _copy_package(variant)
    library = shutil.copy(library_path(), variant / f"libopreg{SUFFIX}")
    text = b"".join(f.read_bytes() for f in sorted(variant.rglob("*")) if f.is_file())
    kind = "cpu" if backend() == "cpu" else "cuda"
    facts = {
        "id": f"_{name.replace('-', '_')}_{kind}_{hashlib.sha256(text).hexdigest()[:12]}",
        "name": name,
        "version": int(__version__.split(".")[0]),
        "license": "BSD-3-Clause",
        "python-depends": [],
        "backend": {"type": kind},
    }
    (variant / "metadata.json").write_text(json.dumps(facts, indent=1) + "\n")
    return [Path(library), variant / "metadata.json"]


def _check(name: str) -> None:
    if not re.fullmatch("[a-z][a-z0-9-]*[a-z0-9]", name):
        raise ValueError(f"opreg: expected a kernel's name of small letters, digits and -, got {name!r}")


def _copy_package(folder: Path) -> None:
    """The Python files, without a library."""
    unwanted = shutil.ignore_patterns("__pycache__", f"lib*{SUFFIX}", "own_package", "include", "*.pyi")
    shutil.copytree(_HERE, folder, ignore=unwanted)
    # in a checkout it lies elsewhere
    shutil.copytree(Path(meta.__file__).parent, folder / "meta", ignore=unwanted, dirs_exist_ok=True)


# What a unit of the builder's says before lossreg.cpp and lossreg.cu, which know nothing of it: the ops are in the
# namespace that the builder chose, so that versions of the kernel can be loaded beside each other.
_UNIT = """#define LOSSREG_NAMESPACE TORCH_EXTENSION_NAME
#define LOSSREG_FAMILY "{family}"
#include "../toolkit.h"
#include "../lossreg_{backend}.h"
"""
_TOOLKIT = """#pragma once
// The version of CUDA for all units of a library: CMakeLists.txt tells it to those of a wheel.
#if defined(CUDA_KERNEL)
#include <cuda_runtime_api.h>
inline constexpr char lossreg_toolkit[] = {
    char('0' + CUDART_VERSION / 10000), char('0' + CUDART_VERSION / 1000 % 10), '.',
    char('0' + CUDART_VERSION / 10 % 100), '\\0'};
#define LOSSREG_CUDA_TOOLKIT lossreg_toolkit
#endif
"""
_BINDING = """// The ops register themselves as the library is loaded; this makes a module of it.
#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""
_FLAKE = """{{
  description = "{name}: losses and activations";
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs = {{ self, kernel-builder }}: kernel-builder.lib.genKernelFlakeOutputs {{ inherit self; path = ./.; }};
}}
"""


def manifest(name: str, families: list[str], headers: list[str], flags: list[str]) -> str:
    """The builder's ``build.toml``, of edition 5: one kernel for the CPU, and one for CUDA that has both.

    Args:
        name: of the kernel.
        families: as ``formulas/box``.
        headers: what the units include, from the project's folder.
        flags: of the C++ compiler.
    """
    python_name = name.replace("-", "_")

    def words(given: list[str]) -> str:
        return "[\n" + "".join(f"  {json.dumps(word)},\n" for word in given) + "]"

    names = [Path(family).name for family in families]
    cpu, cuda = ([f"csrc/units/{n}.{ending}" for n in names] for ending in ("cpp", "cu"))
    sections = [
        f"[general]\nname = {json.dumps(name)}\nversion = {__version__.split('.')[0]}\nedition = 5\n"
        'license = "BSD-3-Clause"\nbackends = ["cpu", "cuda"]',
        '[torch]\nsrc = ["torch-ext/torch_binding.cpp"]',
        f'[torch.stable-abi]\ncpu = "{_ABI[0]}.{_ABI[1:]}"\ncuda = "{_ABI[0]}.{_ABI[1:]}"',
        f'[kernel.{python_name}_cpu]\nbackend = "cpu"\ndepends = ["torch"]\ninclude = ["csrc"]\n'
        f"cxx-flags = {words(flags)}\nsrc = {words([*cpu, *headers])}",
        f'[kernel.{python_name}_cuda]\nbackend = "cuda"\ndepends = ["torch"]\ninclude = ["csrc"]\n'
        # the kernels are compiled for what this project's own wheels are
        'cuda-capabilities = ["8.0", "9.0", "10.0", "12.0"]\ncuda-minver = "12.8"\n'
        'cuda-flags = ["-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden", "-DLOSSREG_NO_CLONES"]\n'
        f"cxx-flags = {words(flags)}\nsrc = {words([*cpu, *cuda, *headers])}",
    ]
    return "\n\n".join(sections) + "\n"


def write_project(folder: Path, name: str = "opreg") -> list[Path]:
    """Writes the project that ``kernel-builder build`` makes the kernel of, for each of its variants of torch and CUDA.

    The sources are this checkout's: the same formulas, skeletons and kernels, one unit a family and backend. The ops'
    namespace is the builder's choice, so that the kernel and the package can be in one process.

    Args:
        folder: of the project; one that is there already is refused.
        name: of the kernel: small letters, digits and -.

    Returns:
        The manifest, ``build.toml``.

    Raises:
        ValueError: the name is none for a kernel.
        FileExistsError: the folder is there.
        FileNotFoundError: the package is installed without its sources.
    """
    _check(name)
    sources = _HERE.parent / "csrc"
    if not (sources / "formulas").is_dir():
        raise FileNotFoundError(f"opreg: expected a checkout, with the sources in {sources}, got an installed package")
    if folder.exists():
        raise FileExistsError(f"opreg: expected a folder that is not there yet, got {folder}")
    copied = folder / "csrc"
    shutil.copytree(
        sources, copied, ignore=shutil.ignore_patterns("*.md", "CMakeLists.txt", "cmake", "*.py", "*.sh", "*.map")
    )
    families = sorted(str(p.relative_to(copied).with_suffix("")) for d in _FAMILIES for p in (copied / d).glob("*.h"))
    (copied / "units").mkdir()
    (copied / "toolkit.h").write_text(_TOOLKIT)
    # included, and so no units of their own
    for ending, backend_name in (("cpp", "cpu"), ("cu", "cuda")):
        (copied / f"lossreg.{ending}").rename(copied / f"lossreg_{backend_name}.h")
        for family in families:
            text = _UNIT.format(family=f"{family}.h", backend=backend_name)
            (copied / "units" / f"{Path(family).name}.{ending}").write_text(text)
    extension = folder / "torch-ext"
    _copy_package(extension / name.replace("-", "_"))
    (extension / "torch_binding.cpp").write_text(_BINDING)
    (folder / "flake.nix").write_text(_FLAKE.format(name=name))
    headers = sorted(str(p.relative_to(folder)) for p in copied.rglob("*") if p.suffix == ".h")
    flags = [*(copied / "cxx_flags.txt").read_text().split(), "-fvisibility=hidden"]
    (folder / "build.toml").write_text(manifest(name, families, headers, flags))
    return [folder / "build.toml"]


_FAMILIES = ("formulas", "standalone")
