from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.config.trial import parse_trial, spec_from_dict, spec_to_dict
from bdtune.defenses.dst.consistency import Consistency
from bdtune.defenses.dst.objectives import intra, mixed
from bdtune.defenses.dst.split import CLEAN, POISON, UNCERTAIN, Part, Split, flagged
from bdtune.defenses.dst.training import Head, Repair, Sensitive
from bdtune.engine.key import digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Artefact, Context
from bdtune.errors import Diverged
from bdtune.plugins.data import LabelSet
from bdtune.plugins.defense import Diagnose, diagnosis
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.predict import trained_network
from bdtune.training.sup_con import SupCon
from bdtune.training.supervised import Supervised
from bdtune.training.weights import HEAD, module_arrays, new_network
from bdtune.trials.graph import trial_graph
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from bdtune.plugins.data import Truth
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
RNG = np.random.default_rng(0)
DEVICE = torch.device("cpu")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Objectives


@pytest.mark.parametrize("labels", [[0, 0, 2, 2, 1], [0, 0, 3, 0, 3], [1, 1, 1, 1, 1]])
def test_l_intra_is_the_mean_cosine_of_the_batchs_centres(labels: list[int]) -> None:
    rows = drawn(5, 4)
    there = sorted(set(labels))
    centres = [np.mean([rows[i].numpy() for i, own in enumerate(labels) if own == c], 0) for c in there]
    total = 0.0
    for i, one in enumerate(centres):
        for j, other in enumerate(centres):
            total += 0.0 if i == j else one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    found = intra(rows, torch.tensor(labels), 6)
    assert found.item() == pytest.approx(total / len(there) ** 2, abs=1e-6)


def test_mixed_cross_entropy_is_a_difference_of_means() -> None:
    losses, poison = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([False, True, False, True])
    assert mixed(losses, poison, 0.1).item() == pytest.approx(2.5 - 0.1 * 5.0)
    assert mixed(losses, torch.zeros(4, dtype=torch.bool), 0.1).item() == pytest.approx(3.75)  # no NaN
    assert mixed(losses, torch.ones(4, dtype=torch.bool), 0.1).item() == pytest.approx(-0.375)


# Features and their consistency


@pytest.fixture
def inputs(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    given, _ = poisoned
    data, model = given.fit.value, given.model.value  # type: ignore[attr-defined]
    subset = Artefact({"ids": np.arange(60), "labels": data.labels})
    return {"data": data, "subset": subset, "model": model}


def test_it_classifies_first_and_then_parts_the_classes(inputs: dict[str, Any]) -> None:
    stage = Sensitive(epochs=3, classify=1, batch_size=20, lr=0.05, horizon=10)
    data = inputs["data"]
    network = new_network(inputs["model"], data, CTX.seed, CPU)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, 0.9, weight_decay=5e-4)
    see, images = Augmentation.of("none", data), DeviceSet(data, DEVICE)
    for epoch in range(3):
        network.train()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + np.cos(np.pi * epoch / 10)) / 2
        for batch in images.shuffled(20, CTX.seed, epoch):
            features = network.features(see(batch.images))
            classified = cross_entropy(network.head(features), batch.labels)
            optimizer.zero_grad()
            (classified if epoch == 0 else intra(features, batch.labels, 3)).backward()
            optimizer.step()
    found = stage.run(CTX, **inputs)
    for name, value in module_arrays(network).items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    assert found.curve[2]["loss"] < found.curve[1]["loss"] < 1.0


def test_a_shorter_training_is_a_prefix_whichever_part_it_ends_in(inputs: dict[str, Any]) -> None:
    stage = Sensitive(epochs=3, classify=2, batch_size=20)
    steps = stage.steps(CTX, **inputs)
    early = [next(steps).artefact() for _ in range(2)]
    for epochs in (1, 2):
        shorter = stage.at(epochs)
        assert shorter == Sensitive(epochs=epochs, classify=2, batch_size=20)
        assert digest_of(shorter.run(CTX, **inputs).arrays, 0) == digest_of(early[epochs - 1].arrays, 0)
    assert Sensitive(schedule="multistep").at(1) is None


def test_more_epochs_than_the_cosine_has_are_refused() -> None:
    with pytest.raises(ValidationError, match="at most horizon, got 12 and 10"):
        Sensitive(horizon=10)


@pytest.fixture
def features(inputs: dict[str, Any]) -> Artefact:
    return Artefact(module_arrays(new_network(inputs["model"], inputs["data"], 1, CPU)))


