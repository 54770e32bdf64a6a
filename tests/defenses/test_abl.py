from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict
from bdtune.defenses.abl.stages import Isolated, Rest, Signs, largest_class
from bdtune.defenses.abl.training import Isolate, Joint, Recover, Unlearn
from bdtune.defenses.abl.watch import Watch
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.plugins.data import LabelSet
from bdtune.plugins.defense import Diagnose, diagnosis
from bdtune.training.augment import Augmentation
from bdtune.training.batches import Batch, DeviceSet
from bdtune.training.fit import Fit
from bdtune.training.losses import sample_logits
from bdtune.training.predict import trained_network
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays, new_network
from bdtune.trials.graph import trial_graph
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
RNG = np.random.default_rng(0)
LABELS = LabelSet(RNG.integers(0, 5, 100), 5)


def scored(losses: Any) -> dict[str, Any]:
    return {"losses": Artefact({"losses": np.asarray(losses, np.float64)}), "data": LABELS}


# Derived stages


@pytest.mark.parametrize("p", [0.0, 0.01, 0.29, 0.5, 1.0])
def test_the_lowest_losses_are_isolated_and_the_rest_is_the_rest(p: float) -> None:
    losses = RNG.gamma(1.0, 1.0, 100)
    ids = Isolated(p=p).run(CTX, **scored(losses)).arrays["ids"]
    rest = Rest(p=p).run(CTX, **scored(losses)).arrays["ids"]
    ranks = sorted(range(100), key=lambda i: losses[i])
    assert ids.tolist() == sorted(ranks[: round(100 * p)])
    assert sorted([*ids, *rest]) == list(range(100))
    for part in (Isolated(p=p), Rest(p=p)):
        found = part.run(CTX, **scored(losses)).arrays
        np.testing.assert_array_equal(found["labels"], LABELS.labels[found["ids"]])


def test_what_is_isolated_at_a_small_rate_is_at_a_larger_one_ties_included() -> None:
    losses = RNG.integers(0, 4, 100) / 4
    sets = [set(Isolated(p=p).run(CTX, **scored(losses)).arrays["ids"]) for p in (0.02, 0.1, 0.3, 0.7)]
    assert all(small < large for small, large in itertools.pairwise(sets))
    zeros = np.flatnonzero(losses == 0)
    assert sorted(sets[0]) == zeros[:2].tolist()  # ties by id


@pytest.mark.parametrize("reading", ["means", "batch"])
def test_signs_give_the_joint_objective(reading: Any) -> None:
    ids = np.array([3, 50, 51, 99])
    inputs = {"isolated": Artefact({"ids": ids}), "data": LABELS}
    weights = Signs(reading=reading).run(CTX, **inputs).arrays["weights"]
    losses = RNG.gamma(1.0, 1.0, 100)
    rest = np.setdiff1d(np.arange(100), ids)
    expected = {
        "means": losses[rest].mean() - losses[ids].mean(),
        "batch": (losses[rest].sum() - losses[ids].sum()) / 100,
    }
    assert np.mean(weights * losses) == pytest.approx(expected[reading], rel=1e-5)


def test_without_isolated_samples_the_joint_form_is_plain() -> None:
    inputs = {"isolated": Artefact({"ids": np.zeros(0, np.int64)}), "data": LABELS}
    assert Signs(reading="means").run(CTX, **inputs).arrays["weights"].tolist() == [1.0] * 100


def test_the_share_of_the_largest_class() -> None:
    assert largest_class(np.array([1, 1, 4, 1])) == 0.75
    assert math.isnan(largest_class(np.zeros(0, int)))


# Isolation training


def slow_gradient(losses: torch.Tensor, stage: Isolate) -> torch.Tensor:
    """d L / d loss_i by the paper's formula, one sample at a time."""
    mean, count = losses.mean().item(), len(losses)
    found = []
    for loss in losses.tolist():
        compared = loss if stage.level == "sample" else mean
        above = 1.0 if compared > stage.lga_gamma else -1.0
        found.append((1.0 if stage.ascent == "none" else above) / count)
    return torch.tensor(found)


