"""Where torch's functions are to be torch's, whatever ``opreg.use`` does with their calls elsewhere.

An op's definition calls the native function that the op stands for, and so may a kernel in Python.
"""

import threading
from typing import Any


class _Thread(threading.local):
    depth = 0


THREAD = _Thread()


class NativeCalls:
    """A context: in this thread, no call is sent to an op."""

    def __enter__(self) -> None:
        THREAD.depth += 1

    def __exit__(self, *_: Any) -> None:
        THREAD.depth -= 1
