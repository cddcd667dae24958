"""The README's example runs, its table of ops is the registry, and its commands exist."""

import re
from pathlib import Path

import torch

from opreg.registry import of_namespace

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_example_runs():
    code, *_fragments = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(code, names)
    assert names["scores"].grad is not None
    x = torch.randn(7)
    torch.testing.assert_close(names["model"](x), torch.nn.functional.mish(x))


def test_table_lists_every_op():
    rows = [line.split("|")[2] for line in README.splitlines() if line.startswith("| ") and "`" in line]
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == {op.short for op in of_namespace()}


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|    )make ([\w-]+)", README + (ROOT / "CONTRIBUTING.md").read_text()):
        assert re.search(rf"^{target}:", makefile, re.M), target