@pytest.mark.parametrize("ascent", ["lga", "none"])
@pytest.mark.parametrize("level", ["batch", "sample"])
@pytest.mark.parametrize("scale", [0.2, 2.0])
def test_local_gradient_ascent_turns_the_gradient_below_gamma(ascent: Any, level: Any, scale: float) -> None:
    stage = Isolate(ascent=ascent, level=level)
    losses = (scale * torch.tensor([0.1, 0.4, 0.9, 1.6])).requires_grad_()
    loss = stage.objective(losses)
    loss.backward()
    torch.testing.assert_close(losses.grad, slow_gradient(losses.detach(), stage))
    torch.testing.assert_close(loss, losses.mean())  # what the curve shows is the loss itself


def test_flooding_is_the_same_update() -> None:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 3
    for shift in (0.0, 5.0):
        one, two = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        confident = shift * torch.nn.functional.one_hot(labels, 3)
        flooded = (cross_entropy(one + confident, labels) - 0.5).abs() + 0.5
        flooded.backward()
        Isolate(lga_gamma=0.5).objective(cross_entropy(two + confident, labels, reduction="none")).backward()
        torch.testing.assert_close(one.grad, two.grad)


def test_settings_that_come_to_the_same_share_the_isolation_model(
    poisoned: tuple[DefenseInputs, Truth],
) -> None:
    def recipe(**isolate: Any) -> str:
        return bdtune.defense("abl", isolate=isolate).build(poisoned[0])["isolate"].recipe

    assert recipe(ascent="flooding") == recipe(ascent="lga")
    assert recipe(ascent="none", lga_gamma=0.3) == recipe(ascent="none", level="sample")
    assert len({recipe(), recipe(ascent="none"), recipe(lga_gamma=0.3), recipe(level="sample")}) == 4


