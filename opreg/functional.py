"""Every op as a function: ``opreg.functional.NAME``, with the arguments and defaults of its schema.

They come from the registry: an op that is declared is here. ``functional.pyi``, which an installation makes, says the
same to type checkers and editors. Ops of other namespaces stand under theirs: ``opreg.functional.mylib.NAME``.
"""

from typing import Any

from . import ops as _families  # noqa: F401  registers every op
from .faces.functions import function
from .faces.others import Faces
from .registry import get, of_namespace

__all__ = [op.short for op in of_namespace()]


def __getattr__(name: str) -> Any:
    """Makes a function when it is first asked for: each has a signature and a docstring of its own."""
    if name not in __all__ and of_namespace(name):
        return globals().setdefault(name, Faces(__name__, name, lambda op: op.short, function))
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, function(get(name), __name__))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
