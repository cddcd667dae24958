"""What a function does, as a number that is the same in every process: for the keys of caches on disk."""

import functools
import hashlib
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

# Whose functions are as fixed as the interpreter and torch, whose versions the caches know.
_FIXED = frozenset({"torch", "numpy", *sys.stdlib_module_names})


def fingerprint(value: Any) -> str:
    """Of a function: its code, its defaults, what it closes over, the functions and constants that it calls by name.

    Of other values: what they hold. Two values that differ only in where they lie in memory are the same.
    """
    digest = hashlib.sha1(usedforsecurity=False)
    for part in _parts(value, {}):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    kind = type(value)
    yield kind.__qualname__
    if value is None or kind in (bool, int, float, complex, str, bytes, torch.dtype, torch.device):
        yield repr(value)
        return
    if id(value) in seen:  # a function that calls itself
        return
    seen[id(value)] = value  # kept alive, so that no other value gets its place in memory
    if isinstance(value, types.CodeType):
        yield from _of_code(value, seen)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value, seen)
    elif isinstance(value, types.MethodType):
        yield from _parts([value.__func__, value.__self__], seen)
    elif isinstance(value, functools.partial):
        yield from _parts([value.func, value.args, value.keywords], seen)
    elif isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)} {value.tolist()}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(key, seen)
            yield from _parts(item, seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _parts(item, seen)
    elif isinstance(value, set | frozenset):
        yield from sorted(fingerprint(item) for item in value)
    elif isinstance(value, type):
        if _fixed(value.__module__):
            yield f"{value.__module__}.{value.__qualname__}"
            return
        yield value.__qualname__
        apart = ("__dict__", "__weakref__", "__doc__", "__module__")
        yield from _parts({name: member for name, member in vars(value).items() if name not in apart}, seen)
    elif isinstance(value, types.ModuleType):
        yield value.__name__
    elif isinstance(value, staticmethod | classmethod):
        yield from _parts(value.__func__, seen)
    elif isinstance(value, property):
        yield from _parts([value.fget, value.fset], seen)
    elif hasattr(value, "__dict__"):  # an object of a class of one's own: what it is, and what it holds
        yield from _parts(kind, seen)
        yield from _parts(vars(value), seen)
    else:  # of C: a builtin function, a torch operator
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', getattr(value, '__name__', ''))}"


def _of_code(code: types.CodeType, seen: dict[int, Any]) -> Iterator[str]:
    yield code.co_code.hex()
    yield " ".join((*code.co_names, *code.co_varnames, *code.co_freevars))
    yield from _parts(list(code.co_consts), seen)


def _of_function(function: types.FunctionType, seen: dict[int, Any]) -> Iterator[str]:
    if _fixed(function.__module__):
        yield f"{function.__module__}.{function.__qualname__}"
        return
    yield function.__qualname__
    yield from _of_code(function.__code__, seen)
    yield from _parts([function.__defaults__, function.__kwdefaults__], seen)
    for cell in function.__closure__ or ():
        try:
            yield from _parts(cell.cell_contents, seen)
        except ValueError:  # not filled yet
            yield "empty"
    names = sorted(_names(function.__code__))
    for name in names:
        if name in function.__globals__:
            yield name
            yield from _parts(function.__globals__[name], seen)
            module = function.__globals__[name]
            if isinstance(module, types.ModuleType) and not _fixed(module.__name__):  # helpers.scale(x)
                yield from _parts({n: vars(module)[n] for n in names if n in vars(module)}, seen)


def _names(code: types.CodeType) -> set[str]:
    """The names that a function looks up, those of the functions inside of it too."""
    inner = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _fixed(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _FIXED
