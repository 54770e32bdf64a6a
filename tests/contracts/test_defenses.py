"""Every defense passes these by being there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bdtune.plugins import registry
from bdtune.testing.defenses import (
    CHECKS,
    CLASSES,
    EACH,
    Unseen,
    check_epochs,
    check_truth_is_not_read,
    observed_set,
    poisoned_set,
)
from bdtune.testing.described import check_described

DEFENSES = registry.names("defenses")


QUICK = [check for check in CHECKS if check is not check_truth_is_not_read]


@pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", DEFENSES)
def test_every_defense_keeps_its_promises(name, check):
    check(name)


@pytest.mark.parametrize("name", DEFENSES)
@pytest.mark.parametrize("pipeline", ["resident", pytest.param("stream", marks=pytest.mark.slow)])
def test_no_defense_reads_the_truth(name, pipeline):
    check_truth_is_not_read(name, (pipeline,))


@pytest.mark.parametrize("name", DEFENSES)
def test_describes_itself(name):
    check_described("defenses", name)


def test_the_undefended_baseline_of_a_joint_training_has_its_epochs():
    check_epochs("abl", form="joint")


def test_the_shuffled_truth_shows_in_the_plan_alone():
    sets = [poisoned_set("resident", seed) for seed in (0, 1)]
    assert all(np.array_equal(data.images, observed_set().images) for data in sets)
    assert all(np.array_equal(data.labels, observed_set().labels) for data in sets)
    plans = [Unseen(rate=0.1).plan(observed_set().labels, seed=seed) for seed in (0, 1)]
    assert not np.array_equal(plans[0].poison_ids, plans[1].poison_ids)
    streamed = poisoned_set("stream", 0).images_at(np.arange(CLASSES * EACH))
    assert np.array_equal(streamed, observed_set().images)


def test_making_defenses_and_chains_loads_no_torch():
    code = (
        "import sys, bdtune; from bdtune.plugins import registry\n"
        "from bdtune.plugins.defense import DefenseInputs\n"
        "from bdtune.engine.input_source import PluginSource\n"
        "from bdtune.plugins.handles import CLEAN, CLEAN_LABELS, FIT, LABELS\n"
        "model = PluginSource(plugin=bdtune.model('resnet18'))\n"
        "given = DefenseInputs(FIT, LABELS, model, clean=CLEAN, clean_labels=CLEAN_LABELS)\n"
        "for name in registry.names('defenses'):\n"
        "    bdtune.defense(name).build(given)\n"
        "heavy = {'torch', 'matplotlib', 'ray', 'mlflow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
