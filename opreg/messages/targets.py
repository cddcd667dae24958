"""The way out of a wrong call: likely mistakes with a target, undone, and the shape rule asked again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..meta.fakes import value_fake
from ..op import Op


def complaint(op: Op, bound: Mapping[str, Any]) -> str | None:
    """What the shape rule says of a call: no value is looked at."""
    bare = {n: _bare(a) if isinstance(a, Tensor) else a for n, a in bound.items()}
    try:
        op.rule(op.short, bare) if op.mutated else value_fake(op.short, op.rule, bare, len(op.results))
    except RuntimeError as error:
        return str(error) if str(error).startswith(f"{op.short}: expected ") else None
    except Exception:  # a rule that presumes what is not so
        return None
    return None


def _bare(t: Tensor) -> Tensor:
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


# Likely mistakes with a target, undone: in words, and the target that was meant, None where it can't be this one.
# `axis` is that of the classes of x, the first argument.
_Meant = Callable[[Tensor, Tensor, int], Tensor | None]


def _without(x: Tensor, axis: int) -> tuple[int, ...]:
    return (*x.shape[:axis], *x.shape[axis + 1 :])


def _floating(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    return None if t.is_floating_point() else t.float()


def _integral(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    return t.long() if t.is_floating_point() or t.dtype is torch.bool else None


def _class(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    """Rows of scores or one-hot rows; a single class has no index worth asking for."""
    return t.argmax(axis) if t.shape == x.shape and x.shape[axis] > 1 else None


def _one_hot(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    if t.is_floating_point() or t.shape != _without(x, axis) or x.shape[axis] < 2:
        return None
    return torch.empty(x.shape, dtype=torch.int64, device="meta")


def _fewer(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    return t.squeeze(axis) if t.dim() == x.dim() and t.shape[axis] == 1 < x.shape[axis] else None


def _more(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    return t.unsqueeze(axis) if t.shape == _without(x, axis) and x.shape[axis] == 1 else None


def _mask(t: Tensor, x: Tensor, axis: int) -> Tensor | None:
    """0 and 1 of a single class: no index, but a probability."""
    if t.is_floating_point() or x.shape[axis] != 1:
        return None
    return (t if t.dim() == x.dim() else t.unsqueeze(axis)).float()


_MEANT: tuple[tuple[str, _Meant], ...] = (
    ("{t}.long(), class indices", _integral),
    ("{t}.argmax({axis}), class indices", _class),
    ("{t}.float(), probabilities", _floating),
    ("torch.nn.functional.one_hot({t}, {classes}){moved}, one-hot rows", _one_hot),
    ("{t}.squeeze({axis})", _fewer),
    ("{t}.unsqueeze({axis})", _more),
    ("{t}{grown}.float(), probabilities", _mask),
)


def way_out(op: Op, bound: Mapping[str, Any], *, values: bool) -> str:
    """What would make the call right: each likely mistake with a target undone, and the shape rule asked again.

    ``values`` says that the shapes are right already, and an error of a value is to be mended.
    """
    first = op.arguments[0]
    x = bound[first]
    if not isinstance(x, Tensor) or x.dim() == 0:
        return ""
    axis = min(1, x.dim() - 1)
    found = []
    for name in op.tensor_arguments[1:]:
        t = bound[name]
        if not isinstance(t, Tensor) or not (name in op.indices or name.startswith("target")):
            continue
        for text, meant in _MEANT:
            other = meant(_bare(t), _bare(x), axis) if not values or meant is _mask else None
            if other is not None and complaint(op, {**bound, name: other}) is None:
                moved = ".movedim(-1, 1)" if x.dim() > 2 else ""
                grown = f".unsqueeze({axis})" if t.dim() < x.dim() else ""
                found.append(text.format(t=name, axis=axis, classes=x.shape[axis], moved=moved, grown=grown))
    return "; pass " + ", or ".join(dict.fromkeys(found)) if found else ""
