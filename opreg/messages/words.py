"""Values and their kinds in words, and the checks that need no op."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (int, torch.SymInt)
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)

# of each type of a schema: in words, and whether a value is of it
_KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "Tensor": ("a tensor", lambda v: isinstance(v, Tensor)),
    "Optional[Tensor]": ("a tensor or None", lambda v: v is None or isinstance(v, Tensor)),
    "List[Tensor]": ("a list of tensors", lambda v: _list_of(v, lambda e: isinstance(e, Tensor))),
    "bool": ("True or False", lambda v: isinstance(v, (bool, torch.SymBool)) or _one_element(v)),
    "int": ("an integer", lambda v: _is_integer(v)),
    "float": ("a number", lambda v: _is_number(v)),
    "str": ("a string", lambda v: isinstance(v, str)),
    "List[int]": ("an integer or a list of integers", lambda v: _is_integer(v) or _list_of(v, _is_integer)),
    "List[bool]": ("a list of True and False", lambda v: _list_of(v, lambda e: isinstance(e, bool))),
    "Optional[ScalarType]": ("a torch.dtype or None", lambda v: v is None or isinstance(v, (torch.dtype, int))),
}


def kind_of(of_schema: str) -> tuple[str, Callable[[Any], bool]]:
    """Of another type, in an op of one's own, the dispatcher's words stand."""
    return _KINDS.get(of_schema, (f"of type {of_schema}", lambda v: True))


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(fits, value))


def _one_element(value: Any) -> bool:
    """Tensors of one element pass for numbers, as in torch's own functions; numpy's numbers too."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()


def fits_list(kind: str, element: Any) -> bool:
    """Is it one for a list of this kind?"""
    return fits([element]) if (fits := dict(_KINDS.values()).get(kind)) else False


def _is_integer(value: Any) -> bool:
    if isinstance(value, _INTEGERS):
        return not isinstance(value, int) or -(2**63) <= value < 2**63
    kind = getattr(value, "dtype", None)
    floating = kind.is_floating_point if isinstance(kind, torch.dtype) else getattr(kind, "kind", "") not in "biu"
    return not floating and _one_element(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) < 2**1023
    return isinstance(value, _NUMBERS) or (_one_element(value) and not _is_complex(value))


def _is_complex(value: Any) -> bool:
    return value.is_complex() if isinstance(value, Tensor) else value.dtype.kind == "c"


def said(value: Any) -> str:
    """A value as a message shows it: numbers and strings as they are, all else by its type."""
    if value is None or isinstance(value, (bool, torch.dtype)):
        return str(value)
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {list(value.shape)}"
    kind = type(value)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, type):
        return f"the class {value.__module__}.{value.__qualname__}"
    name = f"an {name}" if name[0] in "aeiou" else f"a {name}"
    if isinstance(value, (int, float, complex, str)):
        shown = f'"{value}"' if isinstance(value, str) else repr(value)
        return f"{shown if len(shown) <= 40 else shown[:36] + '...'}, {name}"
    return name


def wrong_names(
    positional: Sequence[str], by_name: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str | None:
    """Why these arguments can't be told apart: too many, unknown, given twice."""
    if len(args) > len(positional):
        listed = f" ({', '.join(positional)})" if positional else ""
        return f"expected at most {len(positional)} by position{listed}, got {len(args)}"
    names = (*positional, *by_name)
    for name in kwargs:
        if name not in names:
            return f"expected arguments out of {', '.join(names)}, got one named {name}"
        if name in positional[: len(args)]:
            return f"expected {name} once, got it by position and by name"
    return None


def require_tensor(caller: str, name: str, value: Any) -> None:
    """For modules that do something with a tensor before they call an op."""
    if not isinstance(value, (Tensor, torch.fx.Proxy)):
        raise RuntimeError(f"{caller}: expected {name} to be a tensor, got {said(value)}")


def require_sizes(caller: str, **sizes: Any) -> None:
    for name, size in sizes.items():
        if not isinstance(size, _INTEGERS) or size < 1:
            raise ValueError(f"{caller}: expected {name} to be an integer of at least 1, got {said(size)}")


def require_number(caller: str, name: str, value: Any) -> None:
    if not isinstance(value, _NUMBERS):
        raise ValueError(f"{caller}: expected {name} to be a number, got {said(value)}")
