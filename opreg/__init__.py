"""Losses and activations as custom ops, ``torch.ops.lossreg.NAME``: in eager mode, torch.compile, torch.export, C++."""

from . import _library
from ._library import library_path as library_path

_library.load()

from .attach import cache_keys as _cache_keys  # noqa: E402

_cache_keys.tell()

from . import functional as functional  # noqa: E402
from . import meta as meta  # noqa: E402
from . import nn as nn  # noqa: E402
from . import ops as _families  # noqa: E402,F401  registers every op
from . import testing as testing  # noqa: E402
from ._onnx import onnx_translations as onnx_translations  # noqa: E402
from .op import ErrorSample as ErrorSample  # noqa: E402
from .op import Op as Op  # noqa: E402
from .op import Sample as Sample  # noqa: E402
from .passes import NearMiss as NearMiss  # noqa: E402
from .passes import Report as Report  # noqa: E402
from .passes import Rule as Rule  # noqa: E402
from .passes import fuse as fuse  # noqa: E402
from .registry import decompositions as decompositions  # noqa: E402
from .registry import get as get  # noqa: E402
from .registry import register as register  # noqa: E402
from .registry import registered as registered  # noqa: E402

__version__ = "0.1.0"
