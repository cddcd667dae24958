"""The loop that a formula became in the library: what GNU binutils say of its machine code."""

import re
import shutil
import subprocess
from pathlib import Path

import opreg

# The loops over contiguous float32 operands, compiled for AVX-512.
LOOPS = {
    "value": r"3cpu8map_loopIfLi\d+ELi1ELb0ENS_9ValueBodyINS_{struct}E.*EfEEv.*\.arch_x86_64_v4$",
    "gradient": r"3cpu8map_loopIfLi\d+ELi1ELb0ENS_8GradBodyINS_{struct}E.*EfEEv.*\.arch_x86_64_v4$",
}


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def hot_loop(disassembly: str) -> list[str]:
    """The instructions of the innermost loop that works on the widest registers."""
    found = re.findall(r"^\s*([0-9a-f]+):\s+(\S.*?)\s*$", disassembly, re.MULTILINE)
    addresses = [int(address, 16) for address, _ in found]
    bodies = []
    for i, (_, text) in enumerate(found):
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        target = int(jump[1], 16) if jump else -1
        if jump and target in addresses[: i + 1]:
            bodies.append([t for _, t in found[addresses.index(target) : i + 1]])
    wide = [body for body in bodies if any("zmm" in line for line in body)]
    return min(wide, key=len, default=[])


def loops(struct: str) -> dict[str, list[str]]:
    """Value and gradient loop of a formula's struct; none where the library or the machine does not show them."""
    libraries = [str(path) for path in [opreg.library_path()] if Path(path).exists()]
    if not libraries or not all(map(shutil.which, ("nm", "objdump"))):
        return {}
    symbols = [line.split()[-1] for line in _output("nm", libraries[0]).splitlines()]
    result = {}
    for name, pattern in LOOPS.items():
        mangled = pattern.format(struct=f"{len(struct)}{struct}")
        for symbol in (s for s in symbols if re.search(mangled, s)):
            shown = _output("objdump", "--no-show-raw-insn", f"--disassemble={symbol}", libraries[0])
            if body := hot_loop(shown):
                result[name] = [re.sub(r"\s*<.*>$", "", re.sub(r"\s+", " ", line)) for line in body]
    return result


def text(struct: str) -> str:
    """For the guide, in Markdown."""
    found = loops(struct)
    if not found:
        return (
            "On a machine with GNU binutils, and a library with its symbols, the loops of the CPU kernel stand here:\n"
            "`objdump --disassemble` of `map_loop` shows them."
        )
    parts = ["What the compiler made of it for AVX-512, float32: one turn of the loop is 16 elements a register."]
    for name, body in found.items():
        parts.append(f"The {name}, {len(body)} instructions:\n\n```text\n" + "\n".join(body) + "\n```")
    return "\n\n".join(parts)
