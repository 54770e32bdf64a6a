from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from bdtune.errors import BdtuneError, DataError, UserError
from bdtune.plugins import registry
from bdtune.plugins.data import ImageStream
from bdtune.poisoning.stream import PoisonedStream as InProcess
from bdtune.poisoning.stream import StampingStream, poisoned_stream
from bdtune.reading.stream import FileStream
from tests.datasets.layouts import small_parquet, write_folder, write_parquet

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # sockets and files of Ray's own
]
ROWS = 75
"""Rows per window in these tests, so that small sets have several."""


@pytest.fixture(scope="module")
def pipeline(ray_session):
    from bdtune.cluster import pipeline

    return pipeline


@pytest.fixture(scope="module")
def parquet(tmp_path_factory):
    """A data set of 400 training images with a limit, and its root."""
    root = tmp_path_factory.mktemp("parquet")
    knobs = small_parquet(root, n_train=400, n_test=90, row_group=37)
    return registry.load("datasets", "parquet")(**knobs, train_limit=330, image_size=10), root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    for split in ("train", "test"):
        write_folder(root / "mine" / split, {"a": 100, "b": 60})
    return registry.load("datasets", "imagefolder")(path="mine", num_classes=2), root


@dataclass(frozen=True)
class Mark:
    """An attack in small: writes each planned row's id into its corner."""

    def apply(self, images, ids, plan):
        out = images.copy()
        at = plan["poison"][ids]
        out[at, 0, 0, 0] = ids[at] % 256
        return out

    def trigger(self, images, ids):
        out = images.copy()
        out[:, 0, 0, 1] = ids % 256
        return out


def plan_for(n):
    return {"poison": np.arange(n) % 3 == 0}


def small_windows(stream):
    """Return the stream cut into windows of few rows."""
    from dataclasses import replace

    clean = FileStream(stream.work.clean.selection, window_rows=ROWS)
    return replace(stream, work=replace(stream.work, clean=clean))


def assert_same(ours, theirs, seed):
    ours, theirs = list(ours.blocks(seed)), list(theirs.blocks(seed))
    assert len(ours) == len(theirs) > 1
    for (ids, images), (other_ids, other_images) in zip(ours, theirs, strict=True):
        assert np.array_equal(ids, other_ids)
        assert images.dtype == np.uint8
        assert images.tobytes() == other_images.tobytes()


@pytest.mark.parametrize(("blocks", "workers"), [(None, None), (1, 1), (3, 2), (1000, 1)])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_resident_split_equals_the_in_process_one(pipeline, parquet, monkeypatch, split, blocks, workers):
    monkeypatch.setattr(pipeline, "MIN_TASK_ROWS", ROWS)
    dataset, root = parquet
    ours = pipeline.resident(dataset, split, root, block_count=blocks, workers=workers)
    theirs = dataset.load(split, root)
    assert ours.images.tobytes() == theirs.images.tobytes()
    assert ours.images.shape == theirs.images.shape
    assert np.array_equal(ours.labels, theirs.labels)
    assert not ours.images.flags.writeable


def test_the_built_in_data_set_is_equal_too(pipeline):
    dataset = registry.load("datasets", "digits")()
    assert pipeline.resident(dataset, "test").images.tobytes() == dataset.load("test").images.tobytes()


@pytest.mark.parametrize(("blocks", "workers"), [(None, None), (1, None), (2, 1), (4, 2)])
@pytest.mark.parametrize("seed", [None, 7])
def test_poisoned_blocks_equal_the_in_process_ones(pipeline, parquet, seed, blocks, workers):
    dataset, root = parquet
    ids, plan = np.flatnonzero(np.arange(330) % 5), plan_for(330)
    stream = small_windows(pipeline.stream(dataset, "train", root, block_count=blocks, workers=workers))
    clean = FileStream(dataset.selection("train", root), window_rows=ROWS)
    assert_same(stream.poisoned(Mark(), plan, ids), InProcess(clean, Mark(), plan, ids), seed)


