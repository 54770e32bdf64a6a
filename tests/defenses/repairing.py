"""What tests of post-training defenses share: the inputs of a small trial with a clean set."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.config.trial import parse_trial
from bdtune.plugins.data import ImageSet, LabelSet
from bdtune.trials.graph import TrialGraph, trial_graph
from tests.doubles import Is

if TYPE_CHECKING:
    from bdtune.plugins.defense import DefenseInputs

SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 15, "augment": "none", "lr": 0.02}


def with_clean_set(given: DefenseInputs) -> DefenseInputs:
    """Return inputs with thirty more images of the classes of `poisoned`, none with its trigger."""
    rng = np.random.default_rng(1)
    labels = np.tile([0, 1, 2], 10)
    images = rng.integers(0, 80, (30, 8, 8, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2] += 100
    clean = Is(word="clean", value=ImageSet(images, labels, 3, (0.3,) * 3, (0.25,) * 3))
    return replace(given, clean=clean, clean_labels=Is(word="clean_labels", value=LabelSet(labels, 3)))


def graph(defense: dict[str, Any], **settings: Any) -> TrialGraph:
    """Return the graph of a trial on digits; a clean set of a tenth unless `settings` say otherwise."""
    raw = {"dataset": "digits", "attack": "badnets", "clean": 0.1, "defense": defense, **settings}
    spec, problems = parse_trial(raw)
    assert spec is not None, problems
    return trial_graph(spec)


def distinct(role: str, *graphs: TrialGraph) -> int:
    """Return how many different nodes some trials have in a role."""
    return len({found.chain[role].recipe for found in graphs})
