"""Ops of anybody's: a family's header, compiled against opreg's own headers, loaded, and kept for the next process."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import _private
from .._library import Library, definer, library_in, library_of, load, names_in
from ..registry import unregister
from . import store
from .compilers import Compiler, cuda_compiler, cxx_compiler
from .headers import VERSION, cmake_prefix_path, include_path, text_files
from .units import Recipe, compile_family

__all__ = ["build", "cmake_prefix_path", "include_path", "load_library"]


def build(
    source: str | Path,
    *,
    namespace: str,
    cuda: bool | None = None,
    flags: Sequence[str] = (),
    replace: bool = False,
) -> Library:
    """Compiles a family of ops, a header as those in ``csrc/formulas`` are, and loads it: ``torch.ops.NAMESPACE.NAME``.

    What is compiled is kept, in the folder that ``OPREG_CACHE`` names (else ``~/.cache/opreg``), by all that it is made
    of: the text, the headers that it includes, the flags, the compiler, torch and the processor. The next process that
    asks for the same loads it; several that ask at once wait for one that compiles. The kernels of the CPU are compiled
    for this machine's processor.

    ``opreg.register(opreg.Op("NAMESPACE::NAME", ...))`` then attaches the rest.

    Args:
        source: the header, as a path, or as its text (a ``str`` of several lines).
        namespace: of the ops: small letters, digits and ``_``, a letter first.
        cuda: kernels for CUDA too? None: where torch finds a GPU and there is an nvcc.
        flags: more of them for the compilers, after opreg's own.
        replace: take the place of the libraries in this process that define an op of the same name. All that they
            define is withdrawn, declarations too; graphs and modules that hold such an op are to be made anew.

    Returns:
        The library: its ``path``, its ``namespace``, its ``ops``. For the same text again, the same one.

    Raises:
        FileNotFoundError: no file of that name; or no compiler, or with ``cuda=True`` no nvcc.
        ValueError: the namespace is no name for one; or one of the ops is defined already: the message names both.
            Nothing of the library is loaded then.
        RuntimeError: the text does not compile: the message has the compiler's own words.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", namespace):
        raise ValueError(f"opreg.build: expected a namespace of small letters, digits and _, got {namespace!r}")
    text = source if isinstance(source, str) and "\n" in source else None
    path = None if text is not None else Path(source).resolve()
    if path is not None and not path.is_file():
        raise FileNotFoundError(f"opreg.build: expected the text of a header or the path of one, got {str(source)!r}")
    recipe = Recipe(namespace, cxx_compiler(), _nvcc(cuda), tuple(flags))
    key = store.digest(text or str(path), recipe.texts(), store.digest_of_files(text_files()))
    library = store.find(key)
    if library is None:
        with store.lock(key):
            # another process may have made it in the meantime
            library = store.find(key) or _compile(text, path, recipe, key)
    return load_library(library, replace=replace)


def load_library(source: str | Path, *, replace: bool = False) -> Library:
    """Loads a library of ops that CMake's ``opreg_add_library`` made: what a package's ``__init__.py`` begins with.

    Args:
        source: a path, or as a ``str`` the name of the package that it is in.
        replace: take the place of the libraries in this process that define an op of the same name, as in ``build``.

    Raises:
        FileNotFoundError: the package has no ``lib*.so``.
        ValueError: one of its ops is defined already: the message names both. Nothing is loaded then.
        RuntimeError: it was not built of opreg's headers, or of those of a later opreg.
    """
    path = source if isinstance(source, Path) else _library_of_package(source)
    make_room(path, replace=replace)
    library = load(path)
    if library.version > VERSION:
        library.withdraw()
        raise RuntimeError(
            f"opreg: expected a library compiled with headers of version {VERSION} or before, got {library.version} of "
            f"{path}; upgrade opreg"
        )
    return library


def _library_of_package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise FileNotFoundError(f"opreg.load_library: expected a path or the name of a package, got {name!r}")
    return library_in(Path(found.origin).parent, name)


def make_room(path: Path, *, replace: bool) -> None:
    """Nobody else's ops have the names of this library's."""
    for op in names_in(path):
        if not _private.has_op(op):
            continue
        there = library_of(op)
        if there is not None and there.path.samefile(path):
            continue
        if there is None or not replace:
            way_out = "" if there is None else "; pass replace=True to exchange all that it defines"
            raise ValueError(
                f"{op}: expected an op that is not defined yet, got one that is, from {definer(op)} and now from "
                f"{path}{way_out}"
            )
        for name in there.ops:
            unregister(name)
        there.withdraw()


def _compile(text: str | None, path: Path | None, recipe: Recipe, key: str) -> Path:
    with store.workspace(key) as folder:
        if path is None:
            path = folder / f"{recipe.namespace}.h"
            path.write_text(text or "")
        return store.keep(key, *compile_family(path, recipe, folder))


def _nvcc(cuda: bool | None) -> Compiler | None:
    if cuda is False or (cuda is None and not torch.cuda.is_available()):
        return None
    found = cuda_compiler()
    if cuda and found is None:
        raise FileNotFoundError("opreg.build: expected nvcc for cuda=True, got none; put it on PATH, or set CUDACXX")
    return found
