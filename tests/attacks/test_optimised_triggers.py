"""Triggers fitted to a clean network: Trojan, L2-invisible and GSSD's adaptive one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.attacks.trojan.trigger import Shape, watermark
from bdtune.engine.execute import Executor
from bdtune.engine.numerics import Numerics
from bdtune.engine.store import Store
from bdtune.errors import BdtuneError, UserError
from bdtune.plugins.data import ImageSet
from bdtune.poisoning.crafting import drawn_batch, some_ids
from bdtune.poisoning.train_sources import FitSet
from bdtune.poisoning.triggered_sources import TriggeredTest
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS, equipped, shown
from bdtune.training.simclr import SimCLR
from tests.trained import CLASSIFIER, quarters, upstream

N, SIDE = 96, 16
SMALL = CLASSIFIER["surrogate_model"]
ENCODER = {"simclr": {"epochs": 2, "batch_size": 32}, "surrogate_model": SMALL}
CASES = {
    "trojan": CLASSIFIER,
    "l2_invisible": {**CLASSIFIER, "batch_size": 32},
    "gssd_optimised": {**ENCODER, "batch_size": 32},
}


@pytest.fixture(scope="module")
def images():
    return quarters(N)


def made(name, images, **knobs):
    return equipped(bdtune.attack(name, **{**CASES[name], **knobs}), images)


def only(attack):
    (artefact,) = attack._artefacts.values()
    return artefact


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_more_steps_come_closer_to_the_aim(name, images):
    few, many = (made(name, images, iterations=steps, **extra(name)) for steps in (1, 100))
    assert only(many).curve[-1]["loss"] < only(few).curve[-1]["loss"]
    assert len(only(many).curve) == 2


def extra(name):
    return {"settled": 0.0} if name == "gssd_optimised" else {}


@pytest.mark.slow
def test_trojan_reaches_more_than_clean_images_do(images):
    info = only(made("trojan", images, iterations=150, size=16)).info
    assert len(info["units"]) == len(info["reached"]) == 2
    assert sum(info["reached"]) > 2 * sum(info["clean"])
    assert info["aim"] == 100.0


@pytest.mark.slow
def test_l2_fools_the_surrogate_within_its_ball(images):
    perturbation = only(made("l2_invisible", images, iterations=100, radius=6.0, target=2))
    info = perturbation.info
    assert info["l2"] <= 6.0 * SIDE / 32 + 1e-5
    assert info["taken_for_target"] > 0.6
    assert info["ratio"] > 1.5
    assert perturbation.arrays["perturbation"].min() < 0


@pytest.mark.slow
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_latent_trigger_moves_rows_to_the_target(images, distance):
    made_one = made("gssd_optimised", images, iterations=100, distance=distance)
    info = only(made_one).info
    assert info["distance"] < 0.7 * info["clean_distance"]
    assert info["rows"] == 9


@pytest.mark.slow
def test_descent_ends_when_it_stands_still(images):
    artefact = only(made("gssd_optimised", images, iterations=500, settled=0.99))
    assert artefact.info["steps"] == 50 * len(artefact.curve) < 500
    assert artefact.curve[-1]["stopped"] == 1.0


@pytest.mark.parametrize("name", CASES)
def test_one_artefact_for_all_rates_and_seeds_of_trials(name, images):
    data = shown(images, np.arange(N) % 4)
    nodes = [
        source(dataset=data, attack=bdtune.attack(name, rate=rate), seed=seed, numerics=NUMERICS)
        for source in (FitSet, TriggeredTest)
        for rate in (0.05, 0.3)
        for seed in (0, 1)
    ]
    recipes = [node.recipe for source in nodes for node in source.upstream.values()]
    assert len(recipes) == 8
    assert len(set(recipes)) == 1
    other = FitSet(dataset=data, attack=bdtune.attack(name, trigger_seed=1), numerics=NUMERICS)
    assert next(iter(other.upstream.values())).recipe != recipes[0]


def test_what_a_trigger_is_made_for_decides_its_key(images):
    def key(name, **knobs):
        return next(iter(upstream(bdtune.attack(name, **knobs), images).values())).recipe

    assert key("trojan", target=1) == key("trojan", opacity=0.5) == key("trojan", mode="add_clip")
    assert key("trojan", shape="watermark") != key("trojan")
    assert key("l2_invisible", target=1) != key("l2_invisible")
    assert key("gssd_optimised", ratio=0.1) != key("gssd_optimised")
    assert key("gssd_optimised", white_box=True) != key("gssd_optimised")


def test_the_attackers_encoder_is_trained_as_the_appendix_says_and_a_white_box_one_as_told(images):
    attack = bdtune.attack("gssd_optimised", simclr={"epochs": 3})
    assert attack.simclr.betas == (0.9, 0.99)
    assert SimCLR().betas == (0.9, 0.999)
    known = bdtune.attack("gssd_optimised", white_box=True, simclr={"epochs": 3, "betas": (0.9, 0.999)})
    encoder = next(iter(upstream(known, images).values())).inputs["encoder"]
    assert encoder.stage.identity()["knobs"] == SimCLR(epochs=3, flip=True).identity()["knobs"]
    assert encoder.seed == replace(encoder, stage=SimCLR(), master_seed=0).seed


def test_the_latent_trigger_can_be_fitted_to_the_very_rows_of_a_trial(images):
    data = shown(images, np.arange(N) % 4)

    def rows(seed, **knobs):
        attack = bdtune.attack("gssd_optimised", **CASES["gssd_optimised"], **knobs)
        fit = FitSet(dataset=data, attack=attack, seed=seed, numerics=NUMERICS)
        chosen = next(node for node in fit.upstream["picture"].walk() if node.name == "craft_rows")
        return attack, fit, chosen.stage.run(None, data=data_labels(data)).arrays

    attack, fit, own = rows(3, craft_on="plan", rate=0.2)
    plan = attack.drawn_plan(np.arange(N) % 4, fit.plan_seed)
    assert np.array_equal(own["ids"], plan.poison_ids)
    assert set(own["target_ids"]) == set(range(0, N, 4)) - set(plan.poison_ids)
    shared = rows(3, craft_rate=0.2)[2]
    assert not np.array_equal(shared["ids"], own["ids"])
    assert np.array_equal(rows(0, craft_on="plan", rate=0.2)[2]["ids"], shared["ids"])


def data_labels(data):
    return ImageSet(np.zeros((N, 1, 1, 3), np.uint8), np.arange(N) % 4, 4, data.mean, data.std)


def test_a_target_class_without_clean_rows_is_refused(images):
    with pytest.raises(UserError, match="no clean image of class 0 is left"):
        made("gssd_optimised", images, include_target_class=True, rate=1.0, craft_on="plan")


def test_the_same_bits_again(images, tmp_path):
    attack = bdtune.attack("l2_invisible", **CASES["l2_invisible"], iterations=5)
    fit = FitSet(dataset=shown(images, np.arange(N) % 4), attack=attack, numerics=NUMERICS)
    node = fit.upstream["perturbation"]
    found = [Executor(Store(tmp_path / str(i)), InProcess()).compute(node).arrays for i in range(2)]
    assert np.array_equal(found[0]["perturbation"], found[1]["perturbation"])
    assert Numerics(device="cpu", precision="fp32") == node.numerics


def test_not_yet_equipped_is_said(images):
    with pytest.raises(BdtuneError, match="needs its trained 'trigger'"):
        bdtune.attack("trojan").trigger(images, np.arange(N))


def test_where_trojan_writes():
    mask = Shape().mask(32, 32)[..., 0]
    assert mask.sum() == 64
    assert mask[21:29, 21:29].all()
    small = Shape(size=3, inset=4).mask(32, 32)[..., 0]
    assert small[25:28, 25:28].all()
    assert small.sum() == 9
    assert 83 <= watermark(32, 32).sum() <= 321
    assert 0.2 < watermark(224, 224).mean() < 0.32


def test_trojan_modes(images):
    overwritten = made("trojan", images, iterations=10)
    colours = np.rint(only(overwritten).arrays["colours"] * 255)
    box = (slice(None), slice(10, 14), slice(10, 14))
    after = overwritten.trigger(images, np.arange(N))
    assert (after[box] == colours[10:14, 10:14]).all()
    added = made("trojan", images, mode="add_clip", iterations=10).trigger(images, np.arange(N))
    assert np.array_equal(added[box], np.minimum(images[box] + colours[10:14, 10:14], 255))
    faint = made("trojan", images, shape="watermark", iterations=10)
    mixed = faint.trigger(images, np.arange(N))
    expected = images + 0.3 * watermark(16, 16) * (only(faint).arrays["colours"] * 255 - images)
    assert np.abs(mixed - expected).max() <= 0.501


def test_a_users_trigger_needs_no_training(images, tmp_path):
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[4:8, 4:8] = (255, 0, 90)
    np.save(tmp_path / "trigger.npy", picture)
    attack = bdtune.attack("trojan", pattern_path=tmp_path / "trigger.npy")
    assert upstream(attack, images) == {}
    large = np.full((1, 32, 32, 3), 7, np.uint8)
    assert np.array_equal(attack.trigger(large, [0])[0], np.where(picture.any(-1, keepdims=True), picture, 7))


def test_a_square_that_leaves_the_image_is_refused():
    with pytest.raises(ValidationError, match="size and inset are for 32 pixels"):
        bdtune.attack("trojan", size=30, inset=3)


def test_images_of_a_stream_are_gathered():
    class Blocks:
        shape = (50, 2, 2, 3)

        def blocks(self, seed):
            for start in range(0, 50, 7):
                ids = np.arange(start, min(start + 7, 50))
                yield ids, np.repeat(ids, 12).reshape(-1, 2, 2, 3).astype(np.uint8)

    data = ImageSet(Blocks(), np.zeros(50, int), 1, (0.5,) * 3, (0.5,) * 3)
    ids = some_ids(50, 3, most=11)
    assert len(ids) == 11
    assert (data.images_at(ids)[:, 0, 0, 0] == ids).all()


def test_batches_depend_on_their_step_alone():
    images = torch.arange(20, dtype=torch.uint8).reshape(20, 1, 1, 1)
    batch = drawn_batch(images, 5, seed=1, step=7)
    assert torch.equal(batch, drawn_batch(images, 5, seed=1, step=7))
    assert not torch.equal(batch, drawn_batch(images, 5, seed=1, step=8))
    assert len(drawn_batch(images, 99, seed=1, step=0)) == 20
