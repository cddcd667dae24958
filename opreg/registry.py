"""The registry of ops: ``register(op)`` attaches to a declaration what follows from it, once and generically.

The dispatcher holds the schema and the kernels of an op ``NAME``: the op itself, ``NAME_backward``, and, for ops that
keep state from the forward pass, ``NAME_forward``. ``register(Op(...))`` reads the schema back and attaches the rest:
fake implementation, autograd and second derivative, torch.func, autocast, Inductor treatment. It does the same for an
op of yours, whose kernels come from a library of yours or from Python functions (``kernels=``).
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from . import _private
from ._fingerprint import fingerprint
from ._library import NAMESPACE, PARTIAL
from ._tables import html_table
from .attach import autocast, autograd, cache_keys, flops, in_place, inductor, messages, python_kernels, sharding
from .meta import register_fakes
from .op import Op

_ops: dict[str, Op] = {}
# What each was declared with when it was registered.
_texts: dict[str, str] = {}
# Of each op; registrations live as long as their Library objects.
_libraries: dict[str, list[torch.library.Library]] = {}


def register(op: Op, *, replace: bool = False) -> Op:
    """Makes ``op`` a full citizen: see the module's docstring. Returns it.

    The same declaration again, as a notebook's cell that is run twice gives it, is the op that is there already.

    Args:
        op: the declaration.
        replace: take the place of an op of this name that was registered with another text. Its compiled code is thrown
            away, and graphs and modules that hold the old op are to be made anew.

    Raises:
        ValueError: another op of this name is registered, or the dispatcher knows no schema for it, or one that says
            otherwise than the declaration.
    """
    namespace = op.qualname.split("::")[0]
    own = op.own
    text = "" if own else fingerprint([getattr(op, f.name) for f in fields(op)])
    if op.qualname in _ops:
        there = _ops[op.qualname]
        if op is there or (text and text == _texts[op.qualname]):
            return there
        if not replace:
            raise ValueError(
                f"{op.qualname}: expected an op that is not registered yet, got one that is, from {_origin(there)} "
                f"and now from {_origin(op)}; pass replace=True to exchange it"
            )
        unregister(op.qualname)
    has_schema = hasattr(getattr(torch.ops, namespace), op.short)
    if own and PARTIAL and not has_schema:  # of a family that the library was built without
        return op
    made = _libraries[op.qualname] = []
    try:
        if op.kernels is not None:
            made.append(torch.library.Library(namespace, "FRAGMENT"))
            python_kernels.define(op, made[0])
        elif not has_schema:
            raise ValueError(f"{op.qualname}: expected a schema in the dispatcher (load its library first) or kernels=")
        require_state(op)
        lib = torch.library.Library(namespace, "IMPL")
        made.append(lib)
        if op.mutated:
            in_place.attach(op, lib)
        else:
            register_fakes(op.qualname, op.rule, lib, state=op.state)
            autograd.attach(op, lib)
            autocast.attach(op, lib)
        messages.attach(op)
        sharding.attach(op)
        inductor.attach(op)
        flops.attach(op)
    except BaseException:  # a declaration that is refused leaves nothing behind: it can be mended and tried again
        _destroy(op.qualname)
        raise
    _ops[op.qualname], _texts[op.qualname] = op, text
    if not own:  # opreg's own text is in the key already
        cache_keys.tell_of(op)
    return op


def require_state(op: Op) -> None:
    """The declaration and the library agree on whether something is kept for the backward pass."""
    keeps = _private.has_op(f"{op.qualname}_forward")
    if keeps and op.state is None:
        raise ValueError(
            f"{op.qualname}: expected state=, for the library has {op.short}_forward, which keeps one for the backward "
            "pass; got none"
        )
    if op.state is not None and not keeps:
        raise ValueError(
            f"{op.qualname}: expected no state=, for the library has no {op.short}_forward that would keep one; got one"
        )


def _origin(op: Op) -> str:
    code = getattr(op.reference, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else str(op.reference)


def unregister(qualname: str) -> None:
    """Undoes ``register``, where there is such an op."""
    if qualname in _ops:
        inductor.withdraw(_ops.pop(qualname))
        del _texts[qualname]
        _destroy(qualname)


def _destroy(qualname: str) -> None:
    for lib in reversed(_libraries.pop(qualname)):
        _private.destroy_library(lib)


class Ops(list[Op]):
    """Ops as a list, which a notebook shows as a table of what each has."""

    def _repr_html_(self) -> str:
        from . import catalogue  # which asks the registry

        return html_table(*catalogue.ops_rows(self))


def registered() -> Ops:
    """Every registered op, in the order of registration."""
    return Ops(_ops.values())


def of_namespace(namespace: str = NAMESPACE) -> Ops:
    """The registered ops of a namespace; by default of opreg itself, those of ``torch.ops.lossreg``."""
    return Ops(op for op in registered() if op.qualname.startswith(f"{namespace}::"))


def get(name: str) -> Op:
    """The op of this name, with or without its namespace."""
    qualname = name if "::" in name else f"{NAMESPACE}::{name}"
    if qualname not in _ops:
        raise KeyError(f"expected the name of a registered op ({', '.join(o.short for o in registered())}), got {name}")
    return _ops[qualname]


def called(target: Any) -> Op | None:
    """The op that a node of a graph calls, if its target is one."""
    if not isinstance(target, torch._ops.OpOverload):
        return None
    op = _ops.get(target._schema.name)
    return op if op is not None and op.value is target else None


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Every op to plain ATen: ``exported_program.run_decompositions(opreg.decompositions())``."""
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    for op in registered():
        table[op.value] = op.write_reference if op.mutated else op.call_reference
    return table


sharding.watch(registered)
