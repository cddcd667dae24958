"""A small algebra of shape rules.

A rule takes an op's name and its arguments by name, checks that the shapes fit, and returns the shape of the result
before reduction. The messages are those of the C++ kernels; a test holds the two side by side.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import dims as labels
from .dims import DimsFunction
from .sizes import dtype_text, expands_to, fail, is_size, joined, same_shape, same_size, shape_text

Arguments = Mapping[str, Any]
ShapeFunction = Callable[[str, Arguments], Sequence[int]]


@dataclass(frozen=True)
class ShapeRule:
    """The shape rule of an op, with what its schema does not say of dtypes and devices.

    Args:
        shape: checks the arguments, and gives the shape of the result before reduction.
        elements: the shape to which the operands broadcast, where the result has fewer dimensions than that.
        typed_by: the tensors whose promoted dtype is the result's, whatever that of the others; none: all of them.
        on_host: the tensors that may be on the CPU whatever the device of the others.
        pointwise: does each value come from one element of every operand, or from one pair of boxes?
        dims: what each dimension of the tensors stands for (``opreg.meta.dims``), so that a call can be split over
            processes; None: not said, so that each process needs all of them.
    """

    shape: ShapeFunction
    elements: ShapeFunction | None = None
    typed_by: tuple[str, ...] = ()
    on_host: tuple[str, ...] = ()
    pointwise: bool = False
    dims: DimsFunction | None = None

    def __call__(self, op: str, args: Arguments) -> Sequence[int]:
        return self.shape(op, args)


def shape_rule(given: object, name: str) -> ShapeRule:
    """What an op declares as its rule: one of this module, or a function that checks and gives a shape.

    Raises:
        ValueError: it is neither; ``name`` says whose it is.
    """
    if isinstance(given, ShapeRule):
        return given
    if not callable(given):
        raise ValueError(f"{name}: expected a rule of opreg.meta or a function (op, arguments) -> shape, got {given!r}")
    return ShapeRule(given)


def typed_by(*names: str, rule: ShapeRule) -> ShapeRule:
    """The rule of an op whose result has the dtype of these tensors, whatever that of the others.

    As torch's own function has it, which for instance writes into a tensor like its first one.
    """
    return replace(rule, typed_by=names)


def require_indices(op: str, name: str, t: Tensor) -> None:
    if t.dtype not in (torch.int64, torch.int32, torch.uint8):
        raise fail(op, f"{name} of dtype int64, int32 or uint8", dtype_text(t.dtype))


def require_shape_of(op: str, name: str, t: Tensor, input: str, x: Tensor) -> None:
    if not same_shape(t.shape, x.shape):
        raise fail(op, f"{name} of the shape of {input}", shape_text(x), shape_text(t))


def require_shape(op: str, name: str, t: Tensor, expected: Sequence[int], input: str, x: Tensor) -> None:
    """``t`` of a shape that follows from that of ``x``, the argument ``input``."""
    if not same_shape(t.shape, expected):
        raise fail(op, f"{name} of shape {shape_text(expected)} for {input} of shape {shape_text(x)}", shape_text(t))


def require_entry_a_class(op: str, name: str | None, args: Arguments, classes: int) -> None:
    """For class weights and the like: the argument ``name``, where the op has it and the call gives it."""
    t = args[name] if name else None
    if t is not None and not same_shape(t.shape, (classes,)):
        raise fail(op, f"{name} of one entry a class, [{classes}]", shape_text(t))


def require_odd_side(op: str, name: str, side: int, input: str, x: Tensor) -> None:
    """Of a square window in images (N, C, H, W)."""
    if side < 1 or side % 2 == 0:
        raise fail(op, f"an odd {name} of at least 1", side)
    if side > x.shape[2] or side > x.shape[3]:
        raise fail(op, f"{name} of at most the height and the width of {input}, {shape_text(x.shape[2:])}", side)


def same(*names: str, optional: Sequence[str] = ()) -> ShapeRule:
    """All of one shape; the optional ones expand to it."""
    first, *others = names
    expanded = expanding(*optional, to=first)

    def rule(op: str, args: Arguments) -> Sequence[int]:
        for name in others:
            require_shape_of(op, name, args[name], first, args[first])
        return expanded(op, args)

    return ShapeRule(rule, pointwise=True, dims=labels.broadcasting(*names, *optional))


def expanding(*names: str, to: str) -> ShapeRule:
    """The shape of ``to``, to which the others expand."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        shape: Sequence[int] = args[to].shape
        for name in names:
            if args[name] is not None and not expands_to(args[name].shape, shape):
                expected = f"{name} that expands to the shape of {to}"
                raise fail(op, expected, shape_text(shape), shape_text(args[name]))
        return shape

    return ShapeRule(rule, pointwise=True, dims=labels.broadcasting(to, *names))


