from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

import bdtune
from bdtune.engine.numerics import Numerics
from bdtune.engine.stage import Artefact, Stage
from bdtune.plugins.attack import Attack
from bdtune.plugins.dataset import Dataset, Records, Split
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.stream import SealedStream
from bdtune.poisoning.train_sources import FitLabels, FitSet, SelectSet, TruthSource
from bdtune.poisoning.triggered_sources import CoverTest, TriggeredTest, TriggerShown

N_TRAIN, N_TEST = 200, 80


class Tiny(Dataset):
    """Random images of four classes."""

    num_classes: ClassVar[int] = 4
    mean: ClassVar[tuple[float, ...]] = (0.5, 0.5, 0.5)
    std: ClassVar[tuple[float, ...]] = (0.3, 0.3, 0.3)
    shade: int = 0

    def records(self, split, root):
        n = N_TRAIN if split == "train" else N_TEST
        images = np.random.default_rng(n + self.shade).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
        return Records(np.arange(n) % 4, arrays=images)


class Memory:
    def split(self, dataset, split):
        return dataset.load(split)

    def labels(self, dataset, split):
        return dataset.labels(split)


class Blocks:
    """An image stream over an array, in blocks of 7."""

    def __init__(self, images):
        self.images = images
        self.shape = images.shape

    def blocks(self, shuffle_seed):
        order = np.arange(len(self.images))
        if shuffle_seed is not None:
            order = np.random.default_rng(shuffle_seed).permutation(order)
        for start in range(0, len(order), 7):
            ids = order[start : start + 7]
            yield ids, self.images[ids]


class Streaming(Memory):
    def split(self, dataset, split):
        loaded = dataset.load(split)
        return Split(Blocks(loaded.images), loaded.labels)


class Draw(Stage):
    """A stand-in for the training of a trigger."""

    name: ClassVar[str] = "draw"
    kind: ClassVar[str] = "train"


class Trained(Attack):
    """Adds a level that was trained first."""

    def artefacts(self, attacker):
        return {"level": attacker.node(Draw(), data=attacker.clean)}

    def stamp(self, images, rows):
        return images * 0 + self.artefact("level").arrays["level"]


BADNETS = bdtune.attack("badnets", rate=0.25, target=1)


def fit(**changes):
    return FitSet(**{"dataset": Tiny(), "attack": BADNETS, "seed": 3, **changes})


def test_the_fit_set_is_the_poisoned_training_set():
    data = fit().load(Memory(), {})
    truth = TruthSource(dataset=Tiny(), attack=BADNETS, seed=3).load(Memory(), {})
    clean = Tiny().load("train")
    changed = (data.images != clean.images).any((1, 2, 3))
    assert np.array_equal(changed, truth.is_poison)
    assert truth.is_poison.sum() == 50
    assert np.array_equal(data.labels, truth.observed)
    assert (data.labels[truth.is_poison] == 1).all()
    assert np.array_equal(truth.labels, clean.labels)
    assert truth.target == 1
    assert (data.num_classes, data.mean, data.std) == (4, Tiny.mean, Tiny.std)


def test_a_holdout_parts_the_set_by_observed_class():
    whole = fit().load(Memory(), {})
    kept = fit(holdout=0.1).load(Memory(), {})
    held = SelectSet(dataset=Tiny(), attack=BADNETS, seed=3, holdout=0.1).load(Memory(), {})
    truth = TruthSource(dataset=Tiny(), attack=BADNETS, seed=3, holdout=0.1).load(Memory(), {})
    counts = np.bincount(whole.labels)
    assert np.array_equal(np.bincount(held.labels), (0.1 * counts + 0.5).astype(int))
    assert len(kept) + len(held) == len(whole) == N_TRAIN
    together = np.concatenate([kept.images, held.images]).reshape(N_TRAIN, -1)
    assert len(np.unique(np.concatenate([together, whole.images.reshape(N_TRAIN, -1)]), axis=0)) == N_TRAIN
    assert np.array_equal(truth.observed, kept.labels)
    assert len(truth.role) == len(kept)