def test_folders_are_streamed_in_a_full_permutation(pipeline, folder):
    dataset, root = folder
    stream = small_windows(pipeline.stream(dataset, "train", root))
    clean = FileStream(dataset.selection("train", root), window_rows=ROWS)
    assert_same(stream, clean, 5)
    first, _ = next(stream.blocks(5))
    assert 20 < (dataset.labels("train", root)[first] == 1).sum() < 40  # of 75, where 28 are expected


def test_stamped_rows_are_those_of_the_resident_array(pipeline, parquet):
    dataset, root = parquet
    resident, plan = dataset.load("train", root).images, plan_for(330)
    stream = small_windows(pipeline.stream(dataset, "train", root)).poisoned(Mark(), plan, None)
    images = np.zeros_like(resident)
    for ids, part in stream.blocks(1):
        images[ids] = part
    assert images.tobytes() == Mark().apply(resident, np.arange(330), plan).tobytes()


def test_a_node_that_has_decoded_all_needs_no_workers(pipeline, parquet, monkeypatch, tmp_path):
    dataset, root = parquet
    plan = plan_for(330)
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path))  # the workers have another one

    def stamped():
        return small_windows(pipeline.stream(dataset, "train", root)).poisoned(Mark(), plan, None)

    expected = list(stamped().blocks(4))
    stamped().work.clean.map.read(np.arange(330))
    monkeypatch.setattr(pipeline, "require_cpu", None)
    for (ids, images), (other_ids, other) in zip(stamped().blocks(4), expected, strict=True):
        assert np.array_equal(ids, other_ids)
        assert images.tobytes() == other.tobytes()


def test_workers_leave_their_images_in_the_map(pipeline, folder):
    dataset, root = folder
    list(pipeline.stream(dataset, "train", root).blocks(0))
    assert pipeline.stream(dataset, "train", root).work.clean.map.is_full


def test_what_becomes_resident_is_not_kept_on_disk(pipeline, tmp_path):
    dataset = registry.load("datasets", "parquet")(**small_parquet(tmp_path, n_train=150, n_test=20))
    pipeline.resident(dataset, "train", tmp_path)
    assert not pipeline.stream(dataset, "train", tmp_path).work.clean.map.is_full


def test_a_real_attack_is_stamped_on_the_workers(pipeline, parquet):
    dataset, root = parquet
    attack = registry.load("attacks", "badnets")(rate=0.3)
    plan = attack.plan(dataset.labels("train", root), seed=3, num_classes=3)
    stream = pipeline.stream(dataset, "train", root)
    assert isinstance(stream, StampingStream)
    assert isinstance(stream, ImageStream)
    ours = poisoned_stream(stream, attack, plan)
    resident = dataset.load("train", root).images
    ((_, images),) = ours.blocks(None)
    assert images.tobytes() == attack.apply(resident, np.arange(330), plan).tobytes()
    ((_, triggered),) = poisoned_stream(pipeline.stream(dataset, "test", root), attack).blocks(None)
    assert triggered.tobytes() == attack.trigger(dataset.load("test", root).images, np.arange(90)).tobytes()


def test_an_attack_from_a_users_folder_reaches_the_workers(pipeline, parquet, tmp_path, monkeypatch):
    (tmp_path / "attacks").mkdir()
    (tmp_path / "attacks" / "dot.py").write_text(
        "from bdtune.plugins.attack import Attack\n\n\nclass Dot(Attack):\n"
        "    level: float = 0.5\n\n"
        "    def stamp(self, images, rows):\n        images[:, 1, 1] = self.level\n        return images\n"
    )
    monkeypatch.setenv("BDTUNE_PLUGINS", str(tmp_path))
    dataset, root = parquet
    attack = registry.load("attacks", "dot")()
    ((_, images),) = pipeline.stream(dataset, "test", root).poisoned(attack, None, None).blocks(None)
    assert (images[:, 1, 1] == 128).all()


