"""Activation Clustering against slow plain versions, rules by hand, and what a sweep shares."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from pydantic import ValidationError
from threadpoolctl import ThreadpoolController

import bdtune
from bdtune.defenses.activation_clustering.clusters import (
    Clustered,
    Groups,
    Reduced,
    mean_silhouette,
    nearer_elsewhere,
    parted,
    suspicion,
)
from bdtune.defenses.activation_clustering.report import smallest_shares
from bdtune.defenses.activation_clustering.verdicts import Reclassified, Relabelled, Suspects
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import LabelSet, Truth
from bdtune.plugins.defense import Diagnose, diagnosis
from tests.doubles import Is

if TYPE_CHECKING:
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=3)


def penultimate(features: Any, classes: int) -> Artefact:
    features = np.asarray(features, np.float32)
    return Artefact({"features": features, "logits": np.zeros((len(features), classes), np.float32)})


def grouped(labels: Any) -> Artefact:
    return Artefact({"groups": np.asarray(labels, np.int64)})


def reduced(features: Any, labels: Any, classes: int = 1, **knobs: Any) -> dict[str, np.ndarray]:
    stage = Reduced(**{"method": "pca", "components": 2, **knobs})
    found = stage.run(CTX, penultimate=penultimate(features, classes), groups=grouped(labels))
    return dict(found.arrays)


def clustered(features: Any, labels: Any, classes: int = 1, **knobs: Any) -> dict[str, np.ndarray]:
    count = knobs.pop("clusters", 2)
    arrays = Artefact(reduced(features, labels, classes, **knobs))
    seen = penultimate(features, classes)
    stage = Clustered(clusters=count, restarts=10, sampled=2000)
    return dict(stage.run(CTX, reduced=arrays, groups=grouped(labels), penultimate=seen).arrays)


def planted(poison: int, clean: int = 200, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of classes apart from one another; the last rows have label 0 and lie apart from all."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), clean), np.zeros(poison, int)])
    rows = rng.standard_normal((len(labels), 12))
    rows[np.arange(len(labels)), labels] += 6
    rows[len(labels) - poison :, 5] += 8
    return rows, labels


@pytest.mark.parametrize("method", ["pca", "ica"])
def test_components_do_not_depend_on_the_threads_of_blas(method: str) -> None:
    rows = np.random.default_rng(0).standard_normal((1200, 256)) * np.linspace(1, 9, 256)
    found = []
    for threads in (1, 2):
        with ThreadpoolController().limit(limits=threads, user_api="blas"):
            found.append(reduced(rows, np.zeros(1200, int), method=method, components=10)["reduced"])
    assert np.array_equal(*found)


def test_components_are_those_of_the_decomposition() -> None:
    rows = np.random.default_rng(0).standard_normal((40, 6)) * np.array([5, 4, 3, 1, 1, 1])
    moved = rows - rows.mean(0)
    _, _, vectors = np.linalg.svd(moved, full_matrices=False)
    found = reduced(rows, np.zeros(40, int))["reduced"]
    np.testing.assert_allclose(np.abs(found), np.abs(moved @ vectors[:2].T), rtol=1e-4, atol=1e-4)


def test_independent_components_are_unmixed() -> None:
    rng = np.random.default_rng(1)
    sources = rng.uniform(-1, 1, (2000, 2))
    found = reduced(sources @ np.array([[2.0, 1], [1, 1]]), np.zeros(2000, int), method="ica")
    match = np.abs(np.corrcoef(found["reduced"].T, sources.T)[:2, 2:])
    assert match.max(0).min() > 0.99
    assert found["converged"].all()
    noise = reduced(rng.standard_normal((30, 12)), np.zeros(30, int), method="ica", components=10)
    assert not noise["converged"].all()  # few gaussian rows have no independent components


def test_features_may_be_clustered_as_they_are() -> None:
    rows = np.random.default_rng(2).standard_normal((20, 6)).astype(np.float32)
    assert np.array_equal(reduced(rows, np.zeros(20, int), method="none")["reduced"], rows)


def test_classes_with_few_rows_or_equal_ones_are_left_out() -> None:
    rng = np.random.default_rng(3)
    labels = np.array([0] * 12 + [1] * 5 + [2] * 6 + [3] * 12)
    rows = rng.standard_normal((35, 8))
    rows[labels == 3] = 1
    found = clustered(rows, labels, 5, components=5)
    assert reduced(rows, labels, 5, components=5)["done"].tolist() == [True, False, True, False, False]
    assert found["sizes"].sum(1).tolist() == [12, 0, 6, 0, 0]
    assert set(found["clusters"][labels == 1]) == {-1}
    assert set(found["scores"][labels == 1]) == {-1.0}
    assert clustered(rows, labels, 5, components=5, clusters=6)["sizes"].sum(1).tolist() == [12, 0, 0, 0, 0]


def test_two_means_find_the_best_partition() -> None:
    points = np.random.default_rng(4).standard_normal((11, 2))

    def inertia(mask: np.ndarray) -> float:
        return sum(float(((part - part.mean(0)) ** 2).sum()) for part in (points[mask], points[~mask]))

    masks = (np.array(bits) for bits in itertools.product([True, False], repeat=11))
    best = min((mask for mask in masks if mask.any() and not mask.all()), key=inertia)
    found = parted(points, 2, 10, 0)
    small = best if best.sum() <= 5 else ~best
    assert np.array_equal(found.clusters == 1, small)
    assert found.sizes.tolist() == [11 - small.sum(), small.sum()]
    np.testing.assert_allclose(found.means[1], points[small].mean(0))


@pytest.mark.parametrize("seed", range(4))
def test_clusters_are_numbered_by_size_whatever_the_seed(seed: int) -> None:
    rng = np.random.default_rng(5)
    points = np.concatenate([rng.normal(at, 0.1, (size, 2)) for at, size in ((9, 3), (0, 8), (4, 5))])
    found = parted(points, 3, 5, seed)
    assert found.clusters.tolist() == [2] * 3 + [0] * 8 + [1] * 5
    even = parted(np.array([[0.0], [0], [5], [5]]), 2, 5, seed)
    assert even.clusters.tolist() == [0, 0, 1, 1]  # of equal ones, the first row's goes first


def test_equal_points_leave_clusters_empty() -> None:
    found = parted(np.ones((6, 2)), 2, 2, 0)
    assert found.sizes.tolist() == [6, 0]
    assert suspicion(np.ones((6, 2)), found).tolist() == [-1] * 6
    assert mean_silhouette(np.ones((6, 2)), found.clusters, 100, 0) == 0


def slow_silhouette(points: np.ndarray, clusters: np.ndarray) -> float:
    values = []
    for row, own in enumerate(clusters):
        away = [float(np.linalg.norm(points[row] - other)) for other in points]
        mean = {
            each: sum(d for j, d in enumerate(away) if clusters[j] == each and j != row)
            / max(1, sum(1 for j in range(len(away)) if clusters[j] == each and j != row))
            for each in set(clusters.tolist())
        }
        inside, outside = mean.pop(int(own)), min(mean.values())
        alone = sum(clusters == own) == 1
        values.append(0.0 if alone else (outside - inside) / max(inside, outside))
    return sum(values) / len(values)


def test_silhouettes_equal_the_slow_version() -> None:
    points = np.random.default_rng(6).standard_normal((14, 3))
    clusters = np.array([0] * 9 + [1] * 4 + [2])
    assert mean_silhouette(points, clusters, 100, 0) == pytest.approx(slow_silhouette(points, clusters))


def test_a_sampled_silhouette_is_near_the_whole_one_and_has_every_cluster() -> None:
    rng = np.random.default_rng(7)
    points = np.concatenate([rng.standard_normal((997, 2)), rng.standard_normal((3, 2)) + 6])
    clusters = np.array([0] * 997 + [1] * 3)
    whole = mean_silhouette(points, clusters, 1000, 0)
    assert mean_silhouette(points, clusters, 300, 1) == pytest.approx(whole, abs=0.05)
    assert mean_silhouette(points, clusters, 2, 1) != 0


def test_distances_between_medians_equal_the_slow_version() -> None:
    rng = np.random.default_rng(8)
    rows, groups = rng.standard_normal((40, 5)).astype(np.float32), np.arange(40) % 3
    clusters = rng.integers(0, 2, 40)
    sizes = np.array([[np.sum((groups == c) & (clusters == k)) for k in range(2)] for c in range(4)])
    found = nearer_elsewhere(rows, groups, clusters, sizes)
    for c, k in itertools.product(range(3), range(2)):
        own = [np.median(rows[(groups == c) & (clusters == k), j]) for j in range(5)]
        away = [
            sum((own[j] - np.median(rows[groups == other, j])) ** 2 for j in range(5)) ** 0.5
            for other in range(3)
        ]
        assert found[c, k] == pytest.approx(away[c] - min(away[:c] + away[c + 1 :]), rel=1e-5)
    assert np.isneginf(found[3]).all()


def test_scores_say_how_near_a_row_is_to_the_smallest_cluster() -> None:
    rows, labels = planted(20)
    found = clustered(rows, labels, 3)
    mine, clusters = found["scores"][labels == 0], found["clusters"][labels == 0]
    assert np.array_equal(mine > 0, clusters == 1)
    assert np.abs(found["scores"]).max() <= 1 + 1e-9
    others = found["scores"][(labels > 0)]
    assert mine[200:].min() > others.max()  # their classes do not fall into parts
    line = np.array([[0.0], [0], [0], [1], [4], [4]])
    parts = parted(line, 2, 5, 0)
    np.testing.assert_allclose(suspicion(line, parts)[[0, 3, 4]], [(0.25 - 4) / 3.75, (0.75 - 3) / 3.75, 1])


def suspects(sizes: Any, silhouette: Any, closer: Any = None, **knobs: Any) -> list[list[bool]]:
    sizes = np.asarray(sizes)
    closer = np.full(sizes.shape, -1.0) if closer is None else np.asarray(closer)
    none = np.zeros(0, np.int64)
    arrays = {"sizes": sizes, "silhouette": np.asarray(silhouette), "closer": closer, "clusters": none}
    stage = Suspects(**{"rule": "silhouette", "size": 0.35, "silhouette": 0.1, **knobs})
    return stage.run(CTX, clustered=Artefact(arrays), groups=grouped(none)).arrays["suspected"].tolist()


def test_rules_by_hand() -> None:
    sizes, silhouette = [[60, 40], [66, 34], [90, 10], [100, 0], [0, 0]], [0.5, 0.1, 0.2, 0.0, 0.0]
    none, small = [False, False], [False, True]
    assert suspects(sizes, silhouette, rule="smaller") == [small, small, small, none, none]
    assert suspects(sizes, silhouette, rule="relative_size") == [none, small, small, none, none]
    assert suspects(sizes, silhouette) == [none, none, small, none, none]  # above 0.1, not at it
    closer = [[-1, 2], [3, -1], [0, 0], [-1, -np.inf], [-np.inf] * 2]
    assert suspects(sizes, silhouette, closer, rule="distance") == [small, [True, False], none, none, none]


def test_rules_on_three_clusters_spare_the_largest() -> None:
    sizes = [[34, 33, 33], [60, 30, 10], [90, 10, 0]]
    assert suspects(sizes, [1, 1, 1], rule="smaller") == [
        [False, False, True],
        [False, False, True],
        [False, True, False],
    ]
    assert suspects(sizes, [1, 1, 1], rule="relative_size") == [
        [False, True, True],
        [False, True, True],
        [False, True, False],
    ]


@pytest.mark.parametrize("method", ["pca", "ica"])
def test_a_small_planted_part_is_found_and_one_of_equal_size_is_not(method: str) -> None:
    for poison, expected in ((20, True), (200, False)):
        rows, labels = planted(poison)
        arrays = Artefact(clustered(rows, labels, 3, method=method))
        stage = Suspects(rule="silhouette", size=0.35, silhouette=0.1)
        flagged = stage.run(CTX, clustered=arrays, groups=grouped(labels)).arrays["flagged"]
        assert flagged[600:].all() == expected
        assert not flagged[200:600].any()
        assert flagged[:200].mean() < 0.05


def test_reclassification_clears_what_is_still_taken_for_its_class() -> None:
    groups, clusters = np.repeat([0, 1, 2], 10), np.tile([0] * 6 + [1] * 4, 3)
    predictions = groups.copy()
    predictions[6:10] = [0, 0, 2, 2]  # l = 2, m = 2: not above the ratio of 1
    predictions[16:20] = [1, 1, 1, 0]  # l = 3, m = 1
    predictions[26:30] = 2  # m = 0
    suspected = np.array([[False, True]] * 3)
    inputs = {"groups": grouped(groups), "clustered": Artefact({"clusters": clusters})}
    inputs |= {
        "suspects": Artefact({"suspected": suspected}),
        "losses": Artefact({"predictions": predictions}),
    }
    found = Reclassified(threshold=1.0).run(CTX, **inputs).arrays
    assert found["suspected"].tolist() == [[False, True], [False, False], [False, False]]
    assert np.flatnonzero(found["flagged"]).tolist() == [6, 7, 8, 9]
    assert found["ratio"][:, 1].tolist() == [1, 3, np.inf]
    assert np.isnan(found["ratio"][:, 0]).all()
    assert found["source"].tolist() == [-1] * 6 + [2] * 4 + [-1] * 20
    labels = Relabelled().run(CTX, removal=Artefact(found), data=LabelSet(groups, 3)).arrays
    assert labels["labels"].tolist() == [0] * 6 + [2] * 4 + groups[10:].tolist()
    assert labels["ids"].tolist() == list(range(30))
    stricter = Reclassified(threshold=4.0).run(CTX, **inputs).arrays["suspected"]
    assert stricter[:, 1].tolist() == [True, True, False]


def test_rows_are_grouped_by_label_or_by_prediction() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    labels, seen = LabelSet(np.array([0, 1, 1, 2]), 3), Artefact({"logits": logits})
    by_label, by_prediction = (
        Groups(by=by).run(CTX, penultimate=seen, data=labels).arrays  # type: ignore[arg-type]
        for by in ("label", "prediction")
    )
    assert by_label["groups"].tolist() == [0, 1, 1, 2]
    assert by_prediction["groups"].tolist() == [0, 1, 2, 2]
    assert by_label["agreement"] == by_prediction["agreement"] == 0.75


def test_shares_of_smallest_clusters() -> None:
    assert smallest_shares(np.array([[6, 4], [5, 0], [0, 0]])).tolist() == [0.4, 1.0, 1.0]


def short(**knobs: Any) -> Defense:
    training = {"epochs": 1, "batch_size": 16}
    settings = {"train": training, "retrain": training, "components": 3, **knobs}
    return bdtune.defense("activation_clustering", **settings)


def test_a_sweep_shares_all_that_a_setting_leaves_untouched(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    rules = [{"rule": rule} for rule in ("smaller", "relative_size", "silhouette", "distance")]
    thresholds = [{"size": 0.2}, {"silhouette": 0.3}]
    grid = [*rules, *thresholds, {"clusters": 3}, {"restarts": 2}, {"reduction": "ica"}, {"components": 2}]
    chains = [short(**knobs).build(given) for knobs in [*grid, {"group_by": "prediction"}]]
    stages = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver).stages
    assert stages["penultimate"].unique == 1
    assert stages["groups"].unique == 2
    assert stages["reduced"].unique == 4  # pca, ica, two components, by prediction
    assert stages["clustered"].unique == 6
    assert stages["suspects"].unique == 11
    undefended = bdtune.defense("none", train=short().baseline_training()).build(given)
    assert undefended["classifier"].recipe == chains[0]["undefended"].recipe
    assert short(retrain={"epochs": 2}).build(given)["kept"].recipe == chains[2]["kept"].recipe


def test_reclassification_shares_its_classifier_with_the_retraining(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    plain = short(rule="smaller").build(given)
    checked = short(rule="smaller", exre=True, exre_ratio=1e9).build(given)  # clears nothing
    assert checked["without"].recipe == plain["classifier"].recipe
    flags = counting.compute(checked["removal"], counting.note).arrays
    counting.compute(plain["classifier"], counting.note)
    assert counting.computed.count("supervised") == 2
    relabelled = short(rule="smaller", exre=True, exre_ratio=1e9, repair="relabel").build(given)
    labels = counting.compute(relabelled["kept"]).arrays["labels"]
    observed = counting.compute(plain["subset"]).arrays["labels"]
    assert np.array_equal(labels != observed, flags["flagged"])


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="relabel needs exre: true"):
        short(repair="relabel")
    with pytest.raises(ValidationError, match="control: random removes rows"):
        short(repair="relabel", exre=True, control="random")


def test_the_control_removes_as_many_rows(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, truth = poisoned
    plain, control = (short(rule="smaller", control=each).build(given) for each in ("none", "random"))
    assert control["verdict"].recipe == plain["removal"].recipe
    found, drawn = (counting.compute(chain["removal"]).arrays["flagged"] for chain in (plain, control))
    assert np.array_equal(np.bincount(truth.observed[found]), np.bincount(truth.observed[drawn]))
    assert not np.array_equal(found, drawn)


def test_the_filter_is_judged_by_the_truth(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, truth = poisoned
    defense = short(train={"epochs": 3, "batch_size": 16}, rule="smaller")
    chain = defense.build(given)
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {k.removeprefix("activation_clustering/"): v for k, v in counting.compute(judge).info.items()}
    arrays, flags = counting.compute(chain["clustered"]).arrays, counting.compute(chain["removal"]).arrays
    rows = truth.observed == 0
    assert found["poison_small"] == pytest.approx(truth.is_poison[rows & (arrays["clusters"] == 1)].mean())
    assert found["poison_large"] == pytest.approx(truth.is_poison[rows & (arrays["clusters"] == 0)].mean())
    assert found["size_target"] == pytest.approx(arrays["sizes"][0, 1] / rows.sum())
    assert found["silhouette_target"] == pytest.approx(arrays["silhouette"][0])
    assert found["silhouette_others"] == pytest.approx(arrays["silhouette"][1:].max())
    assert (found["detected"], found["detected_target"], found["false_alarms"]) == (3, 1, 2)
    assert (found["skipped"], found["not_converged"]) == (0, 0)
    assert found["tpr"] == np.mean(flags["flagged"][truth.is_poison])
    logits = counting.compute(chain["penultimate"]).arrays["logits"]
    assert found["agreement"] == pytest.approx(np.mean(logits.argmax(1) == truth.observed))


def test_reclassification_is_judged_by_the_truth(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short(rule="smaller", exre=True, exre_ratio=1e9)
    chain = defense.build(given)
    evidence = {name: counting.compute(chain[name]) for name in defense.evidence}
    rows = np.arange(60) < 30
    source = np.where(rows, truth.labels, -1)
    ratio = np.array([[np.nan, 0.25], [np.nan, np.inf], [np.nan, np.nan]])
    arrays = {**evidence["removal"].arrays, "flagged": rows, "source": source, "ratio": ratio}
    found = defense.diagnose({**evidence, "removal": Artefact(arrays)}, truth)
    assert (found["exre_target"], found["source_right"]) == (0.25, 1)
    wrong = {**arrays, "source": np.where(rows, 0, -1)}
    assert defense.diagnose({**evidence, "removal": Artefact(wrong)}, truth)["source_right"] == 0


def test_skipped_classes_and_clean_runs_are_reported(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    clean = Truth(truth.labels, truth.observed, np.zeros_like(truth.role), None)
    defense = short(components=20)  # of 60 rows classes 1 and 2 have fewer
    chain = defense.build(given)
    evidence = {name: counting.compute(chain[name]) for name in defense.evidence}
    found = defense.diagnose(evidence, clean)
    assert found["skipped"] == 2
    assert "size_target" not in found
    assert defense.figure(evidence, clean) is not None
    assert "size_target" in defense.diagnose(evidence, truth)


def test_the_picture_shows_a_class_all_classes_scores_and_the_curve(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short()
    chain = defense.build(given)
    picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
    assert picture is not None
    points, classes, histogram, _ = picture.axes
    assert [len(part.get_offsets()) for part in points.collections] == [20, 12]
    assert [text.get_text() for text in classes.texts] == ["0", "1", "2"]
    assert points.get_title().startswith("class 0")
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["clean", "poisoned"]


def test_presets_are_the_protocols_of_public_code() -> None:
    cls = type(short())
    found = {name.partition("/")[0]: cls(**knobs) for name, knobs in cls.presets.items()}
    seen = {name: (each.group_by, each.reduction, each.rule, each.exre) for name, each in found.items()}
    assert seen == {
        "activation_clustering": ("prediction", "ica", "smaller", True),
        "art": ("label", "pca", "smaller", False),
        "trojanzoo": ("prediction", "ica", "silhouette", False),
        "backdoorbench": ("label", "pca", "smaller", False),
        "toolbox": ("label", "pca", "relative_size", False),
    }
    assert found["backdoorbench"].retrain.epochs == 100
