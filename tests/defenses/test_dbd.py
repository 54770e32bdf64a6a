from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import bdtune
from bdtune.defending import pools
from bdtune.defending.isolation import symmetric_cross_entropy
from bdtune.defending.loss_pictures import draw_stacked, panels
from bdtune.defenses.dbd.stages import Tune, Warmup
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.data import Truth
from bdtune.training.augment import Augmentation
from bdtune.training.batches import Batch, DeviceSet
from bdtune.training.simclr import SimCLR
from bdtune.training.supervised import Supervised
from bdtune.training.weights import load_module, module_arrays, new_network
from tests.doubles import CPU

if TYPE_CHECKING:
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
SIMCLR = {"epochs": 1, "batch_size": 16, "projection": 4}
WARMUP = {"epochs": 1, "batch_size": 16, "augment": "none"}
SEMI = {"epochs": 2, "iterations": 2, "batch_size": 8, "augment": "none"}


def short(**knobs: Any) -> Defense:
    parts = {"simclr": SIMCLR, "warmup": WARMUP, "semi": SEMI}
    mine = {name: {**part, **knobs.pop(name, {})} for name, part in parts.items()}
    return bdtune.defense("dbd", **mine, **knobs)


@pytest.fixture
def inputs(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    given, _ = poisoned
    data, model = (source.load(None, {}) for source in (given.fit, given.model))  # type: ignore[arg-type]
    encoder = SimCLR(**SIMCLR).run(CTX, data=data, model=model)
    subset = Artefact({"ids": np.arange(60), "labels": data.labels})
    return {"data": data, "model": model, "subset": subset, "encoder": encoder}


@pytest.mark.parametrize(("a", "b"), [(0.1, 1.0), (1.0, 0.0), (0.0, 2.0)])
def test_the_warmups_loss_is_symmetric_cross_entropy(a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(12, 4)) * 3, rng.integers(0, 4, 12)
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        q = np.where(np.arange(4) == label, 1.0, 1e-4)
        total += (a * -np.log(p[label]) + b * -(p * np.log(q)).sum()) / 12
    batch = Batch(torch.empty(0), torch.tensor(labels), torch.arange(12))
    found = Warmup(sce_a=a, sce_b=b).loss(torch.tensor(logits), batch)
    assert float(found) == pytest.approx(total, rel=1e-6)
    losses = np.array([-np.log(np.exp(r)[y] / np.exp(r).sum()) for r, y in zip(logits, labels, strict=True)])
    assert symmetric_cross_entropy(losses, a, b, 1e-4).mean() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_the_warmup_changes_the_head_alone(inputs: dict[str, Any], bn_mode: Any) -> None:
    found = Warmup(**{**WARMUP, "epochs": 2}, bn_mode=bn_mode).run(CTX, **inputs).arrays
    start = module_arrays(new_network(inputs["model"], inputs["data"], CTX.seed, CPU, inputs["encoder"]))
    changed = {name for name in start if not np.array_equal(found[name], start[name])}
    moved = {name.rpartition(".")[2] for name in changed if not name.startswith("model.head.")}
    assert moved == (set() if bn_mode == "eval" else {"running_mean", "running_var", "num_batches_tracked"})
    assert {"model.head.weight", "model.head.bias"} <= changed


def test_the_warmup_is_adam_on_frozen_features(inputs: dict[str, Any]) -> None:
    """The head alone, on features of the encoder in evaluation mode, one sample's loss at a time."""
    data = inputs["data"]
    network = new_network(inputs["model"], data, CTX.seed, CPU)
    load_module(network, inputs["encoder"].arrays)
    network.eval()
    optimizer = torch.optim.Adam(network.head.parameters(), lr=2e-3)
    see = Augmentation.of("none", data)
    for batch in DeviceSet(data, torch.device("cpu")).shuffled(16, CTX.seed, 0):
        with torch.no_grad():
            features = network.features(see(batch.images))
        total = torch.zeros(())
        for row, label in zip(network.head(features), batch.labels.tolist(), strict=True):
            p = row.softmax(0)
            total = total - 0.1 * p[label].log() + np.log(1e4) * (1 - p[label])
        optimizer.zero_grad()
        (total / len(batch.rows)).backward()
        optimizer.step()
    found = Warmup(**WARMUP).run(CTX, **inputs).arrays
    for name, value in module_arrays(network).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("eps", "count"), [(0.5, 30), (0.29, 17), (1.0, 60)])
