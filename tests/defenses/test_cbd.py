from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import bdtune
from bdtune.defenses.cbd.deconfounding import dependence, new_discriminator, ratio, to_mean_one
from bdtune.defenses.cbd.training import Backdoored, Clean, Discriminator
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.plugins.defense import Diagnose, diagnosis
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.predict import trained_network
from bdtune.training.session import seeded
from bdtune.training.supervised import Supervised
from bdtune.training.weights import module_arrays, new_network
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
PLAIN: dict[str, Any] = {"batch_size": 20, "lr": 0.05, "augment": "none"}
STILL: dict[str, Any] = {"dropout": 0.0, "lipschitz": "none", "lr": 1e-3}


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Equations


def test_a_sample_weighs_what_the_backdoored_model_does_not_fit() -> None:
    known, own = torch.tensor([0.0, 1e-4, 2.0, 0.0]), torch.tensor([3.0, 1.0, 0.5, 0.0])
    slow = [k / (k + o) if k + o else 0.0 for k, o in zip(known.tolist(), own.tolist(), strict=True)]
    torch.testing.assert_close(ratio(known, own), torch.tensor(slow), atol=1e-6, rtol=1e-6)
    assert to_mean_one(ratio(known, own)).mean().item() == pytest.approx(1.0)
    assert to_mean_one(torch.zeros(3)).tolist() == [0.0] * 3  # no 0 / 0 where neither model has a loss left


def test_the_dependence_is_that_of_pairs_and_of_neighbours() -> None:
    made = new_discriminator(5, 4, Discriminator(**STILL))
    r, z = drawn(6, 2), drawn(6, 3, seed=1)
    _, first, _, _, second = made
    a, b = (layer.weight.detach().numpy() for layer in (first, second))
    c, e = (layer.bias.detach().numpy() for layer in (first, second))

    def judged(left: torch.Tensor, right: torch.Tensor) -> float:
        hidden = a @ np.concatenate([left.numpy(), right.numpy()]) + c
        return float((b @ np.where(hidden > 0, hidden, 0.01 * hidden) + e)[0])

    pairs = np.mean([judged(r[i], z[i]) for i in range(6)])
    neighbours = np.mean([judged(r[i], z[(i + 1) % 6]) for i in range(6)])
    assert dependence(made, r, z).item() == pytest.approx(pairs - neighbours, abs=1e-5)


def test_spectral_normalisation_keeps_the_discriminator_lipschitz() -> None:
    with seeded(0, "discriminator"):
        made = new_discriminator(8, 4, Discriminator(dropout=0.0))
    optimizer = torch.optim.Adam(made.parameters(), lr=0.2)  # the rate that the code has
    for step in range(60):
        optimizer.zero_grad()
        (-dependence(made, drawn(16, 4, seed=step), drawn(16, 4, seed=step))).backward()
        optimizer.step()
    made.eval()
    for layer in (made[1], made[4]):
        assert torch.linalg.matrix_norm(layer.weight, 2).item() == pytest.approx(1.0, abs=0.05)
    one, other = drawn(200, 8, seed=7), drawn(200, 8, seed=8)
    slopes = (made(one) - made(other)).abs()[:, 0] / (one - other).norm(dim=1)
    assert slopes.max() <= 1.05


@pytest.mark.slow
def test_a_trained_discriminator_tells_pairs_that_depend_from_those_that_do_not() -> None:
    def found(dependent: bool) -> float:
        with seeded(0, "discriminator"):
            made = new_discriminator(4, 8, Discriminator(dropout=0.0))
        optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
        last = []
        for step in range(300):
            r = drawn(64, 2, seed=step)
            z = r if dependent else drawn(64, 2, seed=10_000 + step)
            optimizer.zero_grad()
            value = dependence(made, r, z)
            (-value).backward()
            optimizer.step()
            last.append(value.item())
        return float(np.mean(last[-50:]))

    assert found(dependent=True) > 0.2 > 0.05 > abs(found(dependent=False))


# The clean model's training


