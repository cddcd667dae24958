"""How far a run is, on stderr, with an estimate of the rest."""

import sys
import time
from typing import Any


class Plain:
    """The progress in lines, one a call: where there is no tqdm, and where nobody looks at a terminal."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.start = total, 0, time.monotonic()

    def update(self, n: int = 1) -> None:
        self.done += n

    def set_description(self, text: str) -> None:
        seconds = time.monotonic() - self.start
        rest = f", about {seconds / self.done * (self.total - self.done) / 60:.0f} min left" if self.done else ""
        print(f"{self.done}/{self.total} {text}{rest}", file=sys.stderr)

    def close(self) -> None:
        pass


def progress_bar(total: int) -> Any:
    """tqdm's on a terminal; lines where stderr is a file or a pipe, which a bar would fill with copies of itself."""
    if not sys.stderr.isatty():
        return Plain(total)
    try:
        from tqdm import tqdm  # type: ignore[import-untyped]
    except ImportError:
        print("tqdm is not installed (pip install 'opreg[bench]'): no progress bar", file=sys.stderr)
        return Plain(total)
    return tqdm(total=total, unit="part", smoothing=0)
