"""How it is timed: in rounds, in each of which every provider has its turn."""

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

Call = Callable[[], object]

SHORTEST = 2e-3  # seconds that one measurement lasts at least
# Calls that take longer than so many seconds together have fewer rounds, but no fewer than these.
LONGEST = {"small": 0.5, "usual": 0.5, "large": 1.0, "huge": 30.0}
FEWEST_ROUNDS = 5
FEWEST_TURNS = 3  # of a provider whose one call takes half of that time
# A turn of a call that takes less begins with one that does not count: what the caches then hold is its own doing, and
# not that of whoever had the turn before.
WARMED = 0.1


def keep_freed_memory() -> None:
    """mallopt: no trimming of the heap, no mmap for large blocks. Where there is no glibc, nothing."""
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def return_freed_memory() -> None:
    """Between ops, the pages of what was freed go back to the system: those in holes of the heap would add up to more
    than a machine has."""
    torch.compiler.reset()
    gc.collect()
    gc.freeze()  # a fifth of a run went into looking at what compilations leave
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


def measure(call: Call, repeats: int, device: str) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def time_calls(
    calls: Mapping[str, Call], rounds: int, device: str = "cpu", longest: float = 30.0
) -> dict[str, list[float]]:
    """Seconds of every provider in every round, interleaved; a slow provider sits the last rounds out."""
    repeats, once = {}, {}
    for name, call in calls.items():
        once[name] = measure(call, 1, device)  # compiles, allocates
        tries = 4 if once[name] < longest / 20 else 1
        once[name] = min(measure(call, 1, device) for _ in range(tries))
        repeats[name] = max(1, math.ceil(SHORTEST / once[name]))
    seconds = sum(once[name] * repeats[name] for name in calls)
    rounds = min(rounds, max(FEWEST_ROUNDS, int(longest / seconds)))
    turns = {name: FEWEST_TURNS if once[name] > longest / 2 else rounds for name in calls}
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                if i < turns[name]:
                    if once[name] < WARMED:
                        calls[name]()
                    times[name].append(measure(calls[name], repeats[name], device))
    finally:
        gc.enable()
    return times


def spread(times: Sequence[float]) -> float:
    """The distance of the quartiles over the median."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / middle


def noise(spreads: Sequence[float], rounds: int) -> float:
    """How far off the ratio of two medians may be, relative to it: two standard errors, and never less than 2 %.

    A normal distribution's quartiles are 1.35 standard deviations apart, and the median of n values has a standard
    error of 1.25 standard deviations over the root of n.
    """
    errors = [1.25 / 1.35 * s / math.sqrt(rounds) for s in spreads]
    return max(0.02, 2 * math.hypot(*errors))
