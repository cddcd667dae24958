"""Registering: once, again, in another's place; what compiled code on disk is told apart by; what importing costs."""

import ast
import dataclasses
import functools
import graphlib
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import opreg
from opreg import registry
from opreg._fingerprint import fingerprint
from opreg.attach import cache_keys
from opreg.testing import Maker


@pytest.fixture(autouse=True)
def _withdrawn() -> Iterator[None]:
    """Other tests' programs would be searched for the ops."""
    yield
    for op in opreg.registered():
        if op.qualname.startswith("registration::"):
            registry.unregister(op.qualname)


def samples(make: Maker) -> Iterator[opreg.Sample]:
    yield opreg.Sample((make.normal(3, 4), make.normal(3, 4)))


def errors(make: Maker) -> Iterator[opreg.ErrorSample]:
    yield from ()


def kernel(input: Tensor, target: Tensor) -> Tensor:
    return input * target


def declaration(name: str, factor: float = 1.0, **options: Any) -> opreg.Op:
    def reference(input: Tensor, target: Tensor) -> Tensor:
        return input * target * factor

    given: dict[str, Any] = {
        "name": f"registration::{name}",
        "schema": "(Tensor input, Tensor target) -> Tensor",
        "kernels": {"CPU": reference},
        "reference": reference,
        "shape": opreg.meta.same("input", "target"),
        "samples": samples,
        "errors": errors,
        "source": "a product",
    }
    return opreg.Op(**{**given, **options})


def run(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, env={**os.environ, **environment}
    )


# once and again


@pytest.mark.parametrize("inline", [False, True])
def test_the_same_declaration_again_is_the_same_op(inline):
    first = opreg.register(declaration(f"again_{inline}", inline=inline))
    assert opreg.register(declaration(f"again_{inline}", inline=inline)) is first
    assert opreg.register(first) is first


@pytest.mark.parametrize("inline", [False, True])
def test_another_declaration_takes_its_place_when_asked_to(inline):
    x, t = torch.randn(3), torch.randn(3)
    name = f"exchanged_{inline}"
    opreg.register(declaration(name, inline=inline))
    compiled = torch.compile(lambda x, t: getattr(torch.ops.registration, name)(x, t), fullgraph=True)
    torch.testing.assert_close(compiled(x, t), x * t)
    with pytest.raises(
        ValueError, match=rf"registration::{name}: expected an op that is not registered yet, got one that is"
    ):
        opreg.register(declaration(name, 3.0, inline=inline))
    torch.testing.assert_close(getattr(torch.ops.registration, name)(x, t), x * t)
    for factor in (3.0, 5.0):
        op = opreg.register(declaration(name, factor, inline=inline), replace=True)
        assert opreg.get(op.qualname) is op
        torch.testing.assert_close(op.value(x, t), factor * x * t)
        torch.testing.assert_close(compiled(x, t), factor * x * t)
        opreg.testing.check(op)


def test_a_refused_declaration_leaves_nothing_behind():
    wrong = "(Tensor input, Tensor target, *, float factor=1.0) -> Tensor"
    with pytest.raises(ValueError, match="expected a schema whose one argument behind"):
        opreg.register(declaration("mended", schema=wrong))
    x, t = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(opreg.register(declaration("mended")).value(x, t), x * t)


def product_gradients(grad_output, input, target, *, needs_input_grad):
    return tuple(
        grad_output * t if wanted else None for t, wanted in zip((target, input), needs_input_grad, strict=True)
    )


@pytest.mark.parametrize("requires_grad", [(True, False), (False, True), (True, True)])
def test_gradients_of_a_kernel_in_python(requires_grad):
    """None stands for what is not asked for; Inductor and export take the op as they take one from a library."""
    if "registration::with_gradients" not in [op.qualname for op in opreg.registered()]:
        opreg.register(declaration("with_gradients", backward_kernels={"CPU": product_gradients}))
    product = torch.ops.registration.with_gradients
    x, t = (torch.randn(3).requires_grad_(needed) for needed in requires_grad)
    inputs = [a for a in (x, t) if a.requires_grad]
    want = torch.autograd.grad((x * t).sum(), inputs)
    for function in (product, torch.compile(lambda x, t: product(x, t), fullgraph=True)):
        torch.testing.assert_close(torch.autograd.grad(function(x, t).sum(), inputs), want)
    opreg.testing.check(opreg.get("registration::with_gradients"))


