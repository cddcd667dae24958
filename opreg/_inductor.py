"""Inductor: an op that is declared inline is replaced by its reference when Inductor compiles."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registry import Op


def inline(op: "Op") -> None:
    from torch._inductor.decomposition import register_decomposition

    from ._autograd import reference_backward

    def value(*args: Any, **kwargs: Any) -> Any:
        return op.call_reference(*args, **kwargs)

    def backward(*args: Any, **kwargs: Any) -> Any:
        return reference_backward(op, args, kwargs)

    register_decomposition([op.value])(value)
    register_decomposition([op.backward])(backward)
