"""``opreg.build``: a family of somebody else's, compiled, kept and loaded."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import opreg
from conftest import ROOT
from opreg.building.compilers import cuda_compiler, cxx_compiler
from opreg.building.headers import VERSION
from opreg.building.units import Recipe

# Charbonnier and others, Two deterministic half-quadratic regularization algorithms, 1994.
HEADER = """
#pragma once
#include <opreg/opreg.h>

namespace lossreg {

struct CharbonnierLoss {
  static constexpr auto name = "charbonnier_loss";
  static constexpr auto args = "Tensor input, Tensor target, str reduction=\\"mean\\", float eps=0.001";
  static constexpr int inputs = 2, gradients = 2;
  static constexpr Shapes shapes = Shapes::broadcast;
  Parameter eps;

  static CharbonnierLoss make(Reduction, double eps) { return {eps}; }
  template <class T>
  HD T value(T x, T t) const {
    T r = x - t;
    return sqrt(r * r + T(eps) * T(eps));
  }
  template <class T>
  HD Gradients<T, 2> grad(T x, T t) const {
    T g = (x - t) / value(x, t);
    return {g, -g};
  }
};

using Ops = PointwiseOps<CharbonnierLoss>;

}  // namespace lossreg
"""


# What attaches the rest, in a process of its own: the registry of this one is other tests'.
DECLARED = f"""
import unittest.mock
import opreg

HEADER = {HEADER!r}


