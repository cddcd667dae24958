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
from .._library import library_of, library_paths
from ..op import Op

# What an op contributes to compiled code: a change of it changes the keys of the caches.
_CONTRIBUTED = (
    "qualname", "reference", "shape", "indices", "state", "constants", "detached", "lowered", "inline", "schema",
    "kernels", "backward_kernels", "count", "averaged", "whole", "rules",
)  # fmt: skip

_LOADED = time.time_ns()

# Of each op that is declared outside of opreg, and of the library behind it.
_of_others: dict[str, str] = {}


def tell() -> None:
    """Makes this text of opreg, and the library that it loads, part of the keys as soon as somebody can read these:
    with megabytes to be read, not before."""
    for reader in _private.CACHE_KEY_READERS:
        when_imported(reader, _write)


def tell_of(op: Op) -> None:
    """The same of an op that is declared outside of opreg; anew where it takes another's place."""
    text = fingerprint([getattr(op, name) for name in _CONTRIBUTED])
    _of_others[op.qualname] = " ".join([text, *map(_of_library, _libraries_of(op))])
    if any(reader in sys.modules for reader in _private.CACHE_KEY_READERS):
        _write()


def _libraries_of(op: Op) -> list[str]:
    """The files that an op's kernels come from: all that they may come from, where that is not known."""
    if op.kernels is not None:
        return []
    library = library_of(op.qualname)
    if library is not None:
        return [str(library.path)]
    return sorted(torch.ops.loaded_libraries - {str(path) for path in library_paths()})


@lru_cache
def _of_library(path: str) -> str:
    return hashlib.sha1(Path(path).read_bytes(), usedforsecurity=False).hexdigest()


def _write() -> None:
    others = "".join(f"{name} {of_op}\n" for name, of_op in sorted(_of_others.items()))
    whole = hashlib.sha1(_of_opreg() + others.encode(), usedforsecurity=False)
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
