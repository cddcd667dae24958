"""Every op as a function: ``opreg.functional.NAME``, with the arguments and defaults of its schema.

They come from the registry: an op that is declared is here. ``functional.pyi``, which an installation makes, says the
same to type checkers and editors.
"""

from . import ops as _families  # noqa: F401  registers every op
from .faces.functions import function
from .registry import of_namespace

__all__ = [op.short for op in of_namespace()]

globals().update({op.short: function(op, __name__) for op in of_namespace()})
