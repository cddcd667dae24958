"""What a library asks of the machine that it is sent to: its undefined symbols, and the manylinux tag they amount to.

    python .ci/tag_wheel.py DIRECTORY    # gives each wheel there the tag of the library inside
    python .ci/tag_wheel.py DIRECTORY --build 0cpu    # and a build tag: a release has several wheels of one platform

A part of `make wheel`, and of tests/shipping/test_abi.py.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# The libstdc++ of the oldest distribution with a glibc (auditwheel's policies): GLIBCXX_3.4.N needs glibc 2.M.
LIBSTDCXX = {19: 17, 24: 27, 28: 31, 29: 34, 30: 35, 32: 38, 33: 39}
OLDEST = 17  # manylinux2014
# By the number that a library has of its processor (e_machine of ELF), the name that wheels have of it.
PROCESSORS = {62: "x86_64", 183: "aarch64"}


@dataclass(frozen=True)
class Symbol:
    name: str
    version: str  # "GLIBC_2.34", or "" where the library that has it gives none
    weak: bool


def undefined(library: Path) -> list[Symbol]:
    """The dynamic symbols that other libraries must have."""
    lines = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    symbols = []
    for line in lines:
        kind, name = line.split()
        name, _, version = name.partition("@")
        symbols.append(Symbol(name, version.lstrip("@"), kind in "wv"))
    return symbols


def needed(library: Path) -> list[str]:
    """The libraries that it is linked to."""
    lines = subprocess.run(["readelf", "--dynamic", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", lines)


def glibc_floor(symbols: list[Symbol]) -> int:
    """M of the oldest glibc 2.M that has them, and whose distributions have the libstdc++ that has them."""

    def floors() -> Iterator[int]:
        yield OLDEST
        for symbol in symbols:
            library, _, version = symbol.version.partition("_")
            numbers = [int(part) for part in version.split(".")] if version else []
            if library == "GLIBC":
                yield numbers[1]
            elif library == "GLIBCXX" and len(numbers) == 3:
                fitting = [glibc for newest, glibc in LIBSTDCXX.items() if newest >= numbers[2]]
                if not fitting:
                    raise ValueError(f"{symbol.name}: expected GLIBCXX_3.4.{max(LIBSTDCXX)} at most, got {version}")
                yield min(fitting)

    return max(floors())


def platform_tag(library: Path) -> str:
    number = int.from_bytes(library.read_bytes()[18:20], "little")
    if number not in PROCESSORS:
        raise ValueError(
            f"{library.name}: expected a library for {' or '.join(PROCESSORS.values())}, got ELF's {number}"
        )
    return f"manylinux_2_{glibc_floor(undefined(library))}_{PROCESSORS[number]}"


def retag(wheel: Path, build: str = "") -> Path:
    """The wheel under the name that says where its library runs; one that has it already is left alone.

    Args:
        wheel: as it was built; it goes.
        build: a build tag, which tells wheels of one version and platform apart; digits come first.
    """
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        libraries = [name for name in archive.namelist() if name.endswith(".so")]
        if len(libraries) != 1 or not Path(libraries[0]).match("opreg/lib*.so"):
            raise ValueError(f"{wheel.name}: expected opreg/lib*.so and no other library, got {libraries}")
        tag = platform_tag(Path(archive.extract(libraries[0], folder)))
    if wheel.stem.endswith(tag) and not build:
        return wheel
    command = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag]
    command += [*(["--build", build] if build else []), str(wheel)]
    return wheel.with_name(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--build", default="", help="a build tag, as 0cpu")
    options = parser.parse_args()
    for wheel in sorted(options.directory.glob("opreg-*.whl")):
        print(retag(wheel, options.build))


if __name__ == "__main__":
    main()
