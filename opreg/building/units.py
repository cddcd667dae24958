"""From a family's header to a shared library by this machine's compilers, as ``csrc/CMakeLists.txt`` does for ours."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .compilers import Compiler, architectures
from .headers import include_path
from .headers import unit as source

# The stable ABI of torch 2.11: a library of it runs in that version and every later one.
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"


@dataclass(frozen=True)
class Recipe:
    """How a family is compiled. ``cuda`` is None where it gets no kernels for a GPU."""

    namespace: str
    cxx: Compiler
    cuda: Compiler | None
    flags: tuple[str, ...]

    def texts(self) -> list[object]:
        """All that decides of the machine code beside the texts that are compiled."""
        names = (self.namespace, self.cxx.identity, self.cuda and self.cuda.identity, self.flags, torch.__version__)
        return [*names, self.command(Path("family.h"), Path("unit.o"))]

    def command(self, header: Path, unit: Path) -> list[str]:
        """Compiles the family's unit for the CPU."""
        own = (include_path() / "opreg" / "cxx_flags.txt").read_text().split()
        return [
            self.cxx.path, "-std=c++17", *own, "-march=native", "-DLOSSREG_NO_CLONES", "-fPIC", "-fvisibility=hidden",
            *self._common(header, unit), "-c", str(source("cpp")), "-o", str(unit),
        ]  # fmt: skip

    def cuda_command(self, compiler: Compiler, header: Path, unit: Path) -> list[str]:
        """Compiles the same family's unit for CUDA."""
        targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures()]
        return [
            compiler.path, "-std=c++17", "-O3", "--expt-relaxed-constexpr", *targets, "-DLOSSREG_NO_CLONES",
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            *self._common(header, unit), "-c", str(source("cu")), "-o", str(unit),
        ]  # fmt: skip

    def _common(self, header: Path, unit: Path) -> list[str]:
        torch_include = Path(torch.__file__).parent / "include"
        # headers of -isystem are no dependencies that -MMD lists: opreg's and torch's are in the key themselves
        system = [include_path(), torch_include, torch_include / "torch" / "csrc" / "api" / "include"]
        said = {"NAMESPACE": self.namespace, "FAMILY": f'"{header}"', "PARTIAL": "1"}
        if self.cuda is not None:
            targets = ",".join(architectures())
            said |= {"CUDA_TOOLKIT": f'"{self.cuda.release}"', "CUDA_ARCHITECTURES": f'"{targets}"'}
        return [
            _TARGET, *(f"-DLOSSREG_{name}={value}" for name, value in said.items()),
            *(part for p in system for part in ("-isystem", str(p))),
            "-MMD", "-MF", str(unit.with_suffix(".d")), *self.flags,
        ]  # fmt: skip

    def link_command(self, units: Sequence[Path], library: Path) -> list[str]:
        """Makes a library of the units. What torch has is found by the process that loads torch."""
        torch_lib = Path(torch.__file__).parent / "lib"
        exports = include_path() / "opreg" / "exports.map"
        options = ["--no-as-needed", "-z,nodelete", f"--version-script={exports}"]
        libraries = [f"-L{torch_lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
        if self.cuda is None:
            linker, passed = self.cxx.path, [f"-Wl,{o}" for o in options]
        else:  # it knows where its own runtime is
            linker, passed = self.cuda.path, [f"-Xlinker={o}" for o in options]
            beside = Path(self.cuda.path).resolve().parents[1]
            libraries += [f"-L{beside / name}" for name in ("lib", "lib64") if (beside / name).is_dir()]
            libraries += ["-cudart=static", "-lrt", "-ldl", "-lpthread"]
        return [linker, "-shared", *passed, *map(str, units), "-o", str(library), *libraries]


def compile_family(header: Path, recipe: Recipe, folder: Path) -> tuple[Path, list[str]]:
    """The family's library, made in the folder, and the files that its header includes, itself among them."""
    units = [folder / "cpu.o"]
    _run(recipe, header, recipe.command(header, units[0]), folder)
    if recipe.cuda is not None:
        units.append(folder / "cuda.o")
        _run(recipe, header, recipe.cuda_command(recipe.cuda, header, units[1]), folder)
    library = folder / f"lib{recipe.namespace}.so"
    _run(recipe, header, recipe.link_command(units, library), folder)
    made_of = {path for unit in units for path in _dependencies(unit.with_suffix(".d"))}
    for unit in units:
        unit.unlink()
        unit.with_suffix(".d").unlink()
    return library, sorted(path for path in made_of if Path(path).parent != folder)


def _dependencies(rules: Path) -> list[str]:
    """What a compiler says that a unit was made of: "unit.o: a.h b.h", a backslash before a line's end or a space."""
    text = rules.read_text().split(":", 1)[1].replace("\\\n", " ")
    return [os.path.abspath(re.sub(r"\\(.)", r"\1", path)) for path in re.findall(r"(?:\\.|\S)+", text)]


def _run(recipe: Recipe, header: Path, command: list[str], folder: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = (done.stderr + done.stdout).replace(f"{folder}{os.sep}", "")
        raise RuntimeError(
            f"opreg.build: expected a family of ops that compiles, got {header.name}, of which "
            f"{Path(command[0]).name} says:\n\n{_errors(said)}\n{_advice(said)}\nThe command: {shlex.join(command)}"
        )


# What is to be done about errors in a compiler's own words. contract.h has words for the others.
_ADVICE = {
    r"conflicting declaration '.*\bOps\b|typedef redefinition .*|type alias redefinition .*":
        "One unit holds one family: `using Ops` stands once. Include what two families share from a header without it.",
    r"'Ops' (is not a member of|has not been declared)|no type named 'Ops'|no member named 'Ops'":
        "A family's header ends with `using Ops = ...;`, a list of its formulas, in the namespace of opreg's headers.",
}  # fmt: skip


def _advice(said: str) -> str:
    return "".join(f"\n{advice}\n" for pattern, advice in _ADVICE.items() if re.search(pattern, said))


def _errors(said: str) -> str:
    """What a compiler says is wrong, each error once, with the lines of text below it. How templates led there, and the
    same error of another type, is left out."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in said.splitlines():
        if re.search(r"\berror\b", line):
            lines = found.setdefault(line, []) if line not in found else None
        elif re.match(r"\S.*: (note|warning|required|In |  )|In file included|\s+from |\s+(required|inlined) ", line):
            lines = None
        elif lines is not None:
            lines.append(line)
    return "\n".join("\n".join([error, *below]) for error, below in found.items()) or said.strip()
