"""The keys of whatever torch.compile keeps on disk: a cached graph holds what opreg and its ops put into it."""

import hashlib
import os
import sys
import time
from functools import lru_cache
from pathlib import Path

import torch

from .. import _private, meta
from .._fingerprint import fingerprint
from .._imports import when_imported
from .._library import library_paths
from ..op import Op

# What an op contributes to compiled code: a change of it changes the keys of the caches.
_CONTRIBUTED = (
    "qualname", "reference", "shape", "indices", "state", "constants", "detached", "lowered", "inline", "schema",
    "kernels", "backward_kernels",
)  # fmt: skip

_LOADED = time.time_ns()

# Of the ops that are declared outside of opreg, and the libraries behind them.
_of_others = hashlib.sha1(usedforsecurity=False)


def tell() -> None:
    """Makes this text of opreg, and the library that it loads, part of the keys as soon as somebody can read these:
    with megabytes to be read, not before."""
    for reader in _private.CACHE_KEY_READERS:
        when_imported(reader, _write)


def tell_of(op: Op) -> None:
    """The same of an op that is declared outside of opreg."""
    _of_others.update(fingerprint([getattr(op, name) for name in _CONTRIBUTED]).encode())
    if op.kernels is None:  # its kernels come from a library of its own, which one is not known
        for library in sorted(torch.ops.loaded_libraries - {str(path) for path in library_paths()}):
            _of_others.update(Path(library).read_bytes())
    if any(reader in sys.modules for reader in _private.CACHE_KEY_READERS):
        _write()


def _write() -> None:
    whole = hashlib.sha1(_of_opreg() + _of_others.digest(), usedforsecurity=False)
    _private.set_in_cache_keys("opreg", whole.hexdigest()[:16])


@lru_cache(maxsize=1)
def _of_opreg() -> bytes:
    """Of the files that this process runs. One that was changed since they were loaded is not what runs: nobody shares
    what is compiled then."""
    digest = hashlib.sha1(usedforsecurity=False)
    package = Path(__file__).resolve().parents[1]
    elsewhere = Path(str(meta.__file__)).resolve().parent  # in an editable installation
    for path in (*sorted({*package.rglob("*.py"), *elsewhere.rglob("*.py")}), *library_paths()):
        digest.update(path.read_bytes())
        if path.stat().st_ctime_ns > _LOADED:
            digest.update(os.urandom(16))
    return digest.digest()
