from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from bdtune.tracking.runs import Run, Runs


@pytest.fixture
def run():
    return Run("a", "FINISHED", 1, 2, {"lr": "0.1"}, {"note": 'größe "quoted"\nline ± 漢'}, [("acc", 0.5, 0)])


def test_a_run_is_written_once_until_its_identity_changes(tmp_path, run):
    first, second = Runs(tmp_path), Runs(tmp_path)
    assert first.write("a", [1], run)
    assert not second.write("a", [1], replace(run, time=3))
    assert second.read("a").time == 2
    old = first.signatures()
    assert second.write("a", [2], replace(run, time=4))
    assert first.write("b", [1], run)
    assert first.read("a").time == 4
    assert first.read("a", old["a"]) is None
    assert set(Runs(tmp_path).signatures()) == {"a", "b"}
    assert Runs(tmp_path).read("b").tags == run.tags


def test_of_two_files_that_a_killed_writer_left_the_newer_counts(tmp_path, run):
    runs = Runs(tmp_path)
    runs.write("a", 1, run)
    shutil.copytree(runs.folder, tmp_path / "before")
    runs.write("a", 2, replace(run, time=3))
    shutil.copytree(tmp_path / "before", runs.folder, dirs_exist_ok=True)
    assert len(list(runs.folder.iterdir())) == 2
    assert runs.read("a").time == 3
    (runs.folder / ".a.1.json.torn").write_text("{")
    assert set(runs.signatures()) == {"a"}
    runs.write("a", 3, run)
    assert len(list(runs.folder.glob("a.*"))) == 1


def test_nothing_is_written_before_the_first_run(tmp_path):
    runs = Runs(tmp_path)
    assert runs.signatures() == {}
    assert runs.read("a") is None
    assert not list(tmp_path.iterdir())
