"""What is timed: calls of an op at a size, with values drawn from the op's own samples.

A pointwise op is called with ``ELEMENTS[size]`` elements, a row op with the shapes of ``ROWS[size]``; other ops declare
their calls (``Op.workload``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..meta.schema import bind
from ..op import Op
from ..testing import Maker

# small: a call's own cost, and nothing else; huge: for a GPU, whose L2 holds what is large for a CPU
ELEMENTS = {"small": 2**6, "usual": 2**18, "large": 2**22, "huge": 2**28}
ROWS = {
    "small": ((8, 8), (1, 4, 4, 4)),
    "usual": ((256, 4000), (2, 19, 128, 128)),
    "large": ((1024, 32000), (8, 19, 512, 512)),
    "huge": ((8192, 128256), (16, 19, 1024, 1024)),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
SEEDS = 64  # of small samples, whose values the large inputs are drawn from


@dataclass(frozen=True)
class Case:
    """A call to time: every argument by name, without ``dtype``."""

    op: Op
    kind: str
    args: Mapping[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        return [a for a in self.args.values() if isinstance(a, Tensor)]

    @property
    def shape(self) -> list[int]:
        return list(self.tensors[0].shape)

    @property
    def title(self) -> str:
        return f"{self.op.name} {'×'.join(map(str, self.shape))}"

    def with_gradient(self) -> tuple[dict[str, Any], Tensor]:
        """The arguments, the first of them requiring a gradient; and that one."""
        name = self.op.differentiable[0]
        x = self.args[name].detach().requires_grad_()
        return {**self.args, name: x}, x


def small_calls(op: Op) -> list[dict[str, Any]]:
    """The op's first sample, with ``SEEDS`` different values: every argument by name."""
    samples = [next(op.samples(Maker(torch.float64, seed=seed))) for seed in range(SEEDS)]
    return [bind(op.value, s.args, s.kwargs) for s in samples]


def shapes_of(op: Op, size: str) -> list[dict[str, tuple[int, ...]]]:
    """The shapes to time of every required tensor: one call of a pointwise op, the calls of ``ROWS`` of a row op.

    Raises:
        ValueError: a tensor's shape follows neither from the input's nor from its rows' or classes'.
    """
    first = small_calls(op)[0]
    lead = first[op.tensor_arguments[0]]
    small = tuple(op.rule(op.short, first))
    leads = ((ELEMENTS[size],),) if small == lead.shape else ROWS[size]
    found = [{n: grown(op, n, first[n], lead, small, shape) for n in required_tensors(op)} for shape in leads]
    # an op may take rows of (N, C) only
    taken = [shapes for shapes in found if accepts(op, first, shapes)]
    if not taken:
        raise ValueError(f"{op.name}: expected an op that takes one of the shapes {leads}, got one that takes none")
    return taken


def draw(op: Op, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: str = "cpu") -> Case:
    """A call of these shapes with the values of the op's first sample, class indices of any class.

    Options keep their defaults, optional tensors are left out.
    """
    calls = small_calls(op)
    first = calls[0]
    lead = first[op.tensor_arguments[0]]
    rows = tuple(op.rule(op.short, first)) != lead.shape
    generator = torch.Generator().manual_seed(0)
    args: dict[str, Any] = {}
    for a in op.value._schema.arguments:
        if a.name in shapes:
            values = torch.cat([call[a.name].flatten() for call in calls])
            if rows and not values.is_floating_point():
                values = torch.arange(shapes[op.tensor_arguments[0]][1], dtype=values.dtype)
            t = values[torch.randint(len(values), shapes[a.name], generator=generator)]
            args[a.name] = t.to(device, dtype if t.is_floating_point() else t.dtype)
        elif a.name != "dtype":
            args[a.name] = a.default_value if a.has_default_value() else first[a.name]
    kind = "row losses" if rows else "pointwise losses" if op.is_loss else "activations"
    return Case(op, kind, args)


def cases(op: Op, size: str, dtype: torch.dtype, device: str = "cpu") -> Iterator[Case]:
    """The calls to time at a size: the op's own workload, else what its samples grow to."""
    if op.mutated:
        raise ValueError(f"{op.name}: expected an op with a gradient, got one that writes to {', '.join(op.mutated)}")
    if op.workload is None:
        for shapes in shapes_of(op, size):
            yield draw(op, shapes, dtype, device)
        return
    for sample in op.workload(Maker(dtype, device), size):
        args = bind(op.value, sample.args, sample.kwargs)
        args.pop("dtype", None)
        yield Case(op, f"{op.family} losses" if op.is_loss else op.family, args)


def required_tensors(op: Op) -> list[str]:
    return [a.name for a in op.value._schema.arguments if str(a.type) == "Tensor"]


def grown(
    op: Op, name: str, sample: Tensor, lead: Tensor, small: Sequence[int], shape: tuple[int, ...]
) -> tuple[int, ...]:
    """The large shape of an argument whose small one is that of the input, of its rows or of its classes."""
    if sample.shape == lead.shape:
        return shape
    if sample.shape == small:
        return (shape[0], *shape[2:])
    if lead.dim() > 1 and sample.shape == lead.shape[1:2]:
        return (shape[1],)
    raise ValueError(
        f"{op.name}: expected {name} of the shape of {op.tensor_arguments[0]}, of its rows or of its classes in the "
        f"first sample, got {list(lead.shape)} and {list(sample.shape)}"
    )


def accepts(op: Op, first: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    meta = {n: torch.empty(s, dtype=first[n].dtype, device="meta") for n, s in shapes.items()}
    optional = {n: None for n in op.tensor_arguments if n not in meta}
    try:
        op.rule(op.short, {**first, **optional, **meta})
    except RuntimeError:
        return False
    return True


def in_dtype(case: Case, dtype: torch.dtype) -> Case:
    args = {n: a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for n, a in case.args.items()}
    return replace(case, args=args)


def narrowed(case: Case, rows: int) -> Case:
    """The first so many of the batch, in every tensor that has one."""

    def narrow(name: str, a: Any) -> Any:
        dim = case.op.batch_dims.get(name, 0)
        return a.narrow(dim, 0, rows).clone() if isinstance(a, Tensor) and dim is not None and a.dim() > dim else a

    return replace(case, args={name: narrow(name, a) for name, a in case.args.items()})


def sweep(case: Case) -> list[Case]:
    """The call, and smaller ones of it: a quarter of the rows again and again, down to 64 elements or one row."""
    dim = case.op.batch_dims.get(case.op.tensor_arguments[0], 0)
    assert dim is not None
    rows, row = case.shape[dim], case.tensors[0].numel() // case.shape[dim]
    counts = []
    while rows and rows * row >= ELEMENTS["small"]:
        counts.append(rows)
        rows //= 4
    return [narrowed(case, n) for n in reversed(counts)]
