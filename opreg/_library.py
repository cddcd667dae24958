"""Finds and loads the shared library that holds every schema and kernel."""

import os
from importlib import metadata
from pathlib import Path

import torch

_NAME = "liblossreg.so"


def library_path() -> Path:
    """The shared library: what a Python-free process gives to ``dlopen`` before it loads a package.

    The environment variable ``OPREG_LIBRARY`` names another build of it.
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


def load() -> None:
    """Loads the library; of several in ``OPREG_LIBRARY``, each: families built apart, while working on one."""
    for path in os.environ.get("OPREG_LIBRARY", "").split(os.pathsep):
        path = path or str(library_path())
        try:
            torch.ops.load_library(path)
        except OSError as error:  # the loader's own words name a symbol, and not what to do
            what = "a torch >= 2.11 and a library built for this processor"
            if os.environ.get("OPREG_LIBRARY"):
                what += ", or no OPREG_LIBRARY, which chose it"
            raise OSError(f"opreg: expected {what}, got {path} in torch {torch.__version__}: {error}") from error
