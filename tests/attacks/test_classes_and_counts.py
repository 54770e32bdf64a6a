"""Counts in the place of rates, chosen source classes and all-to-all: what the contract tests do not say."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune
from bdtune.config.expand import points
from bdtune.config.load import load_sweep, load_trial
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict
from bdtune.errors import UserError
from bdtune.poisoning.train_sources import FitLabels, TruthSource
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.report.pictures import _caption
from bdtune.testing.small import NUMERICS, shown
from tests.trained import quarters

LABELS = np.arange(1000) % 10


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("badnets", {"rate": 0.1, "count": 5}, "rate 0.1 and count 5 say the same thing"),
        ("badnets", {"rate": None}, "either rate or count is needed"),
        ("badnets", {"count": 0}, "greater than or equal to 1"),
        ("badnets", {"count": 2.5}, "valid integer"),
        ("adap_blend", {"cover_rate": 0.1, "cover_count": 5}, "cover_rate 0.1 and cover_count 5"),
        ("wanet", {"cross_ratio": 2.0, "cover_count": 5}, "cross_ratio 2.0 and cover_count 5"),
        ("wanet", {"cross_ratio": None}, "either cross_ratio or cover_count"),
        ("wanet", {"cover_count": -1}, "greater than or equal to 0"),
        ("wanet", {"dialect": "backdoorbench", "count": 5}, "first rows of every batch.*leave count out"),
        ("dynamic", {"dialect": "backdoorbench", "cover_count": 5}, "leave cover_count out"),
        ("dynamic", {"dialect": "backdoorbench", "source_classes": (1,)}, "leave source_classes out"),
        ("blend", {"source_classes": ()}, "at least 1 item"),
        ("blend", {"source_classes": (1, 1)}, "names a class twice"),
        ("blend", {"source_classes": (0, 1)}, "has the target, 0"),
        ("blend", {"source_classes": (-1,)}, "greater than or equal to 0"),
        ("blend", {"all_to_all": True, "rate_basis": "non_target"}, "no single target class"),
        ("blend", {"all_to_all": True, "dialect": "backdoorbox"}, "has all_to_all: false"),
        ("l2_invisible", {"all_to_all": True}, "the perturbation drives its units"),
    ],
)
def test_knobs_that_do_not_agree(name, knobs, message):
    with pytest.raises(ValidationError, match=message):
        bdtune.attack(name, **knobs)


@pytest.mark.parametrize(
    ("name", "knobs", "told"),
    [
        (
            "badnets",
            {"count": 901},
            "count: expected at most the 900 images that are not of the target class, got 901",
        ),
        (
            "badnets",
            {"count": 201, "source_classes": (1, 3)},
            "count: expected at most the 200 images of classes 1 and 3, got 201",
        ),
        (
            "badnets",
            {"rate": 0.2, "source_classes": (5,)},
            "rate: expected at most the 100 images of class 5, got 0.2 of 1000 (dataset) = 200",
        ),
        ("badnets", {"source_classes": (1, 12)}, "source_classes: expected classes from 0 to 9, got [1, 12]"),
        (
            "sig",
            {"count": 101},
            "count: expected at most the 100 images of class 0, the only ones "
            "a clean-label attack may change, got 101",
        ),
        (
            "wanet",
            {"count": 400, "cross_ratio": 2},
            "cross_ratio: expected poison and cover rows among the 900 images that are not of the target "
            "class, got 400 poison and 800 cover rows",
        ),
    ],
)
def test_requests_that_the_data_set_cannot_meet(name, knobs, told):
    (problem,) = bdtune.attack(name, **knobs).check(10, LABELS)
    assert str(problem) == told


def test_cover_rows_of_wanet_follow_the_count():
    counts = [
        (len(plan.poison_ids), len(plan.cover_ids))
        for knobs in ({"count": 7, "cross_ratio": 1.5}, {"count": 7, "cover_count": 3}, {"cover_count": 3})
        for plan in [bdtune.attack("wanet", **knobs).plan(LABELS, seed=0)]
    ]
    assert counts == [(7, 10), (7, 3), (100, 3)]
    assert bdtune.attack("wanet", cover_count=3).covers_test
    assert not bdtune.attack("wanet", cover_count=0).covers_test


@pytest.mark.parametrize("dialect", ["canonical", "backdoorbench", "backdoorbox"])
def test_a_count_takes_the_rows_of_the_rate_that_means_as_many(dialect):
    by_rate, by_count = (
        bdtune.attack("badnets", dialect=dialect, **knobs).plan(LABELS, seed=3)
        for knobs in ({"rate": 0.05}, {"count": 50})
    )
    assert np.array_equal(by_rate.poison_ids, by_count.poison_ids)


def test_source_classes_decide_alone_who_is_poisoned():
    one, other = (
        bdtune.attack("blend", source_classes=order, include_target_class=include)
        for order, include in (((1, 3), True), ((3, 1), False))
    )
    assert one.identity() == other.identity()
    found = bdtune.attack("blend", all_to_all=True, source_classes=(0, 3), count=50).plan(LABELS, seed=0)
    assert set(found.labels[found.poison_ids]) == {1, 4}


def test_success_is_counted_on_the_source_classes():
    data = shown(quarters(40), np.arange(40) % 4)
    attack = bdtune.attack("badnets", source_classes=(1, 3), target=2, count=5)
    found = TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS).load(InProcess(None), {})
    assert set(found.labels) == {1, 3}
    assert len(found.labels) == 20
    assert set(found.goals) == {2}
    observed = FitLabels(dataset=data, attack=attack).load(InProcess(None), {}).labels
    truth = TruthSource(dataset=data, attack=attack).load(InProcess(None), {})
    assert set(truth.labels[truth.observed != truth.labels]) == {1, 3}
    assert (observed == 2).sum() == 15


def test_the_generators_of_the_input_aware_attack_learn_each_classs_own_goal():
    from bdtune.attacks.dynamic.pattern import _Step

    data = shown(quarters(8), np.arange(8) % 4).num_classes
    labels = np.arange(4)
    import torch

    class Data:
        num_classes = data

    step = _Step(None, None, None, Data, None, None)
    assert step._wanted(torch.from_numpy(labels)).tolist() == [1, 2, 3, 0]
    assert _Step(None, None, None, Data, None, 2)._wanted(torch.from_numpy(labels)).tolist() == [2] * 4


def test_the_caption_names_count_and_classes():
    attack = bdtune.attack("badnets", count=50, source_classes=(1, 3))
    caption = _caption(attack, attack.plan(LABELS, seed=0))
    assert caption.startswith("50 of 1000 images poisoned, target 0 from classes 1 and 3")


# --- in files and on the command line

TRIAL = ["dataset=digits", "defense=none", "model=resnet18"]


@pytest.mark.slow
def test_a_trial_is_read_as_it_was_written():
    raw = {
        "dataset": "digits",
        "attack": {"name": "wanet", "count": 5, "cover_count": 3, "source_classes": [1, 2]},
    }
    spec, faults = parse_trial(raw)
    assert not faults
    assert spec_from_dict(spec_to_dict(spec)) == spec
    assert spec.attack.rate is None


def test_a_count_takes_the_place_of_a_presets_rate():
    spec = load_trial(None, [*TRIAL, "attack={preset: aabl/wanet, count: 40, cover_count: 20}"])
    assert (spec.attack.rate, spec.attack.count) == (None, 40)
    assert (spec.attack.cross_ratio, spec.attack.cover_count) == (None, 20)


def test_counts_may_be_an_axis_over_a_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text("trial: {dataset: digits, attack: {name: badnets, rate: 0.05}}\n")
    found = load_sweep("s.yaml", ["attack.count=20,40"])
    assert [(trial.attack.rate, trial.attack.count) for trial in points(found)] == [(None, 20), (None, 40)]
    again = load_sweep("s.yaml", ["attack.count=20", "grid={attack.rate: [0.1, 0.2]}"])
    assert [(trial.attack.rate, trial.attack.count) for trial in points(again)] == [(0.1, None), (0.2, None)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack={name: badnets, rate: 0.1, count: 5}"], "say the same thing: leave one out"),
        (["attack=badnets", "attack.rate=0.1", "attack.count=5"], "expected attack.rate or attack.count"),
        (["attack=badnets", "attack.count=100000"], "attack.count: expected at most the "),
        (["attack={name: sig, all_to_all: true}"], "A clean-label attack changes no label"),
        (
            ["attack={name: sig, source_classes: [1]}"],
            "A clean-label attack poisons images of its target class",
        ),
        (["attack={name: composite, source_classes: [1]}"], "set `classes`"),
        (["attack={name: record, path: nowhere, all_to_all: true}"], "is the record's"),
    ],
)
def test_what_is_said(words, said):
    with pytest.raises(UserError) as caught:
        load_trial(None, [*TRIAL, *words])
    assert said in str(caught.value)
