"""Autograd, second derivative, torch.func and vmap for every op, from its backward op and its reference.

An op's kernel under the Autograd key has four ways: under a torch.func transform or forward mode it returns the
reference, which those can see through; without a gradient it calls the backend; where Inductor compiles, and inlines
the op, it returns the reference, whose gradient is compiled with it; else it goes through autograd.Function, whose
backward is the op ``NAME_backward``, or what the forward pass computed with the value (``one_pass``). That op is
differentiable in turn, by differentiating the reference twice.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _autocast
from .._private import (
    BATCHED_GRADIENTS_KEY,
    VMAP_KEY,
    apply_function,
    below_autograd,
    inductor_compiles,
    transform_active,
)
from ..meta.fakes import given_gradients, no_gradient
from ..meta.schema import bind, defaults, results_of, returned
from ..op import Op, no_constants
from . import one_pass, sharding
from .inlining import inlined, reference


def attach(op: Op, lib: torch.library.Library) -> None:
    schema = op.value._schema
    if any(a.kwarg_only != (a.name == "dtype") for a in schema.arguments):
        raise ValueError(f"{op.qualname}: expected a schema whose one argument behind * is dtype, if any, got {schema}")
    if not all(op.results):
        raise ValueError(f"{op.qualname}: expected a schema with a name for each of several results, got {schema}")
    count, gradients = len(op.differentiable), str(op.backward._schema)
    results = f"({', '.join(['Tensor'] * count)})" if count > 1 else "Tensor"
    optional = "?" if len(op.results) > 1 else ""
    beginning = ", ".join(f"Tensor{optional} {name}" for name in op.gradients_of_results)
    ending = f"*, bool[{count}] needs_input_grad) -> {results}"
    if not gradients.startswith(f"{op.qualname}_backward({beginning}, ") or not gradients.endswith(ending):
        expected = f"{op.short}_backward({beginning}, ..., {ending}"
        raise ValueError(f"{op.qualname}: expected a schema {expected}, got {gradients}")
    # what a call may leave out, by position
    tail = tuple(default for name, default in defaults(op.value).items() if name != "dtype")
    # never a constant: without `constants` any that the schema says, else the first
    differentiable = frozenset(op.differentiable_positions[: None if op.constants is no_constants else 1])

    may_be_inlined = op.inline or op.rule.pointwise
    as_reference = partial(reference, op)

    def value(*args: Any, **kwargs: Any) -> Any:
        if transform_active():
            return reference(op, *args, **kwargs)
        if sharding.any_sharded(args):
            return sharding.call(op, args, kwargs)
        if not wants_gradient(args):
            with below_autograd():
                return op.value_entry(*args, **kwargs)
        # what is compiled is never a plain tensor; that is asked first, because every call comes by here
        plain = not may_be_inlined or type(args[0]) is Tensor
        if not plain and inductor_compiles() and op.inlined_on(args[0].device.type):
            return inlined(op, *args, **kwargs)
        values = (*args, *tail[len(args) :])
        for k, a in enumerate(values):
            if k not in differentiable and isinstance(a, Tensor) and a.requires_grad:
                require_constants(op, dict(zip(op.arguments, values, strict=False)))
        if op.is_loss:
            values = (*values, kwargs.get("dtype"))
        return apply_function(Value, op, *values)

    def backward(*args: Any, **kwargs: Any) -> Any:
        if transform_active():
            return reference_backward(op, args, kwargs)
        if sharding.any_sharded(args):
            return sharding.call_backward(op, args, kwargs)
        if not wants_gradient(args):
            with below_autograd():
                return op.backward_entry(*args, **kwargs)
        return apply_function(Backward, op, *bind(op.backward, args, kwargs).values())

    lib.impl(op.short, value, "Autograd")
    lib.impl(op.short, as_reference, VMAP_KEY)
    lib.impl(op.short + "_backward", backward, "Autograd")
    for key in (VMAP_KEY, BATCHED_GRADIENTS_KEY):
        lib.impl(op.short + "_backward", lambda *a, **k: reference_backward(op, a, k), key)
    if op.forward is not None:

        def forward(*args: Any, **kwargs: Any) -> Any:
            if sharding.any_sharded(args):
                return sharding.call_forward(op, args, kwargs)
            with below_autograd():
                return op.forward_entry(*args, **kwargs)

        lib.impl(op.short + "_forward", forward, "Autograd")


def wants_gradient(args: tuple[Any, ...]) -> bool:
    if torch.is_grad_enabled():
        for a in args:
            if isinstance(a, Tensor) and a.requires_grad:
                return True
    return False


def require_constants(op: Op, bound: dict[str, Any]) -> None:
    allowed = (*op.differentiable_in(bound), *op.detached)
    for name, a in bound.items():
        if isinstance(a, Tensor) and a.requires_grad and name not in allowed:
            raise RuntimeError(
                f"{op.short}: expected {name} that does not require grad (it is a constant of this loss), "
                "got one that does; pass it detached"
            )


class Value(torch.autograd.Function):
    """The op; its backward is the op ``NAME_backward``. A small input's whole time is spent here, so
    arguments go by position."""

    @staticmethod
    def forward(ctx: Any, op: Op, *values: Any) -> Any:
        needed = ctx.needs_input_grad
        mask = [needed[1 + k] for k in op.differentiable_positions]
        positional, dtype = (values[:-1], {"dtype": values[-1]}) if op.is_loss else (values, {})
        state: Tensor | None = None
        with below_autograd():
            if one_pass.fits(op, positional, mask):
                result = one_pass.forward(ctx, op, positional, dtype, mask)
            elif op.forward is None:
                result = op.value_entry(*positional, **dtype)
            else:
                with_mask = {"needs_input_grad": mask} if op.forward_takes_mask else {}
                *results, state = op.forward_entry(*positional, **dtype, **with_mask)
                result = returned(results)
        save(ctx, op, state, positional)
        ctx.mask = mask if op.forward_takes_mask else None
        # a result that nobody differentiates has no gradient, and not one of zeros
        ctx.set_materialize_grads(False)
        return result

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> Any:
        needed = ctx.needs_input_grad
        if all(g is None for g in grad_outputs):
            return (None,) * len(needed)
        grads: list[Tensor | None] = [None] * len(needed)
        ahead = one_pass.gradients(ctx, grad_outputs[0], lambda: saved(ctx)[::2])
        if ahead is not None:
            for k, grad in zip(ctx.op.differentiable_positions, ahead, strict=False):
                grads[1 + k] = grad
            return tuple(grads)
        op, state, positional = saved(ctx)
        if state is None and op.forward is not None:
            with_mask = {"needs_input_grad": ctx.mask} if op.forward_takes_mask else {}
            with below_autograd():
                state = op.forward_entry(*positional, **with_mask)[-1]
        # where the state is made for a mask, that one: now less may be asked for
        mask = ctx.mask or [needed[1 + k] for k in op.differentiable_positions]
        leading = grad_outputs if state is None else (*grad_outputs, state)
        if torch.is_grad_enabled() or transform_active():
            given = op.backward(*leading, *positional, needs_input_grad=mask)
        else:
            with below_autograd():
                given = op.backward_entry(*leading, *positional, needs_input_grad=mask)
        for k, wanted, grad in zip(op.differentiable_positions, mask, results_of(given), strict=True):
            if wanted:
                grads[1 + k] = grad
        return tuple(grads)


class Backward(torch.autograd.Function):
    """The op ``NAME_backward``; its backward differentiates the reference twice."""

    @staticmethod
    def forward(ctx: Any, op: Op, *values: Any) -> Any:
        *positional, ctx.mask = values
        with below_autograd():
            given = op.backward_entry(*positional, needs_input_grad=ctx.mask)
        save(ctx, op, None, positional)
        return given

    @staticmethod
    def backward(ctx: Any, *grad_grads: Tensor | None) -> Any:
        op, _, positional = saved(ctx)
        bound = dict(zip(defaults(op.backward), positional, strict=False))
        if not op.second_derivative:
            raise RuntimeError(f"{op.short}: expected at most a first derivative, got a request for the second")
        create_graph = torch.is_grad_enabled()
        needed = dict(zip(bound, ctx.needs_input_grad[1:], strict=False))
        wanted = dict(zip(op.differentiable, grad_grads, strict=True))
        wanted = {n: gg for (n, gg), m in zip(wanted.items(), ctx.mask, strict=True) if m}
        # the saved tensors are those that the kernel got: nothing is left for autocast to do
        with _autocast.suspended(_autocast.active(bound)), torch.enable_grad():
            # New nodes to stop at; with create_graph they stay connected to the saved tensors, for a third derivative.
            for name in {n for n, need in needed.items() if need} | {*wanted}:
                t = bound[name]
                bound[name] = t.view_as(t) if create_graph and t.requires_grad else t.detach().requires_grad_()
            sources = {n: bound[n] for n, need in needed.items() if need}
            grad_outputs = [bound.pop(n) for n in op.gradients_of_results]
            bound.pop("state", None)
            results, grad_outputs = with_gradients(op.call_reference(**bound), grad_outputs)
            inputs = [bound[n] for n in wanted]
            first = torch.autograd.grad(results, inputs, grad_outputs, create_graph=True, allow_unused=True)
            pairs = [
                (g, gg)
                for g, gg in zip(first, wanted.values(), strict=True)
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


def with_gradients(results: Any, grad_outputs: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Those of an op's results that have a gradient, in its dtype, and the gradients."""
    pairs = [(r, g) for r, g in zip(results_of(results), grad_outputs, strict=True) if g is not None]
    return [r.to(g.dtype) for r, g in pairs], [g for _, g in pairs]


