"""The benchmark times the right calls: its inputs, its agreement check, its arithmetic. No times are asserted."""

import dataclasses
import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import opreg
from opreg import __main__ as cli
from opreg import bench
from opreg.bench import providers, runner, text, timing, training
from opreg.bench.files import bench_load, json_text
from opreg.bench.progress import progress_bar
from opreg.bench.targets import LIGHT, targets
from opreg.registry import of_namespace
from opreg.testing import Maker

NAMES = [op.name for op in of_namespace() if not op.mutated]
PEERS = Path(__file__).parents[2] / "benchmarks" / "peers.py"
QUICK = {"sizes": ["small"], "dtypes": ["float32"], "providers": ["ours", "eager", "floor", "call"], "rounds": 2}


# inputs


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_every_op(name):
    op = opreg.get(name)
    for case in bench.cases(op, "small", torch.float32):
        assert case.args.get("reduction", "mean") == "mean"
        assert case.tensors[0].numel() <= 64
        bench.check_values(case, torch.float32)
        assert bench.value_and_gradient(case, op.value)[1].abs().max() > 0


def test_an_op_without_a_gradient_is_left_out():
    report = bench.run(["ema_update_"], **QUICK)
    assert not report["results"]
    assert "ema_update_: expected an op with a gradient, got one that writes to averages" in report["left_out"].values()


@pytest.mark.parametrize("name", [name for name in NAMES if opreg.get(name).workload is None])
def test_shapes_grow_from_the_samples(name):
    op = opreg.get(name)
    shapes = bench.shapes_of(op, "small")
    rows = len(op.rule(op.short, bench.small_calls(op)[0])) == 1
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
        return op.rule(name, args)

    assert bench.shapes_of(dataclasses.replace(op, shape=matrices), "large") == [
        {"input": (1024, 32000), "target": (1024,)}
    ]


def test_shapes_that_follow_from_nothing():
    def samples(make: Maker):
        yield opreg.Sample((make.normal(3, 5), make.normal(1)))

    op = dataclasses.replace(opreg.get("mse_loss"), samples=samples)
    with pytest.raises(ValueError, match=r"mse_loss: expected target of the shape of input, .* got \[3, 5\] and \[1\]"):
        bench.shapes_of(op, "small")


def test_the_sweep_cuts_the_batch():
    (case,) = bench.cases(opreg.get("triplet_margin_loss"), "usual", torch.float32)
    parts = bench.sweep(case)
    assert [p.shape for p in parts] == [[n, 128] for n in (2, 8, 32, 128, 512, 2048)]
    for name in ("anchor", "positive", "negative"):
        assert torch.equal(parts[1].args[name], case.args[name][:8])
    for name in runner.SWEEP:
        assert len(bench.sweep(next(bench.cases(opreg.get(name), "usual", torch.float32)))) >= 4


# agreement


def test_agreement_refuses_wrong_values_and_gradients():
    good = (torch.tensor(2.0), torch.tensor([1.0, -1.0]))
    bench.check_agreement("op", good, good, torch.float32)
    with pytest.raises(bench.Disagreement, match=r"op 4: expected eager's value within 2.0e-04, .* 1.0e\+00"):
        bench.check_agreement("op 4", (good[0] + 1, good[1]), good, torch.float32)
    with pytest.raises(bench.Disagreement, match="expected a peer's gradient within"):
        bench.check_agreement("op", (good[0], -good[1]), good, torch.float32, "a peer")
    with pytest.raises(bench.Disagreement, match="expected eager's value"):
        bench.check_agreement("op", (good[0] * torch.nan, good[1]), good, torch.float32)


def test_agreement_lets_ten_signs_in_a_million_differ():
    eager = torch.ones(200_000)
    ours = eager.clone()
    ours[:2] = -1
    value = torch.tensor(1.0)
    bench.check_agreement("op", (value, ours), (value, eager), torch.float32)
    for wrong in (torch.full_like(ours[:3], -1), torch.tensor([1, 1, torch.nan]), torch.tensor([1, 1, 4.0])):
        ours[:3] = wrong
        with pytest.raises(bench.Disagreement, match="expected eager's gradient within"):
            bench.check_agreement("op", (value, ours), (value, eager), torch.float32)


