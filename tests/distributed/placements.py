"""Random calls with random placements, each compared with one process: what runs in the processes of a pool.

As a program, ``python placements.py COUNT [SEED]`` makes so many; ``python placements.py table`` prints what each op
does where it is split along one dimension.
"""

import random
import sys
import time
import warnings
from collections import Counter
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

import opreg
from opreg.distributed import _call
from opreg.meta.schema import bind, results_of
from opreg.registry import of_namespace
from opreg.testing import Maker, joined


@cache
def meshes() -> dict[str, DeviceMesh]:
    """Four processes in a row, in a square, and the two rows of the square as meshes of two processes."""
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    return {"4": init_device_mesh("cpu", (4,)), "2": square["inner"], "2x2": square}


def choices(t: Tensor) -> list[Placement]:
    """Replicated, sharded along a dimension, a sum of parts."""
    partial = [Partial()] if t.is_floating_point() else []
    shards = [Shard(d) for d in range(t.dim())]
    return [Replicate(), *shards, *shards, *partial]


def sharded(t: Tensor, mesh: DeviceMesh, placements: list[Placement]) -> DTensor:
    """``t`` in parts; where it is to be a sum, one process has it and the others zeros."""
    whole = [Replicate() if p.is_partial() else p for p in placements]
    d = distribute_tensor(t.detach(), mesh, whole)
    local = d.to_local()
    for i, p in enumerate(placements):
        if p.is_partial() and mesh.get_local_rank(i) != mesh.size(i) - 1:
            local = torch.zeros_like(local)
    d = DTensor.from_local(local, mesh, placements, run_check=False, shape=d.shape, stride=d.stride())
    return d.requires_grad_(t.requires_grad)


def full(t: Any) -> Any:
    return t.full_tensor() if isinstance(t, DTensor) else t


def samples_of(op: Any, seed: int) -> list[Any]:
    return [s for s in op.samples(Maker(requires_grad=True, seed=seed)) if s.args[0].dim() > 0]


def compare(op: Any, bound: dict[str, Any], tensors: dict[str, Tensor], parts: dict[str, DTensor]) -> bool:
    """An error where the call of the parts differs from that of the whole tensors, in value, gradients or precision."""
    alone = {n: t.detach().clone().requires_grad_(t.requires_grad) for n, t in tensors.items()}

    def call(arguments: dict[str, Any]) -> tuple[Any, list[Any]]:
        positional = {**bound, **arguments}
        dtype = {"dtype": positional.pop("dtype")} if op.is_loss else {}
        results = results_of(op.value(*positional.values(), **dtype))
        whole = joined([full(result) for result in results])
        upstream = torch.linspace(0.5, 2.0, whole.numel(), dtype=whole.dtype).reshape(whole.shape)
        (whole * upstream).sum().backward()
        return results, [full(t.grad) for t in arguments.values()]

    want, gradients = call(alone)
    got, sharded_gradients = call(parts)
    assert all(isinstance(t, DTensor) for t in got)
    close = {"rtol": 1e-11, "atol": 1e-12, "equal_nan": True}
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(full(ours), theirs, msg=lambda m: f"value: {m}", **close)
    for n, ours, theirs in zip(tensors, sharded_gradients, gradients, strict=True):
        assert (ours is None) == (theirs is None), f"gradient of {n}: {ours} and {theirs}"
        if ours is not None:
            torch.testing.assert_close(ours, theirs, msg=lambda m, n=n: f"gradient of {n}: {m}", **close)
    return True


def one(seed: int, name: str | None = None) -> tuple[str, str]:
    """One call: an op, a sample, a mesh, placements. Returns the op's name and what was split, for the count."""
    chance = random.Random(seed)
    ops = [o for o in of_namespace() if not o.mutated]
    op = opreg.get(name) if name else chance.choice(ops)
    sample = chance.choice(samples_of(op, seed))
    bound = bind(op.value, sample.args, sample.kwargs)
    mesh_name = chance.choice(list(meshes()))
    mesh = meshes()[mesh_name]
    if op.reduces:
        bound["reduction"] = chance.choice(["none", "mean", "sum"])
    tensors = {n: a for n, a in bound.items() if isinstance(a, Tensor)}
    given = {n: [chance.choice(choices(t)) for _ in range(mesh.ndim)] for n, t in tensors.items()}
    if chance.random() < 0.5:  # as a trainer has it: all tensors along one dimension
        first = next(iter(given.values()))
        given = {n: [p if p in choices(t) else Replicate() for p in first] for n, t in tensors.items()}
    what = f"seed {seed}: {op.short} {sample.name!r} {sample.kwargs} {bound.get('reduction')} mesh {mesh_name} " + str(
        {n: (list(t.shape), given[n]) for n, t in tensors.items()}
    )
    parts = {n: sharded(t, mesh, given[n]) for n, t in tensors.items()}
    try:
        compare(op, bound, tensors, parts)
    except Exception as error:
        raise AssertionError(what) from error
    return op.short, mesh_name


