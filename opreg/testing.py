"""Drawing samples, and the checks that an op passes by its declaration alone: ``opreg.testing.check(op)``."""

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from .meta.schema import bind
from .op import Op, Sample

# Finite differences cost a call for each element.
_LARGEST_FOR_DIFFERENCES = 80


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
        args.append(change(a, dim) if isinstance(a, Tensor) and dim is not None else a)
    return args


def repeated(op: Op, sample: Sample, n: int) -> list[object]:
    """The sample's arguments with the batch repeated n times."""

    def repeat(t: Tensor, dim: int) -> Tensor:
        return t.detach().repeat([n if d == dim else 1 for d in range(t.dim())]).requires_grad_(t.requires_grad)

    return batched(op, sample, repeat)


def as_function(op: Op, sample: Sample, call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The call as a function of the arguments that ask for a gradient."""
    bound = bind(op.value, sample.args, sample.kwargs)
    names = list(tensors_with_grad(op, sample))

    def function(*tensors: Tensor) -> Tensor:
        return call(**{**bound, **dict(zip(names, tensors, strict=True))})

    return function


def differentiable_function(op: Op, sample: Sample) -> Callable[..., Tensor]:
    """The call as a function of the arguments that ask for a gradient, with what the op asks of the first one."""
    function = as_function(op, sample, op.value)
    if op.domain is None:
        return function
    domain = op.domain
    return lambda first, *others: function(domain(first), *others)


def check(op: Op, device: str = "cpu") -> None:
    """Tries every sample of an op in every way that follows from its declaration; raises at the first that fails.

    Value, gradient and result dtype against the reference, ``torch.library.opcheck``, first and second derivatives
    against finite differences, ``torch.func``, float32 under autocast, the messages of the error samples. Of an op that
    writes to its arguments: what it writes, opcheck, and the messages.
    """
    if op.mutated:
        check_update(op, device)
        return check_errors(op, device)
    for sample in op.samples(Maker(torch.float64, device, requires_grad=True)):
        inputs = list(tensors_with_grad(op, sample).values())
        function = as_function(op, sample, op.value)
        result, expected = function(*inputs), as_function(op, sample, op.call_reference)(*inputs)
        torch.testing.assert_close(result, expected, equal_nan=True)
        if result.isnan().any():
            continue  # opcheck holds NaN unequal to NaN
        torch.library.opcheck(op.value, sample.args, sample.kwargs)
        if not sample.smooth or not inputs or sum(t.numel() for t in inputs) > _LARGEST_FOR_DIFFERENCES:
            continue
        in_domain = differentiable_function(op, sample)
        gradcheck(in_domain, inputs)
        if op.second_derivative:
            gradgradcheck(in_domain, inputs)
        first = inputs[0].detach()
        rest = [t.detach() for t in inputs[1:]]
        gradient = torch.func.grad(lambda x, f=function, r=rest: f(x, *r).sum())
        expected_gradient = torch.autograd.grad(function(*inputs).sum(), inputs[0])[0]
        torch.testing.assert_close(gradient(first), expected_gradient)
        torch.testing.assert_close(torch.func.vmap(gradient)(torch.stack([first, first]))[1], expected_gradient)
    for sample in op.samples(Maker(torch.bfloat16, device)):
        with torch.autocast(device, dtype=torch.bfloat16):
            dtype = op.value(*sample.args, **sample.kwargs).dtype
        wanted = torch.float32 if op.is_loss else torch.bfloat16
        assert dtype == wanted, f"{op.short}: expected {wanted} under autocast, got {dtype}"
    check_errors(op, device)


def check_update(op: Op, device: str) -> None:
    for ours, same in zip(op.samples(Maker(device=device)), op.samples(Maker(device=device)), strict=True):
        op.value(*ours.args, **ours.kwargs)
        op.write_reference(*same.args, **same.kwargs)
        torch.testing.assert_close(op.written(*ours.args, **ours.kwargs), op.written(*same.args, **same.kwargs))
        if op.written(*ours.args, **ours.kwargs):
            torch.library.opcheck(op.value, ours.args, ours.kwargs)


def check_errors(op: Op, device: str) -> None:
    for error in op.errors(Maker(torch.float64, device)):
        got = "no error"
        try:
            op.value(*error.args, **error.kwargs)
        except RuntimeError as raised:
            got = str(raised)
        assert re.search(error.message, got), f"expected {error.message!r}, got {got}"
