"""What each dimension of a call's tensors stands for: by this a call can be split over processes.

A dimension's label is a word or a number. The same label in two tensors is the same dimension, of which one tensor may
have a single element. ``VALUES`` lists the dimensions of what the op computes before any reduction: each value depends
on its own place along those alone, so that they can be split. Whatever else a tensor has is needed as a whole, but for
``CLASSES``, over which some ops can be computed in parts.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import Tensor

Labels = Sequence[Hashable]
Dims = Mapping[str, Labels]
DimsFunction = Callable[[Mapping[str, Any]], Dims]

CLASSES = "classes"
# The key of the labels of the values, which is no argument's name.
VALUES = ""


def from_right(t: Tensor) -> Labels:
    """Labels of a tensor that broadcasts: dimensions of several tensors belong together counted from the last one."""
    return tuple(range(-t.dim(), 0))


def longest(*tensors: Tensor) -> Labels:
    return max((from_right(t) for t in tensors), key=len)


def broadcasting(*names: str) -> DimsFunction:
    """Tensors that broadcast, None left out: a value for each element."""

    def dims(args: Mapping[str, Any]) -> Dims:
        tensors = {n: args[n] for n in names if args[n] is not None}
        return {n: from_right(t) for n, t in tensors.items()} | {VALUES: longest(*tensors.values())}

    return dims


def variances(input: str, target: str, var: str) -> DimsFunction:
    """As ``meta.variance``: the last dimension of ``var`` may be missing."""
    pairs, all_three = broadcasting(input, target), broadcasting(input, target, var)

    def dims(args: Mapping[str, Any]) -> Dims:
        x, v = args[input], args[var]
        if v.dim() == x.dim() - 1 and v.shape == x.shape[:-1]:
            return {**pairs(args), var: from_right(x)[:-1]}
        return all_three(args)

    return dims


def joined_last(*names: str, joined: str, target: str | None = None) -> DimsFunction:
    """Tensors (…, D) that broadcast give a value for each (…); ``joined`` says what D is. ``target`` has no D."""

    def dims(args: Mapping[str, Any]) -> Dims:
        labels: dict[str, Labels] = {n: (*from_right(args[n])[:-1], joined) for n in names}
        values = longest(*(args[n] for n in names))[:-1]
        if target is not None:
            labels[target] = tuple(range(-args[target].dim() - 1, -1))
            values = max(values, labels[target], key=len)
        return {**labels, VALUES: values}

    return dims


def summed_over_last(input: str, *others: str) -> DimsFunction:
    """As ``meta.class_sums``: operands that broadcast, summed over the dimension that is the last of ``input``. Where
    another one has more dimensions, the size of that last one still counts, and it is needed as a whole."""

    def dims(args: Mapping[str, Any]) -> Dims:
        tensors = {n: args[n] for n in (input, *others) if args[n] is not None}
        whole = longest(*tensors.values())
        summed = whole[args[input].dim() - 1]
        joined = {-1: "counted", summed: "summed"}
        labels: dict[str, Labels] = {n: tuple(joined.get(k, k) for k in from_right(t)) for n, t in tensors.items()}
        return {**labels, VALUES: tuple(k for k in whole if k != summed)}

    return dims


def class_rows(*inputs: str, target: str | None = None, weight: str | None = None) -> DimsFunction:
    """Tensors (C) or (N, C, d1 … dk) give a value for each position. ``target`` has an index a position, or is floating
    and of their shape; ``weight`` has an entry a class."""

    def dims(args: Mapping[str, Any]) -> Dims:
        first = args[inputs[0]]
        scores: Labels = ("batch", CLASSES, *range(1, first.dim() - 1)) if first.dim() > 1 else (CLASSES,)
        values = tuple(k for k in scores if k != CLASSES)
        labels: dict[str, Labels] = dict.fromkeys(inputs, scores)
        if target is not None:
            t = args[target]
            alike = t.is_floating_point() and t.dim() == first.dim()
            # the target of one row may have shape (1)
            labels[target] = scores if alike else values if t.dim() == len(values) else ("one",)
        if weight is not None and args[weight] is not None:
            labels[weight] = (CLASSES,)
        return {**labels, VALUES: values}

    return dims


def class_rows_or_one(input: str, target: str, weight: str | None = None) -> DimsFunction:
    """As ``meta.margin_rows``: (N, C) and a target (N) or (N, C); of one row the shapes may be others."""

    def dims(args: Mapping[str, Any]) -> Dims:
        x, t = args[input], args[target]
        several = x.dim() == 2 and t.dim() > 0
        labels: dict[str, Labels] = {input: ("batch", "row")} if several else {input: ("one",) * x.dim()}
        labels[target] = ("batch", "row")[: t.dim()] if several else ("one",) * t.dim()
        if weight is not None and args[weight] is not None:
            labels[weight] = ("row",)
        return {**labels, VALUES: ("batch",) if several else ()}

    return dims


def region_rows(input: str, target: str, weight: str | None = None, whole: str = "") -> DimsFunction:
    """As ``meta.regions``: one value a sample; or where the option ``whole`` is true, one of all."""
    pixels = class_rows(input, target=target, weight=weight)

    def dims(args: Mapping[str, Any]) -> Dims:
        return {**pixels(args), VALUES: () if whole and args[whole] else ("batch",)}

    return dims


def image_pairs(*names: str) -> DimsFunction:
    """As ``meta.image_pairs``: one value an image."""
    image: Labels = ("batch", "channels", "height", "width")
    return lambda args: {**dict.fromkeys(names, image), VALUES: ("batch",)}


def sequences(args: Mapping[str, Any]) -> Dims:
    """Of ``meta.ctc``. Targets that lie one after the other can't be split along the batch."""
    several, split = args["log_probs"].dim() == 3, args["targets"].dim() == 2
    values: Labels = ("batch",) if several and split else ()
    sample: Labels = values or ("sample",)
    return {
        "log_probs": ("steps", *sample, "symbols") if several else ("steps", "symbols"),
        "targets": (*sample, "labels") if split else ("labels",),
        "input_lengths": sample[: args["input_lengths"].dim()],
        "target_lengths": sample[: args["target_lengths"].dim()],
        VALUES: values,
    }


def transducers(args: Mapping[str, Any]) -> Dims:
    """Of ``meta.transducer``."""
    return {
        "logits": ("batch", "steps", "places", "symbols"),
        "targets": ("batch", "labels"),
        "logit_lengths": ("batch",)[: args["logit_lengths"].dim()],
        "target_lengths": ("batch",)[: args["target_lengths"].dim()],
        VALUES: ("batch",),
    }
