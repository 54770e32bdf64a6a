from __future__ import annotations

import numpy as np
import pytest

from bdtune.defenses.gssd.stages import (
    ClassTests,
    CleanSplit,
    Relabel,
    Verdict,
    best_foreign,
    foreign_densities,
    foreign_energy,
    is_disruptive,
    own_score,
    valley,
)
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import UserError
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import ImageSet

ZERO = [0]
VECTORS = {
    "V1": [
        1, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24, 30, 37, 45,
        54, 64, 75, 86, 95, 98, 92, 80, 60, 40, 22, 12, 6, 1, 1,
    ],
    "V2": [60, 40, *ZERO * 12, 5, 15, 40, 80, 120, 150, 160, 130, 90, 60, 30, 12, 5, 2, 0, 1],
    "V3": [24, 16, *ZERO * 12, 5, 15, 40, 80, 130, 160, 180, 150, 90, 60, 30, 12, 5, 2, 0, 1],
    "V4": [1, *ZERO * 6, 80, 60, *ZERO * 5, 5, 15, 40, 80, 110, 140, 150, 130, 90, 60, 25, 10, 2, 1, 0, 1],
    "V5": [
        30, 50, 40, 28, 45, 60, 70, 80, 85, 90, 80, 70, 60, 50, 40,
        30, 20, 29, 15, 15, 2, 2, 2, 2, 2, 1, 1, 1, 0, 1,
    ],
    "V6": [30, 28, 40, 50, 60, 70, 75, 80, 85, 90, 80, 70, 60, 50, 40, 30, 29, 31, 1, 1, *ZERO * 9, 1],
}  # fmt: skip
CTX = Context()
TESTS = {
    "beta_nd": 0.3,
    "beta_d": 0.05,
    "lambda_": 0.75,
    "bins": 30,
    "trim": 0.0,
    "order": "d_first",
    "given": None,
}


def density(L: np.ndarray, labels: np.ndarray) -> Artefact:
    return Artefact({"L": L.astype(np.float32), "labels": labels.astype(np.int64)})


def verdicts(density_of: Artefact, **knobs: object) -> Artefact:
    return ClassTests(**{**TESTS, **knobs}).run(CTX, density=density_of)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "lowest", "mass", "disruptive"),
    [
        ("V1", 0, 0, False),
        ("V2", 2, 100, True),
        ("V3", 2, 40, False),
        ("V4", 1, 1, False),
        ("V5", 16, 908, True),
        ("V6", 1, 30, False),
    ],
)
def test_disruptive_rule_on_the_worked_histograms(
    name: str, lowest: int, mass: int, disruptive: bool
) -> None:
    counts = np.array(VECTORS[name])
    edges = np.linspace(0, 1.2, 31)
    assert counts.sum() in (1000, 1001)
    assert valley(counts, edges, 0.75) == (lowest, mass)
    assert is_disruptive(counts, edges, 0.05, 0.75) is disruptive


def test_no_valley_when_at_most_one_edge_lies_left_of_lambda() -> None:
    counts = np.array([5, 0, 5])
    assert valley(counts, np.array([0.8, 0.9, 1.0, 1.1]), 0.75) == (0, 0)
    assert valley(counts, np.array([0.7, 0.9, 1.0, 1.1]), 0.75) == (0, 0)
    assert valley(counts, np.array([0.1, 0.2, 0.3, 0.4]), 0.75) == (1, 5)  # every edge is left of it


def test_the_lowest_bins_own_count_must_be_half_the_mass() -> None:
    edges = np.linspace(0, 1, 5)
    assert not is_disruptive(np.array([30, 20, 100, 500]), edges, 0.01, 0.75)
    assert is_disruptive(np.array([40, 20, 100, 500]), edges, 0.01, 0.75)


def test_scores_against_plain_loops() -> None:
    L = np.random.default_rng(0).normal(size=(7, 4))
    for label in range(4):
        best = [max(row[k] for k in range(4) if k != label) for row in L]
        assert best_foreign(L, label).tolist() == best
        assert own_score(L, label).tolist() == [row[label] - b for row, b in zip(L, best, strict=True)]


