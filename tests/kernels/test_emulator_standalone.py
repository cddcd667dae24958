"""The CUDA kernels of standalone/ in the emulator: the paths that sizes, layouts and dtypes choose."""

import pytest
import torch
from test_emulator import compare

import opreg
from opreg.testing import Maker


@pytest.mark.parametrize("name", ["affinity_loss", "affinity_field_loss"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 9), (1, 2, 3, 3), (1, 33, 3, 8), (1, 70, 3, 5), (1, 1, 40, 3)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "transposed", "narrow"])
def test_neighbours(emulated, name, shape, layout):
    """At the borders and inside, columns side by side and not, more channels than are summed at a time."""
    n, c, h, w = shape
    make = Maker(torch.float32)
    x = make.normal(n, c, h, w + 2) / c**0.5
    x = x[..., 1:-1] if layout == "narrow" else x[..., :w].contiguous()
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        x = x.mT.contiguous().mT
    y = make.index(3, n, h, w, ignore=-100)
    if name == "affinity_field_loss":
        sizes: list[dict[str, int]] = [{}]
    else:
        sizes = [{"kernel_size": k} for k in (1, 3, 5) if k <= min(h, w)]
    for options in sizes:
        compare(emulated, opreg.get(name), opreg.Sample((x.detach().requires_grad_(), y), options), 1e-5)
