"""Activation Clustering, Spectral Signatures, STRIP and GSSD give the numbers of published code."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch

import bdtune
from bdtune.defending.blending import Entropies, Scores, Threshold
from bdtune.defenses.activation_clustering.clusters import Clustered, Reduced
from bdtune.defenses.activation_clustering.verdicts import Suspects
from bdtune.defenses.gssd.stages import ClassTests, CleanSplit, Relabel, Verdict
from bdtune.defenses.spectral_signatures.stages import SpectralRemoval, SpectralScores
from bdtune.detection import flags
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import LabelSet
from bdtune.training._flowbank import FlowBank, FlowShape
from bdtune.training.flows import Density, Flows
from bdtune.training.nt_xent import nt_xent
from bdtune.training.weights import module_arrays
from tests.defenses.parity.cases import cases, images, patterned_network
from tests.doubles import CPU

CTX = Context(0, CPU)
RULES = ("smaller", "relative_size", "distance")


@pytest.fixture(scope="module")
def rows():
    """Return features float64 [105, 12] and labels int64 [105] that several cases share."""
    case = cases("activation_clustering")["clusters"]
    return case.array("features"), case.array("labels")


# Activation Clustering


def reduced(features, labels):
    """Return what Activation Clustering's stages are given after the reduction."""
    given = {
        "penultimate": Artefact({"features": features, "logits": np.zeros((len(labels), 4))}),
        "groups": Artefact({"groups": labels}),
    }
    return {**given, "reduced": Reduced(method="pca", components=10).run(CTX, **given)}


def suspects(rows, rule):
    """Return clusters and what a rule suspects of them."""
    given = reduced(*rows)
    clustered = Clustered(clusters=2, restarts=10, sampled=1000).run(CTX, **given)
    stage = Suspects(rule=rule, size=0.35, silhouette=0.1)
    return clustered.arrays, stage.run(CTX, clustered=clustered, groups=given["groups"]).arrays


def test_activation_clustering_verdicts(rows):
    found = {rule: np.flatnonzero(suspects(rows, rule)[1]["flagged"]) for rule in RULES}
    clustered, judged = suspects(rows, "silhouette")
    found["silhouettes"] = np.round(clustered["silhouette"], 4)
    cases("activation_clustering")["clusters"].agree(**found, falls=judged["suspected"].any(1).astype(int))


def test_activation_clustering_components():
    case = cases("activation_clustering")["components"]
    features = case.array("features")
    found = reduced(features, np.zeros(len(features), np.int64))["reduced"].arrays["reduced"]
    case.agree(components=np.abs(found))


def test_activation_clustering_of_the_toolbox(rows):
    flagged = suspects(rows, "relative_size")[1]["flagged"]
    cases("activation_clustering")["toolbox"].agree(suspected=np.flatnonzero(flagged))


# Spectral Signatures


def removed(features, labels, centred, **knobs):
    """Return scores, and ids of what is removed."""
    data = LabelSet(labels, 4)
    penultimate = Artefact({"features": features})
    scoring = SpectralScores(centred=centred, directions=1, fewest=1)
    scores = scoring.run(CTX, penultimate=penultimate, data=data)
    stage = SpectralRemoval(**{"level": 0.15, "rate": None, "target": None, "cap": 0.5, "fewest": 1, **knobs})
    return scores.arrays["scores"], np.flatnonzero(stage.run(CTX, scores=scores, data=data).arrays["flagged"])


def test_spectral_signatures_of_the_toolbox(rows):
    _, ids = removed(*rows, centred=True, rule="assumed", rate=1.5 * 0.05)
    cases("spectral_signatures")["centred"].agree(removed=ids)


def test_spectral_signatures_of_the_authors(rows):
    scores, ids = removed(rows[0][:40], np.zeros(40, np.int64), centred=False, rule="share")
    cases("spectral_signatures")["released"].agree(scores=np.sqrt(scores), removed=ids)


# STRIP


