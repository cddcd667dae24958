"""Drives every op's kernels, in one process: for compute-sanitizer, for CUDA graphs, bit by bit, against the clock.

    python tests/gpu/gpu_driver.py memory|graph|repeat|model|benchmark|"planted error" cpu|cuda RESULT.json

A part of tests/gpu/gpu_check.py, with a process of its own so that a sanitizer can watch it.
"""

import dataclasses
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROWS = (1, 51, 205, 2003)  # of five elements: they fill no pack, no block, no grid
RUNS = 10

Found = dict[str, Any]


def samples(op: Any, dtype: torch.dtype, device: str, seed: int = 0) -> list[Any]:
    """The op's samples, one of each name, reduction and rank: values and options alone choose no other kernel."""
    from opreg.testing import Maker

    chosen: dict[object, Any] = {}
    for s in op.samples(Maker(dtype, device, requires_grad=True, seed=seed)):
        x = s.args[0]
        chosen.setdefault((s.name, s.kwargs.get("reduction"), x.dim(), x.numel() > 0), s)
    return list(chosen.values())


def combined(parts: Sequence[Any], combine: Callable[..., Tensor]) -> Any:
    """A sample whose every tensor is made of that of the parts, and asks for a gradient where it did."""

    def value(*of: Any) -> Any:
        if not isinstance(of[0], Tensor):
            return of[0]
        return combine(*(t.detach() for t in of)).requires_grad_(of[0].requires_grad)

    args = tuple(map(value, *(p.args for p in parts)))
    kwargs = {name: value(*(p.kwargs[name] for p in parts)) for name in parts[0].kwargs}
    return dataclasses.replace(parts[0], args=args, kwargs=kwargs)


def growing_dim(op: Any, name: str, dims: int, columns: bool) -> int | None:
    """The dimension of an argument that holds its rows; or of its columns, the last one where that holds no rows."""
    rows = op.batch_dims.get(name, 0)
    if not columns:
        return rows if rows is not None and rows < dims else None
    return dims - 1 if dims and dims - 1 != rows else None


def rows_of(op: Any, sample: Any, columns: bool = False) -> int:
    x = sample.args[0]
    dim = growing_dim(op, op.arguments[0], x.dim(), columns)
    return 0 if dim is None else x.shape[dim]


def grown(op: Any, parts: Sequence[Any], rows: int, columns: bool = False) -> Any:
    """A sample of so many rows (columns), those of the parts in turn; what has none stays, and so does a whole sample
    whose call the op refuses at that size."""
    before = rows_of(op, parts[0], columns)

    def grow(name: str, of: Sequence[Any]) -> Any:
        first = of[0]
        dim = growing_dim(op, name, first.dim(), columns) if isinstance(first, Tensor) else None
        if dim is None or first.shape[dim] != before:
            return first
        all_rows = torch.cat([t.detach() for t in of], dim)
        index = torch.arange(rows, device=all_rows.device) % all_rows.shape[dim]
        return all_rows.index_select(dim, index).requires_grad_(first.requires_grad)

    args = tuple(grow(n, of) for n, of in zip(op.arguments, zip(*(p.args for p in parts), strict=True), strict=False))
    kwargs = {name: grow(name, [p.kwargs[name] for p in parts]) for name in parts[0].kwargs}
    sample = dataclasses.replace(parts[0], args=args, kwargs=kwargs)
    try:
        with torch.no_grad():
            op.value(*sample.args, **sample.kwargs)
    except RuntimeError as error:
        if not str(error).startswith(f"{op.short}: expected"):
            raise
        return parts[0]
    return sample


def misaligned(t: Tensor) -> Tensor:
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


def strided(t: Tensor) -> Tensor:
    return t.new_empty((*t.shape, 2))[..., 1].copy_(t)


def has_rows(sample: Any) -> bool:
    return bool(sample.args[0].dim() and sample.args[0].numel())


def run(op: Any, sample: Any) -> list[Tensor]:
    """The value without autograd and with it, and every gradient."""
    from opreg.testing import joined

    with torch.no_grad():
        value = joined(op.value(*sample.args, **sample.kwargs))
    result = joined(op.value(*sample.args, **sample.kwargs))
    tensors = [t for t in (*sample.args, *sample.kwargs.values()) if isinstance(t, Tensor)]
    weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device).reshape(result.shape)
    return [value, result.detach(), *torch.autograd.grad(result, [t for t in tensors if t.requires_grad], weights)]


