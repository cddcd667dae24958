"""What an installation has, and what is wrong with it: ``python -m opreg doctor``."""

import ctypes
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from . import __version__, _private
from ._library import KERNEL_KEYS, NAMESPACE, library_path, toolkit_of
from ._tables import pairs, yes_no
from .catalogue import COVERED, kernels
from .registry import registered

OLDEST_TORCH = (2, 11)
OLDEST_GPU = (8, 0)  # what csrc/CMakeLists.txt compiles for by default


@dataclass(frozen=True)
class Facts:
    """What the doctor looks at. ``library`` is None where none was found, ``chosen`` where OPREG_LIBRARY is not set.

    ``toolkit`` is the CUDA whose nvcc built the library, ``driver_cuda`` the latest that the machine's driver knows;
    ``gpu`` says whether torch can use one, ``driver`` whether the machine has one's driver; ``edited`` is a C++ source
    that is newer than the library, in a checkout; ``loops`` is the clone of the CPU loops that this processor runs,
    ``capability`` what torch's own kernels use.
    """

    torch_version: str
    library: str | None
    library_mib: float
    chosen: str | None
    edited: str | None
    torch_cuda: str | None
    toolkit: str | None
    driver_cuda: str | None
    gpu: bool
    gpu_name: str | None
    gpu_capability: tuple[int, int] | None
    driver: bool
    kernels: dict[str, dict[str, bool]]
    undeclared: tuple[str, ...]
    loops: str
    capability: str
    threads: int
    compiler: str | None


# What x86-64-v3 and v4, which the CPU loops are compiled for, have beyond the level before, as Linux calls it.
LEVELS = {
    "AVX2 (x86-64-v3)": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
    "AVX-512 (x86-64-v4)": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}


def loops_for(flags: set[str]) -> str:
    """The clone of the CPU loops that a processor with these flags runs."""
    best = "baseline, without AVX2"
    for level, wanted in LEVELS.items():
        if not wanted <= flags:
            break
        best = level
    return best


def processor_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":")[1] for line in lines if line.startswith("flags")), "").split())


def newer_source(library: Path, sources: Path) -> str | None:
    """A C++ source of the checkout that was changed after the library was built."""
    built = library.stat().st_mtime
    files = (p for suffix in ("h", "cpp", "cu") for p in sources.rglob(f"*.{suffix}"))
    return next((str(p.relative_to(sources.parent)) for p in sorted(files) if p.stat().st_mtime > built), None)


def driver_version() -> str | None:
    """The latest version of CUDA that the machine's driver knows, asked without torch, which may be built for none."""
    version = ctypes.c_int(0)
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)):
            return None
    except (OSError, AttributeError):
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def gather() -> Facts:
    edited = toolkit = None
    try:
        path = library_path()
        toolkit = toolkit_of(path)
        library, size = str(path), path.stat().st_size / 2**20
        edited = newer_source(path, Path(__file__).parents[1] / "csrc")
    except FileNotFoundError:
        library, size = None, 0.0
    gpu = torch.cuda.is_available()
    ops = registered()
    declared = {o._schema.name.split("::")[1] for op in ops for o in op.overloads}
    return Facts(
        torch_version=torch.__version__,
        library=library,
        library_mib=size,
        chosen=os.environ.get("OPREG_LIBRARY") or None,
        edited=edited,
        torch_cuda=torch.version.cuda,
        toolkit=toolkit,
        driver_cuda=driver_version(),
        gpu=gpu,
        gpu_name=torch.cuda.get_device_name() if gpu else None,
        gpu_capability=torch.cuda.get_device_capability() if gpu else None,
        driver=Path("/proc/driver/nvidia/version").exists(),
        kernels={op.name: kernels(op) for op in ops},
        undeclared=tuple(n for n in _private.names_in(NAMESPACE) if n not in declared),
        loops=loops_for(processor_flags()),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
    )


