"""Every private name of torch that opreg leans on, in one place, each with a test (tests/every_op/test_registry.py)."""

import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
from torch._C import _functorch
from torch.utils._python_dispatch import TorchDispatchMode

# vmap: an implementation under this key is called with batched tensors and decomposes the op.
VMAP_KEY = "FuncTorchBatchedDecomposition"
# The older vmap, which torch.autograd.grad(is_grads_batched=True) still runs over the backward.
BATCHED_GRADIENTS_KEY = "Batched"


def transform_active() -> bool:
    """Is a torch.func transform (grad, vmap, jvp, …) or a forward-mode level in force?"""
    if _functorch.peek_interpreter_stack() is not None:
        return True
    return torch.autograd.forward_ad._current_level >= 0


def has_tangent(t: torch.Tensor) -> bool:
    """Does forward mode differentiate it?"""
    level = torch.autograd.forward_ad
    return level._current_level >= 0 and level.unpack_dual(t).tangent is not None


def function_mode_active() -> bool:
    """Does a TorchFunctionMode, which is to see the calls of torch's functions, run in this thread?"""
    return bool(torch._C._is_torch_function_mode_enabled())


def tracing() -> bool:
    """Does something look on at each operation: a TorchDispatchMode (of fake tensors, a tracer), torch.jit.trace?"""
    return torch._C._len_torch_dispatch_stack() > 0 or torch._C._is_tracing()


def saved_tensors_are_packed() -> bool:
    """Do hooks (of checkpointing, of offloading) take the place of the tensors that are saved for a backward pass?"""
    return torch._C._autograd._top_saved_tensors_default_hooks(False) is not None


def checkpointing() -> bool:
    """Does torch.utils.checkpoint count the tensors that are saved now, to compare them with a second run?"""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"


def entry_of(overload: Any) -> Any:
    """What torch.ops calls for an overload, without what it was wrapped in."""
    entry = getattr(overload, "_op", overload)
    return getattr(entry, "entry", entry)


def wrap_entries(overload: Any, wrap: Callable[[Any], Any]) -> None:
    """Puts ``wrap(entry)`` for what torch.ops calls: of the overload, and of its name where that has no other one.

    TorchScript knows an op by that entry too.
    """
    if not hasattr(overload, "_op"):  # a torch that calls otherwise: its own words then
        return
    overload._op = wrap(overload._op)
    packet = overload._overloadpacket
    if packet.overloads() == ["default"]:
        packet._op = wrap(packet._op)
        torch.jit._builtins._register_builtin(packet._op, overload._schema.name)


def apply_function(function: type[torch.autograd.Function], *args: Any) -> Any:
    """``function.apply``, past its question whether a torch.func transform is active: here none is."""
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


# A context: calls inside go to the backend kernel, past autograd and what lies above it.
below_autograd = torch._C._AutoDispatchBelowAutograd


def below_inplace() -> AbstractContextManager[Any]:
    """The same, past the place where in-place changes are counted too."""
    guard: AbstractContextManager[Any] = torch._C._AutoDispatchBelowADInplaceOrView()
    return guard


def without_key(key: str) -> AbstractContextManager[Any]:
    """The dispatcher passes by what is registered for this key."""
    excluded = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(excluded)
    return guard


def has_kernel(name: str, key: str) -> bool:
    """Is a kernel registered for exactly this dispatch key?"""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(name, key))


def has_kernel_for(name: str, device_type: str) -> bool:
    """Is a kernel registered for this type of device?"""
    return has_kernel(name, torch._C._dispatch_key_for_device(device_type))


def names_in(namespace: str) -> list[str]:
    """The ops that the dispatcher knows in a namespace."""
    prefix = namespace + "::"
    return sorted(n.removeprefix(prefix) for n in torch._C._dispatch_get_all_op_names() if n.startswith(prefix))


