"""What a wrong call hears, whichever way it was made: ``op: expected X, got Y``, and the way out where there is one.

The dispatcher reads a call's arguments before any kernel of ours runs, and says in C++'s terms what it can't read. So
the entries through which Python calls an op stand behind ``Entry``: it looks at a call again when that has failed, and
leaves alone what it can't say better. A right call pays a fraction of a microsecond.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from .._private import wrap_entries
from ..messages.binding import require_plain, wrong_binding, wrong_layout
from ..messages.targets import complaint, way_out
from ..meta.schema import bind
from ..op import Op


class Entry:
    """The dispatcher's entry for an overload (or for all that have its name), with our words for its errors.

    It hashes like the entry itself, by which torch hashes an op.
    """

    def __init__(self, op: Op, overload: Any, entry: Callable[..., Any]) -> None:
        self.op, self.overload, self.entry = op, overload, entry
        self.name = overload._schema.name.split("::")[1]
        self.__module__ = entry.__module__

    # read by the first call, not by `import opreg`: for 242 entries that took a tenth of its time
    @cached_property
    def options(self) -> list[str]:
        """The arguments that are no tensors."""
        return [a.name for a in self.overload._schema.arguments if "Tensor" not in str(a.real_type)]

    @cached_property
    def leading(self) -> int:
        """How many arguments come before the first option. Among those no option is looked for that is a tensor."""
        names = [a.name for a in self.overload._schema.arguments]
        return names.index(self.options[0]) if self.options else len(names)

    def __hash__(self) -> int:
        return hash(self.entry)

    def __getattr__(self, name: str) -> Any:
        if name == "entry":  # not there yet
            raise AttributeError(name)
        return getattr(self.entry, name)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) > self.leading:
            for a in args[self.leading :]:
                if isinstance(a, Tensor):
                    require_plain(self.name, self.overload, args, kwargs)
            for a in kwargs.values():
                if isinstance(a, Tensor):
                    require_plain(self.name, self.overload, args, kwargs)
        try:
            return self.entry(*args, **kwargs)
        except Exception as error:
            text = self.explanation(error, args, kwargs)
            if text is None:
                raise
        # outside of `except`: the dispatcher's words are no part of the traceback
        raise RuntimeError(text)

    def explanation(self, error: Exception, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """Our words for the error; None where its own are as good."""
        op, text = self.op, str(error)
        if wrong := wrong_binding(op, self.overload, args, kwargs):
            return f"{self.name}: {wrong}"
        ours = text.startswith(f"{op.short}: expected ")
        bound = bind(self.overload, args, kwargs)
        if wrong := wrong_layout(bound) or (None if ours else self.unreadable(error, bound)):
            return f"{self.name}: {wrong}"
        tensors = [a for a in bound.values() if isinstance(a, Tensor)]
        if self.overload is not op.value or not all(type(n) is int for t in tensors for n in t.shape):
            return None
        wrong = complaint(op, bound)
        if not ours:
            if wrong is None:
                return None
            text = wrong
        advice = [f"; {what}" for pattern, what in op.advice.items() if re.search(pattern, text)]
        out = "".join(advice) or way_out(op, bound, values=wrong is None)
        return None if ours and out in text else text + out

    def unreadable(self, error: Exception, bound: Mapping[str, Any]) -> str | None:
        """Under vmap and in tracing a tensor has no value that could be a number.

        A tracer that reads one later says so by an error of its own class.
        """
        for name in self.options:
            plain = type(bound[name]) in (Tensor, torch.nn.Parameter)
            if plain or (isinstance(bound[name], Tensor) and type(error) is RuntimeError):
                return f"expected {name} to be a number, got a tensor whose value can't be read here"
        return None


def attach(op: Op) -> None:
    """Puts an ``Entry`` before every way from Python to the op."""
    for overload in op.overloads:
        wrap_entries(overload, partial(_entry, op, overload))


def _entry(op: Op, overload: Any, entry: Any) -> Entry:
    return Entry(op, overload, getattr(entry, "entry", entry))
