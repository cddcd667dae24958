"""ExecuTorch and OpenVINO know no lossreg: they run what ``opreg.decompositions()`` leaves, with the numbers of eager
mode, and ExecuTorch from core ATen alone. ``make runtimes`` installs both."""

import pytest
import torch
from calls import Calls, calls_of
from torch import Tensor

import opreg

# a program is compiled in seconds
pytestmark = pytest.mark.slow


def executorch_results(program: torch.export.ExportedProgram, tensors: list[Tensor]) -> list[Tensor]:
    exir = pytest.importorskip("executorch.exir", reason="executorch is not installed")
    runtime = pytest.importorskip("executorch.runtime").Runtime.get()
    config = exir.EdgeCompileConfig(_check_ir_validity=True)  # an operator outside of core ATen is an error
    buffer = exir.to_edge(program, compile_config=config).to_executorch().buffer
    method = runtime.load_program(buffer).load_method("forward")
    return list(method.execute(tensors))


def openvino_results(program: torch.export.ExportedProgram, tensors: list[Tensor]) -> list[Tensor]:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    # of known shapes: a convolution of unknown ones can't be computed while the model is converted
    model = openvino.convert_model(program, input=[tuple(t.shape) for t in tensors])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(model, "CPU", options)
    made = compiled([t.numpy() for t in tensors])
    return [torch.as_tensor(made[i]) for i in range(len(model.outputs))]


@pytest.mark.parametrize("results", [executorch_results, openvino_results], ids=["executorch", "openvino"])
def test_same_numbers_as_eager(op, results):
    calls = Calls(op, calls_of(op, most=2))
    program = torch.export.export(calls, tuple(calls.tensors)).run_decompositions(opreg.decompositions())
    calls.check(results(program, calls.tensors))
