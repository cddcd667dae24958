"""The machine that a benchmark ran on."""

import os
import platform
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import __version__


def machine(device: str) -> dict[str, Any]:
    """What the times depend on; ``load`` is how many processes wanted a core before the benchmark."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    return {
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        "torch": torch.__version__,
        "opreg": __version__,
        "python": platform.python_version(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
