"""Fake-tensor implementations, one text for every op: shape by the op's rule, dtype by promotion."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._private import register_fake
from .rules import Arguments, ShapeRule
from .schema import bind, gradient_names, require_tensors, result_names, results_of, returned
from .sizes import dtype_text, fail, is_size, same_shape, shape_text
from .states import State

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def promoted(tensors: Sequence[Tensor]) -> torch.dtype:
    """``torch.result_type`` of the floating tensors: those with dimensions decide if there are any; float32 of none."""
    floating = [t for t in tensors if t.is_floating_point()]
    if not floating:
        return torch.float32
    with_dims = [t.dtype for t in floating if t.dim() > 0] or [t.dtype for t in floating]
    dtype = with_dims[0]
    for other in with_dims[1:]:
        dtype = torch.promote_types(dtype, other)
    return dtype


def check_tensors(op: str, args: Arguments, on_host: Sequence[str] = ()) -> list[Tensor]:
    """The tensors among the arguments, the first of a floating dtype, all on one device or, if ``on_host``, the CPU."""
    named = [(n, a) for n, a in args.items() if isinstance(a, Tensor)]
    name, first = named[0]
    for other, t in named[1:]:
        if t.device != first.device and not (other in on_host and t.device.type == "cpu"):
            raise fail(op, "all tensors on one device", first.device, t.device)
        if t.dtype not in _FLOATING and (t.is_floating_point() or t.is_complex()):
            raise fail(op, f"{other} of a real dtype", dtype_text(t.dtype))
    if first.dtype not in _FLOATING:
        raise fail(op, f"{name} of dtype float64, float32, bfloat16 or float16", dtype_text(first.dtype))
    return [t for _, t in named]


def result_dtype(args: Arguments, typed_by: Sequence[str] = ()) -> torch.dtype:
    """The dtype of the op's result: the option ``dtype``, else what its tensors, or the named ones, promote to."""
    given: torch.dtype | None = args.get("dtype")
    typed = [args[n] for n in typed_by if args[n].is_floating_point()]
    return given or promoted(typed or [a for a in args.values() if isinstance(a, Tensor)])


def reduces(op: str, args: Arguments) -> bool:
    reduction = args.get("reduction", "none")
    if reduction not in ("none", "mean", "sum", "batchmean"):
        raise fail(op, 'reduction "none", "mean" or "sum"', f'"{reduction}"')
    return bool(reduction != "none")


def shapes_of_results(shape: Any, count: int) -> list[tuple[int, ...]]:
    """The shape of each result before reduction, of what a rule gives: one shape for all, or a list of one for each."""
    several = len(shape) > 0 and isinstance(shape[0], Sequence)
    return [tuple(one) for one in shape] if several else [tuple(shape)] * count


def value_fake(op: str, rule: ShapeRule, args: Arguments, results: int) -> Any:
    tensors = check_tensors(op, args, rule.on_host)
    shapes = shapes_of_results(rule(op, args), results)
    dtype = result_dtype(args, rule.typed_by)
    if reduces(op, args):
        return returned([tensors[0].new_empty((), dtype=dtype) for _ in shapes])
    return returned([like(tensors[0], shape, dtype) for shape in shapes])


def given_gradients(op: str, names: Sequence[str], args: Arguments) -> dict[str, Tensor]:
    """The gradients of an op's results that ``NAME_backward`` is given: of some of several, perhaps, but of one."""
    given = {n: args[n] for n in names if args[n] is not None}
    if not given:
        raise fail(op, f"{' or '.join(names)} to be a tensor", None)
    return given


def check_backward(
    op: str, rule: ShapeRule, state: State | None, args: Arguments, operands: Arguments, results: Sequence[str]
) -> None:
    """What ``NAME_backward`` is given beside the op's own arguments: gradients of results, the state, the mask.

    Where a tensor on the meta device comes beside others, this runs in the place of their kernel.
    """
    first = check_tensors(op, operands, rule.on_host)[0]
    shape = rule(op, operands)
    shapes = dict(zip(results, shapes_of_results(shape, len(results)), strict=True))
    given = given_gradients(op, results, args)
    for t in (*given.values(), *([] if state is None else [args["state"]])):
        if t.device != first.device:
            raise fail(op, "all tensors on one device", first.device, t.device)
    for name, grad in given.items():
        expected = () if reduces(op, operands) else shapes[name]
        if not same_shape(grad.shape, expected):
            raise fail(op, f"{name} of shape {shape_text(expected)}", shape_text(grad))
        if grad.dtype not in _FLOATING:
            got = dtype_text(grad.dtype)
            raise fail(op, f"{name} of dtype float64, float32, bfloat16 or float16", got)
    if state is not None:
        kept, wanted = args["state"], state(shape, args)
        # which dtype it has may depend on the option dtype, which only the forward pass knows
        if not same_shape(kept.shape, wanted.shape) or kept.dtype not in (wanted.dtype, torch.float64):
            text = f"the {dtype_text(wanted.dtype)} state of the forward pass, of shape {shape_text(wanted)}"
            raise fail(op, text, shape_text(kept))


