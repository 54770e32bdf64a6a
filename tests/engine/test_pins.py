from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest

from bdtune.engine import files, pins
from bdtune.engine.pins import Pins


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "pins"


def test_keys_are_pinned_while_they_are_held_and_no_longer(folder):
    mine = Pins(folder)
    mine.add("planned")  # before the sweep runs
    assert Pins(folder).keys() == set()
    with mine.held():
        mine.add("asked")
        assert Pins(folder).keys() == {"planned", "asked"}
    assert Pins(folder).keys() == set()


def test_several_sweeps_pin_together(folder):
    first, second = Pins(folder), Pins(folder)
    with first.held(), second.held():
        first.add("a")
        second.add("b")
        assert Pins(folder).keys() == {"a", "b"}


def test_a_line_that_is_being_written_hides_no_other(folder):
    mine = Pins(folder)
    with mine.held():
        mine.add("a")
        [file] = folder.glob("*.jsonl")
        with file.open("a") as stream:
            stream.write('"hal')
        assert Pins(folder).keys() == {"a"}


def test_pins_of_a_process_that_is_gone_are_removed(folder):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    folder.mkdir()
    file = folder / "x.jsonl"
    file.write_text(json.dumps({"host": socket.gethostname(), "pid": int(done.stdout)}) + '\n"a"\n')
    assert Pins(folder).keys() == set()
    assert not file.exists()


def test_pins_of_another_host_are_believed_for_a_week(folder):
    folder.mkdir()
    file = folder / "x.jsonl"
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}) + '\n"a"\n')
    assert Pins(folder).keys() == {"a"}
    old = file.stat().st_mtime - pins.STALE_S - 1
    os.utime(file, (old, old))
    assert Pins(folder).keys() == set()


def test_a_process_that_dies_while_it_writes_its_pins_leaves_none(folder, monkeypatch):
    def dies(*_):
        raise SystemExit

    monkeypatch.setattr(files, "write_synced", dies)
    with pytest.raises(SystemExit), Pins(folder).held():
        pass
    assert not list(folder.glob("*.jsonl"))
