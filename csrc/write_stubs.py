"""The package's stubs, made of its sources and of the library in OPREG_LIBRARY: a step of every installation.

python csrc/write_stubs.py PACKAGE    # the folder into which they go
"""

import sys
import tempfile
from importlib.machinery import PathFinder
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(package: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        # the package as it will be installed: meta/ is opreg.meta
        importable = Path(folder, "opreg")
        importable.mkdir()
        for part in (*(ROOT / "opreg").iterdir(), ROOT / "meta"):
            if not part.is_symlink():  # a checkout may have a link to meta/ there
                (importable / part.name).symlink_to(part)
        sys.path.insert(0, folder)
        # an editable installation has a finder of its own, which would find the opreg of another checkout first
        sys.meta_path.insert(0, PathFinder)
        sys.dont_write_bytecode = True
        from opreg.faces import stubs

        stubs.write(Path(package))


if __name__ == "__main__":
    main(sys.argv[1])
