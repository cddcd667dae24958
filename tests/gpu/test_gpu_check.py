"""The dry run of ``make gpu-check``: everything but the launches, and what it writes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gpu_check
import gpu_driver
import pytest
import torch

import opreg
from opreg import bench
from opreg.registry import of_namespace
from opreg.testing import Maker

OPS = [op.short for op in of_namespace()]
SCRIPT = Path(gpu_check.__file__)
NVCC = shutil.which("nvcc")


def table(markdown: str, head: str) -> list[list[str]]:
    """The cells of the table whose first column has this head."""
    block = next(b for b in markdown.split("\n\n") if b.startswith(f"| {head} |"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu_check")
    command = [sys.executable, SCRIPT, "--dry-run", "--output", folder / "out", "--build", folder / "build"]
    if NVCC:
        command += ["--architecture", "90-real"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    written, markdown = sorted((folder / "out").iterdir())
    report = json.loads(written.read_text())
    assert [written.name, markdown.name] == [f"{report['date']}_dry-run.json", f"{report['date']}_dry-run.md"]
    return report, markdown.read_text(), done.stdout


def test_every_step_is_recorded(dry_run):
    report, markdown, printed = dry_run
    skipped = ["suite", "planted error"] if NVCC else ["build", "suite", "planted error", "constants"]
    assert {name: s["result"] for name, s in report["steps"].items()} == {
        name: "skipped" if name in skipped else "passed" for name in gpu_check.SECONDS
    }
    assert report["failed"] == []
    assert report["device"] == {"name": "dry-run"}
    assert report["machine"]["torch"] == torch.__version__
    assert 0 < sum(s["seconds"] for s in report["steps"].values()) <= report["machine"]["seconds"] + 1
    configured = "configured for 90-real, not built" if NVCC else "no --architecture"
    assert report["steps"]["build"]["found"] == configured
    compiled = "compiled for 90-real, not run" if NVCC else "no --architecture"
    assert report["steps"]["constants"]["found"] == compiled
    assert report["steps"]["suite"]["found"].startswith("test_values.py, test_categorical.py")
    assert markdown.startswith(f"# gpu-check: dry-run, {report['date']}\n")
    header, _, *rows = table(markdown, "step")
    assert header == ["step", "result", "seconds", "found"]
    assert [row[0] for row in rows] == list(gpu_check.SECONDS)
    assert [row[1] for row in rows] == [s["result"] for s in report["steps"].values()]
    assert printed.startswith("plan: build (240 s at most), stage (60 s at most)")


def test_every_step_drives_every_op(dry_run):
    report, markdown, _ = dry_run
    assert report["steps"]["stage"]["ops"] == OPS
    for step in gpu_check.DRIVEN:
        assert list(report["steps"][step]["ops"]) == OPS
        assert all(found["calls"] >= 2 for found in report["steps"][step]["ops"].values())
    header, _, *rows = table(markdown, "op")
    assert header == ["op", *gpu_check.DRIVEN]
    calls = [[f"{report['steps'][s]['ops'][op]['calls']} calls" for s in gpu_check.DRIVEN] for op in OPS]
    assert rows == [[op, *row] for op, row in zip(OPS, calls, strict=True)]


def test_the_model_stands_beside_what_is_measured(dry_run):
    report, markdown, _ = dry_run
    rows = [r for op in report["steps"]["model"]["ops"].values() for r in op["rows"]]
    assert {r["op"] for r in rows} == set(OPS)
    assert {r["pass"] for r in rows} == {"forward", "backward"}
    assert all(r["seconds"]["ours"] > 0 for r in rows)
    assert {"ours", "eager"} <= set(next(r for r in rows if r["op"] == "mse_loss")["seconds"])
    _, _, *cells = table(markdown[markdown.index("## model") :], "op")
    assert [row[:4] for row in cells] == [[r[k] for k in gpu_check.KEY] for r in rows]


def test_a_prediction_is_found_for_a_measurement(tmp_path, monkeypatch):
    name = dict(zip(gpu_check.KEY, ("mse_loss", "64", "float32", "forward"), strict=True))
    monkeypatch.setattr(gpu_check, "PREDICTED", tmp_path / "predicted.json")
    gpu_check.PREDICTED.write_text(json.dumps({"predictions": [{**name, "predicted": 20.0}]}))
    found = {"ops": {"mse_loss": {"calls": 1, "rows": [{**name, "seconds": {"ours": 3e-5, "eager": 4e-5}}]}}}
    monkeypatch.setattr(gpu_check.Check, "drive", lambda self, what, limit: (found, ""))
    (row,) = gpu_check.model_rows(gpu_check.Check(tmp_path, "90", False).model(60))
    assert row == [*name.values(), "20.0", "30.0", "1.50", "eager 40.0"]


def test_the_benchmark_is_merged(dry_run):
    report, markdown, _ = dry_run
    found = report["steps"]["benchmark"]
    assert found["copy bytes a second"] > 1e8
    results = [r for op in found["ops"].values() for r in op["results"]]
    assert [r["pass"] for r in results] == list(bench.PASSES)
    header, _, *rows = table(markdown[markdown.index("## benchmark") :], "op")
    assert len(header) == 9
    for row, r in zip(rows, results, strict=True):
        assert row[:3] == [r["op"], "64", r["pass"]]
        ratios = [r["ratios"][name] for name in header[4:7]]
        rate = r["bytes"] / r["seconds"]["ours"]
        share = [f"{rate / 1e9:.0f}", f"{100 * rate / found['copy bytes a second']:.0f} %"]
        assert row[3:] == [f"{1e3 * r['seconds']['ours']:.4f}", *(f"{x:.2f}" for x in ratios), *share]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, "--output", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 2
    message = f"gpu-check: expected a GPU, torch {torch.__version__} finds none; try --dry-run\n"
    assert (done.stdout, done.stderr) == ("", message)
    assert not (tmp_path / "out").exists()


def test_a_failed_step_is_recorded_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def wrong(self, limit):
        ops = {"swish": {"why": "AssertionError: off"}, "mish": {"calls": 2}}
        raise gpu_check.Failed("1 ops", "what it printed", {"ops": ops, "failed": ["swish: AssertionError: off"]})

    steps = {
        "stage": lambda limit: {"found": "2 ops", "ops": ["swish", "mish"]},
        "graph": lambda limit: wrong(0, limit),
    }
    steps["repeat"] = lambda limit: {"found": "all", "ops": {op: {"calls": 1} for op in ("swish", "mish")}}
    monkeypatch.setattr(gpu_check.Check, "steps", lambda self: steps.items())
    done = gpu_check.perform(gpu_check.Check(tmp_path, None, True))
    assert {name: found["result"] for name, found in done.items()} == {
        "stage": "passed",
        "graph": "FAILED",
        "repeat": "passed",
    }
    assert "graph: FAILED" in capsys.readouterr().out
    markdown = gpu_check.markdown({"steps": done, "device": {"name": "a GPU"}, "machine": {}, "date": "2026-01-01"})
    assert table(markdown, "op")[2:] == [["swish", "FAILED", "1 calls"], ["mish", "2 calls", "1 calls"]]
    assert "## graph: 1 ops\n\n- swish: AssertionError: off\n\n```\nwhat it printed\n```\n" in markdown


def test_nothing_starts_when_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "BUDGET", 29)
    done = gpu_check.perform(gpu_check.Check(tmp_path, None, True))
    assert [found.get("why") for found in done.values()] == ["no time was left"]  # the build; nothing follows it


def test_a_command_is_stopped_and_keeps_what_it_printed(tmp_path):
    text = "import time; print('begun', flush=True); time.sleep(60)"
    why, output = gpu_check.Check(tmp_path, None, True).execute([sys.executable, "-c", text], 2)
    assert why == "stopped after 2 s"
    assert output.startswith("begun\n")


def test_local_memory_is_read():
    output = """ptxas info    : Compiling entry function '_ZN7lossreg4cuda3oneE' for 'sm_80'