def broadcast(*names: str, same_rank: bool = False, optional: Sequence[str] = ()) -> ShapeRule:
    """The broadcast shape of all; the optional ones expand to it."""
    first, *others = names

    def rule(op: str, args: Arguments) -> Sequence[int]:
        shape: Sequence[int] = args[first].shape
        for name in others:
            t = args[name]
            if same_rank and t.dim() != args[first].dim():
                raise fail(op, f"{name} of the rank of {first}", shape_text(args[first]), shape_text(t))
            both = joined(shape, t.shape)
            if both is None:
                raise fail(op, f"{name} that broadcasts with {first}", shape_text(args[first]), shape_text(t))
            shape = both
        for name in optional:
            if args[name] is not None and not expands_to(args[name].shape, shape):
                expected = f"{name} that expands to the shape of {first}"
                raise fail(op, expected, shape_text(args[first]), shape_text(args[name]))
        return shape

    return ShapeRule(rule, pointwise=True, dims=labels.broadcasting(*names))


def variance(input: str, target: str, var: str) -> ShapeRule:
    """``torch.nn.functional.gaussian_nll_loss``: one variance an element, or one a row."""
    pairs = broadcast(input, target)

    def rule(op: str, args: Arguments) -> Sequence[int]:
        shape, v = args[input].shape, args[var].shape
        if len(v) == len(shape) - 1 and same_shape(v, shape[:-1]):
            v = (*v, 1)
        else:
            ones = [is_size(b, 1) and not is_size(a, 1) for a, b in zip(shape, v, strict=False)]
            fit = all(one or same_size(a, b) for one, a, b in zip(ones, shape, v, strict=False))
            if len(v) != len(shape) or not fit or sum(ones) > 1:
                expected = f"{var} of the shape of {input}, or with one dimension of 1 or the last one missing"
                raise fail(op, expected, shape_text(shape), shape_text(v))
        both = pairs(op, args)
        whole = joined(both, v)
        if whole is None:
            raise fail(op, f"{var} that broadcasts with {input}", shape_text(both), shape_text(v))
        return whole

    return ShapeRule(rule, pointwise=True, dims=labels.variances(input, target, var))


def boxes(input: str, target: str, *, number: str | None = None, numbers: int = 4) -> ShapeRule:
    """One value a pair of boxes, each so many numbers along the last dimension; ``number`` is a 0-d tensor."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, t = args[input], args[target]
        if x.dim() == 0 or not same_size(x.shape[-1], numbers):
            raise fail(op, f"{input} of shape (..., {numbers})", shape_text(x))
        require_shape_of(op, target, t, input, x)
        n = None if number is None else args[number]
        if n is not None and n.dim() != 0:
            raise fail(op, f"{number} of one number, of shape []", shape_text(n))
        shape: Sequence[int] = x.shape[:-1]
        return shape

    dims = labels.joined_last(input, target, joined="coordinates")
    if number is None:
        return ShapeRule(rule, pointwise=True, dims=dims)
    return ShapeRule(rule, pointwise=True, dims=lambda args: {**dims(args), number: ()})


def rows(input: str, target: str, *, weight: str | None = None, probabilities: bool = False) -> ShapeRule:
    """One value a row: ``input`` (C) or (N, C, d1 … dk) gives () or (N, d1 … dk).

    ``target`` holds class indices of the result's shape; with ``probabilities`` a floating target of the shape of
    ``input`` is one too. ``weight`` has one entry a class.
    """

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, t = args[input], args[target]
        if x.dim() == 0:
            raise fail(op, f"{input} of shape (C) or (N, C, ...)", shape_text(x))
        axis = min(1, x.dim() - 1)
        if is_size(x.shape[axis], 0):
            raise fail(op, f"{input} of at least one class", shape_text(x))
        result = (*x.shape[:axis], *x.shape[axis + 1 :])
        if probabilities and t.is_floating_point():
            require_shape_of(op, target, t, input, x)
        else:
            require_indices(op, target, t)
            one_row = x.dim() == 1 and t.dim() == 1 and same_size(t.shape[0], 1)
            if not one_row:
                require_shape(op, target, t, result, input, x)
        require_entry_a_class(op, weight, args, x.shape[axis])
        return result

    return ShapeRule(rule, dims=labels.class_rows(input, target=target, weight=weight))


def margin_rows(input: str, target: str, *, weight: str | None = None, lists: bool = False) -> ShapeRule:
    """One value a row of ``input`` (C) or (N, C); ``target`` has an index a row or, with ``lists``, a list as long."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, t = args[input], args[target]
        if x.dim() > 2:
            raise fail(op, f"{input} of shape (C) or (N, C)", shape_text(x))
        classes = x.shape[-1] if x.dim() else 1
        if is_size(classes, 0):
            raise fail(op, f"{input} of at least one class", shape_text(x))
        require_indices(op, target, t)
        result = x.shape[:1] if x.dim() == 2 else x.shape[:0]
        if lists:
            # the dimension of a single class may be missing
            if not same_shape(tuple(t.shape) or (1,), tuple(x.shape) or (1,)):
                raise fail(op, f"{target} of the shape of {input}", shape_text(x), shape_text(t))
        else:
            one = t.dim() == 0 or (t.dim() == 1 and is_size(t.shape[0], 1))
            one_row = one and (x.dim() < 2 or is_size(x.shape[0], 1))
            if not one_row:
                require_shape(op, target, t, result, input, x)
            result = t.shape
        require_entry_a_class(op, weight, args, classes)
        return tuple(result)

    return ShapeRule(rule, dims=labels.class_rows_or_one(input, target, weight))


