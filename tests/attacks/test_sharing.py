"""What attacks train is computed once for all rates, seeds and defenses of a sweep: counted."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from bdtune.config.trial import parse_trial
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.plugins import registry
from bdtune.reading.resident import InProcess
from bdtune.testing.small import is_trained, quick
from bdtune.trials.graph import trial_graph

TRAINED = [name for name in registry.names("attacks") if is_trained(registry.load("attacks", name))]
TRAINED.remove("record")  # it reads what it needs
SHORT = {"epochs": 1, "optimizer": "adam", "lr": 0.01}


def trial(name, rate, seed, **defense):
    raw = {
        "dataset": {"name": "digits", "train_limit": 80, "test_limit": 30},
        "attack": {"name": name, "rate": rate, "rate_basis": "target_class", "target": 1}
        | quick(registry.load("attacks", name)),
        "defense": {"name": "none", "train": SHORT, **defense},
        "model": {"name": "resnet_s", "stem_width": 2},
        "numerics": {"device": "cpu", "precision": "fp32"},
        "seed": seed,
    }
    spec, faults = parse_trial(raw)
    assert not faults
    return trial_graph(spec)


def test_the_attacks_are_those_that_train():
    assert {
        "dynamic",
        "gssd_optimised",
        "issba",
        "l2_invisible",
        "label_consistent",
        "trojan",
    } <= set(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_rates_and_seeds_share_what_the_attack_trains(name):
    graphs = [trial(name, rate, seed) for rate, seed in itertools.product((0.5, 1.0), (0, 1))]
    stages = Counter(node.name for node in {r: n for g in graphs for r, n in g.stages.items()}.values())
    assert stages.pop("supervised") == stages.pop("evaluate") == 4
    stages.pop("all_samples")
    more = {
        "issba_images": 2,
        "iab_images": 2,
        "mixtures": 3,
    }  # training, test, covers
    assert stages == {stage: more.get(stage, 1) for stage in stages}
    assert stages


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trojan", "label_consistent", "dynamic"])
def test_a_sweep_computes_them_once(name, tmp_path):
    executor = Executor(Store(tmp_path), InProcess())
    computed = Counter()
    for rate, seed in itertools.product((0.5, 1.0), (0, 1)):
        for event in executor.walk(trial(name, rate, seed).goals):
            computed[event.node.name] += event.what == "computed"
    assert computed["supervised"] == computed["evaluate"] == 4
    own = set(computed) - {"supervised", "evaluate", "all_samples", "iab_images"}
    assert own
    assert {computed[stage] for stage in own} == {1}
    assert all(manifest.size > 0 for manifest in executor.store.entries() if manifest.name in own)