@pytest.fixture
def start(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    """Inputs of the clean training: a model that knows the trigger, and all samples."""
    given, _ = poisoned
    data, model = given.fit.value, given.model.value  # type: ignore[attr-defined]
    subset = Artefact({"ids": np.arange(60), "labels": data.labels})
    known = Backdoored(epochs=2, **PLAIN).run(CTX, data=data, subset=subset, model=model)
    return {"data": data, "subset": subset, "model": model, "backdoored": known}


def slow_training(start: dict[str, Any], stage: Clean) -> dict[str, np.ndarray]:
    """The objective written out, one sample at a time, with the code's order of steps."""
    data = start["data"]
    network = new_network(start["model"], data, CTX.seed, CPU)
    known = trained_network(start["model"], data, start["backdoored"], CPU)
    optimizer = torch.optim.SGD(
        network.parameters(), stage.lr, stage.momentum, weight_decay=stage.weight_decay, nesterov=True
    )
    width = network.feature_dim
    with seeded(CTX.seed, "discriminator"):
        made = new_discriminator(2 * width, width, stage.discriminator)
    against = torch.optim.Adam(made.parameters(), stage.discriminator.lr)
    see, images = Augmentation.of("none", data), DeviceSet(data, torch.device("cpu"))

    def between(r: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        count = len(r)
        values = [
            made(torch.cat([r[i], z[i]])) - made(torch.cat([r[i], z[(i + 1) % count]])) for i in range(count)
        ]
        return torch.stack(values).mean()

    for epoch in range(stage.epochs):
        network.train()
        for batch in images.shuffled(stage.batch_size, CTX.seed, epoch):
            pixels, labels = see(batch.images), batch.labels.tolist()
            z = network.features(pixels)
            own = [-network.head(z).log_softmax(1)[i, label] for i, label in enumerate(labels)]
            with torch.no_grad():
                r = known.features(pixels)
                theirs = [-known.head(r).log_softmax(1)[i, label] for i, label in enumerate(labels)]
            weights = [(b / (b + c.detach() + 1e-8)).item() for b, c in zip(theirs, own, strict=True)]
            if stage.normalise:
                weights = [weight * len(labels) / sum(weights) for weight in weights]
            if stage.terms == "dependence":
                weights = [1.0] * len(labels)
            loss = sum(weight * c for weight, c in zip(weights, own, strict=True)) / len(labels)
            loss = loss + stage.bottleneck * sum((row**2).sum() for row in z) / len(labels) / 2
            if stage.terms != "weights":
                against.zero_grad()
                (-between(r, z.detach())).backward()
                against.step()
                loss = loss + stage.coefficient * between(r, z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return module_arrays(network)


FORMS: list[dict[str, Any]] = [
    {},
    {"terms": "weights"},
    {"terms": "weights", "normalise": False},
    {"terms": "dependence"},
    {"terms": "weights", "bottleneck": 0.1},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_descends_on_what_the_equations_say(start: dict[str, Any], form: dict[str, Any]) -> None:
    stage = Clean(epochs=1, **PLAIN, coefficient=0.5, discriminator=STILL, **form)  # type: ignore[arg-type]
    found = stage.run(CTX, **start).arrays
    for name, value in slow_training(start, stage).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=2e-4, err_msg=name)
    assert found["trace.weights"].shape == (1, 60)
    assert not any(name.startswith("discriminator.") for name in found)


def test_each_term_changes_the_result(start: dict[str, Any]) -> None:
    found = [
        Clean(epochs=1, **PLAIN, coefficient=0.5, discriminator=STILL, **form).run(CTX, **start)  # type: ignore[arg-type]
        for form in FORMS
    ]
    assert len({digest_of(made.arrays, 0) for made in found}) == len(FORMS)
    assert [("dependence" in made.curve[0]) for made in found] == [True, False, False, True, False]


def test_interrupted_it_ends_with_the_same_bits(start: dict[str, Any], memory: Any) -> None:
    """The discriminator, its Adam state and dropout included."""
    stage = Clean(epochs=3, **PLAIN)
    whole = stage.run(CTX, **start)
    ctx = replace(CTX, checkpoint=memory(due_after=[2]))
    steps = stage.steps(ctx, **start)
    next(steps), next(steps)
    steps.close()
    torch.manual_seed(1)
    again = stage.run(ctx, **start)
    assert digest_of(again.arrays, again.info) == digest_of(whole.arrays, whole.info)
    assert whole.arrays["trace.dependence"].tolist() == [row["dependence"] for row in whole.curve]


def test_the_discriminators_rate_falls_at_its_milestones(
    start: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from bdtune.training import loop

    rates: list[float] = []
    plain = loop.descend

    def noted(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        if isinstance(optimizer, torch.optim.Adam):
            rates.append(optimizer.param_groups[0]["lr"])
        plain(optimizer, loss)

    monkeypatch.setattr(loop, "descend", noted)
    Clean(epochs=4, **{**PLAIN, "batch_size": 60}, discriminator={"milestones": (0.5, 0.75)}).run(
        CTX, **start
    )  # type: ignore[arg-type]
    np.testing.assert_allclose(rates, [0.2, 0.2, 0.02, 0.002])


def test_poison_that_the_backdoored_model_fits_weighs_little(
    poisoned: tuple[DefenseInputs, Truth], start: dict[str, Any]
) -> None:
    data, truth = start["data"], poisoned[1]
    network = trained_network(start["model"], data, start["backdoored"], CPU)
    with torch.no_grad():
        network.head.weight.mul_(0)
        network.head.bias.copy_(torch.tensor([60.0, 0.0, 0.0]))  # fits label 0, poison among it, and no other
    known = Artefact(module_arrays(network))
    found = Clean(epochs=1, **PLAIN).run(CTX, **{**start, "backdoored": known}).arrays
    label_0 = data.labels == 0
    assert found["trace.weights"][0, label_0].max() < 1e-6 < 0.9 < found["trace.weights"][0, ~label_0].min()
    assert label_0[truth.is_poison].all()


def test_a_backdoored_model_of_any_length_is_a_prefix_of_a_longer_one(start: dict[str, Any]) -> None:
    inputs = {name: start[name] for name in ("data", "subset", "model")}
    steps = Backdoored(epochs=3, **PLAIN).steps(CTX, **inputs)
    early = next(steps).artefact()
    shorter = Backdoored(epochs=3, **PLAIN).at(1)
    assert shorter == Backdoored(epochs=1, **PLAIN)
    assert digest_of(early.arrays, 0) == digest_of(shorter.run(CTX, **inputs).arrays, 0)


# The chain


def short(**clean: Any) -> Defense:
    quick = {"epochs": 1, "batch_size": 20}
    return bdtune.defense("cbd", backdoored={**quick, "epochs": 2}, clean={**quick, **clean})


def test_a_grid_over_the_clean_training_trains_one_backdoored_model(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, _ = poisoned
    forms = [{}, {"coefficient": 0.1}, {"terms": "weights"}, {"terms": "weights", "coefficient": 0.1}]
    forms += [{"discriminator": {"lr": 1e-3}}, {"terms": "dependence", "normalise": False}]
    chains = [short(**form).build(given) for form in forms]
    plan = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver)
    assert {name: count.unique for name, count in plan.stages.items()} == {
        "all_samples": 1,
        "cbd_backdoored": 1,
        "cbd_clean": 5,  # without the term its coefficient says nothing
    }
    same = [
        short(terms="dependence", normalise=each).build(given)["classifier"].recipe for each in (True, False)
    ]
    assert same[0] == same[1]


def test_the_baseline_has_the_clean_models_recipe() -> None:
    knobs: dict[str, Any] = {"epochs": 7, "lr": 0.03, "milestones": (0.5,), "augment": "flip"}
    found = bdtune.defense("cbd", clean=knobs).baseline_training()
    assert found == Supervised(**knobs, nesterov=True, weight_decay=1e-4, batch_size=64)


def test_the_weights_are_judged_by_the_truth(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, truth = poisoned
    defense = short()
    chain = defense.build(given)
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {name.removeprefix("cbd/"): value for name, value in counting.compute(judge).info.items()}
    weights = counting.compute(chain["classifier"]).arrays["trace.weights"][-1].astype(np.float64)
    pairs = [
        1.0 if p < c else 0.5 if p == c else 0.0
        for p in weights[truth.is_poison]
        for c in weights[~truth.is_poison]
    ]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["weight_poison"] == pytest.approx(weights[truth.is_poison].mean())
    assert found["effective"] == pytest.approx(weights.sum() ** 2 / (60 * (weights**2).sum()))
    assert math.isfinite(found["dependence"])
    terms = short(terms="weights")
    judged = diagnosis(Diagnose(defense=terms), terms.build(given), Is(word="truth", value=truth))
    assert judged is not None
    assert "cbd/dependence" not in counting.compute(judged).info


def test_the_picture_shows_losses_and_weights(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, truth = poisoned
    defense = short()
    chain = defense.build(given)
    picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
    assert picture is not None
    losses, weights, last = picture.axes
    assert [line.get_label() for line in losses.get_lines()] == ["clean", "poisoned"]
    assert weights.get_ylabel() == "mean weight"
    assert last.get_xlabel() == "weight"


def test_knobs_have_the_codes_defaults() -> None:
    cbd = bdtune.defense("cbd").model_dump()
    assert cbd["backdoored"]["epochs"] == 5
    clean = cbd["clean"]
    assert (clean["epochs"], clean["lr"], clean["milestones"], clean["gamma"]) == (100, 0.1, (0.2, 0.7), 0.1)
    assert (clean["coefficient"], clean["discriminator"]["lr"], clean["discriminator"]["dropout"]) == (
        0.01,
        0.2,
        0.2,
    )
    assert all(
        (each["batch_size"], each["weight_decay"], each["nesterov"], each["augment"])
        == (64, 1e-4, True, "auto_cutout")
        for each in (cbd["backdoored"], clean)
    )
