"""The CUDA text of ops that are Python functions, of each kind, in the emulator."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT

PROGRAM = """
import sys
from pathlib import Path

import torch
from torch import Tensor

import emulated
import opreg
from test_emulator import compare

@opreg.pointwise("emitted", domain={"width": "> 0"})
def cauchy_loss(input: Tensor, target: Tensor, weight: Tensor | None = None, *, width: float = 1.0) -> Tensor:
    loss = width**2 / 2 * torch.log(1 + ((input - target) / width) ** 2)
    return loss if weight is None else loss * weight

@opreg.pointwise("emitted", domain={"beta": "> 0"})
def softplus_beta(input: Tensor, *, beta: float = 1.0) -> Tensor:
    return torch.log(1 + torch.exp(beta * input)) / beta

@opreg.row("emitted")
def poly1_loss(nll: Tensor, *, eps: float = 1.0, squared: bool = False) -> Tensor:
    loss = nll + eps * (1 - torch.exp(-nll))
    return loss**2 if squared else loss

@opreg.region("emitted", domain={"smooth": "> 0"})
def log_dice_loss(tp: Tensor, fp: Tensor, fn: Tensor, *, smooth: float = 1.0, squared: bool = False) -> Tensor:
    loss = -torch.log((2 * tp + smooth) / (2 * tp + fp + fn + smooth))
    return loss**2 if squared else loss

@opreg.row("emitted")
def confident_loss(nll: Tensor, entropy: Tensor, *, beta: float = 0.1) -> Tensor:
    return nll - beta * entropy

made = [cauchy_loss, softplus_beta, poly1_loss, confident_loss, log_dice_loss]
folder = Path(sys.argv[1])
texts = [opreg.emit(f).replace("using Ops =", f"using Ops{k} =") for k, f in enumerate(made)]
lists = ", ".join(f"Ops{k}" for k in range(len(made)))
family = folder / "emitted.h"
family.write_text("".join(texts) + f"namespace lossreg {{\\nusing Ops = Family<{lists}>;\\n}}\\n")
emulator = emulated.load(family, folder / "build")
for f in made:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 1e-2)):
        for sample in f.op.samples(opreg.testing.Maker(dtype, requires_grad=True)):
            compare(emulator, f.op, sample, tolerance)
    print(f.op.short, len(emulator.launched()))
"""


@pytest.mark.slow
def test_kernels_of_each_kind(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = [str(ROOT / "tests"), str(ROOT / "tests" / "kernels"), str(ROOT / "tests" / "gpu"), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path))}
    command = [sys.executable, str(program), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    launched = dict(re.findall(r"(\w+) (\d+)", done.stdout))
    assert launched.keys() == {"cauchy_loss", "softplus_beta", "poly1_loss", "confident_loss", "log_dice_loss"}
    assert all(int(count) > 1 for count in launched.values())