def test_a_wrong_op_is_not_timed_and_the_others_are(monkeypatch, capsys):
    def doubled(input, target, reduction):
        return 2 * F.mse_loss(input, target, reduction=reduction)

    ops = {"lossreg::mse_loss": dataclasses.replace(opreg.get("mse_loss"), native=doubled)}
    monkeypatch.setattr(runner, "get", lambda name: ops.get(name) or opreg.get(name))
    options = ["--size", "small", "--dtype", "float32", "--providers", "ours", "eager", "--rounds", "2"]
    assert cli.main(["bench", "mse_loss", "l1_loss", *options]) == 1
    out, err = capsys.readouterr()
    assert "opreg: mse_loss 64: expected eager's value within" in err
    assert "failed: mse_loss small float32: mse_loss 64: expected eager's value within" in out
    timed = [line.split()[0] for line in out.splitlines() if line.split()[1:2] == ["64"]]
    assert timed == ["l1_loss", "l1_loss"]


def test_an_interrupted_run_reports_what_it_measured(monkeypatch, capsys):
    measure = runner.Run.op

    def interrupted(self, op, *args):
        if op.name == "mse_loss":
            raise KeyboardInterrupt
        measure(self, op, *args)

    monkeypatch.setattr(runner.Run, "op", interrupted)
    options = ["--size", "small", "--dtype", "float32", "--providers", "ours", "eager", "--rounds", "2"]
    assert cli.main(["bench", "l1_loss", "mse_loss", *options]) == 1
    out = capsys.readouterr().out
    assert "failed: the run: interrupted" in out
    assert [line.split()[0] for line in out.splitlines() if line.split()[1:2] == ["64"]] == ["l1_loss", "l1_loss"]


# providers


def test_eager_is_called_as_a_user_would():
    (case,) = bench.cases(opreg.get("mse_loss"), "small", torch.float32)
    function, places, options = providers.as_a_user(case, case.args)
    assert function is F.mse_loss
    assert [id(t) for t in places] == [id(case.args["input"]), id(case.args["target"])]
    assert options == {}
    (case,) = bench.cases(opreg.get("giou_loss"), "small", torch.float32)
    function, places, options = providers.as_a_user(case, case.args)
    assert (function, places) == (opreg.get("giou_loss").reference, [])
    assert options == case.args


def test_an_option_that_is_not_the_default_is_passed():
    (case,) = bench.cases(opreg.get("coord_conv2d"), "small", torch.float32)
    places, options = providers.as_called(case, case.args)
    assert [t.dim() for t in places] == [4, 4]
    assert list(options) == ["bias", "padding"]


@pytest.mark.parametrize("name", NAMES)
def test_eager_and_the_call_of_ours_compute_the_same(name):
    for case in bench.cases(opreg.get(name), "small", torch.float32):
        calls, notes = runner.calls_of(case, "forward", ["ours", "eager"], providers.Peers())
        torch.testing.assert_close(calls["ours"](), calls["eager"](), rtol=1e-4, atol=1e-5)
        assert notes["eager"] == ("native" if bench.is_native(case) else "composition")


@pytest.mark.skipif("rnnt_loss" not in NAMES, reason="no rnnt_loss in this library")
def test_an_unrolled_reference_is_not_compiled():
    (case,) = bench.cases(opreg.get("rnnt_loss"), "small", torch.float32)
    calls, _ = runner.calls_of(case, "forward", ["ours", "inductor"], providers.Peers())
    assert list(calls) == ["ours"]


def test_native_is_one_function_of_aten():
    def natives(dtype):
        first = {name: next(bench.cases(opreg.get(name), "small", dtype)) for name in NAMES}
        return {name for name, case in first.items() if bench.is_native(case)}

    native = natives(torch.float32)
    assert {"mse_loss", "cross_entropy", "swish", "ctc_loss"} <= native
    assert not native & {"giou_loss", "focal_loss", "gaussian_nll_loss", "multilabel_soft_margin_loss"}
    # torch has no kernels for these in bfloat16: eager is the reference
    assert native - natives(torch.bfloat16) == {"multi_margin_loss", "multilabel_margin_loss"}


