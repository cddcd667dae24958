"""Processes with a gloo group, started once and reused: ``POOL.run(function, ...)`` calls it on each, and gives what
each returned."""

import atexit
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

PROCESSES = 4


def work(rank: int, processes: int, meeting: str, pipe: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    while True:
        job = pipe.recv()
        if job is None:
            break
        function, args, kwargs = job
        try:
            pipe.send((True, function(*args, **kwargs)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class Pool:
    def __init__(self, processes: int = PROCESSES) -> None:
        self.processes = processes
        self.pipes: list[Any] = []
        self.started: list[Any] = []

    def start(self) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        context = multiprocessing.get_context("spawn")
        meeting = str(Path(tempfile.mkdtemp()) / "meeting")
        for rank in range(self.processes):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(rank, self.processes, meeting, theirs), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.started.append(process)
        atexit.register(self.stop)

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 240, **kwargs: Any) -> list[Any]:
        """What each process returned, by rank. After an error they no longer wait for the same collective: they are
        ended, and the next call starts others."""
        if not self.pipes:
            self.start()
        for pipe in self.pipes:
            pipe.send((function, args, kwargs))
        results: dict[int, Any] = {}
        errors: list[str] = []
        deadline = time.monotonic() + timeout
        while len(results) < self.processes and time.monotonic() < deadline:
            waiting = {self.pipes[r]: r for r in range(self.processes) if r not in results}
            for pipe in wait(list(waiting), timeout=max(0.0, deadline - time.monotonic())):
                rank = waiting[pipe]
                good, results[rank] = pipe.recv()
                if not good:
                    errors.append(f"process {rank}:\n{results[rank]}")
                    deadline = min(deadline, time.monotonic() + 5)  # the others may wait for it
        if errors or len(results) < self.processes:
            self.stop()
            silent = sorted(set(range(self.processes)) - results.keys())
            raise AssertionError("\n".join([*errors, f"no answer from processes {silent}" if silent else ""]))
        return [results[r] for r in range(self.processes)]

    def stop(self) -> None:
        for process in self.started:
            process.kill()
        for process in self.started:
            process.join()
        self.pipes, self.started = [], []


POOL = Pool()
