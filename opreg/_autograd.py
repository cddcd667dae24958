"""Autograd, second derivative, torch.func and vmap for every op, from its backward op and its reference.

An op's kernel under the Autograd key has three ways: under a torch.func transform or forward mode it returns the
reference, which those can see through; without a gradient it calls the backend; else it goes through autograd.Function,
whose backward is the op ``NAME_backward``. That op is differentiable in turn, by differentiating the reference twice.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ._private import BATCHED_GRADIENTS_KEY, VMAP_KEY, below_autograd, transform_active
from .meta.schema import bind

if TYPE_CHECKING:
    from .registry import Op


def attach(op: "Op", lib: torch.library.Library) -> None:
    def value(*args: Any, **kwargs: Any) -> Any:
        if transform_active():
            return op.call_reference(*args, **kwargs)
        if not wants_gradient(args):
            with below_autograd():
                return op.value(*args, **kwargs)
        bound = bind(op.value, args, kwargs)
        differentiable = op.differentiable_in(bound)
        for name, a in bound.items():
            if isinstance(a, Tensor) and a.requires_grad and name not in (*differentiable, *op.detached):
                raise RuntimeError(
                    f"{op.short}: expected {name} that does not require grad (it is a constant of this loss), "
                    "got one that does; pass it detached"
                )
        return Value.apply(op, *bound.values())  # type: ignore[no-untyped-call]

    def backward(*args: Any, **kwargs: Any) -> Any:
        if transform_active():
            return reference_backward(op, args, kwargs)
        if not wants_gradient(args):
            with below_autograd():
                return op.backward(*args, **kwargs)
        return list(Backward.apply(op, *bind(op.backward, args, kwargs).values()))  # type: ignore[no-untyped-call]

    lib.impl(op.short, value, "Autograd")
    lib.impl(op.short, op.call_reference, VMAP_KEY)
    lib.impl(op.short + "_backward", backward, "Autograd")
    for key in (VMAP_KEY, BATCHED_GRADIENTS_KEY):
        lib.impl(op.short + "_backward", lambda *a, **k: reference_backward(op, a, k), key)
    if op.forward is not None:

        def forward(*args: Any, **kwargs: Any) -> Any:
            with below_autograd():
                return op.forward(*args, **kwargs)

        lib.impl(op.short + "_forward", forward, "Autograd")


def wants_gradient(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args)


class Value(torch.autograd.Function):
    """The op; its backward is the op ``NAME_backward``."""

    @staticmethod
    def forward(ctx: Any, op: "Op", *values: Any) -> Any:
        bound = dict(zip(op.arguments, values, strict=True))
        dtype = {"dtype": bound.pop("dtype")} if op.is_loss else {}
        state: Tensor | None = None
        mask = [bound[n] is not None and bound[n].requires_grad for n in op.differentiable]
        with below_autograd():
            if op.forward is None:
                result = op.value(*bound.values(), **dtype)
            else:
                asked = {"output_mask": mask} if op.forward_takes_mask else {}
                result, state = op.forward(*bound.values(), **dtype, **asked)
        save(ctx, op, state, bound)
        ctx.mask = mask if op.forward_takes_mask else None
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        op, state, bound = saved(ctx)
        names = list(bound)
        # where the state is made for a mask, that one: now less may be asked for
        mask = ctx.mask or [ctx.needs_input_grad[1 + names.index(n)] for n in op.differentiable]
        leading = [grad_output] if state is None else [grad_output, state]
        grads = iter(op.backward(*leading, *bound.values(), output_mask=mask))
        wanted = {n for n, m in zip(op.differentiable, mask, strict=True) if m}
        return (None, *(next(grads) if n in wanted else None for n in op.arguments))


class Backward(torch.autograd.Function):
    """The op ``NAME_backward``; its backward differentiates the reference twice."""

    @staticmethod
    def forward(ctx: Any, op: "Op", *values: Any) -> Any:
        names = [a.name for a in op.backward._schema.arguments]
        bound = dict(zip(names, values, strict=True))
        ctx.mask = bound.pop("output_mask")
        with below_autograd():
            grads = op.backward(*bound.values(), output_mask=ctx.mask)
        save(ctx, op, None, bound)
        return tuple(grads)

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> Any:
        op, _, bound = saved(ctx)
        if not op.second_derivative:
            raise RuntimeError(f"{op.short}: expected at most a first derivative, got a request for the second")
        create_graph = torch.is_grad_enabled()
        needed = dict(zip(bound, ctx.needs_input_grad[1:], strict=False))
        wanted = [n for n, m in zip(op.differentiable, ctx.mask, strict=True) if m]
        with torch.enable_grad():
            # New nodes to stop at; with create_graph they stay connected to the saved tensors, for a third derivative.
            for name in {n for n, need in needed.items() if need} | {*wanted}:
                t = bound[name]
                bound[name] = t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
            sources = {n: bound[n] for n, need in needed.items() if need}
            grad_output = bound.pop("grad_output")
            bound.pop("state", None)
            result = op.call_reference(**bound).to(grad_output.dtype)
            inputs = [bound[n] for n in wanted]
            first = torch.autograd.grad(result, inputs, grad_output, create_graph=True, allow_unused=True)
            pairs = [
                (g, gg)
                for g, gg in zip(first, grad_grads, strict=True)
                if g is not None and gg is not None and g.requires_grad
            ]
            second: tuple[Tensor | None, ...] = (None,) * len(sources)
            if pairs:
                second = torch.autograd.grad(
                    [g for g, _ in pairs],
                    list(sources.values()),
                    [gg for _, gg in pairs],
                    create_graph=create_graph,
                    allow_unused=True,
                )
        by_name = dict(zip(sources, second, strict=True))
        return (None, *(by_name.get(n) for n in needed), None)


def save(ctx: Any, op: "Op", state: Tensor | None, bound: dict[str, Any]) -> None:
    """Tensors through save_for_backward, so that in-place changes are noticed; the rest on ctx."""
    ctx.op = op
    ctx.options = {n: None if isinstance(a, Tensor) else a for n, a in bound.items()}
    ctx.tensors = [n for n, a in bound.items() if isinstance(a, Tensor)]
    ctx.save_for_backward(*(bound[n] for n in ctx.tensors), state)


def saved(ctx: Any) -> tuple["Op", Tensor | None, dict[str, Any]]:
    *tensors, state = ctx.saved_tensors
    return ctx.op, state, {**ctx.options, **dict(zip(ctx.tensors, tensors, strict=True))}


def reference_backward(op: "Op", args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """``NAME_backward`` by the reference: under transforms, and for ops that come without a backward kernel."""
    bound = bind(op.backward, args, kwargs)
    mask, grad_output = bound.pop("output_mask"), bound.pop("grad_output")
    bound.pop("state", None)
    wanted = [n for n, m in zip(op.differentiable, mask, strict=True) if m]

    def of_wanted(*tensors: Tensor) -> Tensor:
        result: Tensor = op.call_reference(**{**bound, **dict(zip(wanted, tensors, strict=True))})
        return result.to(grad_output.dtype)

    pullback = torch.func.vjp(of_wanted, *(bound[n] for n in wanted))[1]
    return list(pullback(grad_output))