def without_fake_mode() -> AbstractContextManager[Any]:
    """Tensors made inside are real ones, whatever traces outside."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    guard: AbstractContextManager[Any] = unset_fake_temporarily()
    return guard


def tensor_metadata(t: torch.Tensor) -> Any:
    """What shape propagation writes on a node beside its value."""
    from torch.fx.passes.shape_prop import _extract_tensor_metadata

    return _extract_tensor_metadata(t)


def compile_with_inductor(module: Any, inputs: Any, mode: str | None, options: Any) -> Any:
    """What ``torch.compile`` does for its own backend, options and modes included."""
    return torch._TorchCompileInductorWrapper(mode, options, None)(module, inputs)


def fake_mode() -> Any:
    """Tensors made inside have shape and dtype alone."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def function_being_compiled() -> Any:
    """What torch.compile was given, of which Dynamo is compiling a part: a function, or a module's method.

    None where the stack does not say. A part may be another function than that, which it calls.
    """
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        code = frame.f_code
        if code.co_name == "compile_wrapper" and frame.f_globals.get("__name__") == "torch._dynamo.eval_frame":
            function = frame.f_locals.get("fn")
            made = getattr(function, "__globals__", {}).get("__name__") == "torch._dynamo.external_utils"
            return function.__wrapped__ if made else function  # type: ignore[union-attr]
        frame = frame.f_back
    return None


def depends_on_data() -> tuple[type[Exception], ...]:
    """What a fake tensor raises where its elements are asked for, or a shape that depends on them."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    return DataDependentOutputException, DynamicOutputShapeException


def inductor_compiles() -> bool:
    """Is Inductor taking over a graph, in this thread?"""
    virtualized = sys.modules.get("torch._inductor.virtualized")
    return virtualized is not None and not isinstance(virtualized.V.fake_mode, virtualized.NullHandler)


# The modules of torch that read the keys of caches on disk.
CACHE_KEY_READERS = ("torch._dynamo.pgo", "torch._inductor.codecache", "torch._inductor.runtime.autotune_cache")


def set_in_cache_keys(name: str, digest: str) -> None:
    """Compiled code on disk is told apart by this digest too; an earlier one of the same name is replaced."""
    import torch.compiler.config as config

    others = [part for part in config.cache_key_tag.split() if not part.startswith(f"{name}=")]
    config.cache_key_tag = " ".join((*others, f"{name}={digest}"))


def sharded_tensor_class() -> type:
    """torch's class of tensors that are split over processes; who asks has imported it."""
    cls: type = sys.modules["torch.distributed.tensor"].DTensor
    return cls


def handle_sharded(overload: Any, handler: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> None:
    """What DTensor calls for an op, in place of a sharding strategy of its own."""
    dispatcher: Any = sharded_tensor_class()._op_dispatcher  # type: ignore[attr-defined]
    dispatcher._custom_op_handlers[overload] = handler


def destroy_library(lib: torch.library.Library) -> None:
    """Takes back what was defined and registered through it, from the dispatcher and from ``torch.ops``."""
    lib._destroy()


def register_fake(name: str, fake: Callable[..., Any], lib: torch.library.Library) -> None:
    """``torch.library.register_fake``, without its look at the source of whoever calls: with 121 names that look took
    half of the time of ``import opreg``."""
    holder = torch._library.simple_registry.singleton.find(name).fake_impl
    code = fake.__code__
    lib._registration_handles.append(holder.register(fake, f"{code.co_filename}:{code.co_firstlineno}", lib))


def has_op(name: str) -> bool:
    """Does the dispatcher know an op of this name, ``NAMESPACE::NAME``?"""
    return bool(torch._C._dispatch_has_kernel(name))


def forget_op(namespace: str, name: str) -> None:
    """``torch.ops`` looks the op up again: what it holds is of a definition that will be gone."""
    ops = getattr(torch.ops, namespace)
    if vars(ops).pop(name, None) is not None and name in ops._dir:
        ops._dir.remove(name)


def where_defined(name: str) -> str:
    """What the dispatcher says of where the schema of an op comes from."""
    found = re.search(r"^debug: registered at (.*)$", torch._C._dispatch_dump(name), re.MULTILINE)
    return found[1] if found else "another library"


class LightDispatchMode(TorchDispatchMode):
    """A TorchDispatchMode that does not import Dynamo, which takes a second, in order to be left alone by it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def graph_break(module: Any) -> tuple[str, tuple[tuple[str, int], ...]] | None:
    """Why Dynamo ended a graph before the end of its function, and at which lines of source, the innermost last; None
    where it did not."""
    reason = getattr(module, "compile_subgraph_reason", None)
    if reason is None or not getattr(reason, "graph_break", False):
        return None
    return str(reason.reason), tuple((f.filename, f.lineno or 0) for f in reason.user_stack or ())
