"""What there is of each op: ``python -m opreg ops | show NAME``. What an op has is asked of the dispatcher."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from torch import Tensor

from . import _private
from ._library import KERNEL_KEYS
from ._tables import pairs, table, yes_no
from .op import Op, Sample
from .registry import registered
from .testing import Maker

COVERED = (*KERNEL_KEYS.values(), "fake", "autograd", "second derivative", "vmap")


def coverage(op: Op) -> dict[str, bool]:
    """What an op has, by ``COVERED``: what the dispatcher holds, but that an op may have no second derivative."""
    return {**kernels(op), "second derivative": kernels(op)["second derivative"] and has_second_derivative(op)}


def has_second_derivative(op: Op) -> bool:
    """Not where its declaration says so, nor where it writes to its arguments: there is nothing to derive."""
    return op.second_derivative and not op.mutated


def kernels(op: Op) -> dict[str, bool]:
    """What the dispatcher holds for an op, by ``COVERED``: each entry is asked for the op and for its backward op.

    A device's kernels and the fake also want ``NAME_forward`` where the op keeps state; the second derivative's kernel
    is the backward op's own for autograd, which is also what refuses one. A kernel for every backend
    (CompositeExplicitAutograd) counts for each.
    """
    both = [overload._schema.name for overload in (op.value, op.backward) if overload is not None]
    every = [overload._schema.name for overload in op.overloads]

    def all_have(names: Sequence[str], *keys: str) -> bool:
        return all(any(_private.has_kernel(name, key) for key in keys) for name in names)

    return {
        **{key: all_have(every, key, "CompositeExplicitAutograd") for key in KERNEL_KEYS.values()},
        "fake": all_have(every, "Meta"),
        "autograd": all_have(both[:1], "Autograd"),
        "second derivative": all_have(both[1:], "Autograd"),
        "vmap": all_have(both, _private.VMAP_KEY),
    }


def ops_rows(ops: Sequence[Op]) -> tuple[list[str], list[list[str]]]:
    """The head of a table of ops, and its rows."""
    return ["op", *COVERED], [[op.name, *(yes_no(v) for v in coverage(op).values())] for op in ops]


def ops_table() -> str:
    return table(*ops_rows(registered()))


def show(op: Op) -> str:
    """Everything that the registry knows of an op, for a terminal."""
    facts = [
        *(("schema", str(overload._schema)) for overload in op.overloads),
        ("source", op.source),
        ("differentiable", ", ".join(op.differentiable) or f"nothing: it writes to {', '.join(op.mutated)}"),
        ("same as", ", ".join(op.spellings) or "no native function"),
        ("in Inductor", "inlined: its reference is fused with its neighbours" if op.inline else "one call of the op"),
        *(("sample", sample_text(s)) for s in islice(op.samples(Maker()), 4)),
    ]
    return f"{op.qualname}\n{pairs(facts)}\n\nreference:\n\n{reference_text(op.reference)}"


def sample_text(sample: Sample) -> str:
    def text(a: Any) -> str:
        if isinstance(a, list) and a and isinstance(a[0], Tensor):
            return f"({', '.join(map(text, a))})"
        return str(list(a.shape)) if isinstance(a, Tensor) else repr(a)

    call = [*map(text, sample.args), *(f"{name}={text(a)}" for name, a in sample.kwargs.items())]
    return ", ".join(call) + (f"  ({sample.name})" if sample.name else "")


def reference_text(function: Callable[..., Any]) -> str:
    """The source of a reference, and the functions that it was made with."""
    while isinstance(function, functools.partial):
        function = function.func
    try:
        source = textwrap.dedent(inspect.getsource(function)).rstrip()
        made_with = inspect.getclosurevars(function).nonlocals
    except (OSError, TypeError):  # a builtin
        return f"{function.__module__}.{function.__name__}, compiled into torch"
    names = [f"{n} = {f.__module__}.{f.__qualname__}" for n, f in made_with.items() if inspect.isroutine(f)]
    return "\n".join([source, *(["", "with " + ", ".join(names)] if names else [])])
