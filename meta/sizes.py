"""Sizes, which in a capture may be known only when the program runs, and the errors that name them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def fail(op: str, expected: str, *got: object) -> RuntimeError:
    return RuntimeError(f"{op}: expected {expected}, got {' and '.join(str(g) for g in got)}")


def shape_text(t: Tensor | Sequence[int]) -> str:
    return str(list(t.shape if isinstance(t, Tensor) else t))


def dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def same_size(a: int, b: int) -> bool:
    """Are two sizes equal? Where only the run will tell, yes, and the program asserts it.

    That is a size that depends on values, such as the number of a mask's true elements: a plain ``==`` of it ends a
    capture by torch.export or torch.compile.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    equal: Any = a == b
    if not guard_or_true(equal):
        return False
    torch._check(equal)
    return True


def is_size(a: int, b: int) -> bool:
    """Are two sizes equal? Where only the run will tell, no."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    known: bool = guard_or_false(a == b)
    return known


def same_shape(a: Sequence[int], b: Sequence[int]) -> bool:
    # ranks first: comparing sizes of different dimensions would be a guard on them
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))


def expands_to(shape: Sequence[int], target: Sequence[int]) -> bool:
    lead = len(target) - len(shape)
    return lead >= 0 and all(is_size(a, 1) or same_size(a, b) for a, b in zip(shape, target[lead:], strict=True))


def joined(a: Sequence[int], b: Sequence[int]) -> Sequence[int] | None:
    try:
        shape: Sequence[int] = torch.broadcast_shapes(tuple(a), tuple(b))
        return shape
    except RuntimeError:
        return None
