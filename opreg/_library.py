"""Finds and loads the shared library that holds every schema and kernel."""

import ctypes
import os
from importlib import metadata
from pathlib import Path

import torch

_NAME = "liblossreg.so"

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
    beside = Path(__file__).with_name(_NAME)
    if beside.exists():
        return beside
    # An editable install keeps the library in site-packages and the Python files in the checkout.
    try:
        for file in metadata.files("opreg") or []:
            if file.name == _NAME:
                return Path(str(file.locate()))
    except metadata.PackageNotFoundError:
        pass
    raise FileNotFoundError(f"opreg: expected {_NAME} beside {__file__} or in the installed package, found neither")


def library_paths() -> list[Path]:
    """What is loaded: the library, or each of several in ``OPREG_LIBRARY``: families built apart."""
    chosen = os.environ.get("OPREG_LIBRARY", "").split(os.pathsep)
    return [Path(path) if path else library_path() for path in chosen]


def load() -> None:
    """Loads the library, or libraries.

    Raises:
        OSError: torch or the processor does not fit.
        RuntimeError: two libraries define the same op.
    """
    for path in library_paths():
        try:
            torch.ops.load_library(path)
        except OSError as error:  # the loader's own words name a symbol, and not what to do
            what = "a torch >= 2.11 and a library built for this processor"
            if os.environ.get("OPREG_LIBRARY"):
                what += ", or no OPREG_LIBRARY, which chose it"
            raise OSError(f"opreg: expected {what}, got {path} in torch {torch.__version__}: {error}") from error
        refused = getattr(ctypes.CDLL(str(path)), "lossreg_refused", None)  # every library with our headers has it
        if refused is None:
            continue
        refused.restype = ctypes.c_char_p
        if op := refused().decode():
            others = ", ".join(sorted(torch.ops.loaded_libraries - {os.path.realpath(path)}))
            raise RuntimeError(f"opreg: expected ops that no library defines yet, got {op} in {path} beside {others}")
