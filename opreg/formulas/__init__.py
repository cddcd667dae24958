"""Formulas in Python: a function of torch becomes an op, with kernels of its own.

``tracing`` runs the function and sees which operators it calls, ``vocabulary`` says what each of them means for one
element, as an ``expression``. ``algebra`` and ``stable`` bring that into forms in which nothing cancels, ``derivative``
derives it, ``lowering`` chooses the functions of ``csrc/base``, ``printing`` and ``structs`` write the C++ that a
skeleton of csrc asks for, ``declaring`` makes the op's declaration. ``decorators`` is what people call.
"""

from . import stable as stable  # its forms are entered in algebra
from .decorators import emit as emit
from .decorators import pointwise as pointwise
from .decorators import region as region
from .decorators import row as row
