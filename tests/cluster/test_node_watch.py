"""What is said of nodes that come and go, and which of them see the store."""

from __future__ import annotations

import uuid

import pytest

from bdtune.cluster import nodes, seen
from bdtune.cluster.nodes import Node, NodeWatch, Notice, name_of
from bdtune.cluster.seen import UnseenError, refuse, see
from bdtune.cluster.shared import Variables
from bdtune.engine.store import Store
from bdtune.errors import UserError

ONE, TWO = Node("1", "one", {"CPU": 8.0, "GPU": 1.0}), Node("2", "two", {"CPU": 4.0})


@pytest.fixture
def cluster(monkeypatch):
    """The living nodes, as a test sets them."""
    living = {"1": ONE}
    monkeypatch.setattr(nodes, "living", lambda: dict(living))
    return living


def test_what_becomes_of_nodes_is_said_once_and_the_room_for_trials_follows(cluster):
    said, room = [], []
    watch = NodeWatch(said.append, lambda found: room.append([node.name for node in found]))
    watch.look()
    assert (said, room) == ([], [])
    cluster["2"] = TWO
    watch.look()
    watch.look()
    assert said == ["node two joined: 4 CPUs, 0 GPUs"]
    cluster["2"] = Node("2", "two", TWO.resources, leaving=True)
    watch.look()
    assert said[1] == "node two is drained: its trials save their state and go on elsewhere"
    del cluster["2"]
    watch.look()
    del cluster["1"]
    watch.look()
    assert said[2:] == [
        "node two is gone",
        "node one is gone: its trials go on elsewhere, from their last checkpoints",
    ]
    assert room == [["one", "two"], ["one"], ["one"], []]


def test_a_node_that_joins_without_the_store_is_named(cluster):
    said = []
    watch = NodeWatch(said.append, lambda found: None, lambda node: f"/data is not there on {node.name}")
    cluster["2"] = TWO
    watch.look()
    assert said[1] == "trials will fail on node two: /data is not there on two"


def test_a_node_is_called_as_it_was_named_or_by_its_host():
    node = {"NodeName": "10.0.0.2", "NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "gpu7"}
    assert name_of(node) == "gpu7 (10.0.0.2)"
    assert name_of({**node, "NodeName": "spot-3"}) == "spot-3"


@pytest.mark.ray
def test_a_node_has_no_notice_before_it_is_drained_and_sees_the_store(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes, "NOTICE_S", 0.0)
    own = ray_session.get_runtime_context().get_node_id()
    assert list(nodes.living()) == [own]
    notice = Notice()
    assert not notice.given()
    monkeypatch.setattr(nodes, "draining", lambda: {own})
    assert notice.given()
    with Store(tmp_path / "store").pins.held() as mark:
        variables = Variables({}, {})
        assert seen.unseen(tmp_path / "store", mark, variables, [own]) == {}
        found = seen.unseen(tmp_path / "nowhere", mark, variables, [own])
    assert "nowhere is not there on" in found[own]


def test_a_store_is_known_by_its_drivers_mark(stand, tmp_path):
    store = stand.store()
    with store.pins.held() as mark:
        assert see(stand.root, mark).root == store.root
        assert see(stand.root, mark, hurried=True).root == store.root
        other = (
            tmp_path / "other" if isinstance(stand.root, type(tmp_path)) else f"memory://{uuid.uuid4().hex}"
        )
        Store(other)
        with pytest.raises(UnseenError, match="is another one on"):
            see(other, mark)
    with pytest.raises(UnseenError, match="is another one on"):
        see(stand.root, mark)


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with pytest.raises(UnseenError, match="is not there on"):
        see(tmp_path / "store", "mark")
    assert not (tmp_path / "store").exists()


def test_a_bucket_that_refuses_a_node_is_unseen():
    with pytest.raises(UnseenError, match="s4://bucket cannot be used on"):
        see("s4://bucket", "mark")


def test_every_node_that_does_not_see_the_store_is_named_at_once():
    refuse("/data", {})
    with pytest.raises(UserError) as caught:
        refuse("/data", {"one": "/data is not there on one", "two": "/data is another one on two"})
    assert [problem.path for problem in caught.value.problems] == ["--store"] * 2
    assert [problem.got for problem in caught.value.problems] == [
        "node one: /data is not there on one",
        "node two: /data is another one on two",
    ]
