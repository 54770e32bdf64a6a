from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from bdtune.report.groups import Group, grouped, label, rank, varying


def test_groups_are_settings_references_first_then_by_value(sweep):
    groups = grouped(sweep.trials)
    assert [group.is_baseline for group in groups] == [True, False, False, False]
    assert [group.params.get("defense.beta_nd") for group in groups] == [None, 0.6, 1.5, 3.0]
    assert [trial.id for trial in groups[3].trials] == ["good0", "good1"]
    assert varying(groups) == ["defense.beta_nd"]


def test_the_order_does_not_depend_on_which_trial_ended_first(sweep):
    expected = [[trial.id for trial in group.trials] for group in grouped(sweep.trials)]
    for order in itertools.islice(itertools.permutations(sweep.trials), 0, 40_000, 997):
        assert [[trial.id for trial in group.trials] for group in grouped(order)] == expected


def test_means_are_over_training_seeds_and_each_poisoned_set_has_its_own_row(make_trial):
    def drawn(data_seed):
        knobs = {"defense.beta_nd": 0.6, "data_seed": data_seed}
        return [make_trial(f"{data_seed}-{seed}", seed, knobs=knobs) for seed in (0, 1, 2)]

    groups = grouped([*drawn(0), *drawn(4)])
    assert [group.params["data_seed"] for group in groups] == [0, 4]
    assert [group.stat("acc").n for group in groups] == [3, 3]
    assert varying(groups) == ["data_seed"]
    [together] = grouped(drawn(None))
    assert together.stat("acc").n == 3


def test_mean_and_sample_deviation(sweep):
    stat = grouped(sweep.trials)[3].stat("acc")
    assert stat.mean == pytest.approx(0.97)
    assert stat.std == pytest.approx(math.sqrt(2e-4))
    assert stat.n == 2
    assert stat.text() == "0.970±0.014"


def test_one_seed_has_no_spread_and_failed_seeds_do_not_count(sweep):
    half = grouped(sweep.trials)[2]
    assert half.stat("acc").text() == "0.990"
    assert half.status == "1 done, 1 diverged"
    assert not half.complete
    assert half.stat("missing") is None


def test_numbers_that_are_not_finite_are_left_out(make_trial):
    [group] = grouped([make_trial("a", 0), replace(make_trial("b", 1), metrics={"acc": math.nan})])
    assert group.stat("acc").n == 1


def test_did_the_attack_take(make_trial, make_reference):
    weak = {"acc": 0.9, "asr": 0.0, "undefended/asr": 0.5}
    [group] = grouped([replace(make_trial("a"), metrics=weak)])
    assert not group.attack_took
    [group] = grouped([replace(make_trial("a"), metrics=weak, asr_band=None)])
    assert group.attack_took
    assert not grouped([make_reference("r", asr=0.9)])[0].attack_took


def test_a_knob_that_only_some_settings_have_varies(make_trial):
    groups = grouped(
        [make_trial("a"), make_trial("b", knobs={"defense.beta_nd": 0.6, "defense.extra": None})]
    )
    assert varying(groups) == ["defense.extra"]
    labels = {label(group, ["defense.extra"], {"defense.extra": "extra"}) for group in groups}
    assert labels == {"", "extra=none"}


def test_values_of_any_type_can_be_ordered():
    values = ["b", 2, None, True, 0.5, "a", False]
    assert sorted(values, key=rank) == [None, False, 0.5, True, 2, "a", "b"]


def test_knobs_of_another_plugin_do_not_vary():
    knobs = {"badnets": {"attack.size": 3}, "blend": {"attack.ratio": 0.1}}
    found = [
        Group({"attack": attack, **own, "defense.beta": beta, "seed": 0}, (), False)
        for attack, own in knobs.items()
        for beta in (1, 2)
    ]
    assert varying(found) == ["attack", "defense.beta"]
    found.append(Group({"attack": "blend", "attack.ratio": 0.2, "defense.beta": 1, "seed": 0}, (), False))
    assert varying(found) == ["attack", "defense.beta", "attack.ratio"]


def test_knobs_of_another_network_of_a_plugin_do_not_vary():
    own = {"resnet_s": {"defense.teacher.model.stem": "auto"}, "vgg_s": {}}
    found = [
        Group({"defense": "lfd", "defense.teacher.model": model, **knobs, "defense.beta": beta}, (), False)
        for model, knobs in own.items()
        for beta in (1, 2)
    ]
    assert varying(found) == ["defense.teacher.model", "defense.beta"]
