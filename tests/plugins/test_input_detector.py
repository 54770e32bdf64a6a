from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import UserError
from bdtune.plugins.data import GoalSet, LabelSet
from bdtune.plugins.input_detector import Detection
from bdtune.poisoning.clean_sources import CleanTestInputs, CleanTestLabels
from bdtune.poisoning.triggered_sources import TriggeredInputs, TriggeredLabels
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph

TEST_LABELS = (CleanTestLabels, TriggeredLabels)
TEST_IMAGES = (CleanTestInputs, TriggeredInputs)


def trial(**settings: Any) -> Any:
    raw = {"dataset": "digits", "attack": "badnets", "defense": "strip", "clean": 0.2, **settings}
    return parse_trial(raw)


def graph(**settings: Any) -> Any:
    spec, problems = trial(**settings)
    assert spec is not None, problems
    return trial_graph(spec)


def shown(scores: list[float], predicted: list[int]) -> Artefact:
    found = {"scores": np.array(scores), "predicted": np.array(predicted)}
    return Artefact({"ids": np.arange(len(scores)), **found})


def judged(threshold: float, **inputs: Any) -> dict[str, float]:
    limit = Artefact({"threshold": np.array([threshold])})
    return dict(Detection().run(Context(), threshold=limit, **inputs).info)


def test_counts_of_the_hand_example() -> None:
    # scores 3 and 2 are of triggered inputs, 1 and 2 of clean ones; all clean ones are right, one is fooled
    found = judged(
        2.0,
        clean=shown([1, 2], [1, 2]),
        clean_labels=LabelSet(np.array([1, 2]), 3),
        triggered=shown([3, 2, 9], [0, 2, 0]),
        triggered_labels=GoalSet(np.array([1, 2, 0]), 3, np.zeros(3, int)),
    )
    assert found["auroc"] == 0.875
    assert found["f1"] == pytest.approx(2 / 3)
    assert (found["frr"], found["far"]) == (0.0, 0.5)  # 2 is not above 2; the image of class 0 does not count
    assert (found["accepted_acc"], found["accepted_asr"]) == (1.0, 0.0)
    assert found["restricted_auroc"] == 1.0
    assert found["restricted_share"] == 0.75


def test_without_an_attack_only_false_alarms_are_counted() -> None:
    clean = shown([1, 5], [1, 1])
    found = judged(2.0, clean=clean, clean_labels=LabelSet(np.array([1, 2]), 3))
    assert found == {"frr": 0.5, "accepted_acc": 0.5}
    assert set(graph(attack=None).chain["detection"].inputs) == {"threshold", "clean", "clean_labels"}


def test_nothing_but_the_judgement_reads_test_images_or_their_labels() -> None:
    made = graph()
    for name, node in made.chain.items():
        for each in node.walk():
            read = [type(value) for value in each.inputs.values()]
            assert not (set(TEST_LABELS) & set(read)) or each.name == "detection"
            if set(TEST_IMAGES) & set(read):
                assert name == "detection", f"'{name}' depends on test images"


def test_clean_and_triggered_inputs_are_scored_by_the_stages_of_the_threshold() -> None:
    made = graph()
    of_clean, of_triggered = (made.chain["detection"].inputs[name] for name in ("clean", "triggered"))
    own = made.chain["scores"]
    for scores in (of_clean, of_triggered):
        assert isinstance(scores, Node)
        assert scores.stage == own.stage
        assert scores.inputs["entropies"].stage == own.inputs["entropies"].stage
    assert made.roles[of_clean.recipe] == "detection.clean"


def test_inputs_are_shown_without_labels() -> None:
    made = graph()
    resident = InProcess()
    for kind in ("clean", "triggered"):
        entropies = made.chain["detection"].inputs[kind].inputs["entropies"]
        data = entropies.inputs["data"].load(resident, {})
        labels = made.chain["detection"].inputs[f"{kind}_labels"].load(resident, {})
        assert type(data).__name__ == "ImageSet"
        assert len(data) == len(labels) == 450
        assert (data.labels == -1).all()


def test_a_missing_clean_set_is_an_error_with_what_to_do() -> None:
    spec, problems = trial(clean=0)
    assert spec is None
    assert "expected images that are known to be clean" in str(problems[0])
    assert "Set clean: 0.05" in str(problems[0])


def test_a_detector_without_a_threshold_is_an_error(monkeypatch) -> None:
    cls = type(bdtune.defense("strip"))
    build = cls.build
    without = lambda self, given: {k: v for k, v in build(self, given).items() if k != "threshold"}  # noqa: E731
    monkeypatch.setattr(cls, "build", without)
    with pytest.raises(UserError, match="expected a node 'threshold' in the chain of 'strip'"):
        graph(seed=77)
