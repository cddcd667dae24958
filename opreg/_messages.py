"""What a wrong call hears, whichever way it was made: ``op: expected X, got Y``, and the way out where there is one.

The dispatcher reads a call's arguments before any kernel of ours runs, and says in C++'s terms what it can't read. So
the entries through which Python calls an op stand behind ``Entry``: it looks at a call again when that has failed, and
leaves alone what it can't say better. A right call pays a fraction of a microsecond.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._private import below_autograd, entry_of, has_tangent, without_fake_mode, wrap_entries
from .meta.fakes import check_tensors, value_fake
from .meta.schema import bind, require_tensors

if TYPE_CHECKING:
    from .registry import Op

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


def _kind(of_schema: str) -> tuple[str, Callable[[Any], bool]]:
    """Of another type, in an op of one's own, the dispatcher's words stand."""
    return _KINDS.get(of_schema, (f"of type {of_schema}", lambda v: True))


def _list_of(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and all(map(fits, value))


def _one_element(value: Any) -> bool:
    """Tensors of one element pass for numbers, as in torch's own functions; numpy's numbers too."""
    if isinstance(value, Tensor):
        return value.numel() == 1
    return type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()


def _fits(kind: str, element: Any) -> bool:
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


def wrong_binding(op: "Op", overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Why the arguments are none of this schema: beside their names, one is missing, or of another type."""
    arguments = overload._schema.arguments
    positional = [a.name for a in arguments if not a.kwarg_only]
    if wrong := wrong_names(positional, [a.name for a in arguments if a.kwarg_only], args, kwargs):
        return wrong
    given = {**dict(zip(positional, args, strict=False)), **kwargs}
    for a in arguments:
        kind, fits = _kind(str(a.real_type))
        if a.name not in given:
            if a.has_default_value():
                continue
            return f"expected {a.name} to be {kind}, got no such argument"
        value = given[a.name]
        if fits(value) or (hasattr(value, "__torch_function__") and not isinstance(value, Tensor)):
            continue
        got = said(value)
        strange = [e for e in value if not _fits(kind, e)] if isinstance(value, (list, tuple)) else []
        if "list" in kind and strange:
            got += f" that holds {said(strange[0])}"
        expected = (kind == "a string" and _allowed(op, a.name)) or f"{a.name} to be {kind}"
        return f"expected {expected}, got {got}{_made(op, a, value)}"
    return None


def _made(op: "Op", argument: Any, value: Any) -> str:
    """How to make the value one that the op takes, if that is plain."""
    kind = str(argument.real_type)
    if kind == "Optional[ScalarType]":
        name = getattr(value, "__name__", str(value))
        return f"; pass torch.{name}" if isinstance(getattr(torch, name, None), torch.dtype) else ""
    if "Tensor" not in kind or value is None or isinstance(value, (str, dict)):
        return ""
    if argument.name in op.accepts and isinstance(value, (int, float, list, tuple)):
        return f"; opreg.functional.{op.short} takes that too"
    if kind == "List[Tensor]":
        return f"; pass [{argument.name}]" if isinstance(value, Tensor) else ""
    if type(value).__module__ == "numpy":
        return f"; pass torch.as_tensor({argument.name})"
    return f"; pass torch.tensor({argument.name})" if isinstance(value, (int, float, complex, list, tuple)) else ""


def wrong_layout(bound: Mapping[str, Any]) -> str | None:
    """Why a tensor is of no kind that a kernel can read."""
    lists = {f"{n}[{i}]": t for n, a in bound.items() if isinstance(a, (list, tuple)) for i, t in enumerate(a)}
    for name, t in {**bound, **lists}.items():
        if not isinstance(t, Tensor):
            continue
        if t.is_nested:
            return f"expected {name} to be one strided tensor, got a nested one; pass its values(), or pad it"
        if t.layout is not torch.strided:
            return f"expected {name} to be a strided tensor, got one of layout {t.layout}; pass {name}.to_dense()"
        if t.is_quantized:
            return f"expected {name} to be a floating tensor, got a quantized one; pass {name}.dequantize()"
    return None


def complaint(op: "Op", bound: Mapping[str, Any]) -> str | None:
    """What the shape rule says of a call: no value is looked at."""
    bare = {n: _bare(a) if isinstance(a, Tensor) else a for n, a in bound.items()}
    try:
        op.rule(op.short, bare) if op.mutated else value_fake(op.short, op.rule, bare)
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


def way_out(op: "Op", bound: Mapping[str, Any], *, values: bool) -> str:
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


