"""What each defense promises to share: `bdtune plan --json` says it before, the store shows it after."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

import bdtune
from bdtune.engine.input_source import PluginSource
from bdtune.engine.node import Node
from bdtune.plugins import registry
from bdtune.plugins.defense import DefenseInputs
from bdtune.plugins.handles import CLEAN, CLEAN_LABELS, FIT, LABELS, HandedOver
from tests.doubles import CPU
from tests.end_to_end.grids import quick

if TYPE_CHECKING:
    from pathlib import Path

CLEAN_SET = "clean=0.3"


AGREED = (
    "{optimizer: adam, lr: 3e-4, weight_decay: 0, batch_size: 256, epochs: 100, schedule: constant, "
    "smallest_crop: 0.08, jitter: 1, blur: 0}"
)


class Promise(NamedTuple):
    """A grid, and how many results it needs of some stages; all of them together have `trials` trials."""

    words: tuple[str, ...]
    trials: int
    unique: dict[str, int]


PROMISES = {
    "Fine-Pruning over 20 fractions trains one model and ranks its channels once": Promise(
        (
            CLEAN_SET,
            "defense=fine_pruning",
            *quick("train", "tune"),
            "defense.rule=ratio",
            "defense.ratio=range(0,1,0.05)",
        ),
        20,
        {"supervised": 1, "fp_ranking": 1, "fp_curve": 1},
    ),
    "NAD over beta shares model and teacher": Promise(
        (
            CLEAN_SET,
            "defense=nad",
            *quick("train", "teacher", "distil"),
            "defense.distil.beta=[0],[500],[1000]",
        ),
        3,
        {"supervised": 1, "nad_teacher": 1, "nad_distil": 3},
    ),
    "Neural Cleanse over its thresholds inverts once": Promise(
        (
            CLEAN_SET,
            "defense=neural_cleanse",
            *quick("train", "inversion"),
            "defense.unlearn.batch_size=16",
            "defense.threshold=1,1.5,2,2.5,3,4",
        ),
        6,
        {"supervised": 1, "inversion": 1, "outliers": 6},
    ),
    "STRIP over FRR takes the entropies of calibration, clean and triggered images once": Promise(
        (
            CLEAN_SET,
            "defense=strip",
            *quick("train"),
            "defense.overlays=4",
            "defense.computed=4",
            "defense.frr=0.01,0.05,0.1,0.2",
        ),
        4,
        {"supervised": 1, "overlays": 1, "entropies": 3, "threshold": 4},
    ),
    "STRIP as a filter over FRR takes the entropies of calibration images and training rows once": Promise(
        (
            CLEAN_SET,
            "defense=strip_filter",
            *quick("train", "retrain"),
            "defense.overlays=4",
            "defense.computed=4",
            "defense.frr=0.01,0.05,0.1,0.2",
        ),
        4,
        {"overlays": 1, "entropies": 2, "threshold": 4},
    ),
    "Spectral Signatures over eps scores once": Promise(
        ("defense=spectral_signatures", *quick("train", "retrain"), "defense.eps=0,0.05,0.1"),
        3,
        {"penultimate": 1, "spectral_scores": 1},
    ),
    "DBD and GSSD share SimCLR where its settings agree": Promise(
        (f"defense={{name: dbd, simclr: {AGREED}}},{{name: gssd, simclr: {AGREED}}}",),
        2,
        {"simclr": 1},
    ),
    "Post-training defenses share one undefended model with the baseline": Promise(
        (
            CLEAN_SET,
            "defense=fine_tuning,fine_pruning,nad,neural_cleanse,{name: strip, overlays: 4, computed: 4}",
            *quick("train"),
        ),
        5,
        {"supervised": 1},
    ),
}


@pytest.mark.parametrize("promise", PROMISES.values(), ids=list(PROMISES))
def test_the_plan_says_what_is_shared(grid: Any, promise: Promise) -> None:
    plan = grid(*promise.words).plan()
    assert plan["trials"] == promise.trials
    assert {name: plan["stages"][name]["unique"] for name in promise.unique} == promise.unique
    shared = plan["stages"][next(iter(promise.unique))]
    assert shared["without_sharing"] >= promise.trials


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PROMISES if name.startswith(("Fine-Pruning", "NAD", "Neural", "STRIP"))]
)
def test_the_store_shows_that_it_was(grid: Any, tmp_path: Path, name: str) -> None:
    promise = PROMISES[name]
    own = grid(*promise.words)
    computed = own.compute(tmp_path)
    assert {stage: computed[stage] for stage in promise.unique} == promise.unique
    after = own.plan()["stages"]
    assert all(count["unique"] == count["cached"] for count in after.values())
    assert {stage: count["unique"] for stage, count in after.items()} == +computed


GIVEN = DefenseInputs(
    fit=FIT,
    labels=LABELS,
    clean=CLEAN,
    clean_labels=CLEAN_LABELS,
    model=PluginSource(plugin=bdtune.model("resnet18")),
    numerics=CPU,
)
BACKDOORED = Node(HandedOver(), {}, numerics=CPU)


def recipes(chain: dict[str, Node]) -> set[str]:
    return {node.recipe for each in chain.values() for node in each.walk()}


def is_mended(name: str) -> bool:
    """Whether a defense starts from the model that the attacker hands over, where one is."""
    return BACKDOORED.recipe in recipes(bdtune.defense(name).build(replace(GIVEN, backdoored=BACKDOORED)))


MENDED = [name for name in registry.names("defenses") if name != "none" and is_mended(name)]


def test_there_are_defenses_of_a_trained_model() -> None:
    assert {"fine_pruning", "nad", "neural_cleanse", "strip", "activation_clustering"} <= set(MENDED)


@pytest.mark.parametrize("name", MENDED)
def test_a_defense_of_a_trained_model_shares_it_with_its_baseline(name: str) -> None:
    defense = bdtune.defense(name)
    baseline = bdtune.defense("none", train=defense.baseline_training()).build(GIVEN)
    assert baseline["classifier"].recipe in recipes(defense.build(GIVEN))
