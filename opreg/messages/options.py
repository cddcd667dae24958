"""What an op says of options, whatever its tensors are: its kernel is asked."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from typing import Any

import torch

from .._private import below_autograd, entry_of, without_fake_mode
from ..meta.schema import bind
from ..op import Op
from ..testing import Maker


def option_complaint(op: Op, options: Mapping[str, Any]) -> str | None:
    """What the op says of options, whatever its tensors are.

    A kernel looks at the options first. So it is called with tensors that no kernel takes: what it then says of any
    options whatever, it says of the tensors.
    """
    return None if (text := _probe(op, options)) == _probe(op, _required(op)) else text


@cache
def _required(op: Op) -> Mapping[str, Any]:
    """Options that the op does not do without, as its first sample has them."""
    names = [a.name for a in op.value._schema.arguments if a.name not in (*op.tensor_arguments, *op.defaults)]
    if not names:
        return {}
    with without_fake_mode():
        sample = next(iter(op.samples(Maker())))
    bound = bind(op.value, sample.args, sample.kwargs)
    return {n: bound[n] for n in names}


def _probe(op: Op, options: Mapping[str, Any]) -> str:
    with without_fake_mode(), below_autograd():
        nothing = torch.empty(0, dtype=torch.bool, device="cpu")
        required = {a.name: nothing for a in op.value._schema.arguments if str(a.real_type) == "Tensor"}
        try:
            entry_of(op.value)(**required, **options)
        except RuntimeError as error:
            return str(error)
    return ""


def allowed(op: Op, option: str) -> str:
    """What a string option may be, in the words of the op."""
    text, start = option_complaint(op, {option: ""}) or "", f"{op.short}: expected "
    return text.removeprefix(start).partition(", got ")[0] if text.startswith(start) else ""


# Bounded, because a schedule may give an option another value at each call.
@lru_cache(maxsize=1024)
def complaint_outside(op: Op, options: tuple[tuple[str, Any], ...]) -> str | None:
    """``option_complaint`` in a thread of its own: a transform, like a mode, is a thread's, and would meet the call."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(option_complaint, op, dict(options)).result()
