from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import bdtune
from bdtune.engine.key import digest_of
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Context
from bdtune.training.embedding import Embedding
from bdtune.training.weights import module_arrays, new_network

FP32 = Numerics(device="cpu", precision="fp32")
CTX = Context(seed=3, numerics=FP32)


def weights_of(model, data) -> Artefact:
    network = new_network(model, data, 1, FP32)
    return Artefact(module_arrays(network, "model."))


def test_a_stream_is_laid_out_as_the_images_in_memory_are(make_set, tiny, stream):
    data = make_set(40)
    inputs = {"data": data, "model": tiny, "classifier": weights_of(tiny, data)}
    streamed = {**inputs, "data": replace(data, images=stream(data.images))}
    found, expected = (Embedding(samples=20).run(CTX, **given).arrays for given in (streamed, inputs))
    assert np.array_equal(found["ids"], expected["ids"])
    assert np.array_equal(found["points"], expected["points"])


def test_the_points_are_of_the_images_that_the_ids_name(make_set, tiny):
    data = make_set(40)
    data = replace(data, images=data.images.copy())
    data.images[:20] = 255 - data.images[:20] // 64
    data.images[20:] //= 64
    arrays = Embedding(samples=24).run(CTX, data=data, model=tiny, classifier=weights_of(tiny, data)).arrays
    bright = arrays["ids"] < 20
    centre = arrays["points"][bright].mean(0), arrays["points"][~bright].mean(0)
    away = [np.linalg.norm(arrays["points"] - middle, axis=1) for middle in centre]
    assert np.array_equal(away[0] < away[1], bright)


def test_a_part_is_laid_out_the_same_each_time(make_set, tiny):
    data = make_set(60)
    inputs = {"data": data, "model": tiny, "classifier": weights_of(tiny, data)}
    found = Embedding(samples=30).run(CTX, **inputs)
    assert found.arrays["points"].shape == (30, 2)
    assert found.arrays["points"].dtype == np.float32
    assert len(np.unique(found.arrays["ids"])) == 30
    assert np.isfinite(found.arrays["points"]).all()
    again = Embedding(samples=30).run(CTX, **inputs)
    assert digest_of(again.arrays, {}) == digest_of(found.arrays, {})


@pytest.mark.parametrize("count", [1, 3, 8, 9])
def test_few_images_and_networks_of_one_feature_have_a_map_too(make_set, count):
    data, narrow = make_set(count), bdtune.model("resnet_s1", stem_width=2)
    inputs = {"data": data, "model": narrow, "classifier": weights_of(narrow, data)}
    assert Embedding().run(CTX, **inputs).arrays["points"].shape == (count, 2)
