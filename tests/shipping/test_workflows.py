"""The workflows: actions by their commits, least permissions, and commands that there are."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_and_nothing_is_permitted_at_large(path: Path) -> None:
    text = path.read_text()
    actions = re.findall(r"uses: (\S+)(.*)", text)
    assert actions
    for action, comment in actions:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action), action
        assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), f"{action}: which version is that?"
    assert "\npermissions: {}\n" in text
    jobs = re.split(r"^  (?=\w+:\n)", text.split("\njobs:\n")[1], flags=re.MULTILINE)[1:]
    for job in jobs:
        assert "    permissions:\n" in job
        assert "timeout-minutes:" in job
    assert "secrets." not in text
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_is_made_is_a_target(path: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:run: |&& )make (\w+)", path.read_text()):
        assert target in targets


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "test", "wheels"]
