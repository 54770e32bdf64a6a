"""Features, Evaluate, AllSamples and prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bdtune.engine.key import canonical_json
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.data import TriggeredSet
from bdtune.training.evaluate import Evaluate
from bdtune.training.features import Features
from bdtune.training.predict import predict_features, predict_logits, trained_network
from bdtune.training.session import full_float32
from bdtune.training.simclr import SimCLR
from bdtune.training.weights import module_arrays, new_network

FP32, BF16 = (Numerics(device="cpu", precision=name) for name in ("fp32", "bf16"))
CTX = Context(seed=2, numerics=FP32)


@pytest.fixture
def weights(make_set, tiny):
    return Artefact(module_arrays(new_network(tiny, make_set(4), 1, FP32)))


@pytest.mark.parametrize("streamed", [False, True])
def test_prediction_is_the_networks_own(make_set, tiny, weights, stream, streamed):
    data = make_set(20)
    network = trained_network(tiny, data, weights, FP32)
    pixels = torch.from_numpy(data.images).double() / 255
    inputs = ((pixels - torch.tensor(data.mean)) / torch.tensor(data.std)).permute(0, 3, 1, 2).float()
    with torch.inference_mode():
        expected, features = network(inputs).numpy(), network.features(inputs).numpy()
    seen = replace(data, images=stream(data.images)) if streamed else data
    np.testing.assert_allclose(predict_logits(network, seen, FP32), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict_features(network, seen, FP32), features, rtol=1e-4, atol=1e-5)


def test_prediction_leaves_the_networks_mode_and_statistics(make_set, tiny, weights):
    data = make_set(20)
    network = trained_network(tiny, data, weights, FP32).train()
    predict_logits(network, data, FP32)
    assert network.training
    after = module_arrays(network)
    assert all(np.array_equal(after[name], weights.arrays[name]) for name in after)


def test_features_in_bf16_are_close_to_those_in_fp32(make_set, tiny, weights):
    data = make_set(40)
    network = trained_network(tiny, data, weights, FP32)
    exact, rounded = (predict_features(network, data, numerics) for numerics in (FP32, BF16))
    assert not np.array_equal(exact, rounded)
    assert np.abs(exact - rounded).max() < 0.05 * np.abs(exact).max()


def test_logits_are_float32_whatever_the_precision_of_the_training(make_set, tiny, weights):
    data = make_set(40)
    network = trained_network(tiny, data, weights, FP32)
    exact, same = (predict_logits(network, data, numerics) for numerics in (FP32, BF16))
    np.testing.assert_array_equal(exact, same)


def test_predictions_are_told_apart_where_bf16_would_tie(make_set, tiny):
    data = make_set(12)
    close = constant_classifier(tiny, data, 1)
    close.arrays["model.head.bias"][:] = [1, 1.001, 0]  # equal in bf16, of which argmax takes the first
    triggered = TriggeredSet(data.images, data.labels, 3, data.mean, data.std, goals=np.zeros(12, np.int64))
    inputs = {"classifier": close, "model": tiny, "clean": data, "triggered": triggered}
    info = Evaluate().run(Context(seed=2, numerics=BF16), **inputs).info
    assert (info["acc"], info["asr"]) == (np.mean(data.labels == 1), 0.0)


def test_full_float32_takes_no_shortcut_on_any_device():
    backends = torch.backends
    before = (backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert not backends.cudnn.allow_tf32
            assert not backends.cuda.matmul.allow_tf32
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
        assert backends.cudnn.allow_tf32 == before[0]
    finally:
        torch.set_float32_matmul_precision(before[1])


def test_features_are_standardised_with_the_unbiased_deviation(make_set, tiny):
    data = make_set(64)
    encoder = SimCLR(epochs=1, batch_size=32, projection=4).run(CTX, data=data, model=tiny)
    result = Features().run(CTX, data=data, model=tiny, encoder=encoder)
    raw = predict_features(trained_network(tiny, data, encoder, FP32), data, FP32)[:, result.arrays["kept"]]
    expected = (raw - raw.mean(0)) / raw.std(0, ddof=1)
    np.testing.assert_allclose(result.arrays["z"], expected, rtol=1e-3, atol=1e-4)
    assert {name: value.dtype for name, value in result.arrays.items()} == {
        "z": np.float32,
        "mean": np.float32,
        "std": np.float32,
        "kept": np.int64,
    }


def test_dead_features_are_dropped(make_set, tiny, weights):
    arrays = dict(weights.arrays)
    last = max(name for name in arrays if "bn2.weight" in name)
    arrays[last] = np.array([1, 0, 1, 1], np.float32)
    shortcut = last.replace("bn2", "downsample.1")
    arrays[shortcut] = np.array([1, 0, 1, 1], np.float32)
    encoder = Artefact(arrays)
    result = Features().run(CTX, data=make_set(32), model=tiny, encoder=encoder)
    assert 1 not in result.arrays["kept"]
    assert result.arrays["z"].shape == (32, len(result.arrays["kept"]))
    assert np.isfinite(result.arrays["z"]).all()
    arrays[last], arrays[shortcut] = np.zeros(4, np.float32), np.zeros(4, np.float32)
    with pytest.raises(Diverged, match="none of the 4 features"):
        Features().run(CTX, data=make_set(32), model=tiny, encoder=Artefact(arrays))


def constant_classifier(tiny, data, favourite):
    arrays = module_arrays(new_network(tiny, data, 1, FP32))
    arrays["model.head.weight"][:] = 0
    arrays["model.head.bias"][:] = np.eye(3)[favourite]
    return Artefact(arrays)


def test_evaluation_counts(make_set, tiny):
    data = replace(make_set(6), labels=np.array([0, 0, 1, 1, 1, 2]))
    triggered = TriggeredSet(
        data.images, data.labels, 3, data.mean, data.std, goals=np.array([1, 1, 1, 1, 2, 1])
    )
    inputs = {"classifier": constant_classifier(tiny, data, 1), "model": tiny, "clean": data}
    known = replace(data, labels=np.array([1, 1, 1, 0, 0, 0]))
    held_out = {"select": data, "select_clean": known}
    result = Evaluate().run(CTX, **inputs, **held_out, triggered=triggered)
    assert dict(result.arrays) == {}
    assert result.info == {
        "acc": 0.5,
        "asr": 3 / 4,  # rows 0, 1, 4, 5 are of other classes than their goal
        "asr_all": 5 / 6,
        "ra": 1 / 4,
        "select_acc": 0.5,
        "select_by_class": [[0, 2], [3, 3], [0, 1]],
        "select_clean_acc": 0.5,
        "select_clean_by_class": [[0, 3], [3, 3], [0, 0]],
        "n_clean": 6,
        "n_triggered": 6,
    }
    canonical_json(result.info)
    assert Evaluate().run(CTX, **inputs).info == {"acc": 0.5, "n_clean": 6, "n_triggered": 0}


def test_accuracy_under_generic_triggers_is_that_under_the_worst_of_them(make_set, tiny):
    data = replace(make_set(9), labels=np.array([1, 1, 1, 1, 0, 0, 1, 1, 2]))
    inputs = {"classifier": constant_classifier(tiny, data, 1), "model": tiny, "clean": data}
    info = Evaluate().run(CTX, **inputs, select_clean_triggered=data).info
    assert info["select_trigger_acc"] == pytest.approx(1 / 3)
    assert set(info) == {"acc", "select_trigger_acc", "n_clean", "n_triggered"}


def test_what_cannot_be_counted_is_left_out(make_set, tiny):
    data = make_set(4)
    only_target = TriggeredSet(data.images, data.labels, 3, data.mean, data.std, goals=data.labels)
    inputs = {"classifier": constant_classifier(tiny, data, 1), "model": tiny, "clean": data}
    result = Evaluate().run(CTX, **{**inputs, "triggered": only_target})
    assert set(result.info) == {"acc", "asr_all", "n_clean", "n_triggered"}


def test_every_image_is_not_counted_where_some_are_missing(make_set, tiny):
    data = make_set(6)
    part = TriggeredSet(
        data.images, data.labels, 3, data.mean, data.std, goals=(data.labels + 1) % 3, complete=False
    )
    inputs = {"classifier": constant_classifier(tiny, data, 1), "model": tiny, "clean": data}
    assert "asr_all" not in Evaluate().run(CTX, **{**inputs, "triggered": part}).info


def test_all_samples(make_set):
    data = make_set(5)
    result = AllSamples().run(CTX, data=data)
    np.testing.assert_array_equal(result.arrays["ids"], np.arange(5))
    np.testing.assert_array_equal(result.arrays["labels"], data.labels)
    assert {value.dtype for value in result.arrays.values()} == {np.dtype(np.int64)}
    assert result.info == {}


def test_stages_can_be_described_without_torch():
    import subprocess
    import sys

    code = (
        "import sys; from bdtune.training import supervised, simclr, features, evaluate;"
        "supervised.Supervised(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_accuracy_on_covered_and_on_held_out_images_is_counted_where_there_are_such(make_set, tiny, weights):
    data = make_set(30)
    inputs = {"classifier": weights, "model": tiny, "clean": data}
    assert set(Evaluate().run(CTX, **inputs).info) == {"acc", "n_clean", "n_triggered"}
    guesses = predict_logits(trained_network(tiny, data, weights, FP32), data, FP32).argmax(1)
    wrong = replace(data, labels=np.where(np.arange(30) < 6, guesses, (guesses + 1) % data.num_classes))
    info = Evaluate().run(CTX, **{**inputs, "cover": wrong, "select": replace(data, labels=guesses)}).info
    assert (info["noise_acc"], info["select_acc"]) == (6 / 30, 1.0)
