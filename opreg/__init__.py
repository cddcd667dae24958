"""Losses and activations as custom ops, ``torch.ops.lossreg.NAME``: in eager mode, torch.compile, torch.export, C++."""

import importlib
from typing import Any

from . import _accelerate, meta, testing
from . import ops as _families  # noqa: F401  registers every op
from ._library import library_path
from ._onnx import onnx_translations
from .attach import cache_keys as _cache_keys
from .op import ErrorSample, Op, Sample
from .registry import decompositions, get, register, registered

__version__ = "0.1.0"

# `__init__.pyi`, which an installation makes, says the same to type checkers and editors.
__all__ = [
    "ErrorSample", "NearMiss", "Op", "Report", "Rule", "Sample", "build", "cmake_prefix_path", "decompositions",
    "distributed", "emit", "functional", "fuse", "get", "last_report", "layers", "library_path", "load_library",
    "meta", "nn", "on_report", "onnx_translations", "passes", "pointwise", "region", "register", "registered", "row",
    "testing", "use",
]  # fmt: skip

_cache_keys.tell()
_accelerate.await_it()

# Names that are loaded when they are first asked for, and the modules that have them: who calls ops needs none.
_LATER = {
    "NearMiss": "passes",
    "Report": "passes",
    "Rule": "passes",
    "build": "building",
    "cmake_prefix_path": "building",
    "distributed": "",
    "emit": "formulas",
    "functional": "",
    "fuse": "passes",
    "last_report": "backend",
    "layers": "",
    "load_library": "building",
    "nn": "",
    "on_report": "backend",
    "passes": "",
    "pointwise": "formulas",
    "region": "formulas",
    "row": "formulas",
    "use": "eager",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name] or name}", __name__)
    value = getattr(module, name) if _LATER[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