def test_a_peer_whose_numbers_differ_is_left_out(tmp_path):
    path = tmp_path / "peers.py"
    path.write_text(
        "import torch.nn.functional as F\n"
        "from opreg.bench import Peer\n"
        "def right(input, target, **options): return (input - target).square().mean()\n"
        "def wrong(input, target, **options): return (input - target).abs().mean() + 1\n"
        "PEERS = {'mse_loss': Peer('torch', right), 'l1_loss': Peer('torch', wrong), 'mish': Peer('absent', right)}\n"
    )
    options = {**QUICK, "providers": ["ours", "peer"], "peers": path}
    report = bench.run(["mse_loss", "l1_loss", "mish"], **options)
    assert report["machine"]["peers"] == {"torch": torch.__version__}
    assert {r["op"]: list(r["seconds"]) for r in report["results"]} == {
        "mse_loss": ["ours", "peer"],
        "l1_loss": ["ours"],
        "mish": ["ours"],
    }
    (why,) = report["left_out"].items()
    assert why[0] == "l1_loss 64, float32, torch"
    assert why[1].startswith("l1_loss 64: expected torch's value within")
    assert not report["failed"]


@pytest.mark.parametrize("name", bench.load_peers(PEERS).of)
def test_peers_mean_the_same(name):
    op, peer = opreg.get(name), bench.load_peers(PEERS).of[name]
    if peer.library not in bench.load_peers(PEERS).versions:
        pytest.skip(f"{peer.library} is not installed")
    case = next(bench.cases(op, "small", torch.float32))
    ours, theirs = (bench.value_and_gradient(case, f) for f in (op.value, peer.function))
    bench.check_agreement(case.title, ours, theirs, torch.float32, peer.library)


# floors, memory


def test_a_peer_that_takes_too_long_is_not_called_again(monkeypatch):
    calls = []

    def slow(**args):
        calls.append(args)
        return F.mse_loss(**args)

    monkeypatch.setattr(runner, "TOO_LONG", 0.0)
    run = runner.Run(bench.Settings(), 1)
    run.peers = providers.Peers({"mse_loss": bench.Peer("torch", slow)}, {"torch": torch.__version__})
    for size in ("small", "usual"):
        (case,) = bench.cases(opreg.get("mse_loss"), size, torch.float32)
        assert run.agreeing_peers(case, torch.float32) is runner.NO_PEERS
    assert len(calls) == 1
    assert run.left_out == {"mse_loss 64, float32, torch": "0 s a call"}


def test_bytes_that_must_move():
    loss = bench.draw(opreg.get("mse_loss"), {"input": (4096,), "target": (4096,)}, torch.float32)
    activation = bench.draw(opreg.get("mish"), {"input": (4096,)}, torch.float32)
    # read input and target; again, and write the gradient
    assert bench.bytes_moved(loss, loss.op.value(**loss.args), backward=False) == [2 * 16384]
    assert bench.bytes_moved(loss, loss.op.value(**loss.args), backward=True) == [2 * 16384, 3 * 16384]
    # read input, write result; read input and the result's gradient, write the gradient
    assert bench.bytes_moved(activation, activation.op.value(**activation.args), backward=True) == [32768, 49152]


def test_the_empty_call_is_of_a_registered_op_that_hands_the_gradient_on():
    (gradient,) = bench.empty_call(torch.device("cpu"), backward=True)()
    assert gradient.tolist() == [1] * 64
    assert bench.empty_call(torch.device("cpu"), backward=False)()._is_view()
    assert bench.peak_memory(bench.empty_call(torch.device("cpu"), backward=True)) == 0


def test_peak_memory_of_an_op_of_known_need():
    x = torch.ones(2**16, requires_grad=True)
    n = x.nbytes
    small = 1024  # of scalars
    with torch.no_grad():
        assert n <= bench.peak_memory(lambda: x.exp()) <= n + small
        # the exponential lives while the product is made; then the sum
        assert 2 * n <= bench.peak_memory(lambda: (x.exp() * 2).sum()) <= 2 * n + small
        assert 0 < bench.peak_memory(lambda: x.sum()) <= small
    # ours keeps nothing but its inputs: the gradient alone
    y = torch.zeros(2**16)
    loss = lambda: torch.autograd.grad(torch.ops.lossreg.mse_loss(x, y), x)  # noqa: E731
    assert n <= bench.peak_memory(loss) <= n + small


