"""Sums and maxima over the processes of groups, which torch.compile and torch.export keep in their graph.

A sum over processes that is differentiable has to say what the gradients of its parts are. Here each process computes
the same loss from the sum, so that the gradient of a part is that of the sum: ``Sum``. The other way round, where each
process makes its own use of a value that all have, its gradient is the sum of theirs: ``Copy``. Each is the backward
pass of the other, so that derivatives of every order are right.
"""

from typing import Any

import torch
from torch import Tensor

Groups = tuple[str, ...]


def all_reduce(x: Tensor, reduction: str, groups: Groups) -> Tensor:
    """``"sum"`` or ``"max"`` over the processes of one group after the other; without a gradient."""
    x = x.detach()
    for group in groups:
        functional = torch.ops._c10d_functional
        x = functional.wait_tensor(functional.all_reduce(x.contiguous(), reduction, group))
    return x


class Sum(torch.autograd.Function):
    """What all processes have together, on each of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return all_reduce(x, "sum", groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return copied(grad, ctx.groups), None


class Copy(torch.autograd.Function):
    """A value that all processes have, for a use that each makes of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: Groups) -> Tensor:
        ctx.groups = groups
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return summed(grad, ctx.groups), None


def summed(x: Tensor, groups: Groups) -> Tensor:
    total: Tensor = Sum.apply(x, groups) if groups else x  # type: ignore[no-untyped-call]
    return total


def copied(x: Tensor, groups: Groups) -> Tensor:
    same: Tensor = Copy.apply(x, groups) if groups else x  # type: ignore[no-untyped-call]
    return same


class Gather(torch.autograd.Function):
    """The rows of all processes of a group, one process after the other; each makes a use of its own of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: str, processes: int, factor: float) -> Tensor:
        ctx.group, ctx.processes, ctx.factor = group, processes, factor
        return gathered(x, group, processes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        functional = torch.ops._c10d_functional
        own = functional.reduce_scatter_tensor(grad.detach().contiguous(), "sum", ctx.processes, ctx.group)
        return functional.wait_tensor(own) * ctx.factor, None, None, None


def gathered(x: Tensor, group: str, processes: int) -> Tensor:
    """The same without a gradient."""
    functional = torch.ops._c10d_functional
    rows: Tensor = functional.wait_tensor(functional.all_gather_into_tensor(x.detach().contiguous(), processes, group))
    return rows
