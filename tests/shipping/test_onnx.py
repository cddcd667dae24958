"""ONNX Runtime knows no lossreg: it runs what ``opreg.decompositions()`` leaves, and gives the numbers of eager."""

import itertools
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import opreg
from opreg.meta.schema import bind
from opreg.testing import Maker, joined

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


def kind(op: opreg.Op, sample: opreg.Sample) -> tuple[object, ...]:
    """Samples of one kind differ in sizes and values alone: these make one graph."""
    bound = bind(op.value, sample.args, sample.kwargs)
    tensors = [(name, a.is_floating_point()) for name, a in bound.items() if isinstance(a, Tensor)]
    return (*tensors, *(name for name in sample.kwargs if name != "reduction"))


def calls_of(op: opreg.Op, most: int = 3) -> list[opreg.Sample]:
    """A sample of each kind, the simplest kinds first, in every reduction that it can have."""
    samples = [s for s in op.samples(Maker(torch.float32)) if all(t.numel() for t in tensors_of(s))]
    first = {kind(op, s): s for s in reversed(samples)}
    ordered = [s for s in samples if first[kind(op, s)] is s][:most]
    if not op.reduces:
        return ordered
    reductions = ("none", "mean", "sum")
    return [reduced(op, s, reduction) for s, reduction in itertools.product(ordered, reductions)]


def reduced(op: opreg.Op, sample: opreg.Sample, reduction: str) -> opreg.Sample:
    place = op.arguments.index("reduction")
    if len(sample.args) > place:  # given by position
        return opreg.Sample((*sample.args[:place], reduction, *sample.args[place + 1 :]), sample.kwargs)
    return opreg.Sample(sample.args, {**sample.kwargs, "reduction": reduction})


def tensors_of(sample: opreg.Sample) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves((sample.args, sample.kwargs)) if isinstance(leaf, Tensor)]


class Calls(nn.Module):
    """Several calls of an op in one program, for an export costs a second or more; its inputs are all their tensors."""

    def __init__(self, op: opreg.Op, samples: list[opreg.Sample]) -> None:
        super().__init__()
        self.op, self.samples = op, samples

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = iter(tensors)
        results = []
        for sample in self.samples:
            args, kwargs = pytree.tree_map_only(Tensor, lambda _: next(given), (sample.args, sample.kwargs))
            results.append(joined(self.op.value(*args, **kwargs)))
        return tuple(results)


def test_same_numbers_as_eager(op):
    if op.short in NOT_IN_ONNX:
        pytest.skip(NOT_IN_ONNX[op.short])
    samples = calls_of(op)
    assert samples
    tensors = [t for s in samples for t in tensors_of(s)]
    calls = Calls(op, samples)
    got = run(to_onnx(torch.export.export(calls, tuple(tensors))), tensors)
    for sample, result, want in zip(samples, got, calls(*tensors), strict=True):
        torch.testing.assert_close(
            result, want, rtol=2e-5, atol=2e-6, equal_nan=True, msg=lambda m, s=sample: f"{s.kwargs}: {m}"
        )


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
    """It exports what torch's exporter alone does not: the stable sort of lovasz_hinge."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (line,) = re.findall(r"`(torch\.onnx\.export\(.*?\))`", readme, re.S)
    op = opreg.get("lovasz_hinge_loss")
    sample = next(op.samples(Maker(torch.float32)))
    calls, tensors = Calls(op, [sample]), tensors_of(sample)
    names = {"torch": torch, "opreg": opreg, "program": torch.export.export(calls, tuple(tensors))}
    (result,) = run(session_of(eval(" ".join(line.split()), names)), tensors)
    torch.testing.assert_close(result, calls(*tensors)[0], rtol=2e-5, atol=2e-6)


def test_without_onnxscript(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = r"opreg\.onnx_translations: expected onnxscript, found none: pip install 'opreg\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        opreg.onnx_translations()