class Entry:
    """The dispatcher's entry for an overload (or for all that have its name), with our words for its errors.

    It hashes like the entry itself, by which torch hashes an op.
    """

    def __init__(self, op: "Op", overload: Any, entry: Callable[..., Any]) -> None:
        self.op, self.overload, self.entry = op, overload, entry
        self.name = overload._schema.name.split("::")[1]
        self.__module__ = entry.__module__
        # where an option is looked for that is a tensor: past the leading tensors of the op itself
        self.kinds = {a.name: str(a.real_type) for a in overload._schema.arguments}
        self.options = frozenset(n for n, kind in self.kinds.items() if "Tensor" not in kind)
        self.leading = next((k for k, n in enumerate(self.kinds) if n in self.options), len(self.kinds))

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
                    self.require_plain(args, kwargs)
            for a in kwargs.values():
                if isinstance(a, Tensor):
                    self.require_plain(args, kwargs)
        try:
            return self.entry(*args, **kwargs)
        except Exception as error:
            text = self.explanation(error, args, kwargs)
            if text is None:
                raise
        # outside of `except`: the dispatcher's words are no part of the traceback
        raise RuntimeError(text)

    def require_plain(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """The dispatcher makes a number of a tensor with one element: without a word its gradient would be lost, and
        what an integer has no place for."""
        for name, a in (*zip(self.kinds, args, strict=False), *kwargs.items()):
            if name not in self.options or not isinstance(a, Tensor):
                continue
            if (a.requires_grad and torch.is_grad_enabled()) or has_tangent(a):
                raise RuntimeError(
                    f"{self.name}: expected {name} that does not require grad (it is a number, a constant of this "
                    "op), got one that does; pass it detached, or write the formula out to learn it"
                )
            kind, fits = _kind(self.kinds[name])
            if not fits(a):
                raise RuntimeError(f"{self.name}: expected {name} to be {kind}, got {said(a)}")

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


def attach(op: "Op") -> None:
    """Puts an ``Entry`` before every way from Python to the op."""
    for overload in op.overloads:
        wrap_entries(overload, partial(_entry, op, overload))


def _entry(op: "Op", overload: Any, entry: Any) -> Entry:
    return Entry(op, overload, getattr(entry, "entry", entry))


def option_complaint(op: "Op", options: Mapping[str, Any]) -> str | None:
    """What the op says of options, whatever its tensors are.

    A kernel looks at the options first. So it is called with tensors that no kernel takes: what it then says of any
    options whatever, it says of the tensors.
    """
    return None if (text := _probe(op, options)) == _probe(op, {}) else text


def _probe(op: "Op", options: Mapping[str, Any]) -> str:
    with without_fake_mode(), below_autograd():
        nothing = torch.empty(0, dtype=torch.bool, device="cpu")
        required = {a.name: nothing for a in op.value._schema.arguments if str(a.real_type) == "Tensor"}
        try:
            entry_of(op.value)(**required, **options)
        except RuntimeError as error:
            return str(error)
    return ""


def _allowed(op: "Op", option: str) -> str:
    """What a string option may be, in the words of the op."""
    text, start = option_complaint(op, {option: ""}) or "", f"{op.short}: expected "
    return text.removeprefix(start).partition(", got ")[0] if text.startswith(start) else ""


def check_options(op: "Op", options: Mapping[str, Any]) -> None:
    """An error where the op would refuse one of these options in any call."""
    kinds = {a.name: str(a.real_type) for a in op.value._schema.arguments}
    stand_in = torch.empty(0, device="meta")
    tensors = {n: stand_in for n, kind in kinds.items() if kind == "Tensor" and n not in options}
    if wrong := wrong_binding(op, op.value, (), {**tensors, **options}):
        raise RuntimeError(f"{op.short}: {wrong}")
    if isinstance(entry := op.value._op, Entry):
        entry.require_plain((), options)
    if text := option_complaint(op, {n: v for n, v in options.items() if "Tensor" not in kinds[n]}):
        raise RuntimeError(text)


def check_call(op: "Op", bound: Mapping[str, Any]) -> None:
    """An error where the kernel would refuse the call, for the paths on which the reference runs in its place.

    No tensor is made and no value is read, so that it can be asked under every transform and in tracing.
    """
    options = {n: a for n, a in bound.items() if n not in op.tensor_arguments and n != "dtype"}
    plain = tuple((n, tuple(a) if isinstance(a, list) else a) for n, a in options.items())
    if all(type(a) in (bool, int, float, str, tuple) for _, a in plain) and (text := _complaint_outside(op, plain)):
        raise RuntimeError(text)
    require_tensors(op.value, bound)
    check_tensors(op.short, bound, op.rule.on_host)
    op.rule(op.short, bound)


# Bounded, because a schedule may give an option another value at each call.
@lru_cache(maxsize=1024)
def _complaint_outside(op: "Op", options: tuple[tuple[str, Any], ...]) -> str | None:
    """``option_complaint`` in a thread of its own: a transform, like a mode, is a thread's, and would meet the call."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(option_complaint, op, dict(options)).result()


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