def save(ctx: Any, op: Op, state: Tensor | None, values: Sequence[Any]) -> None:
    """Tensors through save_for_backward, so that in-place changes are noticed; the rest on ctx."""
    ctx.op = op
    ctx.options = [None if isinstance(a, Tensor) else a for a in values]
    ctx.save_for_backward(*[a if isinstance(a, Tensor) else None for a in values], state)


def saved(ctx: Any) -> tuple[Op, Tensor | None, list[Any]]:
    *tensors, state = ctx.saved_tensors
    return ctx.op, state, [a if t is None else t for a, t in zip(ctx.options, tensors, strict=True)]


def reference_backward(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``NAME_backward`` by the reference: under transforms, and for ops that come without a backward kernel."""
    bound = bind(op.backward, args, kwargs)
    given_gradients(op.short, op.gradients_of_results, bound)
    mask, grad_outputs = bound.pop("needs_input_grad"), [bound.pop(n) for n in op.gradients_of_results]
    bound.pop("state", None)
    wanted = [n for n, m in zip(op.differentiable, mask, strict=True) if m]

    # the arguments are those that the kernel got: nothing is left for autocast to do
    autocast = _autocast.active(bound)

    def of_wanted(*tensors: Tensor) -> list[Tensor]:
        given = {**bound, **dict(zip(wanted, tensors, strict=True))}
        return with_gradients(op.evaluate_reference(given, autocast), grad_outputs)[0]

    with _autocast.suspended(autocast):
        pullback = torch.func.vjp(of_wanted, *(bound[n] for n in wanted))[1]
        there = [g for g in grad_outputs if g is not None]
        made = dict(zip(wanted, pullback(there), strict=True))
        return returned([made[n] if n in made else no_gradient(there[0]) for n in op.differentiable])
