"""What each derived stage gives, and what each defense's diagnosis finds, on made-up inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import bdtune
from bdtune.attacks.latent_backdoor.patch import RowsPerClass
from bdtune.attacks.pruning_aware.stages import CleanPart
from bdtune.defending import blending as strip
from bdtune.defending.filtering import Kept, RandomRemoval
from bdtune.defenses.aabl import split as aabl
from bdtune.defenses.abl import stages as abl
from bdtune.defenses.activation_clustering import clusters, verdicts
from bdtune.defenses.dst import split as dst
from bdtune.defenses.fine_pruning import stages as fine_pruning
from bdtune.defenses.gssd import stages as gssd
from bdtune.defenses.lfd import stages as lfd
from bdtune.defenses.neural_cleanse import outliers
from bdtune.defenses.spectral_signatures import stages as spectral
from bdtune.engine.stage import Artefact, Context, Stage
from bdtune.plugins import clean_part
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import GoalSet, LabelSet, Truth
from bdtune.plugins.defense import Diagnose
from bdtune.plugins.input_detector import Detection
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
PLACED = Artefact(
    {"z": np.outer(np.arange(1, N + 1) ** 2, [0.6180339, 0.4142135]) % 1}
)  # all distances differ
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
FLAGGED_ROWS = Artefact({"flagged": (POISON & (np.arange(N) % 5 > 0)) | (np.arange(N) % 24 == 5)})
RISEN = Artefact(
    {
        "scores": 8 - LOSSES.arrays["losses"],
        "projections": np.stack([4 - LOSSES.arrays["losses"], LOSSES.arrays["losses"]], 1),
        "singular": np.array([8.0, 2, 1, 1, 0.5, 0, 0]) * np.array([[1], [0.5], [0.25], [0]]),
    }
)
"""What stages before would decide, made up so that each stage answers for itself alone."""

ANSWERED = np.where(POISON & (np.arange(N) % 5 > 0), 2, np.where(np.arange(N) % 28 == 21, 3, LABELS))
"""Predictions after which most poison is of class 2, and a few rows of class 1 are of class 3."""


def _clustered() -> Artefact:
    """Return classes in clusters: poison and the rest; small and close ones; large ones; a class left out."""
    place = np.arange(N) // CLASSES
    parts = [POISON.astype(int), (place % 6 > 2) * 1 + (place % 6 > 4), (place % 20 > 10) * 1, -1 - 0 * place]
    silhouette = np.array([0.5, 0.0625, 0.25, 0.0])
    return Artefact(
        {
            "clusters": np.choose(LABELS, parts).astype(np.int64),
            "sizes": np.array([[45, 15, 0], [30, 20, 10], [33, 27, 0], [0, 0, 0]]),
            "silhouette": silhouette,
            "closer": np.array([[-2.0, 0.5, -np.inf], [-1, 0, -3], [0.25, -1, -np.inf], [-np.inf] * 3]),
            "scores": np.where(LABELS == 3, -1.0, (2 - LOSSES.arrays["losses"]) / 4 * silhouette[LABELS]),
        }
    )


def _inversion() -> Artefact:
    """Return triggers of nine classes: a small mask, a large one, and a tiny one that never worked."""
    i, j, c = np.ogrid[:8, :12, :3]
    label = np.arange(9)[:, None, None]
    return Artefact(
        {
            "norm": np.array([4.0, 20, 21.5, 24, 60, 22, 2.5, 26, 23]),
            "reached": np.arange(9) != 6,
            "success": np.arange(16, 7, -1) / 16,
            "epochs": np.arange(8, 44, 4),
            "mask": ((i[..., 0] + j[..., 0] + label) % 8 / 8).astype(np.float32),
            "pattern": ((i + 3 * j + 5 * c + label[..., None]) % 16 / 16).astype(np.float32),
        }
    )


def _repaired() -> tuple[Artefact, Artefact]:
    """Return a classifier's weights and curve before and after a tuning."""
    shapes = {
        "body.2": (4, 2, 3, 3),
        "body.10": (8, 4, 3, 3),
        "body.12.shortcut": (8, 4, 1, 1),
        "head": (4, 8),
    }
    steps = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    before = {f"model.{name}.weight": (step % 7 - 2) / 4 for name, step in steps.items()}
    after = {f"model.{name}.weight": (step % 5 - 1) / 8 for name, step in steps.items()}
    statistics = {"model.body.3.running_mean": np.ones(4, np.float32)}
    row = {"epoch": 1, "loss": 0.5, "acc": 0.75, "validation_loss": 0.625, "validation_acc": 0.6875}
    attention = {"ce": 0.5, **{f"attention_{place}": place / 8 for place in (1, 2, 3)}}
    info = {"groups": [["body.2", 1024], ["body.10", 256], ["body.12", 64]]}
    as_stored = [
        {name: array.astype(np.float32) for name, array in arrays.items()} | statistics
        for arrays in (before, after)
    ]
    return Artefact(as_stored[0]), Artefact(as_stored[1], info, ({**row, "acc": 0.5}, {**row, **attention}))