def test_the_samples_of_lowest_loss_keep_their_labels(eps: float, count: int) -> None:
    losses = np.random.default_rng(0).gamma(1.0, 1.0, 60)
    kept, scores = Tune(eps=eps, per_class=False).split(None, losses, 0)  # type: ignore[arg-type]
    assert set(np.flatnonzero(kept)) == set(sorted(range(60), key=lambda row: losses[row])[:count])
    assert np.array_equal(scores, losses)


def test_a_class_of_high_losses_keeps_labels_where_each_class_has_its_own_share() -> None:
    losses, labels = np.random.default_rng(0).gamma(1.0, 1.0, 60), np.arange(60) % 3
    losses[labels == 2] += 100
    fit: Any = SimpleNamespace(labels=labels)
    together, _ = Tune(eps=0.5, per_class=False).split(fit, losses, 0)
    assert np.bincount(labels[together], minlength=3).tolist()[2] == 0
    apart, scores = Tune(eps=0.5, per_class=True).split(fit, losses, 0)
    assert np.bincount(labels[apart]).tolist() == [10, 10, 10]
    assert all(losses[apart & (labels == c)].max() < losses[~apart & (labels == c)].min() for c in range(3))
    assert np.array_equal(scores, losses)


def test_what_a_setting_leaves_untouched(poisoned: tuple[DefenseInputs, Truth]) -> None:
    """The card's table: the first stage that is computed anew for each setting."""
    given, _ = poisoned
    base = short().build(given)
    order = ["simclr", "warmup", "classifier"]

    def first(**knobs: Any) -> str:
        chain = short(**knobs).build(given)
        changed = [name for name in order if chain[name].recipe != base[name].recipe]
        assert changed == order[order.index(changed[0]) :]
        return changed[0]

    tuning = [{"lambda_u": 5}, {"ramp": 3}, {"temperature": 1}, {"mixup_alpha": 0}, {"lr": 0.1}]
    tuning += [{"epochs": 3}, {"iterations": 3}, {"views": 1}, {"ema": 0.5}, {"score_views": "augmented"}]
    assert {first(semi=knobs) for knobs in tuning} == {"classifier"}
    assert {first(eps=0.3), first(per_class=True)} == {"classifier"}
    training: list[dict[str, Any]] = [{"epochs": 2}, {"sce_a": 1.0}, {"sce_b": 0.0}, {"lr": 0.1}]
    assert {first(warmup=knobs) for knobs in [*training, {"bn_mode": "train"}]} == {"warmup"}
    ssl: list[dict[str, Any]] = [{"epochs": 2}, {"lr": 0.1}, {"temperature": 1.0}, {"blur": 0.0}]
    assert {first(simclr=knobs) for knobs in ssl} == {"simclr"}


def test_a_grid_trains_each_stage_once(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    grid = [
        short(eps=eps, semi={"lambda_u": weight}, warmup={"sce_b": b})
        for eps in (0.3, 0.5, 0.7)
        for weight in (0.0, 15.0)
        for b in (0.0, 1.0)
    ]
    chains = [defense.build(given) for defense in grid]
    plan = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver).stages
    assert {name: plan[name].unique for name in ("simclr", "dbd_warmup", "dbd_tune")} == {
        "simclr": 1, "dbd_warmup": 2, "dbd_tune": 12,
    }  # fmt: skip
    for chain in chains[:2]:
        counting.compute(chain["classifier"], counting.note)
    assert [counting.computed.count(name) for name in ("simclr", "dbd_warmup", "dbd_tune")] == [1, 2, 2]


