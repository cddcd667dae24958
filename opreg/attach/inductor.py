"""Inductor: what stands in an op's place in compiled code.

An op that is inlined (inlining.py) is replaced by its reference. The others are called under their second name,
``torch.ops.lossreg_kernels.NAME``, to which no Python is attached: the gradient and autocast are in the graph by then,
the call is shorter, and a deployed package's thread never waits for the interpreter.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _private
from .._imports import when_imported
from ..meta import register_fakes
from ..meta.schema import bind
from ..op import Op
from .inlining import inlined

_INDUCTOR_TABLE = "torch._inductor.decomposition"

# The ops in the order of their registration.
_attached: dict[str, Op] = {}
# The fakes of the kernels' own names live as long as these.
_libraries: dict[str, torch.library.Library] = {}


def attach(op: Op) -> None:
    """Tells Inductor, now or as soon as somebody imports it, what to compile in the op's place."""
    if not op.mutated and (op.inline or _private.has_op(op.kernels_name)):
        _attached[op.qualname] = op
        if _INDUCTOR_TABLE in sys.modules:
            _decompose(op)


def withdraw(op: Op) -> None:
    """Undoes ``attach``, and throws away what was compiled with the op."""
    if _attached.pop(op.qualname, None) is not None and _INDUCTOR_TABLE in sys.modules:
        for overload in op.overloads:
            sys.modules[_INDUCTOR_TABLE].decompositions.pop(overload, None)
        if lib := _libraries.pop(op.qualname, None):
            _private.destroy_library(lib)
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _decompose(op: Op) -> None:
    from torch._inductor.decomposition import decompositions

    if _private.has_op(op.kernels_name):
        namespace = f"{op.qualname.split('::')[0]}_kernels"
        _libraries[op.qualname] = torch.library.Library(namespace, "IMPL")
        register_fakes(op.kernels_name, op.rule, _libraries[op.qualname], state=op.state)
        for overload in op.overloads:
            name = overload._schema.name.split("::")[1]
            decompositions[overload] = getattr(getattr(torch.ops, namespace), name).default
    # An op that somebody wrote in Python has no such name, and Inductor refuses one whose decomposition may leave it.
    if op.inline or (op.rule.pointwise and op.qualname in _libraries):
        decompositions[op.value] = _inlined_or(op, decompositions.get(op.value, op.value))


def _inlined_or(op: Op, kernels: Callable[..., Any]) -> Callable[..., Any]:
    """The reference where the op is inlined, else its kernels. An op without these is inlined everywhere.

    Of a graph that has no gradient. Where it has one, autograd.py has put the reference in the op's place before.
    """

    def value(*args: Any, **kwargs: Any) -> Any:
        bound = bind(op.value, args, kwargs)
        device = next(a.device for a in bound.values() if isinstance(a, Tensor))
        if op.inlined_on(device.type):
            return inlined(op, *args, **kwargs)
        return kernels(*args, **kwargs)

    return value


def _decompose_all() -> None:
    for op in _attached.values():
        _decompose(op)


when_imported(_INDUCTOR_TABLE, _decompose_all)
