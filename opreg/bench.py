"""The benchmark: ``python -m opreg bench [OP…]``.

Every case is timed in one process, in rounds, in each of which every provider has its turn (the first one changes from
round to round), so that what disturbs the machine disturbs all alike:

- ``ours``: ``torch.ops.lossreg.NAME``.
- ``eager``: torch's own function, or the reference where there is none, called as a user would.
- ``inductor``: ``torch.compile(eager, fullgraph=True)``; of the reference where torch's function can't be captured whole.
- ``floor``: the time to move the bytes that must move, by memory copies between tensors allocated beforehand.

Two passes: ``forward``, without a gradient, and ``forward+backward``, with the gradient in the first argument, as in
training. Losses are reduced to their mean. Every call allocates its results anew and drops them, whoever provides it.

The floor counts, for the forward pass, every input read once and the result written; for the backward pass, every input
and the result's gradient read once and the gradient of the first argument written. A mean and the state of a row count
nothing. ``out.copy_(x)`` moves twice the bytes of ``x``, so n bytes are a copy of n / 2 bytes; forward+backward is two
such copies, one after the other. It is a yardstick, no lower bound: a copy writes half of its bytes and a forward pass
hardly any, and tensors that fit into the cache are read faster the second time.

Inputs are drawn from the op's own samples (their values, mixed and repeated), so a new op needs nothing here.
"""

import gc
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from . import __version__
from ._schema import bind
from .registry import Op, get, registered
from .testing import Maker

