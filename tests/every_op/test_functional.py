"""opreg.functional: every op is there with the signature of its schema, compiles whole, is documented and typed."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import operator
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import opreg
from conftest import DEVICE, samples_of
from opreg.__main__ import main
from opreg.faces import stubs
from opreg.faces.functions import function
from opreg.ops._common import lengths
from opreg.registry import of_namespace
from opreg.testing import joined


def run_examples(docstring: str) -> int:
    """Runs what follows ``>>>``; where a result is written, it is compared. Returns how many there were."""
    names = {"torch": torch, "opreg": opreg, "F": F}
    examples = doctest.DocTestParser().get_examples(docstring)
    for example in examples:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(example.source, "<example>", "single"), names)
        if example.want:
            assert printed.getvalue() == example.want
    return len(examples)


def documented_arguments(docstring: str) -> set[str]:
    entries = re.findall(r"^    (\w+(?:, \w+)*):", docstring, re.M)
    return {name for entry in entries for name in entry.split(", ")}


def test_every_op_is_there():
    assert opreg.functional.__all__ == [op.short for op in of_namespace()]


def test_signature_is_the_schemas(op):
    face = getattr(opreg.functional, op.short)
    signature = inspect.signature(face)
    assert list(signature.parameters) == op.arguments
    defaults = {n: p.default for n, p in signature.parameters.items() if p.default is not inspect.Parameter.empty}
    of_schema = {n: d[0] if isinstance(d, list) else d for n, d in op.defaults.items()}
    assert defaults == of_schema
    if op.is_loss:
        assert signature.parameters["dtype"].kind is inspect.Parameter.KEYWORD_ONLY
    assert (face.__name__, face.__module__) == (op.short, "opreg.functional")
    assert pickle.loads(pickle.dumps(face)) is face


def test_signatures_in_words():
    assert str(inspect.signature(opreg.functional.cross_entropy)) == (
        "(input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, ignore_index: int = -100, "
        "reduction: str = 'mean', label_smoothing: float = 0.0, softcap: float = 0.0, z_loss: float = 0.0, *, "
        "dtype: torch.dtype | None = None) -> torch.Tensor"
    )
    assert str(inspect.signature(opreg.functional.swish)) == "(input: torch.Tensor, beta: float = 1.0) -> torch.Tensor"


def test_defaults_are_torchs(op):
    native = getattr(F, op.short, None)
    if native is None or inspect.isbuiltin(native):
        pytest.skip("torch.nn.functional has none of this name, or one without a signature")
    ours = inspect.signature(getattr(opreg.functional, op.short)).parameters
    theirs = inspect.signature(native).parameters
    shared = [n for n in ours if n in theirs]
    assert shared[0] == next(iter(theirs))
    # torch means -100 by None where the target holds class indices
    assert {n: ours[n].default for n in shared} == {
        n: -100 if (n, theirs[n].default) == ("ignore_index", None) else theirs[n].default for n in shared
    }


def test_calls_the_op(op):
    sample = samples_of(op)[0]
    face = getattr(opreg.functional, op.short)
    got = joined(face(*sample.args, **sample.kwargs))
    assert torch.equal(got, joined(op.value(*sample.args, **sample.kwargs)))
    by_name = dict(zip(op.arguments, sample.args, strict=False))
    assert torch.equal(got, joined(face(**by_name, **sample.kwargs)))


def test_dtype_is_passed_on():
    x, t = torch.randn(3, device=DEVICE).bfloat16(), torch.rand(3, device=DEVICE)
    loss = opreg.functional.mse_loss(x, t.bfloat16(), dtype=torch.float32)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.mse_loss(x.float(), t.bfloat16().float()))


def test_compiles_whole(op):
    """Dynamo sees through the function: one graph, in it the op. No reset in between: each has code of its own."""
    sample = samples_of(op, dtype=torch.float32)[0]
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(getattr(opreg.functional, op.short), backend=keep, fullgraph=True)
    got, want = compiled(*sample.args, **sample.kwargs), op.value(*sample.args, **sample.kwargs)
    assert torch.equal(joined(got), joined(want))
    (graph,) = graphs
    calls = [n.target for n in graph.graph.nodes if n.op == "call_function"]
    assert [call for call in calls if call is not operator.getitem] == [op.value]


@pytest.mark.parametrize("var", [0.5, 2.0, torch.rand(4, 3) + 0.1], ids=["half", "two", "tensor"])
def test_one_variance_for_all(var):
    x, t = torch.randn(4, 3, device=DEVICE, requires_grad=True), torch.randn(4, 3, device=DEVICE)
    var = var.to(DEVICE) if isinstance(var, Tensor) else var
    want = F.gaussian_nll_loss(x, t, var)
    torch.testing.assert_close(opreg.functional.gaussian_nll_loss(x, t, var), want)
    torch.testing.assert_close(opreg.functional.gaussian_nll_loss(x, target=t, var=var), want)
    compiled = torch.compile(opreg.functional.gaussian_nll_loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, var), want)


def test_conversions_see_the_other_arguments():
    """Of an op of one's own: converted by position and by name, absent ones left to the schema."""
    seen = []

    def times(value: Tensor | Sequence[float], args: Mapping[str, object]) -> Tensor:
        seen.append(sorted(args))
        return value if isinstance(value, Tensor) else torch.tensor(value)

    lib = torch.library.Library("test_functional", "DEF")
    lib.define("scaled(Tensor input, Tensor? by=None) -> Tensor")
    lib.impl("scaled", lambda input, by=None: input if by is None else input * by, "CompositeExplicitAutograd")
    nothing: dict[str, Any] = dict.fromkeys(("reference", "shape", "samples", "errors"))
    face = function(
        opreg.Op("test_functional::scaled", **nothing, source="arithmetic", doc="x", accepts={"by": times}), "m"
    )
    x = torch.tensor([1.0, 2.0])
    assert face(x, [2.0, 3.0]).tolist() == face(x, by=(2.0, 3.0)).tolist() == [2.0, 6.0]
    assert face(x).tolist() == face(input=x).tolist() == [1.0, 2.0]
    assert seen == [["by", "input"]] * 2
    assert inspect.signature(face).parameters["by"].annotation == Tensor | Sequence[float]


