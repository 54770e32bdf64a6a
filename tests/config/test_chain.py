"""What a defense can reach of the truth: nothing, by the handles it is given nor by what it builds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.engine.execute import Executor
from bdtune.engine.input_source import PluginSource, Source
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.engine.store import Store
from bdtune.errors import UserError
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.attack import Attack
from bdtune.plugins.data import Truth
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.defense import Defense, DefenseInputs
from bdtune.plugins.handles import BACKDOORED, Handle
from bdtune.plugins.poison_plan import PoisonPlan
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.train_sources import AttackedSource, TruthSource
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.reach import reachable
from bdtune.training.supervised import Supervised
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bdtune.engine.node import Node
    from bdtune.trials.graph import TrialGraph

TRAIN = Supervised(epochs=1, lr=0.01)
BADNETS = bdtune.attack("badnets")


class Peek(Stage):
    """Take down what an input shows."""

    name: ClassVar[str] = "peek"
    kind: ClassVar[Kind] = "derive"

    held: Any = None

    def run(self, ctx: Context, **inputs: Any) -> Artefact:
        return Artefact({"ids": np.asarray(inputs["data"].images.plan.poison_ids)})


class Greedy(Supervised):
    """A training that reads whatever it is handed."""

    name: ClassVar[str] = "supervised"

    def training(self, ctx: Context, **inputs: Any) -> Any:
        raise AssertionError("its chains are checked, and never run")


GREEDY = Greedy(epochs=1, lr=0.01)


class Peeking(Defense):
    """Build whatever chain a test asks for."""

    how: Any
    seen: ClassVar[list[DefenseInputs]] = []

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        self.seen.append(given)
        return self.how(given)

    def baseline_training(self) -> Supervised:
        return TRAIN


def graph(how: Callable[[DefenseInputs], dict[str, Node]], **settings: Any) -> TrialGraph:
    raw = {"dataset": "toy", "attack": "badnets", "model": {"name": "resnet_s"}, "defense": "tiny"}
    spec, faults = parse_trial({**raw, **settings})
    assert spec is not None, faults
    return trial_graph(spec.model_copy(update={"defense": Peeking(how=how)}))


def trained(given: DefenseInputs, **more: Node | Source) -> dict[str, Node]:
    subset = given.node(AllSamples(), data=given.labels)
    inputs: dict[str, Any] = {"data": given.fit, "subset": subset, "model": given.model, **more}
    return {"classifier": given.node(GREEDY, **inputs)}


def of_fit(source: type[Source]) -> Callable[[DefenseInputs], dict[str, Node]]:
    """Return a chain that reads a source made of what the poisoned set was made of."""

    def build(given: DefenseInputs) -> dict[str, Node]:
        fit: Any = given.fit
        knobs = {"dataset": fit.dataset, "root": fit.root}
        if issubclass(source, AttackedSource):
            knobs |= {"attack": fit.attack, "seed": fit.seed}
        return trained(given, truth=source(**knobs))

    return build


@pytest.mark.parametrize("source", [TruthSource, CleanTest, TriggeredTest])
def test_what_the_poisoned_set_is_made_of_cannot_be_asked(source: type[Source]) -> None:
    with pytest.raises(UserError, match=r"defense: expected a chain .*got given\.fit\.dataset"):
        graph(of_fit(source))


def test_nothing_given_leads_to_the_truth() -> None:
    graph(trained, data_seed=7)
    given = Peeking.seen[-1]
    assert not hasattr(given.fit, "attack")
    for value in reachable(given):
        assert not isinstance(value, Truth | PoisonPlan | Dataset | Attack | AttackedSource)
        assert type(value) is not int or value != 7, "the attacker's seed"


def test_the_seed_of_the_poison_is_not_given_where_the_trial_has_one_for_both() -> None:
    graph(trained, seed=7)
    assert 7 not in [value for value in reachable(Peeking.seen[-1]) if type(value) is int]


def test_a_chain_runs_under_the_seed_of_the_trial() -> None:
    nodes = graph(trained, seed=7).chain["classifier"].walk()
    assert {node.master_seed for node in nodes} == {7}


TOY = {"dataset": bdtune.dataset("digits"), "attack": BADNETS}


@pytest.mark.parametrize(
    ("chain", "place", "got"),
    [
        (
            lambda given: trained(given, truth=TruthSource(**TOY)),
            r"defense\.classifier\.truth: expected input 'truth' of node 'classifier' of 'test_chain'",
            "TruthSource of bdtune.poisoning.train_sources",
        ),
        (
            lambda given: {
                "classifier": given.node(GREEDY, subset=given.node(Peek(), data=CleanTest(**CLEAN)))
            },
            r"defense\.classifier\.subset\.data: expected input 'data' of node 'classifier\.subset'",
            "CleanTest of bdtune.poisoning.clean_sources",
        ),
        (
            lambda given: {**trained(given), "peek": given.node(Peek(), data=TriggeredTest(**TOY))},
            r"defense\.peek\.data: expected input 'data' of node 'peek'",
            "TriggeredTest of bdtune.poisoning.triggered_sources",
        ),
        (
            lambda given: trained(given, x=Handle(role="truth")),
            r"defense\.classifier\.x",
            "a handle of 'truth'",
        ),
        (
            lambda given: trained(given, x=PluginSource(plugin=BADNETS)),
            r"defense\.classifier\.x",
            "the plugin BadNets of bdtune.attacks.badnets",
        ),
        (lambda given: trained(given, x=Spy(plugin=given.model)), r"defense\.classifier\.x", "Spy of .*"),
        (
            lambda given: {
                **trained(given),
                "peek": given.node(Peek(held=[TruthSource(**TOY)]), data=given.fit),
            },
            r"defense\.peek: expected the stage of node 'peek' of 'test_chain' to hold no data or attack",
            "one in its knob 'held.0'",
        ),
        (
            lambda given: trained(given, x=BACKDOORED),
            r"defense\.classifier\.x: .* hands over a model",
            "none",
        ),
        (lambda given: {"trained": trained(given)["classifier"]}, r"defense: .* 'classifier'", "trained"),
        (
            lambda given: {"evaluate": trained(given)["classifier"], **trained(given)},
            r"defense: expected another name",
            "'evaluate'",
        ),
        (
            lambda given: {**trained(given), "truth": TruthSource(**TOY)},
            r"defense\.truth",
            "TruthSource of .*",
        ),
    ],
)
def test_a_chain_that_reads_what_it_was_not_given_is_refused(
    chain: Callable[[DefenseInputs], dict[str, Node]], place: str, got: str
) -> None:
    with pytest.raises(UserError, match=f"^{place}.*, got {got}"):
        graph(chain)


CLEAN = {"dataset": bdtune.dataset("digits")}


class Spy(PluginSource):
    """A source that pretends to be a network."""

    def load(self, resident: Any, artefacts: Any) -> Any:
        return resident


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(UserError) as caught:
        graph(lambda given: trained(given, a=TruthSource(**TOY), b=CleanTest(**CLEAN)))
    assert [problem.path for problem in caught.value.problems] == [
        "defense.classifier.a",
        "defense.classifier.b",
    ]


def test_networks_of_its_own_and_other_replicates_are_its_own() -> None:
    from dataclasses import replace

    def build(given: DefenseInputs) -> dict[str, Node]:
        small = given.network(bdtune.model("resnet_s1"))
        subset = given.node(AllSamples(), data=given.labels)
        again = replace(given, replicate=1).node(TRAIN, data=given.fit, subset=subset, model=small)
        return trained(given, init=again)

    found = graph(build).chain["classifier"]
    assert found.inputs["init"].replicate == 1


def test_a_handed_over_model_shows_nothing_of_the_attack(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    settings = {"dataset": "tiny", "attack": "outsourced", "defense": "none"}
    found = graph(lambda given: {"classifier": given.undefended(TRAIN)}, **settings)
    assert [node.name for node in found.chain["classifier"].walk()].count("supervised") == 2
    backdoored = Peeking.seen[-1].backdoored
    assert backdoored is not None
    assert dict(backdoored.inputs) == {}
    assert not any(isinstance(value, Dataset | Attack) for value in reachable(backdoored))


def test_a_stage_that_sees_a_stream_does_not_see_its_plan(tmp_path: Path) -> None:
    def build(given: DefenseInputs) -> dict[str, Node]:
        return {**trained(given), "peek": given.node(Peek(), data=given.fit)}

    found = graph(build, pipeline="stream").chain["peek"]
    resident = InProcess(None, "stream")
    data = found.inputs["data"].load(resident, {})
    for value in reachable(data):
        assert not isinstance(value, Truth | PoisonPlan | Dataset | Attack)
    with pytest.raises(Exception, match="'SealedStream' object has no attribute 'plan'"):
        Executor(Store(tmp_path), resident).compute(found)