ptxas info    : Function properties for _ZN7lossreg4cuda3oneE
    592 bytes stack frame, 32 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : Function properties for _ZN7lossreg4cuda3twoE
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_ZN7lossreg4cuda3oneE' for 'sm_90'
ptxas info    : Function properties for _ZN7lossreg4cuda3oneE
    8 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
"""
    one, two = "_ZN7lossreg4cuda3oneE", "_ZN7lossreg4cuda3twoE"
    assert gpu_check.local_bytes(output) == {"sm_80": {one: 592, two: 0}, "sm_90": {one: 12}}


def test_results_of_pytest_are_read(tmp_path):
    file = tmp_path / "suite.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="test_a" name="t[1]"/>'
        '<testcase classname="test_a" name="t[2]"><failure/></testcase>'
        '<testcase classname="test_b" name="u"><skipped/></testcase></testsuite></testsuites>'
    )
    found = "3 tests, 1 failed, 1 skipped"
    assert gpu_check.junit(file) == {"found": found, "tests": 3, "skipped": 1, "failed": ["test_a::t[2]"]}


def test_layouts_and_sizes():
    """Misaligned, strided, and of any number of rows; the values are those of the samples."""
    x, classes = torch.arange(6.0).view(3, 2).requires_grad_(), torch.tensor([0, 1, 1])
    sample = opreg.Sample((x, classes), {"weight": torch.ones(2)})
    large = gpu_driver.grown(opreg.get("cross_entropy"), [sample, sample], 8)
    assert large.args[0].tolist() == [*sample.args[0].tolist()] * 2 + sample.args[0].tolist()[:2]
    assert large.args[1].tolist() == [0, 1, 1, 0, 1, 1, 0, 1]
    assert large.kwargs["weight"].tolist() == [1, 1]
    assert large.args[0].requires_grad
    for layout, step in ((gpu_driver.misaligned, 1), (gpu_driver.strided, 2)):
        t = gpu_driver.combined([sample], layout).args[0]
        assert torch.equal(t, sample.args[0])
        assert t.stride() == (2 * step, step)
        assert t.storage_offset() == 1


def test_a_difference_of_one_bit_is_found():
    zero, nan = torch.zeros(3), torch.tensor(torch.nan)
    gpu_driver.require_same_bits("op", [zero, nan], [zero.clone(), nan.clone()])
    with pytest.raises(AssertionError, match="op: expected the same bits in value"):
        gpu_driver.require_same_bits("op", [zero], [-zero])


def test_a_replay_that_keeps_old_values_is_found(monkeypatch):
    """Without a graph the driver compares two eager calls: the fresh values must have reached the static inputs."""
    op = opreg.get("mse_loss")
    assert gpu_driver.drive_graph(op, "cpu")["calls"] == 9
    fixed = next(op.samples(Maker(torch.float32, requires_grad=True)))
    run = gpu_driver.run
    calls = []

    def stale(op, sample):
        calls.append(sample)
        return run(op, fixed if len(calls) % 2 else sample)

    monkeypatch.setattr(gpu_driver, "run", stale)
    with pytest.raises(AssertionError, match="mse_loss: expected the same bits in value"):
        gpu_driver.drive_graph(op, "cpu")
