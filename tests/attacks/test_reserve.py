"""Images that are known to be clean: how many, which, and that nothing else is made of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

import bdtune
from bdtune.poisoning.reserve import Reserve
from bdtune.poisoning.reserved_sources import CleanSet, SelectCleanSet
from bdtune.poisoning.train_sources import FitLabels, FitSet, SelectSet, TruthSource
from bdtune.poisoning.triggered_sources import TriggeredTest
from tests.attacks.test_sources import Blocks, Memory, Tiny

LABELS = np.repeat(np.arange(4), [40, 60, 80, 20])
SIZES = st.one_of(
    st.floats(0, 0.4), st.integers(1, 60), st.integers(1, 8).map(lambda number: f"{number} per class")
)
BADNETS = bdtune.attack("badnets", rate=0.1, target=1)
WHERE = {"dataset": Tiny(), "attack": BADNETS, "seed": 3}
RESERVE = Reserve(clean=0.1, select_clean="3 per class")


def rows(images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for image in images}


@given(SIZES, SIZES, st.integers(0, 5))
def test_each_image_is_in_one_part(clean: float | str, held: float | str, seed: int) -> None:
    reserve = Reserve(clean=clean, select_clean=held)
    if reserve.shortage(LABELS):
        return
    parts = reserve.parts(LABELS, seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    for size, ids in ((clean, parts.clean), (held, parts.select_clean)):
        counts = np.bincount(LABELS[ids], minlength=4)
        if isinstance(size, str):
            assert counts.tolist() == [int(size.split()[0])] * 4
        elif size >= 1:
            assert len(ids) == size
            assert np.all(np.abs(counts - size * np.bincount(LABELS) / len(LABELS)) <= 1)
        else:
            assert np.array_equal(counts, np.floor(size * np.bincount(LABELS) + 0.5))


def test_a_larger_clean_set_contains_a_smaller_one_and_moves_nothing_held_out() -> None:
    small, large = (Reserve(clean=size, select_clean=0.1).parts(LABELS, 0) for size in (0.1, 0.3))
    assert set(small.clean) < set(large.clean)
    assert np.array_equal(small.select_clean, large.select_clean)
    assert not np.array_equal(small.clean, Reserve(clean=0.1).parts(LABELS, 1).clean)


@pytest.mark.parametrize("size", [-1, 2.5, "10", "0 per class", True, None])
def test_another_size_is_refused(size: object) -> None:
    with pytest.raises(ValidationError, match="expected a share below 1, a count such as 500, or text"):
        Reserve(clean=size)


def test_too_many_of_a_class_are_told() -> None:
    assert Reserve(clean="20 per class").shortage(LABELS) == "20 of the 20 of class 3"
    assert (
        Reserve(clean="12 per class", select_clean="8 per class").shortage(LABELS)
        == "20 of the 20 of class 3"
    )
    assert not Reserve(clean="19 per class").shortage(LABELS)


def test_what_is_reserved_is_clean_and_no_part_of_what_is_poisoned() -> None:
    whole = Tiny().load("train")
    clean, held = (cls(**WHERE, reserve=RESERVE).load(Memory(), {}) for cls in (CleanSet, SelectCleanSet))
    fit, select = (
        cls(**WHERE, reserve=RESERVE, holdout=0.1).load(Memory(), {}) for cls in (FitSet, SelectSet)
    )
    assert [len(each) for each in (clean, held)] == [20, 12]
    assert len(fit) + len(select) == 200 - 32
    for part in (clean, held):
        at = [int(np.flatnonzero((whole.images == image).all((1, 2, 3)))[0]) for image in part.images]
        assert np.array_equal(part.labels, whole.labels[at])
        assert not rows(part.images) & (rows(fit.images) | rows(select.images))


def test_the_attack_poisons_its_rate_of_what_is_left() -> None:
    truth = TruthSource(**WHERE, reserve=RESERVE).load(Memory(), {})
    fit = FitSet(**WHERE, reserve=RESERVE).load(Memory(), {})
    labels = FitLabels(**WHERE, reserve=RESERVE).load(Memory(), {})
    assert truth.is_poison.sum() == int(0.1 * 168)
    clean = FitSet(dataset=Tiny(), seed=3, reserve=RESERVE).load(Memory(), {})
    changed = (fit.images != clean.images).any((1, 2, 3))
    assert np.array_equal(changed, truth.is_poison)
    assert np.array_equal(fit.labels, truth.observed)
    assert np.array_equal(fit.labels, labels.labels)


class Streaming(Memory):
    def split(self, dataset, split):
        found = super().split(dataset, split)
        return type(found)(Blocks(found.images), found.labels)


@pytest.mark.parametrize("cls", [CleanSet, SelectCleanSet, FitSet])
def test_a_stream_has_the_same_images(cls: type) -> None:
    source = cls(**WHERE, reserve=RESERVE)
    resident, streamed = (source.load(place, {}) for place in (Memory(), Streaming()))
    found = np.empty_like(resident.images)
    for ids, images in streamed.images.blocks(5):
        found[ids] = images
    assert np.array_equal(found, resident.images)
    assert np.array_equal(streamed.labels, resident.labels)


def test_keys_know_what_is_reserved_and_say_nothing_of_it_where_nothing_is() -> None:
    assert "reserve" not in FitSet(**WHERE).preimage
    keys = [FitSet(**WHERE, reserve=Reserve(clean=size)).digest for size in (0, 0.1, 0.2)]
    assert len(set(keys)) == 3
    assert keys[0] == FitSet(**WHERE).digest
    drawn = [FitSet(dataset=Tiny(), seed=seed, reserve=RESERVE).digest for seed in (0, 1)]
    assert len(set(drawn)) == 2


def test_a_clean_set_does_not_depend_on_the_attack() -> None:
    other = bdtune.attack("blend", rate=0.2)
    one, two = (CleanSet(**{**WHERE, "attack": each}, reserve=RESERVE) for each in (BADNETS, other))
    assert one.digest == two.digest
    kept = RESERVE.model_copy(update={"select_clean": 0.3})
    assert CleanSet(**WHERE, reserve=kept).digest == one.digest


@pytest.mark.parametrize("name", ["dynamic", "issba", "label_consistent", "latent_backdoor", "trojan"])
def test_what_an_attacker_trains_is_made_of_the_training_set_alone(name: str) -> None:
    where = {"dataset": Tiny(), "attack": bdtune.attack(name), "seed": 3, "reserve": RESERVE}
    nodes = [*FitSet(**where).upstream.values(), *TriggeredTest(**where).upstream.values()]
    read = [value for node in nodes for each in node.walk() for value in each.inputs.values()]
    data = [value for value in read if isinstance(value, FitSet | FitLabels)]
    assert data
    assert all(each.reserve == RESERVE and each.seed == 3 for each in data)


@pytest.mark.parametrize("size", [2**70, 10**300, "9999999 per class"])
def test_a_number_that_no_data_set_has_is_a_shortage(size: int | str) -> None:
    assert Reserve(clean=size).shortage(LABELS).endswith("of the 40 of class 0")
