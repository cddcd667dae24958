"""What a module's forward read while it was traced, and whether that is still the same."""

import enum
import math
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, complex, str, bytes, types.NoneType, torch.dtype, torch.device, torch.Size, torch.layout)


class Unwatched(Exception):
    """A forward reads or does something that can't be watched, and what that is."""


class Same:
    """An object of which a later one is compared by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


def frozen(value: Any, what: str) -> Any:
    """A copy of a value, with which ``unchanged`` compares a later one."""
    if isinstance(value, Tensor):
        raise Unwatched(f"its forward reads the tensor {what}")
    if isinstance(value, enum.Enum) or type(value) in PLAIN:
        return value
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type | types.MethodDescriptorType):
        return Same(value)
    if type(value) is dict:
        return {k: frozen(v, what) for k, v in value.items() if frozen(k, what) is k}
    if type(value) in (set, frozenset) and all(type(v) in PLAIN for v in value):
        return type(value)(value)
    if type(value) in (list, tuple):
        return type(value)([frozen(v, what) for v in value])
    raise Unwatched(f"its forward reads {what}, of type {type(value).__name__}, which may change unseen")


def unchanged(value: Any, seen: Any) -> bool:
    """Is a value what it was when it was frozen?"""
    if type(seen) is Same:
        return value is seen.value
    if type(value) is not type(seen):
        return False
    if type(seen) in (list, tuple):
        return len(value) == len(seen) and all(unchanged(a, b) for a, b in zip(value, seen, strict=True))
    if type(seen) is dict:
        return list(value) == list(seen) and all(unchanged(value[k], seen[k]) for k in seen)
    if type(seen) is float:  # NaN equals NaN here, and -0.0 differs from 0.0
        if value != value or seen != seen:
            return bool(value != value and seen != seen)
        return bool(value == seen) and math.copysign(1.0, value) == math.copysign(1.0, seen)
    return bool(value == seen)


def at_path(module: torch.nn.Module, path: str) -> Any:
    """The module at a path below another one; None where there is none."""
    found: Any = module
    for step in path.split(".") if path else ():
        found = getattr(found, step, None)
    return found


ABSENT = Same(object())


class State:
    """What a forward read, and whether it is still the same.

    Everything is known by paths relative to a module, so that a copy of the module can be asked too.
    """

    def __init__(self) -> None:
        # attributes by the path of their module and their name: plain values, tensors (do they require grad?), modules
        # (their path), methods
        self.values: dict[tuple[str, str], Any] = {}
        self.tensors: dict[tuple[str, str], bool] = {}
        self.modules: dict[tuple[str, str], str] = {}
        self.methods: dict[tuple[str, str], Any] = {}
        # the paths of the modules whose ``training`` was read
        self.flags: dict[str, None] = {}
        # the names of all that a module holds, by its path
        self.members: dict[str, tuple[str, ...]] = {}
        # type and options of the modules whose call may have become part of an op, by their paths
        self.options: dict[str, tuple[type, Any]] = {}
        # the variables of closures, by name and place: how to read them, and what they were. Dynamo guards them itself.
        self.cells: dict[tuple[str, int], tuple[Callable[[], Any], Any]] = {}
        # globals and defaults, by name and place: how to read them, and what they were
        self.outside: dict[tuple[str, int], tuple[Callable[[], Any], Any]] = {}

    def add(self, other: "State") -> None:
        """Takes in what another trace of the same forward read."""
        for name, found in vars(other).items():
            vars(self)[name].update(found)

    def changed(self, module: torch.nn.Module) -> str:
        """The name of something that is not what it was; empty: everything is."""
        for (path, name), seen in self.values.items():
            if not unchanged(getattr(at_path(module, path), name, ABSENT.value), seen):
                return joined(path, name)
        for (path, name), requires_grad in self.tensors.items():
            t = getattr(at_path(module, path), name, None)
            if not isinstance(t, Tensor) or t.requires_grad != requires_grad:
                return joined(path, name)
        for (path, name), target in self.modules.items():
            if getattr(at_path(module, path), name, None) is not at_path(module, target):
                return joined(path, name)
        for (path, name), function in self.methods.items():
            if getattr(getattr(at_path(module, path), name, None), "__func__", None) is not function:
                return joined(path, name)
        for path, names in self.members.items():
            if members(at_path(module, path)) != names:
                return f"what {path or 'it'} holds"
        for path, (kind, options) in self.options.items():
            m = at_path(module, path)
            if (
                type(m) is not kind
                or not isinstance(m, torch.nn.Module)
                or hooked(m)
                or not unchanged(options_of(m), options)
            ):
                return path
        if len({at_path(module, path).training for path in self.flags}) > 1:
            return "training of a part of it"
        for (what, _), (read, seen) in (*self.outside.items(), *self.cells.items()):
            if not unchanged(read(), seen):
                return what
        return ""


def joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def members(module: Any) -> tuple[str, ...]:
    """The names of the modules, parameters and buffers that a module holds."""
    if not isinstance(module, torch.nn.Module):
        return ()
    return (*module._modules, *module._parameters, *module._buffers)


def hooked(module: torch.nn.Module) -> bool:
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return bool(hooks) or "forward" in vars(module)


def options_of(module: torch.nn.Module) -> dict[str, Any]:
    """The options that a module of torch.nn was constructed with."""
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k not in ("training", "forward")}
