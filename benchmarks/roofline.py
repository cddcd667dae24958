"""A model of a GPU, and what it says of a kernel: how long it takes, and what bounds it. No GPU is needed.

A kernel takes as long as the slowest of: its bytes through memory, its sectors through the second-level cache, its
instructions through the schedulers and the pipes, and the waiting for memory that its threads cannot hide. What it asks
of memory is counted in the emulator (tests/kernels/emulated.py), instructions and loads under way are read off the
machine code (tests/kernels/sass.py). Bound by bytes a prediction should hold within 15 %, by instructions within 30 %,
by latency within 40 %.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from emulated import Launch
from sass import LOADS, STORES, Kernel


@dataclass(frozen=True)
class Machine:
    """The constants of the model. ``make gpu-check`` measures the first four where there is a GPU."""

    bandwidth: float = 3.0e12  # bytes a second that a copy moves
    launch: float = 2.0e-6  # seconds from the end of a kernel to that of the next, which does nothing
    latency: float = 700.0  # cycles from a load to its value, from memory
    near_latency: float = 40.0  # cycles, from a processor's own cache
    clock: float = 1.7e9  # cycles a second under load
    processors: int = 132
    schedulers: int = 4  # of a processor
    sectors: float = 170e9  # of 32 bytes that the second-level cache hands out a second
    near: float = 4.0  # sectors that a processor's own cache hands out a cycle
    products: Mapping[str, float] = frozenset({"bfloat16": 650e12, "float32": 55e12}.items())  # type: ignore[assignment]

    def products_of(self, dtype: str) -> float:
        """Floating-point operations a second in large matrix products."""
        return dict(self.products)[dtype]


H100 = Machine()


@dataclass(frozen=True)
class Prediction:
    seconds: float
    bound: str  # bytes, sectors, issue, a pipe's name, latency, launches, products

    def __add__(self, other: "Prediction") -> "Prediction":
        longer = self if self.seconds >= other.seconds else other
        return Prediction(self.seconds + other.seconds, longer.bound)


def slowest(times: Mapping[str, float]) -> Prediction:
    bound = max(times, key=lambda name: times[name])
    return Prediction(times[bound], bound)


READ_INSTRUCTIONS = 30  # of a call that reads an element of any dtype


def trips(launch: Launch, kernel: Kernel) -> float:
    """How often a thread goes through the hot part of its kernel, from what it loaded and stored."""
    ran = launch.ran * launch.threads
    loaded, stored = kernel.hot.bytes_of(LOADS), kernel.hot.bytes_of(STORES)
    if not kernel.hot.is_loop:
        return 1.0
    if stored:
        return launch.stores.bytes / stored / ran
    if loaded:
        return launch.loads.bytes / loaded / ran
    return launch.loads.requests * 32 / max(1, element_calls(kernel)) / ran


def element_calls(kernel: Kernel) -> int:
    return sum(bool(re.search("read_at|write_at", name)) for name in kernel.hot.calls)


def of_launch(launch: Launch, kernel: Kernel | None, machine: Machine = H100) -> Prediction:
    scale = launch.blocks / max(1, launch.ran)
    times = {
        "launches": 0.0,
        "bytes": 32 * scale * (launch.loads.distinct + launch.stores.distinct) / machine.bandwidth,
        # what threads load again soon stays near them; what they store goes on, a sector for each piece of it
        "sectors": scale * (launch.loads.distinct + launch.stores.sectors) / machine.sectors,
        "first cache": scale * launch.loads.sectors / (machine.near * machine.processors * machine.clock),
    }
    if kernel is not None and launch.ran:
        hot, rest, calls = kernel.hot, kernel.rest, element_calls(kernel)
        rounds, warps = trips(launch, kernel), launch.blocks * launch.threads / 32
        used = min(machine.processors, launch.blocks)
        outside = rest.cycles()
        for name, cycles in hot.cycles().items():
            extra = READ_INSTRUCTIONS * calls if name == "issue" else 0
            of_warp = (cycles + extra) * rounds + outside[name]
            times[name] = warps * of_warp / (used * machine.schedulers * machine.clock)
        # a thread waits once for what it has under way together, and at its beginning and end
        waits = (math.ceil(hot.bytes_of(LOADS) / hot.in_flight) if hot.in_flight else calls) * rounds + 2
        places = machine.processors * kernel.blocks_a_multiprocessor(launch.threads)
        # what is loaded again comes from near
        far = min(1.0, 32 * launch.loads.distinct / max(1, launch.loads.bytes))
        cycles_a_wait = far * machine.latency + (1 - far) * machine.near_latency
        times["latency"] = math.ceil(launch.blocks / places) * waits * cycles_a_wait / machine.clock
    return slowest(times)


def of_operator(line: str, dtype: str, machine: Machine = H100) -> Prediction:
    """An operator of torch that an op calls: its name and the sizes of its first tensors."""
    name, *sizes = line.split(" ")
    shapes = [[int(n) for n in s.split("x") if n] for s in sizes]
    numel, width = math.prod(shapes[0]) if shapes else 0, 2 if dtype == "bfloat16" else 4
    if name.startswith(("aten::mm", "aten::addmm")):
        (m, k), (_, n) = shapes[:2]
        moved = width * (m * k + k * n + m * n)
        return slowest({"products": 2 * m * n * k / machine.products_of(dtype), "bytes": moved / machine.bandwidth})
    if re.match("aten::(empty|reshape|view|contiguous|convolution|matmul)", name):
        return Prediction(0.0, "launches")  # views of what is dense; products that are told by their operations
    # four passes over keys of 4 and places of 8 bytes, read and written
    moved = 96 * numel if name.startswith("aten::sort") else 2 * width * numel
    return Prediction(moved / machine.bandwidth, "bytes")


def total(parts: Sequence[Prediction], machine: Machine = H100) -> Prediction:
    """One after the other, each after a launch."""
    busy = sum(p.seconds for p in parts)
    waiting = machine.launch * len(parts)
    if not parts or waiting > busy:
        return Prediction(busy + waiting, "launches")
    return Prediction(busy + waiting, max(parts, key=lambda p: p.seconds).bound)


class Eager(TorchDispatchMode):
    """What ATen's operators move and compute, from the sizes of their tensors.

    Each reads its inputs once and writes its results once, but for those that write all losses before they add them up.
    """

    UNFUSED = ("mse_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "soft_margin_loss")

    def __init__(self, machine: Machine = H100) -> None:
        super().__init__()
        self.machine, self.parts, self.flops = machine, list[Prediction](), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        inputs = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        outputs = [a for a in tree_leaves(result) if isinstance(a, Tensor)]
        aliases = [a.alias_info for a in func._schema.returns]
        is_view = any(a is not None and not a.is_write for a in aliases) or func._schema.name in (
            "aten::_unsafe_view", "aten::detach", "aten::empty", "aten::empty_like", "aten::empty_strided",
        )  # fmt: skip
        if is_view:
            return result
        moved = sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (*inputs, *outputs))
        times = {"bytes": moved / self.machine.bandwidth}
        if count := flop_registry.get(func._overloadpacket):
            flops = count(*args, **kwargs, out_val=result)
            self.flops += flops
            dtype = "bfloat16" if outputs[0].dtype in (torch.bfloat16, torch.float16) else "float32"
            times["products"] = flops / self.machine.products_of(dtype)
        self.parts.append(slowest(times))
        if func._schema.name.removeprefix("aten::") in self.UNFUSED and outputs[0].numel() == 1:
            times["bytes"] += inputs[0].nbytes / self.machine.bandwidth
            self.parts[-1] = slowest(times)
            self.parts.append(Prediction(inputs[0].nbytes / self.machine.bandwidth, "bytes"))
        return result


def of_eager(call: Callable[[], Any], wanted: Sequence[Tensor]) -> dict[str, tuple[Prediction, int]]:
    """The passes of a call on meta tensors, and their floating-point operations in products."""
    found = {}
    with Eager() as mode:
        result = call()
        found["forward"] = total(mode.parts), mode.flops
    if wanted:
        with Eager() as mode:
            results = tree_leaves(result)
            torch.autograd.grad(results, wanted, [torch.empty_like(t) for t in results])
            found["backward"] = total(mode.parts), mode.flops
    return found
