"""What ``make gpu-check`` runs: builds for the GPU at hand and proves the kernels there, offline, in ten minutes.

    python tests/gpu/gpu_check.py --output benchmarks/results          on a machine with a GPU
    python tests/gpu/gpu_check.py --output DIR --dry-run [--architecture 90-real]    anywhere, without its launches

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
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).resolve().parents[2]
# The test files that conftest.DEVICE moves to the GPU.
SUITE = ["every_op/test_values.py", "ops/test_categorical.py", "every_op/test_autograd.py", "every_op/test_compile.py"]
WORKERS = 8  # tests at a time: more processes would wait for their slices of the GPU
BUDGET = 590  # seconds in all; each step has at most these, and what is left
SECONDS = {
    "build": 240, "stage": 60, "suite": 240, "planted error": 60, "memcheck": 100, "racecheck": 100, "graph": 60,
    "repeat": 60, "constants": 60, "model": 240, "benchmark": 300,
}  # fmt: skip
DRIVEN = ("memcheck", "racecheck", "graph", "repeat", "model")  # these answer for every op
PREDICTED = ROOT / "benchmarks" / "results" / "predicted-sm90.json"
KEY = ("op", "shape", "dtype", "pass")  # what a prediction is of
DRIVER = Path(__file__).with_name("gpu_driver.py")

# Where the package was found, and which ops have a CUDA kernel.
IMPORT = """
import json, opreg, opreg.catalogue, opreg.registry
has = {op.short: opreg.catalogue.coverage(op)["CUDA"] for op in opreg.registry.of_namespace()}
print(json.dumps([opreg.__file__, str(opreg.library_path()), has]))
"""

Found = dict[str, Any]


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
        """The library for this GPU alone; which functions use local memory."""
        if self.architecture is None:
            return {"result": "skipped", "found": "no --architecture"}
        cmake, start = tool("cmake"), time.monotonic()
        configure = [
            cmake, "-S", ROOT / "csrc", "-B", self.build, "-DLOSSREG_CUDA=ON",
            f"-DLOSSREG_CUDA_ARCHITECTURES={self.architecture}", f"-DPython_EXECUTABLE={sys.executable}",
            *(["-G", "Ninja"] if shutil.which("ninja") else []),
        ]  # fmt: skip
        self.must("cmake", configure, limit)
        if self.dry:
            return {"found": f"configured for {self.architecture}, not built"}
        compile_all = [cmake, "--build", self.build, "--parallel", os.cpu_count()]
        self.must("compilers", compile_all, limit - (time.monotonic() - start))
        functions = {name: count for of_one in local_memory(self.build).values() for name, count in of_one.items()}
        using = {name: count for name, count in functions.items() if count}
        mib = (self.build / "liblossreg.so").stat().st_size / 2**20
        found = f"{mib:.1f} MiB for {self.architecture}; {len(functions)} functions, {len(using)} use local memory"
        return {"found": found, "library_mib": mib, "functions": len(functions), "local_bytes": using}

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
        files = [ROOT / "tests" / name for name in SUITE]
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
        arguments = [what, "cpu" if self.dry else "cuda", file]
        why, output = self.execute([*prefix, sys.executable, DRIVER, *arguments], limit - 10, **env)
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
        command = [*prefix, sys.executable, DRIVER, "planted error", "cuda", os.devnull]
        why, output = self.execute(command, limit, **env)
        if "Invalid __global__ read" not in output:
            raise Failed(f"memcheck missed a read past the end ({why or 'exit status 0'})", output)
        return {"found": "memcheck sees a read past the end of an input"}

    def constants(self, limit: float) -> Found:
        """Those of the model in benchmarks/roofline.py, as this GPU has them."""
        if self.architecture is None:
            return {"result": "skipped", "found": "no --architecture"}
        program, code = self.build / "constants", self.architecture.split("-")[0]
        command = [tool("nvcc"), "-O2", f"-arch=sm_{code}", "-o", program, DRIVER.with_name("constants.cu")]
        self.must("nvcc", command, limit)
        if self.dry:
            return {"found": f"compiled for {self.architecture}, not run"}
        measured = json.loads(self.must("constants", [program], limit))
        return {"found": ", ".join(f"{name} {value:g}" for name, value in measured.items()), "constants": measured}

    def model(self, limit: float) -> Found:
        """The calls that benchmarks/predict.py predicts, and beside each what was predicted for it, in seconds."""
        found, _ = self.drive("model", limit)
        predicted = {} if self.dry or not PREDICTED.exists() else json.loads(PREDICTED.read_text())
        by_name = {tuple(r[k] for k in KEY): r for r in predicted.get("predictions", [])}
        for row in (r for op in found["ops"].values() for r in op.get("rows", [])):
            if expected := by_name.get(tuple(row[k] for k in KEY)):
                row["predicted"] = expected["predicted"] / 1e6
                row["measured/predicted"] = row["seconds"]["ours"] / row["predicted"]
        return found

    def steps(self) -> Iterator[tuple[str, Callable[[float], Found]]]:
        yield "build", self.make
        yield "stage", self.stage
        yield "suite", self.suite
        yield "planted error", self.planted
        yield "memcheck", lambda limit: self.sanitized("memcheck", limit)
        yield "racecheck", lambda limit: self.sanitized("racecheck", limit)
        yield "graph", lambda limit: self.drive("graph", limit)[0]
        yield "repeat", lambda limit: self.drive("repeat", limit)[0]
        yield "constants", self.constants
        yield "model", self.model
        # the compilations of an earlier run in this folder serve again
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self.build / "inductor")}
        yield "benchmark", lambda limit: self.drive("benchmark", limit, **cache)[0]


def local_bytes(output: str) -> dict[str, dict[str, int]]:
    """Bytes of local memory of each compiled function, by architecture, from ptxas -v: what it spills, and arrays that
    are indexed at run time, which are no spills but a stack frame."""
    entry = r"Compiling entry function '\S+' for '(\w+)'"
    numbers = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    function = rf"Function properties for (\S+)\n\s*{numbers}"
    found: dict[str, dict[str, int]] = {}
    architecture = ""
    for m in re.finditer(f"{entry}|{function}", output):
        if m[1]:
            architecture = m[1]
            continue
        of_one = found.setdefault(architecture, {})
        of_one[m[2]] = max(of_one.get(m[2], 0), int(m[3]), int(m[4]) + int(m[5]))
    return found


def local_memory(build: Path) -> dict[str, dict[str, int]]:
    """The same of a whole build, from the logs that csrc/keep_log.sh leaves there."""
    return local_bytes("".join(log.read_text() for log in sorted(build.glob("CMakeFiles/*_cuda.dir/**/*.log"))))


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


def model_rows(found: Mapping[str, Any]) -> list[list[object]]:
    rows = []
    for r in (r for op in found["ops"].values() for r in op.get("rows", [])):
        ours = r["seconds"]["ours"]
        beside = ", ".join(f"{name} {1e6 * r['seconds'][name]:.1f}" for name in r["seconds"] if name != "ours")
        predicted = [f"{1e6 * r['predicted']:.1f}", f"{r['measured/predicted']:.2f}"] if "predicted" in r else ["", ""]
        rows.append([*(r[k] for k in KEY), predicted[0], f"{1e6 * ours:.1f}", predicted[1], beside])
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
    if rows := model_rows(steps.get("model", {"ops": {}})):
        measured = steps.get("constants", {}).get("found", "")
        lines += ["## model", "", f"Predicted for an H100 by benchmarks/predict.py. This GPU: {measured}.", ""]
        lines += table([*KEY, "predicted µs", "measured µs", "measured/predicted", "others µs"], rows)
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
    args = top.parse_args()
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
