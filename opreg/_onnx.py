"""What torch's ONNX exporter has to be told."""

import importlib
from collections.abc import Callable
from typing import Any

import torch


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Operators that torch's ONNX exporter does not know, said in ONNX: a stable sort.

    No op is made of one; a model may hold one, as losses on sorted errors do. The exporter takes them as its
    ``custom_translation_table``. Needs onnxscript, as the exporter itself does::

        program = torch.export.export(model, inputs).run_decompositions(opreg.decompositions())
        table = opreg.onnx_translations()
        torch.onnx.export(program, dynamo=True, custom_translation_table=table).save("model.onnx")
    """
    try:
        opset = importlib.import_module("onnxscript").opset18
    except ImportError as error:
        message = "opreg.onnx_translations: expected onnxscript, found none: pip install 'opreg[onnx]'"
        raise ImportError(message) from error

    def sort_stable(self: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
        # TopK puts equal elements in their order, and so is a stable sort
        count = opset.Gather(opset.Shape(self), opset.Constant(value_ints=[dim]))
        return opset.TopK(self, count, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: sort_stable}
