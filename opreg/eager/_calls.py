"""A call of a function that ``opreg.use`` has exchanged: which way it goes. Every call comes by here."""

import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, NoneType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import _private
from .._autocast import KEYS as AUTOCAST_KEYS
from .._native_calls import THREAD
from ._exchange import Exchanged, InC
from ._plan import Plan, plan

# By the function and the kind of call: first with the sizes themselves, then with what is equal among them.
_plans: dict[Any, Plan] = {}
_plans_of_kinds: dict[Any, Plan] = {}
_MOST_PLANS = 4096

_CONSTANTS = frozenset({NoneType, bool, int, float, str})

# Why a call stays, where its arguments are not looked at.
_TRANSFORM = Plan("", "torch.func transforms it, or forward mode differentiates it")
_CHECKPOINT = Plan("", "torch.utils.checkpoint repeats it later, and opreg.use may be over by then")
_LAYOUT = Plan("", "one of its tensors is sparse or nested")
_ACTIVATION = Plan("", "opreg.use(activations=False)")


def called(
    exchanged: Exchanged | InC, note: Callable[[str, Plan, FrameType], None], activations: bool, args: Any, kwargs: Any
) -> Any:
    """The result of a call: of the op where that takes it, else of torch's own function.

    Args:
        exchanged: the function.
        note: gets the function's name, what became of the call, and the frame that made it.
        activations: False: those stay.
        args, kwargs: of the call.
    """
    original = exchanged.original
    if THREAD.depth or _private.tracing() or _private.function_mode_active():
        # a mode that is to see torch's functions sees this one, and calls it again
        return original(*args, **kwargs)
    found = of_call(exchanged, activations, args, kwargs)
    result: Any = None
    if found.call is not None:
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        if found.holds is None or found.holds(*tensors):
            THREAD.depth += 1
            try:
                result = found.call(*tensors)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # torch's own function has the last word, and its words for it
                found = Plan("", f"the op refused it: {error}".splitlines()[0])
            finally:
                THREAD.depth -= 1
        else:
            found = Plan("", found.why)
    note(exchanged.name, found, sys._getframe(3))
    return original(*args, **kwargs) if result is None else result


def of_call(exchanged: Exchanged | InC, activations: bool, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
    """The plan of a call, made where there is none yet."""
    if exchanged.activation and not activations:
        return _ACTIVATION
    if _private.transform_active():
        return _TRANSFORM
    if _private.checkpointing():
        return _CHECKPOINT
    grad = torch.is_grad_enabled()
    parts: list[Any] = [exchanged.name, grad, *kwargs]
    device = ""
    for a in (*args, *kwargs.values()):
        kind = type(a)
        if kind is Tensor or kind is Parameter:
            if a.layout is not torch.strided or a.is_nested:
                return _LAYOUT
            device = device or a.device.type
            parts.append((a.shape, a.dtype, a.device, grad and a.requires_grad))
        elif kind in _CONSTANTS:
            parts.append(a)
        elif kind in (list, tuple) and all(type(number) is int for number in a):
            parts.append(tuple(a))
        else:  # a subclass of Tensor, the proxy of a tracer
            return Plan("", f"one of its arguments is a {kind.__name__}")
    if device in AUTOCAST_KEYS and torch.is_autocast_enabled(device):
        parts.append(torch.get_autocast_dtype(device))
    key = tuple(parts)
    return _plans.get(key) or of_kind(exchanged, key, args, kwargs)


def of_kind(exchanged: Exchanged | InC, key: tuple[Any, ...], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plan:
    """The plan of calls of a kind: of other sizes, as long as the same ones are 0, 1 and equal."""
    numbers: dict[int, int] = {0: 0, 1: 1}
    kind = tuple(
        [
            (tuple([numbers.setdefault(d, len(numbers)) for d in part[0]]), *part[1:])
            if isinstance(part, tuple) and part and isinstance(part[0], torch.Size)
            else part
            for part in key
        ]
    )
    found = _plans_of_kinds.get(kind)
    if found is None:
        found = plan(exchanged.function, exchanged.original, args, kwargs)
    for plans, of in ((_plans_of_kinds, kind), (_plans, key)):
        if len(plans) >= _MOST_PLANS:
            plans.clear()
        if found.lasting:
            plans[of] = found
    return found