def charbonnier_loss(input, target, reduction="mean", eps=1e-3):
    loss = ((input - target) ** 2 + eps**2).sqrt()
    return {{"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}}[reduction]()


def samples(make):
    for reduction in ("none", "mean", "sum"):
        yield opreg.Sample((make.normal(3, 5), make.normal(5)), {{"reduction": reduction}})


library = opreg.build(HEADER, namespace="built", flags=["-O1"])
with unittest.mock.patch.object(opreg.building.units, "_run", None):  # the second time nothing is compiled
    assert opreg.build(HEADER, namespace="built", flags=["-O1"]) == library
assert library.namespace == "built"
shape = opreg.meta.broadcast("input", "target")
op = opreg.Op("built::charbonnier_loss", charbonnier_loss, shape, samples, lambda make: iter(()), "1994")
opreg.register(op)
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kept(cache, monkeypatch) -> Path:
    """What the tests of this module compile, they compile once."""
    monkeypatch.setenv("OPREG_CACHE", str(cache))
    return cache


def test_an_op_of_somebody_elses_passes_every_check(kept):
    run(f"{DECLARED}opreg.testing.check(op)")


@pytest.mark.slow
@pytest.mark.skipif(cuda_compiler() is None, reason="no nvcc")
def test_kernels_for_cuda(kept, monkeypatch):
    """Which a torch without CUDA loads as well."""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    library = opreg.build(HEADER, namespace="built_for_cuda", cuda=True)
    assert library.ops == ("built_for_cuda::charbonnier_loss",)
    for name in (*library.ops, "built_for_cuda::charbonnier_loss_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA")
    assert torch.ops.built_for_cuda.charbonnier_loss(torch.ones(3), torch.ones(3), eps=2.0) == 2


def test_several_processes_that_ask_at_once_compile_once(kept, tmp_path):
    """A header on disk, which includes another one; found again as long as both are what they were."""
    (tmp_path / "root.h").write_text("#pragma once\n#define ROOT sqrt\n")
    text = HEADER.replace("opreg.h>", 'opreg.h>\n#include "root.h"').replace("sqrt(", "ROOT(")
    header = tmp_path / "my losses.h"
    header.write_text(text)
    program = f"""
import opreg, torch
library = opreg.build({str(header)!r}, namespace="twice", flags=["-O0"])
assert torch.ops.twice.charbonnier_loss(torch.ones(3), torch.ones(3), eps=2.0) == 2
print(library.path)
"""

    command = [sys.executable, "-c", program]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    made, same = (process.communicate()[0] for process in started)
    assert made == same
    before = os.stat(made.strip()).st_mtime_ns
    assert run(program) == made
    (tmp_path / "root.h").write_text("#pragma once\n#define ROOT(x) sqrt(x)  // the same by another text\n")
    assert run(program) != made
    assert os.stat(made.strip()).st_mtime_ns == before


def test_what_does_not_compile_says_so_in_the_compilers_words(kept):
    with pytest.raises(RuntimeError, match=r"opreg.build: expected a family of ops that compiles, got") as caught:
        opreg.build(HEADER.replace("sqrt(", "radix("), namespace="built_wrong")
    assert re.findall(r"built_wrong.h:\d+:\d+: error: .*", str(caught.value)) == [
        "built_wrong.h:18:17: error: 'radix' was not declared in this scope"
    ]
    assert "   18 |     return radix(r * r + T(eps) * T(eps));" in str(caught.value)
    assert not hasattr(torch.ops.built_wrong, "charbonnier_loss")


def test_bad_arguments(kept, tmp_path):
    with pytest.raises(ValueError, match="expected a namespace of small letters, digits and _, got 'a::b'"):
        opreg.build(HEADER, namespace="a::b")
    with pytest.raises(FileNotFoundError, match=r"the path of one, got 'nowhere.h'"):
        opreg.build("nowhere.h", namespace="built")


def test_an_op_that_is_defined_twice(kept):
    """An error that names both, before anything is loaded; or the new one in the place of the old."""
    text = HEADER.replace("return sqrt(", "return T(2) * sqrt(")
    program = f"""{DECLARED}
import torch, pytest
x, other = torch.ones(3), {text!r}
with pytest.raises(ValueError) as caught:
    opreg.build(other, namespace="built", flags=["-O0"])
said = str(caught.value)
assert said.startswith("built::charbonnier_loss: expected an op that is not defined yet, got one that is"), said
assert f"from built.h in {{library.path}} and now from " in said and said.endswith("all that it defines"), said
assert op.value(x, 3 * x, eps=0.0) == 2 and opreg.get("built::charbonnier_loss") is op
again = opreg.build(other, namespace="built", flags=["-O0"], replace=True)
assert again.ops == ("built::charbonnier_loss",) and library.ops == ()
assert not any(o.qualname == op.qualname for o in opreg.registered())
# a declaration attaches to what is there now
op = opreg.register(opreg.Op("built::charbonnier_loss", charbonnier_loss, shape, samples, lambda make: iter(()), "x"))
assert op.value(x, 3 * x, eps=0.0) == 4
x.requires_grad_()
torch.compile(op.value)(x, torch.full([3], 3.0), eps=0.0).backward()
torch.testing.assert_close(x.grad, torch.full([3], -0.5 / 3))  # grad() divides by the value
# and back
assert opreg.build(HEADER, namespace="built", flags=["-O1"], replace=True) == library
assert torch.ops.built.charbonnier_loss(x, 3 * x, eps=0.0) == 2
assert torch.ops.built_kernels.charbonnier_loss(x, 3 * x, eps=0.0) == 2
lib = torch.library.Library("defined_here", "DEF")
lib.define("charbonnier_loss(Tensor x) -> Tensor")
with pytest.raises(ValueError, match="got one that is, from <string>:"):
    opreg.build(HEADER, namespace="defined_here", flags=["-O0"], replace=True)
"""
    run(program)


# A mistake in a formula, and what its compilation says.
MISTAKES = {
    "options in another order": (
        ("make(Reduction, double eps)", "make(double eps, Reduction)"),
        "make() takes the options of args in their order",
    ),
    "no Reduction": (("make(Reduction, double eps)", "make(double eps)"), "make() takes every option of args"),
    "gradients of another size": (("gradients = 2", "gradients = 1"), "grad() returns Gradients<T, gradients>"),
    "another number of tensors": (("inputs = 2", "inputs = 3"), "args has as many tensors as inputs says"),
    "a function that math.h lacks": (("return sqrt(", "return cbrt("), "base/math.h has no cbrt()"),
    "C's name for a function": (("return sqrt(", "return sqrtf("), "base/math.h has no sqrtf()"),
    "two ops of one name": (
        ("PointwiseOps<CharbonnierLoss>", "PointwiseOps<CharbonnierLoss, CharbonnierLoss>"),
        "each op of a family has a name of its own",
    ),
    "a formula elsewhere": (
        (
            "using Ops = PointwiseOps<CharbonnierLoss>;",
            "}\nnamespace elsewhere {\nusing namespace lossreg;\nstruct Formula : CharbonnierLoss {\n"
            "static Formula make(Reduction, double eps) { return {{eps}}; }\n};\n}\n"
            "namespace lossreg {\nusing Ops = PointwiseOps<elsewhere::Formula>;",
        ),
        "a formula belongs into namespace lossreg",
    ),
    "two families": (
        ("using Ops = ", "struct Other : CharbonnierLoss {};\nusing Ops = PointwiseOps<Other>;\nusing Ops = "),
        "One unit holds one family: `using Ops` stands once",
    ),
    "no family": (("using Ops = ", "using Losses = "), "A family's header ends with `using Ops = ...;`"),
    "rows that are not reduced": (
        (
            "using Ops = PointwiseOps<CharbonnierLoss>;",
            "struct Rows : RowFormula {\nstatic constexpr auto name = \"rows\";\n"
            "static constexpr auto args = \"Tensor input, Tensor target, int ignore_index=-100\";\n"
            "static constexpr int inputs = 2, gradients = 1;\n"
            "static Rows make(int64_t ignore_index) { return {{ignore_index}}; }\n};\nusing Ops = RowOps<Rows>;",
        ),
        "a loss of rows, groups or boxes is reduced: make() takes a Reduction",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_formula_is_said_while_it_is_compiled(mistake, kept):
    (before, after), said = MISTAKES[mistake]
    assert before in HEADER
    with pytest.raises(RuntimeError, match="expected a family of ops that compiles") as caught:
        opreg.build(HEADER.replace(before, after), namespace="mistaken", flags=["-fsyntax-only"])
    assert said in str(caught.value)


def test_what_is_public_is_there(tmp_path):
    """The names that csrc/README.md promises, each by the one header that a family includes; macros apart."""
    said = (ROOT / "csrc/README.md").read_text().split("## What is public")[1].split("\n## ")[0]
    promised = said.split("These names it may rely on")[1].split("All else is ours")[0]
    names = set(re.findall("`([A-Za-z]\\w*)`", promised)) - {"LOSSREG_VERSION", "HD"}
    assert {"PointwiseOps", "Gradients", "Row", "Overlap", "expect"} <= names
    header, unit = tmp_path / "public.h", tmp_path / "unit.o"
    family = "using Ops = PointwiseOps<CharbonnierLoss>;"
    used = "".join(f"using lossreg::{name};\n" for name in sorted(names))
    macros = "static_assert(LOSSREG_VERSION > 0);\nHD int one() { return 1; }\n"
    header.write_text(HEADER.replace(family, f"{family}\n}}\nnamespace theirs {{\n{used}{macros}"))
    recipe = Recipe("public", cxx_compiler(), None, ("-fsyntax-only",))
    done = subprocess.run(recipe.command(header, unit), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:4000]


def test_versions(kept, tmp_path):
    """Headers, package and loader are of one version; a library of a later one is refused, one of an earlier is not."""
    number = [int(part) for part in opreg.__version__.split(".")]
    text = (ROOT / "csrc/version.h").read_text()
    assert f"#define LOSSREG_VERSION {number[0] * 10000 + number[1] * 100 + number[2]}\n" in text
    assert f"#define LOSSREG_VERSION {VERSION}\n" in text
    source = tmp_path / "library.c"
    source.write_text(
        'const char* lossreg_namespace() { return "versioned"; }\nconst char* lossreg_refused() { return ""; }\n'
        'const char* lossreg_defined() { return ""; }\nconst char* lossreg_cuda_toolkit() { return ""; }\n'
        "int lossreg_partial() { return 1; }\nint lossreg_version() { return VERSION; }\nvoid lossreg_withdraw() {}\n"
    )
    for version in (VERSION - 1, VERSION + 1):
        library = tmp_path / f"lib{version}.so"
        subprocess.run(["cc", "-shared", "-fPIC", f"-DVERSION={version}", "-o", library, source], check=True)
    assert opreg.load_library(tmp_path / f"lib{VERSION - 1}.so").version == VERSION - 1
    with pytest.raises(RuntimeError, match=f"of version {VERSION} or before, got {VERSION + 1} of .*; upgrade opreg"):
        opreg.load_library(library)
    with pytest.raises(FileNotFoundError, match="expected a path or the name of a package, got 'no_package'"):
        opreg.load_library("no_package")