def test_the_loss_stays_about_gamma(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    data, model = given.fit.value, given.model.value  # type: ignore[attr-defined]
    everything = Artefact({"ids": np.arange(60), "labels": data.labels})
    inputs = {"data": data, "subset": everything, "model": model}
    knobs: dict[str, Any] = {"epochs": 8, "batch_size": 20, "lr": 0.1}
    held = Isolate(**knobs, lga_gamma=0.8).run(CTX, **inputs)
    free = Isolate(**knobs, ascent="none").run(CTX, **inputs)
    assert free.curve[-1]["loss"] < 0.5 < 0.6 < held.curve[-1]["loss"]
    assert held.arrays["trace.losses"].shape == (8, 60)


def test_sgd_is_nesterovs(poisoned: tuple[DefenseInputs, Truth]) -> None:
    data, model = poisoned[0].fit.value, poisoned[0].model.value  # type: ignore[attr-defined]
    network = new_network(model, data, 0, CPU)

    def groups(stage: Supervised) -> list[Any]:
        return [group.get("nesterov") for group in stage.new_optimizer(network).param_groups]

    assert groups(Recover()) == groups(Joint()) == groups(Unlearn()) == [True]
    assert groups(Recover(nesterov=False)) == groups(Recover(momentum=0.0)) == [False]
    assert groups(Recover(optimizer="adam")) == [None]


# Unlearning


@pytest.fixture
def start(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    """Inputs of the unlearning: a model that knows the trigger, and the poison as isolated."""
    given, truth = poisoned
    data, model = given.fit.value, given.model.value  # type: ignore[attr-defined]

    def subset(rows: np.ndarray) -> Artefact:
        ids = np.flatnonzero(rows)
        return Artefact({"ids": ids, "labels": data.labels[ids]})

    everything = subset(np.ones(60, bool))
    knobs: dict[str, Any] = {"optimizer": "adam", "schedule": "cosine", "augment": "none", "lr": 0.02}
    init = Supervised(epochs=15, batch_size=10, **knobs).run(CTX, data=data, subset=everything, model=model)
    isolated, rest = subset(truth.is_poison), subset(~truth.is_poison)
    return {"data": data, "model": model, "init": init, "subset": isolated, "rest": rest}


def slow_unlearning(start: dict[str, Any], stage: Unlearn) -> dict[str, np.ndarray]:
    data = start["data"]
    network = new_network(start["model"], data, CTX.seed, CPU, start["init"])
    optimizer = torch.optim.SGD(
        network.parameters(), stage.lr, stage.momentum, weight_decay=stage.weight_decay, nesterov=True
    )
    see, norms = Augmentation.of("none", data), [m for m in network.modules() if "Norm" in type(m).__name__]
    images = DeviceSet(data, torch.device("cpu"), start["subset"].arrays["ids"])
    for epoch in range(stage.epochs):
        network.train()
        if stage.bn_mode == "eval":
            for norm in norms:
                norm.eval()
        for batch in images.shuffled(stage.batch_size, CTX.seed, epoch):
            kept = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
            optimizer.zero_grad()
            (-cross_entropy(network(see(batch.images)), batch.labels)).backward()
            optimizer.step()
            if stage.bn_mode == "frozen_stats":
                for norm, (mean, var) in zip(norms, kept, strict=True):
                    norm.running_mean.copy_(mean)
                    norm.running_var.copy_(var)
    return module_arrays(network)


@pytest.mark.slow
def test_by_default_running_statistics_follow_what_is_unlearned(start: dict[str, Any]) -> None:
    """As in the released code: most of what lowers the attack's success."""
    found = Unlearn(epochs=1, batch_size=6, max_drop=None).run(CTX, **start).arrays
    moved = [name for name in found if "running_mean" in name]
    assert moved
    assert not any(np.allclose(found[name], start["init"].arrays[name], atol=1e-3) for name in moved)


@pytest.mark.slow
@pytest.mark.parametrize("bn_mode", ["train", "frozen_stats", "eval"])
def test_unlearning_ascends_on_what_is_isolated(start: dict[str, Any], bn_mode: Any) -> None:
    stage = Unlearn(epochs=2, batch_size=6, lr=1e-3, bn_mode=bn_mode, max_drop=None)
    found = stage.run(CTX, **start)
    for name, value in slow_unlearning(start, stage).items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    still = [name for name in found.arrays if "running" in name]
    same = all(np.array_equal(found.arrays[name], start["init"].arrays[name]) for name in still)
    assert same == (bn_mode != "train")
    assert "rest_acc" not in found.curve[0]


@pytest.mark.slow
def test_the_curve_shows_the_loss_rise(start: dict[str, Any]) -> None:
    curve = Unlearn(epochs=8, batch_size=6, lr=0.02, max_drop=1.0).run(CTX, **start).curve
    assert curve[0]["loss"] > 0
    assert curve[-1]["loss"] > 2 * curve[0]["loss"]
    assert all(0 <= row["rest_acc"] <= 1 for row in curve)


def test_beyond_its_bound_a_loss_is_not_pushed() -> None:
    logits = torch.tensor([[4.0, 0.0, 0.0]], requires_grad=True)
    batch = Batch(torch.zeros(1, 8, 8, 3), torch.tensor([1]), torch.tensor([0]))
    for bound, pushed in [(3.0, False), (5.0, True), (None, True)]:
        logits.grad = None
        loss = Unlearn(max_loss=bound).loss(logits, batch)
        loss.backward()
        torch.testing.assert_close(loss, cross_entropy(logits, batch.labels))
        plain = torch.autograd.grad(-cross_entropy(logits, batch.labels), logits)[0]
        torch.testing.assert_close(logits.grad, plain if pushed else torch.zeros(1, 3))


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "epochs"), [(100.0, 8), (1e8, 8)])
def test_ascent_without_bound_ends_as_diverged(start: dict[str, Any], lr: float, epochs: int) -> None:
    knobs: dict[str, Any] = {"epochs": epochs, "batch_size": 6, "lr": lr}
    with pytest.raises(Diverged, match="abl_unlearn"):
        Unlearn(**knobs, max_loss=None, max_drop=None).run(CTX, **start)
    held = Unlearn(**knobs, max_loss=None).run(CTX, **start)  # its first epoch is taken back
    assert digest_of(held.arrays, 0) == digest_of(start["init"].arrays, 0)


