"""What ``make gpu-check`` runs: builds for the GPU at hand and proves the kernels there, offline, in ten minutes.

    python tests/gpu_check.py --output benchmarks/results                                on a machine with a GPU
    python tests/gpu_check.py --output DIR --dry-run [--architecture 90-real]    anywhere: all but what needs the GPU

It needs a torch with CUDA, pytest, cmake, nvcc and compute-sanitizer, and installs nothing: the package is staged in
the build folder. Each step is recorded in one JSON and one Markdown file, named for the date and the device; a step
that fails does not stop the next. Exit status: 0 all passed, 1 a step failed, 2 there is no GPU.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
# The test files that conftest.DEVICE moves to the GPU; those of them that exist.
SUITE = ["test_values.py", "test_categorical.py", "test_autograd.py", "test_compile.py"]
WORKERS = 8  # tests at a time: more processes would wait for their slices of the GPU
BUDGET = 590  # seconds in all; each step has at most these, and what is left
SECONDS = {
    "build": 240, "stage": 60, "suite": 240, "planted error": 60, "memcheck": 100, "racecheck": 100, "graph": 60,
    "repeat": 60, "benchmark": 300,
}  # fmt: skip
DRIVEN = ("memcheck", "racecheck", "graph", "repeat")  # these answer for every op
ROWS = (1, 51, 205, 2003)  # of five elements: they fill no pack, no block, no grid
RUNS = 10

# Where the package was found, and which ops have a CUDA kernel.
IMPORT = """
import json, opreg, opreg.report
has = {op.short: opreg.report.coverage(op)["CUDA"] for op in opreg.registered()}
print(json.dumps([opreg.__file__, str(opreg.library_path()), has]))
"""

Found = dict[str, Any]


# The driver: runs inside one process with the staged package, under the sanitizer too.


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


def grown(parts: Sequence[Any], rows: int) -> Any:
    """A sample of so many rows, those of the parts in turn; what has no dimension of rows stays."""
    before = parts[0].args[0].shape[0]

    def grow(*of: Tensor) -> Tensor:
        if of[0].shape[:1] != (before,):
            return of[0]
        all_rows = torch.cat(of)
        return all_rows[torch.arange(rows, device=all_rows.device) % len(all_rows)]

    return combined(parts, grow)


def misaligned(t: Tensor) -> Tensor:
    return t.new_empty(t.numel() + 1)[1:].view(t.shape).copy_(t)


def strided(t: Tensor) -> Tensor:
    return t.new_empty((*t.shape, 2))[..., 1].copy_(t)


def has_rows(sample: Any) -> bool:
    return bool(sample.args[0].dim() and sample.args[0].numel())


def run(op: Any, sample: Any) -> list[Tensor]:
    """The value without autograd and with it, and every gradient."""
    with torch.no_grad():
        value = op.value(*sample.args, **sample.kwargs)
    result = op.value(*sample.args, **sample.kwargs)
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
            calls.extend(combined([grown([s], rows)], layout) for s in plain)
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
        large = grown(parts, elements * x.shape[0] // x.numel() + 1)
        first = run(op, large)
        for _ in range(RUNS - 1):
            require_same_bits(f"{op.short} {large.name}".rstrip(), run(op, large), first)
    return {"calls": len(chosen)}


def drive_benchmark(op: Any, device: str) -> Found:
    from opreg import bench

    choose, rounds = (max, 7) if device == "cuda" else (min, 1)
    size = choose(bench.ELEMENTS, key=lambda name: bench.ELEMENTS[name])
    report = bench.run([op.qualname], size=size, rounds=rounds, device=device)
    return {"calls": len(report["results"]), **report}


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
    import opreg

    if what == "planted error":
        return planted_error()
    ops = opreg.registered()
    if what == "benchmark" and device == "cpu":
        ops = ops[:1]  # two compilations show that it works
    found: Found = {"ops": {op.short: {"why": "not reached"} for op in ops}}
    if what == "benchmark":
        found["copy bytes a second"] = copy_bandwidth(device)
    for op in ops:
        try:
            found["ops"][op.short] = globals()[f"drive_{what}"](op, device)
        except Exception as e:
            found["ops"][op.short] = {"why": f"{type(e).__name__}: {e}".splitlines()[0]}
        file.write_text(json.dumps(found))
    return None


# The steps.


class Failed(Exception):
    """Why a step failed, and what it found all the same."""

    def __init__(self, why: str, output: str = "", found: Mapping[str, Any] | None = None) -> None:
        super().__init__(why)
        self.found = {**(found or {}), "output": "\n".join(output.splitlines()[-40:])}


def tool(name: str) -> str:
    """The program beside this Python, on PATH, or beside nvcc."""
    nvcc = shutil.which("nvcc") or ""
    places = [Path(sys.executable).parent, os.environ.get("PATH", ""), Path(nvcc).resolve().parent]
    found = shutil.which(name, path=os.pathsep.join(map(str, places)))
    if found is None:
        raise Failed(f"expected {name} on PATH, found none")
    return found


@dataclasses.dataclass
class Check:
    """One run: ``dry`` drives the CPU and leaves out what needs a GPU."""

    build: Path
    architecture: str | None
    dry: bool

    @property
    def site(self) -> Path:
        return self.build / "site"

    def execute(self, command: Sequence[object], limit: float, **env: str) -> tuple[str, str]:
        """Why the command failed, empty where it did not, and what it printed."""
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        # the library by its name: no other installation of opreg may be tested in its place
        staged = {"PYTHONPATH": path, "OPREG_LIBRARY": str(self.site / "opreg/liblossreg.so")}
        process = subprocess.Popen(
            [str(c) for c in command], cwd=self.build, env={**os.environ, **staged, **env}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            output = process.communicate(timeout=limit)[0]
            return f"exit status {process.returncode}" if process.returncode else "", output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGINT)  # pytest then still writes what it has
            try:
                output = process.communicate(timeout=10)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                output = process.communicate()[0]
            return f"stopped after {limit:.0f} s", output
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def must(self, what: str, command: Sequence[object], limit: float, **env: str) -> str:
        why, output = self.execute(command, limit, **env)
        if why:
            raise Failed(f"{what}: {why}", output)
        return output

    def make(self, limit: float) -> Found:
        """The library for this GPU alone; where ptxas ran out of registers."""
        if self.architecture is None:
            return {"result": "skipped", "found": "no --architecture"}
        cmake, start = tool("cmake"), time.monotonic()
        configure = [
            cmake, "-S", ROOT / "csrc", "-B", self.build, "-DLOSSREG_CUDA=ON", "-DCMAKE_CUDA_FLAGS=-Xptxas=-v",
            f"-DLOSSREG_CUDA_ARCHITECTURES={self.architecture}", f"-DPython_EXECUTABLE={sys.executable}",
            *(["-G", "Ninja"] if shutil.which("ninja") else []),  # it keeps the lines of one compiler together
        ]  # fmt: skip
        self.must("cmake", configure, limit)
        if self.dry:
            return {"found": f"configured for {self.architecture}, not built"}
        compile_all = [cmake, "--build", self.build, "--parallel", os.cpu_count()]
        functions = spills(self.must("compilers", compile_all, limit - (time.monotonic() - start)))
        spilling = {name: count for name, count in functions.items() if count}
        mib = (self.build / "liblossreg.so").stat().st_size / 2**20
        # none compiled: the build folder was up to date
        found = f"{mib:.1f} MiB for {self.architecture}; {len(functions)} functions compiled, {len(spilling)} spill"
        return {"found": found, "library_mib": mib, "functions": len(functions), "spilled_bytes": spilling}

    def stage(self, limit: float) -> Found:
        """The package as a wheel would install it; it imports from there, and every op has its kernel."""
        library, here = self.build / "liblossreg.so", {"PYTHONPATH": "", "OPREG_LIBRARY": ""}
        if self.dry:
            command = [sys.executable, "-c", "import opreg; print(opreg.library_path())"]
            library = Path(self.must("an installed opreg", command, limit, **here).split()[-1])
        shutil.rmtree(self.site, ignore_errors=True)
        for source, target in (("opreg", "opreg"), ("meta", "opreg/meta")):
            shutil.copytree(ROOT / source, self.site / target, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copy2(library, self.site / "opreg" / "liblossreg.so")
        # -S, without .pth files: no editable installation may answer in its place
        here["PYTHONPATH"] = os.pathsep.join([str(self.site), *filter(None, sys.path[1:])])
        answer = self.must("import", [sys.executable, "-S", "-c", IMPORT], limit, **here)
        *places, has = json.loads(answer.splitlines()[-1])
        without = [name for name, kernel in has.items() if not kernel]
        if not all(Path(p).is_relative_to(self.site) for p in places):
            raise Failed(f"expected the staged package, got {places}")
        if without and not self.dry:
            raise Failed(f"expected a CUDA kernel for every op, found none for {', '.join(without)}")
        return {"found": f"{len(has)} ops, {len(has) - len(without)} with CUDA kernels", "ops": list(has)}

    def suite(self, limit: float) -> Found:
        files = [ROOT / "tests" / name for name in SUITE if (ROOT / "tests" / name).exists()]
        if self.dry:
            return {"result": "skipped", "found": ", ".join(f.name for f in files)}
        xml = self.build / "suite.xml"
        xml.unlink(missing_ok=True)
        plain, _ = self.execute([sys.executable, "-c", "import xdist"], limit)
        parallel = [] if plain else ["-n", min(WORKERS, os.cpu_count() or 1), "--dist", "worksteal"]
        options = [*parallel, "--continue-on-collection-errors", f"--junitxml={xml}"]
        command = [sys.executable, "-m", "pytest", "-q", *options, *files]
        why, output = self.execute(command, limit - 25, OPREG_TEST_DEVICE="cuda", OMP_NUM_THREADS="1")
        found = {"files": [f.name for f in files], **(junit(xml) if xml.exists() else {"found": "no results"})}
        if why:
            raise Failed(f"{why}: {found['found']}", output, found)
        return found

    def drive(self, what: str, limit: float, prefix: Sequence[str] = (), **env: str) -> tuple[Found, str]:
        file = self.build / f"{what}.json"
        file.unlink(missing_ok=True)
        arguments = ["--drive", what, "cpu" if self.dry else "cuda", file]
        why, output = self.execute([*prefix, sys.executable, __file__, *arguments], limit - 10, **env)
        found = json.loads(file.read_text()) if file.exists() else {"ops": {}}
        calls = sum(op.get("calls", 0) for op in found["ops"].values())
        found = {"found": f"{calls} calls of {len(found['ops'])} ops", **found}
        found["failed"] = [f"{name}: {op['why']}" for name, op in found["ops"].items() if "why" in op]
        if why or found["failed"] or not calls:
            raise Failed(why or f"{len(found['failed'])} ops, {found['found']}", output, found)
        return found, output

    def sanitizer(self, name: str) -> tuple[list[str], dict[str, str]]:
        program = tool("compute-sanitizer")
        # The filter was renamed from one release to the next. torch's own kernels are not at issue, and cost minutes.
        named = "--kernel-name" in self.execute([program, "--help"], 20)[1]
        kernels = ["--kernel-name" if named else "--kernel-regex", "kernel_substring=lossreg"]
        prefix = [program, "--tool", name, *kernels, "--report-api-errors", "no", "--error-exitcode", "86"]
        # a cached allocation is larger than its tensor: nobody would see the step over the edge
        return prefix, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if name == "memcheck" else {}

    def sanitized(self, name: str, limit: float) -> Found:
        if self.dry:
            return self.drive("memory", limit)[0] | {"found": "on the CPU, without compute-sanitizer"}
        prefix, env = self.sanitizer(name)
        found, output = self.drive("memory", limit, prefix, **env)
        summary = re.search(r"SUMMARY: (\d+) .*", output)
        if summary is None or summary[1] != "0":
            raise Failed(summary[0] if summary else "no summary", output, found)
        return found | {"found": f"{found['found']}; {summary[0].removeprefix('SUMMARY: ')}"}

    def planted(self, limit: float) -> Found:
        """memcheck must see this one, or its silence about the others means nothing."""
        if self.dry:
            return {"result": "skipped", "found": "needs a GPU"}
        prefix, env = self.sanitizer("memcheck")
        command = [*prefix, sys.executable, __file__, "--drive", "planted error", "cuda", os.devnull]
        why, output = self.execute(command, limit, **env)
        if "Invalid __global__ read" not in output:
            raise Failed(f"memcheck missed a read past the end ({why or 'exit status 0'})", output)
        return {"found": "memcheck sees a read past the end of an input"}

    def steps(self) -> Iterator[tuple[str, Callable[[float], Found]]]:
        yield "build", self.make
        yield "stage", self.stage
        yield "suite", self.suite
        yield "planted error", self.planted
        yield "memcheck", lambda limit: self.sanitized("memcheck", limit)
        yield "racecheck", lambda limit: self.sanitized("racecheck", limit)
        yield "graph", lambda limit: self.drive("graph", limit)[0]
        yield "repeat", lambda limit: self.drive("repeat", limit)[0]
        # the compilations of an earlier run in this folder serve again
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.build / "inductor")}
        yield "benchmark", lambda limit: self.drive("benchmark", limit, **cache)[0]


def spills(output: str) -> dict[str, int]:
    """Bytes that each compiled function spills, from ptxas -v."""
    line = r"Function properties for (\S+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads"
    return {name: int(stores) + int(loads) for name, stores, loads in re.findall(line, output)}


def junit(file: Path) -> Found:
    cases = {
        f"{c.get('classname')}::{c.get('name')}": {part.tag for part in c}
        for c in ElementTree.parse(file).iter("testcase")
    }
    failed = [name for name, parts in cases.items() if parts & {"failure", "error"}]
    skipped = sum("skipped" in parts for parts in cases.values())
    found = f"{len(cases)} tests, {len(failed)} failed, {skipped} skipped"
    return {"found": found, "tests": len(cases), "skipped": skipped, "failed": failed}


def perform(check: Check) -> dict[str, Found]:
    """Every step within its time: what it found, its seconds, and whether it passed, failed or was skipped."""
    start, done = time.monotonic(), {}
    print("plan: " + ", ".join(f"{name} ({SECONDS[name]} s at most)" for name, _ in check.steps()), flush=True)
    for name, work in check.steps():
        begin = time.monotonic()
        limit = min(SECONDS[name], BUDGET - (begin - start))
        try:
            if limit < 30:
                raise Failed("no time was left")
            found = {"result": "passed", **work(limit)}
        except Failed as e:
            found = {"result": "FAILED", **e.found, "why": str(e)}
            print(found["output"])
        done[name] = {**found, "seconds": round(time.monotonic() - begin, 1)}
        print(f"{name}: {found['result']}, {done[name]['seconds']} s: {found.get('why') or found['found']}", flush=True)
        if name in ("build", "stage") and found["result"] == "FAILED":
            break  # there is nothing to run
    return done


# The report.


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells] + [""]


def benchmark_rows(found: Mapping[str, Any]) -> list[list[object]]:
    rows = []
    for r in (r for op in found["ops"].values() for r in op.get("results", [])):
        rate = r["bytes"] / r["seconds"]["ours"]
        share = f"{rate / 1e9:.0f}", f"{100 * rate / found['copy bytes a second']:.0f} %"
        times = f"{1e3 * r['seconds']['ours']:.4f}", *(f"{ratio:.2f}" for ratio in r["ratios"].values())
        rows.append([r["op"], "×".join(map(str, r["shape"])), r["pass"], *times, *share])
    return rows


def markdown(report: Mapping[str, Any]) -> str:
    steps, device = report["steps"], report["device"]
    facts = ", ".join(f"{name} {value}" for name, value in {**device, **report["machine"]}.items() if name != "name")
    lines = [f"# gpu-check: {device['name']}, {report['date']}", "", f"{facts}.", ""]
    rows = [[name, s["result"], s["seconds"], s.get("why") or s["found"]] for name, s in steps.items()]
    lines += table(["step", "result", "seconds", "found"], rows)
    driven = [name for name in DRIVEN if name in steps]

    def cell(op: str, step: str) -> str:
        found = steps[step].get("ops", {}).get(op, {})
        return f"{found['calls']} calls" if "calls" in found else "FAILED"

    ops = [[op, *(cell(op, step) for step in driven)] for op in steps.get("stage", {}).get("ops", [])]
    if driven:
        lines += table(["op", *driven], ops)
    for name in (n for n, s in steps.items() if s["result"] == "FAILED"):
        failed = [f"- {test}" for test in steps[name].get("failed", [])]
        lines += [f"## {name}: {steps[name]['why']}", "", *failed, "", "```", steps[name]["output"], "```", ""]
    if rows := benchmark_rows(steps.get("benchmark", {"ops": {}})):
        bandwidth = steps["benchmark"]["copy bytes a second"] / 1e9
        lines += ["## benchmark", "", f"A copy moves {bandwidth:.0f} GB/s, read and written both counted.", ""]
        header = ["op", "shape", "pass", "ours ms", "eager/ours", "inductor/ours", "ours/floor", "GB/s", "of a copy"]
        lines += table(header, rows)
    return "\n".join(lines)


def gpu() -> Found:
    major, minor = torch.cuda.get_device_capability()
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(ask, capture_output=True, text=True).stdout.strip() if shutil.which(ask[0]) else "unknown"
    return {"name": torch.cuda.get_device_name(), "capability": f"{major}.{minor}", "driver": driver}


def main() -> int:
    top = argparse.ArgumentParser("gpu_check.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    top.add_argument("--output", type=Path, metavar="DIR", default=ROOT / "benchmarks" / "results")
    top.add_argument("--build", type=Path, metavar="DIR", default=ROOT / "build" / "gpu")
    top.add_argument("--architecture", help="as CMAKE_CUDA_ARCHITECTURES; default: that of the GPU")
    top.add_argument("--dry-run", action="store_true")
    top.add_argument("--drive", nargs=3, help=argparse.SUPPRESS)
    args = top.parse_args()
    if args.drive:
        what, device, file = args.drive
        drive(what, device, Path(file))
        return 0
    if not args.dry_run and not torch.cuda.is_available():
        print(f"gpu-check: expected a GPU, torch {torch.__version__} finds none; try --dry-run", file=sys.stderr)
        return 2
    device = {"name": "dry-run"} if args.dry_run else gpu()
    architecture = args.architecture or (f"{device['capability'].replace('.', '')}-real" if not args.dry_run else None)
    args.build.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    steps = perform(Check(args.build.resolve(), architecture, args.dry_run))
    failed = [name for name, s in steps.items() if s["result"] == "FAILED"]
    machine = {
        "torch": torch.__version__, "CUDA": torch.version.cuda, "Python": platform.python_version(),
        "cores": os.cpu_count(), "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    report = {"date": date.today().isoformat(), "device": device, "machine": machine, "failed": failed, "steps": steps}
    stem = args.output / f"{report['date']}_{re.sub('[^a-z0-9]+', '-', device['name'].lower())}"
    args.output.mkdir(parents=True, exist_ok=True)
    for path, text in ((f"{stem}.json", json.dumps(report, indent=1) + "\n"), (f"{stem}.md", markdown(report))):
        Path(path).write_text(text)
        print(f"wrote {path}")
    print(f"failed: {', '.join(failed)}" if failed else "passed", f"in {machine['seconds']} s")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