def test_peak_memory_does_not_depend_on_what_was_measured_before():
    """The second call releases what the first has made, the third what the second, as a step does with gradients."""
    held = [torch.ones(2**16)]

    def step():
        held.clear()
        held.append(torch.ones(2**16))

    assert [bench.peak_memory(step) for _ in range(3)] == [held[0].nbytes] * 3


# times


def test_what_an_op_leaves_is_not_collected_with_the_next(monkeypatch):
    """Each collection would look again at all that compilations before it left."""
    left, frozen = [], []
    op = runner.Run.op

    def leaving(self, *args):
        left.append([[] for _ in range(10_000)])
        frozen.append(gc.get_freeze_count())
        op(self, *args)
        frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(runner.Run, "op", leaving)
    bench.run(["mse_loss"], **{**QUICK, "providers": ["ours"]})
    assert frozen[0] > 0
    assert frozen[1] > frozen[0] + 9_000
    assert gc.get_freeze_count() == 0


def test_measurements_are_interleaved_and_long_enough(monkeypatch):
    monkeypatch.setattr(timing, "SHORTEST", 1e-4)
    log = []
    calls = {name: lambda name=name: log.append(name) for name in "abc"}
    times = bench.time_calls(calls, 3)
    assert {name: len(t) for name, t in times.items()} == {"a": 3, "b": 3, "c": 3}
    turns = [name for name, before in zip(log, [None, *log], strict=False) if name != before]
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab"  # warming up, then the rounds
    assert log.count("a") > 3 * 10


def test_long_calls_have_fewer_rounds(monkeypatch):
    monkeypatch.setattr(timing, "measure", lambda call, repeats, device: call())
    second, slow = lambda: 1.0, lambda: 5.0
    assert len(bench.time_calls({"a": second}, 15, longest=30.0)["a"]) == 15
    assert len(bench.time_calls({"a": second}, 15, longest=8.0)["a"]) == 8
    times = bench.time_calls({"a": second, "slow": slow}, 15, longest=4.0)
    assert {name: len(t) for name, t in times.items()} == {"a": 5, "slow": 3}


def test_spread_and_noise():
    assert bench.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert bench.spread([1.0]) == 0
    # two standard errors of either median, added as errors are
    assert bench.noise([0.3, 0.4], 25) == pytest.approx(2 * 1.25 / 1.35 * 0.5 / 5)
    assert bench.noise([0.0, 0.0], 25) == 0.02


# the report


def test_run_writes_what_it_measured(tmp_path, capsys):
    options = ["--size", "small", "usual", "--dtype", "float32", "bfloat16", "--rounds", "2", "--threads", "1", "2"]
    options += ["--providers", "ours", "eager", "floor", "call", "--sweep", "--output", str(tmp_path)]
    assert cli.main(["bench", "mse_loss", "mish", *options]) == 0
    out = capsys.readouterr().out
    result = bench_load(tmp_path / "cpu.json")
    drawn = importlib.util.find_spec("matplotlib") is not None
    pictures = {"small-float32", "small-bfloat16", "usual-float32", "usual-bfloat16", "size", "threads"}
    assert {p.name for p in tmp_path.iterdir()} == {"cpu.json", "cpu.md"} | {f"cpu-{p}.png" for p in pictures if drawn}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in tmp_path.glob("*.png"))
    assert result["machine"]["threads"] == 2
    assert result["machine"]["torch"] == torch.__version__
    assert result["settings"] == {
        "sizes": ["small", "usual"],
        "dtypes": ["float32", "bfloat16"],
        "rounds": 2,
        "device": "cpu",
        "providers": ["ours", "eager", "floor", "call"],
    }
    where = [(s, d, 2, p) for s in ("small", "usual") for d in ("float32", "bfloat16") for p in bench.PASSES]
    where.insert(6, ("usual", "float32", 1, "forward+backward"))
    rows = [(r["op"], r["size"], r["dtype"], r["threads"], r["pass"]) for r in result["results"]]
    assert rows == [(op, *w) for op in ("mse_loss", "mish") for w in where]
    for r in result["results"]:
        assert list(r["seconds"]) == ["ours", "eager", "floor", "call"][: 4 if r["threads"] == 2 else 3]
        assert list(r["spread"]) == list(r["seconds"])
        s = r["seconds"]
        assert r["ratios"]["eager/ours"] == pytest.approx(s["eager"] / s["ours"], rel=1e-3)
        assert r["ratios"]["ours/floor"] == pytest.approx(s["ours"] / s["floor"], rel=1e-3)
        assert r["eager"] == "native"
        assert ("memory" in r) == (r["pass"] == "forward+backward" and r["threads"] == 2)
    assert [r["op"] for r in result["sweep"]] == ["mish"] * 7
    assert [r["elements"] for r in result["sweep"]] == [4**k for k in range(3, 10)]
    for r in result["results"]:
        cells = [r["op"], text.shape_text(r["shape"]), r["dtype"], str(r["threads"]), r["pass"]]
        assert any(line.split()[:5] == cells for line in out.splitlines())
    markdown = (tmp_path / "cpu.md").read_text()
    assert markdown.index("## Targets") < markdown.index("## usual, float32, forward+backward")
    assert f"torch {torch.__version__}" in markdown


