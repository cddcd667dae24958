"""A module class over an op, from its declaration."""

import inspect
from collections.abc import Collection, Mapping, Sequence
from inspect import Parameter
from typing import Any, ClassVar

import torch

from ..messages.checks import check_options
from ..messages.words import wrong_names
from ..op import Op
from .docstrings import module_docstring
from .functions import converting, parameters, result_type
from .stand_in import declined, warn


class OpModule(torch.nn.Module):
    """One op: its options are the constructor's arguments and the module's attributes, its tensors those of the call.

    Options that are tensors (class weights, priors) are buffers. Where torch.nn has a class of the same name, that is
    a base class: the constructor, the attributes and the state are its own. Options that torch does not have come
    after those, by name alone.
    """

    op: ClassVar[Op]
    options: ClassVar[tuple[str, ...]]
    # torch.nn's class in whose place opreg.fuse has put this module: its forward computes what the op can't
    stands_for: type[torch.nn.Module] | None = None

    def extra_repr(self) -> str:
        return ", ".join(f"{n}={getattr(self, n)!r}" for n in self.options if n not in self._buffers)


def class_name(op: Op) -> str:
    return op.module or "".join(word.capitalize() for word in op.short.split("_"))


def derivable(op: Op) -> bool:
    """Not where the op returns nothing, nor where it takes a parameter: a tensor with a gradient and without a batch.

    Those want a class that is written out.
    """
    if not op.value._schema.returns:
        return False
    without_batch = [n for n, dim in op.batch_dims.items() if dim is None]
    return not any(n in op.differentiable and n not in op.defaults for n in without_batch)


def native_class(op: Op) -> type[torch.nn.Module] | None:
    """torch.nn's class of this name."""
    found: type[torch.nn.Module] | None = getattr(torch.nn, class_name(op), None)
    return found


def options_of(op: Op) -> list[Parameter]:
    """What the constructor takes of the op's arguments: where torch.nn has the class, what that takes, and numbers and
    flags that it does not have.

    Else all that is not given anew in each call: numbers, flags, optional tensors and those without a batch.
    """
    known = {p.name: p for p in parameters(op) if p.kind is not Parameter.KEYWORD_ONLY}
    native = native_class(op)
    if native is not None:
        torchs = inspect.signature(native).parameters
        further = [p for n, p in known.items() if n not in torchs and n not in op.tensor_arguments]
        return [*(known[n] for n in torchs if n in known), *(p.replace(kind=Parameter.KEYWORD_ONLY) for p in further)]

    def in_call(p: Parameter) -> bool:
        batched = op.batch_dims.get(p.name, 0) is not None
        return p.name in op.tensor_arguments and p.default is Parameter.empty and batched

    return [p for p in known.values() if not in_call(p)]


def module_class(op: Op, module: str) -> type[OpModule]:
    """The class over the op, as one of this module."""
    name, native = class_name(op), native_class(op)
    options = options_of(op)
    names = tuple(p.name for p in options)
    tensors = [p for p in parameters(op) if p.name in op.tensor_arguments and p.name not in names]
    call, in_call = converting(op), [p.name for p in tensors]
    by_name = ["dtype"] if op.is_loss else []

    def forward(self: OpModule, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(in_call) or any(n in kwargs for n in names):
            raise RuntimeError(f"{name}: {wrong_names(in_call, by_name, args, kwargs)}; options go to the constructor")
        options = {n: getattr(self, n) for n in names}
        if self.stands_for is not None:
            why = declined(op, {**options, **dict(zip(in_call, args, strict=False)), **kwargs})
            if why:
                warn(self, why)
                return self.stands_for.forward(self, *args, **kwargs)
        return call(*args, **options, **kwargs)

    this = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [this, *tensors], return_annotation=result_type(op)
    )
    forward.__qualname__ = f"{name}.forward"
    # code of its own, as in functions.py
    forward.__code__ = forward.__code__.replace(co_name=name)
    taken = names if native is None else tuple(dict.fromkeys([*inspect.signature(native).parameters, *names]))
    members: dict[str, Any] = {
        "__module__": module,
        "__doc__": module_docstring(op, name, taken, [p.name for p in tensors]),
        "op": op,
        "options": names,
        "forward": forward,
    }
    # for a module of torch's that becomes one of these, or was kept by a version without them
    members |= {p.name: p.default for p in options if p.kind is Parameter.KEYWORD_ONLY}
    members["__init__"] = constructor(op, name, options) if native is None else checked(op, name, native, options)
    return type(name, (OpModule,) if native is None else (OpModule, native), members)


def constructor(op: Op, name: str, options: list[Parameter]) -> Any:
    this = Parameter("self", Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.Signature([this, *options], return_annotation=None)

    def __init__(self: OpModule, *args: Any, **kwargs: Any) -> None:
        torch.nn.Module.__init__(self)
        given = bound_options(op, name, signature, (self, *args), kwargs)
        check_options(op, given)
        for option, value in given.items():
            if option in op.tensor_arguments:
                self.register_buffer(option, value)
            else:
                setattr(self, option, value)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{name}.__init__"
    return __init__


def checked(op: Op, name: str, native: type[torch.nn.Module], options: Collection[Parameter]) -> Any:
    """torch.nn's constructor, behind a look at the options, and before those that it does not have."""
    torchs = inspect.signature(native.__init__)
    further = [p for p in options if p.name not in torchs.parameters]
    signature = torchs.replace(parameters=[*torchs.parameters.values(), *further])
    names = {p.name for p in options}

    def __init__(self: OpModule, *args: Any, **kwargs: Any) -> None:
        given = bound_options(op, name, signature, (self, *args), kwargs)
        check_options(op, {n: value for n, value in given.items() if n in names})
        native.__init__(self, *args, **{n: value for n, value in kwargs.items() if n in torchs.parameters})
        for p in further:
            setattr(self, p.name, given[p.name])

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    __init__.__qualname__ = f"{name}.__init__"
    return __init__


def bound_options(
    op: Op, name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a constructor by name."""
    names = list(signature.parameters)[1:]
    if wrong := wrong_names(names, (), args[1:], kwargs):
        raise TypeError(f"{name}: {wrong}")
    given = signature.bind_partial(*args, **kwargs)
    given.apply_defaults()
    missing = [n for n in names if n not in given.arguments]
    if missing:
        raise TypeError(f"{name}: expected {' and '.join(missing)}, got no such argument")
    return {n: given.arguments[n] for n in names}
