"""``python -m opreg ops | show | doctor | demo``: what they say is what the dispatcher says."""

import dataclasses
import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

import opreg
from opreg import __main__ as cli
from opreg import catalogue, doctor, meta
from opreg.registry import of_namespace

NAMES = [op.name for op in of_namespace()]


def test_ops_lists_every_registered_op(capsys):
    assert cli.main(["ops"]) == 0
    header, rule, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["op", "CPU", "CUDA", "fake", "autograd", "second", "derivative", "vmap"]
    assert set(rule) == {"-", " "}
    assert [row.split()[0] for row in rows] == [op.name for op in opreg.registered()]
    own = [row.split() for row in rows if row.split()[0] in NAMES]
    assert len(own) == len(NAMES)
    for name, cpu, _, fake, autograd, second, vmap in own:
        assert [cpu, fake, autograd, vmap] == ["yes"] * 4
        assert second == ("no" if name in ("ctc_loss", "rnnt_loss", "ema_update_") else "yes")


@pytest.mark.parametrize("name", [n for n in NAMES if not opreg.get(n).mutated])
def test_second_derivative_is_what_is_said(name):
    """One is asked for: it is there, or there is an error, as the table says."""
    op = opreg.get(name)
    sample = next(s for s in op.samples(opreg.testing.Maker(requires_grad=True)) if s.args[0].numel())
    total = opreg.testing.joined(op.value(*sample.args, **sample.kwargs)).sum()
    (gradient,) = torch.autograd.grad(total, sample.args[0], create_graph=True)
    try:
        torch.autograd.grad(gradient.sum(), sample.args[0], allow_unused=True)
        there = True
    except RuntimeError as error:
        there = "expected at most a first derivative" not in str(error)
    assert catalogue.coverage(op)["second derivative"] == there


def test_ops_json_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "opreg", "ops", "--json"], capture_output=True, text=True, check=True)
    table = json.loads(done.stdout)
    assert [row.pop("op") for row in table] == NAMES
    assert table == [catalogue.coverage(op) for op in of_namespace()]


def test_coverage_follows_the_dispatcher():
    lib = torch.library.Library("opreg_test_cli", "DEF")
    op = opreg.Op(
        "opreg_test_cli::half",
        reference=lambda x: x / 2,
        shape=meta.same("x"),
        samples=lambda make: iter(()),
        errors=lambda make: iter(()),
        source="",
    )
    covered = dict.fromkeys(catalogue.COVERED, False)
    lib.define("half(Tensor x) -> Tensor")
    lib.define("half_backward(Tensor grad_output, Tensor x, *, bool[1] needs_input_grad) -> Tensor")
    lib.impl("half", lambda x: x / 2, "CPU")
    assert catalogue.coverage(op) == covered  # the backward op has no kernel
    lib.impl("half_backward", lambda g, x, needs_input_grad: g / 2, "CPU")
    assert catalogue.coverage(op) == {**covered, "CPU": True}
    lib.impl("half", lambda x: x / 2, "Autograd")
    assert catalogue.coverage(op) == {**covered, "CPU": True, "autograd": True}
    lib.impl("half_backward", lambda g, x, needs_input_grad: g / 2, "Autograd")
    assert catalogue.coverage(op) == {**covered, "CPU": True, "autograd": True, "second derivative": True}


@pytest.mark.parametrize("name", NAMES)
def test_show(name, capsys):
    assert cli.main(["show", name]) == 0
    out, op = capsys.readouterr().out, opreg.get(name)
    for overload in op.overloads:
        assert str(overload._schema) in out
    for line in (op.source, f"differentiable  {', '.join(op.differentiable)}", *op.spellings):
        assert line in out
    assert ("inlined" in out) == op.inline
    sample = next(op.samples(opreg.testing.Maker()))
    texts = [str(list(a.shape)) if isinstance(a, torch.Tensor) else "" for a in sample.args]
    assert f"sample          {', '.join(itertools.takewhile(bool, texts))}" in out
    definition = out.split("reference:")[1]
    assert "return" in definition or "compiled into torch" in definition


