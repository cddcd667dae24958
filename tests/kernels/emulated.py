"""The CUDA kernels on the CPU: builds tests/kernels/emulator, runs them there, and says what they asked of a GPU."""

import contextlib
import ctypes
import dataclasses
import fcntl
import functools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import opreg
from opreg.meta.schema import bind, results_of
from opreg.testing import tensors_with_grad

ROOT = Path(__file__).parents[2]


def run_raw(namespace: Any, op: opreg.Op, sample: opreg.Sample) -> list[Tensor]:
    """Results, state and gradients straight from the kernels of a namespace, without autograd."""
    bound = bind(op.value, sample.args, sample.kwargs)
    wanted = tensors_with_grad(op, sample)
    mask = [n in wanted for n in op.differentiable]
    with torch.no_grad():
        if op.forward is None:
            made = results_of(getattr(namespace, op.short)(**bound))
        else:
            asked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
            made = getattr(namespace, op.short + "_forward")(**bound, **asked)
        bound.pop("dtype", None)
        results, state = made[: len(op.results)], made[len(op.results) :]
        incoming = [
            torch.linspace(0.5, 1.5, t.numel(), dtype=t.dtype, device=t.device).reshape(t.shape) for t in results
        ]
        backward = getattr(namespace, op.short + "_backward")
        grads = results_of(backward(*incoming, *state, **bound, needs_input_grad=mask))
        return [*made, *(g for g, wanted in zip(grads, mask, strict=True) if wanted)]


@contextlib.contextmanager
def new_memory_filled() -> Iterator[None]:
    """On Linux, what the C library allocates holds bytes 127 until it is written, huge numbers: what nobody writes is
    seen. (torch.utils.deterministic.fill_uninitialized_memory does not reach what a library of the stable ABI asks.)"""
    fill = getattr(ctypes.CDLL(None), "mallopt", lambda option, value: None)  # glibc's
    perturb = -6  # M_PERTURB of malloc.h: memory that is given out holds the complement of this byte, 0 is none
    fill(perturb, 255 - 127)
    try:
        yield
    finally:
        fill(perturb, 0)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """Of a launch's loads, or stores: what its warps asked for, sectors of 32 bytes, those sectors each counted once a
    block, and the bytes that the threads named."""

    requests: int
    sectors: int
    distinct: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch in the emulator: of its blocks, so many ran; traffic is theirs."""

    symbol: str
    blocks: int
    threads: int
    ran: int
    loads: Traffic
    stores: Traffic


class Emulator:
    """The loaded emulator. Called with a seed, it shuffles lanes, warps and blocks another way."""

    def __init__(self, library: Path) -> None:
        self.library, self.functions = library, ctypes.CDLL(str(library))
        for name in ("launches", "host"):
            getattr(self.functions, f"lossreg_emulator_{name}").restype = ctypes.c_char_p

    def __call__(self, seed: int) -> None:
        self.functions.lossreg_emulator_seed(ctypes.c_uint64(seed))

    def forget(self) -> None:
        """From here on ``launches`` and ``host`` count."""
        self.functions.lossreg_emulator_forget()

    @contextlib.contextmanager
    def only(self, blocks: int | None, *watched: Tensor, traffic: bool = False) -> Iterator[None]:
        """Runs so many blocks of each launch, or all. Traffic is theirs to these tensors and what the ops allocate."""
        self.forget()
        for t in watched:
            self.functions.lossreg_emulator_watch(ctypes.c_void_p(t.data_ptr()), ctypes.c_size_t(t.nbytes))
        self.functions.lossreg_emulator_limit(ctypes.c_int64(-1 if blocks is None else blocks), ctypes.c_bool(traffic))
        try:
            yield
        finally:
            self.functions.lossreg_emulator_limit(ctypes.c_int64(-1), ctypes.c_bool(False))

    def launches(self) -> list[Launch]:
        here = ctypes.cast(self.functions.lossreg_emulator_seed, ctypes.c_void_p).value
        there = self.addresses["lossreg_emulator_seed"]
        found = []
        for line in self.functions.lossreg_emulator_launches().decode().splitlines():
            address, blocks, threads, ran, *traffic = map(int, line.split())
            symbol = self.symbols[address - here + there]
            found.append(Launch(symbol, blocks, threads, ran, Traffic(*traffic[:4]), Traffic(*traffic[4:])))
        return found

    def launched(self) -> set[str]:
        """The kernels that ran, as a person writes them."""
        symbols = "\n".join({launch.symbol for launch in self.launches()})
        done = subprocess.run(["c++filt"], input=symbols, capture_output=True, text=True, check=True)
        return set(done.stdout.splitlines())

    def host(self) -> list[str]:
        """What the host's part of the ops asked of torch: "empty BYTES", and names of operators with sizes."""
        return list(self.functions.lossreg_emulator_host().decode().splitlines())

    @functools.cached_property
    def addresses(self) -> dict[str, int]:
        """The library's functions, and their places in it."""
        done = subprocess.run(["nm", "--defined-only", self.library], capture_output=True, text=True, check=True)
        lines = (line.split(" ", 2) for line in done.stdout.splitlines())
        return {name: int(address, 16) for address, kind, name in lines if kind in "tTwW"}

    @functools.cached_property
    def symbols(self) -> dict[int, str]:
        return {address: name for name, address in self.addresses.items()}


