"""What each seed decides: trainings vary on one poisoned set, and poisoned sets under one training seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bdtune.config.expand import points, with_values
from bdtune.config.load import load_sweep
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict, to_params, trial_id
from bdtune.engine.resolve import Resolver
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph
from bdtune.trials.ledger import Ledger

if TYPE_CHECKING:
    from bdtune.config.trial import TrialSpec
    from bdtune.trials.graph import TrialGraph

GSSD = {"name": "gssd", "simclr": {"epochs": 2}, "retrain": {"epochs": 3, "batch_size": 32}}
CRAFTED = {"name": "gssd_optimised", "craft_on": "plan", "simclr": {"epochs": 1}}
"""An attack that trains something for the very rows that it poisons."""


def spec(**settings: Any) -> TrialSpec:
    raw = {"dataset": "toy", "attack": "badnets", "defense": GSSD, "model": {"name": "resnet18", "width": 4}}
    found, faults = parse_trial({**raw, **settings})
    assert found is not None, faults
    return found


def graph(**settings: Any) -> TrialGraph:
    return trial_graph(spec(**settings))


def poisoned(found: TrialGraph) -> list[int]:
    assert found.truth is not None
    return np.flatnonzero(found.truth.load(InProcess(), {}).is_poison).tolist()


def kept(found: TrialGraph) -> list[bool]:
    """Which rows of the training set are not held out."""
    assert found.truth is not None
    labels = np.arange(60) % 3
    return found.truth.kept(labels).tolist()


def recipes(found: TrialGraph) -> dict[str, str]:
    return {node.name: recipe for recipe, node in found.stages.items()}


def test_one_poisoned_set_serves_all_training_seeds() -> None:
    found = [graph(seed=seed, data_seed=0, attack=CRAFTED) for seed in (0, 1, 2)]
    assert len({tuple(poisoned(each)) for each in found}) == 1
    assert len({each.data_digest for each in found}) == 1
    attacker = [
        {node.recipe for node in each.chain["simclr"].inputs["data"].upstream.values()} for each in found
    ]
    assert attacker[0] == attacker[1] == attacker[2] != set()
    for name in ("simclr", "features", "supervised", "evaluate"):
        assert len({recipes(each)[name] for each in found}) == 3


def test_without_it_each_seed_draws_its_own_poison() -> None:
    assert poisoned(graph(seed=0)) != poisoned(graph(seed=1))
    assert poisoned(graph(seed=1)) == poisoned(graph(seed=0, data_seed=1))
    crafted = [graph(seed=seed, attack=CRAFTED).chain["simclr"].inputs["data"] for seed in (0, 1)]
    assert crafted[0].upstream["picture"].recipe != crafted[1].upstream["picture"].recipe


def test_one_training_seed_serves_all_poisoned_sets() -> None:
    found = [graph(seed=5, data_seed=seed) for seed in (0, 1, 2)]
    assert len({tuple(poisoned(each)) for each in found}) == 3
    assert {node.master_seed for each in found for node in each.chain["classifier"].walk()} == {5}
    assert len({each.chain["simclr"].seed for each in found}) == 1


def test_the_attacks_seed_draws_the_poison_alone() -> None:
    apart = {"attack": {"name": "badnets", "seed": 3}, "holdout": 0.2}
    one, other = (graph(**apart, data_seed=seed) for seed in (0, 1))
    assert kept(one) != kept(other)
    whole = [graph(attack=apart["attack"], data_seed=seed) for seed in (0, 1)]
    assert poisoned(whole[0]) == poisoned(whole[1]) == poisoned(graph(seed=3))
    swept = [graph(attack={"name": "badnets", "seed": seed}, holdout=0.2) for seed in (0, 1)]
    assert kept(swept[0]) == kept(swept[1])
    assert poisoned(swept[0]) != poisoned(swept[1])


def test_equal_data_have_one_key_whichever_setting_gave_the_seed() -> None:
    drawn = [
        graph(seed=2, data_seed=7),
        graph(seed=2, attack={"name": "badnets", "seed": 7}),
        graph(seed=2, data_seed=1, attack={"name": "badnets", "seed": 7}),
    ]
    assert len({each.evaluate.recipe for each in drawn}) == 1
    assert (
        graph(seed=2, data_seed=2, holdout=0.1).evaluate.recipe == graph(seed=2, holdout=0.1).evaluate.recipe
    )
    apart = graph(seed=2, data_seed=1, attack={"name": "badnets", "seed": 7}, holdout=0.1)
    assert apart.data_digest != graph(seed=2, data_seed=7, holdout=0.1).data_digest
    assert apart.data_digest != graph(seed=2, data_seed=1, holdout=0.1).data_digest


def test_one_trigger_serves_all_seeds_of_the_attack() -> None:
    trigger = {"name": "gssd_optimised", "simclr": {"epochs": 1}}
    found = [graph(attack={**trigger, "seed": seed}).chain["simclr"].inputs["data"] for seed in (0, 1)]
    assert found[0].upstream["picture"].recipe == found[1].upstream["picture"].recipe
    assert found[0].digest != found[1].digest


def test_a_model_that_the_attacker_trains_is_one_for_all_training_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    trial = {"dataset": "tiny", "attack": "outsourced", "defense": "none"}
    handed = [graph(**trial, seed=seed, data_seed=0).chain["classifier"].recipe for seed in (0, 1)]
    assert handed[0] == handed[1]
    assert graph(**trial, seed=0, data_seed=1).chain["classifier"].recipe != handed[0]
    pruned = {"name": "pruning_aware", "clean": {"epochs": 1}, "retrain": {"epochs": 1}}
    found = [
        graph(**{**trial, "attack": {**pruned, "seed": own}, "seed": seed, "data_seed": data, "holdout": 0.2})
        for seed, data, own in ((0, 0, 4), (1, 0, 4), (0, 1, 4), (0, 0, 5))
    ]
    first, *others = (each.chain["classifier"].recipe for each in found)
    assert [other == first for other in others] == [True, False, False]


def test_the_baseline_has_both_seeds() -> None:
    trial = spec(seed=4, data_seed=1, attack={"name": "badnets", "seed": 2})
    baseline = trial_graph(trial).baseline
    assert baseline is not None
    assert (baseline.seed, baseline.data_seed, baseline.attack.seed) == (4, 1, 2)
    assert trial_graph(baseline).data_digest == trial_graph(trial).data_digest


def test_an_id_changes_with_each_seed_and_the_way_through_json_keeps_them() -> None:
    trials = [
        spec(),
        spec(seed=1),
        spec(data_seed=1),
        spec(attack={"name": "badnets", "seed": 1}),
    ]
    assert len({trial_id(trial) for trial in trials}) == 4
    for trial in trials:
        again = spec_from_dict(json.loads(json.dumps(spec_to_dict(trial))))
        assert again == trial
        assert trial_id(again) == trial_id(trial)
    params = to_params(trials[2])
    assert (params["seed"], params["data_seed"], params["attack.seed"]) == (0, 1, None)
    changed = with_values(trials[0], {"data_seed": 3, "attack.seed": 4, "seed": 5})
    assert (changed.seed, changed.data_seed, changed.attack.seed) == (5, 3, 4)


@pytest.mark.parametrize(
    ("words", "seeds"),
    [
        (["data_seed=0", "seed=0,1,2"], [(0, 0, None), (1, 0, None), (2, 0, None)]),
        (["data_seed=0,1", "seed=5"], [(5, 0, None), (5, 1, None)]),
        (["attack.seed=0", "seeds=0,1"], [(0, None, 0), (1, None, 0)]),
        (["attack.seed=0,1", "data_seed=9"], [(0, 9, 0), (0, 9, 1)]),
    ],
)
def test_each_seed_is_set_and_swept_by_its_path(words: list[str], seeds: list[tuple[Any, ...]]) -> None:
    found = points(load_sweep(None, ["dataset=toy", "defense=tiny", "attack=badnets", *words]))
    assert [(trial.seed, trial.data_seed, trial.attack.seed) for trial in found] == seeds


def test_a_plan_counts_what_training_seeds_share(tmp_path: Path) -> None:
    words = ["dataset=toy", "defense=gssd", "attack.name=gssd_optimised", "attack.craft_on=plan"]
    counts = []
    for seeds in (["data_seed=0"], []):
        ledger = Ledger("s", Resolver(Store(tmp_path / "-".join(["s", *seeds]))))
        ledger.extend(points(load_sweep(None, [*words, *seeds, "seed=0,1,2"])))
        stages = ledger.plan().to_json()["stages"]
        names = ("latent_trigger", "gssd_optimised.simclr", "training.simclr")
        counts.append(tuple(stages[name]["unique"] for name in names))
        digests = {entry.graph.data_digest for entry in ledger.entries.values()}
        assert len(digests) == (1 if seeds else 3)
    assert counts == [(1, 1, 3), (3, 1, 3)]  # the attacker's own encoder is one for all


def test_a_picture_shows_the_poison_of_the_trial() -> None:
    trial = spec(data_seed=3, attack={"name": "badnets", "seed": 8})
    assert trial.attack is not None
    drawn = trial.attack.plan(np.arange(60) % 3, seed=trial.seed_of_data, num_classes=3)
    assert drawn.poison_ids.tolist() == poisoned(trial_graph(trial))
