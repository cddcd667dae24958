"""Reads the sm_90 machine code of the CUDA kernels: what a warp does an iteration, and how much of memory it asks for.

``kernels(build)`` disassembles the objects of a build with NVIDIA's cuobjdump and nvdisasm. ``Kernel.hot`` is where a
kernel spends its time: one turn of its innermost loop over global memory, or all of its code where there is none. Of
ways that part, the one that moves most is followed, then the shortest: neither the ends that fill no pack nor the slow
paths for unusual values are what a kernel's time is made of.
"""

import dataclasses
import functools
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

ARCHITECTURE = "sm_90"

# A multiprocessor of that architecture.
REGISTERS, WARPS, SHARED, SCHEDULERS = 65536, 64, 227 << 10, 4


def tool(name: str) -> str | None:
    """The program of the package nvidia-cuda-NAME, or of the CUDA toolkit."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    found = [file for p in packages for file in sorted(p.glob(f"cu*/bin/{name}"))]
    return str(found[-1]) if found else shutil.which(name)


@dataclasses.dataclass(frozen=True)
class Instruction:
    guard: str  # the predicate, as @!P0; empty: always
    opcode: str
    operands: str

    def registers(self) -> list[int]:
        return [int(n) for n in re.findall(r"\bR(\d+)\b", self.operands)]

    @property
    def target(self) -> str | None:
        """Of a branch: the label."""
        found = re.search(r"`\(([^)]+)\)", self.operands)
        return found[1] if found else None

    def bytes_of(self, kinds: str) -> int:
        """What one thread moves, where this is an access of one of these kinds."""
        if not re.match(rf"({kinds})\b", self.opcode) or "STRONG" in self.opcode:
            return 0  # STRONG: what other blocks left, once a launch
        width = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
        return next((width[part] for part in self.opcode.split(".") if part in width), 4)


LOADS, STORES = "LDG|LDGSTS", "STG"
SLOW_PATH = 8  # instructions at most of what is run for unusual values alone, where it is no call
# Cycles of one scheduler's share of a pipe that one warp's instruction takes; each also takes one to issue.
PIPES = {
    "special": (r"MUFU|F2F|F2I|I2F(?!P)", 8),
    "double": (r"D(ADD|MUL|FMA|SETP)", 2),
    "memory": (r"LDG|STG|LDS|STS|LDGSTS|SHFL|ATOM|RED|LDL|STL", 4),
    "integer": (
        r"SHF|LOP3|IADD3|ISETP|FSETP|FSEL|FMNMX|SEL|PRMT|LEA|VIADD|VIMNMX|IMNMX|PLOP3|SGXT|MOV|BMSK|FCHK|I2FP|F2FP|LOP",
        2,
    ),
}


@dataclasses.dataclass(frozen=True)
class Block:
    """Instructions that run one after the other."""

    code: tuple[Instruction, ...]
    successors: tuple[int, ...]

    @property
    def calls(self) -> list[str]:
        return [i.target or "" for i in self.code if i.opcode.startswith("CALL")]


@dataclasses.dataclass(frozen=True)
class Region:
    """A way through a piece of a kernel."""

    code: tuple[Instruction, ...]
    calls: tuple[str, ...]
    is_loop: bool

    def bytes_of(self, kinds: str) -> int:
        return sum(i.bytes_of(kinds) for i in self.code)

    def widest(self, kinds: str) -> int:
        return max((i.bytes_of(kinds) for i in self.code), default=0)

    def count(self, opcode: str) -> int:
        return sum(bool(re.match(opcode, i.opcode)) for i in self.code)

    @functools.cached_property
    def in_flight(self) -> int:
        """Bytes that a thread has asked for and not yet waited for, at most: loads whose result nothing read so far."""
        waiting: dict[range, int] = {}
        most = 0
        for i in self.code * (2 if self.is_loop else 1):
            size, named = i.bytes_of(LOADS), i.registers()
            for result in [r for r in waiting if any(n in r for n in named)]:
                del waiting[result]
            if i.opcode.startswith(("LDGDEPBAR", "DEPBAR")):
                waiting = {r: n for r, n in waiting.items() if r.start < 256}
            if i.opcode.startswith("LDGSTS"):
                waiting[range(256 + len(waiting), 257 + len(waiting))] = size
            elif size:
                waiting[range(named[0], named[0] + max(1, size // 4))] = size
            most = max(most, sum(waiting.values()))
        return most

    def cycles(self) -> dict[str, int]:
        """Of one scheduler, for one warp."""
        found = {"issue": len(self.code)}
        for name, (opcodes, each) in PIPES.items():
            found[name] = each * self.count(rf"({opcodes})\b")
        # Multiplications of integers share a pipe of half the width.
        found["integer"] += self.count(r"IMAD(?!\.(MOV|U32))")
        return found


@dataclasses.dataclass(frozen=True)
class Resources:
    """What ptxas says of a function."""

    registers: int
    shared: int
    stack: int
    spills: int


class Kernel:
    def __init__(self, symbol: str, text: str, resources: Resources) -> None:
        self.symbol, self.text, self.resources = symbol, text, resources
        self.name = ""  # as a person writes it

    def blocks_a_multiprocessor(self, threads: int = 256, shared: int | None = None) -> int:
        warps = threads // 32
        each = -(-self.resources.registers // 8) * 8 * 32 * warps
        memory = (self.resources.shared if shared is None else shared) + 1024
        return max(1, min(REGISTERS // each, WARPS // warps, 32, SHARED // memory))

    @functools.cached_property
    def blocks(self) -> list[Block]:
        return parse(self.text)

    @functools.cached_property
    def loops(self) -> list[frozenset[int]]:
        """The blocks of each loop, outer ones first."""
        return natural_loops(self.blocks)

    def path(self, chosen: Iterable[int], is_loop: bool) -> list[int]:
        """The blocks of the way from the first to the last of these that moves most, and of those the shortest one."""
        inside = set(chosen)
        first = min(inside, key=lambda k: self.order.get(k, len(self.blocks)))
        traffic = f"{LOADS}|{STORES}"
        sizes = {k: [i.bytes_of(traffic) for i in self.blocks[k].code] for k in inside}
        # the elements of a pack, one after the other, are its end
        least = max((n for of in sizes.values() for n in of), default=0) / 2
        gain = {k: (sum(n for n in of if n >= least), -len(of)) for k, of in sizes.items()}
        in_order = sorted(inside & self.order.keys(), key=lambda k: self.order[k])
        after = {
            k: [s for s in self.blocks[k].successors if s in inside and self.order[s] > self.order[k]] for k in in_order
        }

        def aside(k: int) -> bool:
            """Is it a pack's end, element by element, or a call for unusual values?"""
            calls = any("slowpath" in name for name in self.blocks[k].calls)
            return calls or (bool(sum(sizes[k])) and not gain[k][0])

        def is_the_work(k: int, end: int) -> bool:
            """Is what lies between a block and one after it more than a slow path, and not a pack's end?"""
            shortest = {k: len(self.blocks[k].code)}
            narrow = {k: aside(k)}
            for b in in_order:
                if b not in shortest or b == end:
                    continue
                for s in after[b]:
                    length = shortest[b] + len(self.blocks[s].code)
                    if s not in shortest or length < shortest[s]:
                        shortest[s] = length
                        narrow[s] = narrow[b] or (aside(s) and s != end)
            return end in shortest and shortest[end] - len(self.blocks[end].code) > SLOW_PATH and not narrow[end]

        best = {first: (gain[first], [first])}
        ends = []
        for k in in_order:
            if k not in best:
                continue
            (moved, fewer), way = best[k]
            forward = after[k]
            if len(forward) == 2:
                # a guard around the work is passed: this thread has some
                forward = [s for s, other in (forward, forward[::-1]) if not is_the_work(other, s)] or forward
            if (first in self.blocks[k].successors) if is_loop else not after[k]:
                ends.append(k)
            for s in forward:
                value = (moved + gain[s][0], fewer + gain[s][1])
                if s not in best or value > best[s][0]:
                    best[s] = (value, [*way, s])
        last = max(ends or best, key=lambda k: best[k][0])
        return best[last][1]

    def region(self, way: Sequence[int], is_loop: bool) -> Region:
        blocks = [self.blocks[b] for b in way]
        code = tuple(i for b in blocks for i in b.code)
        return Region(code, tuple(name for b in blocks for name in b.calls), is_loop)

    @functools.cached_property
    def order(self) -> dict[int, int]:
        """The place of each block that can be reached, one after all that lead to it but for loops."""
        return {k: n for n, k in enumerate(reachable(self.blocks))}

    @functools.cached_property
    def hot_loop(self) -> frozenset[int] | None:
        def loads(loop: Iterable[int]) -> bool:
            blocks = [self.blocks[b] for b in loop]
            calls = any("read_at" in name for b in blocks for name in b.calls)
            return calls or any(i.bytes_of(LOADS) for b in blocks for i in b.code)

        def traffic(loop: Iterable[int]) -> tuple[int, int]:
            turn = self.region(self.path(loop, True), True)
            return turn.bytes_of(f"{LOADS}|{STORES}"), len(turn.code)

        touching = [loop for loop in self.loops if loads(loop)]
        inner = [loop for loop in touching if not any(other < loop for other in touching)]
        return max(inner, key=traffic, default=None)

    @functools.cached_property
    def hot(self) -> Region:
        """A turn of the innermost loop that moves most, or the whole body."""
        loop = self.hot_loop
        return self.region(self.path(range(len(self.blocks)) if loop is None else loop, loop is not None), bool(loop))

    @functools.cached_property
    def rest(self) -> Region:
        """What a thread runs besides, once."""
        if self.hot_loop is None:
            return Region((), (), False)
        way = self.path(range(len(self.blocks)), False)
        return self.region([k for k in way if k not in self.hot_loop], False)

    def in_flight(self, threads: int = 256) -> int:
        """Bytes that the resident threads of a multiprocessor have asked for at once."""
        return self.hot.in_flight * threads * self.blocks_a_multiprocessor(threads)