RETURNED = [
    (lambda x, t: [x, t], "a list"),
    (lambda x, t: x, "a float32 tensor of shape"),
    (lambda x, t: (x,), "a tuple of 1"),
    (lambda x, t: (x, t, None), "a tuple of 3"),
    (lambda x, t: (x, None), "a tuple"),
]


@pytest.mark.parametrize(("made", "got"), RETURNED)
def test_wrong_gradients_of_a_kernel_in_python(made, got):
    def wrong(grad_output, input, target, *, needs_input_grad):
        return made(input, target)

    op = opreg.register(declaration("wrong_gradients", backward_kernels={"CPU": wrong}))
    x, t = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    expected = (
        "wrong_gradients_backward: expected its kernel to return a tuple with a gradient for each of input, target"
    )
    with pytest.raises(RuntimeError, match=rf"{expected}, None only where needs_input_grad says False, got {got}"):
        op.value(x, t).sum().backward()


def test_a_library_with_lists_of_gradients_is_refused():
    """One that was built against the headers of 0.1."""
    lib = torch.library.Library("registration", "FRAGMENT")
    lib.define("listed(Tensor input, Tensor target) -> Tensor")
    lib.define("listed_backward(Tensor grad_output, Tensor input, Tensor target, *, bool[2] output_mask) -> Tensor[]")
    backward = r"listed_backward\(Tensor grad_output, \.\.\., \*, bool\[2\] needs_input_grad\)"
    expected = rf"a schema {backward} -> \(Tensor, Tensor\), got regis"
    with pytest.raises(ValueError, match=expected):
        opreg.register(declaration("listed", schema="", kernels=None))


def test_a_state_that_the_library_does_not_keep_and_the_reverse():
    lib = torch.library.Library("registration", "FRAGMENT")
    arguments = "Tensor input, Tensor target"
    mask = "bool[2] needs_input_grad) -> (Tensor, Tensor)"
    for name, state in (("stateless", ""), ("stateful", "Tensor state, ")):
        lib.define(f"{name}({arguments}) -> Tensor")
        lib.define(f"{name}_backward(Tensor grad_output, {state}{arguments}, *, {mask}")
    lib.define(f"stateful_forward({arguments}) -> (Tensor, Tensor)")
    with pytest.raises(
        ValueError, match="registration::stateful: expected state=, for the library has stateful_forward"
    ):
        opreg.register(declaration("stateful", schema="", kernels=None))
    declared = declaration("stateless", schema="", kernels=None, state=lambda shape, args: torch.empty(shape))
    with pytest.raises(
        ValueError, match="registration::stateless: expected no state=, for the library has no stateless_"
    ):
        opreg.register(declared)


def test_faces_of_another_namespace():
    op = opreg.register(declaration("with_faces"))
    x, t = torch.randn(3), torch.randn(3)
    faces = opreg.functional.registration
    assert torch.equal(faces.with_faces(x, t), x * t)
    assert faces.with_faces is faces.with_faces
    assert torch.equal(opreg.nn.registration.WithFaces()(x, t), x * t)
    assert opreg.nn.registration.WithFaces.op is op
    assert "with_faces" in dir(faces)
    assert "WithFaces" in repr(opreg.nn.registration)
    opreg.register(declaration("with_faces", factor=2.0), replace=True)
    assert torch.equal(faces.with_faces(x, t), 2 * x * t)
    with pytest.raises(AttributeError, match=r"'opreg\.functional\.registration' has no attribute 'nothing'"):
        _ = faces.nothing
    with pytest.raises(AttributeError, match=r"module 'opreg\.functional' has no attribute 'unknown_namespace'"):
        _ = opreg.functional.unknown_namespace