def _shown() -> Artefact:
    """Return channels while they are pruned, seen in images of which powers of two are poison or not."""
    ids = np.union1d(np.flatnonzero(POISON)[:8], np.flatnonzero(~POISON)[:32])
    active = (ids[:, None] * np.arange(3, 19, 2)) % 16 / 16 + POISON[ids, None] * (np.arange(8) % 3)
    points = [np.where(POISON[ids] & (ids % 32 < limit), 3, LABELS[ids]) for limit in (0, 8, 32)]
    pruned = np.array([0, 3, 6])
    arrays = {"ids": ids, "pruned": pruned, "predictions": np.stack(points)}
    return Artefact({**arrays, "activation": active.astype(np.float32)})


def _tested(shift: float) -> Artefact:
    """Return scores of test inputs, of which every seventh is classified wrongly."""
    ids = np.arange(0, 90, 3)
    scores = (ids * 7 % 32) / 16 - 4 + shift
    return Artefact({"ids": ids, "scores": scores, "predicted": np.where(ids % 7, LABELS[ids], 1)})


CLUSTERED, INVERSION, SHOWN, (BEFORE, AFTER) = _clustered(), _inversion(), _shown(), _repaired()
SUSPECTED = Artefact(
    {"suspected": np.array([[0, 1, 0], [0, 1, 1], [0, 1, 0], [0, 0, 0]], bool), **FLAGGED_ROWS.arrays}
)
GROUPED = Artefact({"groups": LABELS, "agreement": np.array([0.875])})
MOVED = Artefact(
    {
        **FLAGGED_ROWS.arrays,
        "ratio": np.array([[np.nan, 0.25, np.nan], [np.nan, 9, 4], [np.nan, np.inf, np.nan], [np.nan] * 3]),
        "source": np.where(FLAGGED_ROWS.arrays["flagged"], 2, -1),
    }
)
OUTLYING = Artefact(
    {
        "index": np.array([6.0, 0.75, 0.5, -0.5, -12.0, 0.0, np.nan, -1.25, np.inf]),
        "flagged": np.isin(np.arange(9), [0, 6, 8]),
        "norm": INVERSION.arrays["norm"],
    },
    {"threshold": 2.0, "median": 22.5, "deviation": 2.75, "chance": 0.125, "undefined": 1},
)
RANKED = Artefact(
    {
        "activation": np.array([0.5, 0, 2, 0.25, 0, 1, 0.75, 3], np.float32),
        "order": np.array([1, 4, 3, 0, 6, 5, 2, 7]),
    }
)
CURVE = Artefact(
    {
        "pruned": np.arange(8),
        "acc": np.array([0.75, 0.75, 0.6875, 0.625, 0.5625, 0.4375, 0.53125, 0.25]),
    }
)
"""Of which 6 are pruned where 0.25 may be lost, and 4 where it is a quarter."""


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
    yield from _filters()
    yield from _activation_clustering()
    yield from _fine_pruning()
    yield from _neural_cleanse()
    yield from _strip()
    yield from _detection()


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


