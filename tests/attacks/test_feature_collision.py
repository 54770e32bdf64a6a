"""FC: the descent against a slow one, who collides with whom, and what success is counted on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.attacks.feature_collision import FeatureCollision
from bdtune.attacks.feature_collision.collisions import Collisions, Instances, collide
from bdtune.engine.stage import Context
from bdtune.errors import UserError
from bdtune.plugins.data import ImageSet
from bdtune.poisoning.clean_sources import CleanTest
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, Shown, equipped, shown
from tests.trained import CLASSIFIER, quarters

N, SIDE, CLASSES = 96, 16, 4
LABELS = np.arange(N) % CLASSES
SMALL = {
    **CLASSIFIER,
    "instances": {"count": 5},
    "iterations": 30,
}


@pytest.fixture(scope="module")
def images():
    return quarters(N)


@pytest.fixture(scope="module")
def made(images):
    return equipped(bdtune.attack("feature_collision", **SMALL), images)


def slow_collision(matrix, base, aim, weight, lr, iterations):
    """Return the image of algorithm 1 for linear features, in double precision."""
    found, value = base.copy(), np.inf
    for _ in range(iterations):
        gap = matrix @ found - aim
        value = gap @ gap + weight * ((found - base) ** 2).sum()
        step = (found - lr * 2 * matrix.T @ gap + lr * weight * base) / (1 + lr * weight)
        step = np.clip(step, 0, 1)
        after = matrix @ step - aim
        if after @ after + weight * ((step - base) ** 2).sum() < value:
            found = step
        else:
            lr /= 2
    return found


@pytest.mark.parametrize("lr", [0.01, 5.0])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_descent_is_forward_backward_splitting(lr, weight):
    generator = np.random.default_rng(1)
    matrix, bases = generator.normal(size=(3, 12)), generator.random((2, 12))
    aims = generator.normal(size=(2, 3))
    linear = torch.tensor(matrix)
    found, before, after = collide(
        lambda planes: planes.flatten(1) @ linear.T,
        torch.tensor(bases).reshape(2, 3, 2, 2),
        torch.tensor(aims),
        weight=weight,
        lr=lr,
        iterations=40,
    )
    for row in range(2):
        slow = slow_collision(matrix, bases[row], aims[row], weight, lr, 40)
        assert np.allclose(found[row].flatten().numpy(), slow, atol=1e-9)
        gap = matrix @ slow - aims[row]
        assert after[row].item() == pytest.approx(gap @ gap)
    assert (after < before).all()


def test_the_weight_keeps_an_image_near_its_base():
    def moved(weight):
        base, aim = torch.full((1, 3, 4, 4), 0.5), torch.tensor([[30.0]])
        knobs = {"lr": 0.01, "iterations": 50, "weight": weight}
        return (collide(lambda x: x.flatten(1).sum(1, True), base, aim, **knobs)[0] - base).abs().max().item()

    assert moved(100.0) < moved(1.0) < moved(0.0)


@pytest.mark.slow
def test_poison_comes_close_in_features_and_keeps_its_label(made, images):
    artefact = made.artefact("collisions")
    assert artefact.info["reached"] < 0.3 * artefact.info["distance"]
    plan = made.plan(LABELS, seed=2, num_classes=CLASSES)
    assert set(LABELS[plan.poison_ids]) == {0}
    assert np.array_equal(plan.labels, LABELS)
    ids = plan.poison_ids
    stamped = made.apply(images, np.arange(N), plan)[ids]
    at = np.searchsorted(artefact.arrays["ids"], ids)
    assert np.array_equal(stamped, artefact.arrays["images"][at])
    goals = artefact.arrays["instances"][artefact.arrays["of"][at]].astype(int)
    watermarked = 0.7 * images[ids] + 0.3 * goals
    assert np.abs(stamped - watermarked).mean() < 0.5 * np.abs(stamped - goals).mean()


def test_the_poison_is_shared_out_evenly(made):
    arrays = made.artefact("collisions").arrays
    assert np.array_equal(arrays["ids"], np.flatnonzero(LABELS == 0))
    counts = np.bincount(arrays["of"])
    assert len(counts) == 5
    assert counts.max() - counts.min() <= 1
    assert (LABELS[arrays["instance_ids"]] != 0).all()


def test_success_is_counted_on_the_chosen_images_as_they_are(made, images):
    data = shown(images, LABELS)
    source = TriggeredTest(
        dataset=data, attack=bdtune.attack("feature_collision", **SMALL), numerics=NUMERICS
    )
    assert source.upstream == {}
    found = source.load(InProcess(None), {})
    ids = made.artefact("collisions").arrays["instance_ids"]
    assert np.array_equal(np.flatnonzero(made.test_rows(LABELS, CLASSES)), ids)
    assert np.array_equal(found.images, images[ids])
    assert np.array_equal(found.labels, LABELS[ids])
    assert set(found.goals) == {0}
    assert made.stamps_test is False


def test_pictures_show_the_instance_beside_its_poison(made, images):
    plan = made.plan(LABELS, seed=0, num_classes=CLASSES)
    from bdtune.plugins.poison_plan import Rows

    ids = plan.poison_ids
    ((name, shown_images),) = made.shown_beside(Rows("train", ids, plan.role()[ids])).items()
    assert name == "test image"
    arrays = made.artefact("collisions").arrays
    expected = arrays["instances"][arrays["of"][np.searchsorted(arrays["ids"], ids)]]
    assert np.array_equal(shown_images, expected)


def test_who_is_chosen():
    every = Instances(count=100).chosen(LABELS, 0, 1)
    assert np.array_equal(every, np.flatnonzero(LABELS != 0))
    few, more = (Instances(count=count).chosen(LABELS, 0, 1) for count in (3, 6))
    assert set(few) < set(more)
    assert not np.array_equal(few, Instances(count=3).chosen(LABELS, 0, 2))
    assert set(LABELS[Instances(count=4, of_class=2).chosen(LABELS, 0, 1)]) == {2}


def test_what_a_collision_is_made_of_decides_its_key(images):
    data = shown(images, LABELS)

    def recipe(seed=0, **knobs):
        attack = bdtune.attack("feature_collision", **{**SMALL, **knobs})
        source = FitSet(dataset=data, attack=attack, seed=seed, numerics=NUMERICS)
        return source.upstream["collisions"].recipe

    assert recipe() == recipe(rate=0.5) == recipe(seed=3)
    others = [
        {"beta": 1.0},
        {"opacity": 0.0},
        {"trigger_seed": 1},
        {"instances": {"count": 4}},
        {"target": 1},
    ]
    assert len({recipe(**knobs) for knobs in [{}, *others]}) == 1 + len(others)
    node = FitSet(dataset=data, attack=FeatureCollision(), numerics=NUMERICS).upstream["collisions"]
    assert isinstance(node.inputs["test"], CleanTest)

    def test_key(**knobs):
        attack = bdtune.attack("feature_collision", **knobs)
        return TriggeredTest(dataset=data, attack=attack, numerics=NUMERICS).digest

    assert test_key() == test_key(beta=1.0) == test_key(iterations=3)
    assert test_key() != test_key(instances={"count": 4})
    assert test_key() != test_key(trigger_seed=1)


def test_wrong_requests():
    with pytest.raises(ValidationError, match=r"instances\.of_class is the target, 3"):
        FeatureCollision(target=3, instances={"of_class": 3})
    found = FeatureCollision(instances={"of_class": 4}).check(CLASSES, LABELS)
    assert [str(p) for p in found] == ["instances.of_class: expected a class from 0 to 3, got 4"]
    many = FeatureCollision(instances={"count": 30, "of_class": 1})
    assert [str(p) for p in many.check_trial(None, Shown(which=""), lambda: LABELS)] == [
        "attack.instances.count: expected at most 24, the test images that may be chosen, got 30"
    ]
    assert many.check_trial(None, Shown(which=""), lambda: None) == []
    data = ImageSet(np.zeros((N, SIDE, SIDE, 3), np.uint8), LABELS, CLASSES, (0.5,) * 3, (0.5,) * 3)
    with pytest.raises(UserError, match="asks for 30 test images, and there are 24"):
        Collisions(instances=many.instances).run(
            Context(numerics=NUMERICS), data=data, test=data, model=None, surrogate=None
        )
