"""Modules: one for every op, from its declaration, and those with parameters or a state of their own, written out.

``__init__.pyi``, which an installation makes, says the same to type checkers and editors. Ops of other namespaces stand
under theirs: ``opreg.nn.mylib.Name``.
"""

from typing import Any

from .. import ops as _families  # noqa: F401  registers every op
from ..faces.modules import class_name, derivable, module_class
from ..faces.others import Faces
from ..op import Op
from ..registry import of_namespace
from ._angular import AMSoftmax as AMSoftmax
from ._angular import ArcFace as ArcFace
from ._averaging import EMA as EMA
from ._box import WIoULoss as WIoULoss
from ._convolution import CoordConv2d as CoordConv2d
from ._convolution import DynamicConv2d as DynamicConv2d
from ._linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from ._linear import LinearLogProb as LinearLogProb
from ._partial_fc import PartialFC as PartialFC

__all__ = [
    "EMA",
    "AMSoftmax",
    "ArcFace",
    "CoordConv2d",
    "DynamicConv2d",
    "LinearCrossEntropyLoss",
    "LinearLogProb",
    "PartialFC",
    "WIoULoss",
]

_derived = {class_name(op): op for op in of_namespace() if derivable(op) and class_name(op) not in __all__}
__all__ += [*_derived]


def __getattr__(name: str) -> Any:
    """Makes a class when it is first asked for: each has a constructor and a docstring of its own."""
    if name not in _derived and of_namespace(name):
        return globals().setdefault(name, Faces(__name__, name, _class_name, module_class))
    if name not in _derived:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals().setdefault(name, module_class(_derived[name], __name__))


def _class_name(op: Op) -> str:
    return class_name(op) if derivable(op) else ""


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
