"""Every example runs, and what it promises is there."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
# digits.py has a test of its own below, the other one in tests/distributed, on processes that are there already
OTHERWISE = ("digits.py", "sharded_language_model.py")


def require_demo() -> None:
    """What pyproject's ``demo`` installs."""
    for library in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(library)


def run(script: Path, *options: object) -> str:
    command = [sys.executable, script, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "script", [s for s in sorted(EXAMPLES.glob("*.py")) if s.name not in OTHERWISE], ids=lambda script: script.stem
)
def test_example_runs(script: Path) -> None:
    run(script)


def test_digits(tmp_path: Path) -> None:
    require_demo()
    printed = run(
        EXAMPLES / "digits.py",
        "--epochs",
        3,
        "--splits",
        1,
        "--output",
        tmp_path / "out",
        "--build",
        tmp_path / "build",
    )
    assert (tmp_path / "out/training.png").read_bytes().startswith(b"\x89PNG")
    rows = dict(re.findall(r"^(eager|compiled|exported|deployed C\+\+) +(\d.*)$", printed, re.M))
    assert list(rows) == ["eager", "compiled", "exported", "deployed C++"]
    # accuracy, balanced accuracy, recall of the rare classes; the loss has its tolerance
    assert len({tuple(row.split()[:3]) for row in rows.values()}) == 1
    losses = [float(row.split()[3]) for row in rows.values()]
    assert max(losses) - min(losses) <= 1e-5 * max(losses)


@pytest.fixture(scope="module")
def digits() -> ModuleType:
    require_demo()
    spec = importlib.util.spec_from_file_location("digits", EXAMPLES / "digits.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({}, ""),
        ({"loss": 0.5 * (1 + 9e-6)}, ""),
        ({"loss": 0.5 * (1 + 11e-6)}, "loss of deployed 0.5000055, of eager 0.5"),
        ({"loss": float("nan")}, "loss of deployed nan, of eager 0.5"),
        ({"logits": torch.eye(10).roll(1, 0)}, "scores of deployed .*accuracy=0.0.*, of eager .*accuracy=1.0.*"),
    ],
)
def test_digits_finds_disagreement(digits: ModuleType, change: dict[str, object], found: str) -> None:
    eager = digits.Row("eager", torch.eye(10), 0.5, 1.0)
    deployed = eager._replace(name="deployed", **change)
    assert re.fullmatch(found, "; ".join(digits.disagreements([eager, deployed], torch.arange(10))))


def test_without_matplotlib(tmp_path: Path) -> None:
    """The demo's tests are skipped where what only the demo needs is not installed."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['matplotlib'] = None\n")
    path = os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "test_digits"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stdout
    assert re.search(r"^6 skipped", done.stdout, re.M), done.stdout
