"""From a Python function of tensors to an expression: it is run once, and its operators are watched."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._private import LightDispatchMode
from .expression import Expr, Variable, const, option, tensor
from .numbers import Names, Untraceable
from .vocabulary import TABLE, UNCHANGED, filled_with, real

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)
# A formula is run on tensors of two shapes: what depends on the shape shows.
_SHAPES = ((3,), (2, 5))


class Watch(LightDispatchMode):
    """Notes what each operator makes of expressions."""

    def __init__(self, names: Names) -> None:
        super().__init__()
        self.names = names
        # an object's number is another's when it has died: so the tensors are kept
        self.known: dict[int, tuple[Tensor, Expr]] = {}

    def note(self, t: Tensor, e: Expr) -> None:
        self.known[id(t)] = (t, e)

    def expression(self, t: Tensor) -> Expr:
        if id(t) in self.known:
            return self.known[id(t)][1]
        # a tensor that the formula made, or has from elsewhere: a constant
        values = t.detach().flatten()
        if values.numel() == 0 or not bool(((values == values[0]) | (values != values)).all()):
            raise Untraceable(
                f"expected tensors that are arguments, or hold one number, got one of shape {list(t.shape)}"
            )
        return self.names.expression(values[0].double().item())

    def operand(self, a: Any) -> Any:
        if isinstance(a, Tensor):
            return self.expression(a)
        if isinstance(a, bool) or a is None or isinstance(a, str):
            return a
        if isinstance(a, int | float):
            return self.names.expression(float.__pos__(a) if isinstance(a, float) else float(a))
        return a

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if func.namespace != "aten" or name == "_local_scalar_dense" or torch.Tag.nondeterministic_seeded in func.tags:
            raise _Unknown(f"expected operations on single elements, got {_spoken(func)}")
        tracked = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor) and id(a) in self.known]
        if not tracked:
            return func(*args, **kwargs)  # of constants
        written = func._schema.is_mutable
        base = name[:-1] if written and name.endswith("_") else name
        if "out" in kwargs:
            raise Untraceable(f"expected operations that return their result, got {_spoken(func)} with out=")
        e = self._meaning(base, args, kwargs)
        if e is None:
            return self._decomposed(func, args, kwargs)
        result = func(*args, **kwargs)
        if written and result is args[0] and id(result) in self.known and self.known[id(result)][1].op == "input":
            raise Untraceable(f"expected a formula that leaves its arguments as they are, got {_spoken(func)}")
        if isinstance(result, tuple):  # log_sigmoid_forward: result, buffer
            self.note(result[0], e)
        else:
            self.note(result, e)
        return result

    def _meaning(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Expr | None:
        if name in UNCHANGED:
            return self.expression(args[0])
        if name in ("_to_copy", "to"):
            dtype = kwargs.get("dtype")
            if dtype in (None, torch.float32, torch.float64):
                return real(self.expression(args[0]))
            raise Untraceable(f"expected arithmetic of real numbers, got a conversion to {dtype}")
        if (value := filled_with(name, tuple(args))) is not None:
            return const(value)
        if name in ("fill", "full_like", "new_full", "copy"):
            return real(self.operand(args[-1]))
        if name not in TABLE:
            return None
        options = {n: self.operand(a) for n, a in kwargs.items() if n not in ("memory_format", "dtype")}
        if name == "div" and options.pop("rounding_mode", None) is not None:
            return None
        made: Expr | None = TABLE[name](*(self.operand(a) for a in args), **options)
        return made

    def _decomposed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator by way of those that torch makes it of. Where it can't be followed, it is named itself."""
        if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            f = func.decompose
        else:
            from torch._decomp import core_aten_decompositions, get_decompositions

            f = (get_decompositions([func]) or core_aten_decompositions()).get(func)
        try:
            if f is not None:
                # what Python computes of options on the way is followed
                args, kwargs = tree_map(self._as_option, (args, kwargs))
                with self:
                    result = f(*args, **kwargs)
                if result is not NotImplemented:
                    return result
        except _Unknown:
            pass
        raise _Unknown(f"expected operations on single elements, got {_spoken(func)}")

    def _as_option(self, a: Any) -> Any:
        return (
            self.names.number(a, self.names.expressions[a]) if type(a) is float and a in self.names.expressions else a
        )


class _Unknown(Untraceable):
    """An operator that has no meaning for a single element."""


def _spoken(func: Any) -> str:
    return f"torch's {func._schema.name.split('::')[-1]}"


class Formula:
    """A function of a few tensors and numbers, one number a result."""

    def __init__(
        self,
        function: Callable[..., Any],
        tensors: Sequence[Variable],
        options: Sequence[Variable],
        fixed: Mapping[str, Any],
    ) -> None:
        self.function, self.tensors, self.options, self.fixed = function, tensors, options, dict(fixed)

    def expression(self) -> Expr:
        """What it computes.

        Raises:
            NotImplementedError: an operation that has no meaning for a single element; the message names it, and the
                line of the formula.
        """
        first, second = (self._run(shape, seed) for seed, shape in enumerate(_SHAPES))
        if first is not second:
            shaped = first is not self._run(_SHAPES[1], 0)
            what = "the shape of its tensors" if shaped else f"how {', '.join(map(str, self.options))} is computed with"
            advice = "" if shaped else "; write it with arithmetic, math's or torch's functions"
            raise NotImplementedError(
                f"{self.function.__name__}: expected a formula of single elements, "
                f"got one that depends on {what}{advice}"
            )
        return first

    def _run(self, shape: tuple[int, ...], seed: int) -> Expr:
        generator, of_options = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
        names = Names()
        watch = Watch(names)
        given: dict[str, Any] = dict(self.fixed)
        for it in self.tensors:
            given[it.name] = 0.25 + 0.5 * torch.rand(shape, generator=generator, dtype=torch.float64)
            watch.note(given[it.name], tensor(it))
        for it in self.options:
            given[it.name] = names.number(_inside(it, float(torch.rand((), generator=of_options))), option(it))
        try:
            with torch.no_grad(), watch:
                result = self.function(**given)
                if not isinstance(result, Tensor):
                    raise Untraceable(f"expected a tensor to be returned, got {type(result).__name__}")
                if result.shape != shape and id(result) in watch.known:
                    raise Untraceable(f"expected a number an element, got shape {list(result.shape)} of {list(shape)}")
                return real(watch.expression(result))
        except (
            Untraceable,
            RuntimeError,
            TypeError,
            ValueError,
            IndexError,
            NotImplementedError,
            AttributeError,
        ) as error:
            line = _line_of(error, self.function)
            raise NotImplementedError(f"{self.function.__name__}, {line}: {_words(error)}") from error


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, Untraceable) else f"{type(error).__name__}: {error}"


def _line_of(error: BaseException, function: Callable[..., Any]) -> str:
    """Where in the user's text it was: file, line and the text of it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [
        f
        for f in frames
        if not f.filename.startswith((_TORCH, _HERE)) and Path(f.filename).name != "_python_dispatch.py"
    ]
    if not own:
        code = function.__code__
        return f'File "{code.co_filename}", line {code.co_firstlineno}'
    at = own[-1]
    return f'File "{at.filename}", line {at.lineno}' + (f" ({at.line})" if at.line else "")


def _inside(it: Variable, u: float) -> float:
    """A number that no formula has by itself, in the option's domain."""
    low, high = max(it.low, -1e3), min(it.high, 1e3)
    if low == -1e3:
        low = min(0.1, high - 1.0)
    if high == 1e3:
        high = low + 1.3
    return low + (high - low) * (0.2 + 0.6 * u)