def like(t: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """What the kernels return: laid out as ``t`` where that has the shape, else channels last where it is."""
    # ranks first: comparing sizes of different dimensions would be a guard on them
    if t.dim() != len(shape):
        return t.new_empty(tuple(shape), dtype=dtype)
    if all(is_size(a, b) for a, b in zip(t.shape, shape, strict=True)):
        return torch.empty_like(t, dtype=dtype)
    last = torch.channels_last
    if t.dim() == 4 and t.is_contiguous(memory_format=last) and not t.is_contiguous():
        return t.new_empty(tuple(shape), dtype=dtype).contiguous(memory_format=last)
    return t.new_empty(tuple(shape), dtype=dtype)


def check_mask(op: str, gradients: int, inputs: Sequence[str], args: Arguments) -> None:
    """One entry a gradient, and a tensor wherever one is asked for: the leading tensors are those with gradients."""
    mask = args["needs_input_grad"]
    if len(mask) != gradients:
        raise fail(op, "one entry of needs_input_grad a gradient", len(mask))
    for name, wanted in zip(inputs, mask, strict=False):
        if wanted and not isinstance(args[name], Tensor):
            raise fail(op, f"{name} to be a tensor", args[name])


def backward_fake(
    args: Arguments, full_shape: Sequence[int] | None, inputs: Sequence[str], grad_output: Tensor
) -> list[Tensor]:
    """Gradients are laid out as their tensors; but an operand's that was expanded comes from a sum: contiguous. Where
    none is asked for, a tensor without elements stands in its place."""
    grads = []
    for name, wanted in zip(inputs, args["needs_input_grad"], strict=False):
        if not wanted:
            grads.append(no_gradient(grad_output))
            continue
        t: Tensor = args[name]
        expanded = full_shape is not None and not (
            t.dim() == len(full_shape) and all(is_size(a, b) for a, b in zip(t.shape, full_shape, strict=True))
        )
        grads.append(t.new_empty(t.shape) if expanded else torch.empty_like(t))
    return grads


def no_gradient(grad_output: Tensor) -> Tensor:
    """What ``NAME_backward`` returns in the place of a gradient that needs_input_grad leaves out; ``grad_output`` is
    the first gradient of a result that it was given."""
    return grad_output.new_empty(0)


def register_fakes(name: str, rule: ShapeRule, lib: torch.library.Library, *, state: State | None = None) -> None:
    """Registers the fakes of ``name``, ``name_backward`` and, where state is kept, ``name_forward``, as long as ``lib``
    lives."""
    namespace, short = name.split("::")

    def overload_of(suffix: str) -> Any:
        return getattr(getattr(torch.ops, namespace), short + suffix).default

    def bound_to(suffix: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        overload = overload_of(suffix)
        bound = bind(overload, args, kwargs)
        require_tensors(overload, bound)
        return bound

    def value(*args: Any, **kwargs: Any) -> Any:
        return value_fake(short, rule, bound_to("", args, kwargs), len(result_names(overload_of(""))))

    def forward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        bound = bound_to("_forward", args, kwargs)
        assert state is not None
        results = value_fake(short, rule, bound, len(result_names(overload_of(""))))
        return (*results_of(results), state(rule(short, bound), bound))

    def backward(*args: Any, **kwargs: Any) -> Any:
        bound = bound_to("_backward", args, kwargs)
        results = gradient_names(overload_of(""))
        inputs = [n for n in bound if n not in (*results, "state", "needs_input_grad")]
        operands = {n: bound[n] for n in inputs}
        check_mask(short, overload_of("_backward")._schema.arguments[-1].N, inputs, bound)
        check_backward(short, rule, state, bound, operands, results)
        full = rule.elements(short, operands) if rule.elements else None
        first = next(iter(given_gradients(short, results, bound).values()))
        return returned(backward_fake(bound, full, inputs, first))

    register_fake(name, value, lib)
    register_fake(name + "_backward", backward, lib)
    if state is not None:
        register_fake(name + "_forward", forward, lib)
