"""Trials start where the results that they read are, if they are as urgent as others."""

from __future__ import annotations

import pytest

from bdtune.cluster.sweep import make_ledger
from bdtune.config.expand import points
from bdtune.engine.node_cache import NodeCache
from bdtune.engine.object_place import ObjectPlace
from bdtune.engine.objects import open_bucket
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from tests.cluster.test_driver import Desk

GRID = ("defense.prefix.level=0,1", "defense.tail.quality=0.2,0.4,0.6,0.8")
"""Two prefixes, each read by four tails."""


class Nodes(Desk):
    """A driver whose trials are walked here, on nodes that have copies of their own and share a bucket.

    The baseline is there already, so that each node begins with a prefix.
    """

    def __init__(self, bench, names, *overrides):
        self.folder, self.address = bench.root / "copies", f"memory://{bench.root}"
        self.compute_baseline(bench.spec(*overrides))
        super().__init__(bench, *overrides)
        self.workers = {name: make_ledger(self.driver.spec, self.opened(name))[1] for name in names}
        self.at: dict[str, str] = {}

    def compute_baseline(self, spec):
        ledger, executor = make_ledger(spec, self.opened("earlier"))
        baseline = ledger.baseline(ledger.add(points(spec)[0]))
        list(executor.walk(baseline.graph.goals))

    def opened(self, node):
        return Store(ObjectPlace(open_bucket(self.address), NodeCache(self.folder / node, 10**9)))

    def store(self, bench):
        return self.opened("driver")

    def run_in_turn(self):
        """Let each node take the next trial when its last one has ended; returns where each trial ran."""
        busy = {}
        while True:
            for node in self.workers:
                if node not in busy and (given := self.driver.release()) is not None:
                    busy[node] = given[0]
                    self.at[given[0]] = node
            if not busy:
                assert self.driver.complete
                return self.at
            node, trial = next(iter(busy.items()))
            del busy[node]
            self.worker = self.workers[node]
            self.driver.ended(trial, {**self.walk(trial), "node": node})


def fetched(desk):
    """Return how many bytes each tail's node had to fetch, by the level of its prefix."""
    found = {}
    resolver = Resolver(desk.opened("looks"))
    for entry in desk.driver.ledger.entries.values():
        if not entry.is_baseline:
            use = desk.driver.results[entry.id].stages["classifier"]
            level = entry.spec.defense.prefix.level
            found.setdefault(level, []).append(resolver.store.manifest(use.key).cost.fetched_bytes)
    return found


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_a_freed_node_takes_the_trials_that_read_what_it_has(bench, order):
    desk = Nodes(bench, order, *GRID)
    at = desk.run_in_turn()
    levels = {
        entry.id: entry.spec.defense.prefix.level
        for entry in desk.driver.ledger.entries.values()
        if not entry.is_baseline
    }
    nodes = {level: {at[trial] for trial in levels if levels[trial] == level} for level in (0, 1)}
    assert nodes[0] | nodes[1] == set(order), "both nodes worked"
    assert sum(len(each) for each in nodes.values()) <= 3, "at most the last trial changes sides"


def test_less_is_fetched_than_without(bench, tmp_path, monkeypatch):
    desk = Nodes(bench, ("one", "two"), *GRID)
    desk.run_in_turn()
    near = sum(map(sum, fetched(desk).values()))
    from tests.cluster.sweeping import Bench

    (tmp_path / "other").mkdir()
    other = Nodes(Bench(tmp_path / "other"), ("one", "two"), *GRID)
    monkeypatch.setattr(other.driver.locality, "here", lambda stages: 0)
    other.run_in_turn()
    far = sum(map(sum, fetched(other).values()))
    assert near < far
    metrics = [{t.id: t.metrics for t in each.driver.results.values()} for each in (desk, other)]
    assert metrics[0] == metrics[1], "where a trial runs changes nothing"


def test_one_node_or_a_store_in_a_folder_leaves_the_order(bench):
    desk = Desk(bench, *GRID)
    trial = desk.driver.release()[0]
    desk.driver.ended(trial, {**desk.walk(trial), "node": "one"})
    assert desk.driver.locality._held == {}
    alone = Nodes(bench, ("one",), *GRID)
    trial = alone.driver.release()[0]
    alone.worker = alone.workers["one"]
    alone.driver.ended(trial, {**alone.walk(trial), "node": "one"})
    assert alone.driver.locality._held.keys() == {"one"}
    assert not alone.driver.locality.matters


def test_a_node_that_is_not_known_is_no_reason(bench):
    desk = Nodes(bench, ("one", "two"), *GRID)
    trial = desk.driver.release()[0]
    desk.worker = desk.workers["one"]
    desk.driver.ended(trial, desk.walk(trial))  # a report of an earlier version's, say
    assert not desk.driver.locality.matters
