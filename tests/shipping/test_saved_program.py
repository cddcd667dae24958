"""A saved ExportedProgram in a process of its own: with opreg it gives the same numbers, without it a clear message."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import opreg

ops = torch.ops.lossreg

# A program with the gradients of opreg 0.1 in it, whose backward ops returned a list of those that were asked for.
SAVE_0_1 = """
lib = torch.library.Library("lossreg", "DEF")
lib.define("mish_backward(Tensor grad_output, Tensor input, *, bool[1] output_mask) -> Tensor[]")
lib.define(
    "mse_loss_backward(Tensor grad_output, Tensor input, Tensor target, str reduction='mean', *, bool[2] output_mask)"
    " -> Tensor[]"
)
lib.impl("mish_backward", lambda g, x, output_mask: [g * x], "CompositeExplicitAutograd")
lib.impl("mse_loss_backward", lambda g, x, t, output_mask: [g * (t - x)], "CompositeExplicitAutograd")

class Gradient(torch.nn.Module):
    def forward(self, g, x, t):
        if sys.argv[1] == "mish":
            return torch.ops.lossreg.mish_backward(g, x, output_mask=[True])[0]
        return torch.ops.lossreg.mse_loss_backward(g, x, t, output_mask=[False, True])[0]

tensors = torch.ones(()), torch.randn(3), torch.randn(3)
torch.export.save(torch.export.export(Gradient(), tensors), sys.argv[2])
torch.save((tensors, None), sys.argv[3])
"""

RUN = """
program, inputs, expected = torch.export.load(sys.argv[1]), *torch.load(sys.argv[2])
torch.testing.assert_close(program.module()(*inputs), expected)
print("same numbers")
"""


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.linear(ops.swish(x))
        return scores, ops.focal_loss(scores, target, gamma=1.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The program with a dynamic batch, and inputs of another size with the results."""
    torch.manual_seed(0)
    folder, model, batch = tmp_path_factory.mktemp("program"), Model().eval(), torch.export.Dim("batch")
    program = torch.export.export(model, (torch.randn(5, 4), torch.rand(5, 3)), dynamic_shapes=({0: batch},) * 2)
    torch.export.save(program, folder / "program.pt2")
    inputs = torch.randn(7, 4), torch.rand(7, 3)
    with torch.no_grad():
        torch.save((inputs, model(*inputs)), folder / "inputs.pt")
    return [folder / "program.pt2", folder / "inputs.pt"]


def python(text: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys\nimport torch\n{text}", *map(str, arguments)]
    environment = {**os.environ, "OPREG_LIBRARY": str(opreg.library_path())}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_in_a_process_that_imports_opreg(saved: list[Path]) -> None:
    done = python(f"import opreg\n{RUN}", *saved)
    assert done.stdout == "same numbers\n", done.stderr


def test_message_in_a_process_that_does_not(saved: list[Path]) -> None:
    """It is torch's own, and cannot be ours: none of our text is loaded. The README quotes it, with what to import."""
    done = python(RUN, *saved)
    assert done.returncode != 0
    message = "We failed to resolve torch.ops.lossreg.swish.default to an operator."
    assert message in done.stderr
    assert "Please import the custom op to register it before deserializing." in done.stderr
    assert "failed to resolve torch.ops.lossreg" in (Path(__file__).parents[2] / "README.md").read_text()


def test_import_after_the_message(saved: list[Path]) -> None:
    """A process that has seen the message need not start anew."""
    failing = "try:\n    torch.export.load(sys.argv[1])\nexcept RuntimeError:\n    print('failed')\n"
    done = python(f"{failing}import opreg\n{RUN}", *saved)
    assert done.stdout == "failed\nsame numbers\n", done.stderr


def test_library_alone_is_enough_to_run(saved: list[Path]) -> None:
    """The schema and the kernels are in it; what needs Python is training, torch.compile and torch.func."""
    done = python(
        f"torch.ops.load_library({str(opreg.library_path())!r})\nwith torch.no_grad():\n"
        + "".join(f"    {line}\n" for line in RUN.strip().splitlines()),
        *saved,
    )
    assert done.stdout == "same numbers\n", done.stderr
    assert "opreg" not in done.stderr


def test_decomposed_program_needs_nothing_of_ours(saved: list[Path], tmp_path: Path) -> None:
    program = torch.export.load(saved[0]).run_decompositions(opreg.decompositions())
    torch.export.save(program, tmp_path / "plain.pt2")
    done = python(RUN + "assert 'opreg' not in sys.modules", tmp_path / "plain.pt2", saved[1])
    assert done.stdout == "same numbers\n", done.stderr


@pytest.mark.parametrize("name", ["mish", "mse_loss"])
def test_program_with_gradients_of_the_last_version(tmp_path: Path, name: str) -> None:
    """Its list of gradients would be read as the tuple that an op returns now, where another gradient stands."""
    files = [tmp_path / "program.pt2", tmp_path / "inputs.pt"]
    saved = python(SAVE_0_1, name, *files)
    assert saved.returncode == 0, saved.stderr
    done = python(f"import opreg\n{RUN}", *files)
    assert done.returncode != 0
    message = f"{name}_backward: expected needs_input_grad to be a list of True and False, got no such argument; "
    assert message + "a program of opreg 0.1 calls it so: export it again" in done.stderr
