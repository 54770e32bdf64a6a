from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from bdtune.engine.lease import Leases
from bdtune.engine.owner import beside, clear_unfinished, is_forerunner, is_gone, me
from bdtune.engine.store import Store


@pytest.fixture
def ended():
    """A process that has ended, as the holder of files."""
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    pid = int(subprocess.run(command, capture_output=True, check=True).stdout)
    return {**me(), "pid": pid}


def of(path, holder):
    """Rename what this process writes into what another one was writing."""
    other = path.with_name(re.sub(r"\.\d+-", f".{holder['pid']}-", path.name))
    path.rename(other)
    return other


def test_another_process_of_the_same_task_is_a_forerunner():
    theirs = {**me(), "host": "elsewhere", "task": "sweep/trial"}
    assert is_forerunner(theirs, "sweep/trial")
    assert not is_forerunner(theirs, "sweep/other")
    assert not is_forerunner({**theirs, "task": ""}, "")
    assert not is_forerunner({**me(), "task": "sweep/trial"}, "sweep/trial")


def test_a_folders_lease_passes_to_the_same_task_at_once(tmp_path):
    one, other, next_one = Leases(tmp_path), Leases(tmp_path), Leases(tmp_path)
    one.task, other.task, next_one.task = "sweep/trial", "sweep/other", "sweep/trial"
    with one.try_hold("key"):
        lease = json.loads((tmp_path / "key").read_text())
        (tmp_path / "key").write_text(json.dumps({**lease, "host": "elsewhere"}))
        with other.try_hold("key") as mine:
            assert not mine
        with next_one.try_hold("key") as mine:
            assert mine


def test_a_process_is_gone_when_it_has_ended_or_its_number_was_given_away(ended):
    assert not is_gone(me())
    assert is_gone(ended)
    assert is_gone({**me(), "started": me()["started"] - 100})
    assert not is_gone({**ended, "host": "another"}), "of other hosts nothing is known"


def test_only_what_processes_that_are_gone_were_writing_is_removed(tmp_path, ended):
    mine, left, folder, theirs = (beside(tmp_path / name) for name in ("a", "b.json", "c", "d"))
    for path in (mine, left, theirs):
        path.write_text("half")
    folder.mkdir()
    (folder / "arrays").write_text("half")
    left, folder = of(left, ended), of(folder, ended)
    elsewhere = theirs.rename(theirs.with_name(theirs.name.partition("@")[0] + "@another"))
    other = tmp_path / ".gitignore"
    other.write_text("")
    assert clear_unfinished([tmp_path, tmp_path / "missing"]) == 2
    assert sorted(tmp_path.iterdir()) == sorted([mine, elsewhere, other])


def test_a_store_is_cleared_of_what_the_dead_left(tmp_path, ended):
    store = Store(tmp_path)
    for folder in ("tmp", "tmp/checkpoints", "leases", "pins", "failed"):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = beside(tmp_path / folder / "0123")
        path.write_text("half")
        of(path, ended)
    with store.leases.try_hold("aa"):
        (tmp_path / "leases" / "bb").write_text(
            (tmp_path / "leases" / "aa")
            .read_text()
            .replace(f'"pid": {os.getpid()}', f'"pid": {ended["pid"]}')
        )
        Store(tmp_path).clear_leftovers()
        assert [path.name for path in (tmp_path / "leases").iterdir()] == ["aa"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
