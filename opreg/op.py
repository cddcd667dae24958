"""An op's declaration, what its schema says beside it, and its reference under the op's own conventions.

Nothing here knows what is attached to a declaration (``attach``) or that there is a registry: this is the ground on
which they stand.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from . import _autocast, _private
from ._library import FUSING, NAMESPACE
from ._native_calls import NativeCalls
from ._package import PACKAGE
from .meta import ShapeRule, State
from .meta.fakes import result_dtype
from .meta.rules import ShapeFunction, shape_rule
from .meta.schema import bind, gradient_names, result_names, results_of, returned

# Counts the floating-point operations of a call, from its arguments by name and its result.
Flops = Callable[[Mapping[str, Any], Any], int]


def no_constants(args: Mapping[str, Any]) -> Sequence[str]:
    return ()


def always_divisible(args: Mapping[str, Any]) -> str:
    return ""


@dataclass(frozen=True)
class Sample:
    """One call: arguments, options by keyword.

    ``smooth`` is False at kinks, at extremes and where the result is NaN: finite differences say nothing there.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    smooth: bool = True


@dataclass(frozen=True)
class ErrorSample:
    """A call that must fail, and a regular expression for its message.

    ``values`` marks an error that only the values show: the kernel raises it, a fake can't.
    """

    args: tuple[Any, ...]
    message: str
    kwargs: dict[str, Any] = field(default_factory=dict)
    values: bool = False


def _overload(name: str) -> Any:
    """``torch.ops.NAMESPACE.NAME.default`` of ``NAMESPACE::NAME``."""
    namespace, short = name.split("::")
    return getattr(getattr(torch.ops, namespace), short).default


