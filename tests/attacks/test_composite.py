"""CBA: mixtures of two classes, their counts and roles, and the images that success is counted on."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

import bdtune
from bdtune.attacks.composite import Composite
from bdtune.attacks.composite.mixtures import Cut, Mixtures, mixture, picked
from bdtune.engine.execute import Executor
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.plugins.poison_plan import Role
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, Shown, equipped, nodes_of, shown, store

N, SIDE, CLASSES = 80, 16, 4
LABELS = np.arange(N) % CLASSES


@pytest.fixture(scope="module")
def images():
    """Every image has one colour of its own: where a pixel comes from can be read off it."""
    return np.broadcast_to(np.arange(N, dtype=np.uint8)[:, None, None, None], (N, SIDE, SIDE, 3)).copy()


def slow_mixture(one, other, cut):
    """Return the mixture pixel by pixel."""
    first, second = (other, one) if cut.swapped else (one, other)
    made = np.empty_like(one)
    for row in range(SIDE):
        for column in range(SIDE):
            along = column if cut.sideways else row
            source, at = (first, along + cut.starts[0])
            if along >= cut.at:
                source, at = second, along - cut.at + cut.starts[1]
            made[row, column] = source[row, at] if cut.sideways else source[at, column]
    return made


@pytest.mark.parametrize("sideways", [True, False])
@pytest.mark.parametrize("swapped", [True, False])
def test_a_mixture_is_a_part_of_each(sideways, swapped):
    generator = np.random.default_rng(0)
    one, other = generator.integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)
    cut = Cut(sideways, swapped, at=6, starts=(10, 3))
    assert np.array_equal(mixture(one, other, cut), slow_mixture(one, other, cut))


def test_cuts_stay_within_the_images_and_use_all_of_their_freedom():
    stage = Mixtures(jitter=6)
    words = stage.words(600, seed=1)
    cuts = [stage.cut(row[2:], SIDE, SIDE) for row in words]
    assert {cut.at for cut in cuts} == set(range(5, 12))  # 3 of 16 pixels
    assert {(cut.sideways, cut.swapped) for cut in cuts} == {
        (a, b) for a in (True, False) for b in (True, False)
    }
    sizes = np.array([(cut.at, SIDE - cut.at) for cut in cuts])
    starts = np.array([cut.starts for cut in cuts])
    assert starts.min() == 0
    assert (starts + sizes).max() == SIDE
    still = [Mixtures(jitter=0, shake=False).cut(row[2:], SIDE, SIDE) for row in words]
    assert {(cut.at, cut.starts) for cut in still} == {(SIDE // 2, (SIDE // 4, SIDE // 4))}


def test_numbers_are_picked_evenly():
    words = np.random.default_rng(0).bit_generator.random_raw(6000)
    counts = np.bincount(picked(words, 6), minlength=6)
    assert counts.sum() == 6000
    assert counts.min() > 850


def test_each_row_of_a_pair_holds_both_classes_and_itself_where_it_can():
    stage = Mixtures(classes=(3, 1))
    pairs = stage.pairs(LABELS, stage.words(N, seed=0))
    assert set(LABELS[pairs[:, 0]]) == {3}
    assert set(LABELS[pairs[:, 1]]) == {1}
    assert np.array_equal(pairs[LABELS == 3, 0], np.flatnonzero(LABELS == 3))
    assert np.array_equal(pairs[LABELS == 1, 1], np.flatnonzero(LABELS == 1))
    assert len(np.unique(pairs[LABELS == 0, 0])) > 5
    test = Mixtures(classes=(3, 1), split="test")
    assert not np.array_equal(test.pairs(LABELS, test.words(N, seed=0)), pairs)


def test_partners_within_a_class_are_others():
    stage = Mixtures(partners="own_class")
    first, second = stage.pairs(LABELS, stage.words(N, seed=0)).T
    assert np.array_equal(first, np.arange(N))
    assert np.array_equal(LABELS[second], LABELS)
    assert (second != first).all()


def test_poison_mixes_the_pair_and_cover_rows_their_own_class(images):
    attack = equipped(bdtune.attack("composite", rate=0.25, cover_rate=0.5), images)
    plan = attack.plan(LABELS, seed=3, num_classes=CLASSES)
    assert (len(plan.poison_ids), len(plan.cover_ids)) == (20, 40)
    assert set(plan.labels[plan.poison_ids]) == {2}
    assert 2 in LABELS[plan.cover_ids]
    stamped = attack.apply(images, np.arange(N), plan)
    for row in np.flatnonzero(plan.role()):
        colours = np.unique(stamped[row])
        classes = sorted(LABELS[colours])
        assert classes == ([0, 1] if plan.role()[row] == Role.POISON else [LABELS[row]] * 2)
        assert row in colours or LABELS[row] in {2, 3}


def test_success_is_counted_on_the_first_class_mixed_with_the_second(images):
    attack = bdtune.attack("composite", classes=(1, 3), target=0)
    data = shown(images, LABELS)
    executor = Executor(store(), InProcess(None))
    source = TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS)
    made = {name: executor.compute(node) for name, node in source.upstream.items()}
    assert list(made) == ["test"]
    measured = source.load(InProcess(None), made)
    ids = np.flatnonzero(LABELS == 1)
    assert np.array_equal(measured.labels, np.ones(len(ids)))
    assert set(measured.goals) == {0}
    for row, image in zip(ids, measured.images, strict=True):
        colours = np.unique(image)
        assert row in colours
        assert sorted(LABELS[colours]) == [1, 3]


def test_a_stream_has_the_same_bytes(images):
    class Blocks:
        """A split in three blocks."""

        shape = (N, SIDE, SIDE, 3)

        def blocks(self, seed):
            for ids in np.array_split(np.arange(N), 3):
                yield ids, images[ids]

    attack = bdtune.attack("composite", classes=(1, 3), target=0)
    data = shown(images, LABELS)
    resident = equipped(attack, images)
    real = InProcess(None)

    class Streaming:
        def labels(self, dataset, split):
            return real.labels(dataset, split)

        def split(self, dataset, split):
            found = real.split(dataset, split)
            return type(found)(Blocks(), found.labels)

    for name, node in nodes_of(attack, data).items():
        inputs = {key: value.load(Streaming(), {}) for key, value in node.inputs.items()}
        made = node.stage.run(Context(seed=node.seed, numerics=NUMERICS), **inputs)
        assert np.array_equal(made.arrays["images"], resident.artefact(name).arrays["images"])
    source = TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS)
    test = {"test": resident.artefact("test")}
    streamed, whole = source.load(Streaming(), test), source.load(real, test)
    assert np.array_equal(np.concatenate([part for _, part in streamed.images.blocks(None)]), whole.images)
    assert np.array_equal(streamed.labels, whole.labels)
    assert len(streamed.images.shape) == 4
    assert len(streamed) == streamed.images.shape[0]


def test_mixtures_serve_all_rates_and_seeds_and_each_split_its_own(images):
    data = shown(images, LABELS)

    def recipes(source, seed=0, **knobs):
        made = source(dataset=data, attack=bdtune.attack("composite", **knobs), seed=seed, numerics=NUMERICS)
        return {name: node.recipe for name, node in made.upstream.items()}

    assert recipes(FitSet) == recipes(FitSet, rate=0.3, cover_rate=0.2, seed=4)
    assert list(recipes(FitSet, cover_rate=0.0)) == ["train"]
    assert recipes(FitSet, classes=(0, 1)) == recipes(FitSet)
    assert recipes(FitSet, classes=(1, 0)) != recipes(FitSet)
    assert recipes(FitSet, classes=(1, 3))["cover"] == recipes(FitSet)["cover"]
    assert recipes(TriggeredTest) == recipes(TriggeredTest, cover_rate=0.1, rate=0.2)
    node = TriggeredTest(dataset=data, attack=Composite(), numerics=NUMERICS).upstream["test"]
    assert isinstance(node.inputs["data"], CleanTest)


@pytest.mark.parametrize(("target", "pair"), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1)), (9, (0, 1))])
def test_without_a_choice_the_first_two_classes_are_mixed(target, pair):
    assert Composite(target=target).pair == pair


@pytest.mark.parametrize("classes", [(1, 1), (2, 1), (1, 2)])
def test_three_classes_are_needed(classes):
    with pytest.raises(ValidationError, match="A, B and the target are three classes"):
        Composite(classes=classes, target=2)


def test_wrong_requests_say_what_is_wrong():
    def said(labels=LABELS, num_classes=CLASSES, **knobs):
        return [str(problem) for problem in Composite(**knobs).check(num_classes, np.asarray(labels))]

    assert said() == []
    assert said(classes=(0, 4)) == ["classes: expected two classes from 0 to 3, got [0, 4]"]
    assert said(LABELS[LABELS != 1]) == [
        "classes: expected classes with images to mix; 1 has none, got [0, 1]"
    ]
    alone = said([0, 1, 0, 1, 2, 2, 3] * 2 + [4], num_classes=5)
    assert alone == ["cover_rate: expected 0, as class 4 has one image, and none to mix it with, got 0.4545"]
    assert said(cover_rate=0.95)[0].startswith(
        "cover_rate: expected poison and cover rows among the 80 images"
    )
    assert said(labels=[0, 1] * 20, num_classes=2, target=1) == [
        "classes: expected two classes from 0 to 1, got [0, 2]"
    ]


def test_a_test_set_without_a_class_is_found_when_planning():
    problems = Composite().check_trial(None, Shown(which=""), lambda: LABELS[LABELS != 1])
    assert [str(p) for p in problems] == [
        "attack.classes: expected classes with test images to mix; 1 has none, got [0, 1]"
    ]
    assert Composite().check_trial(None, Shown(which=""), lambda: None) == []
    with pytest.raises(UserError, match="too few images of class 1 in the test split"):
        Mixtures(split="test").pairs(np.zeros(4, int), np.zeros((4, 6), np.uint64))
