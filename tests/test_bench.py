"""The benchmark times the right calls: its inputs, its agreement check, its arithmetic. No times are asserted."""

import dataclasses
import json
import statistics

import pytest
import torch
import torch.nn.functional as F

import opreg
from opreg import __main__ as cli
from opreg import bench, report
from opreg.testing import Maker

NAMES = [op.name for op in opreg.registered() if not op.mutated]


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_every_op(name):
    op = opreg.get(name)
    for case in bench.cases(op, "small", torch.float32):
        assert case.args.get("reduction", "mean") == "mean"
        bench.check_values(case, torch.float32)
        assert bench.value_and_gradient(case, op.value)[1].abs().max() > 0


def test_an_op_without_a_gradient_is_left_out():
    report = bench.run(["ema_update_"], size="small", rounds=1)
    assert not report["results"]
    assert "ema_update_: expected an op with a gradient, got one that writes to averages" in report["left_out"].values()


@pytest.mark.parametrize("name", [name for name in NAMES if opreg.get(name).workload is None])
def test_shapes_grow_from_the_samples(name):
    op = opreg.get(name)
    shapes = bench.shapes_of(op, "small")
    rows = len(op.shape(op.short, bench.small_calls(op)[0])) == 1
    leads = [s[op.tensor_arguments[0]] for s in shapes]
    wanted = list(bench.ROWS["small"]) if rows else [(bench.ELEMENTS["small"],)]
    assert leads in (wanted, wanted[:1])  # some take (N, C) only
    for case_shapes in shapes:
        case = bench.draw(op, case_shapes, torch.float32)
        assert {n: tuple(a.shape) for n, a in case.args.items() if isinstance(a, torch.Tensor)} == case_shapes


def test_inputs_have_the_values_of_the_samples():
    signs = bench.draw(opreg.get("soft_margin_loss"), {"input": (1000,), "target": (1000,)}, torch.float32)
    assert set(signs.args["target"].tolist()) == {-1.0, 1.0}
    p = bench.draw(opreg.get("binary_cross_entropy"), {"input": (1000,), "target": (1000,)}, torch.bfloat16)
    assert p.args["input"].dtype == torch.bfloat16
    assert 0 < p.args["input"].min() < 0.1 < 0.9 < p.args["input"].max() < 1
    assert p.args["weight"] is None


def test_class_indices_are_of_every_class():
    case = bench.draw(opreg.get("cross_entropy"), {"input": (2, 19, 40, 40), "target": (2, 40, 40)}, torch.float32)
    assert case.args["target"].unique().tolist() == list(range(19))
    assert case.kind == "row losses"


def test_an_op_that_takes_matrices_only_keeps_those():
    op = opreg.get("nll_loss")

    def matrices(name, args):
        if args["input"].dim() != 2:
            raise RuntimeError
        return op.shape(name, args)

    assert bench.shapes_of(dataclasses.replace(op, shape=matrices), "large") == [
        {"input": (1024, 32000), "target": (1024,)}
    ]


def test_shapes_that_follow_from_nothing():
    def samples(make: Maker):
        yield opreg.Sample((make.normal(3, 5), make.normal(1)))

    op = dataclasses.replace(opreg.get("mse_loss"), samples=samples)
    with pytest.raises(ValueError, match=r"mse_loss: expected target of the shape of input, .* got \[3, 5\] and \[1\]"):
        bench.shapes_of(op, "small")


def test_agreement_refuses_wrong_values_and_gradients():
    good = (torch.tensor(2.0), torch.tensor([1.0, -1.0]))
    bench.check_agreement("op", good, good, torch.float32)
    with pytest.raises(bench.Disagreement, match=r"op 4: expected eager's value within 2.0e-04, .* 1.0e\+00"):
        bench.check_agreement("op 4", (good[0] + 1, good[1]), good, torch.float32)
    with pytest.raises(bench.Disagreement, match="expected eager's gradient within"):
        bench.check_agreement("op", (good[0], -good[1]), good, torch.float32)
    with pytest.raises(bench.Disagreement, match="expected eager's value"):
        bench.check_agreement("op", (good[0] * torch.nan, good[1]), good, torch.float32)


