"""Watches what a module's forward reads beside its arguments, while it is traced.

A trace holds what Python decided when it was made: numbers, branches, lengths of loops. ``Watch`` records where these
came from (attributes of the module and of those below it, globals, closures), so that a later call can tell whether
they are still what they were. A forward that does something ``Watch`` can't follow is not replaced.
"""

import builtins
import copy
import dis
import itertools
import math
import operator
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode, get_ignored_functions
from torch.utils import _pytree as pytree

from ..._package import PACKAGE
from .state import ABSENT, PLAIN, State, Unwatched, frozen, joined, members, unchanged

_TORCH = os.path.dirname(torch.__file__) + os.sep
_OPREG = os.path.dirname(os.path.dirname(os.path.dirname(__file__))) + os.sep
# Files of torch whose functions compute from their arguments alone, so that a trace shows all that they do.
_TRANSPARENT = tuple(
    os.path.join(_TORCH, *path.split("/"))
    for path in (
        *("nn/functional.py", "functional.py", "_tensor.py", "_VF.py", "_ops.py", "_jit_internal.py", "overrides.py"),
        *("fx/", "nn/modules/module.py", "nn/modules/container.py"),
    )
)
_OF_MODULES = frozenset({"__call__", "__getattr__", "_call_impl", "_wrapped_call_impl", "__iter__", "__len__"})
_OF_MODULES |= {"__getitem__", "_get_abs_string_index", "_get_item_by_idx", "keys", "values", "items", "__contains__"}
_BUILTINS = frozenset(
    {"abs", "all", "any", "bool", "dict", "divmod", "enumerate", "filter", "float", "frozenset", "getattr", "hasattr"}
    | {"int", "iter", "len", "list", "map", "max", "min", "next", "pow", "range", "reversed", "round", "set", "slice"}
    | {"sorted", "str", "sum", "super", "tuple", "zip"}
    | {"NotImplementedError", "RuntimeError", "ValueError", "TypeError", "AssertionError"}
)
_CONTAINERS = (list, tuple, dict, set, frozenset)
_WRITES = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR"})
_PURE_MODULES = (math, operator, itertools)


@cache
def ignored() -> frozenset[Any]:
    """Functions of torch that a trace does not see: those that make tensors, or read a switch."""
    return frozenset(get_ignored_functions())


def own(code: types.CodeType) -> bool:
    """Does the code belong to torch or to this package?"""
    return code.co_filename.startswith((_TORCH, _OPREG))


