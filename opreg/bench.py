"""The benchmark: ``python -m opreg bench [OP…]``.

Every case is timed in one process, in rounds, in each of which every provider has its turn (the first one changes from
round to round), so that what disturbs the machine disturbs all alike:

- ``ours``: ``torch.ops.lossreg.NAME``.
- ``eager``: torch's own function, or the reference where there is none, called as a user would.
- ``inductor``: ``torch.compile(eager, fullgraph=True)``; of the reference where torch's own can't be captured whole;
  with graph breaks where the reference is a loop over a size (``Op.unrolled``).
- ``floor``: the time to move the bytes that must move, by memory copies between tensors allocated beforehand.

Two passes: ``forward``, without a gradient, and ``forward+backward``, with the gradient in the first argument, as in
training. Losses are reduced to their mean. Every call allocates its results anew and drops them, whoever provides it;
glibc is told to keep freed memory: whether it gives a result's pages back, so that every call faults them in again (at
2^17 elements 210 µs in place of 25), depends on the heap's layout alone, and falls on one provider by chance.

The floor counts, for the forward pass, every input read once and the result written; for the backward pass, every input
and the result's gradient read once and the gradient of the first argument written. A mean and the state of a row count
nothing. ``out.copy_(x)`` moves twice the bytes of ``x``, so n bytes are a copy of n / 2 bytes; forward+backward is two
such copies, one after the other. It is a yardstick, no lower bound: a copy writes half of its bytes and a forward pass
hardly any, and tensors that fit into the cache are read faster the second time.

The table says so when rounds differ too much to be trusted: other work on the same cores.

Inputs are drawn from the op's own samples (their values, mixed and repeated), so a new op needs nothing here; where
they can't be, the op declares them (``Op.workload``).
"""

import ctypes
import gc
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .meta.schema import bind
from .registry import Op, get, registered
from .report import machine
from .testing import Maker

