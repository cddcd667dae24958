"""An op's value and gradient along a line of inputs, from the samples of its declaration.

Each value of a pointwise op comes from one element of its operands: that element runs over a range, for each value that
the samples give to a target, and for each choice of options that they make. Of any other op a small sample is taken,
and one element of it runs over a range while the others stay; a box slides as a whole.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opreg import Op, Sample
from opreg.meta.dims import CLASSES
from opreg.meta.schema import bind
from opreg.testing import Maker

from . import facts

POINTS = 241
MOST_OPTIONS = 4
# what a curve does not show, or shows in every op alike
SILENT = {"reduction", "dtype", "ignore_index", "eps"}
BOX = 4


# Where a line of inputs begins, its direction, what to say of it, and how far it goes.
Line = tuple[Tensor, Tensor, str, Tensor]
Path = Callable[[Op, dict[str, Any], Tensor, str], Line]


@dataclass
class Curve:
    x: Tensor
    value: Tensor
    grad: Tensor
    options: dict[str, Any] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)

    @property
    def flat(self) -> bool:
        good = self.value[torch.isfinite(self.value)]
        return good.numel() < 2 or float(good.max() - good.min()) < 1e-9


@dataclass
class Drawing:
    """The curves of an op; ``says``: what runs along the axis, in a sentence."""

    axis: str
    says: str
    curves: list[Curve]

    @property
    def faint(self) -> bool:
        """Is the first curve nearly a level line, as of one pixel among many?"""
        value = self.curves[0].value
        good = value[torch.isfinite(value)]
        return float(good.max() - good.min()) < 0.02 * float(good.abs().max())


def drawable(op: Op) -> bool:
    """Not what writes to its arguments, nor what is linear in its input, a layer: its curve is a line."""
    return not op.mutated and (op.is_loss or op.rule.pointwise)


def small_samples(op: Op) -> list[Sample]:
    """The samples that are smooth, where any is, and not empty: those without options first, the smallest first."""
    full = [s for s in op.samples(Maker()) if all(t.numel() > 0 for t in tensors(op, s).values())]
    found = [s for s in full if s.smooth] or [s for s in full if not s.name] or full
    return sorted(found, key=lambda s: (len(options_of(op, s)), sum(t.numel() for t in tensors(op, s).values())))


def tensors(op: Op, sample: Sample) -> dict[str, Tensor]:
    bound = bind(op.value, sample.args, sample.kwargs)
    return {n: bound[n] for n in op.tensor_arguments if isinstance(bound[n], Tensor)}


def required(op: Op) -> list[str]:
    """The tensors that every call gives."""
    return [n for n in op.tensor_arguments if n not in op.defaults]


def result_of(op: Op, *args: Any, **kwargs: Any) -> Tensor:
    """What a call gives, the first of several results."""
    result = op.value(*args, **kwargs)
    first: Tensor = result[0] if isinstance(result, (tuple, list)) else result
    return first


def options_of(op: Op, sample: Sample) -> dict[str, Any]:
    """The numbers, flags and words of a sample that change its values."""
    bound = bind(op.value, sample.args, sample.kwargs)
    return {
        n: v
        for n, v in bound.items()
        if n not in SILENT and n not in op.tensor_arguments and n in op.defaults and v != op.defaults[n]
    }


def choices(op: Op) -> list[dict[str, Any]]:
    """Options that the samples set, those of a single option first, after the defaults."""
    found = [options_of(op, s) for s in op.samples(Maker()) if s.smooth]
    unique = [o for i, o in enumerate(found) if o and o not in found[:i]]
    return [{}, *sorted(unique, key=len)]


def draw(op: Op) -> Drawing:
    """The curves of an op.

    Raises:
        ValueError: none of its samples has a curve.
    """
    samples = small_samples(op)
    ways = [partial(_pointwise, op), *(partial(_along, op, sample, path) for path in _PATHS for sample in samples)]
    faint = None
    for way in ways:
        try:
            drawing = way()
        except RuntimeError:  # the op takes no such call: the next way
            continue
        drawing.curves = [c for c in drawing.curves if not c.flat]
        if drawing.curves and not drawing.faint:
            return drawing
        faint = faint or (drawing if drawing.curves else None)
    if faint is not None:
        return faint
    raise ValueError(f"{op.name}: expected a sample with an element whose change changes the result, got none")


def _different(curves: Iterator[Curve | None], most: int) -> list[Curve]:
    """Those that no curve before them repeats; None where the op refuses a call."""
    kept: list[Curve] = []
    for curve in curves:
        if curve is None:
            continue
        repeats = any(c.others == curve.others and torch.allclose(c.value, curve.value, equal_nan=True) for c in kept)
        if not repeats:
            kept.append(curve)
        if len({str(c.options) for c in kept}) > most:
            return kept[:-1]
    return kept


def _curve(call: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values at the points, one each, and the slope in each of them."""
    x = x.detach().requires_grad_()
    value = call(x)
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad


def _pointwise(op: Op) -> Drawing:
    first, *rest = required(op)
    samples = small_samples(op)
    x = _range([tensors(op, s)[first] for s in samples])

    def curve(options: Mapping[str, Any], others: dict[str, float]) -> Curve | None:
        given = {n: torch.full_like(x, v) for n, v in others.items()}
        named = {**options, **({"reduction": "none"} if op.reduces else {})}

        def call(points: Tensor) -> Tensor:
            result = result_of(op, points, *(given[n] for n in rest), **named)
            if result.shape != points.shape:
                raise RuntimeError("not one value a point")
            return result

        try:
            value, grad = _curve(call, x)
        except RuntimeError:
            if options or others != chosen[0]:
                return None
            raise
        return Curve(x, value, grad, dict(options), others if rest else {})

    seen = {n: torch.cat([tensors(op, s)[n].flatten() for s in samples]) for n in rest}
    chosen: list[dict[str, float]] = [{}]
    for n in rest:
        chosen = [{**c, n: v} for c in chosen for v in _typical(seen[n])]
    first_curve = curve({}, chosen[0])
    if first_curve is not None and first_curve.flat:  # a factor of 0
        chosen = [dict.fromkeys(c, 1.0) for c in chosen]
    curves = _different((curve(o, c) for o in choices(op) for c in chosen), MOST_OPTIONS)
    return Drawing(first, f"``{first}`` runs along the axis, one element.", curves)


def _range(seen: list[Tensor]) -> Tensor:
    """Where the op takes its input: probabilities in [0, 1], cosines in [−1, 1], logarithms below 0, else around 0."""
    values = torch.cat([t.flatten() for t in seen]).double()
    low, high = (float(values.quantile(q)) for q in (0.02, 0.98))
    edge = 1e-3
    if low >= 0 and high <= 1:
        return torch.linspace(edge, 1 - edge, POINTS, dtype=torch.float64)
    if low >= -1 and high <= 1:
        return torch.linspace(edge - 1, 1 - edge, POINTS, dtype=torch.float64)
    if high <= 0:
        return torch.linspace(-5, -edge, POINTS, dtype=torch.float64)
    return torch.linspace(-5, 5, POINTS, dtype=torch.float64)


def _typical(values: Tensor) -> list[float]:
    """The values that stand for those of a tensor: both of two, the ends of [0, 1], 1 of what is positive, else 0."""
    values = values.double()
    kinds = values.unique().tolist()
    if len(kinds) == 2:
        return kinds
    if values.min() < 0 and float((values.abs() == 1).double().mean()) > 0.5:
        return [-1.0, 1.0]
    if values.min() >= 0:
        return [0.0, 1.0] if values.max() <= 1 else [1.0]
    return [0.0]