def scored(inputs: dict[str, Any], features: Artefact, **knobs: Any) -> np.ndarray:
    given = {name: inputs[name] for name in ("data", "model")}
    return Consistency(**knobs).run(CTX, **given, features=features).arrays["fct"]


def test_fct_is_the_mean_square_that_features_move(inputs: dict[str, Any], features: Artefact) -> None:
    """A mirror image needs no draw, so that it can be made by hand."""
    data = inputs["data"]
    network, see = trained_network(inputs["model"], data, features, CPU), Augmentation.of("none", data)
    with torch.no_grad():
        still, moved = (
            network.features(see(torch.from_numpy(images))).numpy()
            for images in (data.images, np.ascontiguousarray(data.images[:, :, ::-1]))
        )
    slow = [
        sum((a - b) ** 2 for a, b in zip(*rows, strict=True)) / 4 for rows in zip(still, moved, strict=True)
    ]
    np.testing.assert_allclose(scored(inputs, features, transforms=("flip",)), slow, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("name", ["rotate", "affine", "flip", "crop", "blur", "erase"])
def test_fct_depends_on_the_sample_and_not_on_its_batch(
    inputs: dict[str, Any], features: Artefact, name: str
) -> None:
    data, ids = inputs["data"], np.arange(30)
    part = replace(data, images=data.images[ids], labels=data.labels[ids])
    whole = scored(inputs, features, transforms=(name,))
    np.testing.assert_allclose(
        scored({**inputs, "data": part}, features, transforms=(name,)), whole[ids], rtol=1e-4
    )
    assert np.all(whole >= 0)
    assert whole.any()


def test_several_draws_are_averaged(inputs: dict[str, Any], features: Artefact) -> None:
    one, three = scored(inputs, features), scored(inputs, features, draws=3)
    assert not np.array_equal(one, three)
    assert np.log(three).std() < np.log(one).std()
    np.testing.assert_array_equal(three, scored(inputs, features, draws=3))


# The split

LABELS = LabelSet(RNG.integers(0, 5, 100), 5)


@pytest.mark.parametrize(("alpha_c", "alpha_p"), [(0.2, 0.05), (0.29, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_ranks_part_the_samples(alpha_c: float, alpha_p: float) -> None:
    fct = RNG.gamma(1.0, 1.0, 100)
    found = Split(alpha_c=alpha_c, alpha_p=alpha_p, ties="strict").run(CTX, fct=Artefact({"fct": fct})).arrays
    ranks = sorted(range(100), key=lambda i: fct[i])
    clean, poison = ranks[: round(100 * alpha_c)], ranks[100 - round(100 * alpha_p) :]
    assert np.flatnonzero(found["flags"] == CLEAN).tolist() == sorted(clean)
    assert np.flatnonzero(found["flags"] == POISON).tolist() == sorted(poison)
    assert found["gamma_c"][0] == fct[clean].max()
    assert found["gamma_p"][0] == (fct[poison].min() if poison else np.inf)


def test_with_ties_the_code_takes_far_more_than_alpha() -> None:
    """A-ABL's table 4 has 32 and 92 % where 20 % were asked for."""
    fct = np.r_[np.full(90, 0.5), np.linspace(1, 2, 10)]
    shares = {
        ties: np.bincount(flagged(fct, 0.2, 0.05, ties), minlength=3).tolist() for ties in ("strict", "all")
    }  # type: ignore[arg-type]
    assert shares == {"strict": [20, 75, 5], "all": [90, 5, 5]}
    assert np.flatnonzero(flagged(fct, 0.2, 0.05, "strict") == CLEAN).tolist() == list(range(20))  # by id


@pytest.mark.parametrize("ties", ["strict", "all"])
def test_collapsed_features_end_the_trial(ties: Any) -> None:
    fct = Artefact({"fct": np.r_[np.zeros(60), np.ones(40)]})
    with pytest.raises(Diverged, match=r"FCT is 0 for 60 of 100 samples.*features\.epochs"):
        Split(alpha_c=0.2, alpha_p=0.05, ties=ties).run(CTX, fct=fct)
    few = Artefact({"fct": np.ones(3)})
    with pytest.raises(Diverged, match=r"alpha_c 0\.2 of 3 samples is none"):
        Split(alpha_c=0.2, alpha_p=0.0, ties="strict").run(CTX, fct=few)


def test_parts_are_subsets() -> None:
    flags = RNG.integers(0, 3, 100)
    split = Artefact({"flags": flags})
    for wanted in ((CLEAN,), (CLEAN, UNCERTAIN), (CLEAN, POISON)):
        found = Part(flags=wanted).run(CTX, split=split, data=LABELS).arrays
        assert found["ids"].tolist() == [i for i in range(100) if flags[i] in wanted]
        np.testing.assert_array_equal(found["labels"], LABELS.labels[found["ids"]])


# Head and repair


@pytest.fixture
def parts(inputs: dict[str, Any], features: Artefact) -> dict[str, Any]:
    """Inputs of the head: half of the samples, some of them taken as poison."""
    data = inputs["data"]

    def subset(ids: np.ndarray) -> Artefact:
        return Artefact({"ids": ids, "labels": data.labels[ids]})

    encoder = Artefact({name: value for name, value in features.arrays.items() if not name.startswith(HEAD)})
    return {
        **inputs,
        "subset": subset(np.arange(0, 60, 2)),
        "poison": subset(np.arange(0, 60, 10)),
        "init": encoder,
    }


@pytest.mark.parametrize("lambda_p", [0.0, 0.3])
def test_the_head_follows_the_mixed_cross_entropy_on_frozen_features(
    parts: dict[str, Any], lambda_p: float
) -> None:
    stage = Head(epochs=3, batch_size=8, lr=0.5, lambda_p=lambda_p, augment="none")
    data, taken = parts["data"], set(parts["poison"].arrays["ids"].tolist())
    network = new_network(parts["model"], data, CTX.seed, CPU, parts["init"]).eval()
    optimizer = torch.optim.SGD(network.head.parameters(), 0.5, 0.9)
    ids = parts["subset"].arrays["ids"]
    see, images = Augmentation.of("none", data), DeviceSet(data, DEVICE, ids)
    for epoch in range(3):
        for batch in images.shuffled(8, CTX.seed, epoch):
            logits = network(see(batch.images))
            each = [
                cross_entropy(row[None], label[None]) for row, label in zip(logits, batch.labels, strict=True)
            ]
            poison = [int(ids[row]) in taken for row in batch.rows.tolist()]
            clean = torch.stack([loss for loss, bad in zip(each, poison, strict=True) if not bad]).mean()
            pushed = [loss for loss, bad in zip(each, poison, strict=True) if bad]
            loss = clean - lambda_p * torch.stack(pushed).mean() if pushed else clean
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = stage.run(CTX, **parts).arrays
    for name, value in module_arrays(network).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    for name, value in parts["init"].arrays.items():  # batch norm's running values too
        np.testing.assert_array_equal(found[name], value)


def test_an_ascent_without_bound_ends_as_diverged(parts: dict[str, Any]) -> None:
    with pytest.raises(Diverged, match="dst_head"):
        Head(epochs=40, batch_size=8, lr=1e38, lambda_p=1.0).run(CTX, **parts)


def test_the_repair_ascends_on_poison_and_then_descends_on_clean(
    parts: dict[str, Any], features: Artefact
) -> None:
    inputs = {**parts, "init": features}
    stage = Repair(epochs=2, batch_size=8, lr=0.01, augment="none")
    data = inputs["data"]
    network = new_network(inputs["model"], data, CTX.seed, CPU, features)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=5e-4)
    see = Augmentation.of("none", data)
    for epoch in range(2):
        network.train()
        for part, sign in (("poison", -1), ("subset", 1)):
            for batch in DeviceSet(data, DEVICE, inputs[part].arrays["ids"]).shuffled(8, CTX.seed, epoch):
                optimizer.zero_grad()
                (sign * cross_entropy(network(see(batch.images)), batch.labels)).backward()
                optimizer.step()
    found = stage.run(CTX, **inputs)
    for name, value in module_arrays(network).items():
        np.testing.assert_allclose(found.arrays[name], value, rtol=1e-3, atol=1e-4, err_msg=name)
    curves = {
        passes: Repair(epochs=1, batch_size=8, passes=passes).run(CTX, **inputs).curve[0].keys()  # type: ignore[arg-type]
        for passes in ("both", "unlearn", "relearn")
    }
    assert {passes: {"loss", "ascent_loss"} & names for passes, names in curves.items()} == {
        "both": {"loss", "ascent_loss"},
        "unlearn": {"ascent_loss"},
        "relearn": {"loss"},
    }


def test_without_poison_the_repair_only_relearns(parts: dict[str, Any], features: Artefact) -> None:
    nothing = Artefact({"ids": np.zeros(0, np.int64), "labels": np.zeros(0, np.int64)})
    knobs: dict[str, Any] = {"epochs": 1, "batch_size": 8, "augment": "none"}
    inputs = {**parts, "init": features, "poison": nothing}
    found = [Repair(**knobs, passes=passes).run(CTX, **inputs).arrays for passes in ("both", "relearn")]  # type: ignore[arg-type]
    assert digest_of(found[0], 0) == digest_of(found[1], 0)


# The chain

QUICK = {"epochs": 1, "batch_size": 20}


def short(**knobs: Any) -> Defense:
    for name in ("features", "extractor", "head", "train", "repair", "undefended"):
        own = {"pgd": {"steps": 1}} if name == "train" else {}
        knobs[name] = {**QUICK, **own, **knobs.get(name, {})}
    return bdtune.defense("dst", **knobs)


def unique(counting: Counting, given: DefenseInputs, grid: list[dict[str, Any]]) -> dict[str, int]:
    chains = [short(**knobs).build(given) for knobs in grid]
    plan = make_plan([[chain["classifier"]] for chain in chains], 0, counting.resolver)
    return {name: count.unique for name, count in plan.stages.items()}


def test_what_is_taken_as_poison_changes_the_head_alone(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    """The extractor reads which samples are clean, and those are the same."""
    given, _ = poisoned
    grid: list[dict[str, Any]] = [{"alpha_p": share} for share in (0.05, 0.1, 0.2)]
    grid += [{"head": {"lambda_p": strength}} for strength in (0.0, 0.1)]
    for knobs in grid:
        counting.compute(short(**knobs).build(given)["classifier"], counting.note)
    counts = {name: counting.computed.count(name) for name in ("dst_features", "dst_fct", "dst_extractor")}
    assert counts == {"dst_features": 1, "dst_fct": 1, "dst_extractor": 1}
    assert counting.computed.count("dst_head") == 5


def test_each_stage_is_shared_by_what_comes_after_it(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, _ = poisoned

    def counts(*grid: dict[str, Any]) -> list[int]:
        found = unique(counting, given, list(grid))
        return [found.get(f"dst_{name}", 0) for name in ("features", "fct", "split", "extractor", "head")]

    assert counts({}, {"head": {"lr": 1.0}}) == [1, 1, 1, 1, 2]
    assert counts({}, {"extractor": {"temperature": 0.5}}) == [1, 1, 1, 2, 2]
    assert counts({}, {"alpha_c": 0.3}, {"ties": "all"}) == [1, 1, 3, 3, 3]
    assert counts({}, {"fct": {"draws": 2}}) == [1, 2, 2, 2, 2]
    assert counts({}, {"fct": {"transforms": ("blur",)}}) == [1, 2, 2, 2, 2]
    assert counts({}, {"features": {"lr": 0.1}}) == [2, 2, 2, 2, 2]
    assert counts({}, {"final": "adversarial"}, {"final": "repair"}) == [1, 1, 1, 1, 1]


def test_an_extractor_without_labels_does_not_depend_on_the_split(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, _ = poisoned
    for positives in ("all", "none"):
        grid: list[dict[str, Any]] = [
            {"extractor": {"positives": positives}, "alpha_c": share} for share in (0.1, 0.2)
        ]
        assert unique(counting, given, grid)["dst_extractor"] == 1


def test_a_setting_of_another_form_is_in_no_key(poisoned: tuple[DefenseInputs, Truth]) -> None:
    given, _ = poisoned

    def recipe(**knobs: Any) -> str:
        return short(**knobs).build(given)["classifier"].recipe

    assert recipe(kept="clean_uncertain", repair={"lr": 0.1}) == recipe()
    adversarial = recipe(final="adversarial")
    assert recipe(final="adversarial", head={"lr": 1.0}, extractor={"lr": 1.0}) == adversarial
    assert recipe(final="adversarial", kept="clean_uncertain") != adversarial
    assert short(final="adversarial").identity() == short(final="adversarial", head={"lr": 1.0}).identity()


def test_form_adversarial_is_aabls_training_on_what_is_kept(
    poisoned: tuple[DefenseInputs, Truth], counting: Counting
) -> None:
    given, truth = poisoned
    for kept, flags in (("clean", (CLEAN,)), ("clean_uncertain", (CLEAN, UNCERTAIN))):
        defense = short(final="adversarial", kept=kept)
        chain = defense.build(given)
        assert chain["classifier"].name == "adversarial_training"
        found = counting.compute(chain["split"]).arrays["flags"]
        ids = counting.compute(chain["kept"]).arrays["ids"]
        assert ids.tolist() == np.flatnonzero(np.isin(found, flags)).tolist()
        judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
        assert judge is not None
        metrics = counting.compute(judge).info
        assert metrics["dst/gamma"] == pytest.approx(len(ids) / 60)
        assert metrics["dst/rho_vul"] == pytest.approx(truth.is_poison[ids].mean())


def test_the_split_is_judged_by_the_truth(poisoned: tuple[DefenseInputs, Truth], counting: Counting) -> None:
    given, truth = poisoned
    defense = short(alpha_p=0.2)
    chain = defense.build(given)
    judge = diagnosis(Diagnose(defense=defense), chain, Is(word="truth", value=truth))
    assert judge is not None
    found = {name.removeprefix("dst/"): value for name, value in counting.compute(judge).info.items()}
    flags = counting.compute(chain["split"]).arrays["flags"]
    fct = counting.compute(chain["fct"]).arrays["fct"]
    poison = truth.is_poison
    pairs = [1.0 if p > c else 0.5 if p == c else 0.0 for p in fct[poison] for c in fct[~poison]]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    assert found["isolation_precision"] == pytest.approx(poison[flags == POISON].mean())
    assert found["isolation_recall"] == pytest.approx((flags[poison] == POISON).mean())
    assert found["rho_clean"] == pytest.approx(poison[flags == CLEAN].mean())
    assert found["rho_not_poison"] == pytest.approx(poison[flags != POISON].mean())
    assert [found[name] for name in ("clean", "uncertain", "poison")] == pytest.approx([0.2, 0.6, 0.2])
    assert "gamma" not in found  # nothing is thrown away in this form


def test_the_picture_shows_the_split(poisoned: tuple[DefenseInputs, Truth], counting: Counting) -> None:
    given, truth = poisoned
    for alpha_p, thresholds in ((0.0, 1), (0.1, 2)):
        defense = short(alpha_p=alpha_p)
        chain = defense.build(given)
        picture = defense.figure({name: counting.compute(chain[name]) for name in defense.evidence}, truth)
        assert picture is not None
        moved, classes = picture.axes
        assert len(moved.get_lines()) == thresholds
        assert classes.get_xlabel() == "observed class"


def test_the_baseline_has_the_epochs_that_the_classifiers_weights_have() -> None:
    own = {"epochs": 7, "lr": 0.03}
    secure = bdtune.defense("dst", undefended=own, extractor={"epochs": 30})
    assert secure.baseline_training() == Supervised(epochs=30, lr=0.03)
    assert bdtune.defense("dst", undefended=own, final="repair").baseline_training() == Supervised(**own)  # type: ignore[arg-type]
    adversarial = bdtune.defense("dst", undefended=own, final="adversarial", train={"epochs": 9})
    assert adversarial.baseline_training() == Supervised(epochs=9, milestones=(0.5, 0.75, 0.9))


@pytest.mark.parametrize("final", ["secure", "adversarial", "repair"])
def test_each_forms_graph_survives_being_written_down(final: str) -> None:
    raw = {"dataset": "digits", "attack": "badnets", "defense": {"name": "dst", "final": final}}
    spec, faults = parse_trial(raw)
    assert spec is not None
    assert not faults
    again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))))
    assert trial_graph(again).evaluate.recipe == trial_graph(spec).evaluate.recipe
    graph = trial_graph(spec)
    assert graph.budget == spec.defense.baseline_training().epochs


def test_form_repair_shares_the_undefended_model_with_the_baseline(
    poisoned: tuple[DefenseInputs, Truth],
) -> None:
    given, _ = poisoned
    defense = short(final="repair")
    baseline = bdtune.defense("none", train=defense.baseline_training()).build(given)
    assert defense.build(given)["undefended"].recipe == baseline["classifier"].recipe


def test_shares_that_overlap_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"at most 1, got 0\.8 \+ 0\.3"):
        bdtune.defense("dst", alpha_c=0.8, alpha_p=0.3)


def test_knobs_have_the_papers_defaults() -> None:
    dst = bdtune.defense("dst").model_dump()
    assert (dst["alpha_c"], dst["alpha_p"], dst["fct"]["transforms"]) == (0.2, 0.05, ("rotate", "affine"))
    assert (dst["features"]["classify"], dst["features"]["epochs"], dst["features"]["lr"]) == (2, 12, 0.01)
    extractor, head, repair = dst["extractor"], dst["head"], dst["repair"]
    assert [extractor[name] for name in ("epochs", "lr", "temperature", "batch_size")] == [200, 0.5, 0.1, 512]
    assert [head[name] for name in ("epochs", "lr", "batch_size", "lambda_p")] == [10, 5.0, 512, 0.001]
    assert (repair["epochs"], repair["lr"]) == (20, 1e-4)
    assert (extractor["positives"], SupCon().positives) == ("trusted", "all")