def problems(facts: Facts) -> Iterator[str]:
    """What is wrong, each with what to do about it."""
    if facts.library is None:
        yield "no library of ops: run `pip install .` in the checkout, or set OPREG_LIBRARY to a build of it"
    major, minor = (int(part) for part in facts.torch_version.split(".")[:2])
    if (major, minor) < OLDEST_TORCH:
        yield f"expected torch >= {OLDEST_TORCH[0]}.{OLDEST_TORCH[1]}, got {facts.torch_version}: upgrade torch"
    if not facts.kernels:
        yield "no op is registered: reinstall opreg, the package is incomplete"
    for what in COVERED:
        missing = [name for name, has in facts.kernels.items() if not has[what]]
        if missing and what == "CUDA":
            if facts.gpu:
                yield (
                    f"a GPU is available, but there is no CUDA kernel for {', '.join(missing)}: the library was built "
                    "without nvcc; put nvcc on PATH and reinstall, or install a wheel with CUDA"
                )
        elif missing:
            yield f"{what} is missing for {', '.join(missing)}: library and Python files differ in age; reinstall opreg"
    if facts.edited and not facts.chosen:
        yield f"{facts.edited} is newer than the library: run `make install`, or `pip install .` again"
    if facts.driver and facts.torch_cuda is None:
        yield "the machine has a GPU's driver, but this torch is built for the CPU: install a CUDA build of torch"
    elif facts.driver and not facts.gpu:
        yield (
            f"the machine has a GPU's driver, but torch (CUDA {facts.torch_cuda}) finds no GPU: look at nvidia-smi and "
            "CUDA_VISIBLE_DEVICES; a driver may be too old for that CUDA"
        )
    if facts.toolkit and facts.driver_cuda and _major(facts.driver_cuda) < _major(facts.toolkit):
        yield (
            f"expected a GPU's driver of CUDA {_major(facts.toolkit)}.0 or later for kernels built by CUDA "
            f"{facts.toolkit}, got one of CUDA {facts.driver_cuda}: update the driver, or build with an older nvcc"
        )
    if facts.gpu_capability is not None and facts.gpu_capability < OLDEST_GPU:
        older = "".join(map(str, facts.gpu_capability))
        oldest = "".join(map(str, OLDEST_GPU))
        yield (
            f"the kernels are compiled for sm_{oldest} and later, {facts.gpu_name} is sm_{older}: "
            f'reinstall with CMAKE_ARGS="-DLOSSREG_CUDA_ARCHITECTURES={older}-real"'
        )
    if facts.undeclared:
        yield f"the library holds ops without a declaration, {', '.join(facts.undeclared)}: reinstall opreg"


def _major(version: str) -> int:
    return int(version.split(".")[0])


def diagnosis(facts: Facts) -> tuple[str, int]:
    """The report, and the exit status: 1 when something is wrong."""
    count = {what: sum(has[what] for has in facts.kernels.values()) for what in COVERED}
    missing = []
    for what in KERNEL_KEYS.values():
        names = [name for name, has in facts.kernels.items() if not has[what]]
        if names:
            missing.append(f"{what}: {', '.join(names) if count[what] else 'every op'}")
    gpu = facts.gpu_name and f"{facts.gpu_name}, sm_{''.join(map(str, facts.gpu_capability or ()))}"
    chosen = f", chosen by OPREG_LIBRARY={facts.chosen}" if facts.chosen else ""
    lines = [
        ("python", platform.python_version()),
        ("torch", facts.torch_version),
        ("opreg", __version__),
        ("library", f"{facts.library} ({facts.library_mib:.1f} MiB){chosen}" if facts.library else "not found"),
        ("CUDA", f"torch built with {facts.torch_cuda or 'none'}; GPU available: {gpu or yes_no(facts.gpu)}"),
        ("CUDA kernels", f"built by CUDA {facts.toolkit or 'none'}; the driver knows {facts.driver_cuda or 'none'}"),
        ("ops", f"{len(facts.kernels)}, of which with " + ", ".join(f"{what} {n}" for what, n in count.items())),
        ("no kernel for", "; ".join(missing) or f"nothing: every op has one for {' and '.join(KERNEL_KEYS.values())}"),
        ("CPU capability", f"{facts.loops}; torch's own kernels {facts.capability}"),
        ("threads", str(facts.threads)),
        ("C++ compiler", facts.compiler or "none: torch.compile needs one on the CPU"),
    ]
    wrong = list(problems(facts))
    end = [f"wrong: {text}" for text in wrong] or ["Nothing is wrong."]
    return "\n".join([pairs(lines), "", *end]), int(bool(wrong))
