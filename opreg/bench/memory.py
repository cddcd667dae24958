"""The peak of the extra memory of one call: beyond what was allocated before it, results included.

On the CPU torch's profiler reports every allocation and release of torch's allocator in the order in which they
happen; the peak is the largest running sum. What a kernel takes from elsewhere (a ``std::vector`` of a worker thread,
the work space of a matrix product) is not seen. The process's resident memory would see it, but also the pages that
glibc keeps, as the benchmark tells it to. On a GPU: what torch's allocator says.
"""

import os

import torch

from .timing import Call


def peak_memory(call: Call, device: str = "cpu") -> int:
    """Bytes. The call has run before, so that what is made once and kept does not count."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or it writes two lines a call to stderr
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        result = call()
    del result
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
