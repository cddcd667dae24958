"""``use``: the switch, and what it reports."""

import functools
import inspect
import logging
import os
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, ParamSpec, TypeVar

import torch

from ..passes._report import NOT_THE_USERS, Left, Report, Swapped
from . import _exchange
from ._calls import called
from ._plan import Plan

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_lock = threading.RLock()
# a worker process that is forked in between must not find it taken
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


class use:
    """Sends calls of native losses and activations to the ops, in eager mode, whoever makes them.

    ``opreg.use()`` is the switch for the rest of the program; ``with opreg.use():`` and ``@opreg.use()`` are for a
    block and for a function. ``opreg.use(False)``, in the same three ways, is the opposite. The block that was entered
    last decides, without one the last switch.

    What is sent: every function that an op of the registry names as its native one (``F.cross_entropy``,
    ``F.silu``, …), the modules of torch.nn over these, and the losses of torchvision.ops. Of a function that torch
    has in C, ``F.gelu``, the module ``nn.GELU`` is reached, a call of the function itself is not. A call goes to
    the op where that gives the same: as far as dtype, device, shapes and options say so; elsewhere torch's own
    function runs, and the report says why. Under torch.compile, torch.export and other tracers the functions are
    torch's: there the backend ``"opreg"`` does it. So they are in torch.func's transforms, in a region of
    torch.utils.checkpoint, with ``inplace=True``, and for subclasses of Tensor.

    All threads see it, those of DataParallel and of autograd among them, and worker processes that are forked.

    Args:
        enabled: False sends nothing.
        activations: False leaves activations alone. Torch has each as one kernel already, and an op of few elements
            takes some microseconds longer.

    Attributes:
        report: what went to which op and what stayed while this was on, why, from which line of the program, and how
            often.

    Raises:
        TypeError: ``@opreg.use()`` on something that is no function.

    Example:
        >>> x, y = torch.randn(8, 5), torch.randint(0, 5, (8,))
        >>> with opreg.use() as used:
        ...     loss = torch.nn.functional.cross_entropy(x, y)
        >>> used.report.swapped[0].op
        'cross_entropy'
    """

    def __init__(self, enabled: bool = True, *, activations: bool = True) -> None:
        self.enabled, self.activations = enabled, activations
        self._calls: dict[_Key, _Place] = {}
        with _lock:
            _switches.append(self)
            del _switches[:-_MOST_SWITCHES]
            _update()

    def __enter__(self) -> "use":
        with _lock:
            self._no_switch()
            _blocks.append(self)
            _update()
        return self

    def __exit__(self, *_: Any) -> None:
        with _lock:
            last = max(i for i, block in enumerate(_blocks) if block is self)
            del _blocks[last]
            _update()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        with _lock:
            self._no_switch()
            _update()
        if not callable(function) or inspect.isclass(function):
            raise TypeError(f"use: expected a function to decorate, got {function!r}")

        @functools.wraps(function)
        def inside(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():  # nothing is sent there
                return function(*args, **kwargs)
            with self:
                return function(*args, **kwargs)

        return inside

    def _no_switch(self) -> None:
        """It is a block's or a function's, so what held before it was made holds again."""
        if self in _switches:
            _switches.remove(self)

    def _count(self, key: "_Key", frame: FrameType) -> None:
        with _lock:
            place = self._calls.get(key)
            if place is None:
                place = self._calls[key] = _Place(f"{frame.f_code.co_filename}:{frame.f_lineno}")
                _, _, name, op, why = key
                log.debug("%s at %s: %s", name, place.where, op or f"left, {why}")
            place.times += 1

    @property
    def report(self) -> Report:
        times: dict[tuple[str, str, str, str], int] = {}
        with _lock:
            for (_, _, name, op, why), place in self._calls.items():
                entry = (name, op, why, place.where)
                times[entry] = times.get(entry, 0) + place.times
        swapped = [Swapped(op, name, where, n) for (name, op, _, where), n in times.items() if op]
        return Report(swapped, [Left(name, why, where, n) for (name, op, why, where), n in times.items() if not op])


# A place in the program, the function that it calls, and what became of that: an op, or why there is none.
_Key = tuple[CodeType, int, str, str, str]


class _Place:
    """A line of the program, and how many calls came from there."""

    def __init__(self, where: str) -> None:
        self.where, self.times = where, 0


# The switches that no block and no decorator has taken, in the order of time, and the blocks that are entered. More
# switches than these are forgotten: a program that says opreg.use() in each step is no leak.
_switches: list[use] = []
_MOST_SWITCHES = 64
_blocks: list[use] = []
# What decides, and whoever reports.
_in_force: use | None = None
_on: tuple[use, ...] = ()
_installed = False


def _update() -> None:
    """Makes the functions what the switches and blocks say. With the lock."""
    global _in_force, _on, _installed
    held = (*_switches[-1:], *_blocks)
    _in_force = held[-1] if held else None
    _on = tuple({id(u): u for u in held if u.enabled}.values())
    wanted = bool(_on)
    if wanted and not _installed:
        _exchange.install()
    if _installed and not wanted:
        _exchange.remove()
    _installed = wanted


def call(name: str, args: Any, kwargs: Any) -> Any:
    """What an exchanged function does. Dynamo comes by here too, of libraries that it looks into."""
    exchanged = _exchange.functions[name]
    if torch.compiler.is_compiling():
        return exchanged.original(*args, **kwargs)
    used = _in_force
    if used is None or not used.enabled:
        return exchanged.original(*args, **kwargs)
    function, args, kwargs = exchanged.handed_on(args, kwargs)
    return called(function, _note, used.activations, args, kwargs)


def _note(name: str, plan: Plan, frame: FrameType) -> None:
    frame = _of_user(frame)
    # of a plan with an op, `why` is for calls that it does not hold for
    key = (frame.f_code, frame.f_lasti, name, plan.op, "" if plan.op else plan.why)
    for used in _on:
        used._count(key, frame)


# Is code torch's or opreg's?
_libraries: dict[CodeType, bool] = {}


def _of_user(frame: FrameType) -> FrameType:
    """The innermost frame that is neither torch's nor opreg's."""
    found: FrameType | None = frame
    while found is not None:
        code = found.f_code
        known = _libraries.get(code)
        if known is None:
            known = _libraries[code] = code.co_filename.startswith(NOT_THE_USERS)
        if not known:
            return found
        found = found.f_back
    return frame