def several(seeds: list[int]) -> Counter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Counter(one(seed) for seed in seeds)


HEADING = """# Every op, split over four processes along each dimension

Value and gradients against one process, in float64, of the first of the op's samples that has the dimension; made by
`python tests/distributed/placements.py table`. Dimensions are those of `opreg.meta.dims`: counted from the last where
operands broadcast, from the first position behind the classes elsewhere. Where an op is gathered along the batch, that
is so with some of its options (`lovasz_softmax_loss` without `per_image`), or it decides over the whole batch.

| op | computed in parts along | gathered along | equal |
|---|---|---|---|"""


class Row(NamedTuple):
    """Of an op split along one dimension over four processes: does the op compute in parts, or gather; is it equal?"""

    op: str
    split: str
    way: str
    equal: bool


def table() -> list[Row]:
    """Every op, along every dimension that one of its samples has."""
    rows = {}
    for op in of_namespace():
        if op.mutated:
            continue
        for sample in samples_of(op, 0):
            bound = bind(op.value, sample.args, sample.kwargs)
            dims = op.rule.dims(bound)
            # in one order on every process
            for label in dict.fromkeys(label for name, of_tensor in dims.items() if name for label in of_tensor):
                what = f"dimension {label}" if isinstance(label, int) and label < 0 else str(label)
                if (op.short, what) not in rows:
                    rows[op.short, what] = row(op, what, bound, label, dims)
    averages = Row("ema_update_", "any dimension", "split", True)  # of which there is a test of its own
    return [*rows.values(), averages]


def row(op: Any, what: str, bound: dict[str, Any], label: Any, dims: Any) -> Row:
    mesh = meshes()["4"]
    tensors = {n: a for n, a in bound.items() if isinstance(a, Tensor)}
    given = {n: [Shard(dims[n].index(label)) if label in dims[n] else Replicate()] for n in tensors}
    broadcasts = {n for n, t in tensors.items() if label in dims[n] and t.shape[dims[n].index(label)] == 1}
    parts = {n: sharded(t, mesh, [Replicate()] if n in broadcasts else given[n]) for n, t in tensors.items()}
    want = compare(op, bound, tensors, parts)
    split = _call.split_of(op, {**bound, **parts}, parts, mesh)
    return Row(op.short, what, "split" if split.labels[0] is not None else "gathered", want)


def for_seconds(seconds: float, first: int) -> int:
    """How many were made; the processes agree on when to end."""
    import torch.distributed as dist

    started, made = time.monotonic(), 0
    while True:
        over = torch.tensor(float(time.monotonic() - started > seconds))
        dist.all_reduce(over)
        if over:
            return made
        several(list(range(first + made, first + made + 10)))
        made += 10


def program(arguments: list[str]) -> None:
    import placements  # by this name the other processes know what they are to call
    from processes import POOL

    if arguments[0] == "table":
        print(HEADING)
        rows = POOL.run(placements.table)[0]
        for op in dict.fromkeys(row.op for row in rows):
            own = [row for row in rows if row.op == op]
            ways = [", ".join(row.split for row in own if row.way == way) for way in ("split", "gathered")]
            print(f"| `{op}` | {ways[0]} | {ways[1]} | {'yes' if all(row.equal for row in own) else 'no'} |")
        return
    count, seed = int(arguments[0]), int(arguments[1]) if len(arguments) > 1 else 0
    done: Counter = Counter()
    for start in range(seed, seed + count, 50):
        done += POOL.run(placements.several, list(range(start, min(start + 50, seed + count))))[0]
    print(count, "placements,", len({op for op, _ in done}), "ops, without a difference")


if __name__ == "__main__":
    program(sys.argv[1:])
