"""What Ray Data's workers stamp equals what the process stamps, byte for byte, for every attack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bdtune.plugins import registry
from bdtune.poisoning.stream import poisoned_stream
from bdtune.reading.stream import FileStream
from bdtune.testing.attacks import with_cover_rows
from bdtune.testing.small import equipped_for, is_trained, merged, quick
from tests.datasets.layouts import small_parquet
from tests.records import record_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of Ray's own
]
N, SIDE, CLASSES, WINDOW = 120, 16, 3, 25
NAMES = registry.names("attacks")


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    root = tmp_path_factory.mktemp("attacks")
    knobs = small_parquet(root, n_train=N, n_test=40, classes=CLASSES, row_group=30)
    return registry.load("datasets", "parquet")(**knobs, image_size=SIDE), root


def streamed(dataset, root, split, **speed):
    from bdtune.cluster import pipeline

    stream = pipeline.stream(dataset, split, root, **speed)
    clean = FileStream(stream.work.clean.selection, window_rows=WINDOW)
    return replace(stream, work=replace(stream.work, clean=clean))


def collected(stream, seed):
    """Return the stream's images in the order of their ids."""
    images = np.zeros(stream.shape, np.uint8)
    for ids, part in stream.blocks(seed):
        images[ids] = part
    return images


@pytest.mark.parametrize("name", NAMES)
def test_training_and_test_images(ray_session, parquet, name):
    dataset, root = parquet
    cls = registry.load("attacks", name)
    knobs = {"rate": 0.5 if cls.clean_label else 0.3, "target": 1, **with_cover_rows(cls)}
    if name == "record":
        both = (dataset.load(split, root) for split in ("train", "test"))
        record = record_of(*((split.images, split.labels) for split in both), CLASSES)
        attack = equipped_for(record, dataset, root)
    else:
        attack = equipped_for(cls(**merged(knobs, quick(cls) if is_trained(cls) else {})), dataset, root)
    labels = dataset.labels("train", root)
    plan = attack.plan(labels, seed=5, num_classes=CLASSES)
    expected = attack.apply(dataset.load("train", root).images, np.arange(N), plan)
    for seed, speed in ((None, {}), (4, {"block_count": 2, "workers": 1})):
        stream = poisoned_stream(streamed(dataset, root, "train", **speed), attack, plan)
        assert collected(stream, seed).tobytes() == expected.tobytes()
    some = np.arange(0, N, 7)  # without what is held out
    stream = poisoned_stream(streamed(dataset, root, "train"), attack, plan, some)
    assert collected(stream, 2).tobytes() == expected[some].tobytes()
    triggered = attack.trigger(dataset.load("test", root).images, np.arange(40))
    stream = poisoned_stream(streamed(dataset, root, "test"), attack)
    assert collected(stream, None).tobytes() == triggered.tobytes()
