"""What `bdtune doctor --address` says of a cluster and its nodes."""

from __future__ import annotations

import socket

import pytest

from bdtune.cluster import probe as module
from bdtune.cluster.probe import Cluster, NodeFacts, probe
from bdtune.errors import UserError
from bdtune.verbs import doctor

VERSIONS = doctor._versions()


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":70000", "10.0.0.1:"])
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UserError, match="--address: expected 'auto' or HOST:PORT"):
        probe(address, [])


def test_where_nobody_listens_the_error_says_so():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"running Ray cluster, got {address}: Connection refused"):
        probe(address, [])


def test_what_listens_but_is_no_cluster_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "JOIN_S", 0.5)
    refused = pytest.raises(UserError, match=r"no answer within 0\.5 s")
    with socket.create_server(("127.0.0.1", 0)) as server, refused:
        probe(f"127.0.0.1:{server.getsockname()[1]}", [])


def test_an_answer_among_lines_of_rays_is_found(monkeypatch):
    answer = f'I am Ray\n{module.ANSWER}{{"error": "AuthenticationError: wrong token"}}\nbye\n'
    monkeypatch.setattr(module, "check_answers", lambda address: None)
    monkeypatch.setattr(
        module.subprocess, "run", lambda *_, **__: module.subprocess.CompletedProcess([], 0, answer, "")
    )
    with pytest.raises(UserError, match="got AuthenticationError: wrong token"):
        probe("head:6379", [])


@pytest.mark.ray
def test_a_real_cluster_says_what_its_nodes_have(ray_session, tmp_path):
    found = probe(ray_session.get_runtime_context().gcs_address, [tmp_path, tmp_path / "nowhere"])
    [node] = found.nodes
    assert node.cpus == 2
    assert node.versions == VERSIONS
    assert node.same_folders == {str(tmp_path): True, str(tmp_path / "nowhere"): False}
    assert node.error == ""


def examined(monkeypatch, tmp_path, *nodes):
    """Return the findings about a cluster of these nodes, by what they are about."""
    asked = []

    def answer(address, folders):
        asked.append((address, folders))
        return Cluster("head:6379", nodes)

    monkeypatch.setattr(module, "probe", answer)
    monkeypatch.setenv("BDTUNE_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    found = doctor.examine(tmp_path / "not-yet" / "runs", address="auto")
    assert asked == [("auto", [tmp_path, tmp_path / "data"])]
    return {finding.about: finding for finding in found}


def test_nodes_that_have_what_this_machine_has_are_fine(monkeypatch, tmp_path):
    nodes = [NodeFacts(name, 8, 1, VERSIONS, {"/shared": True}) for name in ("one", "two")]
    found = examined(monkeypatch, tmp_path, *nodes)
    assert (found["cluster"].severity, found["node two"].severity) == ("ok", "ok")
    assert found["cluster"].text == "head:6379: 2 nodes, 16 CPUs, 2 GPUs"


def test_of_nodes_with_gpus_it_says_whether_trials_can_share_one(monkeypatch, tmp_path):
    nodes = [
        NodeFacts(f"{gpus} {mps}", 8, gpus, VERSIONS, {}, mps=mps)
        for gpus, mps in ((1, True), (1, False), (0, False))
    ]
    found = examined(monkeypatch, tmp_path, *nodes)
    assert "8 CPUs, 1 GPUs with MPS; same" in found["node 1 True"].text
    assert "8 CPUs, 1 GPUs without MPS; same" in found["node 1 False"].text
    assert "8 CPUs, 0 GPUs; same" in found["node 0 False"].text


def test_what_a_node_lacks_is_a_problem_of_that_node(monkeypatch, tmp_path):
    nodes = [
        NodeFacts("old", 8, 0, {**VERSIONS, "bdtune": "0.0.1", "torch": None}, {"/shared": True}),
        NodeFacts("apart", 8, 0, VERSIONS, {"/shared": False}),
        NodeFacts("dead", 8, 0, {}, {}, error="no answer within 20 s"),
    ]
    found = examined(monkeypatch, tmp_path, *nodes)
    assert all(found[f"node {name}"].severity == "problem" for name in ("old", "apart", "dead"))
    assert f"bdtune 0.0.1 where this machine has {VERSIONS['bdtune']}" in found["node old"].text
    assert "torch is missing" in found["node old"].text
    assert "/shared is not the folder of this machine" in found["node apart"].text
    assert found["node dead"].text == "no answer within 20 s"


@pytest.mark.parametrize(
    ("mode", "token", "severity"),
    [
        ("token", "s3cret-s3cret", "ok"),
        ("token", None, "info"),
        (None, "s3cret-s3cret", "info"),
        (None, None, "info"),
    ],
)
def test_a_missing_token_is_mentioned_and_none_is_shown(monkeypatch, tmp_path, mode, token, severity):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    for name, value in (("RAY_AUTH_MODE", mode), ("RAY_AUTH_TOKEN", token)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    found = doctor._token()
    assert found.severity == severity
    assert "s3cret" not in found.text