def require_same_bits(what: str, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        # as bytes: NaN equals itself, and −0 is not 0
        if not torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)):
            raise AssertionError(
                f"{what}: expected the same bits in {('value', 'result')[k] if k < 2 else 'a gradient'}"
            )


def drive_memory(op: Any, device: str) -> Found:
    """Every kernel once, at sizes that divide nothing, with inputs that end where their memory ends."""
    calls = [s for dtype in (torch.float32, torch.bfloat16, torch.float64) for s in samples(op, dtype, device)]
    plain = [s for s in samples(op, torch.float32, device) if not s.name and has_rows(s)]
    for rows in ROWS:
        for layout in (torch.clone, misaligned, strided):
            calls.extend(combined([grown(op, [s], rows)], layout) for s in plain)
    for sample in calls:
        run(op, sample)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"calls": len(calls)}


def drive_graph(op: Any, device: str) -> Found:
    """Forward and backward captured whole; a replay on other values gives what eager gives for these."""
    pairs = zip(samples(op, torch.float32, device), samples(op, torch.float32, device, seed=1), strict=True)
    chosen = [(combined([s], torch.clone), fresh) for s, fresh in pairs if s.args[0].numel()]
    for static, fresh in chosen:
        graph = torch.cuda.CUDAGraph() if device == "cuda" else None
        if graph is not None:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # what runs for the first time may not be captured
                run(op, static)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                outputs = run(op, static)
        with torch.no_grad():
            combined([static, fresh], lambda old, new: old.copy_(new))
        if graph is None:
            outputs = run(op, static)
        else:
            graph.replay()
        require_same_bits(f"{op.short} {static.name}".rstrip(), outputs, run(op, fresh))
    return {"calls": len(chosen)}


def drive_repeat(op: Any, device: str) -> Found:
    """The same bits every time, at a size of many blocks and with values that do not repeat soon."""
    elements = 2**20 if device == "cuda" else 2**12
    seeds = [samples(op, torch.float32, device, seed) for seed in range(16)]
    chosen = [parts for parts in zip(*seeds, strict=True) if has_rows(parts[0])]
    for parts in chosen:
        x = parts[0].args[0]
        rows = elements * rows_of(op, parts[0]) // x.numel() + 1
        if op.family == "contrast":  # its work grows with the square
            rows = min(rows, 4099 if device == "cuda" else 131)
        large = grown(op, parts, rows)
        first = run(op, large)
        for _ in range(RUNS - 1):
            require_same_bits(f"{op.short} {large.name}".rstrip(), run(op, large), first)
    return {"calls": len(chosen)}


def drive_update(op: Any, device: str) -> Found:
    """What writes to its arguments, whatever is asked: every sample, in every dtype."""
    from opreg.testing import Maker

    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    calls = [s for dtype in dtypes for s in op.samples(Maker(dtype, device)) if s.args[0]]
    for s in calls:
        op.value(*s.args, **s.kwargs)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"calls": len(calls)}


def drive_benchmark(op: Any, device: str) -> Found:
    from opreg import bench

    choose, rounds = (max, 7) if device == "cuda" else (min, 1)
    size = choose(bench.ELEMENTS, key=lambda name: bench.ELEMENTS[name])
    providers = ("ours", "eager", "inductor", "floor")
    report = bench.run(
        [op.qualname], sizes=[size], dtypes=["float32"], rounds=rounds, device=device, providers=providers
    )
    if report["failed"]:
        raise AssertionError(*report["failed"].values())
    return {"calls": len(report["results"]), **report}


def peers(op: Any) -> dict[str, Callable[..., Tensor]]:
    """Functions of the same meaning in other libraries, where they are installed: of an op's first arguments."""
    found: dict[str, Callable[..., Tensor]] = {}
    try:
        from liger_kernel.transformers import functional as liger

        if op.short == "cross_entropy":
            found["liger"] = lambda x, t: liger.liger_cross_entropy(x, t)
        if op.short == "linear_cross_entropy":
            found["liger"] = lambda x, w, t: liger.liger_fused_linear_cross_entropy(x, w, t)
    except ImportError:
        pass
    try:
        from quack.cross_entropy import cross_entropy as quack

        if op.short == "cross_entropy":
            found["quack"] = lambda x, t: quack(x, t, reduction="mean")
    except ImportError:
        pass
    return found


