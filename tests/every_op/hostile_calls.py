"""Calls that a loaded program could make and nobody would: every op, its forward and its backward, with wrong shapes,
dtypes, devices, strides, options and masks. A call must return or raise; a signal, a sanitizer's report, a result that
no kernel wrote, or an error of a kind that only a defect has, is a finding.

    python tests/every_op/hostile_calls.py --calls 1000 --seed 0               # the installed library
    python tests/every_op/hostile_calls.py --calls 1000 --sanitized FOLDER     # one built with -DLOSSREG_SANITIZE=ON

A call follows from the seed and its number alone: what was found comes again with ``--seed S --only NUMBER``.
"""

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import opreg
from opreg.meta.schema import bind, results_of
from opreg.registry import of_namespace
from opreg.testing import Maker

SECONDS = 60  # that a call may take; all tensors are small
LARGE = 2**24  # elements; no sample has as many
HUGE = (2**31, 2**40, 2**62, 2**63 - 1)
INTEGERS = (-(2**63), -(2**31), -100, -1, 0, 1, 2, 255, *HUGE)
FLOATS = (float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.0, 5e-324, 1e-30, 0.5, 1.0, 2.0, 1e308)
TEXTS = ("none", "mean", "sum", "batchmean", "present", "all", "", "avg", "Mean", "a\0b", "ä" * 3, "x" * 5000)
DTYPES = (
    *(torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint32),
)
# what a wrong call may end in
ERRORS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, OverflowError)


def shapes_of(r: random.Random, t: Tensor) -> Tensor:
    """Another shape, of the same memory or of new."""
    dim = r.randrange(t.dim()) if t.dim() else 0
    ways: list[Callable[[], Tensor]] = [
        lambda: t.unsqueeze(r.randint(0, t.dim())),
        lambda: t.reshape(-1),
        lambda: t.new_ones([r.choice((0, 1, 2, 3, 5)) for _ in range(r.randint(0, 5))]),
        lambda: torch.zeros((), dtype=t.dtype),
    ]
    if t.dim():
        ways += [
            lambda: t.select(dim, 0),
            lambda: t.narrow(dim, 0, r.randint(0, t.shape[dim])),
            lambda: torch.cat([t, t], dim),
            lambda: t.transpose(dim, r.randrange(t.dim())),
            lambda: t.narrow(dim, 0, min(1, t.shape[dim])),
        ]
    return r.choice(ways)()


def strides_of(r: random.Random, t: Tensor) -> Tensor:
    """The same shape, laid out otherwise."""
    dim = r.randrange(t.dim()) if t.dim() else 0
    ways: list[Callable[[], Tensor]] = [lambda: torch.cat([t.reshape(-1)] * 2)[: t.numel()].reshape(t.shape)]
    if t.dim():
        ways += [
            lambda: t.narrow(dim, 0, min(1, t.shape[dim])).expand(t.shape) if t.shape[dim] else t,
            lambda: t.new_ones(t.numel() + t.dim() + 1).as_strided(t.shape, [1] * t.dim()),
            lambda: torch.stack([t, t], dim).select(dim, 1),
            lambda: t.transpose(0, dim).contiguous().transpose(0, dim),
            lambda: t.flip(dim),
        ]
    if t.dim() == 4:
        ways.append(lambda: t.contiguous(memory_format=torch.channels_last))
    if t.is_floating_point():
        ways += [lambda: torch._neg_view(t), lambda: torch._efficientzerotensor(t.shape, dtype=t.dtype)]
    return r.choice(ways)()


def values_of(r: random.Random, t: Tensor) -> Tensor:
    """The same shape, other values, in all places or in one."""
    if t.is_floating_point():
        value: Any = r.choice(FLOATS)
    elif t.dtype in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        limits = torch.iinfo(t.dtype)
        value = max(limits.min, min(limits.max, r.choice(INTEGERS)))
    else:
        return t
    t = t.detach().clone()
    if t.numel() and r.random() < 0.7:
        t.view(-1)[r.randrange(t.numel())] = value
    else:
        t.fill_(value)
    return t


def huge_of(r: random.Random, t: Tensor) -> Tensor:
    """Of more elements than memory holds, by strides of 0."""
    shape = [1] * max(1, t.dim())
    shape[r.randrange(len(shape))] = r.choice(HUGE)
    return torch.ones([1] * len(shape), dtype=t.dtype).expand(shape)


def tensor_of(r: random.Random, t: Tensor) -> Any:
    """A tensor in the place of this one, or what is none."""
    kind = r.random()
    if kind < 0.25:
        return shapes_of(r, t)
    if kind < 0.45:
        return strides_of(r, t)
    if kind < 0.65:
        return values_of(r, t)
    if kind < 0.80:
        return t.detach().to(r.choice(DTYPES))
    if kind < 0.86:
        return None
    if kind < 0.92:
        return t.detach().to("meta")
    if kind < 0.95:
        return huge_of(r, t)
    if kind < 0.96:
        return t.detach().to_sparse() if t.dim() else t
    return t.detach().requires_grad_(t.is_floating_point())


