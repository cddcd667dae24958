"""TensorRT's plugins, as ``torch_tensorrt.dynamo.conversion.plugins`` generates them: of an op's schema, and of what
its fake says of sizes. No GPU and no TensorRT is at hand: what stands in for ``tensorrt.plugin`` has what the generator
asks of it, and the generator is the real one where torch-tensorrt is installed (``make runtimes``)."""

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
import torch
from calls import calls_of, tensors_of
from torch import Tensor
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

import opreg

# What the generator has a type of TensorRT for. A class has a subtype, list and optional, that is none of them.
SCALARS = (torch._C.FloatType.get(), torch._C.IntType.get(), torch._C.BoolType.get(), torch._C.StringType.get())


def taken(op: opreg.Op) -> bool:
    """Does the generator take the schema: tensors, numbers, flags and words, none of which may be absent?"""
    types = [a.type for a in op.value._schema.arguments]
    return all(t.isSubtypeOf(torch._C.TensorType.get()) or any(t.isSubtypeOf(s) for s in SCALARS) for t in types)


def of_symbols(tensor: Tensor, environment: ShapeEnv, name: str) -> tuple[list[torch.SymInt], list[int]]:
    """A symbol for each size, whose value is the tensor's."""
    sizes = []
    for i, size in enumerate(tensor.shape):
        source = LocalSource(f"{name}_{i}")
        symbol = environment.create_symbol(size, source=source, dynamic_dim=DimDynamic.DYNAMIC)
        sizes.append(environment.create_symintnode(symbol, hint=size, source=source))
    return sizes, list(tensor.shape)


def test_the_fake_gives_sizes_as_expressions_of_the_inputs_sizes(op: opreg.Op) -> None:
    """All that is known of a call is a symbol for each size: a plugin has formulas of them."""
    for sample in calls_of(op, most=2):
        if any(size < 2 for t in tensors_of(sample) for size in t.shape):
            continue  # 0 and 1 are no symbols
        environment = ShapeEnv()
        known: dict[sympy.Expr, int] = {}
        given = iter(enumerate(tensors_of(sample)))
        with FakeTensorMode(shape_env=environment, allow_non_fake_inputs=False):
            symbols: list[tuple[torch.SymInt, int]] = []

            def fake(
                t: Tensor, given: Any = given, environment: ShapeEnv = environment, symbols: Any = symbols
            ) -> Tensor:
                sizes, values = of_symbols(t, environment, f"t{next(given)[0]}")
                symbols += zip(sizes, values, strict=True)
                return torch.empty(sizes, dtype=t.dtype)

            args, kwargs = pytree.tree_map_only(Tensor, fake, (sample.args, sample.kwargs))
            results = pytree.tree_leaves(op.value(*args, **kwargs))
        known = {s.node.expr: value for s, value in symbols}
        real = pytree.tree_leaves(op.value(*sample.args, **sample.kwargs))
        assert len(real) == len(results) == len(op.value._schema.returns)
        for made, expected in zip(results, real, strict=True):
            assert made.dtype == expected.dtype
            expressions = [sympy.sympify(s.node.expr if isinstance(s, torch.SymInt) else s) for s in made.shape]
            inputs = {symbol for e in known for symbol in e.free_symbols}
            assert all(e.free_symbols <= inputs for e in expressions)
            assert [int(e.subs(known)) for e in expressions] == list(expected.shape)


# The stand-in: of what TensorRT's documentation has of tensorrt.plugin, what the generator asks for.


class TensorDesc:
    def __init__(self, sizes: list[int]) -> None:
        self.shape_expr: Any = sizes

    @property
    def ndim(self) -> int:
        return len(self.shape_expr)

    def like(self) -> "TensorDesc":
        return TensorDesc(list(self.shape_expr))


class ShapeExprs(list[Any]):
    def __init__(self, length: int) -> None:
        super().__init__([None] * length)


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> tuple[Callable[[str], None], dict[str, Any], dict[str, Any]]:
    """The real ``_generate_plugin``, and what it has registered: functions of sizes, and those that run an op."""
    found = importlib.util.find_spec("torch_tensorrt")  # which imports nothing: that would ask for TensorRT
    if found is None or not found.submodule_search_locations:
        pytest.skip("torch-tensorrt is not installed")
    descriptions: dict[str, Any] = {}
    implementations: dict[str, Any] = {}

    def into(registry: dict[str, Any]) -> Callable[[str], Callable[[Any], Any]]:
        return lambda name: lambda function: registry.setdefault(name, function)

    plugin = types.ModuleType("tensorrt.plugin")
    plugin.TensorDesc, plugin.ShapeExprs = TensorDesc, ShapeExprs  # type: ignore[attr-defined]
    plugin.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    plugin.register, plugin.impl = into(descriptions), into(implementations)  # type: ignore[attr-defined]
    features = types.ModuleType("torch_tensorrt._features")
    features.needs_qdp_plugin = lambda function: function  # type: ignore[attr-defined]
    tensorrt = types.ModuleType("tensorrt")
    tensorrt.plugin = plugin  # type: ignore[attr-defined]
    stand_ins = {"tensorrt": tensorrt, "tensorrt.plugin": plugin, "torch_tensorrt._features": features}
    for name, module in {**stand_ins, "torch_tensorrt": types.ModuleType("torch_tensorrt")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    folder = Path(found.submodule_search_locations[0])
    source = folder / "dynamo" / "conversion" / "plugins" / "_generate_plugin.py"
    spec = importlib.util.spec_from_file_location("generate_plugin", source)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._generate_plugin, descriptions, implementations


def test_the_generator_makes_a_plugin(op: opreg.Op, generator: Any) -> None:
    """Of an activation and a gated unit, as they are; what has an option that may be absent it does not take."""
    generate, descriptions, implementations = generator
    if not taken(op):
        with pytest.raises(ValueError, match="arg type is not handled"):
            generate(op.qualname)
        return
    generate(op.qualname)
    assert set(descriptions) == set(implementations) == {op.qualname}
    description = descriptions[op.qualname]
    names = [a.name for a in op.value._schema.arguments]
    assert set(description.__annotations__) == {*names, "return"}
    assert set(implementations[op.qualname].__annotations__) == {*names, "outputs", "stream"}
    for sample in calls_of(op, most=1):
        values = {**op.defaults, **dict(zip(names, sample.args, strict=False)), **sample.kwargs}
        arguments = [TensorDesc(list(v.shape)) if isinstance(v, Tensor) else v for v in (values[n] for n in names)]
        described = description(*arguments)
        real = op.value(*sample.args, **sample.kwargs)
        assert [list(d.shape_expr) for d in described] == [list(real.shape)]


def test_activations_and_gated_units_are_taken() -> None:
    """What stands in the middle of a network that TensorRT is to run."""
    of_networks = [op for op in opreg.registered() if op.own and op.family in ("activation", "gated")]
    assert len(of_networks) >= 10
    assert [op.short for op in of_networks if not taken(op)] == []
