"""Sizes that depend on values: the rows that a mask keeps are as many as only the run knows."""

import pytest
import torch
from torch import Tensor

from conftest import DEVICE, samples_of
from opreg.testing import tensors_with_grad


def masked(op, sample, masks):
    """The call on a part of the batch, as a module of the masks and the call's arguments.

    With one mask all parts have one size; with two, the first tensor's is one and that of the others another.
    """
    given = zip(op.arguments, sample.args, strict=False)
    dims = [op.batch_dims.get(name, 0) if isinstance(a, Tensor) else None for name, a in given]

    class Masked(torch.nn.Module):
        def forward(self, masks: list[Tensor], *args):
            rows = [mask.nonzero()[:, 0] for mask in masks]
            parts, first = [], True
            for a, dim in zip(args, dims, strict=True):
                parts.append(a if dim is None else a.index_select(dim, rows[0 if first else -1]))
                first = False
            return op.value(*parts, **sample.kwargs)

    return Masked()


def batch(op, sample) -> int:
    """How many rows the call has, 0 where its tensors do not say."""
    sizes = set()
    for name, a in zip(op.arguments, sample.args, strict=False):
        dim = op.batch_dims.get(name, 0)
        if isinstance(a, Tensor) and dim is not None:
            sizes.add(a.shape[dim] if a.dim() > dim else 0)
    return sizes.pop() if len(sizes) == 1 else 0


def kinds(op):
    """A sample of each combination of ranks, dtypes and missing tensors, of at least three rows; not a single row."""
    found = {}
    for sample in samples_of(op, dtype=torch.float32, requires_grad=True):
        if op.short == "ctc_loss" and sample.args[1].dim() == 1:
            continue  # targets one after the other: a part of the batch is no part of them
        kind = tuple((a.dim(), a.dtype) if isinstance(a, Tensor) else None for a in sample.args)
        if batch(op, sample) >= 3 and not sample.name.startswith("unbatched"):
            found.setdefault(kind, sample)
    return list(found.values())


def masks_for(op, sample, number):
    kept = torch.arange(batch(op, sample), device=DEVICE) % 3 != 1
    return [kept.roll(k) for k in range(number)]


@pytest.mark.parametrize("number", [1, 2])
def test_export(op, number):
    for sample in kinds(op):
        module, masks = masked(op, sample, number), masks_for(op, sample, number)
        args = [a.detach() if isinstance(a, Tensor) else a for a in sample.args]
        program = torch.export.export(module, (masks, *args))
        for changed in (masks, [torch.ones_like(m) for m in masks]):
            torch.testing.assert_close(program.module()(changed, *args), module(changed, *args), equal_nan=True)


def test_compile(op):
    """Value and gradients, without a break of the graph."""
    for sample in kinds(op)[:1]:
        module, masks = masked(op, sample, 1), masks_for(op, sample, 1)
        inputs = list(tensors_with_grad(op, sample).values())
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            torch._dynamo.reset()
            compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
            got, want = (call(masks, *sample.args) for call in (compiled, module))
            scale = torch.ones_like(want)
            grads = [torch.autograd.grad(result, inputs, scale, allow_unused=True) for result in (got, want)]
        torch.testing.assert_close(got, want, equal_nan=True)
        torch.testing.assert_close(*grads, equal_nan=True)