def test_inductor_is_timed_where_a_target_asks():
    timed = lambda settings, *where: "inductor" in settings.wanted(*where)  # noqa: E731
    default, chosen = bench.Settings(), bench.Settings(providers=["inductor", "ours"])
    assert timed(default, "large", "float32", "forward+backward")
    assert timed(default, "large", "bfloat16", "forward+backward")
    assert not timed(default, "small", "float32", "forward")
    assert chosen.wanted("small", "bfloat16", "forward") == ["ours", "inductor"]


def test_inductor_computes_the_reference():
    report = bench.run(["giou_loss"], **{**QUICK, "providers": ["ours", "inductor"]})
    assert not report["failed"]
    for r in report["results"]:
        assert r["inductor_of"] == "reference"
        assert r["ratios"] == {"inductor/ours": r["seconds"]["inductor"] / r["seconds"]["ours"]}


def row(op="mish", ratios=None, **other):
    """A row of a report, whose times have these ratios: ours takes one millisecond."""
    ratios = ratios or {}
    seconds = {"ours": 1e-3}
    for name, value in ratios.items():
        a, b = name.split("/")
        seconds[b if a == "ours" else a] = 1e-3 / value if a == "ours" else 1e-3 * value
    same = {"op": op, "kind": "a", "shape": [2, 3], "size": "large", "dtype": "float32", "threads": 2, "rounds": 9}
    same |= {"pass": "forward+backward", "eager": "native", "seconds": seconds, "spread": dict.fromkeys(seconds, 0.0)}
    return {**same, "ratios": ratios, **other}


def report_of(*rows, steps=()):
    machine = {"gpu": None, "cpu": "a CPU", "capability": "AVX2", "cores": 2, "threads": 2, "load": 6.0}
    machine |= {"torch": "2.13.0", "opreg": "0.1.0", "python": "3.11", "date": "2026-01-01T00:00:00"}
    settings = {"sizes": ["small", "large"], "dtypes": ["float32", "bfloat16"], "rounds": 9, "device": "cpu"}
    rest = {"settings": settings, "geometric_means": bench.geometric_means(rows), "sweep": [], "steps": list(steps)}
    return {"machine": machine, "results": list(rows), **rest, "left_out": {}, "failed": {}}


def test_geometric_means_are_within_kind_and_setting():
    rows = [row(kind=k, ratios={"eager/ours": r}) for k, r in (("a", 2.0), ("b", 6.0), ("a", 8.0))]
    rows += [row(kind="a", ratios={"eager/ours": 7.0, "ours/floor": 3.0}, dtype="bfloat16")]
    means = bench.geometric_means(rows)
    assert [(m["kind"], m["dtype"], m["cases"], m["ratios"]) for m in means] == [
        ("a", "float32", 2, {"eager/ours": pytest.approx(4.0)}),
        ("b", "float32", 1, {"eager/ours": pytest.approx(6.0)}),
        ("all", "float32", 3, {"eager/ours": pytest.approx(96 ** (1 / 3))}),
        ("a", "bfloat16", 1, {"eager/ours": pytest.approx(7.0), "ours/floor": pytest.approx(3.0)}),
        ("all", "bfloat16", 1, {"eager/ours": pytest.approx(7.0), "ours/floor": pytest.approx(3.0)}),
    ]


