"""The first minutes on a bare machine: what README says, what is pinned, what CI runs."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e"
START = f"{INSTALL} . && .venv/bin/bdtune sweep gssd.yaml"
TEST = f"{INSTALL} '.[test]' && .venv/bin/pytest -n 3"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OF_SOME_PLATFORMS = ("nvidia-", "cuda-", "triton")
"""torch pins these itself."""


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def versions(pins):
    return dict(line.split("==") for line in pins)


def requirements():
    extras = PROJECT["optional-dependencies"]
    kinds = (PROJECT["dependencies"], extras["test"], extras["cluster"], extras["cloud"])
    return [Requirement(text) for kind in kinds for text in kind]


def closure():
    """Return the names of all that is installed because of bdtune[test]."""
    found: set[str] = set()
    todo = [Requirement("bdtune[test]")]
    seen = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        for extra in {"", *wanted.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = metadata.requires(name) or []
            except metadata.PackageNotFoundError:
                continue
            found.add(name)
            inner = [Requirement(text) for text in needed]
            todo += [r for r in inner if r.marker is None or r.marker.evaluate({"extra": extra})]
    return found - {"bdtune"}


def test_pins_are_plain_versions_in_order(pins):
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in pins)
    assert pins == sorted(pins, key=lambda line: line.split("==")[0])
    assert len({line.split("==")[0] for line in pins}) == len(pins)
    assert not any(line.startswith(OF_SOME_PLATFORMS) for line in pins)


def test_what_is_asked_for_is_pinned_to_something_that_suits(versions):
    for wanted in requirements():
        assert wanted.specifier.contains(versions[canonicalize_name(wanted.name)]), str(wanted)


def test_everything_that_comes_with_it_is_pinned(versions):
    unpinned = {name for name in closure() if not name.startswith(OF_SOME_PLATFORMS)} - set(versions)
    assert not unpinned, "add these to constraints.txt"


def test_the_two_commands_stand_in_the_readme():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert START in lines
    assert TEST in lines


def test_ci_runs_the_readmes_test_command_and_the_tools():
    script = ROOT / ".ci/run"
    lines = script.read_text().splitlines()
    assert TEST in lines
    assert "set -euo pipefail" in lines
    for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports"):
        assert f".venv/bin/{tool}" in lines
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_what_commands_leave_behind_is_not_committed():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", "bdtune-runs/", "__pycache__/", "build/", "dist/"} <= set(ignored)


def test_the_search_spaces_go_into_the_wheel():
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"] == {"search_spaces": "bdtune/search_spaces"}
    assert wheel["packages"] == ["bdtune"]
