"""Ten losses and activations, each a Python function, through every check that an op of ours passes."""

import importlib.util
from pathlib import Path

import pytest

import opreg
from conftest import ROOT

spec = importlib.util.spec_from_file_location("benchmarks_formulas", ROOT / "benchmarks" / "formulas.py")
assert spec is not None
assert spec.loader is not None
benchmark = importlib.util.module_from_spec(spec)
spec.loader.exec_module(benchmark)

# One pointwise loss and one of rows are compiled in every run of the suite.
USUAL = {"wing_loss", "generalized_cross_entropy"}
NAMES = [n if n in USUAL else pytest.param(n, marks=pytest.mark.slow) for n in benchmark.TEN]


@pytest.mark.parametrize("name", NAMES)
def test_every_check(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPREG_CACHE", str(tmp_path))
    report = opreg.testing.check(benchmark.TEN[name]().op)
    for dtype in ("float32", "bfloat16", "float16"):
        assert report.tried[f"{dtype} against float64"] > 2
    assert report.tried["second derivatives against finite differences"] > 2


def test_there_are_ten() -> None:
    assert len(benchmark.TEN) == 10
