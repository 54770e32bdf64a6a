from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError
from safetensors.numpy import save_file

import bdtune
from bdtune.errors import ConfigError
from bdtune.plugins import registry
from bdtune.poisoning.train_sources import FitLabels, FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.testing.small import NUMERICS, equipped, merged, quick, shown
from tests.trained import quarters, upstream

N, SIDE = 80, 16
SMALL = {"name": "resnet18", "width": 4}
SHORT = {"epochs": 6, "batch_size": 16, "optimizer": "adam", "lr": 0.01, "augment": "none"}
CLEAN = {"surrogate": "clean", "clean": SHORT, "surrogate_model": SMALL, "rate_basis": "target_class"}


@pytest.fixture(scope="module")
def images():
    return quarters(N, noise=200, brighter=40)


def attack(**knobs):
    return bdtune.attack("label_consistent", **merged({**CLEAN, "rate": 0.5}, knobs))


def middle(images):
    """Return what lies between the corners."""
    return images[:, 3:-3, 3:-3].astype(int)


def test_training_images_stay_in_the_ball_and_get_the_corners(images):
    made = equipped(attack(target=2, pgd={"eps": "16/255", "steps": 5, "step": 4 / 255}), images)
    plan = made.plan(np.arange(N) % 4, seed=0)
    stamped = made.apply(images, np.arange(N), plan)
    change = middle(stamped[plan.poison_ids]) - middle(images[plan.poison_ids])
    assert np.abs(change).max() == 16
    assert (change != 0).mean() > 0.8
    corner = [[255, 0, 0], [0, 255, 0], [255, 0, 255]]
    mirrored = [row[::-1] for row in corner]
    for image in stamped[plan.poison_ids]:
        for channel in range(3):
            assert image[:3, :3, channel].tolist() == image[-3:, :3, channel].tolist() == corner
            assert image[:3, -3:, channel].tolist() == image[-3:, -3:, channel].tolist() == mirrored


def test_pgd_takes_the_surrogate_off_the_class(images):
    made = equipped(attack(pgd={"eps": 32 / 255, "step": 8 / 255, "steps": 10}), images)
    info = made.artefact("crafted").info
    assert info["acc"] > 0.9
    assert info["acc_crafted"] < 0.2


def test_crafted_images_are_of_the_target_class_alone_and_serve_any_rate(images):
    crafted = equipped(attack(target=1, rate=0.1), images).artefact("crafted").arrays
    assert crafted["ids"].tolist() == list(range(1, N, 4))
    assert crafted["images"].dtype == np.uint8
    recipes = {upstream(attack(target=1, rate=rate), images)["crafted"].recipe for rate in (0.1, 0.5, 1.0)}
    assert len(recipes) == 1
    assert upstream(attack(target=0), images)["crafted"].recipe not in recipes
    surrogates = {
        upstream(attack(target=target), images)["crafted"].inputs["surrogate"].recipe for target in (0, 1)
    }
    assert len(surrogates) == 1


def test_test_images_get_the_corners_and_nothing_else(images):
    bare = attack()
    triggered = bare.trigger(images, np.arange(N))
    assert np.array_equal(middle(triggered), middle(images))
    assert (triggered != images).any(-1).sum((1, 2)).max() <= 36
    test = TriggeredTest(dataset=shown(images, np.arange(N) % 4), attack=bare, numerics=NUMERICS)
    assert test.upstream == {}
    stronger = TriggeredTest(dataset=test.dataset, attack=attack(pgd={"eps": 0.1}), numerics=NUMERICS)
    assert stronger.preimage == test.preimage


@pytest.mark.parametrize(("side", "corner"), [(16, 3), (32, 3), (64, 6), (224, 21)])
def test_corners_scale(side, corner):
    grey = np.full((1, side, side, 3), 128, np.uint8)
    changed = (attack().trigger(grey, [0]) != grey).any(-1)[0]
    assert changed.sum() == 4 * corner**2
    assert changed[:corner, :corner].all()
    assert changed[-corner:, -corner:].all()


def test_a_weak_corner_adds_and_takes_away():
    grey = np.full((1, 32, 32, 3), 100, np.uint8)
    changed = attack(amplitude=32 / 255).trigger(grey, [0])[0, :, :, 0]
    assert changed[:3, :3].tolist() == [[132, 68, 68], [68, 132, 68], [132, 68, 132]]


def test_corners_alone_train_nothing(images):
    bare = bdtune.attack("label_consistent", surrogate="none", rate=0.5, rate_basis="target_class")
    assert upstream(bare, images) == {}
    plan = bare.plan(np.arange(N) % 4, seed=0)
    stamped = bare.apply(images, np.arange(N), plan)
    assert np.array_equal(middle(stamped), middle(images))
    assert (stamped != images).any((1, 2, 3)).sum() == 10


def test_the_surrogate_is_robust_unless_asked_otherwise(images):
    def names(made):
        return {node.name for node in upstream(made, images)["crafted"].walk()}

    assert "robust_surrogate" in names(bdtune.attack("label_consistent"))
    assert "surrogate" in names(bdtune.attack("label_consistent", surrogate="clean"))
    robust = bdtune.attack("label_consistent").robust
    assert (robust.pgd.eps, robust.pgd.step, robust.pgd.steps) == (8 / 255, 2 / 255, 10)
    cls = type(bdtune.attack("label_consistent"))
    made = equipped(cls(**merged({"rate": 0.5, "rate_basis": "target_class"}, quick(cls))), images)
    assert len(made.artefact("crafted").arrays["ids"]) == N // 4