@dataclass(frozen=True, eq=False)
class Op:
    """The declaration of an op. What has a default is given by keyword, and most ops need little of it.

    The mathematics:
        name: ``focal_loss`` (in opreg's own namespace), or ``mylib::my_loss``.
        reference: the definition in plain torch, of the schema's arguments without ``dtype``: the tests' oracle, the
            decomposition, the second derivative, what vmap and forward mode run, and the pattern of ``Rule.of(op)``.
            Of an op with several results: a tuple of them. Of an op that writes to its arguments: what it writes, one
            tensor for each that is written to.
        shape: the rule of ``opreg.meta``, or a function of the op's name and its arguments by name, that checks these
            and gives the shape of the result before reduction. Of several results: the shape of each of them, in a
            list where they differ.
        samples: ``samples(make)`` yields calls; ``make`` draws tensors (``opreg.testing.Maker``).
        errors: ``errors(make)`` yields calls that must fail, with the message.
        source: the paper or the native op that defines it; the public docstring gets it from here.
        indices: arguments that are class indices when they are integral, and are not to be converted to floating point.
        state: ``state(shape, args)`` gives an empty tensor like the one that ``NAME_forward`` keeps for the backward
            pass, from the result's shape before reduction and the arguments; None: no such op.
        constants: names of the arguments that are not differentiable in a call, beyond those of the schema; never the
            first one.
        detached: names of the tensors that the definition itself treats as constants: one that requires grad gets none.
        batch_dims: the dimension of a tensor that counts the batch, where that is not the first; None: it has none.
        count: what the mean (or the one value that the op gives) is divided by, of the arguments by name; None, or
            where it gives None: the number of values.
        averaged: what the mean adds up, of the values with reduction ``"none"`` and the arguments, where that is not
            the values themselves.
        whole: why a call can't be split over processes even along the dimensions of its values, of the arguments by
            name: a sentence about the op; ``""`` where it can.
        domain: maps any first argument to where the op's gradient is that of its value, where that is not everywhere:
            finite differences go through it.
        second_derivative: is there one? Where not, asking for it is an error.

    The face that people see:
        doc: the public docstring, of ``opreg.functional.NAME``; by default the reference's.
        module: the name of the class in ``opreg.nn``; by default NAME in camel case.
        accepts: arguments that ``opreg.functional.NAME`` takes in other forms too: ``convert(value, arguments)`` makes
            the op's own of them; the annotation of ``value`` says which forms.
        advice: what to do about an error, by a regular expression that its message matches.

    Compilers and rewrites:
        native: torch's own function with the op's signature, where there is one.
        spellings: qualified names of the native ops and functions that compute the same, for rewrites and
            ``opreg.use``: torch's first, and those of other libraries.
        rules: how programs write what the op computes, where its reference has branches that no pattern can have:
            ``rules(op, takes)`` gives the rules that look for it in the reference's place. ``takes`` is an objection,
            of shapes, dtypes and numbers that the op refuses.
        inline: when Inductor compiles, put the reference in the op's place, so that it fuses with its neighbours: on
            every device. Where the rule of ``shape`` is pointwise, that is so on a GPU in any case.
        lowered: names of the tensors that autocast converts to its dtype: operands of matrix products.
        unrolled: the reference is a loop over a size of its arguments, so that its graph grows with them.

    Benchmarks:
        workload: ``workload(make, size)`` yields the calls that the benchmark times at a size ("small", "usual",
            "large", "huge"), where it can't draw them by itself from the samples.
        flops: what torch.utils.flop_counter counts, ``{"": formula, "_forward": …, "_backward": …}``, each from the
            arguments by name and the result; for ops that multiply matrices.

    Kernels of an op without a library:
        schema: ``"(Tensor input, ...) -> Tensor"``; of an op with several results ``"(...) -> (Tensor mean, Tensor
            variance)"``, each with its name.
        kernels: dispatch key to Python function.
        backward_kernels: the same for ``NAME_backward(grad_output, ..., needs_input_grad)``, which returns a tuple with
            a gradient for each tensor argument, None where the mask says False; by default the reference's. Of an op
            with several results it begins with ``grad_mean, grad_variance``: of those one or more may be None.
    """

    # the mathematics
    name: str
    reference: Callable[..., Any]
    shape: ShapeRule | ShapeFunction
    samples: Callable[[Any], Iterator[Sample]]
    errors: Callable[[Any], Iterator[ErrorSample]]
    source: str
    _: KW_ONLY
    indices: tuple[str, ...] = ()
    state: State | None = None
    constants: Callable[[Mapping[str, Any]], Sequence[str]] = no_constants
    detached: tuple[str, ...] = ()
    batch_dims: Mapping[str, int | None] = field(default_factory=dict)
    count: Callable[[Mapping[str, Any]], Any] | None = None
    averaged: Callable[[Tensor, Mapping[str, Any]], Tensor] | None = None
    whole: Callable[[Mapping[str, Any]], str] = always_divisible
    domain: Callable[[Tensor], Tensor] | None = None
    second_derivative: bool = True

    # the face that people see
    doc: str = ""
    module: str = ""
    accepts: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = field(default_factory=dict)
    advice: Mapping[str, str] = field(default_factory=dict)

    # compilers, autocast and rewrites
    native: Callable[..., Tensor] | None = None
    spellings: tuple[str, ...] = ()
    rules: Callable[["Op", Callable[[Mapping[str, Any]], str]], Iterator[Any]] | None = None
    inline: bool = False
    lowered: tuple[str, ...] = ()
    unrolled: bool = False

    # benchmarks
    workload: Callable[[Any, str], Iterator[Sample]] | None = None
    flops: Mapping[str, Flops] = field(default_factory=dict)

    # kernels, for an op without a library
    schema: str = ""
    kernels: Mapping[str, Callable[..., Any]] | None = None
    backward_kernels: Mapping[str, Callable[..., Any]] | None = None

    @cached_property
    def qualname(self) -> str:
        return self.name if "::" in self.name else f"{NAMESPACE}::{self.name}"

    @cached_property
    def short(self) -> str:
        return self.qualname.split("::")[1]

    @cached_property
    def rule(self) -> ShapeRule:
        """``shape``, as a rule where it is a function."""
        return shape_rule(self.shape, self.qualname)

    @cached_property
    def module_name(self) -> str:
        """The module that declares it: ``opreg.ops.binary``."""
        declared: Any = self.samples
        while isinstance(declared, partial):
            declared = declared.func
        return str(declared.__module__)

    @cached_property
    def own(self) -> bool:
        """Is it one of opreg's, and not a user's?"""
        return self.module_name.startswith(f"{PACKAGE}.")

    @cached_property
    def family(self) -> str:
        """The stem of the file that declares it: ``binary``."""
        return self.module_name.rsplit(".", 1)[-1]

    @cached_property
    def kernels_name(self) -> str:
        """The name under which the op's kernels stand alone, without autograd."""
        namespace, short = self.qualname.split("::")
        return f"{namespace}_kernels::{short}"

    @cached_property
    def value(self) -> Any:
        """``torch.ops.NAMESPACE.NAME.default``"""
        return _overload(self.qualname)

    @cached_property
    def backward(self) -> Any:
        """``NAME_backward``: the gradients of the results, state if any, the arguments. A gradient for each entry of
        the mask; where that is False a tensor without elements.

        None where the op writes to its arguments.
        """
        return None if self.mutated else _overload(self.qualname + "_backward")

    @cached_property
    def forward(self) -> Any:
        """``NAME_forward``: results and state; None where the op keeps no state."""
        return None if self.state is None else _overload(self.qualname + "_forward")

    # For calls inside a call, which is looked at when it has failed (attach/messages.py); once is enough.
    @cached_property
    def value_entry(self) -> Any:
        return _private.entry_of(self.value)

    @cached_property
    def backward_entry(self) -> Any:
        return _private.entry_of(self.backward)

    @cached_property
    def forward_entry(self) -> Any:
        return _private.entry_of(self.forward)

    @cached_property
    def one_pass_entry(self) -> Any:
        """A kernel of the reduced value and, beside it, the gradient where that of the value is 1, from one read of the
        arguments: in the first of them, or in those that a mask asks for. None where there is none. Only the CPU has
        some."""
        if self.mutated or not self.reduces or not _private.has_op(f"{self.kernels_name}_with_gradient"):
            return None
        return _private.entry_of(_overload(f"{self.kernels_name}_with_gradient"))

    @cached_property
    def one_pass_takes_mask(self) -> bool:
        schema = _overload(f"{self.kernels_name}_with_gradient")._schema
        return bool(schema.arguments[-1].name == "needs_input_grad")

    @property
    def overloads(self) -> list[Any]:
        return [o for o in (self.value, self.forward, self.backward) if o is not None]

    @cached_property
    def arguments(self) -> list[str]:
        return [a.name for a in self.value._schema.arguments]

    @cached_property
    def tensor_arguments(self) -> list[str]:
        return [a.name for a in self.value._schema.arguments if "Tensor" in str(a.type)]

    @cached_property
    def results(self) -> tuple[str, ...]:
        """The names of what a call returns: ``("output",)`` where that is one tensor."""
        return result_names(self.value)

    @cached_property
    def gradients_of_results(self) -> tuple[str, ...]:
        """The first arguments of ``NAME_backward``. Where there are several, some may be None."""
        return gradient_names(self.value)

    @cached_property
    def mutated(self) -> list[str]:
        """The arguments that the op writes to. Such an op returns nothing."""
        return [a.name for a in self.value._schema.arguments if a.alias_info is not None and a.alias_info.is_write]

    def written(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The tensors that a call writes to."""
        bound = bind(self.value, args, kwargs)
        return [t for name in self.mutated for t in (bound[name] if isinstance(bound[name], list) else [bound[name]])]

    @cached_property
    def differentiable(self) -> list[str]:
        """The leading tensor arguments, as many as ``needs_input_grad`` of the backward schema has entries."""
        if self.backward is None:
            return []
        return self.tensor_arguments[: self.backward._schema.arguments[-1].N]

    @cached_property
    def differentiable_positions(self) -> list[int]:
        return [self.arguments.index(name) for name in self.differentiable]

    @cached_property
    def defaults(self) -> dict[str, Any]:
        return {a.name: a.default_value for a in self.value._schema.arguments if a.has_default_value()}

    @cached_property
    def is_loss(self) -> bool:
        """Has a ``dtype`` option: float32 under autocast. Other ops keep their input's dtype."""
        return "dtype" in self.arguments

    def fuses_on(self, device_type: str) -> bool:
        """Does Inductor compute it as fast as the op's kernels do on such a device, and fuse it with its neighbours?"""
        return device_type in FUSING and self.rule.pointwise and not self.mutated

    def inlined_on(self, device_type: str) -> bool:
        """Does Inductor get the reference in the op's place?"""
        return self.inline or self.fuses_on(device_type)

    @cached_property
    def reduces(self) -> bool:
        return "reduction" in self.arguments

    @cached_property
    def forward_takes_mask(self) -> bool:
        """Does the state depend on which gradients will be asked for?"""
        return self.forward is not None and self.forward._schema.arguments[-1].name == "needs_input_grad"

    def differentiable_in(self, args: Mapping[str, Any]) -> list[str]:
        """The arguments with respect to which this call has a gradient."""
        constants = self.constants(args)
        return [n for n in self.differentiable if n not in constants]

    def under_autocast(self, bound: Mapping[str, Any], device_type: str) -> dict[str, Any]:
        """The arguments of a call as autocast makes them. Twice is once."""
        bound = dict(bound)
        for name in self.lowered:
            t = bound[name]
            if t is not None and t.is_floating_point() and t.dtype != torch.float64:
                bound[name] = t.to(torch.get_autocast_dtype(device_type))
        low = (torch.float16, torch.bfloat16)
        if self.is_loss and bound["dtype"] is None and result_dtype(bound, self.rule.typed_by) in low:
            bound["dtype"] = torch.float32
        return bound

    def call_reference(self, *args: Any, **kwargs: Any) -> Any:
        """The reference with the op's own conventions: arithmetic in float32 (float64), results in the op's dtype, and
        under autocast what the op does there."""
        bound = bind(self.value, args, kwargs)
        autocast = _autocast.active(bound)
        if autocast:
            bound = self.under_autocast(bound, autocast)
        return self.evaluate_reference(bound, autocast)

    def evaluate_reference(self, bound: Mapping[str, Any], autocast: str) -> Any:
        """The same of arguments that are converted already; ``autocast``: the type of device on which that is on."""
        bound = dict(bound)
        dtype = result_dtype(bound, self.rule.typed_by)
        # where a transform calls the functions inside, autocast is back; float64 it leaves alone
        least = torch.float64 if autocast and _private.transform_active() else torch.float32
        # float64 where one comes in or goes out
        compute = torch.promote_types(torch.promote_types(dtype, result_dtype({**bound, "dtype": None})), least)
        bound.pop("dtype", None)
        for name in self.tensor_arguments:
            t = bound[name]
            if t is not None and (t.is_floating_point() or name not in self.indices):
                bound[name] = t.to(compute)
        with _autocast.suspended(autocast), NativeCalls():
            return returned([t.to(dtype) for t in results_of(self.reference(**bound))])

    def write_reference(self, *args: Any, **kwargs: Any) -> None:
        """Writes what the reference gives, where the op writes to its arguments."""
        bound = bind(self.value, args, kwargs)
        with NativeCalls():
            written = self.reference(**bound)
        for t, new in zip(self.written(**bound), written, strict=True):
            t.copy_(new)
