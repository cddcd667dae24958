"""opreg as a kernel of a hub: ``python -m opreg hub FOLDER`` writes what ``kernels.get_local_kernel`` loads."""

import hashlib
import json
import platform
import re
import shutil
from pathlib import Path

import torch

from . import __version__, meta
from ._library import library_path, toolkit_of

_HERE = Path(__file__).parent
# The oldest torch whose stable ABI the library is compiled for: TORCH_TARGET_VERSION of csrc.
_ABI = "211"


def backend() -> str:
    """As the variant's name has it: ``cpu``, or where torch and the library have CUDA, ``cu130`` of toolkit 13.0."""
    toolkit = toolkit_of(library_path()) if torch.version.cuda else ""
    return "cu" + "".join(toolkit.split(".")[:2]) if toolkit else "cpu"


def write_kernel(folder: Path, name: str = "opreg") -> list[Path]:
    """Writes the installed package into ``folder/build/VARIANT``, where the Hub's loader looks for it.

    The variant is that of the stable ABI, for every torch from 2.11 on. Where the package and the kernel are to be in
    one process, build the kernel's library with a namespace of its own, ``-DLOSSREG_NAMESPACE=opreg_hub``, and name it
    in ``OPREG_LIBRARY`` when this runs.

    Args:
        folder: of the kernel; a variant that is there already is refused.
        name: of the kernel: small letters, digits and -.

    Raises:
        ValueError: the name is none for a kernel.
        FileExistsError: the variant is there.
    """
    if not re.fullmatch("[a-z][a-z0-9-]*", name):
        raise ValueError(f"opreg: expected a kernel's name of small letters, digits and -, got {name!r}")
    system = f"{platform.machine()}-{platform.system().lower()}"
    variant = folder / "build" / f"torch-stable-abi{_ABI}-{backend()}-{system}"
    if variant.exists():
        raise FileExistsError(f"opreg: expected a folder that is not there yet, got {variant}")
    unwanted = shutil.ignore_patterns("__pycache__", "lib*.so", "own_package", "include", "*.pyi")
    shutil.copytree(_HERE, variant, ignore=unwanted)
    # in a checkout it lies elsewhere
    shutil.copytree(Path(meta.__file__).parent, variant / "meta", ignore=unwanted, dirs_exist_ok=True)
    library = shutil.copy(library_path(), variant / "libopreg.so")
    text = b"".join(f.read_bytes() for f in sorted(variant.rglob("*")) if f.is_file())
    kind = "cpu" if backend() == "cpu" else "cuda"
    facts = {
        "id": f"_{name.replace('-', '_')}_{kind}_{hashlib.sha256(text).hexdigest()[:12]}",
        "name": name,
        "version": int(__version__.split(".")[0]),
        "license": "BSD-3-Clause",
        "python-depends": [],
        "backend": {"type": kind},
    }
    (variant / "metadata.json").write_text(json.dumps(facts, indent=1) + "\n")
    return [Path(library), variant / "metadata.json"]
