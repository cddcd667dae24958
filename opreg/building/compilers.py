"""The compilers of this machine, and what tells one from another."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass(frozen=True)
class Compiler:
    """``identity``: what changes when another compiler, or another processor, would make another machine code."""

    path: str
    identity: str

    @property
    def release(self) -> str:
        """Of nvcc, "13.0.88"."""
        found = re.search(r"\bV([0-9.]+)", self.identity)
        return found[1] if found else "unknown"


@cache
def cxx_compiler() -> Compiler:
    """``CXX``, else the first of c++, g++ and clang++."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return Compiler(path, f"{_version(path)} for {_processor()}")
    raise FileNotFoundError("opreg.build: expected a C++ compiler, got none on PATH; install g++, or set CXX")


@cache
def cuda_compiler() -> Compiler | None:
    """``CUDACXX``, else nvcc from PATH, a toolkit's usual places, or NVIDIA's packages of pip."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", *_pip_toolkits()]
    names = [os.environ.get("CUDACXX"), "nvcc", *(str(Path(home, "bin", "nvcc")) for home in homes if home)]
    path = next((found for name in names if name and (found := shutil.which(name))), None)
    return None if path is None else Compiler(path, f"{_version(path)} for {' '.join(architectures())}")


def architectures() -> list[str]:
    """What nvcc is to compile for: ``TORCH_CUDA_ARCH_LIST``, else the GPUs that are there, else those of opreg's own
    library."""
    if chosen := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return [f"{a.removesuffix('+PTX').replace('.', '')}" for a in chosen.replace(";", " ").split()]
    if torch.cuda.is_available():
        found = {torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())}
        return [f"{major}{minor}" for major, minor in sorted(found)]
    return ["80", "90", "100", "120"]


def _version(path: str) -> str:
    done = subprocess.run([path, "--version"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    return f"{Path(path).resolve()} {done.stdout}"


def _pip_toolkits() -> list[str]:
    found = importlib.util.find_spec("nvidia")
    places = found.submodule_search_locations if found is not None else None
    return sorted(str(toolkit) for place in places or () for toolkit in Path(place).glob("cu*"))


def _processor() -> str:
    """What ``-march=native`` looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    names = ("vendor_id", "cpu family", "model", "flags", "Features")
    return " ".join([platform.machine(), *(facts[name] for name in names if name in facts)])
