"""Sizes that depend on values: the rows that a mask keeps are as many as only the run knows."""

import pytest
import torch
from torch import Tensor

import opreg
from conftest import DEVICE, samples_of
from opreg.meta.schema import bind
from opreg.testing import joined, tensors_with_grad


def dims_of_rows(op, sample):
    """For each argument the dimension that counts the rows of the call; None where it has none."""
    first = op.batch_dims.get(op.arguments[0], 0)
    rows = sample.args[0].shape[first] if sample.args[0].dim() > first else 0
    dims = []
    for name, a in zip(op.arguments, sample.args, strict=False):
        dim = op.batch_dims.get(name, 0)
        has_rows = isinstance(a, Tensor) and dim is not None and a.dim() > dim and a.shape[dim] == rows
        of_classes = name == "weight" and has_rows and a.dim() < sample.args[0].dim()
        dims.append(dim if has_rows and not of_classes else None)
    return rows, dims


def masked(op, sample):
    """The call on a part of the batch, as a module of masks and the call's arguments.

    With one mask all parts have one size; with two, the first tensor's is one and that of the others another.
    """
    _, dims = dims_of_rows(op, sample)

    class Masked(torch.nn.Module):
        def forward(self, masks: list[Tensor], *args):
            rows = [mask.nonzero()[:, 0] for mask in masks]
            parts, first = [], True
            for a, dim in zip(args, dims, strict=True):
                parts.append(a if dim is None else a.index_select(dim, rows[0 if first else -1]))
                first = False
            return op.value(*parts, **sample.kwargs)

    return Masked()


def kinds(op):
    """A sample of each combination of ranks, dtypes and missing tensors, of at least two rows."""
    found = {}
    for sample in samples_of(op, dtype=torch.float32, requires_grad=True):
        if op.short == "ctc_loss" and sample.args[1].dim() == 1:
            continue  # targets one after the other: a part of the batch is no part of them
        bound = bind(op.value, sample.args, sample.kwargs)
        sample = opreg.Sample(tuple(a for name, a in bound.items() if name != "dtype"), name=sample.name)
        kind = tuple((a.dim(), a.dtype) if isinstance(a, Tensor) else None for a in sample.args)
        if dims_of_rows(op, sample)[0] >= 2 and not sample.name.startswith(
            ("unbatched", "broadcast input", "weight of rank")
        ):
            found.setdefault(kind, sample)
    assert found
    return list(found.values())


def masks_for(op, sample, number):
    kept = torch.arange(dims_of_rows(op, sample)[0], device=DEVICE) % 3 != 1
    return [kept.roll(k) for k in range(number)]


@pytest.mark.parametrize("number", [1, 2])
def test_export(op, number):
    for sample in kinds(op):
        module, masks = masked(op, sample), masks_for(op, sample, number)
        args = [a.detach() if isinstance(a, Tensor) else a for a in sample.args]
        program = torch.export.export(module, (masks, *args))
        for changed in (masks, [torch.ones_like(m) for m in masks]):
            torch.testing.assert_close(program.module()(changed, *args), module(changed, *args), equal_nan=True)


def test_compile(op):
    """Value and gradients, without a break of the graph."""
    for sample in kinds(op)[:1]:
        module, masks = masked(op, sample), masks_for(op, sample, 1)
        inputs = list(tensors_with_grad(op, sample).values())
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            torch._dynamo.reset()
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
            got, want = (joined(call(masks, *sample.args)) for call in (compiled, module))
            scale = torch.ones_like(want)
            grads = [torch.autograd.grad(result, inputs, scale, allow_unused=True) for result in (got, want)]
        torch.testing.assert_close(got, want, equal_nan=True)
        torch.testing.assert_close(*grads, equal_nan=True)
