"""Spectral Signatures against a slow plain version, the card's examples, and what a sweep shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bdtune
from bdtune.defenses.spectral_signatures.report import SHARES
from bdtune.defenses.spectral_signatures.stages import SpectralRemoval, SpectralScores, projections
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import LabelSet, Truth
from bdtune.plugins.defense import Diagnose, diagnosis
from tests.doubles import Is

if TYPE_CHECKING:
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context()


def scored(features: Any, labels: Any = None, classes: int = 1, **knobs: Any) -> Artefact:
    features = np.asarray(features, np.float32)
    labels = np.zeros(len(features), int) if labels is None else labels
    stage = SpectralScores(**{"centred": True, "directions": 1, "fewest": 1, **knobs})
    return stage.run(CTX, penultimate=Artefact({"features": features}), data=LabelSet(labels, classes))


def tau(features: Any, **knobs: Any) -> np.ndarray:
    return scored(features, **knobs).arrays["scores"]


def flagged(scores: Any, labels: Any = None, classes: int = 1, **knobs: Any) -> list[int]:
    scores = np.asarray(scores, float)
    labels = np.zeros(len(scores), int) if labels is None else labels
    settings = {"rule": "share", "level": 0.1, "rate": None, "target": None, "cap": 0.5, "fewest": 1, **knobs}
    stage = SpectralRemoval(**settings)
    found = stage.run(CTX, scores=Artefact({"scores": scores}), data=LabelSet(labels, classes))
    return np.flatnonzero(found.arrays["flagged"]).tolist()


def slow_scores(rows: np.ndarray) -> list[float]:
    """Power iteration on M^T M, and one row at a time."""
    mean = sum(rows) / len(rows)
    moved = rows - mean
    v = np.random.default_rng(0).standard_normal(rows.shape[1])
    for _ in range(1000):
        v = moved.T @ (moved @ v)
        v /= np.sqrt((v**2).sum())
    return [float(sum((row - mean) * v)) ** 2 for row in rows]


@pytest.mark.parametrize(("count", "width"), [(40, 6), (6, 40)])
def test_scores_equal_power_iteration(count: int, width: int) -> None:
    rows = np.random.default_rng(1).standard_normal((count, width)).astype(np.float32)
    rows[: count // 4] += 2
    np.testing.assert_allclose(tau(rows), slow_scores(rows.astype(float)), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(("count", "width"), [(40, 6), (6, 40)])
def test_directions_and_values_are_those_of_the_decomposition(count: int, width: int) -> None:
    rows = np.random.default_rng(2).standard_normal((count, width))
    moved = rows - rows.mean(0)
    _, values, vectors = np.linalg.svd(moved, full_matrices=False)
    for centred, projected in ((True, moved), (False, rows)):
        along, found = projections(rows, 3, centred=centred)
        np.testing.assert_allclose(found[:5], values[:5], rtol=1e-8, atol=1e-6)
        np.testing.assert_allclose(np.abs(along), np.abs(projected @ vectors[:3].T), rtol=1e-6, atol=1e-8)
    three = scored(rows, directions=3).arrays["scores"]
    np.testing.assert_allclose(three, ((moved @ vectors[:3].T) ** 2).sum(1), rtol=1e-4)


def test_the_cards_example() -> None:
    scores = tau([[0, 0], [0, 1], [0, -1], [8, 0]])
    np.testing.assert_allclose(scores, [4, 4, 4, 36])
    assert flagged(scores, rule="assumed", level=1.5 * 0.25) == [3]


def test_uncentred_scores_flag_another_row() -> None:
    rows = [[5, 0], [4, 0], [6, 0], [0, 0]]
    assert tau(rows).argmax() == 3
    assert tau(rows, centred=False).argmax() == 2


def test_centred_scores_do_not_depend_on_the_origin_or_the_axes() -> None:
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((50, 8))
    rotation, _ = np.linalg.qr(rng.standard_normal((8, 8)))
    np.testing.assert_allclose(tau(rows @ rotation + 10), tau(rows), rtol=1e-3, atol=1e-5)
    moved = tau(rows + 10, centred=False).argsort()
    assert moved.tolist() != tau(rows, centred=False).argsort().tolist()


def test_few_planted_rows_are_found_and_as_many_as_clean_ones_are_not() -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((1000, 50))
    rows[900:, 0] += 6
    found = scored(rows).arrays
    top = flagged(found["scores"], level=0.15)
    assert set(range(900, 1000)) <= set(top)
    half = rng.standard_normal((1000, 50))
    half[500:, 0] += 6
    found = scored(half).arrays
    top = flagged(found["scores"], level=0.15)
    assert found["singular"][0, 0] / found["singular"][0, 1] > 2
    assert 50 <= np.sum(np.array(top) >= 500) <= 100  # chance: 75


def test_classes_are_scored_apart_and_small_ones_not_at_all() -> None:
    rng = np.random.default_rng(5)
    rows, labels = rng.standard_normal((33, 4)), np.array([0] * 20 + [1] * 10 + [2] * 3)
    found = scored(rows, labels, 4, fewest=10).arrays
    np.testing.assert_allclose(found["scores"][20:30], tau(rows[20:30]), rtol=1e-6)
    assert found["scores"][30:].tolist() == [0, 0, 0]
    assert found["singular"][:, 0].astype(bool).tolist() == [True, True, False, False]
    assert found["singular"].shape == (4, 7)
    assert flagged(found["scores"], labels, 4, level=0.5, fewest=10) == sorted(
        [*np.argsort(-found["scores"][:20])[:10], *(20 + np.argsort(-found["scores"][20:30])[:5])]
    )


def test_features_that_do_not_vary_have_no_direction() -> None:
    assert tau(np.ones((4, 3))).tolist() == [0, 0, 0, 0]


def test_budgets() -> None:
    scores = np.arange(100.0)
    assert flagged(scores, level=0.15) == list(range(85, 100))
    assert flagged(scores, level=0.29) == list(range(71, 100))  # not 28, though 0.29 * 100 < 29 in binary
    assert flagged(scores, level=0.9, cap=0.2) == list(range(80, 100))
    assert flagged(scores, level=0.0) == []
    assert flagged(np.zeros(10), level=0.3) == [0, 1, 2]  # ties by id
    assert flagged(scores, fewest=101) == []


def test_a_rate_counts_in_rows_of_the_whole_set_and_a_target_is_inspected_alone() -> None:
    scores, labels = np.arange(100.0), np.array([0] * 20 + [1] * 80)
    both = flagged(scores, labels, 2, rate=0.15, level=0.9)
    assert both == [*range(10, 20), *range(85, 100)]  # 15 rows, of the first class at most a half
    assert flagged(scores, labels, 2, rate=0.15, target=1) == list(range(85, 100))


def test_deviations_need_no_budget() -> None:
    scores = np.concatenate([np.linspace(0, 1, 90), np.full(10, 9.0)])
    assert flagged(scores, rule="mad", level=3.0) == list(range(90, 100))
    assert flagged(scores[:90], rule="mad", level=3.0) == []


def test_the_order_of_rows_does_not_change_what_is_kept() -> None:
    rng = np.random.default_rng(6)
    rows, labels, order = rng.standard_normal((60, 5)), np.arange(60) % 3, rng.permutation(60)
    before = flagged(scored(rows, labels, 3).arrays["scores"], labels, 3)
    after = flagged(scored(rows[order], labels[order], 3).arrays["scores"], labels[order], 3)
    assert sorted(order[after].tolist()) == before


def short(**knobs: Any) -> Defense:
    training = {"epochs": 1, "batch_size": 16}
    return bdtune.defense("spectral_signatures", **{"train": training, "retrain": training, **knobs})


def test_a_sweep_shares_all_that_a_setting_leaves_untouched(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    budgets = [{"eps": eps} for eps in (0.05, 0.1, 0.2)] + [{"rule": "share"}, {"rule": "mad"}]
    grid = [short(centred=centred, **budget) for centred in (True, False) for budget in budgets]
    chains = [defense.build(given) for defense in grid]
    stages = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver).stages
    assert (stages["penultimate"].unique, stages["spectral_scores"].unique) == (1, 2)
    assert stages["spectral_removal"].unique == 10
    longer = short(retrain={"epochs": 2, "batch_size": 16}).build(given)
    assert longer["kept"].recipe == chains[0]["kept"].recipe
    assert short(eps=0.1, factor=0.75).build(given)["removal"].recipe == chains[0]["removal"].recipe
    baseline = bdtune.defense("none", train=grid[0].baseline_training()).build(given)
    assert baseline["classifier"].recipe == chains[0]["undefended"].recipe


def test_equal_kept_rows_are_trained_on_once_and_an_empty_budget_is_no_defense(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    for defense in (
        short(eps=0.1),
        short(rule="share", share=0.15),
        short(eps=0),
        short(rule="share", share=0),
    ):
        counting.compute(defense.build(given)["classifier"], counting.note)
    assert counting.computed.count("supervised") == 2  # undefended, and one on what is kept
    assert counting.computed.count("spectral_scores") == 1


def test_the_control_shares_the_scores_and_is_judged_by_what_it_removes(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    plain, control = short(eps=0.2).build(given), short(eps=0.2, control="random").build(given)
    assert control["suspects"].recipe == plain["removal"].recipe
    found, drawn = (counting.compute(chain["removal"]).arrays["flagged"] for chain in (plain, control))
    assert found.sum() == drawn.sum() > 0
    assert digest_of({"flagged": found}, {}) != digest_of({"flagged": drawn}, {})
    kept = counting.compute(control["kept"]).arrays["ids"]
    assert np.array_equal(kept, np.flatnonzero(~drawn))


def test_the_filter_is_judged_by_the_truth(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, truth = poisoned
    defense = short(train={"epochs": 3, "batch_size": 16}, eps=0.2)
    chain = defense.build(given)
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {k.removeprefix("spectral_signatures/"): v for k, v in counting.compute(judge).info.items()}
    flags = counting.compute(chain["removal"]).arrays["flagged"]
    arrays = counting.compute(chain["scores"]).arrays
    assert found["poison_left"] == np.sum(truth.is_poison & ~flags)
    assert found["tpr"] == np.mean(flags[truth.is_poison])
    assert found["ratio_target"] == pytest.approx(arrays["singular"][0, 0] / arrays["singular"][0, 1])
    left = [found[f"poison_left_at_{share:g}"] for share in SHARES]
    assert left == sorted(left, reverse=True)
    rows, first = truth.observed == 0, arrays["projections"][:, 0]
    means = first[rows & truth.is_poison].mean(), first[rows & ~truth.is_poison].mean()
    assert found["shift_target"] == pytest.approx(abs(means[0] - means[1]))
    own = np.sort(arrays["scores"][rows])
    assert found["top_target"] == pytest.approx(own[-1] / own.sum())  # a hundredth of 32 rows is one
    assert found["skipped"] == 0


def test_a_clean_run_has_nothing_to_find(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, truth = poisoned
    clean = Truth(truth.labels, truth.observed, np.zeros_like(truth.role), None)
    defense = short()
    chain = defense.build(given)
    found = defense.diagnose({name: counting.compute(chain[name]) for name in defense.evidence}, clean)
    assert found["poison_left"] == 0
    assert found["clean_removed"] > 0
    assert "ratio_target" not in found


def test_the_picture_shows_scores_the_curve_and_budgets(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short()
    chain = defense.build(given)
    picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
    assert picture is not None
    histogram, _, budgets = picture.axes
    assert [text.get_text() for text in histogram.get_legend().get_texts()] == ["clean", "poisoned"]
    left = budgets.get_lines()[0].get_ydata()
    assert left[0] == 1
    assert (np.diff(left) <= 0).all()


def test_wrong_targets_are_told_at_planning() -> None:
    (problem,) = bdtune.defense("spectral_signatures", oracle_target=3).check(3)
    assert (problem.path, problem.expected, problem.got) == (
        "oracle_target",
        "expected a class from 0 to 2",
        "3",
    )
    assert bdtune.defense("spectral_signatures", oracle_target=2).check(3) == []


def test_presets_are_the_protocols_of_public_code() -> None:
    cls = type(short())
    found = {name: cls(**knobs) for name, knobs in cls.presets.items()}
    assert not any(defense.centred for defense in found.values())
    assert [defense.rule for defense in found.values()] == ["share", "share", "assumed"]
    assert {defense.share for defense in found.values()} == {0.15}
    bench = found["backdoorbench/spectral"].retrain
    assert (bench.epochs, bench.lr, bench.batch_size, bench.schedule) == (100, 0.01, 256, "cosine")