def rest_accuracy(start: dict[str, Any], classifier: Artefact) -> float:
    network = trained_network(start["model"], start["data"], classifier, CPU)
    rest = start["rest"].arrays
    predicted = sample_logits(network, start["data"], CPU)[rest["ids"]].argmax(1)
    return float(np.mean(predicted == rest["labels"]))


@pytest.mark.slow
def test_the_rest_is_watched_in_float32_whatever_the_precision(start: dict[str, Any]) -> None:
    arrays = {name: value.copy() for name, value in start["init"].arrays.items()}
    arrays["model.head.weight"][:] = 0
    arrays["model.head.bias"][:] = [1, 1.001, 0]  # equal in bf16, of which argmax takes the first
    labels = start["rest"].arrays["labels"]
    bf16 = Context(seed=4, numerics=CPU.model_copy(update={"precision": "bf16"}))
    inputs = {name: start[name] for name in ("data", "subset", "model")}
    fit = Fit(Unlearn(), bf16, **inputs, init=Artefact(arrays))
    assert Watch(fit, start["rest"], len(labels), 0.2).accuracy() == np.mean(labels == 1)


@pytest.mark.slow
def test_an_epoch_that_costs_too_much_is_taken_back(start: dict[str, Any], memory: Any) -> None:
    knobs: dict[str, Any] = {"epochs": 8, "batch_size": 6, "lr": 0.02, "max_loss": None}
    free = Unlearn(**knobs, max_drop=None).run(CTX, **start)
    held = Unlearn(**knobs, max_drop=0.2).run(CTX, **start)
    assert held.info["epochs"] == len(held.curve) < len(free.curve) == 8
    assert [row.get("stopped") for row in held.curve] == [*[None] * (len(held.curve) - 1), 1.0]
    drops = [rest_accuracy(start, start["init"]) - row["rest_acc"] for row in held.curve]
    assert len(drops) > 1
    assert drops[-1] > 0.2 >= max(drops[:-1])
    kept = Unlearn(**{**knobs, "epochs": len(drops) - 1}, max_drop=1.0).run(CTX, **start)
    assert digest_of(held.arrays, 0) == digest_of(kept.arrays, 0)
    assert rest_accuracy(start, held) == held.curve[-2]["rest_acc"]
    slot = memory(due_after=[len(held.curve)])
    ctx = Context(seed=4, numerics=CPU, checkpoint=slot)
    assert digest_of(Unlearn(**knobs).run(ctx, **start).arrays, 0) == digest_of(held.arrays, 0)
    again = Unlearn(**knobs).run(ctx, **start)  # from the checkpoint of its last epoch
    assert (digest_of(again.arrays, 0), again.info) == (digest_of(held.arrays, 0), held.info)


def test_nothing_isolated_is_nothing_unlearned(start: dict[str, Any]) -> None:
    nothing = Artefact({"ids": np.zeros(0, np.int64), "labels": np.zeros(0, np.int64)})
    found = Unlearn().run(CTX, **{**start, "subset": nothing})
    assert digest_of(found.arrays, 0) == digest_of(start["init"].arrays, 0)


# The chain


def short(**knobs: Any) -> Defense:
    quick = {"epochs": 1, "batch_size": 16}
    for name in ("isolate", "recover", "unlearn", "joint"):
        knobs[name] = {**quick, **knobs.get(name, {})}
    return bdtune.defense("abl", **knobs)


