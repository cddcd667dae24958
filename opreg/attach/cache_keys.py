"""The keys of whatever torch.compile keeps on disk: a cached graph holds what opreg and its ops put into it."""

import hashlib
import os
from pathlib import Path

import torch

from .. import _private
from .._fingerprint import fingerprint
from .._library import library_paths
from ..op import Op

# What an op contributes to compiled code: a change of it changes the keys of the caches.
_CONTRIBUTED = (
    "qualname", "reference", "shape", "indices", "state", "constants", "detached", "lowered", "inline", "schema",
    "kernels", "backward_kernels",
)  # fmt: skip
_digest = hashlib.sha1(usedforsecurity=False)


def tell() -> None:
    """Makes this text of opreg, and the library that it loads, part of the key of whatever torch.compile keeps on disk.

    A cached graph holds what opreg put into it: inlined formulas, autograd, rewrites.
    """
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        _digest.update(path.read_bytes())
    for library in library_paths():
        _add_file(library)
    _private.set_in_cache_keys("opreg", _digest.hexdigest()[:16])


def tell_of(op: Op) -> None:
    """The same of an op that is declared outside of opreg."""
    _digest.update(fingerprint([getattr(op, name) for name in _CONTRIBUTED]).encode())
    if op.kernels is None:  # its kernels come from a library of its own, which one is not known
        for library in sorted(torch.ops.loaded_libraries - {str(path) for path in library_paths()}):
            _add_file(library)
    _private.set_in_cache_keys("opreg", _digest.hexdigest()[:16])


def _add_file(path: str | os.PathLike[str]) -> None:
    _digest.update(Path(path).read_bytes())