def drive_model(op: Any, device: str) -> Found:
    """The calls that benchmarks/predict.py predicts: seconds of the kernels, of eager torch, Inductor, and peers."""
    import gpu_cases
    from opreg.meta.schema import bind, results_of
    from opreg.testing import tensors_with_grad

    large = device == "cuda"
    rows: list[Found] = []
    for dtype in gpu_cases.DTYPES:
        make = gpu_cases.OnDevice(gpu_cases.DTYPES[dtype], device)
        for case in gpu_cases.cases(op, dtype, make, "gpu" if large else "small"):
            args, kwargs = case.sample.args, case.sample.kwargs
            bound = bind(op.value, args, kwargs)
            kernels = torch.ops.lossreg_kernels
            row = {"op": op.short, "shape": case.shape, "dtype": dtype}
            if op.mutated:
                write = functools.partial(op.value, **bound)
                rows.append({**row, "pass": "forward", "seconds": timed({"ours": write}, device)})
                continue
            wanted = tensors_with_grad(op, case.sample)
            mask = {"needs_input_grad": [n in wanted for n in op.differentiable]}
            forward = getattr(kernels, op.short + ("" if op.forward is None else "_forward"))
            forward = functools.partial(forward, **bound, **(mask if op.forward_takes_mask else {}))
            passes: dict[str, dict[str, Callable[[], object]]] = {"forward": {"ours": forward}, "backward": {}}
            with torch.no_grad():
                made = results_of(forward())
                grads = [torch.ones_like(t) for t in made[: len(op.results)]]
                state = made[len(op.results) :]
                without = {n: a for n, a in bound.items() if n != "dtype"}
                backward = getattr(kernels, op.short + "_backward")
                passes["backward"]["ours"] = functools.partial(backward, *grads, *state, **without, **mask)
            others: dict[str, Callable[..., Tensor]] = {"eager": lambda *a, o=op, **k: (o.native or o.reference)(**k)}
            if large:
                others["inductor"] = torch.compile(others["eager"])
                others |= {n: (lambda *a, p=p, **k: p(*a)) for n, p in peers(op).items()}
            for name, call in others.items():
                try:
                    value = results_of(call(*args, **without))
                    tensors = list(wanted.values())
                    passes["forward"][name] = functools.partial(call, *args, **without)
                    passes["backward"][name] = functools.partial(
                        torch.autograd.grad, value, tensors, [torch.ones_like(t) for t in value], retain_graph=True
                    )
                except (RuntimeError, NotImplementedError) as e:
                    row[f"without {name}"] = f"{type(e).__name__}: {e}".splitlines()[0]
            for which, calls in passes.items():
                rows.append({**row, "pass": which, "seconds": timed(calls, device)})
    return {"calls": len(rows), "rows": rows}


def timed(calls: Mapping[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Seconds: medians on a GPU; elsewhere one call each, which shows that it works."""
    from opreg.bench import time_calls

    if device == "cuda":
        return {name: statistics.median(of) for name, of in time_calls(calls, 7, device).items()}
    found = {}
    for name, call in calls.items():
        start = time.perf_counter()
        call()
        found[name] = time.perf_counter() - start
    return found


def copy_bandwidth(device: str) -> float:
    """Bytes a second of a copy within the device's memory, what is read and what is written both counted."""
    source = torch.ones(2**29 if device == "cuda" else 2**20, device=device)
    out = torch.ones_like(source)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(10):
            out.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / 10)
    return 2 * source.nbytes / statistics.median(times[1:])


def planted_error() -> None:
    """Tells an op that its input is a thousand times as long as it is."""
    import opreg

    short = torch.ones(1024, device="cuda")
    interface = {"shape": (2**20,), "typestr": "<f4", "data": (short.data_ptr(), False), "version": 3}
    opreg.get("swish").value(
        torch.as_tensor(type("Long", (), {"__cuda_array_interface__": interface})(), device="cuda")
    )
    torch.cuda.synchronize()


def drive(what: str, device: str, file: Path) -> None:
    """Drives every op, and notes after each how far it came."""
    from opreg.registry import of_namespace

    if what == "planted error":
        return planted_error()
    ops = of_namespace()
    if what == "benchmark" and device == "cpu":
        ops = ops[:1]  # two compilations show that it works
    if what == "model":
        sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    found: Found = {"ops": {op.short: {"why": "not reached"} for op in ops}}
    if what == "benchmark":
        found["copy bytes a second"] = copy_bandwidth(device)
    for op in ops:
        try:
            found["ops"][op.short] = globals()[f"drive_{'update' if op.mutated and what != 'model' else what}"](
                op, device
            )
        except Exception as e:
            found["ops"][op.short] = {"why": f"{type(e).__name__}: {e}".splitlines()[0]}
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    drive(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
