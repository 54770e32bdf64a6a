"""What a plan works out once for many trials is what each trial by itself comes to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import Field

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.config.trial import spec_from_dict, spec_to_dict, trial_id
from bdtune.engine.key import key_of
from bdtune.engine.manifest import Cost
from bdtune.engine.plan import Costs, StageCount, make_plan
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.engine.resolve import Resolver
from bdtune.engine.shared import Alike, Shared
from bdtune.engine.stage import Artefact
from bdtune.engine.store import Store
from bdtune.engine.traffic import Traffic
from bdtune.knobs import Knobs, short_names
from bdtune.trials.graph import trial_graph
from bdtune.trials.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.engine.node import Node

AXES = {
    "attack.rate": ["0.1", "0.2", "0.05"],
    "attack.trigger_seed": ["0", "1"],
    "seed": ["0", "1", "2"],
    "data_seed": ["null", "7"],
    "holdout": ["0", "0.2"],
    "clean": ["0.05", "0.1"],
    "model.width": ["4", "8"],
    "evaluation.robust": ["none", "pgd"],
    "numerics.precision": ["fp32", "bf16"],
}
OWN = {
    "gssd": {"alpha_c": ["0.3", "0.2"], "lambda": ["0.5", "1"], "retrain.epochs": ["3", "4"]},
    "lfd": {"teacher.epochs": ["2", "3", "4"]},
    "nad": {"train.lr": ["0.1", "0.05"]},
    "strip": {"train.epochs": ["3", "4"]},
    "none": {"train.epochs": ["2", "3"]},
}
ALWAYS = {"strip": ["defense.overlays=1", "defense.computed=1"]}
"""What fits a clean set of three images."""


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "config" / "plugins"))


def recipe(node: Node) -> str:
    """Return a node's recipe by its definition."""
    return key_of(node.preimage(recipe))


def walked(node: Node) -> Iterator[Node]:
    """Yield a node and all before it, parents first, some of them several times."""
    for parent in node.parents:
        yield from walked(parent)
    yield node