ELEMENTS = {"small": 2**12, "usual": 2**18, "large": 2**22}
ROWS = {
    "small": ((64, 100), (1, 19, 32, 32)),
    "usual": ((256, 4000), (2, 19, 128, 128)),
    "large": ((1024, 32000), (8, 19, 512, 512)),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Relative to the largest entry; eager rounds after every step, so half precision is coarse.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROVIDERS = ("ours", "eager", "inductor", "floor")
PASSES = ("forward", "forward+backward")
RATIOS = ("eager/ours", "inductor/ours", "ours/floor")
SEEDS = 64  # of small samples, whose values the large inputs are drawn from
SHORTEST = 2e-3  # seconds that one measurement lasts at least

Call = Callable[[], object]


class Bar(Protocol):
    """What of tqdm's progress bar is used."""

    total: Any

    def update(self) -> object: ...
    def set_description(self, text: str) -> object: ...


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


def cases(op: Op, size: str, dtype: torch.dtype, device: str = "cpu") -> list[Case]:
    """The calls of an op to time: one for a pointwise op, one a shape of ``ROWS`` for an op over rows.

    Options keep their defaults, optional tensors are left out.

    Raises:
        ValueError: the shape of a tensor follows neither from the input's nor from the rows'.
    """
    calls = []
    for seed in range(SEEDS):
        sample = next(op.samples(Maker(torch.float64, seed=seed)))
        calls.append(bind(op.value, sample.args, sample.kwargs))
    first = calls[0]
    lead = first[op.tensor_arguments[0]]
    small = tuple(op.shape(op.short, first))
    pointwise = small == tuple(lead.shape)
    kind = "row losses" if not pointwise else "pointwise losses" if op.is_loss else "activations"
    generator = torch.Generator().manual_seed(0)
    found = []
    for shape in ((ELEMENTS[size],),) if pointwise else ROWS[size]:
        shapes = {n: grown(op, n, first[n], lead, small, shape) for n in required_tensors(op)}
        if not accepts(op, first, shapes):
            continue  # an op may take rows of (N, C) only
        args: dict[str, Any] = {}
        for a in op.value._schema.arguments:
            if a.name in shapes:
                values = torch.cat([call[a.name].flatten() for call in calls])
                if not pointwise and not values.is_floating_point():
                    values = torch.arange(shape[1], dtype=values.dtype)  # class indices
                t = values[torch.randint(len(values), shapes[a.name], generator=generator)]
                args[a.name] = t.to(device, dtype if t.is_floating_point() else t.dtype)
            elif a.name != "dtype":
                args[a.name] = a.default_value if a.has_default_value() else first[a.name]
        found.append(Case(op, kind, args))
    if not found:
        raise ValueError(f"{op.name}: expected an op that takes one of the shapes {ROWS[size]}, got one that takes none")
    return found


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
            raise Disagreement(f"{title}: expected eager's {what} within {allowed:.1e}, got a difference of {error:.1e}")


def value_and_gradient(case: Case, function: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    args, x = case.with_gradient()
    y = function(**args)
    return y.detach(), torch.autograd.grad(y, x, torch.ones_like(y))[0]


def eager_of(op: Op) -> Callable[..., Tensor]:
    return op.native or op.reference


def compiled(case: Case, args: Mapping[str, Any]) -> tuple[str, Callable[..., Tensor]]:
    """Inductor's compilation of the eager function, else of the reference; and which of them it was."""
    texts = {"native": case.op.native, "reference": case.op.reference}
    error: Exception | None = None
    for name, text in texts.items():
        if text is not None:
            torch.compiler.reset()

            def eager(text: Callable[..., Tensor] = text, **args: Any) -> Tensor:
                return text(**args)

            function: Callable[..., Tensor] = torch.compile(eager, fullgraph=True)
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

    inputs = sum(t.nbytes for t in case.tensors)
    written = 0 if result.dim() == 0 else result.nbytes
    moved = [inputs + written] + ([inputs + written + x.nbytes] if gradient else [])
    calls: dict[str, Call] = {name: call(f) for name, f in functions.items()}
    calls["floor"] = copies(moved, case.tensors[0].device)
    return calls, {"bytes": sum(moved), "inductor_of": inductor_of}


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


def time_calls(calls: Mapping[str, Call], rounds: int, device: str, tick: Call) -> dict[str, list[float]]:
    """Seconds of every provider in every round, interleaved."""
    repeats = {}
    for name, call in calls.items():
        measure(call, 2, device)
        repeats[name] = max(1, math.ceil(SHORTEST / min(measure(call, 1, device) for _ in range(3))))
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in names[i % len(names) :] + names[: i % len(names)]:
                times[name].append(measure(calls[name], repeats[name], device))
            tick()
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


def machine(device: str) -> dict[str, Any]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "opreg": __version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def run(
    names: Sequence[str] = (),
    *,
    size: str = "large",
    dtype: str = "float32",
    rounds: int = 15,
    threads: int | None = None,
    device: str = "cpu",
    bar: Bar | None = None,
) -> dict[str, Any]:
    """Times the ops of these names, by default all, and returns the report (see ``text``, ``save``).

    Raises:
        KeyError: a name is not that of a registered op.
        Disagreement: an op gives other numbers than eager.
    """
    chosen = [get(name) for name in names] or registered()
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    results: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    try:
        with progress_bar(len(chosen) * len(PASSES) * rounds) as bar:
            for op in chosen:
                try:
                    op_cases = cases(op, size, DTYPES[dtype], device)
                except ValueError as e:
                    left_out[op.name] = str(e)
                    continue
                bar.total += (len(op_cases) - 1) * len(PASSES) * rounds
                for case in op_cases:
                    bar.set_description(case.title)
                    results.extend(run_case(case, DTYPES[dtype], rounds, device, bar.update))
        settings = {"size": size, "dtype": dtype, "rounds": rounds, "device": device}
        return {
            "machine": machine(device),
            "settings": settings,
            "results": results,
            "geometric_means": geometric_means(results),
            "left_out": left_out,
        }
    finally:
        torch.set_num_threads(before)


def run_case(case: Case, dtype: torch.dtype, rounds: int, device: str, tick: Call) -> Iterator[dict[str, Any]]:
    ours = value_and_gradient(case, case.op.value)
    check_agreement(case.title, ours, value_and_gradient(case, eager_of(case.op)), dtype)
    for which in PASSES:
        calls, notes = calls_of(case, which)
        times = time_calls(calls, rounds, device, tick)
        median = {name: statistics.median(t) for name, t in times.items()}
        head = {"op": case.op.name, "kind": case.kind, "shape": case.shape, "pass": which, **notes}
        yield {**head, "seconds": median, "ratios": ratios(median), "rounds": times}
