"""What `import bdtune` gives: plugins by name, checked, as README shows them."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune
from bdtune.errors import ConfigError


def test_an_attack_plans_applies_and_triggers():
    images = np.random.default_rng(0).integers(0, 256, (50, 16, 16, 3), np.uint8)
    labels = np.arange(50) % 10
    before = images.copy()
    attack = bdtune.attack("badnets", rate=0.1, target=3)
    plan = attack.plan(labels, seed=0)
    assert len(plan.poison_ids) == 5
    assert len(plan.cover_ids) == 0
    assert (plan.labels[plan.poison_ids] == 3).all()
    ids = np.arange(50)
    poisoned = attack.apply(images, ids, plan)
    changed = (poisoned != images).any(axis=(1, 2, 3))
    assert set(np.flatnonzero(changed)) <= set(plan.poison_ids)
    assert (attack.trigger(images, ids) != images).any()
    assert (images == before).all()


def test_the_other_plugins_come_by_name_too():
    digits = bdtune.dataset("digits", train_limit=20, test_limit=10).load("train")
    assert digits.images.shape == (20, 16, 16, 3)
    assert bdtune.defense("gssd", beta_nd=3.0).beta_nd == 3.0
    network = bdtune.model("resnet18", width=4).build(10, (16, 16, 3))
    assert network.head.out_features == 10


def test_wrong_names_and_knobs_are_told():
    with pytest.raises(ConfigError, match="Did you mean 'badnets'"):
        bdtune.attack("badnet")
    with pytest.raises(ValidationError, match="rate"):
        bdtune.attack("badnets", rate=2)
    with pytest.raises(ValidationError, match="ratio") as misspelt:
        bdtune.attack("badnets", rte=0.1, ratio=0.1)
    notes = misspelt.value.__notes__
    assert notes[0].startswith("rte: expected a knob of badnets")
    assert notes[0].endswith("Did you mean 'rate'?")
    assert len(notes) == 2


def test_what_a_notebook_prints_fits_in_a_line():
    digits = bdtune.dataset("digits", train_limit=20).load("train")
    assert repr(digits) == "Split(20 images of 16 x 16, 10 classes)"
    plan = bdtune.attack("badnets", count=3).plan(digits.labels, seed=1)
    assert repr(plan) == f"PoisonPlan(3 of 20 images poisoned; seed {plan.seed})"
    covered = bdtune.attack("wanet", count=2, cover_count=4).plan(digits.labels, seed=1)
    assert "4 with the trigger and their own label" in repr(covered)


def test_every_public_name_is_documented():
    for name in ("attack", "dataset", "defense", "model"):
        assert inspect.getdoc(getattr(bdtune, name))
    assert bdtune.__version__
