"""``opreg.testing.check`` finds what is wrong with an op: faults planted in a right one, and what finds each."""

import itertools
import re

import pytest
import torch
from torch import Tensor

import opreg
from opreg import registry

_names = itertools.count()


@pytest.fixture(autouse=True)
def registry_of_its_own(monkeypatch):
    monkeypatch.setattr(registry, "_ops", dict(registry._ops))  # other tests' programs would be searched for the ops


def softplus_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """log(1 + e^(input - target)), which is smooth, and where a sum with 1 loses digits."""
    loss = torch.nn.functional.softplus(input - target, threshold=1000)
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


def slopes(grad_output, input, target, reduction):
    scale = 1 / (input - target).numel() if reduction == "mean" else 1
    slope = grad_output * torch.sigmoid(input - target) * scale
    return slope.to(input.dtype), -slope.to(target.dtype)


def value(input, target, reduction="mean", *, dtype=None):
    result = softplus_loss(input.to(at_least_float(input)), target.to(at_least_float(target)), reduction)
    return result.to(dtype or torch.result_type(input, target))


def backward(grad_output, input, target, reduction="mean", *, needs_input_grad):
    grads = slopes(grad_output.to(at_least_float(input)), input.to(at_least_float(input)), target, reduction)
    grads = (grads[0].to(input.dtype), grads[1])
    return tuple(g if wanted else None for g, wanted in zip(grads, needs_input_grad, strict=True))


def at_least_float(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)


def samples(make):
    for reduction in ("none", "mean", "sum"):
        yield opreg.Sample((make.normal(3, 5), make.normal(3, 5)), {"reduction": reduction})


def errors(make):
    yield opreg.ErrorSample((make.normal(3), make.normal(4)), "target of the shape of input, got")


def op_of(value=value, backward=backward, shape=None, **declared) -> opreg.Op:
    name = f"planted::op_{next(_names)}"
    return opreg.register(
        opreg.Op(
            name=name, reference=softplus_loss, shape=shape or opreg.meta.same("input", "target"), samples=samples,
            errors=declared.pop("errors", errors), source="a test",
            schema='(Tensor input, Tensor target, str reduction="mean", *, ScalarType? dtype=None) -> Tensor',
            kernels={"CPU": value}, backward_kernels={"CPU": backward}, **declared,
        )
    )  # fmt: skip


def of_value(change):
    """The right kernel, and something done to what it returns."""
    return {"value": lambda *args, **kwargs: change(value(*args, **kwargs), *args)}


def of_gradients(change):
    return {"backward": lambda *args, **kwargs: change(backward(*args, **kwargs), *args)}


def scaled(factors):
    return lambda grads, *_: tuple(None if g is None else f * g for g, f in zip(grads, factors, strict=True))


def naive(input, target, reduction="mean", *, dtype=None):
    loss = torch.log(1 + torch.exp((input - target).to(at_least_float(input))))
    reduced = {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()
    return reduced.to(dtype or torch.result_type(input, target))


def naive_slopes(grads, grad_output, input, target, *_):
    """1 - 1 / (1 + e^x), which has no digits left where x is far below 0."""
    difference = (input - target).to(at_least_float(input))
    right, wrong = torch.sigmoid(difference), 1 - 1 / (1 + torch.exp(difference))
    return tuple(None if g is None else (g * (wrong / right)).to(g.dtype) for g in grads)


def contiguous_only(input, target, reduction="mean", *, dtype=None):
    """Reads memory as if the numbers stood side by side."""

    def as_stored(t):
        return torch.as_strided(t, t.shape, torch.empty(t.shape).stride())

    return value(as_stored(input), as_stored(target), reduction, dtype=dtype)


def shape_of_target(op, args):
    return torch.Size([*args["target"].shape, 1])


def writes(input, target, reduction="mean", *, dtype=None):
    result = value(input, target, reduction, dtype=dtype)
    with torch.no_grad():
        input.mul_(1.0).add_(1e-9)
    return result


def noise() -> float:
    return 1 + 1e-12 * torch.rand((), dtype=torch.float64).item()


FAULTS = {
    "a wrong value": (of_value(lambda v, *_: v * (1 + 1e-5)), "value against the reference"),
    "a wrong gradient": (of_gradients(scaled((1.001, 1))), "gradients against the reference"),
    "a wrong sign of the second gradient": (of_gradients(scaled((1, -1))), "gradients against the reference"),
    "a wrong shape rule": ({"shape": shape_of_target}, "opcheck"),
    "a result of another dtype": (
        of_value(lambda v, *_: v.float() if v.dtype == torch.bfloat16 else v), "dtype of the result for bfloat16"
    ),
    "digits lost in the value": ({"value": naive}, "float32 against float64"),
    "digits lost in the gradient": (of_gradients(naive_slopes), "float32 against float64"),
    "noise in the value": (of_value(lambda v, *_: (v.double() * noise()).to(v.dtype)), "the same bits again"),
    "noise in the gradient": (
        of_gradients(lambda g, *_: scaled((noise(), 1))(g)), "the same bits again"
    ),
    "another layout misread": ({"value": contiguous_only}, "other strides"),
    "an argument written to": ({"value": writes}, "the same bits again|opcheck"),
    "another message": (
        {"errors": lambda make: iter([opreg.ErrorSample((make.normal(3), make.normal(4)), "a smaller target")])},
        "expected the error 'a smaller target', got",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(fault):
    planted, check = FAULTS[fault]
    with pytest.raises(AssertionError, match=f"planted::op_[0-9]+: (.*)?({check})"):
        opreg.testing.check(op_of(**planted))


def test_the_right_op_passes_and_the_report_says_what_was_tried():
    report = opreg.testing.check(op_of())
    assert report.tried["value against the reference"] == 3
    assert report.tried["float32 against float64"] == 3
    assert report.skipped == {}
    without_errors = opreg.testing.check(op_of(errors=lambda make: iter(())))
    assert without_errors.skipped == {("messages of errors", "the declaration has no error samples"): 1}
    assert re.search(r"1 x skipped messages of errors: the declaration has no error samples", str(without_errors))
