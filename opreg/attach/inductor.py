"""Inductor: what stands in an op's place in compiled code.

An op that is declared inline is replaced by its reference, so that it fuses with its neighbours. The others are called
under their second name, ``torch.ops.lossreg_kernels.NAME``, to which no Python is attached: the gradient and autocast
are in the graph by then, the call is shorter, and a deployed package's thread never waits for the interpreter.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import _private
from .._imports import when_imported
from ..meta import register_fakes
from ..meta.schema import bind
from ..op import Op
from .autograd import reference_backward

_INDUCTOR_TABLE = "torch._inductor.decomposition"

# The ops in the order of their registration.
_attached: dict[str, Op] = {}
# The fakes of the kernels' own names live as long as these.
_libraries: dict[str, torch.library.Library] = {}


def attach(op: Op) -> None:
    """Tells Inductor, now or as soon as somebody imports it, what to compile in the op's place."""
    if op.inline or (not op.mutated and _private.has_op(op.kernels_name)):
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
    (_inline if op.inline else _call_kernels)(op)


def _decompose_all() -> None:
    for op in _attached.values():
        _decompose(op)


when_imported(_INDUCTOR_TABLE, _decompose_all)


def _call_kernels(op: Op) -> None:
    from torch._inductor.decomposition import decompositions

    namespace = f"{op.qualname.split('::')[0]}_kernels"
    _libraries[op.qualname] = torch.library.Library(namespace, "IMPL")
    register_fakes(op.kernels_name, op.rule, _libraries[op.qualname], state=op.state)
    for overload in op.overloads:
        decompositions[overload] = getattr(getattr(torch.ops, namespace), overload._schema.name.split("::")[1]).default


def _inline(op: Op) -> None:
    """Registers the reference and its gradient as Inductor's decompositions. For pointwise ops."""
    from torch._inductor.decomposition import decompositions

    def backward(*args: Any, **kwargs: Any) -> Any:
        bound = bind(op.backward, args, kwargs)
        tensors = {n: a for n, a in bound.items() if isinstance(a, Tensor)}
        options = tuple((n, tuple(a) if isinstance(a, list) else a) for n, a in bound.items() if n not in tensors)
        kinds = tuple((n, t.dtype, t.device) for n, t in tensors.items())
        return gradient_graph(op, kinds, options)(*tensors.values())

    decompositions[op.value] = op.call_reference
    decompositions[op.backward] = backward


# Bounded, because a schedule may give an option another value at each compilation.
@lru_cache(maxsize=128)
def gradient_graph(op: Op, kinds: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """The reference's gradient as a graph of ATen calls, which Inductor can trace through as it could not through
    autograd itself. Traced on two elements: a pointwise graph holds no shape.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    names = [n for n, _, _ in kinds]

    def gradient(*tensors: Tensor) -> Any:
        return reference_backward(op, (), {**dict(options), **dict(zip(names, tensors, strict=True))})

    def trace() -> Any:
        functional = torch.func.functionalize(gradient)  # some native gradients write in place
        return make_fx(functional)(*(torch.ones(2, dtype=dtype, device=device) for _, dtype, device in kinds))

    # In a thread of its own, because this one is inside Inductor's tracing: modes and excluded keys are a thread's.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(trace).result()
