"""What a stage will take, from what stages like it took."""

from __future__ import annotations

import json

import pytest

from bdtune.engine.manifest import Cost
from bdtune.engine.node import Node
from bdtune.engine.plan import Costs
from bdtune.engine.stage import Artefact
from bdtune.engine.store import Store
from tests.engine.toys import Numbers, Pass, Threshold


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


class Network(Numbers):
    """A source that says how large the work is."""

    def made_of(self):
        return {"given": {"name": "a network"}}


def node(stage):
    return Node(stage, {"number": Numbers()})


def took(store, stage, seconds, epochs):
    curve = tuple({"epoch": epoch + 1} for epoch in range(epochs))
    key = f"{len(list(store.entries())):016x}"
    store.publish(key, stage.kind, node(stage).preimage(None), Artefact(curve=curve), cost=Cost(seconds, 1))


def test_the_same_stage_takes_what_it_took_and_another_length_its_share(store):
    took(store, Pass(epochs=4), 8.0, 4)
    took(store, Pass(epochs=4), 12.0, 4)
    took(store, Pass(epochs=10), 15.0, 10)
    took(store, Threshold(limit=1.0), 0.5, 0)
    costs = Costs(store)
    assert costs.seconds(node(Pass(epochs=4))) == 10.0
    assert costs.seconds(node(Pass(epochs=10))) == 15.0
    assert costs.seconds(node(Pass(epochs=100))) == pytest.approx(100 * (2.0 + 3.0 + 1.5) / 3)
    assert costs.seconds(node(Pass(epochs=4).at(100))) == costs.seconds(node(Pass(epochs=100)))
    assert costs.seconds(node(Threshold(limit=2.0))) == 0.5


def test_of_a_new_stage_nothing_is_known(store):
    took(store, Threshold(limit=1.0), 0.5, 0)
    assert Costs(store).seconds(node(Pass())) is None


def test_a_store_that_says_no_epochs_tells_of_the_same_stage_alone(store):
    took(store, Pass(epochs=4), 8.0, 4)
    file = store.root / "costs.jsonl"
    row = json.loads(file.read_text())
    del row["epochs"]
    file.write_text(json.dumps(row) + "\n")
    assert Costs(store).seconds(node(Pass(epochs=4))) == 8.0
    assert Costs(store).seconds(node(Pass(epochs=5))) is None


@pytest.mark.parametrize(
    "torn", ['{"stage": "pa', '{"stage": "pa{"stage": 1}', "[]", "\x00\x00", '{"stage": "pass"}']
)
def test_a_torn_line_tells_nothing_and_stops_no_plan(store, torn):
    file = store.root / "costs.jsonl"
    took(store, Pass(epochs=4), 8.0, 4)
    file.write_text(file.read_text() + torn + "\n")
    took(store, Pass(epochs=4), 4.0, 4)
    assert Costs(store).seconds(node(Pass(epochs=4))) == 6.0


def test_other_data_or_another_network_says_less_than_a_guess(store):
    took(store, Pass(epochs=4), 8.0, 4)
    other = Node(Pass(epochs=4), {"number": Network()})
    assert other.scale != node(Pass(epochs=4)).scale
    assert Costs(store, lambda _: 99.0).seconds(other) == 99.0
    assert Costs(store, lambda _: 99.0).seconds(node(Pass(epochs=4))) == 8.0
    assert Costs(store).seconds(other) == 8.0  # better than nothing


def test_the_last_runs_count(store):
    for _ in range(10):
        took(store, Pass(epochs=4), 8.0, 4)
    for _ in range(5):
        took(store, Pass(epochs=4), 80.0, 4)
    assert Costs(store).seconds(node(Pass(epochs=4))) == 80.0


def test_a_recipe_whose_key_is_not_known_costs_what_others_of_its_stage_came_to(store):
    from bdtune.engine.plan import _Sharing

    sharing, four = _Sharing(), [node(Pass(epochs=epochs)) for epochs in (1, 2, 3, 4)]
    for step in four[:3]:
        sharing.note("pass", step.recipe, "the same key")
    sharing.note("pass", four[3].recipe, None)
    assert sharing.share("pass", four[0].recipe) == 1.0
    assert sharing.share("pass", four[3].recipe) == pytest.approx(1 / 3)