# huge: for a GPU, whose L2 holds what is large for a CPU
ELEMENTS = {"small": 2**12, "usual": 2**18, "large": 2**22, "huge": 2**28}
ROWS = {
    "small": ((64, 100), (1, 19, 32, 32)),
    "usual": ((256, 4000), (2, 19, 128, 128)),
    "large": ((1024, 32000), (8, 19, 512, 512)),
    "huge": ((8192, 128256), (16, 19, 1024, 1024)),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative to the largest entry; eager rounds after every step, so half precision is coarse.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROVIDERS = ("ours", "eager", "inductor", "floor")
# A case that takes longer than so many seconds has fewer rounds, but no fewer than these.
LONGEST, FEWEST_ROUNDS = 30.0, 5
PASSES = ("forward", "forward+backward")
RATIOS = ("eager/ours", "inductor/ours", "ours/floor")
SEEDS = 64  # of small samples, whose values the large inputs are drawn from
SHORTEST = 2e-3  # seconds that one measurement lasts at least

Call = Callable[[], object]


class Disagreement(RuntimeError):
    """Ours and eager compute different things: nothing is timed."""


@dataclass(frozen=True)
class Case:
    """A call to time: every argument by name, without ``dtype``."""

    op: Op
    kind: str
    args: Mapping[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return [a for a in self.args.values() if isinstance(a, Tensor)]

    @property
    def shape(self) -> list[int]:
        return list(self.tensors[0].shape)

    @property
    def title(self) -> str:
        return f"{self.op.name} {'×'.join(map(str, self.shape))}"

    def with_gradient(self) -> tuple[dict[str, Any], Tensor]:
        """The arguments, the first of them requiring a gradient; and that one."""
        name = self.op.differentiable[0]
        x = self.args[name].detach().requires_grad_()
        return {**self.args, name: x}, x


def small_calls(op: Op) -> list[dict[str, Any]]:
    """The op's first sample, with ``SEEDS`` different values: every argument by name."""
    samples = [next(op.samples(Maker(torch.float64, seed=seed))) for seed in range(SEEDS)]
    return [bind(op.value, s.args, s.kwargs) for s in samples]


def shapes_of(op: Op, size: str) -> list[dict[str, tuple[int, ...]]]:
    """The shapes to time of every required tensor: one call of a pointwise op, the calls of ``ROWS`` of a row op.

    Raises:
        ValueError: a tensor's shape follows neither from the input's nor from its rows' or classes'.
    """
    first = small_calls(op)[0]
    lead = first[op.tensor_arguments[0]]
    small = tuple(op.shape(op.short, first))
    leads = ((ELEMENTS[size],),) if small == lead.shape else ROWS[size]
    found = [{n: grown(op, n, first[n], lead, small, shape) for n in required_tensors(op)} for shape in leads]
    # an op may take rows of (N, C) only
    taken = [shapes for shapes in found if accepts(op, first, shapes)]
    if not taken:
        raise ValueError(f"{op.name}: expected an op that takes one of the shapes {leads}, got one that takes none")
    return taken


def draw(op: Op, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: str = "cpu") -> Case:
    """A call of these shapes with the values of the op's first sample, class indices of any class.

    Options keep their defaults, optional tensors are left out.
    """
    calls = small_calls(op)
    first = calls[0]
    lead = first[op.tensor_arguments[0]]
    rows = tuple(op.shape(op.short, first)) != lead.shape
    generator = torch.Generator().manual_seed(0)
    args: dict[str, Any] = {}
    for a in op.value._schema.arguments:
        if a.name in shapes:
            values = torch.cat([call[a.name].flatten() for call in calls])
            if rows and not values.is_floating_point():
                values = torch.arange(shapes[op.tensor_arguments[0]][1], dtype=values.dtype)
            t = values[torch.randint(len(values), shapes[a.name], generator=generator)]
            args[a.name] = t.to(device, dtype if t.is_floating_point() else t.dtype)
        elif a.name != "dtype":
            args[a.name] = a.default_value if a.has_default_value() else first[a.name]
    kind = "row losses" if rows else "pointwise losses" if op.is_loss else "activations"
    return Case(op, kind, args)


def cases(op: Op, size: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[Case]:
    """The calls to time at a size: the op's own workload, else what its samples grow to."""
    if op.mutated:
        raise ValueError(f"{op.name}: expected an op with a gradient, got one that writes to {', '.join(op.mutated)}")
    if op.workload is None:
        for shapes in shapes_of(op, size):
            yield draw(op, shapes, dtype, device)
        return
    for sample in op.workload(Maker(dtype, device), size):
        args = bind(op.value, sample.args, sample.kwargs)
        args.pop("dtype", None)
        yield Case(op, f"{op.family} losses" if op.is_loss else op.family, args)


def required_tensors(op: Op) -> list[str]:
    return [a.name for a in op.value._schema.arguments if str(a.type) == "Tensor"]


def grown(
    op: Op, name: str, sample: Tensor, lead: Tensor, small: Sequence[int], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The large shape of an argument whose small one is that of the input, of its rows or of its classes."""
    if sample.shape == lead.shape:
        return shape
    if sample.shape == small:
        return (shape[0], *shape[2:])
    if lead.dim() > 1 and sample.shape == lead.shape[1:2]:
        return (shape[1],)
    raise ValueError(
        f"{op.name}: expected {name} of the shape of {op.tensor_arguments[0]}, of its rows or of its classes in the "
        f"first sample, got {list(lead.shape)} and {list(sample.shape)}"
    )


def accepts(op: Op, first: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    meta = {n: torch.empty(s, dtype=first[n].dtype, device="meta") for n, s in shapes.items()}
    optional = {n: None for n in op.tensor_arguments if n not in meta}
    try:
        op.shape(op.short, {**first, **optional, **meta})
    except RuntimeError:
        return False
    return True


def check_agreement(title: str, ours: Sequence[Tensor], eager: Sequence[Tensor], dtype: torch.dtype) -> None:
    """Value and gradient of ours are those of eager.

    Raises:
        Disagreement: they differ by more than ``TOLERANCE`` times eager's largest entry, or are not finite.
    """
    for what, a, b in zip(("value", "gradient"), ours, eager, strict=True):
        finfo = torch.finfo(dtype)
        # a mean's gradient may be subnormal in half precision: one step there is no disagreement
        allowed = TOLERANCE[dtype] * b.abs().max().item() + 2 * finfo.smallest_normal * finfo.eps
        error = (a.double() - b.double()).abs().max().item() if a.shape == b.shape else math.inf
        if not error <= allowed:
            raise Disagreement(
                f"{title}: expected eager's {what} within {allowed:.1e}, got a difference of {error:.1e}"
            )


def value_and_gradient(case: Case, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    args, x = case.with_gradient()
    y = function(**args)
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


def eager_of(op: Op) -> Callable[..., Tensor]:
    return op.native or op.reference


def compiled(case: Case, args: Mapping[str, Any]) -> tuple[str, Callable[..., Tensor]]:
    """Inductor's compilation of the eager function, else of the reference; and which of them it was.

    An unrolled reference would take minutes to compile: then the eager function with graph breaks.
    """
    second = ("native, graph breaks", case.op.native) if case.op.unrolled else ("reference", case.op.reference)
    error: Exception | None = None
    for name, text in (("native", case.op.native), second):
        if text is not None:
            torch.compiler.reset()

            def eager(text: Callable[..., Tensor] = text, **args: Any) -> Tensor:
                return text(**args)

            function: Callable[..., Tensor] = torch.compile(eager, fullgraph="breaks" not in name)
            try:
                function(**args)
            except RuntimeError as e:  # Dynamo's errors: it can't capture the function whole
                error = e
                continue
            return name, function
    raise RuntimeError(f"{case.title}: expected a function that torch.compile can capture whole") from error


def calls_of(case: Case, which: str) -> tuple[dict[str, Call], dict[str, Any]]:
    """One call without arguments a provider, in the order of ``PROVIDERS``; and what to note with the times."""
    gradient = which == "forward+backward"
    args, x = case.with_gradient() if gradient else (dict(case.args), case.tensors[0])
    ours = case.op.value.overloadpacket
    inductor_of, inductor = compiled(case, args)
    functions = dict(zip(PROVIDERS, (ours, eager_of(case.op), inductor), strict=False))
    result = ours(**args).detach()
    grad_output = torch.ones_like(result)

    def call(function: Callable[..., Tensor]) -> Call:
        if gradient:
            return lambda: torch.autograd.grad(function(**args), x, grad_output)
        return lambda: function(**args)

    moved = bytes_moved(case, result, backward=gradient)
    calls: dict[str, Call] = {name: call(f) for name, f in functions.items()}
    calls["floor"] = copies(moved, case.tensors[0].device)
    return calls, {"bytes": sum(moved), "inductor_of": inductor_of}


def bytes_moved(case: Case, result: Tensor, *, backward: bool) -> list[int]:
    """What the floor counts: for the forward pass, and for the backward pass where it is wanted."""
    inputs = sum(t.nbytes for t in case.tensors)
    written = 0 if case.op.reduces else result.nbytes
    gradient = case.args[case.op.differentiable[0]].nbytes
    return [inputs + written, *([inputs + written + gradient] if backward else [])]


def copies(moved: Sequence[int], device: torch.device) -> Call:
    """Memory copies that move so many bytes, one after the other."""
    # written once, for untouched pages are all one page of zeros; a copy of n bytes moves 2 n, a float32 has 4
    source = torch.ones(max(moved) // 8, device=device)
    out = torch.ones_like(source)
    parts = [(out[: n // 8], source[: n // 8]) for n in moved]
    return lambda: [o.copy_(s) for o, s in parts]


def measure(call: Call, repeats: int, device: str) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def time_calls(calls: Mapping[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every provider in every round, interleaved."""
    repeats, seconds = {}, 0.0
    for name, call in calls.items():
        measure(call, 2, device)
        shortest = min(measure(call, 1, device) for _ in range(3))
        repeats[name] = max(1, math.ceil(SHORTEST / shortest))
        seconds += shortest * repeats[name]
    rounds = min(rounds, max(FEWEST_ROUNDS, int(LONGEST / seconds)))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                times[name].append(measure(calls[name], repeats[name], device))
    finally:
        gc.enable()
    return times


def ratios(median: Mapping[str, float]) -> dict[str, float]:
    return {r: median[r.split("/")[0]] / median[r.split("/")[1]] for r in RATIOS}


def geometric_means(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of every ratio, for each kind of op and pass."""
    means = []
    for kind, which in dict.fromkeys((r["kind"], r["pass"]) for r in results):
        chosen = [r["ratios"] for r in results if (r["kind"], r["pass"]) == (kind, which)]
        mean = {name: statistics.geometric_mean(c[name] for c in chosen) for name in RATIOS}
        means.append({"kind": kind, "pass": which, "cases": len(chosen), "ratios": mean})
    return means


class Plain:
    """The progress without tqdm: one line a case."""

    def __init__(self) -> None:
        print("tqdm is not installed (pip install 'opreg[bench]'): no progress bar", file=sys.stderr)

    def update(self) -> None:
        pass

    def set_description(self, text: str) -> None:
        print(text, file=sys.stderr)

    def close(self) -> None:
        pass


def progress_bar(total: int) -> Any:
    """tqdm's, or the plain one."""
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        return Plain()
    return tqdm(total=total, unit="op")


def keep_freed_memory() -> None:
    """mallopt: no trimming of the heap, no mmap for large blocks. Where there is no glibc, nothing."""
    trim_threshold, mmap_max = -1, -4
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_max, 0)


def run(
    names: Sequence[str] = (),
    *,
    size: str = "large",
    dtype: str = "float32",
    rounds: int = 15,
    threads: int | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Times the ops of these names, by default all, and returns the report that ``opreg.report`` prints and draws.

    An op whose inputs can't be drawn is left out; the report has the reason.

    Raises:
        KeyError: a name is not that of a registered op.
        Disagreement: an op gives other numbers than eager.
    """
    keep_freed_memory()
    chosen = [get(name) for name in names] or registered()
    left_out: dict[str, str] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    where = machine(device)
    bar = progress_bar(len(chosen))
    results: list[dict[str, Any]] = []
    try:
        for op in chosen:
            try:
                for case in cases(op, size, DTYPES[dtype], device):
                    bar.set_description(case.title)
                    results.extend(run_case(case, DTYPES[dtype], rounds, device))
            except ValueError as e:
                left_out[op.name] = str(e)
            bar.update()
        settings = {"size": size, "dtype": dtype, "rounds": rounds, "device": device}
        return {
            "machine": where,
            "settings": settings,
            "results": results,
            "geometric_means": geometric_means(results),
            "left_out": left_out,
        }
    finally:
        bar.close()
        torch.set_num_threads(before)


def in_float64(case: Case) -> Case:
    args = {n: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in case.args.items()}
    return replace(case, args=args)


def check_values(case: Case, dtype: torch.dtype) -> None:
    """Ours against eager, and where they differ, against eager in float64: it may be eager that loses the digits."""
    ours = value_and_gradient(case, case.op.value)
    try:
        check_agreement(case.title, ours, value_and_gradient(case, eager_of(case.op)), dtype)
    except Disagreement:
        check_agreement(case.title, ours, value_and_gradient(in_float64(case), eager_of(case.op)), dtype)


def run_case(case: Case, dtype: torch.dtype, rounds: int, device: str) -> Iterator[dict[str, Any]]:
    check_values(case, dtype)
    for which in PASSES:
        calls, notes = calls_of(case, which)
        times = time_calls(calls, rounds, device)
        median = {name: statistics.median(t) for name, t in times.items()}
        head = {"op": case.op.name, "kind": case.kind, "shape": case.shape, "pass": which, **notes}
        yield {**head, "seconds": median, "ratios": ratios(median), "rounds": times}
