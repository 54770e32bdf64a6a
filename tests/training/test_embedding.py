from __future__ import annotations

import numpy as np
import pytest

import bdtune
from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.training.embedding import Embedding, features_of
from bdtune.training.predict import predict_features, trained_network
from bdtune.training.weights import module_arrays, new_network

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=3, numerics=FP32)


def weights_of(model, data) -> Artefact:
    network = new_network(model, data, 1, FP32)
    return Artefact(module_arrays(network, "model."))


@pytest.mark.parametrize("streamed", [False, True])
def test_features_are_those_of_the_images_drawn(make_set, tiny, stream, streamed):
    data = make_set(40)
    inputs = {"data": data, "model": tiny, "classifier": weights_of(tiny, data)}
    expected = predict_features(trained_network(tiny, data, inputs["classifier"], FP32), data, FP32)
    given = data if not streamed else type(data)(stream(data.images), data.labels, 3, data.mean, data.std)
    ids = np.array([2, 3, 17, 39])
    np.testing.assert_allclose(features_of(given, ids, inputs, CTX), expected[ids], rtol=1e-4, atol=1e-6)


def test_a_part_is_laid_out_the_same_each_time(make_set, tiny):
    data = make_set(60)
    inputs = {"data": data, "model": tiny, "classifier": weights_of(tiny, data)}
    found = Embedding(samples=30).run(inputs, CTX)
    assert found.arrays["points"].shape == (30, 2)
    assert found.arrays["points"].dtype == np.float32
    assert len(np.unique(found.arrays["ids"])) == 30
    assert np.isfinite(found.arrays["points"]).all()
    again = Embedding(samples=30).run(inputs, CTX)
    assert digest_of(again.arrays, {}) == digest_of(found.arrays, {})


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_few_images_and_networks_of_one_feature_have_a_map_too(make_set, count):
    data, narrow = make_set(count), bdtune.model("resnet_s1", stem_width=2)
    inputs = {"data": data, "model": narrow, "classifier": weights_of(narrow, data)}
    assert Embedding().run(inputs, CTX).arrays["points"].shape == (count, 2)
