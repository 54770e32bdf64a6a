from __future__ import annotations

import json

from bdtune.tracking.outbox import FILE, Outbox


def test_an_event_is_written_once_until_its_identity_changes(tmp_path):
    outbox = Outbox(tmp_path / "sweep")
    assert outbox.append("trial", "a", [1], {"x": 1})
    assert not outbox.append("trial", "a", [1], {"x": 2})
    assert outbox.append("trial", "a", [2], {"x": 3})
    assert outbox.append("trial", "b", [1], {"x": 4})
    assert [entry.body["x"] for entry in outbox.pending("store")] == [1, 3, 4]
    assert outbox.counts["trial"] == 3
    assert outbox.has("trial", "a", [2])


def test_a_second_process_sees_what_the_first_wrote(tmp_path):
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    assert first.append("trial", "a", 1, {})
    assert not second.append("trial", "a", 1, {})
    assert Outbox(tmp_path).has("trial", "a", 1)


def test_a_torn_last_line_is_skipped_and_its_event_can_be_written_again(tmp_path):
    outbox = Outbox(tmp_path)
    outbox.append("trial", "a", 1, {"x": 1})
    outbox.append("trial", "b", 1, {"x": {"deep": 2}})
    content = (tmp_path / FILE).read_bytes()
    for lost in range(1, 40):
        (tmp_path / FILE).write_bytes(content[:-lost])
        reopened = Outbox(tmp_path)
        assert not reopened.has("trial", "b", 1)
        assert [entry.subject for entry in reopened.pending("s")] == ["a"]
        assert reopened.append("trial", "b", 1, {"x": 3})
        assert [entry.subject for entry in Outbox(tmp_path).pending("s")] == ["a", "b"]


def test_names_and_texts_of_any_alphabet_survive(tmp_path):
    Outbox(tmp_path).append("end", "größe", "x", {"note": 'a "quoted"\nline ± 漢'})
    again = Outbox(tmp_path)
    assert again.has("end", "größe", "x")
    assert again.pending("s")[0].body["note"] == 'a "quoted"\nline ± 漢'


def test_each_store_has_its_own_position(tmp_path):
    outbox = Outbox(tmp_path)
    for number in range(5):
        outbox.append("trial", str(number), 1, {})
    first = outbox.pending("one", limit=2)
    outbox.delivered("one", first[-1].end)
    assert [entry.subject for entry in outbox.pending("one")] == ["2", "3", "4"]
    assert len(outbox.pending("two")) == 5
    outbox.delivered("one", outbox.pending("one")[-1].end)
    assert not outbox.has_pending("one")
    (tmp_path / "delivered.json").write_text("{torn")
    assert len(outbox.pending("one")) == 5


def test_one_process_delivers_at_a_time(tmp_path):
    first, second = Outbox(tmp_path), Outbox(tmp_path)
    assert first.claim()
    assert first.claim()
    assert not second.claim()
    first.release()
    assert second.claim()
    second.release()


def test_the_name_is_kept(tmp_path):
    assert Outbox(tmp_path).name() == Outbox(tmp_path).name() != Outbox(tmp_path / "other").name()


def test_newest_and_rejected(tmp_path):
    outbox = Outbox(tmp_path)
    assert outbox.newest("sweep") is None
    outbox.append("sweep", "s", 1, {"n": 1})
    outbox.append("trial", "t", 1, {})
    outbox.append("sweep", "s", 2, {"n": 2})
    assert outbox.newest("sweep").body == {"n": 2}
    outbox.rejected(outbox.newest("sweep"), "no")
    assert json.loads((tmp_path / "rejected.jsonl").read_text())["reason"] == "no"
