"""Torch's functions, with other code in them while ``opreg.use`` is on.

A function keeps its identity: whoever imported it by name earlier calls the same object, and so do torch.nn's modules,
every thread, and the threads of autograd. Dynamo, torch.fx and torch.jit know torch's functions by that identity too,
and go on seeing them, which they would not if another function stood under the name. A TorchFunctionMode, the other
way, is one thread's, costs a microsecond for every other call of torch, and is itself traced by Dynamo.
"""

import inspect
import sys
from collections.abc import Callable
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from .._imports import when_imported
from ..faces.modules import native_class
from ..op import Op
from ..registry import registered


def code_of(name: str, function: FunctionType) -> CodeType:
    """Code with the parameters of a function, which hands a call on under a name.

    It runs in the function's own module, so it finds what it needs by an import. inspect.getsource and torch.jit.script
    go on reading the function's own source; Dynamo, which looks into functions of other libraries, finds parameters
    that fit to the signature.
    """
    own = function.__code__
    positional = own.co_varnames[: own.co_argcount]
    by_name = own.co_varnames[own.co_argcount : own.co_argcount + own.co_kwonlyargcount]
    parameters = ", ".join((*positional, *(("*", *by_name) if by_name else ())))
    given = "".join(f"{n}, " for n in positional)
    named = "".join(f"{n!r}: {n}, " for n in by_name)
    text = (
        f"def {own.co_name}({parameters}):\n"
        " from opreg.eager._use import call\n"
        f" return call({name!r}, ({given}), {{{named}}})\n"
    )
    scope: dict[str, Any] = {}
    exec(text, scope)
    code: CodeType = scope[own.co_name].__code__
    return code.replace(co_filename=own.co_filename, co_firstlineno=own.co_firstlineno)


class Exchanged:
    """One of torch's functions, and what it does."""

    def __init__(self, name: str, function: FunctionType, activation: bool) -> None:
        self.name, self.function, self.activation = name, function, activation
        # where other code stands in the function, this one does what it did
        self.original = copy_of(function, function.__globals__)
        self.code = code_of(name, function)

    def exchange(self) -> None:
        self.function.__code__ = self.code

    def restore(self) -> None:
        self.function.__code__ = self.original.__code__

    def handed_on(self, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """The function that a call is one of, and its arguments."""
        return self, args, kwargs


def copy_of(function: FunctionType, names: dict[str, Any]) -> FunctionType:
    """The same function, which finds other things under its global names."""
    made = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    made.__kwdefaults__, made.__module__ = function.__kwdefaults__, function.__module__
    return made


class InC:
    """One of torch's functions that has no code to exchange."""

    def __init__(self, name: str, function: BuiltinFunctionType, activation: bool) -> None:
        self.name, self.function, self.original, self.activation = name, function, function, activation


class _Recorder:
    """In the place of torch.nn.functional: a call of its one function gives the arguments of the call."""

    def __init__(self, name: str) -> None:
        setattr(self, name, lambda *args, **kwargs: (args, kwargs))


class ExchangedForward(Exchanged):
    """The forward of a module of torch.nn, which is one call of a function that torch has in C."""

    def __init__(self, name: str, forward: FunctionType, of: InC) -> None:
        super().__init__(name, forward, of.activation)
        self.of = of
        self.recorded = copy_of(forward, {**forward.__globals__, "F": _Recorder(of.name.rpartition(".")[2])})

    def handed_on(self, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        return self.of, *self.recorded(*args, **kwargs)


# The functions that have been exchanged, by the name that the registry has for them; they stay here when they are whole
# again, because calls of other threads may still be on their way.
functions: dict[str, Exchanged] = {}
# *args or **kwargs among the parameters
_OPEN = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS
# What waits for the import of a library.
_awaited: list[Callable[[], None]] = []


def install() -> None:
    """Exchanges every function that an op of the registry has as a spelling, of other libraries once they are there."""
    for op in registered():
        for spelling in op.spellings:
            if not spelling.startswith("aten."):
                _awaited.append(when_imported(spelling.rpartition(".")[0], partial(_exchange, spelling, op)))


def _exchange(spelling: str, op: Op) -> None:
    module, _, name = spelling.rpartition(".")
    function = getattr(sys.modules[module], name, None)
    if isinstance(function, BuiltinFunctionType):  # reached through the module over it
        native = native_class(op)
        if native is None:
            return
        of, function = InC(spelling, function, activation=not op.is_loss), native.forward
        spelling = f"torch.nn.{native.__name__}"
    else:
        of = None
    if isinstance(function, FunctionType) and not function.__closure__ and not function.__code__.co_flags & _OPEN:
        if spelling not in functions:
            made = ExchangedForward(spelling, function, of) if of else Exchanged(spelling, function, not op.is_loss)
            functions[spelling] = made
        functions[spelling].exchange()


def remove() -> None:
    """Undoes ``install``."""
    while _awaited:
        _awaited.pop()()
    for each in functions.values():
        each.restore()
