"""What each derived stage gives, and what each defense's diagnosis finds, on made-up losses and densities."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import bdtune
from bdtune.attacks.latent_backdoor.patch import RowsPerClass
from bdtune.attacks.pruning_aware.stages import CleanPart
from bdtune.defenses.aabl import split as aabl
from bdtune.defenses.abl import stages as abl
from bdtune.defenses.dst import split as dst
from bdtune.defenses.gssd import stages as gssd
from bdtune.defenses.lfd import stages as lfd
from bdtune.engine.stage import Artefact, Context, Stage
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import LabelSet, Truth
from bdtune.plugins.defense import Diagnose
from bdtune.poisoning.latent_trigger import CraftRows
from bdtune.training.validation import BestEpoch, ValidationSplit

if TYPE_CHECKING:
    from collections.abc import Iterator

    Inputs = dict[str, Any]

N, CLASSES = 240, 4
LABELS = np.arange(N) % CLASSES
DATA = LabelSet(LABELS, CLASSES)
POISON = (LABELS == 0) & (np.arange(N) % 16 == 4)
TRUTH = Truth(np.where(POISON, 1 + np.arange(N) % 3, LABELS), LABELS, POISON.astype(np.uint8), 0)


def _losses() -> Artefact:
    """Return losses that are low for poison, with ties, in nats."""
    loss = ((np.arange(N) * 37) % 60) / 16 + np.where(POISON, 0.0, 0.5)
    predictions = np.where(loss > 2, (LABELS + 1) % CLASSES, LABELS)
    arrays = {"losses": loss, "clean_losses": loss / 2, "predictions": predictions}
    return Artefact({**arrays, "clean_predictions": LABELS, "unmoved": POISON})


def _density() -> Artefact:
    """Return log-densities under which class 0 is disruptive, class 1 is not, and class 3 has no flow."""
    wave = ((np.arange(N)[:, None] * np.array([7, 11, 13, 17])) % 29) / 29 - 1.0
    L = wave - 1.5 + 0.9 * (LABELS[:, None] == np.arange(CLASSES))
    L[:, 1] += 0.8
    L[POISON] -= 2.5
    L[:, 3] = -np.inf
    return Artefact({"L": L.astype(np.float32), "labels": LABELS})


def _classifier() -> Artefact:
    """Return a training with a validation part and a recorder."""
    curve = np.array([0.2, 0.6, 0.6, 0.4], np.float32)
    weights = {
        f"{when}.head.weight": np.full((2, 3), at, np.float32) for at, when in enumerate(("model", "best"))
    }
    trace = np.stack([_losses().arrays["losses"] * scale for scale in (2.0, 1.5, 1.0)])
    return Artefact({**weights, "validation.robust_acc": curve, "trace.losses": trace})


LOSSES, DENSITY, CLASSIFIER = _losses(), _density(), _classifier()
TESTS: dict[str, Any] = {
    "beta_nd": 2.0,
    "beta_d": 0.05,
    "lambda_": 0.15,
    "bins": 30,
    "trim": 0.0,
    "given": None,
}
SCORES: dict[str, Any] = {"a": 0.1, "b": 1.0, "clip": 1e-4}


def run(stage: Stage, **inputs: Any) -> Artefact:
    """Return what a stage gives on some inputs."""
    return stage.run(Context(seed=3), **inputs)


IDS = np.flatnonzero(np.arange(N) % 5)
WHOLE = Artefact({"ids": np.arange(N), "labels": LABELS})
SUBSET = Artefact({"ids": IDS, "labels": LABELS[IDS]})
FEW = Artefact({"ids": np.arange(4, N, 12), "labels": np.arange(4, N, 12) % 3})
VERDICTS = Artefact(
    {"verdict": np.array([2, 1, 0, 0], np.uint8), "energy": np.array([2.0, 1.4, 2.2, np.inf])}
)
EASY = Artefact({"gamma": np.array([1.0]), "candidates": LOSSES.arrays["losses"] <= 1.0})
WEIGHTS = Artefact({"weights": np.where(POISON, -0.5, 0.75).astype(np.float32)})
SCORED = Artefact({"scores": 3 * LOSSES.arrays["losses"], "clean_scores": LOSSES.arrays["losses"]})
WEIGHED = Artefact(
    {
        "trace.weights": np.stack([0.2 * LOSSES.arrays["losses"], np.where(POISON, 0.125, 0.75)]),
        "trace.dependence": np.array([0.5, 0.25]),
    }
)
SENSITIVE = Artefact({"fct": 1.0 / (0.25 + LOSSES.arrays["losses"])})
FLAGS = {"flags": np.where(POISON, 2, np.arange(N) % 2)}
FLAGGED = Artefact({**FLAGS, "gamma_c": np.array([0.5]), "gamma_p": np.array([2.0])})
OTSU = Artefact({"threshold": np.array([7.0]), "separability": np.array([0.75])})
POOL = Artefact(
    {
        "pool.labelled": np.stack([LOSSES.arrays["losses"] <= limit for limit in (0.5, 1.5, 2.5)]),
        "pool.scores": np.stack([LOSSES.arrays["losses"], 2 - LOSSES.arrays["losses"]]),
    }
)
"""What stages before would decide, made up so that each stage answers for itself alone."""


def cases() -> Iterator[tuple[Stage, Inputs]]:
    """Yield derived stages with inputs, each at least once."""
    yield AllSamples(), {"data": DATA}
    yield ValidationSplit(fraction=0.1), {"data": DATA}
    yield BestEpoch(), {"classifier": CLASSIFIER}
    for part in ("train", "validation"):
        yield CleanPart(part=part), {"data": DATA}
    yield CleanPart(part="train", fraction=0.2), {"data": DATA, "rows": np.arange(0, N, 3)}
    yield RowsPerClass(target=1, per_class=20), {"data": DATA}
    yield CraftRows(attack=bdtune.attack("gssd_optimised", rate=0.1), plan_seed=5), {"data": DATA}
    yield from _gssd()
    yield from _lfd()
    yield from _abl()
    yield from _aabl()
    yield from _dst()


def _gssd() -> Iterator[tuple[Stage, Inputs]]:
    for over in ({}, {"trim": 5.0}, {"given": 2}):
        for order in ("d_first", "nd_first"):
            yield gssd.ClassTests(**{**TESTS, **over}, order=order), {"density": DENSITY}
    inputs = {"density": DENSITY, "class_tests": VERDICTS}
    yield gssd.CleanSplit(alpha_c_nd=0.3, alpha_c_d=0.15), inputs
    yield gssd.Relabel(alpha_p=0.15), inputs


def _lfd() -> Iterator[tuple[Stage, Inputs]]:
    for alpha, ties in ((0.15, "all"), (0.15, "strict"), (0.0, "all")):
        yield lfd.Threshold(alpha=alpha, ties=ties), {"losses": LOSSES}
    for mode in ("weighted", "ascent_means", "ascent_sum", "drop", "positive_only", "plain"):
        yield lfd.Weigh(mode=mode, beta=0.01), {"losses": LOSSES, "threshold": EASY}


def _abl() -> Iterator[tuple[Stage, Inputs]]:
    yield abl.Isolated(p=0.1), {"losses": LOSSES, "data": DATA}
    yield abl.Rest(p=0.1), {"losses": LOSSES, "data": DATA}
    for reading in ("means", "batch"):
        yield abl.Signs(reading=reading), {"isolated": FEW, "data": DATA}


def _aabl() -> Iterator[tuple[Stage, Inputs]]:
    for score in ("sce", "ce"):
        yield aabl.Scores(score=score, **SCORES), {"losses": LOSSES}
    for bins in (16, None):
        yield aabl.Threshold(bins=bins), {"scores": SCORED}
    for rule in ("otsu", "fixed", "not_flipped"):
        for clamp in (None, (0.2, 0.3)):
            inputs = {"data": DATA, "scores": SCORED, "losses": LOSSES, "threshold": OTSU}
            yield aabl.VulnerableSplit(rule=rule, clamp=clamp, keep=0.5), inputs


def _dst() -> Iterator[tuple[Stage, Inputs]]:
    for ties in ("strict", "all"):
        yield dst.Split(alpha_c=0.2, alpha_p=0.05, ties=ties), {"fct": SENSITIVE}
    for flags in ((0,), (0, 2)):
        yield dst.Part(flags=flags), {"data": DATA, "split": FLAGGED}


def diagnoses() -> dict[str, Artefact]:
    """Return what each defense finds of its evidence, by the defense's name."""
    evidence: dict[str, Inputs] = {
        "aabl": {"naive": CLASSIFIER, "losses": LOSSES, "scores": SCORED, "threshold": OTSU, "split": SUBSET},
        "abl": {"isolate": CLASSIFIER, "losses": LOSSES, "isolated": FEW},
        "adversarial_training": {"subset": WHOLE, "training": CLASSIFIER},
        "cbd": {"subset": WHOLE, "backdoored": CLASSIFIER, "classifier": WEIGHED},
        "dst": {"fct": SENSITIVE, "split": FLAGGED},
        "asd": {"class_aware": POOL, "loss_guided": POOL, "classifier": POOL},
        "dbd": {"classifier": POOL},
        "gssd": {"class_tests": VERDICTS, "density": DENSITY, "split": SUBSET, "relabel": FEW},
        "lfd": {"teacher": CLASSIFIER, "losses": LOSSES, "threshold": EASY, "weights": WEIGHTS},
    }
    knobs = {"adversarial_training": {"validation": 0.1}, "dst": {"final": "adversarial"}}
    return {
        name: run(Diagnose(defense=bdtune.defense(name, **knobs.get(name, {}))), truth=TRUTH, **found)
        for name, found in evidence.items()
    }