def test_energy_counts_every_foreign_sample() -> None:
    L = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert foreign_energy(L, np.array([0, 1, 1])).tolist() == [-4.0, -2.0]
    assert foreign_energy(L[:, :1], np.zeros(3, int)).tolist() == [np.inf]  # nothing is foreign


@pytest.mark.parametrize(
    ("n", "kept_nd", "kept_d", "relabelled"),
    [(5045, 1514, 756, 756), (5450, 1636, 817, 817), (9500, 2850, 1425, 1425)],
)
def test_counts_are_cut_as_the_official_code_cuts_them(
    n: int, kept_nd: int, kept_d: int, relabelled: int
) -> None:
    rng = np.random.default_rng(0)
    inputs = {"density": density(rng.normal(size=(n, 2)), np.zeros(n))}
    sizes = []
    for verdict in (Verdict.NON_DISRUPTIVE, Verdict.DISRUPTIVE):
        inputs["class_tests"] = Artefact({"verdict": np.array([verdict, 0], np.uint8)})
        sizes.append(len(CleanSplit(alpha_c_nd=0.3, alpha_c_d=0.15).run(CTX, **inputs).arrays["ids"]))
        sizes.append(len(Relabel(alpha_p=0.15).run(CTX, **inputs).arrays["ids"]))
    assert sizes == [kept_nd, relabelled, kept_d, 0]


def test_each_verdict_keeps_its_own_end_of_the_ranking() -> None:
    score = np.array([3.0, -1.0, 0.5, 2.0, -2.0, 0.0, 1.0, -3.0, 9.0, 9.0])
    labels = np.array([0] * 8 + [1, 1])
    L = np.stack([score, np.zeros(10), np.full(10, -5.0)], axis=1)  # s of class 0 is the first column
    inputs = {
        "density": density(L, labels),
        "class_tests": Artefact({"verdict": np.array([1, 0, 0], np.uint8)}),
    }
    kept = CleanSplit(alpha_c_nd=0.25, alpha_c_d=0.25).run(CTX, **inputs).arrays
    assert kept["ids"].tolist() == [0, 3, 8, 9]  # the highest s, and all of the clean class
    assert kept["labels"].tolist() == [0, 0, 1, 1]
    moved = Relabel(alpha_p=0.25).run(CTX, **inputs).arrays
    assert moved["ids"].tolist() == [4, 7]  # the lowest s
    assert moved["labels"].tolist() == [1, 1]  # the densest class but their own
    inputs["class_tests"] = Artefact({"verdict": np.array([2, 0, 0], np.uint8)})
    assert CleanSplit(alpha_c_nd=0.25, alpha_c_d=0.25).run(CTX, **inputs).arrays["ids"].tolist() == [
        4,
        7,
        8,
        9,
    ]


def test_several_detected_classes_are_pooled() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 40)
    inputs = {"density": density(rng.normal(size=(120, 3)), labels)}
    stages = (CleanSplit(alpha_c_nd=0.3, alpha_c_d=0.15), Relabel(alpha_p=0.15))

    def run(*verdict: int) -> list[set[int]]:
        inputs["class_tests"] = Artefact({"verdict": np.array(verdict, np.uint8)})
        return [set(stage.run(CTX, **inputs).arrays["ids"].tolist()) for stage in stages]

    both_kept, both_moved = run(1, 2, 0)
    (nd_kept, nd_moved), (d_kept, _) = run(1, 0, 0), run(0, 2, 0)
    assert both_kept == nd_kept & d_kept
    assert both_moved == nd_moved
    assert not both_kept & both_moved


def test_nothing_detected_is_all_samples_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 50)
    clean = Artefact({"verdict": np.zeros(3, np.uint8)})
    inputs = {"density": density(rng.normal(size=(50, 3)), labels), "class_tests": clean}
    kept = CleanSplit(alpha_c_nd=0.3, alpha_c_d=0.15).run(CTX, **inputs)
    data = ImageSet(np.zeros((50, 1, 1, 3), np.uint8), labels, 3, (0.5,), (0.5,))
    everything = AllSamples().run(CTX, data=data)
    assert digest_of(kept.arrays, kept.info) == digest_of(everything.arrays, everything.info)
    moved = Relabel(alpha_p=0.15).run(CTX, **inputs).arrays
    assert {name: (len(value), value.dtype) for name, value in moved.items()} == {
        "ids": (0, np.dtype(np.int64)),
        "labels": (0, np.dtype(np.int64)),
    }


