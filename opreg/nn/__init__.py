"""Modules: one for every op, from its declaration, and those with parameters or a state of their own, written out.

``__init__.pyi``, which an installation makes, says the same to type checkers and editors.
"""

from .. import ops as _families  # noqa: F401  registers every op
from ..faces.modules import class_name, derivable, module_class
from ..registry import of_namespace
from ._angular import AMSoftmax as AMSoftmax
from ._angular import ArcFace as ArcFace
from ._averaging import EMA as EMA
from ._box import WIoULoss as WIoULoss
from ._convolution import CoordConv2d as CoordConv2d
from ._convolution import DynamicConv2d as DynamicConv2d
from ._linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss

__all__ = ["EMA", "AMSoftmax", "ArcFace", "CoordConv2d", "DynamicConv2d", "LinearCrossEntropyLoss", "WIoULoss"]

for _op in of_namespace():
    if derivable(_op) and class_name(_op) not in __all__:
        globals()[class_name(_op)] = module_class(_op, __name__)
        __all__.append(class_name(_op))