def test_the_holdout_depends_on_the_seed():
    masks = [fit(seed=seed, holdout=0.2).kept(np.arange(N_TRAIN) % 4) for seed in (0, 0, 1)]
    assert np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[0], masks[2])


def test_without_a_holdout_nothing_is_held():
    assert len(SelectSet(dataset=Tiny(), attack=BADNETS).load(Memory(), {})) == 0


@pytest.mark.parametrize("resident", [Memory(), Streaming()])
def test_examples_of_the_trigger_are_the_first_test_images_with_and_without_it(resident):
    found = TriggerShown(dataset=Tiny(), attack=BADNETS).load(resident, {})
    triggered = TriggeredTest(dataset=Tiny(), attack=BADNETS).load(Memory(), {})
    assert len(found.clean) == len(found.stamped) == 64
    assert np.array_equal(found.clean, Tiny().load("test").images[:64])
    assert np.array_equal(found.stamped, triggered.images[:64])


def test_examples_know_a_trained_trigger():
    source = TriggerShown(dataset=Tiny(), attack=Trained(rate=0.1))
    assert list(source.upstream) == ["level"]
    level = Artefact({"level": np.float32(0.6)})
    assert (source.load(Memory(), {"level": level}).stamped == 153).all()


def test_triggered_test_keeps_all_rows_with_true_labels_and_goals():
    data = TriggeredTest(dataset=Tiny(), attack=BADNETS).load(Memory(), {})
    clean = CleanTest(dataset=Tiny()).load(Memory(), {})
    assert len(data) == len(clean) == N_TEST
    assert np.array_equal(data.labels, clean.labels)
    assert (data.goals == 1).all()
    assert (data.images != clean.images).any((1, 2, 3)).all()


def test_a_network_may_see_pixels_as_they_are():
    plain, scaled = (FitSet(dataset=Tiny(standardise=each)) for each in (False, True))
    seen = plain.load(Memory(), {})
    assert (seen.mean, seen.std) == ((0.0,) * 3, (1.0,) * 3)
    assert (scaled.load(Memory(), {}).mean, scaled.load(Memory(), {}).std) == (Tiny.mean, Tiny.std)
    assert plain.digest != scaled.digest


def test_whether_a_mirror_image_is_of_its_class_is_a_fact_of_the_set():
    assert FitSet(dataset=Tiny()).load(Memory(), {}).mirrors
    unlike = FitSet(dataset=Tiny(mirrors=False))
    assert not unlike.load(Memory(), {}).mirrors
    assert unlike.digest == FitSet(dataset=Tiny()).digest  # the images are the same
    for name in ("digits", "gtsrb"):
        assert not bdtune.dataset(name).mirrors


def test_no_attack():
    data = fit(attack=None).load(Memory(), {})
    truth = TruthSource(dataset=Tiny()).load(Memory(), {})
    assert np.array_equal(data.images, Tiny().load("train").images)
    assert not truth.is_poison.any()
    assert truth.target is None
    triggered = TriggeredTest(dataset=Tiny()).load(Memory(), {})
    assert len(triggered) == len(triggered.goals) == 0
    assert triggered.image_shape == (8, 8, 3)


def test_keys_change_exactly_when_contents_can(tmp_path):
    base = fit().preimage
    assert base == fit().preimage == fit(root=tmp_path).preimage
    for changes in (
        {"dataset": Tiny(shade=1)},
        {"dataset": Tiny(train_limit=100)},
        {"attack": bdtune.attack("badnets", rate=0.2, target=1)},
        {"attack": None},
        {"seed": 4},
        {"holdout": 0.1},
    ):
        assert fit(**changes).preimage != base, changes
    assert fit(dataset=Tiny(test_limit=40)).preimage == base
    assert SelectSet(dataset=Tiny(), attack=BADNETS, seed=3).preimage != base


def test_a_test_knob_does_not_change_the_training_set_nor_a_rate_the_test_set():
    strong, weak = bdtune.attack("blend", test_ratio=0.3), bdtune.attack("blend")
    assert fit(attack=strong).preimage == fit(attack=weak).preimage
    test = [TriggeredTest(dataset=Tiny(), attack=attack, seed=0).preimage for attack in (strong, weak)]
    assert test[0] != test[1]
    other = bdtune.attack("blend", rate=0.05)
    assert TriggeredTest(dataset=Tiny(), attack=other, seed=9).preimage == test[1]