class Reference:
    """What trials come to by themselves, each read anew and each hash by its definition."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def key(self, node: Node) -> str | None:
        found = {id(parent): self.identity(parent) for parent in node.parents}
        if None in found.values():
            return None
        return key_of(node.preimage(lambda parent: found[id(parent)]))

    def identity(self, node: Node) -> dict[str, str] | None:
        key = self.key(node)
        if key is None or node.stage.kind == "train":
            return None if key is None else {"key": key}
        manifest = self.store.manifest(key)
        return None if manifest is None else {"digest": manifest.digest}

    def seconds(self, node: Node) -> float:
        return Costs(self.store, guess).seconds(node) or 0.0

    def plan(self, graphs: list[Any]) -> dict[str, Any]:
        counts: dict[str, StageCount] = {}
        unshared, longest = 0.0, 0.0
        unique: dict[str, Node] = {}
        keys: dict[str, dict[str, str | None]] = {}
        traffic = Traffic(counts, Costs(self.store))
        for graph in graphs:
            traffic.next_trial()
            steps = {recipe(node): node for goal in graph.goals for node in walked(goal)}
            own = 0.0
            for name, node in steps.items():
                stage, key = node.stage.full_name(), self.key(node)
                keys.setdefault(stage, {})[name] = key
                count = counts.setdefault(stage, StageCount())
                count.without_sharing += 1
                count.exact = count.exact and key is not None
                stored = key is not None and self.store.has(key)
                unshared += self.seconds(node)
                own += 0.0 if stored else self.seconds(node)
                traffic.enter(node, key, self.store.manifest(key) if stored else None)
                if (key or name) not in unique:
                    unique[key or name] = node
                    count.unique += 1
                    count.cached += stored
                    if not stored:
                        traffic.compute(node)
            longest = max(longest, own)
        absent = [node for name, node in unique.items() if not self.store.has(name)]
        reuse = PrefixReuse()
        reuse.want(absent)
        shared = 0.0
        for node in absent:
            stage = node.stage.full_name()
            if reuse.is_reused(node):
                counts[stage].reused += 1
                continue
            known = [key for key in keys[stage].values() if key is not None]
            part = len(set(known)) / len(known) if known and keys[stage][recipe(node)] is None else 1.0
            shared += self.seconds(node) * part
        short = short_names(counts)
        return {
            "stages": {short[name]: count for name, count in counts.items()},
            "seconds": (shared, unshared, longest),
        }


def guess(node: Node) -> float:
    """Return seconds that tell the order apart in which they are added up."""
    return int(recipe(node)[:6], 16) / 7


def compute_some(store: Store, ledger: Ledger, every: int) -> None:
    """Put all results but one of so many into the store, as far as keys are known; derived ones are alike."""
    resolver = Resolver(store)
    nodes = {node.recipe: node for entry in ledger.entries.values() for node in entry.graph.stages.values()}
    for number, node in enumerate(nodes.values()):
        key = resolver.key(node)
        if number % every and key is not None:
            made = Artefact(info={"kind": number % 3})
            store.publish(key, node.stage.kind, resolver.preimage(node), made, cost=Cost(1.0, 1))


def words(drawn: dict[str, int], defense: str, own: int) -> list[str]:
    axes = {path: values[: drawn[path]] for path, values in AXES.items() if drawn[path]}
    axes |= {f"defense.{path}": values[:own] for path, values in OWN[defense].items() if own}
    return [f"{path}={','.join(values)}" for path, values in axes.items()]


@settings(
    max_examples=10,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # to shrink takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    drawn=st.fixed_dictionaries({path: st.integers(0, 2) for path in AXES}),
    defense=st.sampled_from(sorted(OWN)),
    own=st.integers(0, 3),
    every=st.sampled_from([1, 2, 7]),
)
def test_the_plan_of_many_trials_is_that_of_each_by_itself(tmp_path_factory, drawn, defense, own, every):
    base = ["dataset=toy", "attack=badnets", f"defense={defense}", "model=resnet18", "model.width=4"]
    drawn = {path: count if index < 4 else min(count, 1) for index, (path, count) in enumerate(drawn.items())}
    drawn |= {"clean": max(1, drawn["clean"])}  # some of the defenses ask for clean images
    sweep = load_sweep(None, [*base, *ALWAYS.get(defense, []), *words(drawn, defense, own)])
    store = Store(tmp_path_factory.mktemp("store"))
    ledger = Ledger("many", Resolver(store), "cpu")
    ledger.extend(points(sweep))
    compute_some(store, ledger, every)

    alone = [spec_from_dict(spec_to_dict(entry.spec)) for entry in ledger.entries.values()]
    graphs = [trial_graph(spec) for spec in alone]
    for spec, graph, entry in zip(alone, graphs, ledger.entries.values(), strict=True):
        assert entry.id == trial_id(spec)
        assert list(entry.graph.stages) == [recipe(node) for node in graph.stages.values()]
        assert list(entry.graph.roles.items()) == list(graph.roles.items())
        assert entry.graph.data_digest == graph.data_digest
        assert (entry.graph.epochs, entry.graph.budget) == (graph.epochs, graph.budget)
        assert entry.graph.baseline == graph.baseline
        nodes, reference = entry.graph.stages.values(), Reference(store)
        assert [Resolver(store).key(n) for n in nodes] == [reference.key(n) for n in graph.stages.values()]

    plan, expected = Ledger.plan(_again(ledger, store), guess), Reference(store).plan(graphs)
    assert list(plan.stages.items()) == list(expected["stages"].items())
    assert (plan.seconds_shared, plan.seconds_unshared, plan.seconds_longest) == expected["seconds"]
    assert plan.trials + plan.baselines == len(graphs)


def _again(ledger: Ledger, store: Store) -> Ledger:
    """Return the ledger with a resolver that knows no key yet."""
    return Ledger(ledger.sweep, Resolver(store), ledger.device, ledger.entries)


def test_trials_share_what_they_have_in_common(tmp_path):
    sweep = load_sweep(
        None,
        [
            "dataset=toy",
            "attack=badnets",
            "defense=gssd",
            "attack.rate=0.1,0.2",
            "defense.alpha_c=0.2,0.3",
            "defense.alpha_p=0.1,0.15",
        ],
    )
    ledger = Ledger("shared", Resolver(Store(tmp_path)), "cpu")
    ledger.extend(points(sweep))
    nodes = {id(node): node for entry in ledger.entries.values() for node in entry.graph.stages.values()}
    assert len(nodes) == len({node.recipe for node in nodes.values()})
    assert len({id(node.stage) for node in nodes.values() if node.name == "simclr"}) == 1
    assert len({id(node.stage) for node in nodes.values() if node.name == "split"}) == 2


class Number(Knobs):
    """A knob that may be a number of any type."""

    value: int | float | bool = Field(0)
    hidden: ClassVar[int] = 0


def test_equal_numbers_of_other_types_are_not_alike():
    alike = Alike()
    one = alike.one(Number(value=1))
    assert alike.one(Number(value=1)) is one
    for other in (True, 1.0):
        assert Number(value=other) == one
        assert alike.one(Number(value=other)) is not one


def test_only_the_same_objects_share_a_result():
    calls = []
    shared = Shared(lambda *parts: calls.append(parts) or len(calls))
    one, same, other = Number(value=1), Number(value=1), None
    assert [shared(one, other), shared(one, other), shared(same, other), shared(one)] == [1, 1, 2, 3]


def test_objects_that_are_gone_leave_no_result_to_others():
    shared = Shared(lambda number: number.value)
    assert [shared(Number(value=value)) for value in range(100)] == list(range(100))


def test_a_plan_of_nothing():
    assert make_plan([], 0, Resolver(Store(Path("nowhere"), create=False))).trials == 0
