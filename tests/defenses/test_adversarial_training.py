"""Adversarial training as a defense: its chain, its twin, its cost."""

from __future__ import annotations

from typing import Any

import bdtune
from bdtune.config.graph import trial_graph
from bdtune.config.trial import parse_trial
from bdtune.training.adversarial import PGD
from bdtune.training.supervised import Supervised


def graph(**knobs: Any) -> Any:
    raw = {"dataset": "digits", "attack": "badnets", "model": {"name": "resnet18", "width": 4}}
    spec, faults = parse_trial({**raw, "defense": {"name": "adversarial_training", **knobs}})
    assert not faults
    return trial_graph(spec)


def test_it_trains_on_everything_as_no_defense_does() -> None:
    found = graph()
    assert [node.name for node in found.chain["classifier"].walk()] == ["all_samples", "adversarial_training"]
    twin = trial_graph(found.reference)
    assert twin.chain["subset"].recipe == found.chain["subset"].recipe
    assert twin.chain["classifier"].stage == Supervised(epochs=100, milestones=(0.5, 0.75, 0.9))
    assert found.diagnose is None


def test_the_attacks_knobs_do_not_touch_the_twin() -> None:
    one, other = graph(), graph(train={"pgd": {"eps": "4/255"}, "attack_bn": "train"})
    assert one.reference == other.reference
    assert one.chain["classifier"].recipe != other.chain["classifier"].recipe


def test_its_epochs_are_ticks_that_a_scheduler_can_judge() -> None:
    found = graph(train={"epochs": 7})
    assert found.epochs == 7
    assert list(found.judged) == [found.chain["classifier"].recipe]


def test_it_has_the_papers_defaults() -> None:
    train = bdtune.defense("adversarial_training").train
    assert train.pgd == PGD(eps=8 / 255, step=2 / 255, steps=10, random_start=True)
    assert (train.epochs, train.batch_size, train.optimizer, train.lr) == (100, 128, "sgd", 0.1)
    assert (train.momentum, train.weight_decay, train.augment) == (0.9, 5e-4, "crop_flip")
    assert train.attack_bn == "eval"
