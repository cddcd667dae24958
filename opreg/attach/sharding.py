"""Sharded tensors: a call with a DTensor goes to ``opreg.distributed``, which splits it over the processes.

``torch.distributed`` is not imported for this. Who has a DTensor has imported ``torch.distributed.tensor``; from then
on calls are looked at.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from .. import _private
from .._imports import when_imported
from ..op import Op

# torch's class of sharded tensors, in a tuple: empty until somebody imports it.
_classes: tuple[type, ...] = ()


def attach(op: Op) -> None:
    """Without autograd, under ``torch.inference_mode``, a call comes to DTensor itself, which then asks us."""
    if _classes:
        _register(op)


def any_sharded(args: Iterable[Any]) -> bool:
    """Is there a DTensor among the arguments, or in a list that is one?"""
    if not _classes:
        return False
    for a in args:
        if isinstance(a, _classes) or (isinstance(a, (list, tuple)) and any(isinstance(t, _classes) for t in a)):
            return True
    return False


def call(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from ..distributed import _call

    return _call.value(op, args, kwargs)


def call_backward(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    from ..distributed import _call

    return _call.backward(op, args, kwargs)


def call_forward(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    raise RuntimeError(
        f"{op.short}_forward: expected plain tensors, got a DTensor, whose state would belong to one process alone; "
        f"call {op.short}"
    )


def _register(op: Op) -> None:
    ways = {op.value: call, op.backward: call_backward, op.forward: call_forward}
    for overload, way in ways.items():
        if overload is not None:
            _private.handle_sharded(overload, partial(_handle, way, op))


def _handle(way: Callable[..., Any], op: Op, overload: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return way(op, args, kwargs)


def watch(registered: Callable[[], list[Op]]) -> None:
    """Looks at calls as soon as there can be a DTensor; ``registered`` gives the ops that are there then."""

    def imported() -> None:
        global _classes
        _classes = (_private.sharded_tensor_class(),)
        for op in registered():
            _register(op)

    when_imported("torch.distributed.tensor", imported)