class Watch(TorchFunctionMode):
    """Watches the trace of one module's forward.

    It sees reads of attributes in ``torch.nn.Module.__getattribute__``, which it replaces meanwhile, calls through
    Python's profiler, and the names that a function takes from outside in its bytecode.
    """

    def __init__(self, module: torch.nn.Module, tracer: fx.Tracer) -> None:
        super().__init__()
        self.tracer, self.state = tracer, State()
        self.state.members[""] = members(module)
        self.paths = {id(m): path for path, m in module.named_modules()}
        self.problem = ""
        self.proxies: dict[str, Any] = {}
        self.raw: dict[tuple[str, str], Tensor] = {}
        self.copies: list[tuple[Any, Any, str]] = []
        # the code of the functions that may run, and of those inside them; and the code that has run
        self.known: set[types.CodeType] = set()
        self.looked_at: set[types.CodeType] = set()
        self.entry: Any = None
        self.root = module
        function = type(module).forward
        self.outside("its forward", 0, lambda: type(module).forward, function)

    def complain(self, problem: str) -> None:
        self.problem = self.problem or problem

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watches everything that this thread does inside the context."""
        before, thread = sys.getprofile(), _thread()
        get, put = torch.nn.Module.__getattribute__, torch.nn.Module.__setattr__

        def read(module: torch.nn.Module, name: str) -> Any:
            if _thread() != thread or self.entry is None or sys._getframe(1).f_code not in self.known:
                return get(module, name)
            return self.read(module, name)

        def write(module: torch.nn.Module, name: str, value: Any) -> None:
            if _thread() == thread and self.entry is not None and sys._getframe(1).f_code in self.known:
                self.complain(f"its forward writes to {name}")
            put(module, name, value)

        torch.nn.Module.__getattribute__ = read  # type: ignore[method-assign, assignment]
        torch.nn.Module.__setattr__ = write  # type: ignore[method-assign, assignment]
        try:
            with self:
                sys.setprofile(self.profile)
                try:
                    yield
                finally:
                    sys.setprofile(before)
        finally:
            del torch.nn.Module.__getattribute__
            torch.nn.Module.__setattr__ = put  # type: ignore[method-assign]

    def finish(self) -> State:
        """What was read.

        Raises:
            Unwatched: the forward did something that can't be watched.
        """
        for given, seen, what in self.copies:
            if not unchanged(given, seen):
                self.complain(f"its forward writes to {what}")
        if self.problem:
            raise Unwatched(self.problem)
        self.state.tensors = {key: t.requires_grad for key, t in self.raw.items()}
        changed = self.state.changed(self.root)
        if changed:
            raise Unwatched(f"its forward changes {changed}")
        return self.state

    # attributes of modules

    def read(self, module: torch.nn.Module, name: str) -> Any:
        path = self.paths.get(id(module))
        if path is None:
            self.complain(f"its forward reads {name} of a module that is no part of it")
            return getattr(super(torch.nn.Module, module), name)
        what = joined(path or "self", name)
        of_class = next((c.__dict__[name] for c in type(module).__mro__ if name in c.__dict__), None)
        if isinstance(of_class, property) and of_class.fget is not None:
            self.function(of_class.fget, what)
            return object.__getattribute__(module, name)
        try:
            value = object.__getattribute__(module, name)
        except AttributeError:
            value = self.held(module, name)
            if value is ABSENT.value:
                self.state.values[path, name] = ABSENT
                return type(module).__getattr__(module, name)
        if name == "training":
            self.state.flags[path] = None
            return value
        if name.startswith("__") or name in ("_parameters", "_buffers", "_modules"):
            if name != "__call__":
                self.complain(f"its forward reads {what}")
            return value
        if isinstance(value, Tensor):
            self.raw[path, name] = value
            target = joined(path, name)
            if target not in self.proxies:
                self.proxies[target] = self.tracer.create_proxy("get_attr", target, (), {})
            return self.proxies[target]
        if isinstance(value, torch.nn.Module):
            if id(value) not in self.paths:
                self.complain(f"its forward reads {what}, a module that is no part of it")
            else:
                self.state.modules[path, name] = part = self.paths[id(value)]
                self.state.members[part] = members(value)
            return value
        if isinstance(value, types.MethodType) and value.__self__ is module:
            self.state.methods[path, name] = value.__func__
            self.function(value.__func__, what)
            return value
        try:
            self.state.values[path, name] = seen = self.judged(value, what)
        except Unwatched as reason:
            self.complain(str(reason))
            return value
        if type(value) in (list, dict, set):  # a copy, so that a write to it is found, and does not reach the module
            value = copy.copy(value) if all(type(v) in PLAIN for v in value) else copy.deepcopy(value)
            self.copies.append((value, seen, what))
        return value

    @staticmethod
    def held(module: torch.nn.Module, name: str) -> Any:
        for place in (module._parameters, module._buffers, module._modules):
            if name in place:
                return place[name]
        return ABSENT.value

    def judged(self, value: Any, what: str) -> Any:
        """The value, frozen. The functions in it may run, and are looked at when they do."""
        for item in pytree.tree_leaves(value):
            if isinstance(item, types.FunctionType):
                self.function(item, what)
            elif isinstance(item, type) and not item.__module__.startswith("torch") and item.__name__ not in _BUILTINS:
                raise Unwatched(f"its forward uses the class {item.__name__}")
        return frozen(value, what)

    # code

    def profile(self, frame: types.FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "return" and frame is self.entry:
            self.entry = None
        elif event == "call":
            if self.entry is None and code is getattr(type(self.root).forward, "__code__", None):
                self.entry = frame
            if self.entry is not None:
                self.enter(frame)
        elif event == "c_call" and self.entry is not None and code in self.known:
            self.of_c(arg)

    def enter(self, frame: types.FrameType) -> None:
        """Looks at a call that the forward makes, or a function that it calls; not at what torch calls in its turn."""
        code, caller = frame.f_code, frame.f_back
        if code in self.known:
            if code not in self.looked_at:
                self.looked_at.add(code)
                try:
                    self.look_at(code, frame.f_globals)
                except Unwatched as reason:
                    self.complain(str(reason))
        elif caller is not None and caller.f_code in self.known:
            if own(code):
                self.of_torch(code)
            else:
                self.complain(f"its forward runs {code.co_name}, which may depend on more than its arguments")

    def of_torch(self, code: types.CodeType) -> None:
        path = code.co_filename
        if path.startswith(_OPREG) or (path.startswith(_TRANSPARENT) and os.sep + "modules" + os.sep not in path):
            return
        if not path.startswith(_TRANSPARENT) or code.co_name not in _OF_MODULES:
            self.complain(f"its forward calls torch's {code.co_name}, which may depend on more than its arguments")

    def of_c(self, function: Any) -> None:
        owner, module = getattr(function, "__self__", None), getattr(function, "__module__", None) or ""
        name = getattr(function, "__name__", "?")
        if owner is builtins or module == "builtins":
            safe = name in _BUILTINS or name == "__build_class__"
        elif any(owner is m for m in _PURE_MODULES) or module in ("math", "_operator"):
            safe = True
        elif module.startswith("torch") or type(owner).__module__.startswith("torch"):
            safe = function not in ignored()
        else:
            safe = type(owner) in (*PLAIN, *_CONTAINERS) or isinstance(owner, types.NoneType)
        if not safe:
            self.complain(f"its forward calls {name}, which may depend on more than its arguments")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = pytree.tree_leaves((args, kwargs or {}))
        if self.entry is not None and not any(isinstance(a, fx.Proxy) for a in given):
            self.complain("its forward makes tensors of its own")
        return func(*args, **(kwargs or {}))

    def function(self, function: Any, what: str) -> None:
        """Marks a function's code as known, and notes the closure and the defaults that the function holds."""
        if not isinstance(function, types.FunctionType) or own(function.__code__):
            return
        code = function.__code__
        if code in self.known:
            if code.co_freevars:
                self.closure(function, what)
            return
        self.know(code)
        self.closure(function, what)
        if function.__defaults__ or function.__kwdefaults__:
            self.outside(
                f"the defaults of {what}",
                id(function),
                lambda: (function.__defaults__, function.__kwdefaults__),
                (function.__defaults__, function.__kwdefaults__),
            )

    def know(self, code: types.CodeType) -> None:
        self.known.add(code)
        for inner in code.co_consts:
            if isinstance(inner, types.CodeType):
                self.know(inner)

    def closure(self, function: types.FunctionType, what: str) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if name == "__class__":
                continue
            try:
                value = cell.cell_contents
            except ValueError:  # empty
                continue
            if id(value) in self.paths or isinstance(value, fx.Proxy):
                continue
            place = (f"{name} of {what}", id(cell))
            self.note(self.state.cells, place, lambda cell=cell: cell.cell_contents, value)  # type: ignore[misc]

    def outside(self, what: str, place: int, read: Callable[[], Any], value: Any) -> None:
        self.note(self.state.outside, (what, place), read, value)

    def note(
        self,
        notes: dict[tuple[str, int], tuple[Callable[[], Any], Any]],
        place: tuple[str, int],
        read: Callable[[], Any],
        value: Any,
    ) -> None:
        if place in notes:
            return
        try:
            notes[place] = (read, self.judged(value, place[0]))
        except Unwatched as reason:
            self.complain(str(reason))

    def look_at(self, code: types.CodeType, names: Mapping[str, Any]) -> None:
        """Notes every name that code takes from outside, and complains of what it does to others."""
        instructions = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "PUSH_NULL", "EXTENDED_ARG")]
        for k, i in enumerate(instructions):
            if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
                after = instructions[k + 1 :]
                attributes = itertools.takewhile(lambda j: j.opname in ("LOAD_ATTR", "LOAD_METHOD"), after)
                self.name(str(i.argval), [str(j.argval) for j in attributes], names)
            elif i.opname in _WRITES or (i.opname == "STORE_DEREF" and i.argval in code.co_freevars):
                self.complain(f"its forward writes to {i.argval}")
            elif i.opname.startswith("IMPORT_"):
                self.complain("its forward imports")
            elif i.opname in ("SETUP_FINALLY", "SETUP_WITH", "BEFORE_WITH", "PUSH_EXC_INFO", "SETUP_ASYNC_WITH"):
                self.complain("its forward handles exceptions, or enters a context")
            elif i.opname == "IS_OP" and (k == 0 or instructions[k - 1].opname != "LOAD_CONST"):
                self.complain("its forward asks whether two objects are one")

    def name(self, name: str, attributes: list[str], names: Mapping[str, Any]) -> None:
        if name not in names:
            if name not in _BUILTINS and hasattr(builtins, name):
                self.complain(f"its forward calls {name}")
            return
        value, steps = names[name], []
        for step in attributes:
            if not isinstance(value, types.ModuleType) or not hasattr(value, step):
                break
            value = getattr(value, step)
            steps.append(step)
        what = ".".join((name, *steps))
        if id(value) in self.paths or names[name] in _PURE_MODULES:
            return
        if isinstance(value, types.ModuleType):
            raise Unwatched(f"its forward passes the module {what} on")
        origin = getattr(value, "__module__", None) or ""
        of_torch = origin.startswith(("torch", PACKAGE)) or type(value).__module__.startswith("torch._ops")
        if callable(value) and (of_torch or isinstance(value, types.BuiltinFunctionType)):
            return  # looked at when it is called

        def read() -> Any:
            found = names.get(name)
            for step in steps:
                found = getattr(found, step, None)
            return found

        self.outside(f"{what} of {names.get('__name__')}", id(names), read, value)


def _thread() -> int:
    import threading

    return threading.get_ident()