def test_a_grid_over_p_and_the_unlearning_trains_one_isolation_model(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    given, _ = poisoned
    chains = [
        short(p=p, unlearn={"lr": lr, "epochs": epochs}).build(given)
        for p in (0.1, 0.2, 0.11)  # of 60 samples: 6, 12, and 6 again
        for lr in (1e-5, 1e-4)
        for epochs in (1, 2)
    ]

    def counts() -> dict[str, int]:
        plan = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver)
        return {name: count.unique for name, count in plan.stages.items()}

    before = counts()
    assert before["abl_isolate"] == before["sample_losses"] == 1
    assert (before["abl_rest"], before["abl_unlearn"]) == (3, 12)
    for chain in chains:
        counting.compute(chain["rest"], counting.note)
        counting.compute(chain["isolated"], counting.note)
    assert counting.computed.count("abl_isolate") == 1
    after = counts()
    assert (after["abl_recover"], after["abl_unlearn"]) == (2, 8)
    for chain in chains:
        counting.compute(chain["classifier"], counting.note)
    assert {
        name: counting.computed.count(name) for name in ("abl_isolate", "abl_recover", "abl_unlearn")
    } == {
        "abl_isolate": 1,
        "abl_recover": 2,
        "abl_unlearn": 8,
    }


def test_both_forms_share_the_isolation(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned
    recover, joint = short().build(given), short(form="joint").build(given)
    assert recover["isolated"].recipe == joint["isolated"].recipe
    assert joint["classifier"].name == "abl_joint"
    assert (
        short(form="joint").baseline_training() != short(joint={"lr": 0.01}, form="joint").baseline_training()
    )


@pytest.mark.parametrize("form", ["recover", "joint"])
def test_the_baseline_is_trained_as_the_defended_classifier(
    poisoned: tuple[DefenseInputs, Truth], form: str
) -> None:
    knobs: dict[str, Any] = {"epochs": 7, "lr": 0.03, "weight_decay": 1e-3}
    knobs |= {"milestones": (0.5,), "augment": "flip"}
    defense = bdtune.defense("abl", form=form, isolate={"epochs": 3}, **{form: knobs})
    assert defense.baseline_training() == Supervised(**{**knobs, "epochs": 3 + 7}, nesterov=True)
    baseline = (
        bdtune.defense("none", train=defense.baseline_training()).build(poisoned[0])["classifier"].stage
    )
    assert (baseline.name, baseline.classifier, baseline.length()) == ("supervised", True, 10)
    assert baseline.nesterov
    network = bdtune.model("resnet_s", stem_width=2).build(2, (8, 8, 3))
    assert [(group["lr"], group["nesterov"]) for group in baseline.new_optimizer(network).param_groups] == [
        (0.03, True)
    ]


@pytest.mark.parametrize("plain", [{"optimizer": "adam"}, {"nesterov": False}])
def test_without_nesterovs_momentum_the_baseline_is_one_that_others_have_too(
    poisoned: tuple[DefenseInputs, Truth], plain: dict[str, Any]
) -> None:
    knobs: dict[str, Any] = {"epochs": 80, "lr": 1e-3, "weight_decay": 0.0, "schedule": "cosine"}
    knobs |= {"milestones": (0.5, 0.75), "augment": "auto"}
    recover = {**knobs, **plain, "epochs": 60}
    baseline = bdtune.defense("abl", isolate={"epochs": 20}, recover=recover).baseline_training()
    assert baseline.identity() == Supervised(**knobs, **plain).identity()
    if "optimizer" in plain:
        assert baseline.identity() == bdtune.defense("lfd").baseline_training().identity()


@pytest.mark.parametrize("knobs", [{}, {"form": "joint"}, {"recover": {"optimizer": "adam"}}])
def test_the_baselines_settings_survive_being_written_down(knobs: dict[str, Any]) -> None:
    """So they travel to the worker that trains it, and into a sweep's files."""
    raw = {"dataset": "digits", "attack": "badnets", "defense": {"name": "abl", **knobs}}
    spec, faults = parse_trial(raw)
    assert spec is not None
    assert not faults
    baseline = trial_graph(spec).baseline
    assert baseline is not None
    again = spec_from_dict(json.loads(json.dumps(spec_to_dict(baseline))))
    assert again == baseline
    assert trial_graph(again).chain["classifier"].recipe == trial_graph(baseline).chain["classifier"].recipe


def test_unlearning_goes_on_from_the_weights_alone(poisoned: tuple[DefenseInputs, Truth]) -> None:
    """Momentum that was gathered in descending would carry the first steps of the ascent down again."""
    chain = short().build(poisoned[0])
    assert chain["classifier"].inputs["init"].name == "abl_recover"
    assert chain["recover"].inputs["init"].name == "abl_isolate"
    network = bdtune.model("resnet_s", stem_width=2).build(2, (8, 8, 3))
    assert not chain["classifier"].stage.new_optimizer(network).state  # type: ignore[attr-defined]


def test_the_recovery_may_see_all_samples(poisoned: tuple[DefenseInputs, Truth]) -> None:
    """As LfD describes ABL; the unlearning then still takes the isolated samples alone."""
    chain = short(recover_on="all").build(poisoned[0])
    assert chain["recover"].inputs["subset"] is chain["subset"]
    assert chain["classifier"].inputs["subset"] is chain["isolated"]
    assert short().build(poisoned[0])["recover"].inputs["subset"].name == "abl_rest"


def test_no_recovery_leaves_the_isolation_model(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth]
) -> None:
    chain = short(recover={"epochs": 0}).build(poisoned[0])
    isolate, recover = counting.compute(chain["isolate"]), counting.compute(chain["recover"])
    assert all(np.array_equal(recover.arrays[name], isolate.arrays[name]) for name in recover.arrays)
    assert short(isolate={"epochs": 3}, recover={"epochs": 0}).baseline_training().epochs == 3