def class_sums(input: str, *others: str) -> ShapeRule:
    """Operands that broadcast, None left out, summed over the dimension that is the last of ``input``."""

    def elements(op: str, args: Arguments) -> Sequence[int]:
        if args[input].dim() == 0:
            raise fail(op, f"{input} of at least one dimension", shape_text(args[input]))
        present = [n for n in others if args[n] is not None]
        return broadcast(input, *present)(op, args)

    def rule(op: str, args: Arguments) -> Sequence[int]:
        shape, axis = elements(op, args), args[input].dim() - 1
        return (*shape[:axis], *shape[axis + 1 :])

    return ShapeRule(rule, elements=elements, pointwise=True, dims=labels.summed_over_last(input, *others))


def vectors(*names: str, target: str | None = None, broadcasts: bool = False) -> ShapeRule:
    """One value a vector along the last dimension: tensors (…, D) of one shape, or of one rank and broadcast, give (…).

    With a ``target`` there, they are (N, D) and it is (N), or they are (D) and it is ().
    """
    first = names[0]
    fit = broadcast(*names, same_rank=True) if broadcasts else same(*names)

    def rule(op: str, args: Arguments) -> Sequence[int]:
        shape = fit(op, args)
        result = shape[:-1]
        if target is None:
            return result
        t = args[target]
        both = joined(result, t.shape)
        if len(shape) not in (1, 2) or t.dim() != len(result) or both is None:
            expected = f"{target} of shape [N] for {first} of shape [N, D], or of [] for [D]"
            raise fail(op, expected, shape_text(t), shape_text(args[first]))
        return both

    return ShapeRule(rule, dims=labels.joined_last(*names, joined="features", target=target))


def classes(*names: str, target: str | None = None, least: int = 1) -> ShapeRule:
    """One value a position: tensors of one shape, (C) or (N, C, d1 … dk), of at least so many classes, give () or
    (N, d1 … dk); ``target`` holds class indices of that shape."""
    first = names[0]
    alike = same(*names)
    positions = rows(first, target) if target else None

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x = args[first]
        if x.dim() == 0:
            raise fail(op, f"{first} of shape (C) or (N, C, ...)", shape_text(x))
        alike(op, args)
        axis = min(1, x.dim() - 1)
        if any(is_size(x.shape[axis], n) for n in range(least)):
            raise fail(op, f"{first} of at least {('one class', 'two classes')[least - 1]}", shape_text(x))
        return positions(op, args) if positions else (*x.shape[:axis], *x.shape[axis + 1 :])

    return ShapeRule(rule, dims=labels.class_rows(*names, target=target))


