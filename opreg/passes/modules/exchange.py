"""Modules exchanged for modules, and the calls in those whose forward can be traced."""

import functools
import inspect
import re
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ... import nn
from ..._package import PACKAGE
from ...faces.modules import class_name
from ...faces.stand_in import of_no_op
from ...op import Op
from .._native import by_call, native_call
from .._report import Left, Report, Swapped
from .._rewrite import Rewriter
from .._rule import NearMiss, Rule
from ..graph.calls import module_call
from ..graph.writes import FRESH_MODULES
from .state import State, joined
from .trace import Untraceable, called, traceable


def fuse_modules(
    module: torch.nn.Module, rules: Sequence[Rule | NearMiss], report: Report, activations: bool
) -> torch.nn.Module:
    """Rewrites a module in place, and returns it; where it is itself a loss or an activation, returns another one."""
    if is_native(module):
        return exchanged(module, report, activations, type(module).__name__, fresh=False) or module
    left = Report()  # in-place activations, of which a trace of their caller may show that they do no harm
    for path, parent in list(module.named_modules()):
        before: torch.nn.Module | None = None
        for name, child in list(parent._modules.items()):
            if child is None:
                continue
            where = joined(path, name)
            fresh = isinstance(parent, torch.nn.Sequential) and isinstance(before, FRESH_MODULES)
            other = None
            if is_native(child):
                found = Report()
                other = exchanged(child, found, activations, where, fresh=fresh)
                report.swapped.extend(found.swapped)
                left.left.extend(found.left)
            if other is not None:
                setattr(parent, name, other)
            before = other or child
    taken: set[str] = set()
    for path, inner in list(module.named_modules()):
        if not type(inner).__module__.startswith(("torch.nn.modules.", f"{PACKAGE}.")):
            taken |= {joined(path, name) for name in trace_and_fuse(inner, path, rules, report, activations)}
    report.left.extend(entry for entry in left.left if entry.where not in taken)
    return module


def is_native(module: torch.nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.") and not any(True for _ in module.children())


def exchanged(
    module: torch.nn.Module, report: Report, activations: bool, where: str, *, fresh: bool
) -> torch.nn.Module | None:
    """The module over an op for one of torch's; None where that stays. ``fresh``: its input is nobody else's."""
    call = module_call(module)
    native = native_call(call, by_call()) if call is not None else None
    if call is None or native is None or (native.op.inline and not activations):
        return None
    kind, reason = type(module), native.reason
    if call.in_place and not fresh:
        reason = "inplace=True writes to a tensor that others may see"
    elif any(b.requires_grad for b in module.buffers()):
        reason = f"a buffer requires grad, and is a constant of {native.op.short}"
    if reason:
        report.left.append(Left(f"torch.nn.{kind.__name__}", reason, where))
        return None
    report.swapped.append(Swapped(native.op.short, f"torch.nn.{kind.__name__}", where))
    return twin(module, native.op)


def twin(module: torch.nn.Module, op: Op) -> torch.nn.Module:
    """The module over an op that has the options and the buffers of one of torch's, and stands for it."""
    kind = getattr(nn, class_name(op))
    new: torch.nn.Module = kind.__new__(kind)
    further = {n: default for n, default in op.defaults.items() if n in kind.options and not hasattr(module, n)}
    vars(new).update(further | vars(module), stands_for=type(module))
    return new


def trace_and_fuse(
    module: torch.nn.Module, path: str, rules: Sequence[Rule | NearMiss], report: Report, activations: bool
) -> set[str]:
    """Rewrites the calls in a module's own forward, where tracing sees all that it does.

    Returns:
        The paths of the modules that it no longer calls.
    """
    candidates = mentioned(module)
    before_this = vars(module).get("forward")
    if hasattr(before_this, "_of_opreg_fuse"):  # fused before: it is traced anew, since it may have changed
        del vars(module)["forward"]
    try:
        traced, state = traceable(module)
    except Untraceable as reason:
        if candidates:
            where = f"{path or 'the module itself'} ({type(module).__qualname__})"
            why = f"{reason}: {reason.remedy}"
            report.left.append(Left(", ".join(candidates), why, where))
        return set()
    inner = Report()
    before = called(traced)
    Rewriter(traced, rules, inner, activations=activations).run()
    at = path or "forward"
    report.left.extend(Left(e.what, e.why, f"{e.where} in {at}") for e in inner.left)
    if inner.swapped:
        report.swapped.extend(Swapped(e.op, e.rule, f"{e.where} in {at}") for e in inner.swapped)
        module.forward = types.MethodType(
            guarded(type(traced).forward, type(module).forward, state, path or type(module).__qualname__), module
        )
    return before - called(traced)


def guarded(rewritten: Callable[..., Any], original: Callable[..., Any], state: State, name: str) -> Callable[..., Any]:
    """A forward that is the rewritten one while all is as it was when it was traced, of tensors that ops take; the
    module's own elsewhere."""
    told = False

    @functools.wraps(original)
    def forward(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        nonlocal told
        if state.cells and torch.compiler.is_compiling():
            return type(self).forward(self, *args, **kwargs)
        given = (*args, *kwargs.values())
        of_tensors = all(isinstance(a, torch.Tensor) for a in given)
        changed = state.changed(self)
        kind = next((found for a in given if (found := of_no_op(a))), "") if of_tensors else ""
        if of_tensors and not changed and not kind:
            return rewritten(self, *args, **kwargs)
        if (changed or kind) and not told and not torch.compiler.is_compiling():
            told = True
            why, remedy = f"an argument of {name} is {kind}", ""
            if changed:
                why, remedy = f"{changed} is not what it was when {name} was fused", "; fuse again to have the ops back"
            warnings.warn(f"opreg.fuse: {why}, so its own forward runs{remedy}", stacklevel=2)
        return type(self).forward(self, *args, **kwargs)

    forward._of_opreg_fuse = True  # type: ignore[attr-defined]
    return forward


def mentioned(module: torch.nn.Module) -> list[str]:
    """The native losses and activations that the source of a module's forward names."""
    try:
        text = inspect.getsource(type(module).forward)
    except (OSError, TypeError):
        return []
    names = {*by_call(), "CrossEntropyLoss", "BCEWithLogitsLoss", "MSELoss", "L1Loss", "NLLLoss"}
    helpers = set(re.findall(r"\bself\.(\w*loss\w*)\(", text))  # self.loss_function(...) of transformers
    return sorted({n for n in names if re.search(rf"\b{n}\(", text)} | helpers)