def option_of(r: random.Random, value: Any) -> Any:
    if isinstance(value, bool):
        return r.choice((True, False, None))
    if isinstance(value, int):
        return r.choice(INTEGERS)
    if isinstance(value, float):
        return r.choice(FLOATS)
    if isinstance(value, str):
        return r.choice(TEXTS)
    if isinstance(value, (list, tuple)) and all(isinstance(v, Tensor) for v in value):
        changed = [tensor_of(r, v) if r.random() < 0.5 else v for v in value]
        return r.choice((changed, changed[1:], changed * 2, []))
    if isinstance(value, (list, tuple)) and all(isinstance(v, bool) for v in value):
        return [r.random() < 0.7 for _ in range(len(value) + r.choice((-1, 0, 0, 0, 0, 0, 0, 1)))]
    if isinstance(value, (list, tuple)):
        return [r.choice(INTEGERS[4:]) for _ in range(r.choice((0, 1, 2, 2, 2, 3)))]
    return r.choice((*DTYPES, None, 1.0, "mean"))  # a dtype, or a tensor that was not given


def prepared(r: random.Random, op: opreg.Op) -> tuple[Any, dict[str, Any]]:
    """An overload of the op, and arguments that suit it: those of a sample."""
    make = Maker(r.choice(DTYPES[:4]), seed=r.randrange(1000))
    sample = r.choice(list(op.samples(make)))
    bound = bind(op.value, sample.args, sample.kwargs)
    bound = {n: a.detach() if isinstance(a, Tensor) else a for n, a in bound.items()}
    overload = r.choice(op.overloads if r.random() < 0.5 else op.overloads[-1:])
    if overload is op.value:
        return overload, bound
    mask = [isinstance(bound[n], Tensor) and bound[n].is_floating_point() for n in op.differentiable]
    masked = {"needs_input_grad": mask} if op.forward_takes_mask else {}
    if overload is op.forward:
        return overload, {**bound, **masked}
    made = results_of(op.value(**bound) if op.forward is None else op.forward(**bound, **masked))
    bound.pop("dtype", None)
    leading = {n: torch.ones_like(t) for n, t in zip(op.gradients_of_results, made, strict=False)}
    kept = {} if op.forward is None else {"state": made[-1]}
    return overload, {**leading, **kept, **bound, "needs_input_grad": mask}


