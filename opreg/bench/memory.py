"""The peak of the extra memory of one call: beyond what was allocated before it, results included.

On the CPU torch's profiler reports every allocation and release of torch's allocator in the order in which they
happen; the peak is the largest running sum of what the call allocates and has not released. The release of an older
tensor doesn't count: the profiler knows of some, those that were allocated while it ran before, and which these are
changes from run to run. What a kernel takes from elsewhere (a ``std::vector`` of a worker thread, the work space of a
matrix product) is not seen. The process's resident memory would see it, but also the pages that glibc keeps, as the
benchmark tells it to. On a GPU: what torch's allocator says.
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
    events = profile.profiler.kineto_results.experimental_event_tree()
    changes = []
    while events:
        event = events.pop()
        events += event.children
        if event.tag.name == "Allocation":
            changes.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    held: dict[int, int] = {}
    now = peak = 0
    for _, address, size in sorted(changes, key=lambda c: c[0]):
        if size > 0:
            held[address] = size
            now += size
            peak = max(peak, now)
        else:
            now -= held.pop(address, 0)
    return peak
