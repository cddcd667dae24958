"""Drawing samples, and calls of them as functions of what they are differentiated in."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..meta.schema import bind, results_of
from ..op import Op, Sample


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


def tensors_with_grad(op: Op, sample: Sample) -> dict[str, Tensor]:
    """The arguments of a sample that ask for a gradient, by name."""
    bound = bind(op.value, sample.args, sample.kwargs)
    return {n: a for n, a in bound.items() if isinstance(a, Tensor) and a.requires_grad}


def batched(op: Op, sample: Sample, change: Callable[[Tensor, int], Tensor]) -> list[object]:
    """The sample's positional arguments, ``change(tensor, batch dimension)`` made to each that has a batch."""
    args: list[object] = []
    for name, a in zip(op.arguments, sample.args, strict=False):
        dim = op.batch_dims.get(name, 0)
        args.append(change(a, dim) if isinstance(a, Tensor) and dim is not None and dim < a.dim() else a)
    return args


def repeated(op: Op, sample: Sample, n: int) -> list[object]:
    """The sample's arguments with the batch repeated n times."""

    def repeat(t: Tensor, dim: int) -> Tensor:
        return t.detach().repeat([n if d == dim else 1 for d in range(t.dim())]).requires_grad_(t.requires_grad)

    return batched(op, sample, repeat)


def joined(result: Any) -> Tensor:
    """What a call returned, as one tensor: several results flat, one behind the other."""
    results = results_of(result)
    return results[0] if len(results) == 1 else torch.cat([t.flatten() for t in results])


def as_function(op: Op, sample: Sample, call: Callable[..., Any]) -> Callable[..., Tensor]:
    """The call as a function of the arguments that ask for a gradient, its results joined."""
    bound = bind(op.value, sample.args, sample.kwargs)
    names = list(tensors_with_grad(op, sample))

    def function(*tensors: Tensor) -> Tensor:
        return joined(call(**{**bound, **dict(zip(names, tensors, strict=True))}))

    return function


def differentiable_function(op: Op, sample: Sample) -> Callable[..., Tensor]:
    """The call as a function of the arguments that ask for a gradient, with what the op asks of the first one."""
    function = as_function(op, sample, op.value)
    if op.domain is None:
        return function
    domain = op.domain
    return lambda first, *others: function(domain(first), *others)
