"""Calls with DTensors: which placements the arguments get, what each process computes, and what the result is.

Along each dimension of the mesh one dimension of the call is split, by the labels of ``opreg.meta.dims``; a tensor that
has it is sharded there, the others are replicated, and their gradients are sums over the processes. The op itself runs
on the local tensors, and its reduction is finished over the processes: a mean is a sum, divided by what all of them
count.
"""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from ..attach.autograd import require_constants, with_gradients
from ..messages.checks import check_call
from ..meta.dims import CLASSES, VALUES, Dims, Labels
from ..meta.fakes import given_gradients, no_gradient, reduces, result_dtype, shapes_of_results
from ..meta.schema import bind, call, results_of, returned
from ..op import Op
from . import _classes, _samples
from ._collectives import Groups, summed

Arguments = Mapping[str, Any]

# What has been said, once each.
_said: set[tuple[str, str, Hashable]] = set()


@dataclass(frozen=True)
class Split:
    """The label of what is split along each dimension of the mesh; None: nothing, every process has all."""

    mesh: DeviceMesh
    labels: tuple[Hashable | None, ...]
    dims: Dims
    sizes: Mapping[Hashable, int]

    def placements(self, name: str, t: Tensor) -> tuple[Placement, ...]:
        of_tensor = self.dims.get(name, ())
        return tuple(Shard(of_tensor.index(k)) if self.has(of_tensor, t, k) else Replicate() for k in self.labels)

    def of_gradient(self, name: str, t: Tensor) -> tuple[Placement, ...]:
        """Where others are split and this tensor is not, each process has a part of the gradient's sum."""
        own = self.placements(name, t)
        return tuple(
            Partial() if k is not None and isinstance(p, Replicate) else p
            for k, p in zip(self.labels, own, strict=True)
        )

    def has(self, of_tensor: Labels, t: Tensor, label: Hashable | None) -> bool:
        """Is the tensor split with this label? One that broadcasts there is not."""
        return label is not None and label in of_tensor and t.shape[of_tensor.index(label)] == self.sizes[label]

    def groups(self, *labels: Hashable) -> Groups:
        """The names of the process groups over which one of these labels is split."""
        own = [i for i, k in enumerate(self.labels) if k is not None and k in labels]
        return tuple(self.mesh.get_group(i).group_name for i in own)

    @property
    def groups_of_values(self) -> Groups:
        return self.groups(*self.dims[VALUES])

    def of_values(self) -> tuple[Placement, ...]:
        values = self.dims.get(VALUES, ())
        return tuple(Shard(values.index(k)) if k in values else Replicate() for k in self.labels)