def low_mode(outlier: bool) -> Artefact:
    """Class 0 has 10 % of its samples at a foreign density of 0.1, the others at 0.9; E is 0.69 and 0.34."""
    rng = np.random.default_rng(0)
    foreign = np.concatenate([rng.normal(0.10, 0.01, 100), rng.normal(0.9, 0.05, 900)])
    foreign = np.concatenate([[1e-4 if outlier else 0.1], foreign])
    L = np.full((2001, 2), np.log(0.5))
    L[:1001, 1] = np.log(np.abs(foreign))
    L[1001:, 1] = np.log(0.9)
    L[1001:, 0] = np.log(rng.normal(0.5, 0.01, 1000))
    return density(L, np.repeat([0, 1], [1001, 1000]))


def test_a_low_mode_is_found_and_trimming_sees_past_an_outlier() -> None:
    assert verdicts(low_mode(outlier=False)).arrays["verdict"].tolist() == [2, 0]
    assert verdicts(low_mode(outlier=True)).arrays["verdict"].tolist() == [0, 0]
    assert verdicts(low_mode(outlier=True), trim=0.2).arrays["verdict"].tolist() == [2, 0]


def test_thresholds_gate_the_verdicts_and_nothing_else() -> None:
    art = low_mode(outlier=False)
    assert verdicts(art, beta_d=0.2).arrays["verdict"].tolist() == [0, 0]
    assert verdicts(art, beta_nd=0.5).arrays["verdict"].tolist() == [2, 1]
    same = [verdicts(art, beta_d=beta, lambda_=lambda_) for beta in (0.01, 0.05) for lambda_ in (0.5, 0.75)]
    assert len({digest_of(each.arrays, each.info) for each in same}) == 1


def test_the_order_of_the_tests_decides_between_two_verdicts() -> None:
    art = low_mode(outlier=False)
    assert verdicts(art, beta_nd=5.0).arrays["verdict"].tolist() == [2, 1]
    assert verdicts(art, beta_nd=5.0, order="nd_first").arrays["verdict"].tolist() == [1, 1]


def test_verdicts_follow_a_permutation_of_the_classes() -> None:
    art = low_mode(outlier=False)
    L, labels = art.arrays["L"], art.arrays["labels"]
    L3 = np.concatenate([L, np.full((len(L), 1), -3.0, np.float32)], axis=1)
    expected = verdicts(density(L3, labels), beta_nd=0.5).arrays
    for permutation in ([2, 0, 1], [1, 2, 0], [0, 2, 1]):
        new = np.argsort(permutation)  # class c becomes new[c]
        found = verdicts(density(L3[:, permutation], new[labels]), beta_nd=0.5).arrays
        assert found["verdict"].tolist() == expected["verdict"][permutation].tolist()
        np.testing.assert_allclose(found["energy"], expected["energy"][permutation])


def test_a_class_without_a_flow_is_clean_and_never_a_new_label() -> None:
    rng = np.random.default_rng(0)
    L = rng.normal(-0.3, 0.1, size=(60, 3))
    L[:, 2] = -np.inf
    labels = np.array([0] * 30 + [1] * 29 + [2])
    tests = verdicts(density(L, labels), beta_nd=1.0, beta_d=1.0)
    assert tests.arrays["verdict"].tolist() == [1, 1, 0]
    assert np.isinf(tests.arrays["energy"][2])
    moved = Relabel(alpha_p=0.5).run(CTX, density=density(L, labels), class_tests=tests)
    assert set(moved.arrays["labels"].tolist()) == {0, 1}
    assert foreign_densities(L, labels, 2, 0.0) == pytest.approx([np.exp(L[59, :2].max())])


def test_a_given_class_needs_no_test_and_must_exist() -> None:
    art = low_mode(outlier=False)
    assert verdicts(art, given=1).arrays["verdict"].tolist() == [0, 1]
    with pytest.raises(UserError, match="a class from 0 to 1, got 2"):
        verdicts(art, given=2)
