"""What ``torch.compile(backend="opreg")`` tells of each graph: in ``opreg.last_report``, a callback and TORCH_LOGS."""

import gc
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


def inner(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return F.mish(x)


def broken(x: Tensor, y: Tensor) -> Tensor:
    """A function of several graphs, one of another function that it calls."""
    x = inner(F.silu(x))
    torch._dynamo.graph_break()
    return F.mse_loss(x, y)


class Gate(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


def test_every_graph_of_a_function() -> None:
    x, y = torch.randn(4, 3), torch.randn(4, 3)
    seen: list[tuple[str, list[str]]] = []
    end = opreg.on_report(lambda report, name: seen.append((name, [s.op for s in report.swapped])))
    compiled = torch.compile(broken, backend="opreg")
    torch.testing.assert_close(compiled(x, y), broken(x, y))
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Hardswish())
    of_model = torch.compile(model, backend="opreg")
    of_model(x)
    end()
    in_place = Gate()
    in_place.compile(backend="opreg")
    in_place(x)
    end()  # a second time is no error
    assert sorted(op for name, ops in seen if name == "broken" for op in ops) == ["mish", "mse_loss", "swish"]
    assert len(seen) > 2
    assert seen[-1][1] == ["hard_swish"]
    for f in (compiled, broken):
        assert sorted(s.op for s in opreg.last_report(f).swapped) == ["mish", "mse_loss", "swish"]
    for f in (of_model, model):
        assert [s.op for s in opreg.last_report(f).swapped] == ["hard_swish"]
    for f in (None, in_place):
        assert [s.op for s in opreg.last_report(f).swapped] == ["swish"]
    assert not opreg.last_report(torch.nn.ReLU()).swapped


def test_the_last_of_functions_that_are_no_more() -> None:
    for activation in (torch.nn.SiLU, torch.nn.Mish):
        torch.compile(torch.nn.Sequential(activation()), backend="opreg")(torch.randn(3))
        torch._dynamo.reset()
        gc.collect()
    assert [s.op for s in opreg.last_report().swapped] == ["mish"]


def test_default_backend() -> None:
    """torch.compiler.set_default_backend: for every torch.compile that names none."""
    torch.compiler.set_default_backend("opreg")
    try:
        model = torch.compile(torch.nn.Mish())
        x = torch.randn(5)
        torch.testing.assert_close(model(x), F.mish(x))
    finally:
        torch.compiler.set_default_backend(None)
    assert [s.op for s in opreg.last_report(model).swapped] == ["mish"]


PROGRAM = """
import torch, opreg
torch.compile(torch.nn.SiLU(), backend="opreg")(torch.randn(3))
with opreg.use():
    torch.nn.functional.mish(torch.randn(3))
"""


@pytest.mark.parametrize("setting", ["opreg", "+opreg"])
def test_logs(setting: str) -> None:
    environment: dict[str, Any] = {**os.environ, "TORCH_LOGS": setting}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a graph of" in done.stderr
    assert "1 swapped, 0 left" in done.stderr
    assert ("torch's silu" in done.stderr) == (setting == "+opreg")
    assert ("torch.nn.functional.mish" in done.stderr) == (setting == "+opreg")


def test_a_report_in_a_notebook() -> None:
    report = opreg.passes.Report(
        [opreg.passes.Swapped("mse_loss", "mse_loss, written out", "a.py:3")],
        [opreg.passes.Left("F.gelu", "1 < 2", "a.py:4 in <lambda>")],
    )
    shown = report._repr_html_()
    assert shown.startswith("<p>1 swapped, 1 left</p>\n<table>")
    assert shown.count("<tr>") == 4
    assert "times" not in shown  # nothing was counted
    assert "1 &lt; 2" in shown
    assert "in &lt;lambda&gt;" in shown
    assert opreg.passes.Report()._repr_html_() == "<p>0 swapped, 0 left</p>"
