"""ONNX Runtime knows no lossreg: it runs what ``opreg.decompositions()`` leaves, and gives the numbers of eager."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import Calls, calls_of
from torch import Tensor, nn

import opreg
from opreg.testing import Maker

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

# op: why no ONNX file can hold it; none so far
NOT_IN_ONNX: dict[str, str] = {}


def to_onnx(program: torch.export.ExportedProgram) -> Any:
    """A session of ONNX Runtime on the program, with every lossreg op decomposed."""
    program = program.run_decompositions(opreg.decompositions())
    # the optimiser takes time, and folds what ONNX Runtime is to compute
    exported = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        verbose=False,
        custom_translation_table=opreg.onnx_translations(),
    )
    return session_of(exported)


def session_of(exported: Any) -> Any:
    assert exported is not None
    assert not [node for node in exported.model_proto.graph.node if "lossreg" in node.domain]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # it warns of every initializer that it folds
    return onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(session: Any, tensors: list[Tensor]) -> list[Tensor]:
    feeds = {i.name: t.numpy() for i, t in zip(session.get_inputs(), tensors, strict=True)}
    return [torch.as_tensor(result) for result in session.run(None, feeds)]


@pytest.mark.one_of_a_family
def test_same_numbers_as_eager(op):
    if op.short in NOT_IN_ONNX:
        pytest.skip(NOT_IN_ONNX[op.short])
    calls = Calls(op, calls_of(op))
    assert calls.samples
    tensors = calls.tensors
    calls.check(run(to_onnx(torch.export.export(calls, tuple(tensors))), tensors))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.second(opreg.functional.mish(self.first(x)))
        return scores, opreg.functional.cross_entropy(scores, label, label_smoothing=0.1)


def test_dynamic_batch():
    """The batch stays a variable of the ONNX file."""
    model, batch = Classifier().eval(), torch.export.Dim("batch")
    inputs = (torch.randn(6, 8), torch.randint(5, (6,)))
    session = to_onnx(torch.export.export(model, inputs, dynamic_shapes=({0: batch}, {0: batch})))
    for rows in (1, 6, 64):
        x, label = torch.randn(rows, 8), torch.randint(5, (rows,))
        with torch.no_grad():
            want = model(x, label)
        for result, expected in zip(run(session, [x, label]), want, strict=True):
            torch.testing.assert_close(result, expected, rtol=2e-5, atol=2e-6)


def test_the_line_of_the_readme():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = re.findall(r"`(torch\.onnx\.export\(.*?\))`", readme, re.S)
    op = opreg.get("lovasz_hinge_loss")
    calls = Calls(op, [next(op.samples(Maker(torch.float32)))])
    names = {"torch": torch, "opreg": opreg, "program": torch.export.export(calls, tuple(calls.tensors))}
    calls.check(run(session_of(eval(" ".join(line.split()), names)), calls.tensors))


class Ranks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=1, descending=True, stable=True).indices


def test_a_stable_sort_of_the_model():
    """Which torch's exporter alone does not know."""
    x = torch.tensor([[1.0, 3.0, 1.0, 3.0, 2.0, 1.0]])
    (result,) = run(to_onnx(torch.export.export(Ranks(), (x,))), [x])
    assert torch.equal(result, Ranks()(x))


def test_without_onnxscript(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = r"opreg\.onnx_translations: expected onnxscript, found none: pip install 'opreg\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        opreg.onnx_translations()
