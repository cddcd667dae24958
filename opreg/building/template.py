"""A package of ops of one's own, to begin with: ``python -m opreg new NAME``."""

import re
from pathlib import Path

_HERE = Path(__file__).parent
_NAME = "mylib"


def template() -> Path:
    """The package that is copied: ``examples/own_package`` of a checkout."""
    installed = _HERE / "own_package"
    return installed if installed.is_dir() else _HERE.parents[1] / "examples" / "own_package"


def write_package(name: str, folder: Path) -> list[Path]:
    """Writes a package of this name into a folder that is not there yet. Returns its files.

    Raises:
        ValueError: the name is none for a namespace of ops.
        FileExistsError: the folder is there.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"opreg: expected a name of small letters, digits and _, got {name!r}")
    if folder.exists():
        raise FileExistsError(f"opreg: expected a folder that is not there yet, got {folder}")
    written = []
    for source in sorted(template().rglob("*")):
        if source.is_file() and source.suffix not in (".so", ".pyc"):
            target = folder / str(source.relative_to(template())).replace(_NAME, name)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(source.read_text().replace(_NAME, name))
            written.append(target)
    return written