def test_two_libraries_with_the_same_ops(tmp_path):
    """An error that names the op and both files, and not the end of the process."""
    library = opreg.library_path()
    twin = tmp_path / "libtwin.so"
    shutil.copy(library, twin)
    done = run("import opreg", OPREG_LIBRARY=os.pathsep.join((str(library), str(twin))))
    assert done.returncode == 1
    op, family, where, other_family, beside = re.search(
        r"ops that nobody defines yet, got (\S+) of (\w+.h) in (\S+), which (\w+.h) in (\S+) defines too",
        done.stderr,
    ).groups()
    assert (op.removeprefix("lossreg::") in dir(torch.ops.lossreg), where, beside) == (True, str(twin), str(library))
    assert other_family == family
    # without Python's question: the first library goes on
    text = (
        f"import ctypes, torch, opreg; ctypes.CDLL({str(twin)!r})\n"
        "print(torch.ops.lossreg.swish(torch.zeros(2)).tolist())"
    )
    done = run(text)
    assert done.stdout.strip() == "[0.0, 0.0]", done.stderr
    assert "lossreg: expected ops that no other library defines, got " in done.stderr


# caches

OWN_OP = """
import torch, opreg
from opreg import meta
FACTOR = {factor}
def helper(x): return x * FACTOR
def reference(input): return helper(input)
def samples(make): yield opreg.Sample((make.normal(3),))
opreg.register(opreg.Op(
    name="cached::scale", schema="(Tensor input) -> Tensor", kernels={{"CPU": reference}}, reference=reference,
    shape=meta.same("input"), samples=samples, errors=lambda make: iter(()), source="a test", inline=True,
))
x = torch.ones(3, requires_grad=True)
y = torch.compile(torch.ops.cached.scale, fullgraph=True)(x)
y.sum().backward()
print(torch.ops.cached.scale(x.detach())[0].item(), y[0].item(), x.grad[0].item())
from torch._dynamo.utils import counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def test_an_edited_op_is_compiled_anew(tmp_path):
    """Each in a process of its own, with one cache on disk: two texts, then the second again."""
    caches = dict.fromkeys(("TORCHINDUCTOR_FX_GRAPH_CACHE", "TORCHINDUCTOR_AUTOGRAD_CACHE"), "1")
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **caches}
    for factor, hits in ((2.0, False), (5.0, False), (5.0, True)):
        done = run(OWN_OP.format(factor=factor), **environment)
        values, counted = done.stdout.splitlines() if done.returncode == 0 else (done.stderr, "")
        assert values == f"{factor} {factor} {factor}"
        assert any(int(n) for n in counted.split()) == hits


def test_the_library_is_told_apart_by_its_content(tmp_path):
    """A byte of it, not its size."""
    text = "import torch, opreg, torch._inductor.codecache; print(torch.compiler.config.cache_key_tag)"
    keys = []
    for last in (b"a", b"b"):
        copy = tmp_path / f"lib{last.decode()}.so"
        shutil.copy(opreg.library_path(), copy)
        with copy.open("ab") as file:
            file.write(last)
        keys.append(run(text, OPREG_LIBRARY=str(copy), TORCH_COMPILE_CACHE_KEY_TAG="mine").stdout.split())
    assert [key[0] for key in keys] == ["mine", "mine"]
    assert keys[0][1].startswith("opreg=")
    assert keys[0][1] != keys[1][1]


def test_a_process_whose_files_were_exchanged_shares_nothing(tmp_path):
    """An upgrade under a running process: the keys are made of files that it does not run."""
    copy = tmp_path / "library.so"
    shutil.copy(opreg.library_path(), copy)
    text = "import os, torch, opreg\n{}\nimport torch._inductor.codecache; print(torch.compiler.config.cache_key_tag)"
    exchange = f"os.utime({str(copy)!r})"
    keys = [run(text.format(change), OPREG_LIBRARY=str(copy)).stdout for change in ("", "", exchange, exchange)]
    assert keys[0].startswith("opreg=")
    assert keys[0] == keys[1]
    assert len({*keys}) == 3


def test_fingerprints():
    """The same of the same text made twice; another one of every change that another number could come from."""

    class Table:
        def __init__(self, value: object) -> None:
            self.value = value

    def made(factor: Any = 2.0, default: float = 1.0, call: Any = math.sin, table: Any = None) -> Any:
        def inner(x: float, scale: float = default, *, shift: float = 0.0) -> float:
            return call(x * factor) * scale + shift

        return inner, functools.partial(inner, scale=default), {"a": {1, 2}, "table": table or Table([1])}

    def other(factor: Any = 2.0) -> Any:
        def inner(x: float, scale: float = 1.0, *, shift: float = 0.0) -> float:
            return math.sin(x / factor) * scale + shift

        return inner

    assert fingerprint(made()) == fingerprint(made())
    changed = [
        made(), made(factor=3.0), made(factor=torch.tensor(2.0)), made(factor=torch.tensor(3.0)), made(default=2.0),
        made(call=math.cos), made(call=lambda x: x), made(call=lambda x: x + 1), made(table=Table([2])), other(),
        functools.partial(made()[0], 1.0), torch.float32, torch.bfloat16, [1, 2], (1, 2), {1: 2}, {2: 1}, Table,
        torch.nn.functional.silu, torch.nn.functional.relu, torch.ops.aten.silu.default, None, True, 1, 1.0, "1",
    ]  # fmt: skip
    assert len({fingerprint(value) for value in changed}) == len(changed)

    def recursive(n: int) -> int:
        return 1 if n == 0 else n * recursive(n - 1)

    assert fingerprint(recursive) == fingerprint(recursive)
    fields = [f.name for f in dataclasses.fields(opreg.Op)]
    assert set(cache_keys._CONTRIBUTED) <= {*fields, "qualname"}


# importing

# Of use to those who compile, export or read documentation.
HEAVY = (
    "torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.fx.experimental.symbolic_shapes",
    "torch.fx.experimental.proxy_tensor", "torch.fx.passes.shape_prop", "torch.utils.flop_counter",
    "torch.distributed.tensor", "sympy", "triton", "doctest", "pdb", "unittest", "pydoc", "tempfile", "asyncio",
    "multiprocessing", "concurrent.futures.process", "sqlite3", "matplotlib", "onnxscript",
    "opreg.passes", "opreg.backend", "opreg.nn", "opreg.functional", "opreg.faces", "opreg.bench", "opreg.doctor",
    "opreg.catalogue",
)  # fmt: skip


def test_importing_is_light():
    """What ``import opreg`` loads beyond ``import torch``: modules of its own alone, and few of those."""
    text = (
        "import sys, torch\nbefore = set(sys.modules)\nimport opreg\nnew = set(sys.modules) - before\n"
        f"print(*[name for name in {HEAVY} if name in new])\n"
        "print(*[n for n in new if n.partition('.')[0] not in {'opreg', *sys.stdlib_module_names}])\n"
        "print(len(new), len(opreg.registered()))"
    )
    done = run(text)
    assert done.returncode == 0, done.stderr
    heavy, foreign, counts = done.stdout.splitlines()
    assert (heavy, foreign) == ("", "")
    modules, ops = map(int, counts.split())
    assert modules <= 60 + ops / 3


def test_importing_takes_few_calls():
    """Of Python functions: a count that no load on the machine changes. Measured: 18,000 for 51 ops."""
    text = (
        "import sys, torch\ncalls = 0\n"
        "def count(frame, event, argument):\n    global calls\n    calls += event == 'call'\n"
        "sys.setprofile(count)\nimport opreg\nsys.setprofile(None)\n"
        "print(calls, len(opreg.registered()))"
    )
    done = run(text)
    assert done.returncode == 0, done.stderr
    calls, ops = map(int, done.stdout.split())
    assert calls < 5_000 + 400 * ops


def test_importing_takes_little_time():
    """Of what importing torch takes in the same process, with bytecode as an installed package has. Measured: 13 %."""
    text = (
        "import time\nstart = time.process_time()\nimport torch\nmiddle = time.process_time()\nimport opreg\n"
        "print((time.process_time() - middle) / (middle - start))"
    )
    assert any(float(run(text, PYTHONDONTWRITEBYTECODE="").stdout) < 0.25 for _ in range(5))


def test_what_is_loaded_later_is_there():
    """Under every name, and by every way of asking, in a process that asked for nothing before."""
    names = "functional", "nn", "passes", "fuse", "NearMiss", "Report", "Rule"
    text = (
        "import sys, torch, opreg\n"
        f"assert {{*{names}}} < {{*opreg.__all__}} <= {{*dir(opreg)}}\n"
        f"assert not {{*{names}}} & {{*vars(opreg)}}\n"
        "assert 'swish' in dir(opreg.functional) and 'swish' not in vars(opreg.functional)\n"
        "assert 'FocalLoss' in dir(opreg.nn) and 'FocalLoss' not in vars(opreg.nn)\n"
        "call = torch.compile(lambda x: opreg.functional.swish(x), fullgraph=True, backend='eager')\n"
        "assert call(torch.zeros(2)).tolist() == [0, 0]\n"
        "everything = {}\n"
        "for module in ('opreg', 'opreg.nn', 'opreg.functional'):\n    exec(f'from {module} import *', everything)\n"
        "assert everything['fuse'] is opreg.passes.fuse is opreg.fuse\n"
        "assert everything['swish'] is opreg.functional.swish is opreg.functional.swish\n"
        "assert everything['FocalLoss'] is opreg.nn.FocalLoss is opreg.nn.FocalLoss\n"
        "for module in (opreg, opreg.nn, opreg.functional):\n"
        "    assert not hasattr(module, 'absent')\n    assert all(hasattr(module, n) for n in module.__all__)"
    )
    done = run(text)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("first", ["opreg", "opreg.nn", "opreg.functional", "opreg.passes", "opreg.backend"])
def test_any_module_can_be_imported_first(first):
    """Unpickling begins with ``opreg.nn``, torch.compile with ``opreg.backend``."""
    module = pickle.dumps(opreg.nn.FocalLoss(gamma=1.0))
    done = run(f"import {first}, pickle; print(pickle.loads({module!r}).gamma)")
    assert done.stdout.strip() == "1.0", done.stderr


def test_inductor_is_told_when_somebody_imports_it():
    text = (
        "import sys, opreg\nfrom opreg._imports import _Finder\n"
        "assert 'torch._inductor.decomposition' not in sys.modules\n"
        "from torch._inductor.decomposition import decompositions as found\n"
        "waiting = [f.name for f in sys.meta_path if isinstance(f, _Finder)]\n"
        "assert 'torch._inductor.decomposition' not in waiting\n"
        "import torch, inspect\n"
        "assert 'register_decomposition' in inspect.getsource(sys.modules['torch._inductor.decomposition'])\n"
        "print(*[op.value in found and op.backward in found for op in opreg.registered() if not op.mutated])"
    )
    done = run(text)
    assert set(done.stdout.split()) == {"True"}, done.stderr


# the order of opreg's own modules

PACKAGE = Path(opreg.__file__).parent


def module_names(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        yield ".".join((package, *parts)).removesuffix(".__init__"), path


def imported_at_load(name: str, path: Path, known: Collection[str]) -> Iterator[str]:
    """The modules of opreg that this one imports before anybody calls it: imports outside of functions."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        for node in ast.iter_child_nodes(todo.pop()):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names if alias.name in known)
            elif isinstance(node, ast.ImportFrom):
                base = [*package[: len(package) - node.level + 1]] if node.level else []
                source = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
                within = [f"{source}.{alias.name}" for alias in node.names if f"{source}.{alias.name}" in known]
                # `from . import a` needs a, and not what else the package's __init__ brings
                yield from within
                if source in known and len(within) < len(node.names):
                    yield source
            elif not isinstance(node, ast.FunctionDef | ast.Lambda):
                todo.append(node)


def test_no_module_imports_itself():
    """Imports go one way: no circle, and none that only a type checker follows."""
    meta = Path(opreg.meta.__file__).parent  # in an editable installation it lies elsewhere
    files = dict([*module_names(PACKAGE, "opreg"), *module_names(meta, "opreg.meta")])
    graph = {name: set(imported_at_load(name, path, files)) for name, path in files.items()}
    assert {"opreg.op", "opreg.meta.rules"} <= {*files}
    assert "opreg.op" in graph["opreg.attach.autograd"]
    assert "opreg.meta.schema" in graph["opreg.op"]
    assert [name for name, path in files.items() if "TYPE_CHECKING" in path.read_text()] == []
    with_circle = graph | {"opreg.op": {"opreg.registry"}}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(with_circle).static_order())
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("opreg.op") < order.index("opreg.attach.autograd") < order.index("opreg.registry")
