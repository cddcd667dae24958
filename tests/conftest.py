"""Fixtures: every op with every sample, the devices to run on, the CUDA kernels in the emulator."""

import os

# Every run compiles anew, so that a test never meets what an earlier run left on disk.
os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
# Where test processes share the processors, more threads in each would wait for each other: a part of the suite took
# eight times as long. Tests of threads set their number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import ctypes
import fcntl
import subprocess
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from torch import Tensor

import opreg
from opreg.meta.schema import bind, results_of
from opreg.registry import of_namespace
from opreg.testing import Maker, tensors_with_grad

ROOT = Path(__file__).parents[1]
# make gpu-check sets this: the same suite, on the GPU
DEVICE = os.environ.get("OPREG_TEST_DEVICE", "cpu")

# with a result and a gradient; the others have tests of their own
OPS = [op.qualname for op in of_namespace() if not op.mutated]
# the build folder of make install
BUILD = next((f.parent for f in sorted(ROOT.glob("build/py3-*/CMakeCache.txt"))), None)


def pytest_report_header() -> str:
    """The size of the library, and what its build recorded."""
    library = opreg.library_path()
    facts = [f"{library.stat().st_size / 2**20:.1f} MiB"]
    if BUILD and (found := gpu_check.spilled(BUILD)):
        functions = [count for of_one in found.values() for count in of_one.values()]
        spilling = sum(count > 0 for count in functions)
        facts += [" ".join(found), f"{len(functions)} functions for GPUs", f"{spilling} spill registers"]
    if BUILD and (BUILD / ".ninja_log").exists():
        rows = [line.split("\t") for line in (BUILD / ".ninja_log").read_text().splitlines()[1:]]
        seconds = {output: (int(end) - int(start)) / 1000 for start, end, _, output, _ in rows}  # the latest of each
        facts.append(f"compiled in {sum(seconds.values()):.0f} s of one job")
    return f"{library.name}: {', '.join(facts)}"


def samples_of(op: opreg.Op, **options: Any) -> list[opreg.Sample]:
    return list(op.samples(Maker(**{"device": DEVICE, **options})))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``op`` runs for every op; one that asks for ``index`` too, for every sample of each."""
    if "index" in metafunc.fixturenames:
        cases = [(opreg.get(n), i, s.name) for n in OPS for i, s in enumerate(samples_of(opreg.get(n)))]
        ids = [f"{op.short}-{i}-{name.replace(' ', '_')}".rstrip("-") for op, i, name in cases]
        metafunc.parametrize(("op", "index"), [(op, i) for op, i, _ in cases], ids=ids)
    elif "op" in metafunc.fixturenames:
        metafunc.parametrize("op", [opreg.get(n) for n in OPS], ids=lambda op: op.short)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def run_raw(namespace: Any, op: opreg.Op, sample: opreg.Sample) -> list[Tensor]:
    """Result, state and gradients straight from the kernels of a namespace, without autograd."""
    bound = bind(op.value, sample.args, sample.kwargs)
    wanted = tensors_with_grad(op, sample)
    mask = [n in wanted for n in op.differentiable]
    with torch.no_grad():
        if op.forward is None:
            result, state = getattr(namespace, op.short)(**bound), []
        else:
            asked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
            result, *state = getattr(namespace, op.short + "_forward")(**bound, **asked)
        bound.pop("dtype", None)
        weights = torch.linspace(0.5, 1.5, result.numel(), dtype=result.dtype, device=result.device)
        grad_output = weights.reshape(result.shape)
        backward = getattr(namespace, op.short + "_backward")
        grads = results_of(backward(grad_output, *state, **bound, needs_input_grad=mask))
        return [result, *state, *(g for g, wanted in zip(grads, mask, strict=True) if wanted)]


class Emulator:
    """The loaded emulator. Called with a seed, it shuffles lanes, warps and blocks another way."""

    def __init__(self, library: Path) -> None:
        self.library, self.functions = library, ctypes.CDLL(str(library))

    def __call__(self, seed: int) -> None:
        self.functions.lossreg_emulator_seed(ctypes.c_uint64(seed))

    def forget(self) -> None:
        """From here on ``launched`` counts."""
        self.functions.lossreg_emulator_forget()

    def launched(self) -> set[str]:
        """The kernels that ran, as the linker knows them."""
        count = self.functions.lossreg_emulator_launched(None)
        addresses = (ctypes.c_void_p * count)()
        self.functions.lossreg_emulator_launched(addresses)
        symbols = self.symbols()
        here = ctypes.cast(self.functions.lossreg_emulator_seed, ctypes.c_void_p).value
        (there,) = [address for address, name in symbols.items() if name == "lossreg_emulator_seed"]
        return {symbols[address - here + there] for address in addresses}

    def symbols(self) -> dict[int, str]:
        """The library's functions by their place in it."""
        done = subprocess.run(["nm", "-C", "--defined-only", self.library], capture_output=True, text=True, check=True)
        lines = (line.split(" ", 2) for line in done.stdout.splitlines())
        return {int(address, 16): name for address, kind, name in lines if kind in "tTwW"}


@pytest.fixture(scope="session")
def emulated() -> Emulator:
    """Builds and loads ``torch.ops.lossreg_emulated``: the CUDA kernels on the CPU."""
    build = ROOT / "build" / "emulator"
    build.mkdir(parents=True, exist_ok=True)
    torch_dir = Path(torch.__file__).parent
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build for all workers
        families = os.environ.get("LOSSREG_FAMILIES", "")  # as in csrc/CMakeLists.txt: while working on some
        options = [f"-DLOSSREG_TORCH_DIR={torch_dir}", f"-DLOSSREG_FAMILIES={families}"]
        configure = ["cmake", "-S", str(ROOT / "tests/kernels/emulator"), "-B", str(build), *options]
        for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    library = build / "liblossreg_emulated.so"
    torch.ops.load_library(str(library))
    return Emulator(library)