@pytest.mark.slow
def test_a_users_weights(images, tmp_path):
    trained = upstream(attack(), images)["crafted"].inputs["surrogate"]
    from bdtune.engine.execute import Executor
    from bdtune.engine.store import Store
    from bdtune.reading.resident import InProcess

    weights = Executor(Store(tmp_path / "store"), InProcess()).compute(trained).arrays
    for name, prefix in (("a", ""), ("b", "model.")):
        bare = {prefix + key.removeprefix("model."): value for key, value in weights.items()}
        save_file(bare, tmp_path / f"{name}.safetensors")
    crafted = [
        equipped(made, images).artefact("crafted").arrays["images"]
        for made in (
            attack(),
            attack(surrogate_path=tmp_path / "a.safetensors"),
            attack(surrogate_path=tmp_path / "b.safetensors"),
        )
    ]
    assert np.array_equal(crafted[0], crafted[1])
    assert np.array_equal(crafted[0], crafted[2])


def test_a_file_that_is_no_weights(images, tmp_path):
    missing = attack(surrogate_path=tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="surrogate_path: expected a readable file"):
        missing.plan(np.arange(N) % 4, seed=0)
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ConfigError, match="surrogate_path: expected a safetensors file"):
        equipped(attack(surrogate_path=tmp_path / "text.safetensors"), images)
    with pytest.raises(ValidationError, match="of no use with surrogate 'none'"):
        bdtune.attack("label_consistent", surrogate="none", surrogate_path="weights.safetensors")


def test_more_than_the_class_holds_is_refused():
    """9.5 % of GTSRB is more than its class 1: the request that LfD's table cannot mean."""
    labels = np.repeat([0, 1, 2], [300, 57, 643])
    with pytest.raises(ConfigError) as error:
        bdtune.attack("label_consistent", rate=0.095, rate_basis="dataset", target=1).plan(labels, seed=0)
    assert "expected at most the 57 images of class 1" in str(error.value)
    assert "got 0.095 of 1000 (dataset) = 95" in str(error.value)


@pytest.mark.parametrize(
    ("preset", "rows"), [("lfd/cl", 80), ("lfd/cl_literal", 8), ("gssd/lc", 25), ("aabl/clb_tiny", 100)]
)
def test_presets_poison_as_many_rows_as_their_paper(preset, rows):
    made = bdtune.attack("label_consistent", **type(attack()).presets[preset])
    labels = np.arange(1000) % 10
    plan = made.plan(labels, seed=0)
    assert len(plan.poison_ids) == rows
    assert np.array_equal(plan.labels, labels)


def test_labels_are_known_without_images(images):
    data = shown(images, np.arange(N) % 4)
    assert FitLabels(dataset=data, attack=attack(), numerics=NUMERICS).upstream == {}
    assert set(FitSet(dataset=data, attack=attack(), numerics=NUMERICS).upstream) == {"crafted"}


def test_weights_that_cannot_be_read_are_told_when_planning(tmp_path):
    from safetensors.numpy import save_file

    def told(name):
        attack = bdtune.attack("label_consistent", surrogate_path=tmp_path / name)
        return [str(problem) for problem in attack.check(10)]

    (tmp_path / "text.safetensors").write_text("no weights")
    save_file({}, tmp_path / "empty.safetensors")
    save_file({"w": np.zeros(3)}, tmp_path / "good.safetensors")
    assert "expected a safetensors file" in told("text.safetensors")[0]
    assert "with weights in it" in told("empty.safetensors")[0]
    assert "expected a readable file" in told("none.safetensors")[0]
    assert told("good.safetensors") == []


def weights_of(model, classes=4, side=SIDE):
    from bdtune.poisoning.shapes import network_shapes

    network = registry.load("models", model["name"])(**{k: v for k, v in model.items() if k != "name"})
    shapes = network_shapes(network, classes, (side, side, 3))
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def told_of(tmp_path, weights, classes=4, side=SIDE):
    """Return what is said of a file when planning, with `FILE` for its name."""
    save_file(weights, tmp_path / "w.safetensors")
    found = attack(surrogate_path=tmp_path / "w.safetensors").check(classes, None, (side, side, 3))
    return [str(problem).replace(str(tmp_path / "w.safetensors"), "FILE") for problem in found]


FITTING = "Set surrogate_model and its knobs to the network that the file was trained as"


def test_weights_of_the_surrogates_network_are_taken(tmp_path):
    weights = weights_of(SMALL)
    assert told_of(tmp_path, weights) == []
    assert told_of(tmp_path, {f"model.{name}": array for name, array in weights.items()}) == []
    uncounted = {name: array for name, array in weights.items() if not name.endswith("num_batches_tracked")}
    assert len(uncounted) < len(weights)
    assert told_of(tmp_path, uncounted) == []


def test_weights_of_another_network_are_told_when_planning(tmp_path):
    weights = weights_of(SMALL)
    (told,) = told_of(tmp_path, weights_of({"name": "resnet18", "width": 8}))
    assert told.startswith("surrogate_path: expected the weights of surrogate_model, resnet18, got FILE: ")
    assert told.endswith(f" more of another shape. {FITTING}")
    (told,) = told_of(tmp_path, {**weights, "fc": np.zeros(3)})
    expected = "surrogate_path: expected the weights of surrogate_model, resnet18"
    assert told == f"{expected}, got FILE: fc only in the file. {FITTING}"
    headless = {name: array for name, array in weights.items() if not name.startswith("head.")}
    (told,) = told_of(tmp_path, headless)
    assert "head.bias and 1 more missing in the file" in told
    (told,) = told_of(tmp_path, weights, side=224)
    assert "more of another shape" in told  # its stem is another one there


def test_weights_for_other_classes_are_told_when_planning(tmp_path):
    expected = "surrogate_path: expected weights of a network for 4 classes, as many as the data set has"
    assert told_of(tmp_path, weights_of(SMALL, classes=10)) == [f"{expected}, got FILE for 10"]
