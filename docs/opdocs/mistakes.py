"""The form of each op's target, and what happens to a target of another form: found by making the call."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from opreg import Op, Sample
from opreg.meta.schema import bind

from . import facts
from .curves import result_of, small_samples, tensors


@dataclass(frozen=True)
class Mistake:
    """``given``: what was passed in the target's place; ``happens``: the error, or what came out without one."""

    given: str
    happens: str
    error: bool


INDEX, LISTED, LABEL = "class index", "class indices, listed", "label, any integer"
BOX, NUMBER, COUNT = "box", "number", "count"
UNIT = "in [0, 1]: one-hot, probability, quality"
SIGN_OR_MASK = ("0 or 1", "−1 or 1")


def target_names(op: Op) -> list[str]:
    """The arguments that say what is right: those called a target, and lengths of such."""
    return [n for n in op.tensor_arguments if n.startswith("target") and not n.endswith("lengths")]


def _all(op: Op, name: str) -> list[Tensor]:
    return [tensors(op, s)[name].detach() for s in small_samples(op)]


def form(op: Op, name: str) -> str:
    """The form of a target, by the values that the op's own samples have."""
    pairs = [(tensors(op, s)[name].detach(), tensors(op, s)[op.arguments[0]]) for s in small_samples(op)]
    whole = [t for t, _ in pairs if not t.is_floating_point()]
    values = torch.cat([t.flatten() for t, _ in pairs]).double()
    if name in op.indices and whole:
        if all(t.shape == x.shape for t, x in pairs):
            return SIGN_OR_MASK[0] if _zeros_and_ones(op, name) else LISTED
        if not facts.of_classes(op, name):
            return LABEL
        return INDEX if len(whole) == len(pairs) else f"{INDEX}, or probabilities"
    if op.rule.pointwise and all(t.dim() > 0 and t.shape[-1] in (4, 5) for pair in pairs for t in pair):
        return BOX
    if share(values, -1.0, 1.0) > 0.5 and values.min() < 0:
        return SIGN_OR_MASK[1]
    if values.min() >= 0 and values.max() <= 1:
        return SIGN_OR_MASK[0] if share(values, 0.0, 1.0) == 1 else UNIT
    return COUNT if values.min() >= 0 and bool((values == values.round()).all()) else NUMBER


def _zeros_and_ones(op: Op, name: str) -> bool:
    """Are the integers of the target 0 and 1, nearly all that are not to be ignored?"""
    calls = [bind(op.value, s.args, s.kwargs) for s in small_samples(op)]
    counted = [c[name][c[name] != c.get("ignore_index")].flatten() for c in calls]
    return share(torch.cat(counted), 0, 1) > 0.9


def share(values: Tensor, *kinds: float) -> float:
    return float(sum((values == k).double().mean() for k in kinds))


Changed = Callable[[Tensor, Tensor], Tensor | None]


def _one_hot(t: Tensor, x: Tensor) -> Tensor | None:
    if t.is_floating_point() or x.dim() != t.dim() + 1:
        return None
    axis = min(1, x.dim() - 1)
    return F.one_hot(t.long().clamp(0, x.shape[axis] - 1), x.shape[axis]).movedim(-1, axis).to(x.dtype)


def _class(t: Tensor, x: Tensor) -> Tensor | None:
    return t.argmax(1) if t.is_floating_point() and t.dim() > 1 and t.shape == x.shape and t.shape[1] > 1 else None


def _floats(t: Tensor, x: Tensor) -> Tensor | None:
    return None if t.is_floating_point() else t.to(x.dtype)


# How a target is often given, and to ops of which forms that is a mistake.
MISTAKES: tuple[tuple[str, tuple[str, ...], Changed], ...] = (
    ("one-hot rows of floats", (INDEX, LABEL), _one_hot),
    ("the indices as floats", (INDEX, LISTED, LABEL), _floats),
    ("indices that begin at 1", (INDEX, LISTED), lambda t, x: t + 1),
    ("class indices, one a row", (UNIT, SIGN_OR_MASK[0]), _class),
    ("0 and 1", (SIGN_OR_MASK[1],), lambda t, x: (t > 0).to(t.dtype)),
    ("−1 and 1", (UNIT, SIGN_OR_MASK[0]), lambda t, x: 2 * t - 1),
    ("percent, 0 to 100", (UNIT,), lambda t, x: 100 * t),
    ("centre and size in place of corners", (BOX,), lambda t, x: _centred(t) if t.shape[-1] == 4 else None),
    ("one dimension more at the end", (), lambda t, x: t.unsqueeze(-1) if t.dim() > 0 else None),
)


def _centred(t: Tensor) -> Tensor:
    low, high = t[..., :2], t[..., 2:]
    return torch.cat([(low + high) / 2, high - low], -1)


def called(op: Op, sample: Sample, name: str, target: Tensor | None = None) -> Tensor:
    bound = bind(op.value, sample.args, sample.kwargs)
    if target is not None:
        bound[name] = target
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return result_of(op, **bound).detach()


def _sample(op: Op, name: str) -> Sample:
    """One with several rows and classes, the target of the input's shape or with a class for each row."""

    def fits(s: Sample) -> tuple[bool, ...]:
        x, t = tensors(op, s)[op.arguments[0]], tensors(op, s)[name]
        index = name not in op.indices or (not t.is_floating_point() and bool((t >= 0).all()))
        return (index, min(x.shape, default=0) > 1, x.dim() == 2, t.shape == x.shape or t.dim() == x.dim() - 1)

    return max(small_samples(op), key=fits)  # of equals the first, which is the smallest


def mistakes(op: Op, name: str) -> list[Mistake]:
    """What happens to targets of other forms: the op is called with each."""
    sample = _sample(op, name)
    bound = tensors(op, sample)
    x, right = bound[op.arguments[0]].detach(), bound[name].detach()
    expected = called(op, sample, name)
    result = []
    its_form = form(op, name)
    for given, forms, change in MISTAKES:
        wrong = change(right, x) if not forms or its_form.startswith(forms) else None
        if wrong is None or (wrong.dtype == right.dtype and torch.equal(wrong, right)):
            continue
        try:
            value = called(op, sample, name, wrong)
        except Exception as error:
            result.append(Mistake(given, str(error).split("\n")[0], True))
            continue
        if value.shape == expected.shape and torch.allclose(value, expected, equal_nan=True):
            result.append(Mistake(given, "no error, the same loss", False))
        elif value.shape == expected.shape and value.numel() == 1:
            result.append(
                Mistake(given, f"no error, another loss: {float(value):.3g} in place of {float(expected):.3g}", False)
            )
        else:
            result.append(Mistake(given, "no error, another loss", False))
    return result