def test_the_clean_sources_depend_on_neither_attack_nor_seed():
    assert set(CleanTest(dataset=Tiny()).preimage) == {"source", "data"}
    assert fit(attack=None, seed=1).preimage == fit(attack=None, seed=2).preimage
    assert fit(attack=None, seed=1, holdout=0.1).preimage != fit(attack=None, seed=2, holdout=0.1).preimage


@pytest.mark.parametrize("source", [FitSet, SelectSet])
@pytest.mark.parametrize("seed", [None, 5])
def test_a_stream_gives_the_same_bytes_as_the_resident_set(source, seed):
    made = source(dataset=Tiny(), attack=BADNETS, seed=3, holdout=0.25)
    resident, stream = made.load(Memory(), {}), made.load(Streaming(), {})
    assert isinstance(stream.images, SealedStream)
    assert stream.images.shape == resident.images.shape
    assert np.array_equal(stream.labels, resident.labels)
    collected = np.zeros_like(resident.images)
    seen = []
    for ids, images in stream.images.blocks(seed):
        collected[ids] = images
        seen.extend(ids)
    assert sorted(seen) == list(range(len(resident)))
    assert np.array_equal(collected, resident.images)


@pytest.mark.parametrize("attack", [BADNETS, bdtune.attack("blend", pattern="noise", per_sample=True)])
def test_a_triggered_stream_gives_the_same_bytes(attack):
    source = TriggeredTest(dataset=Tiny(), attack=attack)
    stream = source.load(Streaming(), {})
    collected = np.concatenate([images for _, images in stream.images.blocks(None)])
    assert np.array_equal(collected, source.load(Memory(), {}).images)


def test_a_stream_with_workers_of_its_own_stamps_there():
    class Pipeline(Blocks):
        def poisoned(self, attack, plan, ids):
            asked.append((attack, len(plan), len(ids)))
            return Blocks(self.images[:3])

    class Resident:
        def split(self, dataset, split):
            loaded = dataset.load(split)
            return Split(Pipeline(loaded.images), loaded.labels)

    asked = []
    assert fit().load(Resident(), {}).images.shape == (3, 8, 8, 3)
    assert asked == [(BADNETS, N_TRAIN, N_TRAIN)]


def test_one_trained_artefact_serves_seeds_and_rates_and_both_splits():
    attacks = [Trained(rate=rate) for rate in (0.1, 0.2)]
    sources = [
        *(FitSet(dataset=Tiny(), attack=attack, seed=seed) for attack in attacks for seed in (0, 1)),
        TriggeredTest(dataset=Tiny(), attack=attacks[0], seed=2),
    ]
    assert len({source.upstream["level"].recipe for source in sources}) == 1
    other = FitSet(dataset=Tiny(), attack=Trained(trigger_seed=1))
    assert other.upstream["level"].recipe != sources[0].upstream["level"].recipe
    precise = FitSet(dataset=Tiny(), attack=attacks[0], numerics=Numerics(device="cpu", precision="fp32"))
    assert precise.preimage == FitSet(dataset=Tiny(), attack=attacks[0]).preimage
    assert TruthSource(dataset=Tiny(), attack=attacks[0]).upstream == {}


def test_the_artefact_reaches_the_stamp():
    artefacts = {"level": Artefact({"level": np.float32([0.0, 1.0, 0.0])})}
    data = TriggeredTest(dataset=Tiny(), attack=Trained()).load(Memory(), artefacts)
    assert (data.images == (0, 255, 0)).all()
    poisoned = FitSet(dataset=Tiny(), attack=Trained(rate=0.1)).load(Memory(), artefacts)
    assert (poisoned.images == (0, 255, 0)).all((1, 2, 3)).sum() == 20


class Counting(Trained):
    """Says how often training images are stamped."""

    times: ClassVar[list[int]] = []

    def stamp(self, images, rows):
        self.times.append(len(images))
        return super().stamp(images, rows)


