"""The run: which calls are timed by whom, and the report of it, a dictionary that is written as JSON."""

import gc
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..meta.schema import results_of
from ..op import Op
from ..registry import get, registered
from .cases import DTYPES, Case, cases, in_dtype, sweep
from .floors import bytes_moved, copies, empty_call
from .machine import machine
from .memory import peak_memory
from .progress import progress_bar
from .providers import (
    Disagreement,
    Peers,
    as_a_user,
    as_called,
    can_be_compiled,
    check_agreement,
    check_values,
    compiled,
    is_native,
    load_peers,
    value_and_gradient,
)  # fmt: skip
from .timing import LONGEST, Call, keep_freed_memory, return_freed_memory, spread, time_calls
from .training import run_step, steps

PROVIDERS = ("ours", "eager", "inductor", "peer", "floor", "call", "float32")
PASSES = ("forward", "forward+backward")
RATIOS = ("eager/ours", "inductor/ours", "peer/ours", "ours/floor", "ours/call", "float32/ours")
NO_PEERS = Peers()
REMEMBERED = ("ours", "eager", "inductor")  # those whose peak memory is measured
# Where Inductor is timed when nobody says: where a target asks, and at the usual size; its compilations take the time.
INDUCTOR = {
    ("large", "float32", "forward"),
    ("large", "float32", "forward+backward"),
    ("usual", "float32", "forward+backward"),
    ("large", "bfloat16", "forward+backward"),
}
TOO_LONG = 5.0  # seconds of a peer's one call
HALVES = ("bfloat16", "float16")
# One of each kind, for time against size.
SWEEP = ("mish", "smooth_l1_loss", "focal_loss", "cross_entropy", "giou_loss", "triplet_margin_loss")
SWEEP_PROVIDERS = ("ours", "eager", "floor", "call")


@dataclass(frozen=True)
class Settings:
    """What a run measures; ``providers`` None: each where it tells something, Inductor where ``INDUCTOR`` has it."""

    sizes: Sequence[str] = ("small", "usual", "large")
    dtypes: Sequence[str] = ("float32", "bfloat16")
    threads: Sequence[int] = ()
    rounds: int = 15
    device: str = "cpu"
    providers: Sequence[str] | None = None
    sweep: bool = False
    steps: bool = False
    peers: Path | None = None

    def wanted(self, size: str, dtype: str, which: str) -> list[str]:
        if self.providers is not None:
            return [p for p in PROVIDERS if p in self.providers]
        left_out = {"inductor"} if (size, dtype, which) not in INDUCTOR else set()
        if size in ("large", "huge"):
            left_out.add("call")  # a thousandth of the time
        if size != "large" or dtype not in HALVES or which != PASSES[1]:
            left_out.add("float32")
        return [p for p in PROVIDERS if p not in left_out]

    def text(self) -> dict[str, Any]:
        own = {"sizes": list(self.sizes), "dtypes": list(self.dtypes), "rounds": self.rounds, "device": self.device}
        return {**own, "providers": self.providers and list(self.providers)}


def calls_of(case: Case, which: str, wanted: Sequence[str], peers: Peers) -> tuple[dict[str, Call], dict[str, Any]]:
    """One call without arguments a provider, in the order of ``PROVIDERS``; and what to note with the times."""
    gradient = which == "forward+backward"
    args, x = case.with_gradient() if gradient else (dict(case.args), case.tensors[0])
    device = case.tensors[0].device
    function = case.op.value.overloadpacket
    places, options = as_called(case, args)
    result = function(*places, **options)
    grad_outputs = [torch.ones_like(t) for t in results_of(result)]
    notes: dict[str, Any] = {"eager": "native" if is_native(case) else "composition"}

    def call(function: Any, places: Sequence[Any], options: Mapping[str, Any]) -> Call:
        if gradient:
            return lambda: torch.autograd.grad(function(*places, **options), x, grad_outputs)
        return lambda: function(*places, **options)

    moved = bytes_moved(case, result, backward=gradient)
    peer = peers.get(case.op)
    calls: dict[str, Call] = {}
    for name in wanted:
        if name == "ours":
            calls[name] = call(function, places, options)
        elif name == "eager":
            calls[name] = call(*as_a_user(case, args))
        elif name == "inductor" and can_be_compiled(case.op):
            notes["inductor_of"], inductor = compiled(case, args)
            calls[name] = call(inductor, (), args)
        elif name == "peer" and peer is not None:
            notes["peer"] = peer.library
            calls[name] = call(peer.function, (), args)
        elif name == "floor":
            calls[name] = copies(moved, device)
        elif name == "call":
            calls[name] = empty_call(device, backward=gradient)
        elif name == "float32":
            calls[name] = calls_of(in_dtype(case, torch.float32), which, ("ours",), NO_PEERS)[0]["ours"]
    return calls, {"bytes": sum(moved), **notes}


