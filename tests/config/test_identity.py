from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from bdtune.config.expand import with_values
from bdtune.config.identity import Identity, deciding, in_words
from bdtune.config.load import load_sweep
from bdtune.config.trial import trial_id
from bdtune.plugins import registry

FILE = """
name: thresholds
trial: {dataset: digits, attack: badnets, defense: gssd, model: {name: resnet18, width: 8}}
vary: {defense.beta_nd: [0.6, 1.5]}
seeds: [0, 1]
"""
SEARCH = """
trial: {dataset: digits, attack: badnets, defense: gssd}
search: {trials: 4, space: {defense.beta_d: {uniform: [0.1, 0.2]}}}
"""


@pytest.fixture
def identity(write):
    """Return the identity of a file with settings of a command line."""
    return lambda *words, text=FILE: Identity.of(load_sweep(write(text), words))


@pytest.mark.parametrize(
    "words",
    [
        ["seed=0,1,2"],
        ["seed=7"],
        ["defense.beta_nd=3"],
        ["defense.beta_nd=0.6,3", "seed=4"],
        ["defense.alpha_c=0.1,0.2"],
        ["defense.lambda=0.1,0.2"],
        ["attack=badnets,blend"],
        ["resources.cpu=2", "retries=5", "scheduler=asha", "select=oracle_acc", "description=other"],
        ["name=other"],
        ["data_root=/elsewhere"],
    ],
)
def test_values_of_an_axis_seeds_and_how_it_is_run_make_no_other_sweep(identity, words):
    assert identity().differences(identity(*words)) == []
    assert identity(*words).differences(identity()) == []


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["attack.rate=0.05"], "attack.rate"),
        (["attack=blend"], "attack"),
        (["defense.lambda=0.5"], "defense.lambda"),
        (["defense.alpha_c=0.2"], "defense.alpha_c"),
        (["dataset.train_limit=100"], "dataset.train_limit"),
        (["model.width=4"], "model.width"),
        (["holdout=0.1"], "holdout"),
        (["data_seed=1"], "data_seed"),
        (["numerics.precision=bf16"], "numerics.precision"),
        (["evaluation.robust=pgd"], "evaluation.robust"),
        (["resources.gpu=1", "numerics.precision=fp32"], "numerics.device"),
    ],
)
def test_another_base_trial_is_another_sweep(identity, words, path):
    base = identity("numerics.precision=fp32")
    found = base.differences(identity("numerics.precision=fp32", *words))
    assert path in {difference.path for difference in found}


def test_what_one_run_varied_is_no_difference_for_later_ones(identity):
    whole = identity().extended(identity("defense.alpha_c=0.1,0.2"))
    assert whole.differences(identity("defense.alpha_c=0.4")) == []
    assert identity().differences(identity("defense.alpha_c=0.4")) != []


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["search.trials=9"], None),
        (["scheduler=asha"], None),
        (["search.seed=1"], "search.seed"),
        (["search.sampler=random"], "search.sampler"),
        (["search.metric=oracle_acc"], "search.metric"),
        (["search.space={defense.beta_d: {uniform: [0.1, 0.3]}}"], "search.space.defense.beta_d"),
        (["seed=1"], "seed"),
    ],
)
def test_a_search_is_its_space_and_its_sampler_with_its_seed(identity, words, path):
    found = identity(text=SEARCH).differences(identity(*words, text=SEARCH))
    assert {difference.path for difference in found} == ({path} if path else set())


def test_a_search_and_a_grid_are_two_sweeps(identity):
    assert identity(text=SEARCH).differences(identity()) != []


def test_the_code_of_ones_own_plugin_is_part_of_a_sweep(identity, monkeypatch):
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    toy = "{dataset: tiny, attack: badnets, defense: toy, model: linear}"
    before = identity(text=f"trial: {toy}")
    monkeypatch.setattr(registry.load("defenses", "toy"), "code_digest", "f" * 16)
    [difference] = before.differences(identity(text=f"trial: {toy}"))
    assert difference.path.startswith("defense.")


def test_deciding_settings_are_those_of_the_trials_id(write):
    trial = load_sweep(write(FILE)).trial
    for values in (
        {"defense.beta_nd": 1},
        {"attack": None},
        {"data_root": "/x"},
        {"seed": 3},
        {"model.width": 8},
    ):
        other = with_values(trial, values)
        assert (deciding(trial) == deciding(other)) == (trial_id(trial) == trial_id(other))
    assert deciding(trial)["defense.lambda"] == 0.75
    assert deciding(trial)["attack"] == "badnets"


def test_differences_are_told_in_words_plugins_before_their_knobs(identity, monkeypatch):
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parents[1] / "plugins"))
    found = identity().differences(
        identity("dataset=tiny", "attack.rate=0.05", "holdout=0.1", "model.width=4")
    )
    text = in_words(found)
    assert text.startswith("dataset=digits, here tiny; ")
    assert text.endswith("and 1 more")
    assert len(found) == 4


def test_an_identity_is_the_same_after_it_was_written_as_json(identity):
    own = identity()
    assert Identity(**json.loads(json.dumps(dataclasses.asdict(own)))).differences(own) == []
