"""A sweep whose store lies in a bucket: killed, taken up again, and equal to one in a folder."""

from __future__ import annotations

import pytest

from bdtune.engine.store import Store
from tests.end_to_end.kills import Runs

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("s3"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def metrics(result):
    return {trial["id"]: (trial["status"], trial["metrics"]) for trial in result["trials"]}


def test_a_sweep_in_a_bucket_survives_its_driver_and_comes_to_the_same(tmp_path, s3, monkeypatch):
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "copies"))
    runs, address = Runs(tmp_path / "bucket"), s3.new_address()
    driver = runs.start("--store", address)
    runs.wait_for("toy_tail")
    driver.kill()
    driver.communicate()
    result = runs.finish()  # the run directory knows where its store is
    asked = s3.requests()
    assert any("PUT" in line and "/entries/" in line for line in asked)
    assert not [line for line in asked if "prefix=" in line and "entries" in line], "nobody lists them all"
    assert (runs.folder / "runs" / "store.txt").read_text() == f"{address}\n"
    assert not (runs.folder / "runs" / "store").exists()

    store = Store(address)
    place = store.place
    published = [row["key"] for row in store.costs()]
    assert len(published) == len(set(published)), "nothing is published twice"
    assert set(published) <= set(store.every_key())
    assert not [each.name for kind in ("leases", "pins", "checkpoints") for each in place.objects.list(kind)]

    started = runs.notes()
    assert metrics(runs.finish()) == metrics(result)
    assert runs.notes() == started, "the same command again computes nothing"

    folder = Runs(tmp_path / "folder")
    assert metrics(folder.finish()) == metrics(result)
    assert {entry.key: entry.digest for entry in store.entries()} == {
        entry.key: entry.digest for entry in folder.store.entries()
    }
