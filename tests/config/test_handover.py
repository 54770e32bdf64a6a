"""Attacks that hand over a model, and defenses that need what a trial may not give."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bdtune.cli import main
from bdtune.config.load import load_sweep, load_trial
from bdtune.config.trial import parse_trial
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.errors import UserError
from bdtune.poisoning.reserved_sources import CleanSet
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from bdtune.trials.graph import TrialGraph


@pytest.fixture(autouse=True)
def more_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))


def graph(**settings: Any) -> TrialGraph:
    raw = {
        "dataset": {"name": "digits", "train_limit": 80, "test_limit": 30},
        "attack": "outsourced",
        "model": {"name": "resnet_s", "stem_width": 2},
        "numerics": {"device": "cpu", "precision": "fp32"},
    }
    spec, faults = parse_trial({**raw, **settings})
    assert not faults
    assert spec is not None
    return trial_graph(spec)


def names(found: TrialGraph) -> list[str]:
    return [node.name for node in found.chain["classifier"].walk()]


def test_without_a_defense_the_model_is_the_one_handed_over() -> None:
    found = graph()
    assert names(found).count("supervised") == 2
    data = [node.inputs["data"] for node in found.chain["classifier"].walk() if node.name == "supervised"]
    assert [source.attack for source in data] == [None, data[1].attack]  # clean first
    other = graph(defense={"name": "none", "train": {"epochs": 7}})
    assert other.evaluate.recipe == found.evaluate.recipe  # that training is not made
    assert names(graph(attack="badnets")).count("supervised") == 1


def test_the_undefended_baseline_is_the_model_handed_over() -> None:
    undefended = graph().chain["classifier"].recipe
    for defense in ({"name": "needy"}, {"name": "toy"}):
        found = graph(defense=defense, dataset={"name": "digits", "train_limit": 80, "test_limit": 30})
        assert found.baseline is not None
        baseline = trial_graph(found.baseline)
        assert baseline.chain["classifier"].recipe == undefended
        assert undefended in {node.recipe for node in found.chain.values()} or defense["name"] == "toy"


def test_a_post_training_defense_starts_from_the_undefended_model_of_a_poisoned_set() -> None:
    found = graph(attack="badnets", defense="needy")
    assert found.baseline is not None
    baseline = trial_graph(found.baseline)
    assert found.chain["trained"].recipe == baseline.chain["classifier"].recipe


def test_a_training_of_its_own_takes_the_poisoned_set_alone() -> None:
    found = graph(defense="abl")
    handed_over = graph().chain["classifier"].recipe
    assert handed_over not in found.stages


def test_both_are_computed_and_evaluated(tmp_path: Path) -> None:
    executor = Executor(Store(tmp_path), InProcess())
    for found in (graph(), graph(defense="needy")):
        for goal in found.goals:
            assert {"acc", "asr"} <= set(executor.compute(goal).info)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["attack=badnets", "defense={name: needy, needs: a backdoored model}"],
            "attack: expected an attack that hands over a trained model, which 'needy' needs, got none. "
            "'outsourced' does",
        ),
        (
            ["attack=outsourced", "defense={name: needy, needs: clean images}"],
            "defense.needs: expected a trial with clean images, got none",
        ),
        (
            ["attack=outsourced", "defense={name: needy, needs: a holdout}"],
            "holdout: expected more than 0, as 'needy' chooses by it, got 0.0",
        ),
    ],
)
def test_what_a_defense_lacks_is_said_before_anything_starts(
    words: list[str],
    message: str,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError) as caught:
        load_trial(None, words)
    assert str(caught.value).endswith(message)
    monkeypatch.setattr("sys.argv", ["bdtune", "run", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(own_folder.iterdir())


def test_what_it_needs_and_gets_is_fine() -> None:
    load_trial(None, ["attack=outsourced", "defense={name: needy, needs: a backdoored model}"])
    load_trial(None, ["defense={name: needy, needs: a holdout}", "holdout=0.1"])
    load_trial(None, ["attack=outsourced", "defense={name: needy, needs: clean images}", "clean=20"])


def test_a_defense_that_asks_for_the_clean_set_trains_on_it_and_no_other_one_knows_it(tmp_path: Path) -> None:
    reading = graph(defense={"name": "needy", "needs": "clean images"}, clean="2 per class")
    assert isinstance(reading.chain["classifier"].inputs["data"], CleanSet)
    executor = Executor(Store(tmp_path), InProcess())
    assert executor.compute(reading.chain["classifier"]).arrays
    other = graph(defense="needy", clean="2 per class")
    sources = [value for node in other.stages.values() for value in node.inputs.values()]
    assert not any(isinstance(value, CleanSet) for value in sources)


@pytest.mark.parametrize(("words", "message"), [
    (["clean=500000"], "clean: expected fewer images than each class has, got "),
    (["holdout_clean=0.999"], "holdout_clean: expected fewer images than each class has, got "),
    (["clean=some"], "clean: expected a share below 1, a count such as 500, or text such as '10 per "),
])  # fmt: skip
def test_a_clean_set_of_a_wrong_size_is_told(words: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_trial(None, words)
    assert message in str(caught.value)


def test_a_sweep_says_which_of_its_points_lack_something() -> None:
    words = ["attack=badnets,outsourced", "defense={name: needy, needs: a backdoored model}"]
    with pytest.raises(UserError) as caught:
        load_sweep(None, words)
    assert len(caught.value.problems) == 1
    assert "attack[0]" in str(caught.value)
