"""What a formula's Python function says of the op: its tensors, its options, their defaults and domains."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from torch import Tensor

from .domains import Domain
from .expression import Variable

# of an option's annotation: its type in a schema, and in C++
KINDS = {float: ("float", "double"), int: ("int", "int64_t"), bool: ("bool", "bool")}


@dataclass(frozen=True)
class Argument:
    """One parameter of the function. ``kind`` is Tensor, float, int or bool."""

    name: str
    kind: type
    optional: bool
    default: Any
    domain: Domain

    @property
    def is_tensor(self) -> bool:
        return self.kind is Tensor

    @property
    def has_default(self) -> bool:
        return self.optional or self.default is not inspect.Parameter.empty

    @property
    def schema(self) -> str:
        if self.is_tensor:
            return f"Tensor? {self.name}=None" if self.optional else f"Tensor {self.name}"
        default = f"={self.default!r}" if self.has_default else ""
        return f"{KINDS[self.kind][0]} {self.name}{default}"

    @property
    def variable(self) -> Variable:
        return Variable(self.name) if self.is_tensor else Variable(self.name, self.domain.low, self.domain.high)


@dataclass(frozen=True)
class Signature:
    """A function's parameters, in its own order."""

    name: str
    arguments: tuple[Argument, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], domains: Mapping[str, str]) -> "Signature":
        """Raises TypeError for a parameter that no op can have, ValueError for a domain that is none."""
        name = function.__name__
        hints = typing.get_type_hints(function)
        parameters = inspect.signature(function).parameters.values()
        if unknown := domains.keys() - {p.name for p in parameters}:
            names = ", ".join(p.name for p in parameters)
            raise ValueError(
                f"{name}: expected domains of its arguments, {names}, got one of {', '.join(sorted(unknown))}"
            )
        return cls(name, tuple(_argument(name, p, hints.get(p.name), domains.get(p.name)) for p in parameters))

    @cached_property
    def tensors(self) -> list[Argument]:
        """The required ones first, as an op has them."""
        found = [a for a in self.arguments if a.is_tensor]
        return sorted(found, key=lambda a: a.optional)

    @cached_property
    def required(self) -> list[Argument]:
        return [a for a in self.tensors if not a.optional]

    @cached_property
    def options(self) -> list[Argument]:
        """Those without a default first."""
        return sorted((a for a in self.arguments if not a.is_tensor), key=lambda a: a.has_default)

    @cached_property
    def numbers(self) -> list[Argument]:
        return [a for a in self.options if a.kind is not bool]

    @cached_property
    def flags(self) -> list[Argument]:
        return [a for a in self.options if a.kind is bool]

    def flag_choices(self) -> list[dict[str, bool]]:
        """Every choice of the flags."""
        return [
            dict(zip([a.name for a in self.flags], chosen, strict=True))
            for chosen in product((False, True), repeat=len(self.flags))
        ]

    def expect_free(self, *names: str) -> None:
        """The op has arguments of these names itself. Raises TypeError for an option of one of them."""
        if found := [o.name for o in self.options if o.name in names]:
            expected = f"options of other names than {', '.join(names)}, which the op has itself"
            raise TypeError(f"{self.name}: expected {expected}, got {found[0]}")

    def schema(self, *, reduction: bool) -> str:
        """The schema's arguments of an op of these tensors."""
        ordered = [a.schema for a in self.required]
        ordered += [o.schema for o in self.options if not o.has_default]
        ordered += [t.schema for t in self.tensors if t.optional]
        ordered += [o.schema for o in self.options if o.has_default]
        return ", ".join([*ordered, *(['str reduction="mean"'] if reduction else [])])


def _argument(function: str, p: inspect.Parameter, hint: Any, domain: str | None) -> Argument:
    if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.name in ("reduction", "dtype", "ignore_index", "grad_output"):
        raise TypeError(
            f"{function}: expected arguments of its own names, got {p}; an op adds reduction and dtype itself"
        )
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = [k for k in alternatives if k is not type(None)]
    optional = type(None) in alternatives
    if len(kinds) != 1 or (kinds[0] is not Tensor and (kinds[0] not in KINDS or optional)):
        raise TypeError(
            f"{function}: expected {p.name} to be annotated as Tensor, Tensor | None, float, int or bool, got {hint}"
        )
    kind: type = kinds[0]
    default = p.default
    if kind is float and isinstance(default, int) and not isinstance(default, bool):
        default = float(default)
    if kind is Tensor and default is not (None if optional else p.empty):
        raise TypeError(f"{function}: expected Tensor without a default, or Tensor | None = None, got {p}")
    if kind is not Tensor and default is not p.empty and type(default) is not kind:
        raise TypeError(f"{function}: expected a default of {p.name} of type {kind.__name__}, got {default!r}")
    allowed = Domain.of(p.name, domain) if domain is not None else Domain()
    if kind is float and default is not p.empty and (default not in allowed or math.isnan(default)):
        raise ValueError(f"{function}: expected a default {allowed.said(p.name)}, got {default!r}")
    return Argument(p.name, kind, optional, default, allowed)
