"""The validation part, the training that watches it, and the epoch that is chosen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.metrics import accuracy
from bdtune.plugins.data import LabelSet
from bdtune.training.adversarial import PGD, AdversarialTraining
from bdtune.training.pgd import robust_predictions
from bdtune.training.predict import trained_network
from bdtune.training.validation import BestEpoch, ValidationSplit

FP32 = Numerics(device="cpu", precision="fp32")
KNOBS = {
    "epochs": 5,
    "batch_size": 8,
    "optimizer": "adam",
    "lr": 0.05,
    "augment": "none",
    "pgd": PGD(eps=40 / 255, step=20 / 255, steps=2),
}
STAGE = AdversarialTraining(**KNOBS)


def apart(data, fraction=0.25, seed=0):
    return ValidationSplit(fraction=fraction).run(Context(seed=seed), data=LabelSet(data.labels, 3))


@pytest.fixture
def inputs(make_set, tiny):
    data = make_set(64)
    return {"data": data, "subset": apart(data), "model": tiny}


def robust_accuracy(result, inputs):
    """Of a result's weights on the validation part, measured from outside."""
    data, part = inputs["data"], inputs["subset"].arrays
    held = replace(data, images=data.images[part["validation_ids"]], labels=part["validation_labels"])
    network = trained_network(inputs["model"], data, result, FP32)
    return accuracy(robust_predictions(network, held, STAGE.pgd, 5, FP32), held.labels)


@pytest.mark.parametrize(("fraction", "held"), [(0.001, 1), (0.25, 16), (0.999, 63)])
def test_the_part_is_held_out_and_keeps_observed_labels(make_set, fraction, held):
    data = make_set(64)
    part = apart(data, fraction).arrays
    assert len(part["validation_ids"]) == held
    assert sorted([*part["ids"], *part["validation_ids"]]) == list(range(64))
    for prefix in ("", "validation_"):
        ids = part[f"{prefix}ids"]
        assert (np.diff(ids) > 0).all()
        assert np.array_equal(part[f"{prefix}labels"], data.labels[ids])
    assert not np.array_equal(part["ids"], apart(data, fraction, seed=1).arrays["ids"])


def test_the_best_epoch_is_the_first_of_the_highest_robust_accuracy(inputs):
    ticks = [tick.artefact() for tick in STAGE.steps(Context(seed=5, numerics=FP32), **inputs)]
    measured = [robust_accuracy(result, inputs) for result in ticks]
    last = ticks[-1]
    assert last.arrays["validation.robust_acc"].tolist() == measured
    assert [row["validation_robust_acc"] for row in last.curve] == measured
    best = measured.index(max(measured))
    assert 0 < best < 4  # else the test shows nothing
    chosen = BestEpoch().run(Context(), classifier=last)
    assert chosen.info == {"epoch": best + 1}
    at_best = {name: each for name, each in ticks[best].arrays.items() if name.startswith("model.")}
    assert digest_of(chosen.arrays, None) == digest_of(at_best, None)


def test_of_equal_epochs_the_first_is_kept(inputs):
    """A rate of next to nothing: no epoch differs from the one before."""
    still = STAGE.model_copy(update={"lr": 1e-30, "optimizer": "sgd", "epochs": 3})
    ticks = [tick.artefact() for tick in still.steps(Context(seed=5, numerics=FP32), **inputs)]
    accuracies = ticks[-1].arrays["validation.robust_acc"]
    first = int(np.flatnonzero(accuracies == accuracies.max())[0])
    chosen = BestEpoch().run(Context(), classifier=ticks[-1])
    assert chosen.info == {"epoch": first + 1}
    name = next(name for name in chosen.arrays if "running_mean" in name)
    assert np.array_equal(chosen.arrays[name], ticks[first].arrays[name])
    assert not np.array_equal(ticks[0].arrays[name], ticks[2].arrays[name])


@pytest.mark.slow
def test_watching_moves_no_weight_and_held_out_images_train_nothing(inputs):
    ctx = Context(seed=5, numerics=FP32)
    watched = STAGE.run(ctx, **inputs).arrays
    trained = Artefact({name: inputs["subset"].arrays[name] for name in ("ids", "labels")})
    plain = STAGE.run(ctx, **{**inputs, "subset": trained}).arrays
    assert all(np.array_equal(watched[name], value) for name, value in plain.items())
    images = inputs["data"].images.copy()
    images[inputs["subset"].arrays["validation_ids"]] = 0
    other = STAGE.run(ctx, **{**inputs, "data": replace(inputs["data"], images=images)}).arrays
    assert all(np.array_equal(other[name], value) for name, value in plain.items())
    assert not np.array_equal(other["validation.robust_acc"], watched["validation.robust_acc"])


@pytest.mark.slow
def test_resumes_bit_for_bit(inputs, memory):
    whole = STAGE.run(Context(seed=5, numerics=FP32), **inputs)
    ctx = Context(seed=5, numerics=FP32, checkpoint=memory(due_after=[3]))
    steps = STAGE.steps(ctx, **inputs)
    assert [next(steps).epoch for _ in range(3)] == [1, 2, 3]
    steps.close()
    torch.manual_seed(9)
    resumed = STAGE.run(ctx, **inputs)
    assert digest_of(resumed.arrays, resumed.info) == digest_of(whole.arrays, whole.info)


def test_a_stream_is_validated_too(inputs, stream):
    data = inputs["data"]
    streamed = {**inputs, "data": replace(data, images=stream(data.images))}
    found = STAGE.run(Context(seed=5, numerics=FP32), **streamed)
    assert found.arrays["validation.robust_acc"][-1] == robust_accuracy(found, inputs)