def _filters() -> Iterator[tuple[Stage, Inputs]]:
    yield Kept(), {"removal": FLAGGED_ROWS, "data": DATA}
    yield RandomRemoval(), {"suspects": FLAGGED_ROWS, "data": DATA}
    knobs: dict[str, Any] = {
        "rule": "assumed",
        "level": 0.15,
        "rate": None,
        "target": None,
        "cap": 0.5,
        "fewest": 10,
    }
    rules = (
        {},
        {"rule": "share"},
        {"rule": "mad", "level": 1.0},
        {"rate": 0.05},
        {"rule": "mad", "rate": 0.1},
    )
    for over in (*rules, {"target": 2}, {"cap": 0.1}, {"fewest": 100}):
        yield spectral.SpectralRemoval(**{**knobs, **over}), {"scores": RISEN, "data": DATA}


def _activation_clustering() -> Iterator[tuple[Stage, Inputs]]:
    logits = np.eye(CLASSES, dtype=np.float32)[ANSWERED]
    for by in ("label", "prediction"):
        yield clusters.Groups(by=by), {"penultimate": Artefact({"logits": logits}), "data": DATA}
    inputs = {"clustered": CLUSTERED, "groups": GROUPED}
    for rule in ("smaller", "relative_size", "silhouette", "distance"):
        yield verdicts.Suspects(rule=rule, size=0.35, silhouette=0.1), inputs
    losses = Artefact({"predictions": ANSWERED})
    for threshold in (1.0, 5.0):
        stage = verdicts.Reclassified(threshold=threshold)
        yield stage, {**inputs, "suspects": SUSPECTED, "losses": losses}
    yield verdicts.Relabelled(), {"removal": MOVED, "data": DATA}


def _fine_pruning() -> Iterator[tuple[Stage, Inputs]]:
    knobs: dict[str, Any] = {"layer": "features", "rule": "tolerance", "tolerance": 0.25, "relative": False}
    for over in (
        {},
        {"relative": True},
        {"rule": "ratio"},
        {"rule": "ratio", "ratio": 1.0, "layer": "inner"},
    ):
        stage = fine_pruning.Choose(**{"ratio": 0.3, **knobs, **over})
        yield stage, {"ranking": RANKED, "curve": CURVE}


def _neural_cleanse() -> Iterator[tuple[Stage, Inputs]]:
    knobs: dict[str, Any] = {"threshold": 2.0, "false_alarms": None, "median": "mean"}
    knobs |= {"side": "small", "unreached": "leave_out"}
    changed: tuple[Inputs, ...] = ({"false_alarms": 0.05}, {"median": "lower"}, {"side": "both"})
    for over in ({}, *changed, {"side": "both", "false_alarms": 0.05}, {"unreached": "keep"}):
        yield outliers.Outliers(**{**knobs, **over}), {"inversion": INVERSION}
    alike = {"norm": np.array([8.0, 8, 2, 8]), "reached": np.ones(4, bool)}
    for reached in (np.ones(4, bool), np.arange(4) < 2):  # an infinite index; too few classes
        yield outliers.Outliers(**knobs), {"inversion": Artefact({**alike, "reached": reached})}
    yield outliers.Selected(), {"inversion": INVERSION, "outliers": OUTLYING}
    for patch in ({}, {"target": 2, "size": 16, "inset": 8, "corner": "top_left"}):
        yield outliers.Known(patch=outliers.Patch(**patch)), {"inversion": INVERSION}


LOW = Artefact({"scores": -((np.arange(N) * 29) % 64) / 32 - np.where(POISON, 0.0, 1.0)})
"""Negative entropies, those of poison nearer to zero."""
LIMIT = Artefact({"threshold": np.array([-0.75])}, {"fell_back": 0.0})