@pytest.mark.parametrize("value", [[3, 1], (3, 1), torch.tensor([3, 1])], ids=["list", "tuple", "tensor"])
def test_lengths(value):
    got = lengths(value, {})
    assert got.dtype == torch.int64
    assert got.tolist() == [3, 1]
    assert lengths(7, {}).tolist() == 7


@pytest.mark.skipif(not hasattr(opreg.functional, "ctc_loss"), reason="no ctc_loss in this library")
def test_ctc_loss_takes_lengths_as_torch_does():
    log_probs = torch.randn(6, 2, 4, device=DEVICE).log_softmax(2)
    targets = torch.randint(1, 4, (2, 3), device=DEVICE)
    want = F.ctc_loss(log_probs, targets, (6, 5), (3, 2))
    for steps, counts in (((6, 5), (3, 2)), ([6, 5], [3, 2]), (torch.tensor([6, 5]), torch.tensor([3, 2]))):
        torch.testing.assert_close(opreg.functional.ctc_loss(log_probs, targets, steps, counts), want)
    one = opreg.functional.ctc_loss(log_probs[:, 0], targets[0], 6, 3)
    torch.testing.assert_close(one, F.ctc_loss(log_probs[:, 0], targets[0], (6,), (3,)))


def test_documented(op):
    """Sense, every argument, result, errors, formula, source, in one order; and an example that runs."""
    docstring = getattr(opreg.functional, op.short).__doc__
    first = docstring.splitlines()[0]
    assert re.match(r"\S.{15,}[.:,;]?", first)
    titles = re.findall(r"^([A-Z][a-z]+):$", docstring, re.M)
    assert titles == ["Args", "Returns", "Raises", "Formula", "Source", "Example"]
    assert set(op.arguments) <= documented_arguments(docstring)
    assert f"Source:\n    {op.source}\n" in docstring
    assert f"opreg.functional.{op.short}(" in docstring
    assert run_examples(docstring) > 0


def test_stubs_of_an_installation(tmp_path):
    """As csrc/CMakeLists.txt makes them: from the sources and a library, whichever opreg is installed already."""
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Installed:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        assert name != 'opreg'\n"
        "sys.meta_path.insert(0, Installed)\n"
    )
    library = os.environ.get("OPREG_LIBRARY") or str(opreg.library_path())
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPREG_LIBRARY": library}
    subprocess.run([sys.executable, root / "csrc/write_stubs.py", tmp_path], check=True, env=environment)
    assert (tmp_path / "__init__.pyi").read_text() == stubs.package_stub()
    assert (tmp_path / "functional.pyi").read_text() == stubs.functional_stub()
    assert (tmp_path / "nn/__init__.pyi").read_text() == stubs.nn_stub()


def test_stubs_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stubs, "PACKAGE", tmp_path)
    assert main(["stubs"]) == 0
    assert (tmp_path / "__init__.pyi").read_text() == stubs.package_stub()
    assert (tmp_path / "functional.pyi").read_text() == stubs.functional_stub()
    assert (tmp_path / "nn/__init__.pyi").read_text() == stubs.nn_stub()
    assert capsys.readouterr().out.count("wrote ") == 3


def test_stubs_say_what_is_there(op):
    functions = {f.name: f for f in ast.parse(stubs.functional_stub()).body if isinstance(f, ast.FunctionDef)}
    assert list(functions) == opreg.functional.__all__
    stub = functions[op.short]
    arguments = stub.args
    assert [a.arg for a in (*arguments.args, *arguments.kwonlyargs)] == op.arguments
    values = [ast.literal_eval(d) for d in (*arguments.defaults, *arguments.kw_defaults)]
    assert values == [d[0] if isinstance(d, list) else d for d in op.defaults.values()]
    assert ast.get_docstring(stub) == inspect.cleandoc(getattr(opreg.functional, op.short).__doc__)


def test_stub_of_the_package():
    """Every public name, out of a module that has it, whether that is loaded by now or not."""
    imports = [node for node in ast.parse(stubs.package_stub()).body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.name for node in imports for alias in node.names) == opreg.__all__
    for node in imports:
        module = importlib.import_module(f"opreg.{node.module}" if node.module else "opreg")
        assert all(getattr(module, alias.name) is getattr(opreg, alias.name) for alias in node.names)


def test_package_is_typed():
    assert Path(opreg.__file__).with_name("py.typed").exists()
