"""Finds and loads the shared library that holds every schema and kernel."""

import contextlib
import ctypes
import os
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

# The types of device for which Inductor gets the reference of a pointwise op in its place.
FUSING = frozenset({"cuda"})

# The types of device that the library has kernels for, and the dispatcher's name of each: one line a backend of csrc.
KERNEL_KEYS = {
    "cpu": "CPU",
    "cuda": "CUDA",
}


def library_path() -> Path:
    """The shared library: what a Python-free process gives to ``dlopen`` before it loads a package.

    The environment variable ``OPREG_LIBRARY`` names another build of it. Like ``LD_PRELOAD``, it makes this process run
    whatever code the file holds: set it to files that you trust.
    """
    if chosen := os.environ.get("OPREG_LIBRARY"):
        return Path(chosen.split(os.pathsep)[0])
    # An editable install keeps the library in site-packages and the Python files in the checkout.
    beside = sorted(Path(__file__).parent.glob("lib*.so"))
    with contextlib.suppress(metadata.PackageNotFoundError):
        beside += [Path(str(f.locate())) for f in metadata.files("opreg") or [] if f.match("opreg/lib*.so")]
    if not beside:
        raise FileNotFoundError(f"opreg: expected a lib*.so beside {__file__} or in the installed package, found none")
    return beside[0]


def library_paths() -> list[Path]:
    """What is loaded: the library, or each of several in ``OPREG_LIBRARY``: families built apart."""
    chosen = os.environ.get("OPREG_LIBRARY", "").split(os.pathsep)
    return [Path(path) if path else library_path() for path in chosen]


@dataclass(frozen=True)
class Library:
    """A loaded library of ops, and what it says of itself: the namespace that its build chose, and whether that was
    narrowed to some families."""

    path: Path
    namespace: str
    partial: bool


def load_library(path: Path) -> Library:
    """Loads a library of ops, once.

    Raises:
        OSError: torch or the processor does not fit.
        RuntimeError: it defines an op that is defined already; or it was not built of these sources.
    """
    try:
        torch.ops.load_library(path)
    except OSError as error:  # the loader's own words name a symbol, and not what to do
        what = "a torch >= 2.11 and a library built for this processor"
        if os.environ.get("OPREG_LIBRARY"):
            what += ", or no OPREG_LIBRARY, which chose it"
        raise OSError(f"opreg: expected {what}, got {path} in torch {torch.__version__}: {error}") from error
    library = ctypes.CDLL(str(path))
    try:
        refused, chosen = library.lossreg_refused, library.lossreg_namespace
        narrowed, _ = library.lossreg_partial, library.lossreg_cuda_toolkit
    except AttributeError as error:
        raise RuntimeError(f"opreg: expected a library built of its sources as they are now, got {path}") from error
    refused.restype = chosen.restype = ctypes.c_char_p
    if op := refused().decode():
        others = ", ".join(sorted(torch.ops.loaded_libraries - {os.path.realpath(path)}))
        raise RuntimeError(f"opreg: expected ops that no library defines yet, got {op} in {path} beside {others}")
    return Library(path, chosen().decode(), bool(narrowed()))


def load() -> tuple[str, bool]:
    """Loads opreg's own library, or libraries. Returns their namespace, and whether all are narrowed to some families.

    Raises:
        OSError, RuntimeError: as ``load_library``; or two of them choose two namespaces.
    """
    libraries = [load_library(path) for path in library_paths()]
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
NAMESPACE, PARTIAL = load()
# Its ops: ``torch.ops.lossreg``, where the build chose no other name.
OPS: Any = getattr(torch.ops, NAMESPACE)