@pytest.mark.parametrize("form", ["recover", "joint"])
def test_what_is_isolated_is_judged_by_the_truth(
    counting: Counting, poisoned: tuple[DefenseInputs, Truth], form: str
) -> None:
    given, truth = poisoned
    defense = short(form=form, p=0.1)
    chain = defense.build(given)
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {k.removeprefix("abl/"): v for k, v in counting.compute(judge).info.items()}
    ids = counting.compute(chain["isolated"]).arrays["ids"]
    assert found["isolation_precision"] == np.mean(truth.is_poison[ids])
    assert found["isolation_recall"] == pytest.approx(truth.is_poison[ids].sum() / 12)
    assert found["isolation_precision_at_0.1"] == found["isolation_precision"]
    assert found["isolation_recall_at_0.2"] >= found["isolation_recall_at_0.1"]
    assert found["isolated"] == 0.1
    assert found["isolated_target"] == np.mean(truth.observed[ids] == 0)


def test_the_picture_shows_both_parts(counting: Counting, poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, truth = poisoned
    for p in (0.0, 0.1):
        defense = short(p=p)
        chain = defense.build(given)
        picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
        assert picture is not None
        curves, histogram = picture.axes
        assert [line.get_label() for line in curves.get_lines()] == ["clean", "poisoned"]
        assert len(histogram.get_lines()) == (1 if p else 0)


def test_knobs_have_the_codes_defaults() -> None:
    abl = bdtune.defense("abl").model_dump()
    assert (abl["p"], abl["form"], abl["isolate"]["lga_gamma"]) == (0.01, "recover", 0.5)
    epochs = {name: abl[name]["epochs"] for name in ("isolate", "recover", "unlearn")}
    assert epochs == {"isolate": 20, "recover": 60, "unlearn": 5}
    assert abl["unlearn"]["lr"] == 5e-4
    assert abl["unlearn"]["bn_mode"] == "train"
    assert abl["isolate"]["augment"] == "none"
    assert {abl[name]["weight_decay"] for name in epochs} == {1e-4}