def parse(text: str) -> list[Block]:
    """The basic blocks of a function; what it calls is left out."""
    instruction = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
    parts: list[tuple[list[str], list[Instruction]]] = [([], [])]  # labels, code
    for line in text.splitlines():
        if line.startswith("$"):
            break
        if line.startswith(".L_"):
            if parts[-1][1]:
                parts.append(([], []))
            parts[-1][0].append(line.split(":")[0])
        elif m := instruction.match(line):
            parts[-1][1].append(Instruction(m[1] or "", m[2], m[3]))
            if m[2].startswith(("BRA", "EXIT", "RET", "BRX", "CALL")):
                parts.append(([], []))
    place = {label: k for k, (labels, _) in enumerate(parts) for label in labels}
    blocks = []
    for k, (_, code) in enumerate(parts):
        after = [k + 1] if k + 1 < len(parts) else []
        last = code[-1] if code else None
        if last and last.opcode.startswith("BRA"):
            always = not last.guard and last.operands.startswith("`")
            after = [] if always else after
            if last.target in place:
                after = [*after, place[last.target]]
        elif last and last.opcode.startswith(("EXIT", "RET", "BRX")) and not last.guard:
            after = []
        blocks.append(Block(tuple(code), tuple(after)))
    return blocks


def reachable(blocks: Sequence[Block]) -> list[int]:
    """Each block before those that it leads to, but for the way back of a loop."""
    order, seen, stack = [], {0}, [(0, iter(blocks[0].successors))]
    while stack:
        node, rest = stack[-1]
        for s in rest:
            if s not in seen:
                seen.add(s)
                stack.append((s, iter(blocks[s].successors)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


def natural_loops(blocks: Sequence[Block]) -> list[frozenset[int]]:
    """Of each header, the blocks that come back to it."""
    before: list[list[int]] = [[] for _ in blocks]
    for k, block in enumerate(blocks):
        for s in block.successors:
            before[s].append(k)
    order = reachable(blocks)
    seen = set(order)
    # the blocks that every way to a block goes through, as bits of a number
    dominators = dict.fromkeys(order, -1)
    dominators[0] = 1
    changed = True
    while changed:
        changed = False
        for k in order[1:]:
            through = -1
            for p in before[k]:
                if p in seen:
                    through &= dominators[p]
            through |= 1 << k
            if through != dominators[k]:
                dominators[k], changed = through, True
    loops: dict[int, set[int]] = {}
    for k in order:
        for header in blocks[k].successors:
            if dominators[k] >> header & 1:
                body = loops.setdefault(header, {header})
                todo = [k]
                while todo:
                    b = todo.pop()
                    if b not in body:
                        body.add(b)
                        todo.extend(p for p in before[b] if p in seen)
    return sorted((frozenset(body) for body in loops.values()), key=len, reverse=True)


def resources(log: str) -> dict[str, Resources]:
    """Of every kernel, from ptxas -v."""
    begin = rf"Compiling entry function '(\S+)' for '{ARCHITECTURE}'"
    entry = rf"{begin}\n.*?Function properties for \1\n(.*?)\n.*?Used ([^\n]*)"
    found = {}
    for m in re.finditer(entry, log, re.DOTALL):
        stack, stores, loads = map(int, re.findall(r"\d+", m[2]))
        shared = re.search(r"(\d+) bytes smem", m[3])
        registers = int(m[3].split()[0])
        found[m[1]] = Resources(registers, int(shared[1]) if shared else 0, stack, stores + loads)
    return found


def objects(build: Path) -> dict[str, Path]:
    """By family: of a build by CMake, or cubins in a folder."""
    found = sorted(build.glob("CMakeFiles/*_cuda.dir/lossreg.cu.o"))
    cubins = {file.stem: file for file in sorted(build.glob("*.cubin"))}
    return cubins | {file.parent.name.removesuffix("_cuda.dir"): file for file in found}


def functions(listing: str) -> Iterator[tuple[str, str]]:
    """Name and text of each."""
    for part in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        yield part.split(",")[0].strip('"'), re.split(r"^\s*\.section\s", part, maxsplit=1, flags=re.MULTILINE)[0]


@functools.cache
def kernels_of(file: Path) -> dict[str, Kernel]:
    """By symbol, of an object file or a cubin beside ptxas's log. float64 is there to verify, and left out."""
    nvdisasm, cuobjdump = tool("nvdisasm"), tool("cuobjdump")
    if nvdisasm is None or cuobjdump is None:
        raise RuntimeError("expected nvdisasm and cuobjdump, of nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump")
    is_cubin = file.suffix == ".cubin"
    known = resources((file.with_suffix(".log") if is_cubin else file.with_name(file.name + ".log")).read_text())
    found: dict[str, Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not is_cubin:
            command = [cuobjdump, "-xelf", ARCHITECTURE, str(file.resolve())]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for cubin in [file] if is_cubin else sorted(Path(folder).glob("*.cubin")):
            table = subprocess.run(["readelf", "-sW", cubin], check=True, capture_output=True, text=True).stdout
            symbol = re.compile(r"^\s*(\d+): .*\bFUNC\s+\w+\s+.*\s(_Z\S+)$", re.MULTILINE)
            chosen = [m[1] for m in symbol.finditer(table) if not re.match(r"_ZN7lossreg4cuda\d+[a-z_]+Id", m[2])]
            if not chosen:
                continue
            command = [nvdisasm, "-c", "-fun", ",".join(chosen), str(cubin)]
            listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found |= {name: Kernel(name, text, known[name]) for name, text in functions(listing) if name in known}
    plain = demangled(found)
    for name, kernel in found.items():
        kernel.name = plain[name]
    return found


def demangled(symbols: Iterable[str]) -> dict[str, str]:
    """Without namespaces and parameters: map_kernel<float, float, 1, 1, ...>."""
    symbols = list(symbols)
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    found = {}
    for symbol, name in zip(symbols, done.stdout.splitlines(), strict=True):
        name = re.sub(r"\b(void )?lossreg::(cuda::)?", "", name)
        depth = 0
        for at, c in enumerate(name):
            depth += (c == "<") - (c == ">" and name[at - 1] != "-")
            if c == "(" and depth == 0:
                name = name[:at]
                break
        found[symbol] = name
    return found


def kernels(build: Path, family: str | None = None) -> dict[str, Kernel]:
    """Of a build, or of one of its families, by symbol."""
    chosen = [file for name, file in objects(build).items() if family in (None, name)]
    return {symbol: kernel for file in chosen for symbol, kernel in kernels_of(file).items()}


def describe(kernel: Kernel) -> str:
    """A line for a person who works on the kernel."""
    hot, r = kernel.hot, kernel.resources
    where = "loop" if hot.is_loop else "body"
    return (
        f"{kernel.name}: {where} of {len(hot.code)} instructions, loads {hot.bytes_of(LOADS)} B (widest "
        f"{hot.widest(LOADS)}), stores {hot.bytes_of(STORES)} B (widest {hot.widest(STORES)}), in flight "
        f"{hot.in_flight} B a thread and {kernel.in_flight() / 1024:.0f} KB a multiprocessor, {r.registers} registers, "
        f"{r.shared} B shared, stack {r.stack}, spills {r.spills}, calls {sorted(set(hot.calls)) or 'none'}"
    )


if __name__ == "__main__":
    import sys

    # python tests/kernels/sass.py BUILD|FILE.cubin [FAMILY [NAME]]
    place, family, pattern = Path(sys.argv[1]), (sys.argv[2:] or [None])[0], re.compile((sys.argv[3:] or [""])[0])
    for each in (kernels_of(place) if place.is_file() else kernels(place, family)).values():
        if pattern.search(each.name):
            print(describe(each))