def text_of(value: Any) -> str:
    if isinstance(value, Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        strides = list(value.stride()) if value.layout == torch.strided else value.layout
        return f"{value.dtype} {list(value.shape)} of strides {strides}{where}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(text_of, value))}]"
    return f"{value!r:.60}"


def elements(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


def of_size(arguments: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """The arguments with one of their sizes changed in every tensor, class indices kept in range."""

    def change(a: Any) -> Any:
        if not isinstance(a, Tensor):
            return a
        t = a.detach()
        for dim, size in enumerate(t.shape):
            if size == old:
                t = t.narrow(dim, 0, new)
        if not t.is_floating_point() and t.dtype != torch.bool:
            t = t.clamp(max=max(0, new - 1))
        return t.clone().requires_grad_(a.requires_grad)

    return {name: change(a) for name, a in arguments.items()}


class Call:
    """The call of a number: all of it follows from the seed."""

    def __init__(self, seed: int, number: int, ops: list[opreg.Op]) -> None:
        r = random.Random(f"{seed} {number}")
        torch.manual_seed(r.randrange(2**31))
        self.op = ops[number % len(ops)]
        self.overload, self.arguments = prepared(r, self.op)
        optional = [n for n, a in self.arguments.items() if isinstance(a, Tensor) and self.is_optional(n)]
        if optional and r.random() < 0.2:
            self.arguments[r.choice(optional)] = None
        sizes = sorted({size for a in self.arguments.values() if isinstance(a, Tensor) for size in a.shape} - {0})
        if sizes and r.random() < 0.2:
            self.arguments = of_size(self.arguments, r.choice(sizes), r.choice((0, 1)))
        for _ in range(r.choice((0, 1, 1, 1, 2, 2, 3, 4))):
            try:
                self.change(r)
            except ERRORS:  # torch has no such tensor
                continue
        self.grad = r.random() < 0.3
        # a loop over what no memory holds would end one day
        self.endless = any(elements(a) > LARGE for a in self.arguments.values())

    def is_optional(self, name: str) -> bool:
        return any(a.name == name and str(a.type) == "Optional[Tensor]" for a in self.overload._schema.arguments)

    def change(self, r: random.Random) -> None:
        name = r.choice(list(self.arguments))
        value = self.arguments[name]
        if elements(value) > LARGE:  # torch itself would be at work on it for years
            return
        others = [a for a in self.arguments.values() if isinstance(a, Tensor)]
        if isinstance(value, Tensor) and r.random() < 0.1:
            self.arguments[name] = r.choice(others)
        elif isinstance(value, Tensor):
            self.arguments[name] = tensor_of(r, value)
        elif value is None and others and r.random() < 0.5:
            self.arguments[name] = r.choice(others)
        else:
            self.arguments[name] = option_of(r, value)

    def __str__(self) -> str:
        given = ", ".join(f"{n}={text_of(a)}" for n, a in self.arguments.items())
        return f"{self.overload}({given})"

    def run(self) -> str:
        """What is wrong with what came back, or nothing."""
        try:
            with torch.set_grad_enabled(self.grad):
                results = self.overload(**self.arguments)
        except ERRORS:
            return ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        given = [a for v in self.arguments.values() for a in (v if isinstance(v, (list, tuple)) else [v])]
        tensors = [a for a in given if isinstance(a, Tensor)]
        meta = [t.is_meta for t in tensors]
        made = [results] if isinstance(results, Tensor) else list(results or [])
        if any(meta) and not all(t.is_meta for t in made):
            return "a result on a device with memory, of a call that ran on the meta device"
        if self.overload is self.op.backward:
            mask = self.arguments["needs_input_grad"]
            left_out = [t for t, wanted in zip(made, mask, strict=False) if not wanted]
            if len(made) != len(mask) or any(t.shape != (0,) for t in left_out):
                return f"{[list(t.shape) for t in made]}, the shapes of gradients, for the mask {mask}"
        return ""


def run_apart(call: Call) -> str:
    """In a process of its own, which may be stopped."""
    child = os.fork()
    if child == 0:
        os._exit(1 if call.run() else 0)
    for _ in range(50):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "" if status == 0 else f"status {status} of a process of its own"
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return ""


def work(seed: int, first: int, last: int, names: list[str], report: Path) -> None:
    """Runs the calls; the report says which one is under way, and what was found."""
    torch.set_num_threads(1)
    if not os.environ.get("ASAN_OPTIONS"):
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ops = [opreg.get(n) for n in names]
    with report.open("a") as file:
        for number in range(first, last):
            signal.alarm(SECONDS)
            call = Call(seed, number, ops)
            print(json.dumps([number, str(call), None]), file=file, flush=True)
            wrong = run_apart(call) if call.endless else call.run()
            signal.alarm(0)
            if wrong:
                print(json.dumps([number, str(call), wrong]), file=file, flush=True)


def environment(folder: Path | None) -> dict[str, str]:
    """That of a process whose library is the sanitized one in this folder."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if folder is None:
        return env
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    limits = "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=2048:detect_odr_violation=0"
    return {
        **env,
        "LD_PRELOAD": " ".join(found),
        "ASAN_OPTIONS": limits,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OPREG_LIBRARY": str(folder / "liblossreg.so"),
    }


def run(calls: int, seed: int = 0, folder: Path | None = None, first: int = 0, names: list[str] | None = None) -> list:
    """All findings: number, call, what was wrong. A process that ends is followed by another, from the next call on."""
    names = names or [op.short for op in of_namespace()]
    findings, next_call = [], first
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report"
        while next_call < first + calls:
            report.write_text("")
            words = ["--work", str(next_call), str(first + calls), str(report), "--seed", str(seed)]
            command = [sys.executable, __file__, *words, "--ops", *names]
            done = subprocess.run(command, env=environment(folder), capture_output=True, text=True)
            lines = [json.loads(line) for line in report.read_text().splitlines()]
            findings += [line for line in lines if line[2]]
            if done.returncode == 0:
                break
            if not lines:
                raise RuntimeError(f"no call was made: {done.stderr[-4000:]}")
            number, text, _ = lines[-1]
            wrong = f"ended with {done.returncode}: {excerpt(done.stderr)}"
            findings.append([number, text, wrong])
            next_call = number + 1
    return findings


def excerpt(report: str) -> str:
    """The lines that say what and where, of a sanitizer's report."""
    lines = report.splitlines()
    telling = [x for x in lines if "runtime error" in x or "ERROR: AddressSanitizer" in x or "csrc/" in x]
    return "\n    ".join(f"{x:.200}" for x in telling[:12] or lines[-12:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one call")
    parser.add_argument("--ops", nargs="*")
    parser.add_argument("--sanitized", type=Path, help="the build folder of a sanitized library")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(given.seed, int(given.work[0]), int(given.work[1]), given.ops, Path(given.work[2]))
        return 0
    first, calls = (0, given.calls) if given.only is None else (given.only, 1)
    start = time.monotonic()
    findings = run(calls, given.seed, given.sanitized, first, given.ops)
    for number, text, wrong in findings:
        print(f"{number}: {text}\n    {wrong}\n")
    print(f"{calls} calls, {len(findings)} findings, {time.monotonic() - start:.0f} s")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