def test_targets_that_are_met():
    good = {"eager/ours": 5.0, "inductor/ours": 3.0, "ours/floor": 1.4}
    rows = [row(op, good) for op in (*LIGHT, "cross_entropy")]
    rows += [row(r["op"], {**good, "float32/ours": 1.6}, dtype="bfloat16") for r in rows]
    rows += [row("mish", {"eager/ours": 0.6}, size="small"), row("giou_loss", {"eager/ours": 1.1}, size="small")]
    rows[-1]["eager"] = "composition"
    rows += [row("mse_loss", {"eager/ours": 0.7}, size="small")]
    micro = {"seconds": {"ours": 5e-6, "eager": 2e-6}, "pass": "forward", "size": "small"}
    rows += [row("mish", {"eager/ours": 0.4}, **micro)]
    step = {"step": "a", "seconds": {"ours": 1.0, "other": 1.1}, "memory": {"ours": 100, "other": 100}}
    found = targets(report_of(*rows, steps=[{**step, "spread": {"ours": 0, "other": 0}, "rounds": 9}]))
    assert [t.met for t in found] == [True] * 14
    assert not any(t.misses for t in found)


def test_targets_that_are_missed_name_ratio_and_floor():
    bad = {"eager/ours": 0.9, "inductor/ours": 0.8, "ours/floor": 1.7}
    rows = [row("mish", bad), row("cross_entropy", {**bad, "ours/floor": 2.5})]
    rows += [row("mish", {**bad, "float32/ours": 1.0}, dtype="bfloat16")]
    rows += [row("mish", {"eager/ours": 0.4}, size="small"), row("giou_loss", {"eager/ours": 0.7}, size="small")]
    rows[-1]["eager"] = "composition"
    rows += [row("mse_loss", {"eager/ours": 0.5}, size="small")]
    rows[-1]["seconds"]["call"] = 0.8e-3
    micro = {"seconds": {"ours": 8e-6, "eager": 2e-6}, "pass": "forward", "size": "small"}
    rows += [row("mish", {"eager/ours": 0.25}, **micro)]
    step = {"step": "a", "seconds": {"ours": 1.2, "other": 1.0}, "memory": {"ours": 110, "other": 100}}
    report = report_of(*rows, steps=[{**step, "spread": {"ours": 0, "other": 0}, "rounds": 9}])
    found = targets(report)
    assert [t.met for t in found] == [False] * 14
    assert [t.misses for t in found[2:]] == [
        ("mish 2×3: 0.80, 1.70 × the copy floor", "cross_entropy 2×3: 0.80, 2.50 × the copy floor"),
        ("mish 2×3: 0.90, 1.70 × the copy floor", "cross_entropy 2×3: 0.90, 2.50 × the copy floor"),
        ("mish 2×3: 1.70",),
        ("cross_entropy 2×3: 2.50",),
        (),
        ("mish 2×3: 1.00, 1.70 × the copy floor",),
        ("giou_loss 2×3: 0.70",),
        ("mse_loss 2×3: 2.00, 1.25 × an op that does nothing",),
        ("mish 2×3: 2.50",),
        ("mish 2×3: 6.00 µs",),
        ("a: 0.83",),
        ("a: 0.91",),
    ]
    written = text.markdown(report)
    assert "- cross_entropy 2×3: 0.80, 2.50 × the copy floor" in written
    assert written.count("| MISSED |") == 14


def test_bfloat16_misses_say_what_the_arithmetic_takes():
    def at(size, shape, milliseconds, **other):
        seconds = {"ours": milliseconds * 1e-3, "eager": 1.0, "floor": 1e-3, "float32": 10e-3}
        found = {"ours/floor": 1.5, "float32/ours": 10 / milliseconds}
        return row("mish", found, size=size, shape=shape, seconds=seconds, **other)

    # an element takes (2.1 - 0.1) ms / 1000 = 2 µs at the usual size, and 2.5 µs at the large one
    rows = [at("small", [10, 10], 0.1), at("usual", [1100], 2.1), at("large", [4000], 10.0)]
    found = targets(report_of(*rows, at("large", [4000], 9.0, dtype="bfloat16")))
    (miss,) = next(t.misses for t in found if "each at least 1.2" in t.goal)
    assert miss == "mish 4000: 1.11, 1.50 × the copy floor, float32 in cache takes 0.80 of its large time"