def test_every_epoch_has_its_own_order_and_can_be_repeated(pipeline, parquet):
    dataset, root = parquet
    stream = small_windows(pipeline.stream(dataset, "train", root))
    epochs = [np.concatenate([ids for ids, _ in stream.blocks(seed)]) for seed in (1, 2, 1)]
    assert np.array_equal(epochs[0], epochs[2])
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(np.sort(epochs[1]), np.arange(330))


def test_a_stream_of_a_part_counts_from_zero(pipeline, parquet):
    dataset, root = parquet
    stream = pipeline.stream(dataset, "train", root).poisoned(None, None, np.array([3, 200]))
    assert stream.shape == (2, 10, 10, 3)
    ((ids, images),) = stream.blocks(None)
    assert ids.tolist() == [0, 1]
    assert np.array_equal(images, dataset.load("train", root).images[[3, 200]])


def test_reading_may_stop_early(pipeline, parquet):
    dataset, root = parquet
    blocks = small_windows(pipeline.stream(dataset, "train", root)).blocks(0)
    next(blocks)
    blocks.close()
    assert len(list(pipeline.stream(dataset, "test", root).blocks(None))) == 1


@pytest.mark.parametrize("broken", ["size", "bytes"])
def test_a_worker_reports_bad_images_as_the_in_process_path_does(pipeline, tmp_path, broken):
    n = 600
    sides = [8] * (n - 1) + [9 if broken == "size" else 8]
    write_parquet(tmp_path / "x" / "train.parquet", np.arange(n) % 2, sides=sides)
    if broken == "bytes":
        import pyarrow as pa
        import pyarrow.parquet as pq

        file = tmp_path / "x" / "train.parquet"
        rows = pq.read_table(file).to_pylist()
        rows[-1]["image"]["bytes"] = b"no image"
        pq.write_table(pa.Table.from_pylist(rows), file)
    dataset = registry.load("datasets", "parquet")(path="x", num_classes=2)
    message = "dataset.image_size=64" if broken == "size" else "row 599"
    for load in (dataset.load, pipeline.resident):
        with pytest.raises(DataError, match=message):
            load("train", tmp_path) if load == dataset.load else load(dataset, "train", tmp_path)


def hold_all_cpus(ray):
    @ray.remote(num_cpus=2)
    class Trial:
        def ready(self):
            return True

    trial = Trial.remote()
    assert ray.get(trial.ready.remote())
    return trial


def test_no_free_cpu_is_an_error_not_a_wait(pipeline, ray_session):
    trial = hold_all_cpus(ray_session)
    with pytest.raises(UserError, match="a free CPU for Ray Data, got none of 2"):
        pipeline.require_cpu(patience_s=0.3)
    ray_session.kill(trial)
    assert pipeline.require_cpu() is None  # waits until the CPUs are given back


@pytest.mark.parametrize("helper", [False, True])
def test_a_trial_needs_a_helper_bundle(pipeline, ray_session, helper):
    from ray.util.placement_group import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([{"CPU": 1}, {"CPU": 1}] if helper else [{"CPU": 2}])
    strategy = PlacementGroupSchedulingStrategy(group, 0, placement_group_capture_child_tasks=True)

    @ray_session.remote(num_cpus=1 if helper else 2, scheduling_strategy=strategy)
    def trial():
        from bdtune.cluster import pipeline

        try:
            return len(pipeline.resident(registry.load("datasets", "digits")(test_limit=50), "test"))
        except UserError as error:
            return str(error)

    result = ray_session.get(trial.remote(), timeout=60)
    remove_placement_group(group)
    if helper:
        assert result == 50
    else:
        assert "a helper bundle with at least one CPU" in result
        assert "pipeline=resident" in result


def test_a_stuck_run_ends_by_itself(pipeline):
    assert 60 <= pipeline._context(None).execution_no_progress_timeout_s <= 120
    assert pipeline._context(None).execution_options.preserve_order


def test_without_a_session_nothing_is_started(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.ray, "is_initialized", lambda: False)
    with pytest.raises(BdtuneError, match=r"ray\.init"):
        pipeline.require_cpu()
