"""Modules: one for every op, from its declaration, and those with parameters or a state of their own, written out.

``__init__.pyi`` says the same to type checkers and editors; ``python -m opreg stubs`` writes it.
"""

from .. import ops as _families  # noqa: F401  registers every op
from ..registry import of_namespace
from ._averaging import EMA as EMA
from ._box import WIoULoss as WIoULoss
from ._convolution import CoordConv2d as CoordConv2d
from ._convolution import DynamicConv2d as DynamicConv2d
from ._linear import LinearCrossEntropyLoss as LinearCrossEntropyLoss
from ._margin import AMSoftmax as AMSoftmax
from ._margin import ArcFace as ArcFace
from ._module import class_name, module_class

WRITTEN = ["AMSoftmax", "ArcFace", "CoordConv2d", "DynamicConv2d", "EMA", "LinearCrossEntropyLoss", "WIoULoss"]
# an op that returns nothing is no module; a class that is written out above is its op's
DERIVED = {class_name(op): op for op in of_namespace() if op.value._schema.returns and class_name(op) not in WRITTEN}
__all__ = [*DERIVED, *WRITTEN]

globals().update({name: module_class(op, __name__) for name, op in DERIVED.items()})
