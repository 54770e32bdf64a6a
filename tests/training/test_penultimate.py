"""Penultimate features against the network itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged, UserError
from bdtune.training.losses import SampleLosses
from bdtune.training.penultimate import Penultimate
from bdtune.training.supervised import Supervised
from bdtune.training.weights import new_network

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=5, numerics=FP32)


@pytest.fixture(scope="module")
def seen(make_set, everything, tiny):
    data = make_set(40)
    inputs = {"data": data, "model": tiny}
    trained = Supervised(epochs=2, batch_size=8).run(CTX, **inputs, subset=everything(data))
    return {**inputs, "classifier": trained}


def test_features_and_logits_are_the_networks(seen):
    found = Penultimate().run(CTX, **seen).arrays
    data = seen["data"]
    network = new_network(seen["model"], data, 0, FP32, seen["classifier"]).eval()
    pixels = (data.images / 255.0 - data.mean) / data.std
    images = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.inference_mode():
        features = network.features(images)
        logits = network.head(features)
    np.testing.assert_allclose(found["features"], features, atol=1e-5)
    np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}
    predictions = SampleLosses().run(CTX, **seen).arrays["predictions"]
    assert np.array_equal(found["logits"].argmax(1), predictions)


def plain_maps(seen, group):
    """The maps of a group by hooks on the layers of a residual network whose stages are its groups."""
    network = new_network(seen["model"], seen["data"], 0, FP32, seen["classifier"]).eval()
    found = []
    for layer in network.body:
        layer.register_forward_hook(lambda _layer, _inputs, out: found.append(out.detach().numpy()))
    pixels = (seen["data"].images / 255.0 - seen["data"].mean) / seen["data"].std
    with torch.inference_mode():
        network(torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2))
    by_side = {maps.shape[2:]: maps for maps in found}  # the last of each size
    return list(by_side.values())[-group]


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("flatten", [False, True])
def test_maps_before_the_last_layer_are_features_too(seen, layer, flatten):
    found = Penultimate(layer=layer, flatten=flatten).run(CTX, **seen).arrays
    maps = plain_maps(seen, layer)
    expected = maps.reshape(len(maps), -1) if flatten else maps.mean((2, 3))
    np.testing.assert_allclose(found["features"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["logits"], Penultimate().run(CTX, **seen).arrays["logits"])


def test_a_group_that_is_not_there_is_named(seen):
    with pytest.raises(UserError, match=r"defense.layer: expected 0 to \d+, .*got 9"):
        Penultimate(layer=9).run(CTX, **seen)


def test_flattening_counts_for_maps_alone():
    assert Penultimate(flatten=True).config_hash == Penultimate().config_hash
    assert Penultimate(layer=1, flatten=True).config_hash != Penultimate(layer=1).config_hash


def test_a_stream_gives_the_same_in_id_order(seen, stream):
    streamed = replace(seen["data"], images=stream(seen["data"].images))
    resident, read = (Penultimate().run(CTX, **{**seen, "data": d}).arrays for d in (seen["data"], streamed))
    np.testing.assert_allclose(read["features"], resident["features"], atol=1e-5)


def test_an_output_that_is_not_finite_is_an_error(seen):
    weights = {
        name: array * np.float32(np.nan) if array.dtype == np.float32 else array
        for name, array in seen["classifier"].arrays.items()
    }
    with pytest.raises(Diverged, match="penultimate: the network's output"):
        Penultimate().run(CTX, **{**seen, "classifier": Artefact(weights)})
