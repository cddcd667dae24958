"""What was compiled, kept by all that it was made of: a folder for each text, in it one for each state of the headers
that the text includes.

    OPREG_CACHE/KEY/lock              held by whoever compiles
    OPREG_CACHE/KEY/DIGEST/           the library, and depends.json: the headers that it was made of
"""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_DEPENDS = "depends.json"
_MAKING = "making-"


def folder() -> Path:
    """Where everything is kept: ``OPREG_CACHE``, else ``opreg`` in the user's folder for caches."""
    if chosen := os.environ.get("OPREG_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opreg"


def digest(*parts: object) -> str:
    """The same number for the same parts in every process."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:20]


def digest_of_files(paths: list[Path]) -> str:
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


def find(key: str) -> Path | None:
    """The library of this key, if there is one whose headers are what they were."""
    for depends in sorted((folder() / key).glob(f"*/{_DEPENDS}")):
        if depends.parent.name.startswith(_MAKING):  # another process is about to move it
            continue
        made_of: dict[str, str] = json.loads(depends.read_text())
        library = next(depends.parent.glob("lib*.so"), None)
        if library is not None and made_of == _digests(made_of):
            return library
    return None


def _digests(paths: Mapping[str, str] | list[str]) -> dict[str, str]:
    return {p: digest_of_files([Path(p)]) if Path(p).is_file() else "" for p in paths}


@contextmanager
def lock(key: str) -> Iterator[None]:
    """Held by one at a time, in this process or another; the system takes it back from one that dies."""
    place = folder() / key
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (place / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise PermissionError(
            f"opreg.build: expected a folder that can be written to, got {folder()}; set OPREG_CACHE to one"
        ) from error


@contextmanager
def workspace(key: str) -> Iterator[Path]:
    """A folder to compile in, which is gone afterwards unless ``keep`` took it."""
    made = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder() / key))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def keep(key: str, library: Path, headers: list[str]) -> Path:
    """Moves the library, and its folder, to where ``find`` looks. ``headers`` are those that it was made of."""
    made_of = _digests(headers)
    place = folder() / key / digest(made_of)
    (library.parent / _DEPENDS).write_text(json.dumps(made_of))
    if place.exists():  # it lost its library
        shutil.rmtree(place)
    library.parent.rename(place)
    return place / library.name


def link(name: str, target: Path) -> Path:
    """A folder that holds a link of this name to the target, and nothing else."""
    place = folder() / "links" / digest(str(target))
    if not (place / name).is_dir():
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        made = place / f"{name}-{os.getpid()}"
        made.symlink_to(target)
        made.replace(place / name)
    return place