def value(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The op of sharded tensors."""
    bound = bind(op.value, args, kwargs)
    if op.mutated:
        return in_place(op, bound)
    tensors = {n: bound[n] for n in op.tensor_arguments if bound[n] is not None}
    mesh = mesh_of(op.short, tensors)
    tensors = {n: as_sharded(t, mesh) for n, t in tensors.items()}
    bound.update(tensors)
    shapes = {n: on_meta(a) if isinstance(a, Tensor) else a for n, a in bound.items()}
    # before any process computes: what only some of them refused would leave the others waiting
    check_call(op, shapes)
    if torch.is_grad_enabled():
        require_constants(op, bound)
    rule_shapes = shapes_of_results(op.rule(op.short, shapes), len(op.results))
    reduced, dtype = reduces(op.short, bound), result_dtype(bound, op.rule.typed_by)
    split = split_of(op, bound, tensors, mesh)
    if mesh.get_coordinate() is None:  # a process beside the mesh has nothing to compute
        return returned([outside(split, tensors, shape, reduced, dtype) for shape in rule_shapes])
    local = bound | {n: local_of(split, n, t) for n, t in tensors.items()}
    if not any(k is not None for k in split.labels):
        results = results_of(call(op.value, local))
    elif reduced or (not op.reduces and op.count is not None):
        results = reduction(op, split, bound, local, math.prod(rule_shapes[0]))
        reduced = True
    else:
        results = tuple(t.to(dtype) for t in values(op, split, local)[0])
    placements = (Replicate(),) * mesh.ndim if reduced else split.of_values()
    return returned(
        [whole(t, mesh, placements, () if reduced else shape) for t, shape in zip(results, rule_shapes, strict=True)]
    )


def whole(local: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], shape: Sequence[int]) -> DTensor:
    """The DTensor of this shape of which a process has this part."""
    return DTensor.from_local(
        local, mesh, placements, run_check=False, shape=torch.Size(shape), stride=strides(local, shape)
    )


def outside(
    split: Split, tensors: Mapping[str, DTensor], shape: Sequence[int], reduced: bool, dtype: torch.dtype
) -> DTensor:
    """A result as a process that is not on the mesh has it: without elements."""
    needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors.values())
    nothing = torch.empty(
        () if reduced else shape, dtype=dtype, device=split.mesh.device_type, requires_grad=needs_grad
    )
    placements = (Replicate(),) * split.mesh.ndim if reduced else split.of_values()
    return DTensor.from_local(
        nothing, split.mesh, placements, run_check=False, shape=nothing.shape, stride=nothing.stride()
    )


def values(op: Op, split: Split, local: Arguments) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """What the op gives before reduction, and its weights in the mean where only classes of all processes give them."""
    if CLASSES in split.labels:
        rows, weights = _classes.ROWS[op.short](shard_of_classes(split), local)
        return results_of(rows), weights
    options = {"reduction": "none"} if op.reduces else {}
    return results_of(call(op.value, {**local, **options})), None


def reduction(op: Op, split: Split, bound: Arguments, local: Arguments, number: int) -> tuple[Tensor, ...]:
    """The sum or the mean over the values of all processes, of each result; ``number`` says how many values those
    are."""
    kind = bound["reduction"] if op.reduces else "mean"
    dtype = result_dtype(bound, op.rule.typed_by)
    # each process's part is not rounded to less than float32
    wide = {**local, "dtype": torch.promote_types(dtype, torch.float32)} if op.is_loss else local
    weights: Tensor | None = None
    if CLASSES in split.labels or (kind == "mean" and op.averaged is not None):
        rows, weights = values(op, split, wide)
        averaged = op.averaged if kind == "mean" and op.averaged is not None else lambda rows, _: rows
        totals = [averaged(of_one, local).sum() for of_one in rows]
    elif op.reduces:
        totals = [*results_of(call(op.value, {**wide, "reduction": "sum"}))]
    else:
        assert op.count is not None
        totals = [t * op.count(local) for t in results_of(call(op.value, wide))]
    count: Any = number
    if kind == "batchmean":
        first = bound[op.tensor_arguments[0]]
        count = first.shape[0] if first.dim() else 1
    elif kind == "mean" and op.count is not None:
        count = op.count(local) if weights is None else weights.sum()
        count = number if count is None else count if isinstance(count, Tensor) else op.count(bound)
    counted = [count] if isinstance(count, Tensor) else []
    sums = summed(torch.stack([t.double() for t in (*totals, *counted)]), split.groups_of_values).unbind()
    totals = list(sums[: len(totals)])
    if kind == "sum":
        return tuple(t.to(dtype) for t in totals)
    count = sums[-1] if counted else count
    if not op.reduces:  # the one value of nothing is 0
        count = count.clamp(min=1) if isinstance(count, Tensor) else torch.sym_max(count, 1)
    # in Python 0 / 0 is an error
    divisor = count if isinstance(count, Tensor) else torch.full_like(totals[0], count)
    return tuple((t / divisor).to(dtype) for t in totals)


def mesh_of(op: str, tensors: Mapping[str, Tensor]) -> DeviceMesh:
    """The mesh of the DTensors; an error where there are several, or a plain tensor of more than one element."""
    meshes = {n: t.device_mesh for n, t in tensors.items() if isinstance(t, DTensor)}
    (first, mesh), *others = meshes.items()
    for name, other in others:
        if other != mesh:
            raise RuntimeError(f"{op}: expected {first} and {name} on one device mesh, got {mesh} and {other}")
    for name, t in tensors.items():
        if not isinstance(t, DTensor) and t.dim() > 0 and not replicated_implicitly():
            raise RuntimeError(
                f"{op}: expected {name} to be a DTensor as {first} is, got a plain tensor; "
                "distribute_tensor or DTensor.from_local makes one"
            )
    return mesh


def replicated_implicitly() -> bool:
    """Is ``torch.distributed.tensor.experimental.implicit_replication`` in force?"""
    return bool(getattr(DTensor._op_dispatcher, "_allow_implicit_replication", False))


def as_sharded(t: Tensor, mesh: DeviceMesh) -> DTensor:
    if isinstance(t, DTensor):
        return t
    return DTensor.from_local(t, mesh, [Replicate()] * mesh.ndim, run_check=False)


def on_meta(t: Tensor) -> Tensor:
    """Shape and dtype alone, for the op's rule."""
    return torch.empty(t.shape, dtype=t.dtype, device="meta")


def split_of(op: Op, bound: Arguments, tensors: Mapping[str, DTensor], mesh: DeviceMesh) -> Split:
    """Follows, along each dimension of the mesh, the largest tensor that is sharded as the op can be."""
    dims = op.rule.dims(bound) if op.rule.dims is not None else {}
    sizes: dict[Hashable, int] = {}
    for name, t in tensors.items():
        for label, size in zip(dims.get(name, ()), t.shape, strict=name in dims):
            sizes[label] = size if sizes.get(label, 1) == 1 else sizes[label]
    chosen = []
    for i in range(mesh.ndim):
        best: tuple[int, Hashable] | None = None
        for name, t in tensors.items():
            dim = sharded_dim(t.placements[i])
            if dim is None:
                continue
            label = dims[name][dim] if name in dims else None
            if label is not None and t.shape[dim] != sizes[label]:
                continue  # it broadcasts
            if why := reason(op, bound, dims, label):
                say(op, name, dim, label, mesh.size(i), why)
            elif best is None or t.numel() > best[0]:
                best = (t.numel(), label)
        chosen.append(None if best is None else best[1])
    split = Split(mesh, tuple(chosen), dims, sizes)
    refused = {k for k in split.labels if k not in (None, CLASSES) and not may_be_empty(op, bound, tensors, split, k)}
    for name in tensors if refused else ():
        for label, dim in ((k, dims[name].index(k)) for k in refused if k in dims[name]):
            say(op, name, dim, label, mesh.size(), "some of them would have no element of it, which it does not take")
    return replace(split, labels=tuple(None if k in refused else k for k in split.labels)) if refused else split


def may_be_empty(
    op: Op, bound: Arguments, tensors: Mapping[str, DTensor], split: Split, label: Hashable | None
) -> bool:
    """Has every process a part, or does the op take a part without elements?"""
    parts = math.prod(split.mesh.size(i) for i, k in enumerate(split.labels) if k == label)
    if split.sizes[label] >= parts**2:  # parts are rounded up, and then the last may be short
        return True
    shapes = dict(bound)
    for name, t in tensors.items():
        own = split.dims[name]
        sizes = [0 if k == label and split.has(own, t, k) else n for k, n in zip(own, t.shape, strict=True)]
        shapes[name] = torch.empty(sizes, dtype=t.dtype, device="meta")
    try:
        op.rule(op.short, shapes)
    except RuntimeError:
        return False
    return True


def sharded_dim(placement: Placement) -> int | None:
    dim = getattr(placement, "dim", None) if placement.is_shard() or hasattr(placement, "split_factor") else None
    return None if dim is None else int(dim)


def reason(op: Op, bound: Arguments, dims: Dims, label: Hashable | None) -> str:
    """Why the op can't be split along this dimension; nothing where it can."""
    if label is None:
        return "its shape rule does not say what the dimensions stand for"
    if why := op.whole(bound):
        return why
    if label == CLASSES:
        return _classes.why_not(op, bound)
    if label not in dims[VALUES]:
        return "each value needs all of it"
    return "" if op.own else _samples.objection(op, label)


def say(op: Op, name: str, dim: int, label: Hashable | None, processes: int, why: str) -> None:
    if (op.qualname, name, label) in _said or processes == 1:
        return
    _said.add((op.qualname, name, label))
    warnings.warn(
        f"{op.short}: {name} is sharded along dimension {dim} and gathered from {processes} processes, for {why}",
        stacklevel=2,
    )


def local_of(split: Split, name: str, t: DTensor) -> Tensor:
    placements = split.placements(name, t)
    if t.placements != placements:
        t = t.redistribute(split.mesh, placements)
    return t.to_local(grad_placements=split.of_gradient(name, t))


def shard_of_classes(split: Split) -> _classes.Shard:
    """Which classes this process has, where several dimensions of the mesh may split them, one after the other."""
    first, size = 0, split.sizes[CLASSES]
    for i, label in enumerate(split.labels):
        if label == CLASSES:
            before, size = _classes.part_of(size, split.mesh.size(i), split.mesh.get_local_rank(i))
            first += before
    return _classes.Shard(split.groups(CLASSES), first, size, split.sizes[CLASSES])


def strides(t: Tensor, shape: Sequence[int]) -> tuple[int, ...]:
    """Those of a whole tensor that is laid out as a part of it is."""
    order = sorted(range(t.dim()), key=lambda d: (t.stride(d), -d)) if not t.is_contiguous() else range(t.dim())[::-1]
    made, step = [0] * t.dim(), 1
    for d in order:
        made[d] = step
        step *= max(shape[d], 1)
    return tuple(made)


def backward(op: Op, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """``NAME_backward`` of sharded tensors: the gradient of what ``value`` gives. Its state is not looked at."""
    bound = bind(op.backward, args, kwargs)
    given_gradients(op.short, op.gradients_of_results, bound)
    mask, grad_outputs = bound.pop("needs_input_grad"), [bound.pop(n) for n in op.gradients_of_results]
    bound.pop("state", None)
    wanted = [n for n, m in zip(op.differentiable, mask, strict=True) if m]
    with torch.enable_grad():
        bound |= {n: bound[n].detach().requires_grad_() for n in wanted}
        results, there = with_gradients(value(op, list(bound.values()), {}), grad_outputs)
        made = dict(zip(wanted, torch.autograd.grad(results, [bound[n] for n in wanted], there), strict=True))
    return returned([made[n] if n in made else no_gradient(there[0]) for n in op.differentiable])


def in_place(op: Op, bound: Arguments) -> None:
    """An op that writes to lists of tensors, element by element: on the part that each process has."""
    local = dict(bound)
    leading, *others = op.tensor_arguments
    local[leading] = []
    for k, t in enumerate(bound[leading]):
        if isinstance(t, DTensor) and any(p.is_partial() for p in t.placements):
            raise RuntimeError(
                f"{op.short}: expected {leading}[{k}] that is sharded or replicated, for it is changed in place, "
                f"got placements {t.placements}"
            )
        local[leading].append(t.to_local() if isinstance(t, DTensor) else t)
    for name in others:
        local[name] = []
        for k, (t, like) in enumerate(zip(bound[name], bound[leading], strict=True)):
            if isinstance(t, DTensor) != isinstance(like, DTensor):
                raise RuntimeError(
                    f"{op.short}: expected {leading}[{k}] and {name}[{k}] to be DTensors both, got one plain tensor"
                )
            if isinstance(t, DTensor):
                t = t.redistribute(like.device_mesh, like.placements).to_local()
            local[name].append(t)
    call(op.value, local)
