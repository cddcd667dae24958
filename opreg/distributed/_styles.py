"""An entry of ``parallelize_module``'s plan for the loss."""

from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle

from .._package import PACKAGE


class LossParallel(ParallelStyle):
    """The loss of a tensor-parallel model, whose classes are split over the processes: an entry of the plan of
    ``torch.distributed.tensor.parallel.parallelize_module``, in the place of ``loss_parallel``.

    For a module of ``opreg.nn`` over a loss that can be computed of parts of the classes (``opreg.distributed`` names
    them). A module that owns the last layer, ``LinearCrossEntropyLoss``, ``ArcFace``, ``AMSoftmax``, keeps a part of it
    on each process and takes whole features; the others take the scores of the process's own classes. ``backward``
    needs no context.

    Args:
        input_layout: how the first input is split where it comes as a plain tensor; by default along dimension 1, the
            classes of scores (N, C, d1 … dk), or not at all where the module owns the layer. A DTensor comes as it is,
            as from ``ColwiseParallel(use_local_output=False)``.
        use_local_output: whether the loss is a plain tensor, the same on every process, or a DTensor.

    Raises:
        RuntimeError: when the plan is applied to a module that is not opreg's.

    Example:
        >>> plan = {"head": ColwiseParallel(use_local_output=False), "criterion": opreg.distributed.LossParallel()}
        >>> model = parallelize_module(model, mesh, plan)
    """

    def __init__(self, *, input_layout: Placement | None = None, use_local_output: bool = True) -> None:
        super().__init__()
        self.input_layout, self.use_local_output = input_layout, use_local_output

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        if not type(module).__module__.startswith(f"{PACKAGE}."):
            raise RuntimeError(
                f"LossParallel: expected a module of opreg.nn, such as opreg.nn.CrossEntropyLoss, got {type(module)}"
            )
        owns_layer = next(module.parameters(), None) is not None
        first: Placement = self.input_layout or (Replicate() if owns_layer else Shard(1))

        def partition(name: str, part: torch.nn.Module, mesh: DeviceMesh) -> None:
            # classes come first in the weights of a layer
            for key, parameter in part.named_parameters(recurse=False):
                split = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                part.register_parameter(key, torch.nn.Parameter(split, parameter.requires_grad))
            for key, buffer in part.named_buffers(recurse=False):
                part.register_buffer(key, distribute_tensor(buffer, mesh, [Replicate()]))

        def take(module: torch.nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
            return tuple(sharded(a, mesh, first if k == 0 else Replicate()) for k, a in enumerate(inputs))

        def give(module: torch.nn.Module, output: Any, mesh: DeviceMesh) -> Any:
            return output.full_tensor() if self.use_local_output else output

        return distribute_module(module, device_mesh, partition, take, give)


def sharded(a: Any, mesh: DeviceMesh, placement: Placement) -> Any:
    if not isinstance(a, Tensor) or isinstance(a, DTensor):
        return a
    return DTensor.from_local(a, mesh, [placement], run_check=False)