def test_strip_entropies():
    inputs, overlays = np.split(images(11, side=32, mean=(0.0,) * 3, std=(1.0,) * 3).images, [5])
    data = images(5, side=32, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert np.array_equal(data.images, inputs)
    given = {"data": data, "model": bdtune.model("resnet_s", stem_width=4)}
    given["classifier"] = Artefact(module_arrays(patterned_network(side=32)))
    entropies = Entropies(scored=5, clip=False).run(CTX, **given, overlays=Artefact({"images": overlays}))
    scores = Scores(overlays=6).run(CTX, entropies=entropies).arrays["scores"]
    cases("strip")["entropy"].agree(entropy=-scores)


def test_strip_boundary():
    case = cases("strip")["threshold"]
    calibration = Artefact({"scores": -case.array("calibration")})
    threshold = Threshold(frr=0.01).run(CTX, scores=calibration).arrays["threshold"][0]
    passed = np.count_nonzero(~flags(-case.array("triggered"), threshold))
    case.agree(boundary=-threshold, passed=passed)


# GSSD


SHAPE = FlowShape(8, 2, 1)


def arrays_of(case):
    """Return the case's weights of one flow, float32 [1, ...] by name, 0 where it has none."""
    given = {name: case.inputs.get(name, np.zeros(size)) for name, size in SHAPE.parameters().items()}
    return {name: np.asarray(value, np.float32)[None] for name, value in given.items()}


def bank_of(case):
    """Return one flow with the case's weights."""
    return FlowBank.from_arrays(SHAPE, arrays_of(case), "cpu")


def test_gssd_contrastive_loss():
    case = cases("gssd")["simclr"]
    case.agree(loss=nt_xent(case.tensor("projections"), 0.5))


def test_gssd_densities_and_their_gradient():
    case = cases("gssd")["density"]
    bank, x_KBD = bank_of(case), case.tensor("rows")[None]
    gradients = {name: torch.empty_like(value) for name, value in bank.weights.items()}
    bank.loss_and_gradient(x_KBD, torch.full((1, 9), 1 / 9), gradients)
    found = {name: value[0] for name, value in gradients.items()}
    case.agree(density=bank.log_density(x_KBD)[0], **found)


def test_gssd_actnorm_after_the_first_batch():
    case = cases("gssd")["actnorm"]
    bank, x_KBD = bank_of(case), case.tensor("rows")[None]
    bank.initialise(x_KBD, torch.ones(1, 16), 0.0)
    case.agree(**{name: bank.weights[name][0] for name in case.expected})


def test_gssd_training():
    case = cases("gssd")["training"]
    features = Artefact({"z": case.array("rows").astype(np.float32)})
    data = LabelSet(np.repeat([0, 1], [14, 10]), 2)
    first = {name: np.repeat(value, 2, 0) for name, value in arrays_of(case).items()}
    with mock.patch("bdtune.training._flowtrainer.initial_weights", return_value=first):
        flows = Flows(epochs=20, min_std=0.0).run(CTX, features=features, data=data)
    found = Density().run(CTX, flows=flows, features=features, data=data)
    case.agree(density=found.arrays["L"])


def test_gssd_verdicts():
    case = cases("gssd")["verdicts"]
    density = Artefact({"L": case.array("densities").astype(np.float32), "labels": case.array("labels")})
    tests = ClassTests(given=None).run(CTX, density=density)
    given = {"density": density, "class_tests": tests}
    kept = CleanSplit(alpha_c_nd=0.3, alpha_c_d=0.3).run(CTX, **given).arrays["ids"]
    new, verdict = Relabel(alpha_p=0.15).run(CTX, **given).arrays, tests.arrays["verdict"]
    case.agree(
        disruptive=np.flatnonzero(verdict == Verdict.DISRUPTIVE),
        non_disruptive=np.flatnonzero(verdict == Verdict.NON_DISRUPTIVE),
        kept=kept,
        relabelled=new["ids"],
        new=new["labels"],
    )
