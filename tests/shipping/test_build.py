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

# Charbonnier and others, Two deterministic half-quadratic regularization algorithms, 1994.
HEADER = """
#pragma once
#include <opreg/skeletons/formula.h>

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
import time
import opreg

HEADER = {HEADER!r}


def charbonnier_loss(input, target, reduction="mean", eps=1e-3):
    loss = ((input - target) ** 2 + eps**2).sqrt()
    return {{"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}}[reduction]()


def samples(make):
    for reduction in ("none", "mean", "sum"):
        yield opreg.Sample((make.normal(3, 5), make.normal(5)), {{"reduction": reduction}})


library = opreg.build(HEADER, namespace="built")
start = time.perf_counter()
assert opreg.build(HEADER, namespace="built") == library
assert library.namespace == "built" and time.perf_counter() - start < 0.05
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


def test_several_processes_that_ask_at_once_compile_once(kept, tmp_path):
    """A header on disk, which includes another one; found again as long as both are what they were."""
    (tmp_path / "root.h").write_text("#pragma once\n#define ROOT sqrt\n")
    text = HEADER.replace("formula.h>", 'formula.h>\n#include "root.h"').replace("sqrt(", "ROOT(")
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