def _strip() -> Iterator[tuple[Stage, Inputs]]:
    passes = ((np.arange(20)[:, None] * np.array([3, 5, 7, 11])) % 16 / 8).astype(np.float32)
    same = {"ids": np.arange(0, 60, 3), "predicted": np.arange(20) % CLASSES}
    for used in (2, 4):
        yield strip.Scores(overlays=used), {"entropies": Artefact({**same, "entropies": passes})}
    far, near = np.arange(16) / 32 - 4, -(np.arange(16) ** 2) / 64  # a normal boundary below and above zero
    for scores, frr, boundary in (
        (far, 0.125, "normal"),
        (far, 0.125, "quantile"),
        (near, 0.125, "normal"),
        (near, 0.01, "normal"),  # falls back on a quantile that needs more scores
    ):
        yield strip.Threshold(frr=frr, boundary=boundary), {"scores": Artefact({"scores": scores})}
    yield strip.LowEntropy(), {"scores": LOW, "threshold": LIMIT}


def _detection() -> Iterator[tuple[Stage, Inputs]]:
    yield clean_part.CleanPart(part="tuning", validation=0.0), {"data": DATA}
    few = LabelSet(np.append(LABELS[:41], CLASSES), CLASSES + 1)  # a class of one image
    for part in ("tuning", "validation"):
        for validation in (0.01, 0.25, 0.99):
            yield clean_part.CleanPart(part=part, validation=validation), {"data": few}
    inputs = {"clean": _tested(0.0), "clean_labels": DATA}
    goals = {
        "one": np.zeros(N, np.int64),
        "own": LABELS,
    }  # the second leaves no triggered input of another class
    for limit in (-2.5, np.inf):
        limited = {**inputs, "threshold": Artefact({"threshold": np.array([limit])})}
        yield Detection(), limited
        for wanted in goals.values():
            fooled = {**_tested(1.0).arrays, "predicted": np.where(np.arange(30) % 4, 0, 3)}
            triggered = {"triggered": Artefact(fooled), "triggered_labels": GoalSet(LABELS, CLASSES, wanted)}
            yield Detection(), {**limited, **triggered}


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
        "gssd": {
            "features": PLACED,
            "class_tests": VERDICTS,
            "density": DENSITY,
            "split": SUBSET,
            "relabel": FEW,
        },
        **_later_evidence(),
        "lfd": {"teacher": CLASSIFIER, "losses": LOSSES, "threshold": EASY, "weights": WEIGHTS},
    }
    knobs = {"adversarial_training": {"validation": 0.1}, "dst": {"final": "adversarial"}}
    return {
        name: run(Diagnose(defense=bdtune.defense(name, **knobs.get(name, {}))), truth=TRUTH, **found)
        for name, found in evidence.items()
    }


def _later_evidence() -> dict[str, Inputs]:
    """Return the evidence of filters, repairs and detectors of inputs."""
    three = np.stack([LABELS, ANSWERED, np.where(POISON, TRUTH.labels, LABELS)])
    halves = np.array([True, False, True, False])
    return {
        "activation_clustering": {
            "groups": GROUPED,
            "reduced": Artefact({"converged": halves}),
            "clustered": CLUSTERED,
            "removal": MOVED,
        },
        "fine_pruning": {
            "ranking": RANKED,
            "curve": CURVE,
            "mask": Artefact({"mask": np.isin(np.arange(8), [0, 1, 3, 4])}),
            "shown": SHOWN,
        },
        "fine_tuning": {"undefended": BEFORE, "classifier": AFTER},
        "nad": {
            "undefended": BEFORE,
            "classifier": AFTER,
            "answers": Artefact({"ids": np.arange(N), "predictions": three}),
        },
        "neural_cleanse": {
            "inversion": INVERSION,
            "outliers": OUTLYING,
            "left": Artefact({"success": np.array([0.25, 0.125])}),
        },
        "spectral_signatures": {"scores": RISEN, "removal": FLAGGED_ROWS},
        "strip": {
            "detection": Artefact(
                {
                    "clean": _tested(0.0).arrays["scores"],
                    "triggered": _tested(1.0).arrays["scores"],
                    "threshold": np.array([-2.5]),
                },
                {"frr": 0.125, "far": 0.25, "auroc": 0.75},
            ),
            "threshold": Artefact({}, {"fell_back": 1.0}),
        },
        "strip_filter": {
            "calibration": LOW,
            "scores": LOW,
            "threshold": LIMIT,
            "removal": FLAGGED_ROWS,
        },
    }
