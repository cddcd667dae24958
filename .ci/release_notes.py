"""What a release says of itself: the part of CHANGELOG.md that is of its version.

    python .ci/release_notes.py v0.1.0    # prints it; an error where the tag is not that of the package's version

A part of the workflow that makes wheels.
"""

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def version() -> str:
    """That of ``opreg/__init__.py``, from which the wheels have theirs."""
    found = re.search(r'^__version__ = "(.+)"$', (ROOT / "opreg" / "__init__.py").read_text(), re.MULTILINE)
    if not found:
        raise ValueError('opreg/__init__.py: expected a line __version__ = "...", got none')
    return found[1]


def notes(tag: str, changelog: str, of_package: str) -> str:
    """What stands under the version's heading, ``## [0.1.0]`` or ``## [0.1.0] - 2026-12-01``.

    Raises:
        ValueError: the tag is not ``v`` and the package's version, or the changelog has no such heading, or nothing
            under it.
    """
    if tag != f"v{of_package}":
        raise ValueError(f"expected the tag of the package's version, v{of_package}, got {tag}")
    heading = rf"^## \[{re.escape(of_package)}\](?: - \d{{4}}-\d\d-\d\d)?\n(.*?)(?=^## |\Z)"
    found = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if not found or not found[1].strip():
        raise ValueError(f"CHANGELOG.md: expected a heading ## [{of_package}], and what changed under it, got none")
    return found[1].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    try:
        print(notes(parser.parse_args().tag, (ROOT / "CHANGELOG.md").read_text(), version()))
    except ValueError as error:
        sys.exit(f"release_notes: {error}")


if __name__ == "__main__":
    main()