def _along(op: Op, sample: Sample, path: Path) -> Drawing:
    first = op.differentiable[0]
    bound = bind(op.value, sample.args, sample.kwargs) | op.defaults
    if op.reduces:
        bound["reduction"] = "none"
    base = bound[first].detach().double()
    boxes = op.rule.pointwise and base.dim() > 0 and base.shape[-1] >= BOX
    # what slides is where the op takes it already
    allowed = op.domain if op.domain is not None and not boxes else _as_it_is
    start, moved, says, x = (_sliding if boxes else path)(op, bound, base, first)

    def curve(options: Mapping[str, Any]) -> Curve | None:
        def at(point: Tensor) -> Tensor:
            line = start + point * moved
            return result_of(op, **{**bound, **options, first: allowed(line)}).sum()

        parts = [_curve(at, p) for p in x]
        value, grad = (torch.stack(t) for t in zip(*parts, strict=True))
        value -= _untouched(op, {**bound, **options}, first, [allowed(start + p * moved) for p in x[:: POINTS // 3]])
        return Curve(x, value, grad, dict(options))

    def tried(options: Mapping[str, Any]) -> Curve | None:
        try:
            return curve(options)
        except RuntimeError:
            if options:
                return None
            raise

    axis = "shift" if boxes else first if path is _one_element else "step"
    return Drawing(axis, says, _different(map(tried, choices(op)), MOST_OPTIONS))


def _as_it_is(t: Tensor) -> Tensor:
    return t


def _untouched(op: Op, bound: Mapping[str, Any], first: str, inputs: list[Tensor]) -> Tensor:
    """The sum of the values that stay what they are all along the line: those of other rows."""
    values = [result_of(op, **{**bound, first: t}) for t in inputs]
    if values[0].dim() == 0:
        return torch.zeros((), dtype=torch.float64)
    stay = torch.stack([v == values[0] for v in values]).all(0)
    return torch.where(stay, values[0], 0.0).sum()


def _sliding(op: Op, bound: dict[str, Any], base: Tensor, first: str) -> Line:
    """A box that slides over its target: both corners where they are corners, else the centre."""
    target = bound[next(n for n in required(op) if n != first)].detach().double()
    bound[first], start = target, target.clone()
    moved = torch.zeros_like(start)
    row = (0,) * (start.dim() - 1)
    box = start[row]
    corners = start.shape[-1] == BOX
    width = float(box[2] - box[0]) if corners else float(box[2])
    moved[row][0] = width
    if corners:
        moved[row][2] = width
    says = "The box slides sideways over its target: 0 is on top of it, 1 a width beside it."
    return start, moved, says, torch.linspace(-2.5, 2.5, POINTS, dtype=torch.float64)


def _one_element(op: Op, bound: dict[str, Any], base: Tensor, first: str) -> Line:
    """The element of the target's class where the target is a class, else the first one."""
    place = [0] * base.dim()
    made = "" if op.domain is None else ", before they are made into what the op takes"
    says = f"The first element of ``{first}`` runs along the axis, the others stay{made}."
    labels = list(op.rule.dims(bound)[first]) if op.rule.dims else []
    targets = [bound[n] for n in op.indices if isinstance(bound.get(n), Tensor)]
    if CLASSES in labels and targets and not targets[0].is_floating_point() and facts.of_classes(op, op.indices[0]):
        axis, target = labels.index(CLASSES), targets[0]
        valid = ((target >= 0) & (target < base.shape[axis])).nonzero().tolist()
        if valid and target.shape == base.shape[:axis] + base.shape[axis + 1 :]:
            place = [*valid[0][:axis], int(target[tuple(valid[0])]), *valid[0][axis:]]
            says = f"The score of the target's class runs along the axis, the other elements of ``{first}`` stay."
    start, moved = base.clone(), torch.zeros_like(base)
    start[tuple(place)], moved[tuple(place)] = 0.0, 1.0
    seen = [tensors(op, s)[first].detach() for s in small_samples(op)]
    return start, moved, says, _range(seen) if op.domain is None else torch.linspace(-5, 5, POINTS, dtype=torch.float64)


def _from_target(op: Op, bound: dict[str, Any], base: Tensor, first: str) -> Line:
    """From the target to a sample's input, and beyond: all elements at once."""
    same = [bound[n] for n in required(op)[1:] if bound[n].shape == base.shape and bound[n].is_floating_point()]
    if not same:
        raise RuntimeError("no target of the input's shape")
    start = same[0].detach().double()
    says = f"All of ``{first}`` moves: from its target, at 0, to other values, at 1."
    return start, base - start, says, torch.linspace(-1, 2, POINTS, dtype=torch.float64)


_PATHS: tuple[Path, ...] = (_one_element, _from_target)
