"""Inductor: an op that is declared inline is replaced by its reference when Inductor compiles."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _private
from ._autograd import reference_backward
from ._library import library_path
from .meta.schema import bind

if TYPE_CHECKING:
    from .registry import Op


def tell_caches() -> None:
    """Makes this text of opreg part of the key of whatever torch.compile keeps on disk.

    A cached graph holds what opreg put into it: inlined formulas, autograd, rewrites.
    """
    digest = hashlib.sha256(str(library_path().stat().st_size).encode())
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    _private.add_to_cache_keys(f"opreg {digest.hexdigest()[:16]}")


def inline(op: "Op") -> None:
    """Registers the reference and its gradient as Inductor's decompositions. For pointwise ops."""
    from torch._inductor.decomposition import register_decomposition

    def value(*args: Any, **kwargs: Any) -> Any:
        return op.call_reference(*args, **kwargs)

    def backward(*args: Any, **kwargs: Any) -> Any:
        bound = bind(op.backward, args, kwargs)
        tensors = {n: a for n, a in bound.items() if isinstance(a, Tensor)}
        options = tuple((n, tuple(a) if isinstance(a, list) else a) for n, a in bound.items() if n not in tensors)
        kinds = tuple((n, t.dtype, t.device) for n, t in tensors.items())
        return gradient_graph(op, kinds, options)(*tensors.values())

    register_decomposition([op.value])(value)
    register_decomposition([op.backward])(backward)


@cache
def gradient_graph(op: "Op", kinds: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """The reference's gradient as a graph of ATen calls, which Inductor can trace through as it could not through
    autograd itself. Traced on two elements: a pointwise graph holds no shape.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    names = [n for n, _, _ in kinds]

    def gradient(*tensors: Tensor) -> list[Tensor]:
        return reference_backward(op, (), {**dict(options), **dict(zip(names, tensors, strict=True))})

    def trace() -> Any:
        functional = torch.func.functionalize(gradient)  # some native gradients write in place
        return make_fx(functional)(*(torch.ones(2, dtype=dtype, device=device) for _, dtype, device in kinds))

    # In a thread of its own, because this one is inside Inductor's tracing: modes and excluded keys are a thread's.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(trace).result()