def test_a_wrong_op_is_not_timed(monkeypatch, capsys):
    def doubled(input, target, reduction):
        return 2 * F.mse_loss(input, target, reduction=reduction)

    wrong = dataclasses.replace(opreg.get("mse_loss"), native=doubled)
    monkeypatch.setattr(bench, "get", lambda name: wrong)
    monkeypatch.setattr(bench, "time_calls", lambda *args: pytest.fail("timed a wrong op"))
    assert cli.main(["bench", "mse_loss", "--size", "small"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "opreg: mse_loss 4096: expected eager's value within" in err


def test_bytes_that_must_move():
    loss = bench.draw(opreg.get("mse_loss"), {"input": (4096,), "target": (4096,)}, torch.float32)
    activation = bench.draw(opreg.get("mish"), {"input": (4096,)}, torch.float32)
    # read input and target; again, and write the gradient
    assert bench.bytes_moved(loss, loss.op.value(**loss.args), backward=False) == [2 * 16384]
    assert bench.bytes_moved(loss, loss.op.value(**loss.args), backward=True) == [2 * 16384, 3 * 16384]
    # read input, write result; read input and the result's gradient, write the gradient
    assert bench.bytes_moved(activation, activation.op.value(**activation.args), backward=True) == [32768, 49152]


def test_measurements_are_interleaved_and_long_enough(monkeypatch):
    monkeypatch.setattr(bench, "SHORTEST", 1e-4)
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    times = bench.time_calls(calls, 3, "cpu")
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [name for name, before in zip(log, [None, *log], strict=False) if name != before]
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"  # warming up, then the rounds
    assert log.count("a") > 3 * 10


def test_run_writes_what_it_measured(tmp_path, capsys):
    arguments = ["--size", "small", "--rounds", "2", "--threads", "1", "--output", str(tmp_path)]
    assert cli.main(["bench", "mse_loss", "mish", *arguments]) == 0
    out = capsys.readouterr().out
    path = tmp_path / "cpu-small-float32-1-threads.json"
    result = json.loads(path.read_text())
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert result["machine"]["threads"] == 1
    assert result["machine"]["torch"] == torch.__version__
    assert result["settings"] == {"size": "small", "dtype": "float32", "rounds": 2, "device": "cpu"}
    rows = [(r["op"], r["pass"]) for r in result["results"]]
    assert rows == [(op, which) for op in ("mse_loss", "mish") for which in bench.PASSES]
    for r in result["results"]:
        assert list(r["seconds"]) == list(bench.PROVIDERS)
        for name, t in r["seconds"].items():
            assert t == statistics.median(r["rounds"][name]) > 0
        s = r["seconds"]
        assert r["ratios"]["eager/ours"] == s["eager"] / s["ours"]
        assert r["ratios"]["inductor/ours"] == s["inductor"] / s["ours"]
        assert r["ratios"]["ours/floor"] == s["ours"] / s["floor"]
    for mean, r in zip(result["geometric_means"], result["results"], strict=True):  # one case of each kind
        assert mean["ratios"] == pytest.approx(r["ratios"])
    assert report.bench_text(result) + "\n" == out.split("wrote ")[0]
    for r in result["results"]:
        line = next(x for x in out.splitlines() if x.split()[:3] == [r["op"], "4096", r["pass"]])
        assert [float(v) for v in line.split()[3:7]] == [round(1e3 * t, 3) for t in r["seconds"].values()]


def test_geometric_means_are_within_kind_and_pass():
    def result(kind, which, ratio):
        return {"kind": kind, "pass": which, "ratios": dict.fromkeys(bench.RATIOS, ratio)}

    results = [result("a", "forward", 2.0), result("b", "forward", 7.0), result("a", "forward", 8.0)]
    means = bench.geometric_means(results)
    assert [(m["kind"], m["cases"], m["ratios"]["eager/ours"]) for m in means] == [
        ("a", 2, pytest.approx(4.0)),
        ("b", 1, pytest.approx(7.0)),
    ]


def test_disturbed_measurements_are_called_so():
    seconds = dict.fromkeys(bench.PROVIDERS, 1.0)
    result = {"seconds": seconds, "rounds": {name: [0.9, 1.0, 1.1] for name in bench.PROVIDERS}}
    assert not report.unsteady(result)
    assert report.unsteady({**result, "rounds": {**result["rounds"], "floor": [0.1, 1.0, 1.1]}})

    row = {"op": "a", "shape": [2, 3], "pass": "forward", "ratios": dict.fromkeys(bench.RATIOS, 1.0), **result}
    disturbed = {**row, "rounds": {**result["rounds"], "floor": [0.1, 1.0, 1.1]}}
    rest = {
        "machine": {"gpu": None, "cpu": "a CPU", "threads": 2, "cores": 2, "load": 6.0, "torch": "2.13.0"},
        "settings": {"dtype": "float32", "rounds": 3},
        "geometric_means": [],
        "left_out": {},
    }
    assert "NOT TO BE TRUSTED" not in report.bench_text({"results": [row, row], **rest})
    assert "NOT TO BE TRUSTED: 1 of 2 rows are unsteady" in report.bench_text({"results": [row, disturbed], **rest})