def bins(input: str, target: str) -> ShapeRule:
    """One value a place among bins: ``input`` (…, R), of at least two, gives (…), the shape of ``target``."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x = args[input]
        if x.dim() == 0 or any(is_size(x.shape[-1], n) for n in (0, 1)):
            raise fail(op, f"{input} of at least two classes", shape_text(x))
        require_shape(op, target, args[target], x.shape[:-1], input, x)
        result: Sequence[int] = x.shape[:-1]
        return result

    return ShapeRule(rule, dims=labels.joined_last(input, joined="bins", target=target))


def regions(input: str, target: str, *, weight: str | None = None, soft: bool = False, batch: str = "") -> ShapeRule:
    """One value a sample: ``input`` (N, C, d1 … dk) gives (N), or where the option ``batch`` is true, ().

    ``target`` holds a class index for each pixel; with ``soft``, a floating target of the shape of ``input`` holds
    probabilities. ``weight`` has one entry a class.
    """
    pixels = rows(input, target, weight=weight, probabilities=soft)

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x = args[input]
        if x.dim() < 2:
            raise fail(op, f"{input} of shape (N, C, ...)", shape_text(x))
        pixels(op, args)
        return () if batch and args[batch] else x.shape[:1]

    return ShapeRule(rule, dims=labels.region_rows(input, target, weight, batch))


def images(input: str, target: str, *, kernel_size: str | None = None) -> ShapeRule:
    """One value for all images: ``input`` (N, C, H, W), ``target`` (N, H, W), into which ``kernel_size`` fits."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, t = args[input], args[target]
        if x.dim() != 4:
            raise fail(op, f"{input} of shape (N, C, H, W)", shape_text(x))
        if is_size(x.shape[1], 0):
            raise fail(op, f"{input} of at least one class", shape_text(x))
        require_indices(op, target, t)
        require_shape(op, target, t, (x.shape[0], *x.shape[2:]), input, x)
        if kernel_size is None:
            return ()
        require_odd_side(op, kernel_size, args[kernel_size], input, x)
        return ()

    return ShapeRule(rule, dims=labels.region_rows(input, target))


def image_pairs(input: str, target: str, *, window_size: str) -> ShapeRule:
    """One value an image: ``input`` and ``target`` of one shape (N, C, H, W), into which ``window_size`` fits."""

    def rule(op: str, args: Arguments) -> Sequence[int]:
        x, size = args[input], args[window_size]
        if x.dim() != 4:
            raise fail(op, f"{input} of shape (N, C, H, W)", shape_text(x))
        if is_size(x.shape[1], 0):
            raise fail(op, f"{input} of at least one channel", shape_text(x))
        require_shape_of(op, target, args[target], input, x)
        require_odd_side(op, window_size, size, input, x)
        images: Sequence[int] = x.shape[:1]
        return images

    return ShapeRule(rule, dims=labels.image_pairs(input, target))


_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def require_lengths(op: str, name: str, lengths: Tensor, samples: int, input: str, x: Tensor) -> None:
    """How many entries of each sample count: an integer a sample."""
    if lengths.dtype not in _INTEGERS:
        raise fail(op, f"{name} of an integer dtype", dtype_text(lengths.dtype))
    if lengths.dim() > 1 or not same_size(lengths.numel(), samples):
        expected = f"{name} of shape {shape_text([samples])} for {input} of shape {shape_text(x)}"
        raise fail(op, expected, shape_text(lengths))


_CTC_LENGTHS = ("input_lengths", "target_lengths")


def _ctc(op: str, args: Arguments) -> Sequence[int]:
    x, t, blank = args["log_probs"], args["targets"], args["blank"]
    if x.dim() not in (2, 3):
        raise fail(op, "log_probs of shape (T, N, C) or (T, C)", shape_text(x))
    batched = x.dim() == 3
    samples = x.shape[1] if batched else 1
    if not 0 <= blank < x.shape[-1]:
        raise fail(op, f"blank in [0, {x.shape[-1]})", blank)
    require_indices(op, "targets", t)
    if t.dim() != 1 and (t.dim() != 2 or not same_size(t.shape[0], samples)):
        expected = f"targets of shape [{samples}, S] or [sum of target_lengths] for log_probs of shape {shape_text(x)}"
        raise fail(op, expected, shape_text(t))
    for name in _CTC_LENGTHS:
        require_lengths(op, name, args[name], samples, "log_probs", x)
    return (samples,) if batched else ()


# ``torch.nn.functional.ctc_loss``: one value a sequence.
ctc = ShapeRule(_ctc, on_host=_CTC_LENGTHS, dims=labels.sequences)

_TRANSDUCER_LENGTHS = ("logit_lengths", "target_lengths")


def _transducer(op: str, args: Arguments) -> Sequence[int]:
    x, t, blank = args["logits"], args["targets"], args["blank"]
    if x.dim() != 4 or is_size(x.shape[2], 0):
        raise fail(op, "logits of shape (N, T, U + 1, V)", shape_text(x))
    samples, _, places, classes = x.shape
    if is_size(classes, 0):
        raise fail(op, "logits of at least one class", shape_text(x))
    if not -classes <= blank < classes:
        raise fail(op, f"blank in [{-classes}, {classes})", blank)
    require_indices(op, "targets", t)
    require_shape(op, "targets", t, (samples, places - 1), "logits", x)
    for name in _TRANSDUCER_LENGTHS:
        require_lengths(op, name, args[name], samples, "logits", x)
    return (samples,)


# The RNN transducer: one value a sequence.
transducer = ShapeRule(_transducer, on_host=_TRANSDUCER_LENGTHS, dims=labels.transducers)
