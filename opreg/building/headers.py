"""Where opreg's headers are, ``#include <opreg/skeletons/formula.h>``: in an installed package, and in a checkout."""

import re
from functools import cache
from pathlib import Path

from . import store

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = _PACKAGE.parent / "csrc"

# Of the headers, as their version.h has it. Libraries that were compiled with earlier ones are loaded too.
VERSION = 100

# What CMake's find_package(opreg) is to look in: its CMAKE_PREFIX_PATH.
cmake_prefix_path = str(_SOURCES if (_SOURCES / "register.h").is_file() else _PACKAGE)


def include_path() -> Path:
    """The folder to be searched for ``<opreg/...>``."""
    if cmake_prefix_path == str(_SOURCES):  # a checkout: csrc goes by the name that it has in an installation
        return store.link("opreg", _SOURCES)
    return _PACKAGE / "include"


def text_files() -> list[Path]:
    """All that a family is compiled of beside its own text, in an order that is the same everywhere."""
    root = (include_path() / "opreg").resolve()
    return sorted(p for p in root.rglob("*") if p.suffix in (".h", ".cpp", ".cu", ".txt", ".map"))


@cache
def class_names() -> frozenset[str]:
    """What a family can't call a struct of its own: the headers have a type, or a parameter of a template, so named."""
    kinds = r"\b(?:struct|enum class|class|enum|using)\s+(?:[\w<>]+::)*([A-Z]\w*)"
    return frozenset(name for file in text_files() for name in re.findall(kinds, file.read_text())) | {"Mode"}


def unit(language: str) -> Path:
    """The one source of that language, which includes a family's header: "cpp" for the CPU, "cu" for CUDA."""
    (source,) = (include_path() / "opreg").glob(f"*.{language}")
    return source