def test_the_poisoned_training_set_is_stamped_once_for_the_stages_that_read_it_in_turn():
    low, high = ({"level": Artefact({"level": np.float32(level)})} for level in (0.2, 0.6))
    Counting.times.clear()

    def load(artefacts=low, **changes):
        source = FitSet(**{"dataset": Tiny(), "attack": Counting(rate=0.1), "seed": 3, **changes})
        return source.load(Memory(), artefacts).images

    first = load()
    assert load() is first
    assert len(Counting.times) == 1
    assert not first.flags.writeable  # a stage that wrote to it would change what the next one reads
    for other in ({"artefacts": high}, {"seed": 4}, {"dataset": Tiny(shade=1)}, {"holdout": 0.1}):
        assert not np.array_equal(load(**other), first)
    assert len(Counting.times) == 5
    assert np.array_equal(load(), first)  # only the last one is kept
    assert len(Counting.times) == 6


def test_what_is_held_out_does_not_take_the_place_of_the_training_set():
    fitted = fit(holdout=0.1)
    first = fitted.load(Memory(), {}).images
    SelectSet(dataset=Tiny(), attack=BADNETS, seed=3, holdout=0.1).load(Memory(), {})
    assert fitted.load(Memory(), {}).images is first


def test_labels_alone_are_those_of_the_fit_part():
    attack = bdtune.attack("badnets", rate=0.2)
    knobs = {"dataset": Tiny(), "attack": attack, "seed": 3, "holdout": 0.25}
    labels = FitLabels(**knobs).load(Memory(), {})
    assert np.array_equal(labels.labels, FitSet(**knobs).load(Memory(), {}).labels)
    assert labels.num_classes == 4


def test_covered_test_images_are_warped_as_cover_rows_are_with_their_true_labels():
    attack = bdtune.attack("wanet", cross_ratio=1.0)
    source = CoverTest(dataset=Tiny(), attack=attack)
    covered = source.load(Memory(), {})
    clean = Tiny().load("test")
    assert np.array_equal(covered.labels, clean.labels)
    triggered = TriggeredTest(dataset=Tiny(), attack=attack).load(Memory(), {})
    changed = (covered.images != triggered.images).any((1, 2, 3))
    assert changed.all()
    assert np.array_equal(source.load(Memory(), {}).images, covered.images)
    calm = bdtune.attack("wanet", cross_ratio=1.0, noise_rescale=0.0, strength=0.0).as_cover()
    shifted = calm.trigger(clean.images, np.arange(N_TEST))  # -1 / side for all pixels alike
    assert not np.array_equal(shifted, clean.images)
    some = np.array([3, 70])
    assert np.array_equal(attack.as_cover().trigger(clean.images[some], some), covered.images[some])


def test_covered_test_images_are_named_by_what_changes_them_and_by_nothing_else():
    def name(**knobs):
        return CoverTest(dataset=Tiny(), attack=bdtune.attack("wanet", **knobs)).preimage

    assert name(cross_ratio=1.0) == name(cross_ratio=2.0, rate=0.2)
    assert name(noise_rescale=1.0) != name(noise_rescale=2.0)
    triggered = [
        TriggeredTest(dataset=Tiny(), attack=bdtune.attack("wanet", noise_rescale=value)).preimage
        for value in (1.0, 2.0)
    ]
    assert triggered[0] == triggered[1] != name()
    assert bdtune.attack("wanet", cross_ratio=0.1).covers_test
    assert not bdtune.attack("wanet").covers_test
    assert not bdtune.attack("adap_blend").covers_test


def test_a_stream_of_covered_test_images_is_the_same():
    attack = bdtune.attack("wanet", cross_ratio=1.0)
    split = Tiny().load("test")

    class Streaming(Memory):
        def split(self, dataset, split):
            return dataset.stream(split)

    streamed = CoverTest(dataset=Tiny(), attack=attack).load(Streaming(), {}).images
    whole = np.empty_like(split.images)
    for ids, images in streamed.blocks(None):
        whole[ids] = images
    expected = CoverTest(dataset=Tiny(), attack=attack).load(Memory(), {}).images
    assert np.array_equal(whole, expected)