def test_show_names_the_function_inside_a_reference(capsys):
    cli.main(["show", "huber_loss"])
    end = capsys.readouterr().out.split("reference:\n\n")[1]
    assert end == (
        "def reference(input: Tensor, target: Tensor, **options: Any) -> Tensor:\n"
        "    return loss(*torch.broadcast_tensors(input, target), **options)\n"
        "\n"
        "with loss = torch.nn.functional.huber_loss\n"
    )


@pytest.mark.parametrize("command", ["show", "bench"])
def test_unknown_name(command, capsys):
    assert cli.main([command, "focl_loss"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith('opreg: expected the name of an op, got "focl_loss"; near it: focal_loss')
    assert err.count("\n") == 1


def test_unknown_name_far_from_all(capsys):
    assert cli.main(["show", "qqqq"]) == 2
    assert capsys.readouterr().err == (
        'opreg: expected the name of an op, got "qqqq"; `python -m opreg ops` lists them\n'
    )


def test_doctor_of_this_installation(capsys):
    facts = doctor.gather()
    status = cli.main(["doctor"])
    out = capsys.readouterr().out
    assert status == int(any(doctor.problems(facts)))
    for line in (torch.__version__, opreg.__version__, str(opreg.library_path()), facts.capability):
        assert line in out
    assert f"ops             {len(there := opreg.registered())}, of which with CPU {len(there)}, CUDA " in out


HEALTHY = doctor.Facts(
    torch_version="2.13.0+cpu",
    library="liblossreg.so",
    library_mib=2.0,
    chosen=None,
    edited=None,
    torch_cuda=None,
    toolkit="13.0.88",
    driver_cuda=None,
    gpu=False,
    gpu_name=None,
    gpu_capability=None,
    driver=False,
    kernels={"a": {**dict.fromkeys(catalogue.COVERED, True), "CUDA": False}},
    undeclared=(),
    loops="AVX2 (x86-64-v3)",
    capability="AVX512",
    threads=2,
    compiler=None,
)


def test_doctor_finds_nothing_wrong():
    text, status = doctor.diagnosis(HEALTHY)
    assert status == 0
    assert text.endswith("Nothing is wrong.")
    assert "C++ compiler    none: torch.compile needs one on the CPU" in text
    assert "CPU capability  AVX2 (x86-64-v3); torch's own kernels AVX512" in text
    assert "no kernel for   CUDA: every op" in text


def test_doctor_names_the_ops_without_a_kernel():
    both = dict.fromkeys(catalogue.COVERED, True)
    kernels = {"a": both, "b": {**both, "CUDA": False}, "c": {**both, "CUDA": False}}
    assert "no kernel for   CUDA: b, c" in doctor.diagnosis(dataclasses.replace(HEALTHY, kernels=kernels))[0]
    text, status = doctor.diagnosis(dataclasses.replace(HEALTHY, kernels={"a": both}))
    assert status == 0
    assert "no kernel for   nothing: every op has one for CPU and CUDA" in text


def test_doctor_says_which_gpu_and_library():
    gpu = {"gpu": True, "gpu_name": "H200", "gpu_capability": (9, 0), "driver": True, "torch_cuda": "13.0"}
    kernels = {"a": dict.fromkeys(catalogue.COVERED, True)}
    text, status = doctor.diagnosis(
        dataclasses.replace(HEALTHY, **gpu, kernels=kernels, chosen="x.so", edited="csrc/a.h")
    )
    assert status == 0
    assert "torch built with 13.0; GPU available: H200, sm_90" in text
    assert "liblossreg.so (2.0 MiB), chosen by OPREG_LIBRARY=x.so" in text


def test_loops_follow_the_processor():
    v3, v4 = doctor.LEVELS.values()
    assert doctor.loops_for(v3 | v4) == "AVX-512 (x86-64-v4)"
    assert doctor.loops_for(v3 | v4 - {"avx512vl"}) == "AVX2 (x86-64-v3)"
    assert doctor.loops_for(v4 | v3 - {"fma"}) == doctor.loops_for(set()) == "baseline, without AVX2"


def test_source_newer_than_the_library(tmp_path):
    library, source = tmp_path / "liblossreg.so", tmp_path / "csrc" / "formulas" / "box.h"
    source.parent.mkdir(parents=True)
    for i, path in enumerate((source, library)):
        path.touch()
        os.utime(path, (i, i))
    assert doctor.newer_source(library, tmp_path / "csrc") is None
    os.utime(source, (2, 2))
    assert doctor.newer_source(library, tmp_path / "csrc") == "csrc/formulas/box.h"
    assert doctor.newer_source(library, tmp_path / "none") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"library": None}, "wrong: no library of ops: run `pip install .` in the checkout, or set OPREG_LIBRARY"),
        ({"torch_version": "2.9.1"}, "wrong: expected torch >= 2.11, got 2.9.1: upgrade torch"),
        ({"torch_version": "1.13.0"}, "wrong: expected torch >= 2.11, got 1.13.0: upgrade torch"),
        ({"gpu": True}, "wrong: a GPU is available, but there is no CUDA kernel for a: the library was built without"),
        ({"kernels": {}}, "wrong: no op is registered: reinstall opreg"),
        (
            {"kernels": {"a": dict.fromkeys(catalogue.COVERED, False)}},
            "wrong: CPU is missing for a: library and",
        ),
        (
            {"edited": "csrc/base/math.h"},
            "wrong: csrc/base/math.h is newer than the library: run `make install`, or `pip",
        ),
        (
            {"driver": True},
            "wrong: the machine has a GPU's driver, but this torch is built for the CPU: install a CUDA",
        ),
        ({"driver": True, "torch_cuda": "13.0"}, "but torch (CUDA 13.0) finds no GPU: look at nvidia-smi and"),
        (
            {"driver_cuda": "12.4"},
            "driver of CUDA 13.0 or later for kernels built by CUDA 13.0.88, got one of CUDA 12.4: update the driver",
        ),
        (
            {"gpu": True, "gpu_name": "T4", "gpu_capability": (7, 5)},
            'later, T4 is sm_75: reinstall with CMAKE_ARGS="-DLOSSREG_CUDA_ARCHITECTURES=75-real"',
        ),
        ({"undeclared": ("b",)}, "wrong: the library holds ops without a declaration, b: reinstall opreg"),
    ],
)
def test_doctor_says_what_is_wrong(change, expected):
    text, status = doctor.diagnosis(dataclasses.replace(HEALTHY, **change))
    assert status == 1
    assert expected in text
    assert "Nothing is wrong." not in text


def test_library_that_does_not_load(tmp_path):
    """Where the library is for another torch or processor, no doctor can be called: the import says what to do."""
    (tmp_path / "other.so").write_text("no library")
    environment = {**os.environ, "OPREG_LIBRARY": str(tmp_path / "other.so")}
    done = subprocess.run([sys.executable, "-c", "import opreg"], capture_output=True, text=True, env=environment)
    expected = "OSError: opreg: expected a torch >= 2.11 and a library built for this processor, or no OPREG_LIBRARY, "
    assert f"{expected}which chose it, got {tmp_path}/other.so in torch {torch.__version__}: " in done.stderr


def test_demo_runs_the_script(tmp_path, monkeypatch, capfd):
    script = tmp_path / "digits.py"
    script.write_text("import sys; print('demo ran'); sys.exit(3)")
    monkeypatch.setattr(cli, "DEMO", script)
    assert cli.main(["demo"]) == 3
    assert capfd.readouterr().out == f"running {script}\ndemo ran\n"


def test_demo_outside_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "DEMO", tmp_path / "digits.py")
    assert cli.main(["demo"]) == 1
    assert "ships with the source repository" in capsys.readouterr().out
