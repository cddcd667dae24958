"""The graph of a module's own forward, where tracing sees all that it does."""

import inspect
import operator
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ..._library import KERNEL_KEYS
from ..graph.calls import IN_PLACE_OF_ANYTHING, module_call
from .state import State, Unwatched, frozen, hooked, options_of
from .watch import Watch


def called(module: fx.GraphModule) -> set[str]:
    """The paths of the modules that a graph calls."""
    return {str(n.target) for n in module.graph.nodes if n.op == "call_module"}


class Untraceable(Exception):
    """A forward that a trace does not show, and why; ``remedy``: what its reader can do."""

    def __init__(
        self, why: str, remedy: str = "torch.compile(backend='opreg') and torch.export see through it"
    ) -> None:
        super().__init__(why)
        self.remedy = remedy


def modes() -> tuple[bool, ...]:
    """Switches that a context manager sets, and that a graph does not record."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *map(torch.is_autocast_enabled, KERNEL_KEYS),
    )


def dropped(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The name of an argument that a function of torch was called with, and that its record lacks; else "".

    A function that is written in Python hands its arguments to whoever records it, one by one: ``F.l1_loss`` of torch
    2.13 forgets its weight. They are looked for in the call of the function itself, which has not returned yet; where a
    mode has made the call again, in each of the two.
    """
    code, frame = getattr(function, "__code__", None), sys._getframe(1)
    while code is not None and frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is code:
            signature = inspect.signature(function)
            recorded = signature.bind_partial(*args, **kwargs).arguments
            for name, parameter in signature.parameters.items():
                if name not in recorded and frame.f_locals.get(name) is not parameter.default:
                    return name
    return ""


class _Written(fx.Proxy):
    """A value in a trace that records ``x *= 2`` as a write to x. Torch's own proxy records ``x = x * 2``."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if name := dropped(function, args, kwargs or {}):
            # whoever else records the call, as AOTAutograd does for every compiler, lacks it too
            raise Untraceable(f"torch records {function.__name__} without its {name}", f"write out what {name} does")
        return super().__torch_function__(function, types, args, kwargs)


def _recorded(function: Any) -> Any:
    def method(self: _Written, *args: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, *args), {})

    return method


for _f, _target in {**IN_PLACE_OF_ANYTHING, operator.setitem: operator.setitem}.items():
    setattr(_Written, f"__{_f.__name__}__", _recorded(_target))


class _OneLevel(fx.Tracer):
    """Traces the forward of one module; the modules below it stay calls."""

    def __init__(self) -> None:
        super().__init__()
        self.record_stack_traces = True
        self.modes = modes()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Written(node, self)

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        if modes() != self.modes:
            raise Untraceable("its forward switches gradients or autocast")
        return super().create_node(kind, *args, **kwargs)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, torch.Tensor) and not any(a is t for t in owned(self.root)):
            raise Untraceable("its forward makes tensors of its own")  # they may be random
        return super().create_arg(a)


def owned(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every tensor that a module holds, or one below it."""
    yield from module.parameters()
    yield from module.buffers()
    for m in module.modules():
        yield from (t for t in vars(m).values() if isinstance(t, torch.Tensor))


def traceable(module: torch.nn.Module) -> tuple[fx.GraphModule, State]:
    """The graph of a module's forward, and what the forward read beside its arguments.

    Raises:
        Untraceable: the graph is not the same in training and evaluation, or for all tensors.
    """
    parameters = list(inspect.signature(module.forward).parameters.values())
    if any(p.default is not p.empty or p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
        raise Untraceable("its forward has optional arguments")
    if "forward" in vars(module):
        raise Untraceable("its forward was replaced")
    found: list[fx.GraphModule] = []
    state = State()
    flags = {m: m.training for m in module.modules()}
    try:
        for training in (False, True):
            for m in flags:
                m.training = training
            tracer = _OneLevel()
            watch = Watch(module, tracer)
            with watch.watching():
                graph = tracer.trace(module)
            state.add(watch.finish())
            found.append(fx.GraphModule(module, graph))
        for path in called(found[0]):
            inner = module.get_submodule(path)
            if module_call(inner) is not None and not hooked(inner):  # an op may compute what it does
                state.options[path] = (type(inner), frozen(options_of(inner), f"the options of {path}"))
    except Untraceable:
        raise
    except Unwatched as reason:
        raise Untraceable(str(reason)) from None
    except Exception as error:  # a forward may do anything to a proxy
        raise Untraceable(f"its forward can't be traced ({type(error).__name__})") from None
    finally:
        for m, training in flags.items():
            m.training = training
    if found[0].code != found[1].code:
        raise Untraceable("its forward differs between training and evaluation")
    return found[0], state
