"""Fixtures: every op with every sample, the devices to run on, the CUDA kernels in the emulator."""

import atexit
import os
import shutil
import sys
import tempfile

# Every run compiles anew, so that a test never meets what an earlier run left on disk, and every graph too. What C++
# compilers made of one text, Inductor's header above all, is shared by the processes of a run: a loss that Inductor
# compiles takes 1.2 s so, and 4.2 where the header is compiled for it too.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="opreg-tests-")
    atexit.register(shutil.rmtree, os.environ["TORCHINDUCTOR_CACHE_DIR"], ignore_errors=True)
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"
# Where test processes share the processors, more threads in each would wait for each other: a part of the suite took
# eight times as long. Tests of threads set their number.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch

import emulated as emulator
import opreg
from emulated import Emulator, new_memory_filled, run_raw
from opreg.registry import of_namespace
from opreg.testing import Maker

__all__ = ["new_memory_filled", "run_raw"]  # beside what stands here

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
    if BUILD and (found := gpu_check.local_memory(BUILD)):
        functions = [count for of_one in found.values() for count in of_one.values()]
        spilling = sum(count > 0 for count in functions)
        facts += [" ".join(found), f"{len(functions)} functions for GPUs", f"{spilling} use local memory"]
    if BUILD and (BUILD / ".ninja_log").exists():
        rows = [line.split("\t") for line in (BUILD / ".ninja_log").read_text().splitlines()[1:]]
        seconds = {output: (int(end) - int(start)) / 1000 for start, end, _, output, _ in rows}  # the latest of each
        facts.append(f"compiled in {sum(seconds.values()):.0f} s of one job")
    return f"{library.name}: {', '.join(facts)}"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Names what fails at once: the summary of a run that is cut off never comes."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        reason = getattr(getattr(report.longrepr, "reprcrash", None), "message", str(report.longrepr)).split("\n")[0]
        sys.stdout.write(f"\n{report.nodeid} failed: {reason}\n")
        sys.stdout.flush()


def samples_of(op: opreg.Op, **options: Any) -> list[opreg.Sample]:
    return list(op.samples(Maker(**{"device": DEVICE, **options})))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for ``op`` runs for every op; one that asks for ``index`` too, for every sample of each.

    One that takes seconds for each is marked ``one_of_a_family``: make test runs it for the first op of each family.
    """
    if "index" in metafunc.fixturenames:
        cases = [(opreg.get(n), i, s.name) for n in OPS for i, s in enumerate(samples_of(opreg.get(n)))]
        ids = [f"{op.short}-{i}-{name.replace(' ', '_')}".rstrip("-") for op, i, name in cases]
        metafunc.parametrize(("op", "index"), [(op, i) for op, i, _ in cases], ids=ids)
    elif "op" in metafunc.fixturenames:
        ops = [opreg.get(n) for n in OPS]
        if metafunc.definition.get_closest_marker("one_of_a_family"):
            firsts = {op.family: op for op in reversed(ops)}.values()
            marks = [() if op in firsts else pytest.mark.thorough for op in ops]
            ops = [pytest.param(op, marks=m, id=op.short) for op, m in zip(ops, marks, strict=True)]
        metafunc.parametrize("op", ops, ids=lambda op: op.short)


def pytest_collection_finish() -> None:
    """An op of somebody else is there in every test: what is said of every op must not depend on which tests ran."""
    opreg.register(
        opreg.Op(
            name="strangers::running_sum",
            reference=lambda input: input.cumsum(0),
            shape=opreg.meta.same("input"),
            samples=lambda make: iter(()),
            errors=lambda make: iter(()),
            source="the tests",
            schema="(Tensor input) -> Tensor",
            kernels={"CPU": lambda input: input.cumsum(0)},
        )
    )


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def emulated() -> Emulator:
    """``torch.ops.lossreg_emulated``: the CUDA kernels on the CPU."""
    return emulator.load()