def test_noise_is_no_miss_and_nothing_measured_is_neither():
    assert [t.met for t in targets(report_of())] == [None] * 14
    noisy = row("mish", {"eager/ours": 0.9, "inductor/ours": 0.99})
    assert [t.met for t in targets(report_of(noisy))[2:4]] == [True, False]
    noisy["spread"]["eager"] = 0.2
    assert [t.met for t in targets(report_of(noisy))[2:4]] == [True, True]
    # of another number of threads
    assert targets(report_of({**noisy, "threads": 1}))[3].met is None


def test_disturbed_measurements_are_called_so():
    steady = row("mish", {"eager/ours": 2.0})
    disturbed = {**steady, "spread": {"ours": 0.4, "eager": 0.0}}
    assert "NOT TO BE TRUSTED" not in text.bench_text(report_of(steady, steady))
    assert "NOT TO BE TRUSTED: 1 of 2 rows are unsteady" in text.bench_text(report_of(steady, disturbed))
    assert "NOT TO BE TRUSTED" in text.markdown(report_of(disturbed))


def test_a_full_report_is_small(tmp_path):
    """60 calls at three sizes in two dtypes, two passes."""
    ratios = {"eager/ours": 1.2345678, "inductor/ours": 1.2345678, "ours/floor": 1.2345678, "ours/call": 1.2345678}
    one = row("generalized_dice_loss", ratios, bytes=123456789, inductor_of="reference", kind="segmentation losses")
    one["spread"] = dict.fromkeys(one["seconds"], 0.012345678)
    full = {**one, "memory": {"ours": 123456789, "eager": 123456789, "inductor": 123456789}}
    report = report_of(*[one, full] * 360)
    written = json_text(report)
    assert len(written) < 300_000
    (tmp_path / "cpu.json").write_text(written)
    loaded = bench_load(tmp_path / "cpu.json")
    assert loaded["results"][0]["ratios"] == pytest.approx(ratios, rel=1e-3)
    assert loaded["results"][0]["spread"] == dict.fromkeys(one["seconds"], 0.012)
    assert [m["cases"] for m in loaded["geometric_means"]] == [720, 720]
    assert [t.met for t in targets(loaded)] == [t.met for t in targets(report)]


HOLES = """
import os, torch
from opreg.bench.timing import keep_freed_memory, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keep_freed_memory()
# what stays between large blocks keeps the heap from shrinking
pairs = [(torch.ones(2**23), torch.ones(1000)) for _ in range(8)]
stay = [small for _, small in pairs]
used = resident()
del pairs
kept = resident()
return_freed_memory()
print(used, kept, resident())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc")
def test_memory_of_an_op_is_returned_before_the_next():
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    used, kept, returned = map(int, done.stdout.split())
    assert kept > used - 2**27
    assert returned < used - 2**27


# training steps

TINY = {"rows": 4, "classes": 5, "pixels": 8, "tokens": 6, "boxes": 7}


def test_both_losses_of_a_step_are_the_same():
    for step in training.steps(TINY):
        x, y = step.batch
        gradients = []
        for loss in (step.ours, step.other):
            step.model.zero_grad()
            loss(step.model(x), y).backward()
            gradients.append([p.grad.clone() for p in step.model.parameters()])
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_a_compiled_step_trains_and_is_measured():
    step = training.steps(TINY)[-1]
    result = training.run_step(step, 2)
    assert result["step"] == "box regression, giou_loss"
    assert set(result["seconds"]) == set(result["memory"]) == {"ours", "other"}
    assert min(result["memory"].values()) > 0
    report = report_of(row("mish", {"eager/ours": 2.0}), steps=[result])
    assert "| box regression, giou_loss |" in text.markdown(report)


def test_a_step_with_another_loss_is_not_timed():
    step = training.steps(TINY)[-1]
    wrong = dataclasses.replace(step, other=lambda x, y: 2 * step.other(x, y))
    with pytest.raises(bench.Disagreement, match="box regression, giou_loss: expected a loss of"):
        training.run_step(wrong, 2)


def test_progress_in_a_pipe_is_lines(capsys):
    bar = progress_bar(2)
    bar.set_description("mish")
    bar.update()
    bar.set_description("swish")
    bar.close()
    assert capsys.readouterr().err.splitlines() == ["0/2 mish", "1/2 swish, about 0 min left"]