def test_the_encoder_is_gssds_where_their_settings_agree(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    same = {**SIMCLR, "optimizer": "adam", "lr": 3e-4, "weight_decay": 0.0, "schedule": "constant"}
    views = {"smallest_crop": 0.08, "jitter": 1.0, "blur": 0.0}
    gssd = bdtune.defense("gssd", simclr=SIMCLR).build(given)["simclr"].recipe
    assert short(simclr={**same, **views}).build(given)["simclr"].recipe == gssd
    assert short(simclr=same).build(given)["simclr"].recipe != gssd


def test_labels_do_not_touch_the_encoder(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    data: Any = given.fit.load(None, {})  # type: ignore[arg-type]
    stage, model = SimCLR(**SIMCLR), given.model.load(None, {})  # type: ignore[arg-type]
    other = replace(data, labels=(data.labels + 1) % 3)
    one, two = (stage.run(CTX, data=each, model=model) for each in (data, other))
    assert digest_of(one.arrays, one.info) == digest_of(two.arrays, two.info)


def test_the_baseline_has_the_epochs_with_labels(poisoned: tuple[DefenseInputs, Truth]) -> None:
    training = bdtune.defense("dbd").baseline_training()
    assert type(training) is Supervised
    assert (training.epochs, training.optimizer, training.lr, training.schedule) == (
        200, "adam", 2e-3, "constant",
    )  # fmt: skip


def test_the_ramp_counts_from_the_warmup_on(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    found = counting.compute(short(warmup={"epochs": 3}, semi={"ramp": 10}).build(given)["classifier"])
    assert [row["lambda_u"] for row in found.curve] == pytest.approx([15 * 4 / 10, 15 * 5 / 10])
    assert found.info["epochs"] == 5


def test_the_pool_is_judged_by_the_truth() -> None:
    observed = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    role = np.array([1, 1, 0, 0, 0, 0, 0, 0], np.uint8)
    truth = Truth(np.array([1, 1, 0, 0, 1, 1, 1, 1]), observed, role, 0)
    labelled = np.array([[1, 1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 1, 0, 0]], bool)
    losses = np.array([[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.1, 0.9, 0.2, 0.8, 0.3, 0.4, 0.6, 0.7]])
    found = pools.judged([{"pool.labelled": labelled, "pool.scores": losses}], truth)
    assert found["labelled"] == 0.5
    assert (found["labelled_poison_first"], found["labelled_poison"]) == (0.5, 0.25)
    assert found["labelled_poison_most"] == 0.5
    assert found["poison_labelled"] == 0.5
    assert (found["isolation_precision"], found["isolation_recall"]) == (0.25, 0.5)
    assert found["smallest_class"] == 0.5
    assert found["changed"] == 0.5
    assert found["auroc_first"] == 0.0
    assert found["auroc"] == 0.5  # above all six, and above none
    assert (found["score_poison"], found["score_clean"]) == (0.5, 0.5)


def test_the_picture_shows_losses_and_the_pool(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    defense = short(eps=0.4)
    found = counting.compute(defense.build(given)["classifier"])
    picture = defense.figure({"classifier": found}, truth)
    assert picture is not None
    first, last, right = picture.axes
    limit = found.arrays["pool.scores"][0][found.arrays["pool.labelled"][0]].max()
    assert first.get_lines()[0].get_xdata()[0] == pytest.approx(np.log10(limit))
    assert len(last.get_lines()) == 1
    shares = right.get_lines()[0].get_ydata()
    np.testing.assert_allclose(shares, [truth.is_poison[row].mean() for row in found.arrays["pool.labelled"]])
    fewest = right.get_lines()[2].get_ydata()
    classes = [truth.observed == c for c in np.unique(truth.observed)]
    pool = found.arrays["pool.labelled"]
    np.testing.assert_allclose(fewest, [min(row[own].mean() for own in classes) for row in pool])


def test_a_legend_has_room_above_the_bars() -> None:
    (ax,) = panels(1)[1]
    draw_stacked(ax, np.arange(8.0), np.arange(8) > 5, np.linspace(0, 8, 3))
    assert ax.get_ylim() == pytest.approx((0, 1.4 * 4))


def test_settings_have_the_papers_defaults() -> None:
    dbd = bdtune.defense("dbd").model_dump()
    assert dbd["eps"] == 0.5
    ssl = {"epochs": 100, "horizon": 1000, "batch_size": 512, "lr": 0.4, "temperature": 0.5, "blur": 0.5}
    assert dbd["simclr"].items() >= {**ssl, "optimizer": "sgd", "weight_decay": 1e-4, "jitter": 0.5}.items()
    warmup = {"epochs": 10, "batch_size": 128, "lr": 2e-3, "optimizer": "adam", "sce_a": 0.1, "sce_b": 1.0}
    assert dbd["warmup"].items() >= warmup.items()
    assert dbd["semi"].items() >= {"epochs": 190, "iterations": 1024, "lambda_u": 15.0}.items()
    chain = bdtune.defense("dbd")._tuning()  # type: ignore[attr-defined]
    assert chain.ramp == 190


def test_wrong_settings_are_refused() -> None:
    for wrong in ({"eps": 0}, {"eps": 1.5}, {"warmup": {"sce_a": 0, "sce_b": 0}}):
        with pytest.raises(ValidationError):
            bdtune.defense("dbd", **wrong)
