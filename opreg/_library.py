"""Finds and loads the shared library that holds every schema and kernel."""

import contextlib
import ctypes
import os
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import _private

# The types of device for which Inductor gets the reference of a pointwise op in its place.
FUSING = frozenset({"cuda"})

# The types of device that the library has kernels for, and the dispatcher's name of each: one line a backend of csrc.
KERNEL_KEYS = {
    "cpu": "CPU",
    "cuda": "CUDA",
}


# What CMake calls a shared library: libNAME and this, on every system.
SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")


def _chosen() -> str:
    """OPREG_LIBRARY. A hub's kernel, which has another name than opreg, comes with its own library: the two may be in
    one process, where no op can be defined twice."""
    return os.environ.get("OPREG_LIBRARY", "") if __name__ == "opreg._library" else ""


def library_path() -> Path:
    """The shared library: what a Python-free process gives to ``dlopen`` before it loads a package.

    The environment variable ``OPREG_LIBRARY`` names another build of it. Like ``LD_PRELOAD``, it makes this process run
    whatever code the file holds: set it to files that you trust.
    """
    if chosen := _chosen():
        return Path(chosen.split(os.pathsep)[0])
    return library_in(Path(__file__).parent, "opreg")


def library_in(package: Path, name: str) -> Path:
    """The library of an installed package: beside its Python files, or in site-packages where an editable installation
    has left these in a checkout."""
    beside = sorted(package.glob(f"lib*{SUFFIX}")) or sorted(package.glob(f"_*{SUFFIX}"))  # as a hub's builder names it
    with contextlib.suppress(metadata.PackageNotFoundError):
        files = metadata.files(name) or []
        beside += [Path(str(f.locate())) for f in files if f.match(f"{package.name}/lib*{SUFFIX}")]
    if not beside:
        raise FileNotFoundError(f"opreg: expected a lib*{SUFFIX} in {package} or in the installed package, found none")
    return beside[0]


def library_paths() -> list[Path]:
    """What is loaded: the library, or each of several in ``OPREG_LIBRARY``: families built apart."""
    chosen = _chosen().split(os.pathsep)
    return [Path(path) if path else library_path() for path in chosen]


@dataclass(frozen=True)
class Library:
    """A loaded library of ops, and what it says of itself.

    Attributes:
        path: the file.
        namespace: that of its ops, which its build chose.
        partial: was the build narrowed to some families?
    """

    path: Path
    namespace: str
    partial: bool

    @property
    def version(self) -> int:
        """Of the headers that it was compiled with: major * 10000 + minor * 100 + patch."""
        return int(_function(self.path, "version")())

    @property
    def families(self) -> dict[str, str]:
        """The header that each of its ops comes from, by the op's qualified name; nothing once it is withdrawn."""
        lines = _says(self.path, "defined").splitlines()
        return {f"{self.namespace}::{name}": family for name, family in (line.split("\t") for line in lines)}

    @property
    def ops(self) -> tuple[str, ...]:
        """The qualified names of its ops: ``mylib::my_loss``."""
        return tuple(self.families)

    def withdraw(self) -> None:
        """Takes its ops back from the dispatcher. ``load`` enters them again."""
        for op in self.ops:
            for suffix in ("", "_forward", "_backward"):
                for namespace in (self.namespace, f"{self.namespace}_kernels"):
                    _private.forget_op(namespace, op.split("::")[1] + suffix)
        _function(self.path, "withdraw")()
        _withdrawn.add(_loaded.pop(os.path.realpath(self.path)))


# Those whose ops the dispatcher has, by their paths as torch knows them; and those that are loaded for nothing.
_loaded: dict[str, Library] = {}
_withdrawn: set[Library] = set()


def _function(path: Path, name: str) -> Any:
    return getattr(ctypes.CDLL(str(path)), f"lossreg_{name}")


def _says(path: Path, name: str) -> str:
    function = _function(path, name)
    function.restype = ctypes.c_char_p
    return bytes(function()).decode()


def load(path: Path) -> Library:
    """Loads a library of ops, once; one that was withdrawn is entered again.

    Raises:
        OSError: torch or the processor does not fit.
        RuntimeError: it defines an op that is defined already, and the dispatcher is as it was; or it was not built of
            opreg's sources.
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:  # the loader's own words name a symbol, and not what to do
        what = "a torch >= 2.11 and a library built for this processor"
        if _chosen():
            what += ", or no OPREG_LIBRARY, which chose it"
        raise OSError(f"opreg: expected {what}, got {path} in torch {torch.__version__}: {error}") from error
    known = os.path.realpath(path)
    try:
        library = Library(path, _says(path, "namespace"), bool(_function(path, "partial")()))
        _function(path, "cuda_toolkit")
        if library in _withdrawn:
            _function(path, "enter")()
            _withdrawn.remove(library)
        refused = _says(path, "refused")
    except AttributeError as error:
        raise RuntimeError(f"opreg: expected a library built of its sources as they are now, got {path}") from error
    if refused:
        torch.ops.loaded_libraries.discard(known)
        _withdrawn.add(library)
        name, family, other_family = refused.split("\n")
        op = f"{library.namespace}::{name}"
        second = f"{other_family}, of the same library," if other_family else definer(op)
        raise RuntimeError(
            f"opreg: expected ops that nobody defines yet, got {op} of {family} in {path}, which {second} defines too"
        )
    return _loaded.setdefault(known, library)


def library_of(op: str) -> Library | None:
    """The library of opreg's kind that defines the op."""
    there = (library for library in _loaded.values() if op.startswith(f"{library.namespace}::"))
    return next((library for library in there if op in library.families), None)


def definer(op: str) -> str:
    """Who defines an op: the header and the library, or what the dispatcher knows of it."""
    library = library_of(op)
    return _private.where_defined(op) if library is None else f"{library.families[op]} in {library.path}"


def names_in(path: Path) -> list[str]:
    """The qualified names of a library's ops, read from its file: it may be loaded or not."""
    return sorted({name.decode() for name in re.findall(rb"lossreg_op:(\w+::\w+)\0", path.read_bytes())})


def load_own() -> tuple[str, bool]:
    """Loads opreg's own library, or libraries. Returns their namespace, and whether all are narrowed to some families.

    Raises:
        OSError, RuntimeError: as ``load``; or two of them choose two namespaces.
    """
    libraries = [load(path) for path in library_paths()]
    namespaces = {library.namespace for library in libraries}
    if len(namespaces) > 1:
        raise RuntimeError(f"opreg: expected libraries of one namespace, got {' and '.join(sorted(namespaces))}")
    return namespaces.pop(), all(library.partial for library in libraries)


def toolkit_of(library: Path) -> str | None:
    """The version of CUDA whose nvcc built the library; None: it has no CUDA kernels."""
    said = ctypes.CDLL(str(library)).lossreg_cuda_toolkit
    said.restype = ctypes.c_char_p
    return said().decode() or None


# Loaded once, when this module is imported: what follows is said by the library alone.
NAMESPACE, PARTIAL = load_own()
# Its ops: ``torch.ops.lossreg``, where the build chose no other name.
OPS: Any = getattr(torch.ops, NAMESPACE)
