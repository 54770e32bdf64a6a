"""Adversarial training as a defense: its chain, its baseline, its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.training.adversarial import PGD, AdversarialTraining
from bdtune.training.fit import Fit
from bdtune.training.supervised import Supervised
from bdtune.trials.graph import trial_graph

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import DefenseInputs
    from tests.defenses.conftest import Counting


def graph(**knobs: Any) -> Any:
    raw = {"dataset": "digits", "attack": "badnets", "model": {"name": "resnet18", "width": 4}}
    spec, faults = parse_trial({**raw, "defense": {"name": "adversarial_training", **knobs}})
    assert not faults
    return trial_graph(spec)


def test_it_trains_on_everything_as_no_defense_does() -> None:
    found = graph()
    assert [node.name for node in found.chain["classifier"].walk()] == ["all_samples", "adversarial_training"]
    baseline = trial_graph(found.baseline)
    assert baseline.chain["subset"].recipe == found.chain["subset"].recipe
    stage = baseline.chain["classifier"].stage.model_copy(update={"augment": "auto"})
    assert stage == Supervised(epochs=100, milestones=(0.5, 0.75, 0.9))


def test_the_attacks_knobs_do_not_touch_the_baseline() -> None:
    one, other = graph(), graph(train={"pgd": {"eps": "4/255"}, "attack_bn": "train"})
    assert one.is_baseline == other.is_baseline
    assert one.chain["classifier"].recipe != other.chain["classifier"].recipe


def test_its_epochs_are_ticks_that_a_scheduler_can_judge() -> None:
    found = graph(train={"epochs": 7})
    assert found.epochs == 7
    assert list(found.judged) == [found.chain["classifier"].recipe]


def test_its_picture_shows_the_losses_on_adversarial_images(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    short = {"epochs": 2, "batch_size": 20, "pgd": {"steps": 1}}
    defense = bdtune.defense("adversarial_training", train=short)
    chain = defense.build(given)
    evidence = {name: counting.compute(chain[name]) for name in defense.evidence}
    trace = evidence["training"].arrays["trace.losses"]
    assert trace.shape == (2, 60)
    curve = [row["loss"] for row in evidence["training"].curve]
    assert curve == pytest.approx(trace.mean(1).tolist(), rel=1e-5)
    found = defense.diagnose(evidence, truth)
    assert found["loss_poison"] == pytest.approx(trace[-1][truth.is_poison].mean())
    picture = defense.figure(evidence, truth)
    assert picture is not None
    epochs, _ = picture.axes
    assert [line.get_label() for line in epochs.get_lines()] == ["clean", "poisoned"]


class Unrecorded(AdversarialTraining):
    name: ClassVar[str] = AdversarialTraining.name  # so that both have one seed

    def training(self, ctx, *, data, subset, model):
        fit = Fit(self, ctx, data, subset, model)
        fit.prepare = self._adversary(fit)
        return fit.training()


def test_recording_changes_no_weight(poisoned: tuple[DefenseInputs, Truth], counting: Counting) -> None:
    given, _ = poisoned
    knobs = {"epochs": 2, "batch_size": 20, "pgd": PGD(steps=2)}
    chain = bdtune.defense("adversarial_training").build(given)
    inputs = {"data": given.fit, "model": given.model, "subset": chain["subset"]}
    plain = counting.compute(given.node(Unrecorded(**knobs), **inputs)).arrays
    recorded = counting.compute(given.node(AdversarialTraining(**knobs), **inputs)).arrays
    assert recorded.keys() - plain.keys() == {"trace.losses"}
    assert all(np.array_equal(recorded[name], value) for name, value in plain.items())


def test_the_last_and_the_best_epoch_share_one_training() -> None:
    last, best = (graph(validation=0.1, checkpoint=name) for name in ("last", "best"))
    assert last.chain["classifier"].recipe == best.chain["training"].recipe
    assert [node.name for node in best.chain["classifier"].walk()] == [
        "validation_part",
        "adversarial_training",
        "best_epoch",
    ]
    assert best.baseline == graph().reference
    assert best.epochs == last.epochs == 100


def test_the_best_epoch_needs_a_validation_part() -> None:
    raw = {"dataset": "digits", "defense": {"name": "adversarial_training", "checkpoint": "best"}}
    _, (fault,) = parse_trial(raw)
    assert "needs a validation part" in f"{fault.expected} {fault.hint}"


def test_what_the_best_epoch_is_worth_is_told_and_drawn(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, truth = poisoned
    short = {"epochs": 3, "batch_size": 20, "optimizer": "adam", "lr": 0.02, "pgd": {"steps": 1}}
    defense = bdtune.defense("adversarial_training", train=short, validation=0.4, checkpoint="best")
    chain = defense.build(given)
    chosen = counting.compute(chain["classifier"])
    evidence = {name: counting.compute(chain[name]) for name in defense.evidence}
    curve = evidence["training"].arrays["validation.robust_acc"].tolist()
    found = defense.diagnose(evidence, truth)
    assert found["best_epoch"] == chosen.info["epoch"] == 1 + curve.index(max(curve))
    assert found["overfitting"] == pytest.approx(max(curve) - curve[-1])
    ids = evidence["subset"].arrays["ids"]
    losses = evidence["training"].arrays["trace.losses"][-1]
    assert found["loss_poison"] == pytest.approx(losses[truth.is_poison[ids]].mean())
    picture = defense.figure(evidence, truth)
    assert picture is not None
    line, mark = picture.axes[2].get_lines()
    assert list(line.get_ydata()) == curve
    assert (list(mark.get_xdata()), list(mark.get_ydata())) == ([found["best_epoch"]], [max(curve)])


def test_it_has_the_papers_defaults() -> None:
    train = bdtune.defense("adversarial_training").train
    assert train.pgd == PGD(eps=8 / 255, step=2 / 255, steps=10, random_start=True)
    assert (train.epochs, train.batch_size, train.optimizer, train.lr) == (100, 128, "sgd", 0.1)
    assert (train.momentum, train.weight_decay, train.augment) == (0.9, 5e-4, "auto")
    assert train.attack_bn == "eval"
