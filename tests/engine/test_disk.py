from __future__ import annotations

import errno

import numpy as np
import pytest
from safetensors import SafetensorError

from bdtune.engine import checkpoint, files, folder_place
from bdtune.engine.disk import DiskFullError, is_full, room
from bdtune.engine.execute import Executor
from bdtune.engine.manifest import Cost
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact
from bdtune.engine.store import Store
from tests.doubles import CPU, Nowhere
from tests.engine.toys import Numbers, Train


def no_room(*_args: object, **_more: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_only_a_full_disk_is_one(tmp_path):
    assert is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    )
    assert not is_full(OSError(errno.EACCES, "Permission denied"))
    assert not is_full(SafetensorError("header too large"))
    with pytest.raises(PermissionError), room(tmp_path):
        raise PermissionError


def test_the_message_names_the_file_what_is_free_and_what_is_needed(tmp_path):
    with (
        pytest.raises(
            DiskFullError, match=r"no room for .*made/later: [\d,.]+ MiB of .* are free, 3.0 MiB are needed"
        ),
        room(tmp_path / "made" / "later", 3 << 20),
    ):
        no_room()


def test_a_store_without_room_is_left_as_it_was_and_takes_the_result_later(tmp_path, monkeypatch):
    store = Store(tmp_path)
    artefact = Artefact({"x": np.arange(4)})
    with monkeypatch.context() as full:
        full.setattr(folder_place, "write_plain", no_room)
        full.setattr(folder_place, "write_synced", no_room)
        with pytest.raises(DiskFullError):
            store.publish("ab12", "train", {"stage": "toy"}, artefact, cost=Cost.measured(1.0))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not list((tmp_path / "tmp").glob(".*"))
    store.publish("ab12", "train", {"stage": "toy"}, artefact, cost=Cost.measured(1.0))
    assert store.has("ab12")


def test_a_file_and_a_checkpoint_without_room_keep_what_they_held(tmp_path, monkeypatch):
    file, slot = tmp_path / "a.json", checkpoint.FileCheckpoint(tmp_path / "b.safetensors", 0)
    files.replace_file(file, b"old")
    slot.save({"x": np.zeros(2)}, {"done": 1})
    monkeypatch.setattr(files, "write_synced", no_room)
    monkeypatch.setattr(checkpoint, "save_file", no_room)
    with pytest.raises(DiskFullError):
        files.replace_file(file, b"new")
    with pytest.raises(DiskFullError):
        slot.save({"x": np.ones(2)}, {"done": 2})
    assert file.read_bytes() == b"old"
    assert slot.load()[1] == {"done": 1}
    assert len(list(tmp_path.iterdir())) == 2


def test_a_stage_that_finds_no_room_is_not_remembered_as_failed(tmp_path, monkeypatch):
    executor = Executor(Store(tmp_path), Nowhere())
    wanted = Node(Train(), {"x": Numbers()}, 0, CPU)
    monkeypatch.setattr(folder_place, "write_plain", no_room)
    monkeypatch.setattr(folder_place, "write_synced", no_room)
    with pytest.raises(DiskFullError):
        executor.compute(wanted)
    assert not list((tmp_path / "failed").iterdir())
    monkeypatch.undo()
    assert executor.compute(wanted).arrays
