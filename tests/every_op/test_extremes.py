"""Every op and its gradient over the whole range of its inputs' dtype.

Pointwise formulas against exact definitions. The others, their tensors scaled from denormals up to where the squares
that they need end, against their references in float64.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import mpmath
import pytest
import torch
from exact_formulas import BEYOND, FORMULAS, Dual, Formula
from mpmath import mp, mpf
from torch import Tensor

import opreg
from conftest import DEVICE, OPS
from opreg.testing import Maker, as_function, tensors_with_grad

# Some roundings of the type that is computed in, and one of the result's dtype.
RELATIVE = {torch.float64: 4e-15, torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-10}
# Exponentials below the smallest normal number count as 0, and are multiplied by up to 1e3 here; float16 has denormals
# of its own.
ABSOLUTE = {torch.float64: 1e-304, torch.float32: 3e-35, torch.bfloat16: 3e-35, torch.float16: 6.1e-8}
DTYPES = list(RELATIVE)


def number(x: float) -> Any:
    return BEYOND * (1 if x > 0 else -1) if math.isinf(x) else mpf(x)


def exactly(formula: Formula, point: tuple[Any, ...], options: dict[str, Any]) -> list[Any]:
    """Value and gradient, NaN where they have none."""
    n = len(point)
    try:
        y = formula.exact(*(Dual(x, tuple(mpf(i == k) for i in range(n))) for k, x in enumerate(point)), **options)
        return [v if isinstance(v, mpf) else mp.nan for v in (y.value, *y.slopes)]
    except (ZeroDivisionError, ValueError):
        return [mp.nan] * (n + 1)


def fits(got: float, want: Any, dtype: torch.dtype, finite: bool, around: Callable[[], Iterator[Any]]) -> bool:
    if mp.isnan(want):
        return True
    largest, relative = mpf(torch.finfo(dtype).max), mpf(RELATIVE[dtype])
    if not math.isfinite(got):
        # of an infinite input NaN is right too: inf * 0; and what grows without bound may be infinite at once
        return abs(want) > largest * (1 - 2 * relative) or (not finite and (math.isnan(got) or abs(want) > 1000))
    off = abs(mpf(got) - want)
    if off <= relative * abs(want) + ABSOLUTE[dtype]:
        return True
    if abs(want) > largest * (1 - 2 * relative):
        return got * mp.sign(want) > largest * (1 - 4 * relative)
    # what one rounding of each argument would change
    return bool(finite and off <= 2 * sum(abs(w - want) for w in around() if not mp.isnan(w)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORMULAS)
def test_pointwise(name: str, dtype: torch.dtype) -> None:
    formula, op = FORMULAS[name], opreg.get(name.split("-")[0])
    axes = [torch.tensor(values(dtype), dtype=torch.float64) for values in formula.inputs]
    points = torch.cartesian_prod(*axes).reshape(-1, len(axes)).to(dtype)
    tensors = [x.clone().to(DEVICE).requires_grad_(k < len(op.differentiable)) for k, x in enumerate(points.unbind(1))]
    wanted = tensors[: len(op.differentiable)]
    step = mpf(torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    wrong, largest = [], torch.finfo(dtype).max
    mp.prec = 200
    for options in formula.options:
        reduction = {"reduction": "none"} if op.is_loss else {}
        y = op.value(*tensors, **options, **reduction)
        grads = torch.autograd.grad(y, wanted, torch.ones_like(y))
        got = torch.stack([y.detach(), *grads], 1).double().tolist()
        for point, row in zip(points.double().tolist(), got, strict=True):
            finite = all(map(math.isfinite, point))
            if not formula.domain(*point, **options) or (finite and sum(map(abs, map(mpf, point))) > largest):
                continue  # their difference has no number
            at = tuple(number(x) for x in point)
            for k, (g, want) in enumerate(zip(row, exactly(formula, at, options), strict=False)):

                def around(at: tuple[Any, ...] = at, k: int = k, options: dict[str, Any] = options) -> Iterator[Any]:
                    for i in range(len(at)):
                        for sign in (1, -1):
                            other = (*at[:i], at[i] * (1 + sign * step), *at[i + 1 :])
                            yield exactly(formula, other, options)[k]

                if not fits(g, want, dtype, finite, around):
                    what = "value" if k == 0 else f"gradient {k}"
                    wrong.append(f"{what} at {point} {options or ''}: {g} for {mpmath.nstr(want, 8)}")
    assert not wrong, f"{len(wrong)} of {len(points)} points:\n" + "\n".join(wrong[:: max(1, len(wrong) // 40)])


def test_every_pointwise_op_is_walked() -> None:
    pointwise = {
        op.short
        for op in map(opreg.get, OPS)
        if op.rule.pointwise and op.family not in ("box", "rotated", "multiclass")
    }
    assert pointwise == {name.split("-")[0] for name in FORMULAS}


SCALES = [1e-44, 1e-15, 1e-7, 1e-3, 1.0, 10.0, 100.0, 1e4, 1e15, 1e18, 1e37]
# Up to where the scores stay in their domain, or their squares and products in float32 (in their own dtype where torch
# multiplies); for areas, distances and what is sorted, down to where float32 tells them apart.
RANGES = {
    "angular": (0.0, 1.0),
    "box": (1e-7, 1e15),
    "metric": (0.1, 1e15),
    "affinity": (1e-3, 1e4),
    "lovasz": (1e-3, 1e3),
    "linear": (0.0, 1.0),
    "contrast": (1e-3, 1.0),
    "convolution": (0.0, 1.0),
    "multiclass": (0.0, 1e18),
    "rotated": (0.0, 1e6),
    "image": (0.0, 1e15),
    "segmentation": (0.0, 1e37),
    "softmax": (0.0, 1e30),
    "sequence": (0.0, 1e10),
    "transducer": (0.0, 1e37),
    "categorical": (0.0, 1e37),
    "detection": (0.0, 1.0),
    "mining": (0.0, 1e37),
}
# One rounding of the result's dtype, and the sums of a few dozen terms before it, of the size of the largest of them.
OF_LARGEST = {torch.float32: 1e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-9}


def gradients(op: opreg.Op, sample: opreg.Sample, call: Callable[..., Tensor]) -> list[Tensor]:
    inputs = list(tensors_with_grad(op, sample).values())
    y = as_function(op, sample, call)(*inputs)
    grads = torch.autograd.grad(y, inputs, torch.ones_like(y), allow_unused=True)
    return [y.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, inputs, strict=True))]


def changed(sample: opreg.Sample, change: Callable[[Tensor], Tensor]) -> opreg.Sample:
    """The sample with the tensors that ask for a gradient changed."""

    def of(a: object) -> object:
        if not isinstance(a, Tensor) or not a.is_floating_point():
            return a
        return change(a.detach()).requires_grad_(a.requires_grad) if a.requires_grad else a

    return opreg.Sample(tuple(map(of, sample.args)), {k: of(v) for k, v in sample.kwargs.items()}, sample.name)


@pytest.mark.parametrize("dtype", OF_LARGEST, ids=str)
@pytest.mark.parametrize("name", [n.split("::")[1] for n in OPS if n.split("::")[1] not in FORMULAS])
def test_scales(name: str, dtype: torch.dtype) -> None:
    """Scores of 1e37, or a row that is masked by the lowest number throughout, have the softmax that they have."""
    op = opreg.get(name)
    low, high = RANGES[op.family]
    largest, tolerance = torch.finfo(dtype).max, OF_LARGEST[dtype]
    wrong = []
    for k, sample in enumerate(op.samples(Maker(dtype, DEVICE, requires_grad=True))):
        inputs = tensors_with_grad(op, sample)
        if k > 8 or sample.name in ("kinks", "extremes") or sum(t.numel() for t in inputs.values()) > 1000:
            continue
        for scale in [s for s in SCALES if low <= s <= min(high, largest / 10)]:
            scaled = changed(sample, lambda t, scale=scale: t * scale)
            exact = changed(scaled, torch.Tensor.double)
            for got, want in zip(gradients(op, scaled, op.value), gradients(op, exact, op.call_reference), strict=True):
                size = want.abs().nan_to_num().amax() if want.numel() else 0
                near = (got.double() - want).abs() <= tolerance * size + 1e-6
                near |= want.isnan() | (want.abs() > 0.99 * largest)
                if not near.all():
                    at = int((~near).flatten().nonzero()[0])
                    wrong.append(f"{k} {sample.name} times {scale:g}: {got.flatten()[at]} for {want.flatten()[at]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("dtype", [torch.float64, *OF_LARGEST], ids=str)
@pytest.mark.parametrize("classes", [4, 300])
@pytest.mark.parametrize(
    "name",
    ["cross_entropy", "softmax_focal_loss", "pc_softmax_cross_entropy", "poly1_cross_entropy", "ohem_cross_entropy"],
)
def test_masked_row(name: str, classes: int, dtype: torch.dtype) -> None:
    """A row of the lowest number, which masks fill in, is a row of equal scores."""
    op = opreg.get(name)
    extra = (torch.ones(classes, device=DEVICE),) if name == "pc_softmax_cross_entropy" else ()
    target = torch.tensor([1, 0], device=DEVICE)
    results = []
    for value in (0.0, torch.finfo(dtype).min):
        x = torch.full((2, classes), value, dtype=dtype, device=DEVICE, requires_grad=True)
        loss = op.value(x, target, *extra, reduction="sum")
        results.append((loss.detach(), *torch.autograd.grad(loss, x)))
    for flat, masked in zip(*results, strict=True):
        assert torch.equal(flat, masked)
