"""The workflows: actions by their commits, least permissions, and commands that there are."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import opreg
import release_notes

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# Which job may write, and what.
WRITES = {
    ("docs", "publish"): {"pages": "write", "id-token": "write"},
    ("wheels", "publish"): {"id-token": "write"},
    ("wheels", "release"): {"contents": "write"},
}


def jobs_of(path: Path) -> dict[str, dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the workflows; transformers brings it")
    read = yaml.safe_load(path.read_text())
    assert read["permissions"] == {}
    jobs: dict[str, dict[str, Any]] = read["jobs"]
    return jobs


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


def test_an_action_is_of_one_version_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        for action, pin in re.findall(r"uses: (\S+)@(.+)", path.read_text()):
            found.setdefault(action, set()).add(pin)
    assert {action: pins for action, pins in found.items() if len(pins) > 1} == {}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_parse_and_jobs_have_the_permissions_that_they_need(path: Path) -> None:
    jobs = jobs_of(path)
    for name, job in jobs.items():
        assert job["permissions"] == WRITES.get((path.stem, name), {"contents": "read"}), name
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= set(jobs)
        assert job["steps"]
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step), step
            # what somebody else chose, a branch's name or a title, is no part of a shell's text
            assert not re.search(r"\$\{\{ *github\.(event|head_ref|ref_name)", step.get("run", "")), step
        # a tag alone publishes
        if (path.stem, name) in WRITES and path.stem == "wheels":
            assert job["if"] == "startsWith(github.ref, 'refs/tags/v')"


def test_pypi_knows_the_workflow_and_there_is_no_token() -> None:
    path = next(p for p in WORKFLOWS if p.stem == "wheels")
    publish = jobs_of(path)["publish"]
    assert publish["environment"] == "pypi"
    last = publish["steps"][-1]
    assert last["uses"].startswith("pypa/gh-action-pypi-publish@")
    assert "with" not in last


def test_wheels_for_every_platform_of_the_readme() -> None:
    path = next(p for p in WORKFLOWS if p.stem == "wheels")
    jobs = jobs_of(path)
    made = {of["name"] for job in ("linux", "others") for of in jobs[job]["strategy"]["matrix"]["include"]}
    linux = {f"{machine}-{kind}" for machine in ("x86_64", "aarch64") for kind in ("cpu", "cu128", "cu130")}
    assert made == {*linux, "macos-arm64", "windows-amd64"}
    # the file names of one platform differ: no two have the same build tag
    tags = [(of["name"].split("-")[0], of["build"]) for of in jobs["linux"]["strategy"]["matrix"]["include"]]
    assert len(set(tags)) == len(tags)
    assert jobs["others"]["continue-on-error"] is True
    experimental = next(line for line in (ROOT / "README.md").read_text().split("\n\n") if "experimental" in line)
    assert all(name in experimental for name in ("aarch64", "macOS", "Windows"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_what_is_made_is_a_target(path: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:run: |&& )make ([\w-]+)", path.read_text()):
        assert target in targets
    for script in re.findall(r"python[\d.]* ([\w./]+\.py)", path.read_text()):
        assert (ROOT / script).is_file()


def test_there_are_workflows() -> None:
    assert [path.stem for path in WORKFLOWS] == ["build", "docs", "test", "wheels"]


def test_the_version_stands_in_one_place() -> None:
    assert release_notes.version() == opreg.__version__
    built = ("pyproject.toml", "Makefile", "csrc/CMakeLists.txt", "csrc/cmake/*", "docs/conf.py", "opreg/**/*.py")
    written = rf"""["']{re.escape(opreg.__version__)}["']"""
    files = [path for pattern in built for path in ROOT.glob(pattern)]
    places = [path.relative_to(ROOT) for path in files if re.search(written, path.read_text())]
    assert places == [Path("opreg/__init__.py")]


def test_notes_of_a_release_are_the_changelog_s() -> None:
    later, first = "## [1.2.0] - 2026-12-01\n\n### Added\n- this\n\n", "## [1.1.0]\n- that\n"
    changelog = f"# Changelog\n\n## [Unreleased]\n\n- soon\n\n{later}{first}"
    assert release_notes.notes("v1.2.0", changelog, "1.2.0") == "### Added\n- this"
    assert release_notes.notes("v1.1.0", changelog, "1.1.0") == "- that"
    with pytest.raises(ValueError, match=r"expected the tag of the package's version, v1\.2\.0, got v1\.2"):
        release_notes.notes("v1.2", changelog, "1.2.0")
    with pytest.raises(ValueError, match=r"expected a heading ## \[1\.3\.0\]"):
        release_notes.notes("v1.3.0", changelog, "1.3.0")


def test_the_command_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["release_notes", "v9.9.9"])
    with pytest.raises(SystemExit, match=r"release_notes: expected the tag of the package's version, v"):
        release_notes.main()
