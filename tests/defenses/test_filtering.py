"""What filters of training rows share: keeping, the random control, metrics and pictures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from bdtune.defending.filter_report import draw_roc, draw_scores, filter_metrics
from bdtune.defending.filtering import Kept, RandomRemoval
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import LabelSet, Truth

CTX = Context(seed=7)
LABELS = LabelSet(np.arange(60) % 3, 3)


def removal(ids):
    flagged = np.zeros(60, bool)
    flagged[ids] = True
    return Artefact({"flagged": flagged})


def truth():
    """Sixty rows of three classes: of class 0 seven rows are poison, five relabelled; three cover rows."""
    observed = LABELS.labels
    labels, role = observed.copy(), np.zeros(60, np.uint8)
    role[:21:3] = 1
    labels[:15:3] = 2
    role[[1, 4, 7]] = 2
    return Truth(labels, observed, role, 0)


def test_what_is_kept_is_all_but_the_flagged_rows():
    kept = Kept().run(CTX, removal=removal([0, 5, 59]), data=LABELS).arrays
    assert kept["ids"].tolist() == [row for row in range(60) if row not in {0, 5, 59}]
    assert kept["labels"].tolist() == [row % 3 for row in kept["ids"]]


def test_removing_nothing_is_the_undefended_subset():
    kept, everything = Kept().run(CTX, removal=removal([]), data=LABELS), AllSamples().run(CTX, data=LABELS)
    assert digest_of(kept.arrays, kept.info) == digest_of(everything.arrays, everything.info)


def test_the_control_removes_as_many_of_each_class_at_random():
    suspects = removal([0, 3, 6, 9, 1])
    drawn = [
        RandomRemoval().run(Context(seed=seed), suspects=suspects, data=LABELS).arrays["flagged"]
        for seed in range(20)
    ]
    for flagged in drawn:
        assert np.bincount(LABELS.labels[flagged], minlength=3).tolist() == [4, 1, 0]
    assert len({flagged.tobytes() for flagged in drawn}) > 15
    often = np.mean(drawn, 0)
    assert often[[0, 3, 6, 9]].mean() < 0.5  # not the suspects again
    again = RandomRemoval().run(Context(seed=0), suspects=suspects, data=LABELS).arrays["flagged"]
    assert np.array_equal(again, drawn[0])


def test_metrics_by_hand():
    flagged = np.zeros(60, bool)
    flagged[[0, 3, 6, 15, 21, 24, 1]] = True  # four poisoned, two clean of the target class, one cover row
    scores = flagged + np.linspace(0, 0.5, 60)
    found = filter_metrics(flagged, scores, truth())
    assert found["tpr"] == 4 / 7
    assert found["fpr"] == 3 / 53
    assert found["precision"] == 4 / 7
    assert found["tpr_relabelled"] == 3 / 5
    assert found["fpr_target"] == 2 / 13
    assert found["cover_flagged"] == 1 / 3
    assert found["removed"] == 7 / 60
    assert found["poison_share"] == 7 / 60
    assert (found["poison_left"], found["clean_removed"], found["target_removed"]) == (3, 3, 6)
    assert found["undefined"] == 0
    poison, others = scores[:21:3], np.delete(scores, np.arange(0, 21, 3))
    assert found["auroc"] == pytest.approx(np.mean(poison[:, None] > others))
    assert found["auroc_target"] == pytest.approx(np.mean(poison[:, None] > scores[21::3]))


def test_removing_the_whole_target_class_looks_good_only_from_afar():
    flagged = LABELS.labels == 0
    found = filter_metrics(flagged, flagged.astype(float), truth())
    assert found["tpr"] == 1
    assert found["auroc"] > 0.85
    assert (found["fpr_target"], found["auroc_target"]) == (1, 0.5)


def test_permuted_rows_change_nothing():
    rng, given = np.random.default_rng(0), truth()
    flagged, scores = rng.random(60) < 0.3, rng.random(60)
    order = rng.permutation(60)
    moved = Truth(given.labels[order], given.observed[order], given.role[order], given.target)
    before, after = (
        filter_metrics(flagged, scores, given),
        filter_metrics(flagged[order], scores[order], moved),
    )
    assert before == pytest.approx(after)


def test_without_poison_or_target_little_is_defined():
    given = truth()
    clean = Truth(given.observed, given.observed, np.zeros(60, np.uint8), None)
    found = filter_metrics(np.zeros(60, bool), np.arange(60.0), clean)
    defined = {name: value for name, value in found.items() if not math.isnan(value)}
    zeros = ["fpr", "poison_share", "removed", "poison_left", "clean_removed", "undefined"]
    assert defined == dict.fromkeys(zeros, 0.0)


def test_the_pictures_show_roles_curves_and_flags():
    given, scores = truth(), np.arange(60.0) % 7
    scores[0] = np.nan
    left, right = Figure().subplots(1, 2)
    draw_scores(left, scores, given, "score")
    draw_roc(right, scores, scores > 5, given)
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["clean", "cover", "poisoned"]
    names = [text.get_text() for text in right.get_legend().get_texts()]
    assert [name.partition(":")[0] for name in names] == ["all rows", "target class", "flagged", "chance"]
    curve = right.get_lines()[0].get_xydata()
    assert curve[0].tolist() == [0, 0]
    assert curve[-1].tolist() == [1, 1]


def test_pictures_of_equal_scores_and_of_a_clean_run():
    given = truth()
    clean = Truth(given.observed, given.observed, np.zeros(60, np.uint8), None)
    for scores in (np.zeros(60), np.full(60, -1.0)):
        left, right = Figure().subplots(1, 2)
        draw_scores(left, scores, clean, "score", log=True)
        draw_roc(right, scores, np.zeros(60, bool), clean)
        assert len(right.get_lines()) == 1  # the diagonal
