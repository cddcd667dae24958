"""Drawing samples."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Maker:
    """Draws the tensors of samples: dtype, device and requires_grad are decided by who asks, values by the seed."""

    def __init__(
        self, dtype: torch.dtype = torch.float64, device: str = "cpu", *, requires_grad: bool = False, seed: int = 0
    ) -> None:
        self.dtype, self.device, self.requires_grad = dtype, device, requires_grad
        self.generator = torch.Generator().manual_seed(seed)

    def _finish(self, t: Tensor) -> Tensor:
        return t.to(self.device, self.dtype).requires_grad_(self.requires_grad)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Gaussian, of standard deviation ``scale``."""
        return self._finish(scale * torch.randn(shape, generator=self.generator, dtype=torch.float64))

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return self._finish(low + (high - low) * torch.rand(shape, generator=self.generator, dtype=torch.float64))

    def constant(self, t: Tensor) -> Tensor:
        """A factor that is not differentiated: a class weight, a target of ±1."""
        return t.detach().requires_grad_(False)

    def signs(self, *shape: int) -> Tensor:
        """−1 or 1, not differentiated."""
        bits = torch.randint(0, 2, shape, generator=self.generator)
        return (2 * bits - 1).to(self.device, self.dtype)

    def bits(self, *shape: int) -> Tensor:
        """0 or 1, not differentiated."""
        return torch.randint(0, 2, shape, generator=self.generator).to(self.device, self.dtype)

    def index(self, classes: int, *shape: int, ignore: int | None = None, dtype: torch.dtype = torch.int64) -> Tensor:
        """Class indices, about a quarter of them ``ignore`` where that is given."""
        t = torch.randint(0, classes, shape, generator=self.generator)
        if ignore is not None:
            t = torch.where(torch.rand(shape, generator=self.generator) < 0.25, ignore, t)
        return t.to(self.device, dtype)

    def tensor(self, values: Sequence[object] | float) -> Tensor:
        return self._finish(torch.tensor(values, dtype=torch.float64))