def ratios(median: Mapping[str, float]) -> dict[str, float]:
    """Those of ``RATIOS`` whose two providers were timed."""
    pairs = {r: r.split("/") for r in RATIOS}
    return {r: median[a] / median[b] for r, (a, b) in pairs.items() if a in median and b in median}


def time_case(
    case: Case,
    which: str,
    wanted: Sequence[str],
    settings: Settings,
    size: str,
    peers: Peers = NO_PEERS,
    *,
    memory: bool = True,
) -> dict[str, Any]:
    """One row of the report: medians, their spread, ratios, peak memory."""
    calls, notes = calls_of(case, which, wanted, peers)
    times = time_calls(calls, settings.rounds, settings.device, LONGEST[size])
    median = {name: statistics.median(t) for name, t in times.items()}
    row = {"op": case.op.name, "kind": case.kind, "shape": case.shape, "pass": which, **notes}
    row |= {"seconds": median, "spread": {name: spread(t) for name, t in times.items()}, "ratios": ratios(median)}
    row["rounds"] = len(times["ours"]) if "ours" in times else min(map(len, times.values()))
    if which == "forward+backward" and memory:
        row["memory"] = {name: peak_memory(calls[name], settings.device) for name in REMEMBERED if name in calls}
    return row


@contextmanager
def threads_set_to(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Run:
    """A run in progress: what it found, and why it has no more."""

    def __init__(self, settings: Settings, most: int) -> None:
        self.settings, self.threads = settings, most
        self.peers = load_peers(settings.peers) if settings.peers else NO_PEERS
        self.results: list[dict[str, Any]] = []
        self.sweep: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self.left_out: dict[str, str] = {}
        # the ops and dtypes whose peer took too long
        self.too_slow: set[tuple[str, torch.dtype]] = set()
        self.failed: dict[str, str] = {}

    def agreeing_peers(self, case: Case, dtype: torch.dtype) -> Peers:
        """Without the peer whose numbers differ, or that takes too long here or took too long at a smaller size, when
        it may need more memory than there is at a larger one; the reason is noted."""
        peer = self.peers.get(case.op)
        if peer is None or (case.op.name, dtype) in self.too_slow:
            return NO_PEERS
        try:
            started = time.perf_counter()
            values = value_and_gradient(case, peer.function)
            seconds = time.perf_counter() - started
            if seconds > TOO_LONG:
                self.too_slow.add((case.op.name, dtype))
                raise TimeoutError(f"{seconds:.0f} s a call")
            check_agreement(case.title, value_and_gradient(case, case.op.value), values, dtype, peer.library)
        except Exception as e:
            text = str(e).splitlines()[0] if str(e) else type(e).__name__
            self.left_out[f"{case.title}, {dtype}".replace("torch.", "") + f", {peer.library}"] = text
            return NO_PEERS
        return self.peers

    def op(self, op: Op, size: str, dtype: str, show: Any) -> None:
        """Every call of an op at a size in a dtype; an error is noted, and ends nothing."""
        settings = self.settings
        name = {"size": size, "dtype": dtype}
        try:
            for case in cases(op, size, DTYPES[dtype], settings.device):
                show(f"{case.title} {size} {dtype}")
                check_values(case, DTYPES[dtype])
                peers = self.agreeing_peers(case, DTYPES[dtype])
                for which in PASSES:
                    wanted = settings.wanted(size, dtype, which)
                    row = time_case(case, which, wanted, settings, size, peers)
                    self.results.append({**row, **name, "threads": self.threads})
                self.fewer_threads(case, size, dtype)
        except ValueError as e:
            self.left_out[op.name] = str(e)
        except Exception as e:
            # the other ops are worth the time that they took
            why = str(e) if isinstance(e, Disagreement) else f"{op.name}: {type(e).__name__}: {e}".splitlines()[0]
            self.failed[f"{op.name} {size} {dtype}"] = why
        return_freed_memory()

    def fewer_threads(self, case: Case, size: str, dtype: str) -> None:
        """The last of the sizes in the first of the dtypes with the other numbers of threads: ours and eager alone."""
        settings = self.settings
        if (size, dtype) != (settings.sizes[-1], settings.dtypes[0]):
            return
        for count in settings.threads:
            if count != self.threads:
                with threads_set_to(count):
                    row = time_case(case, PASSES[1], ("ours", "eager", "floor"), settings, size, memory=False)
                self.results.append({**row, "size": size, "dtype": dtype, "threads": count})

    def sizes(self, op: Op, show: Any) -> None:
        """Time against size: the first large call of the op, cut down."""
        case = next(cases(op, self.settings.sizes[-1], torch.float32, self.settings.device))
        few = replace(self.settings, rounds=min(self.settings.rounds, 9))
        for part in sweep(case):
            show(f"{part.title} of the sweep")
            row = time_case(part, PASSES[1], SWEEP_PROVIDERS, few, "usual", memory=False)
            kept = {name: row[name] for name in ("op", "kind", "shape", "pass", "bytes", "seconds", "spread")}
            elements = part.tensors[0].numel()
            self.sweep.append({**kept, "elements": elements, "threads": self.threads})
            return_freed_memory()

    def training(self, show: Any) -> None:
        for step in steps():
            show(f"compiled step: {step.name}")
            try:
                self.steps.append(run_step(step, self.settings.rounds))
            except Exception as e:
                self.failed[f"compiled step: {step.name}"] = f"{type(e).__name__}: {e}".splitlines()[0]


def geometric_means(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every ratio, for each kind of op and all of them, at each size, dtype, number of threads and pass."""
    same = ("size", "dtype", "threads", "pass")
    means = []
    for where in dict.fromkeys(tuple(r[name] for name in same) for r in results):
        here = [r for r in results if tuple(r[name] for name in same) == where]
        for kind in [*dict.fromkeys(r["kind"] for r in here), "all"]:
            chosen = [r["ratios"] for r in here if kind in (r["kind"], "all")]
            of = {name: [c[name] for c in chosen if name in c] for name in RATIOS}
            mean = {name: statistics.geometric_mean(values) for name, values in of.items() if values}
            means.append({"kind": kind, **dict(zip(same, where, strict=True)), "cases": len(chosen), "ratios": mean})
    return means


def run(names: Sequence[str] = (), settings: Settings | None = None, **options: Any) -> dict[str, Any]:
    """Times the ops of these names, by default all, and returns the report that is printed, drawn and written.

    An op whose inputs can't be drawn is left out, one that gives other numbers than eager or raises an error has
    failed: the report has the reasons, and the results of the others. So it is with a run that Ctrl+C ends.

    Args:
        names: of ops.
        settings: what to measure.
        options: fields of ``Settings``, in place of ``settings``.

    Raises:
        KeyError: a name is not that of a registered op.
    """
    settings = settings or Settings(**options)
    keep_freed_memory()
    chosen = [get(name) for name in names] or registered()
    most = max(settings.threads, default=torch.get_num_threads())
    current = Run(settings, most)
    parts = [(op, size, dtype) for op in chosen for size in settings.sizes for dtype in settings.dtypes]
    swept = [op for op in chosen if op.name in SWEEP] if settings.sweep else []
    gc.collect()
    gc.freeze()  # or every collection between measurements looks at all of torch's modules
    with threads_set_to(most):
        where = machine(settings.device)
        bar = progress_bar(len(parts) + len(swept) + settings.steps)
        try:
            for op, size, dtype in parts:
                current.op(op, size, dtype, bar.set_description)
                bar.update()
            for op in swept:
                current.sizes(op, bar.set_description)
                bar.update()
            if settings.steps:
                current.training(bar.set_description)
                bar.update()
        except KeyboardInterrupt:
            current.failed["the run"] = "interrupted; the report has what was measured until then"
        finally:
            bar.close()
            gc.unfreeze()
    return {
        "machine": {**where, "peers": dict(current.peers.versions)},
        "settings": settings.text(),
        "results": current.results,
        "geometric_means": geometric_means(current.results),
        "sweep": current.sweep,
        "steps": current.steps,
        "left_out": current.left_out,
        "failed": current.failed,
    }
