"""DTensor takes what a user registers for an op and for its backward op: two processes give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sharded_losses import CASES, inputs
from torch import Tensor

import opreg

PROCESSES = 2
Result = tuple[list[str], Tensor, Tensor | None, Tensor | None]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[list[Result]]:
    """Of each process, each case: placements, the whole loss, the whole gradients in input and target."""
    folder, program = tmp_path_factory.mktemp("sharded"), Path(__file__).with_name("sharded_losses.py")
    environment = {**os.environ, "OPREG_LIBRARY": str(opreg.library_path()), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, program, folder, str(rank), str(PROCESSES)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(PROCESSES)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert all(process.returncode == 0 for process in started), "\n".join(said)
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{r}-{'+'.join(map(str, g))}" for g, r, _ in CASES])
def test_two_processes_give_what_one_gives(results: list[list[Result]], case: int) -> None:
    needs_grad, reduction, batch = CASES[case]
    x, t = (a.requires_grad_(needed) for a, needed in zip(inputs(batch), needs_grad, strict=True))
    loss = torch.ops.lossreg.focal_loss(x, t, reduction=reduction)
    loss.sum().backward()
    for of_process in results:
        placements, value, *gradients = of_process[case]
        # the batch stays sharded, forwards and backwards
        assert placements == ["S(0)" if reduction == "none" else "P(sum)"] + ["S(0)"] * sum(needs_grad)
        torch.testing.assert_close(value, loss.detach())
        for got, want in zip(gradients, (x.grad, t.grad), strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want)