@dataclasses.dataclass(frozen=True)
class Pass:
    """What the forward or the backward pass of a call asked for."""

    launches: list[Launch]
    host: list[str]

    @property
    def allocations(self) -> int:
        return sum(line.startswith("empty ") and line != "empty 0" for line in self.host)

    @property
    def calls(self) -> list[str]:
        """Operators of torch."""
        return [line for line in self.host if not line.startswith("empty ")]


def passes(
    emulator: Emulator, op: opreg.Op, sample: opreg.Sample, blocks: int | None, traffic: bool = False
) -> dict[str, Pass]:
    """A call, its passes one after the other, with so many blocks of each launch; of what writes, the call alone."""
    lists = [a if isinstance(a, list) else [a] for a in (*sample.args, *sample.kwargs.values())]
    watched = [t.detach() for of in lists for t in of if isinstance(t, Tensor)]
    namespace = torch.ops.lossreg_emulated
    bound = bind(op.value, sample.args, sample.kwargs)
    wanted = [] if op.mutated else tensors_with_grad(op, sample)
    mask = [n in wanted for n in op.differentiable]
    with torch.no_grad():
        asked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
        forward = getattr(namespace, op.short + ("" if op.forward is None else "_forward"))
        with emulator.only(blocks, *watched, traffic=traffic):
            results = forward(**bound, **asked)
            found = {"forward": Pass(emulator.launches(), emulator.host())}
        if op.mutated:
            return found
        made = results_of(results)
        state = made[len(op.results) :]
        bound.pop("dtype", None)
        incoming = [torch.ones_like(t) for t in made[: len(op.results)]]  # what is multiplied by 0 need not be read
        with emulator.only(blocks, *watched, *state, *incoming, traffic=traffic):
            getattr(namespace, op.short + "_backward")(*incoming, *state, **bound, needs_input_grad=mask)
            found["backward"] = Pass(emulator.launches(), emulator.host())
    return found


def load(family: Path | None = None, build: Path = ROOT / "build" / "emulator") -> Emulator:
    """Builds it, where that was not done, and makes ``torch.ops.lossreg_emulated`` of it, or of a family alone."""
    build.mkdir(parents=True, exist_ok=True)
    torch_dir = Path(torch.__file__).parent
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one build for all workers
        families = os.environ.get("LOSSREG_FAMILIES", "")  # as in csrc/CMakeLists.txt: while working on some
        options = [f"-DLOSSREG_TORCH_DIR={torch_dir}", f"-DLOSSREG_FAMILIES={families}"]
        if family is not None:
            options += [f"-DLOSSREG_HEADER={family}", f"-DLOSSREG_INCLUDE={opreg.building.include_path()}"]
        configure = ["cmake", "-S", str(ROOT / "tests/kernels/emulator"), "-B", str(build), *options]
        for command in (configure, ["cmake", "--build", str(build), "--parallel", "2"]):
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr
    library = build / "liblossreg_emulated.so"
    torch.ops.load_library(str(library))
    return Emulator(library)
