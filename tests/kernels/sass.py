"""Reads the sm_90 machine code of the CUDA kernels: what a warp does an iteration, and how much of memory it asks for.

``kernels(build)`` disassembles the objects of a build with NVIDIA's cuobjdump and nvdisasm. ``Kernel.hot`` is where a
kernel spends its time: its innermost loop over global memory, or all of its code where there is none.
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
        if not re.match(rf"({kinds})\b", self.opcode):
            return 0
        width = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16, "256": 32}
        return next((width[part] for part in self.opcode.split(".") if part in width), 4)


LOADS, STORES = "LDG|LDGSTS", "STG"
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

    @property
    def is_slow_path(self) -> bool:
        """Runs for values out of the usual range alone."""
        return any("slowpath" in name for name in self.calls)


@dataclasses.dataclass(frozen=True)
class Region:
    """A piece of a kernel, in the order of its addresses, without its slow paths."""

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

    def region(self, chosen: Iterable[int], is_loop: bool) -> Region:
        blocks = [self.blocks[b] for b in sorted(chosen)]
        fast = [b for b in blocks if not b.is_slow_path]
        code = tuple(i for b in fast for i in b.code)
        return Region(code, tuple(name for b in fast for name in b.calls), is_loop)

    @functools.cached_property
    def hot_blocks(self) -> frozenset[int] | None:
        def traffic(loop: Iterable[int]) -> int:
            return self.region(loop, True).bytes_of(f"{LOADS}|{STORES}")

        def loads(loop: Iterable[int]) -> int:
            return self.region(loop, True).bytes_of(LOADS) or any(
                "read_at" in name for b in loop for name in self.blocks[b].calls
            )

        touching = [loop for loop in self.loops if loads(loop)]
        inner = [loop for loop in touching if not any(other < loop for other in touching)]
        return max(inner, key=lambda loop: (traffic(loop), len(loop)), default=None)

    @functools.cached_property
    def hot(self) -> Region:
        """The innermost loop that moves most, or the whole body."""
        blocks = self.hot_blocks
        return self.region(range(len(self.blocks)) if blocks is None else blocks, blocks is not None)

    @functools.cached_property
    def rest(self) -> Region:
        """Everything but the innermost loops over memory."""
        inner = self.hot_blocks
        if inner is None:
            return Region((), (), False)
        # what finishes a vectorised loop, element by element, is not run by the same threads
        small = [loop for loop in self.loops if not any(other < loop for other in self.loops)]
        left = set(range(len(self.blocks))) - inner - set().union(*small)
        return self.region(left, False)

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


def natural_loops(blocks: Sequence[Block]) -> list[frozenset[int]]:
    """Of each header, the blocks that come back to it."""
    before: list[list[int]] = [[] for _ in blocks]
    for k, block in enumerate(blocks):
        for s in block.successors:
            before[s].append(k)
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
    order.reverse()
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
    """By family."""
    found = sorted(build.glob("CMakeFiles/*_cuda.dir/lossreg.cu.o"))
    return {file.parent.name.removesuffix("_cuda.dir"): file for file in found}


def functions(listing: str) -> Iterator[tuple[str, str]]:
    """Name and text of each."""
    for part in re.split(r"^\s*\.section\s+\.text\.", listing, flags=re.MULTILINE)[1:]:
        yield part.split(",")[0].strip('"'), re.split(r"^\s*\.section\s", part, maxsplit=1, flags=re.MULTILINE)[0]


@functools.cache
def kernels_of(file: Path) -> dict[str, Kernel]:
    """By symbol, of an object file beside ptxas's log. float64 is there to verify, and left out."""
    nvdisasm, cuobjdump = tool("nvdisasm"), tool("cuobjdump")
    if nvdisasm is None or cuobjdump is None:
        raise RuntimeError("expected nvdisasm and cuobjdump, of nvidia-cuda-nvdisasm and nvidia-cuda-cuobjdump")
    known = resources(file.with_name(file.name + ".log").read_text())
    found: dict[str, Kernel] = {}
    with tempfile.TemporaryDirectory() as folder:
        command = [cuobjdump, "-xelf", ARCHITECTURE, str(file)]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        for cubin in sorted(Path(folder).glob("*.cubin")):
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

    # python tests/kernels/sass.py BUILD [FAMILY [NAME]]
    pattern = re.compile(sys.argv[3] if len(sys.argv) > 3 else "")
    for each in kernels(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None).values():
        if pattern.search(each.name):
            print(describe(each))
