from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import cross_entropy

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defenses.asd.stages import ClassAware, LossGuided, Meta, MetaGuided
from bdtune.engine.key import derive_seed, digest_of
from bdtune.engine.plan import make_plan
from bdtune.engine.stage import Context
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.losses import cross_entropies
from bdtune.training.predict import predict_logits
from bdtune.training.semi import SemiFit
from bdtune.training.weights import module_arrays
from tests.doubles import CPU, Is

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet, Truth
    from bdtune.plugins.defense import Defense, DefenseInputs
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
SEMI = {"iterations": 2, "batch_size": 8, "augment": "none"}
RULES: dict[str, dict[str, Any]] = {
    "class_aware": {"epochs": 3, "period": 1, "step": 2},
    "loss_guided": {"epochs": 1},
    "meta": {"epochs": 2, "batch_size": 16},
}
SCE = {"sce_a": 0.1, "sce_b": 1.0, "sce_clip": 1e-4}


def short(**knobs: Any) -> Defense:
    mine = {name: {**part, **knobs.pop(name, {})} for name, part in {**RULES, "semi": SEMI}.items()}
    return bdtune.defense("asd", **mine, **knobs)


@pytest.fixture
def offered(poisoned: tuple[DefenseInputs, Truth]) -> tuple[DefenseInputs, Truth]:
    """Return what a defense gets with two clean images of each class."""
    given, truth = poisoned
    data: ImageSet = given.fit.load(None, {})  # type: ignore[arg-type]
    rng = np.random.default_rng(7)
    labels = np.array([0, 0, 1, 1, 2, 2])
    images = rng.integers(0, 80, (6, 8, 8, 3)).astype(np.uint8)
    for row, label in enumerate(labels):
        images[row, 2 * label + 2] += 100
    clean = replace(data, images=images, labels=labels)
    return replace(given, clean=Is(word="clean", value=clean)), truth


def fit_of(stage: Any, given: DefenseInputs) -> SemiFit:
    data, model, clean = (source.load(None, {}) for source in (given.fit, given.model, given.clean))  # type: ignore
    return SemiFit(stage, CTX, data, model, None, clean)


def losses_of(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(1.0, 1.0, count)


@pytest.mark.parametrize("done", [0, 4, 5, 14, 55])
def test_the_first_rule_takes_as_many_of_each_class(done: int) -> None:
    """With t = 5 and n = 10 the pool has none until epoch 4, and 110 of each class from epoch 55 on."""
    labels, losses = np.arange(900) % 3, losses_of(900)
    labels[:20] = 3  # a small class is used up
    stage = ClassAware(period=5, step=10, ramp=1)
    chosen, scores = stage.split(SimpleNamespace(labels=labels), losses, done)  # type: ignore[arg-type]
    count = 10 * (done // 5)
    for label in range(4):
        own = [row for row in range(900) if labels[row] == label]
        expected = sorted(own, key=lambda row: losses[row])[:count]
        assert sorted(expected) == np.flatnonzero(chosen & (labels == label)).tolist()
    assert chosen.sum() == 3 * count + min(count, 20)
    assert np.array_equal(scores, losses)


def test_the_second_rule_takes_the_lowest_of_all() -> None:
    losses = losses_of(40)
    chosen, _ = LossGuided(eps=0.3, ramp=1).split(None, losses, 0)  # type: ignore[arg-type]
    assert set(np.flatnonzero(chosen)) == set(sorted(range(40), key=lambda row: losses[row])[:12])


def meta(**knobs: Any) -> MetaGuided:
    own = Meta(**{"batch_size": 16, **knobs})
    return MetaGuided(eps=0.4, meta=own, ramp=1, **SCE, **{**SEMI, "augment": "flip"})  # type: ignore[arg-type]


@pytest.mark.parametrize("layers", [1, 2, None])
def test_the_third_rule_takes_those_whose_loss_falls_least(
    offered: tuple[DefenseInputs, Truth], layers: int | None
) -> None:
    given, _ = offered
    stage = meta(layers=layers, lr=0.05, passes=2)
    fit = fit_of(stage, given)
    before = module_arrays(fit.judged)
    losses = fit.losses(fit.judged, 1)
    chosen, scores = stage.split(fit, losses, 1)
    assert all(np.array_equal(value, before[name]) for name, value in module_arrays(fit.judged).items())
    assert all(weight.requires_grad for weight in fit.network.parameters())

    network = copy.deepcopy(fit.network).train()  # the same, one batch after the other
    parts = [part for part in network.layers.values() if list(part.parameters())]
    chosen_parts = parts if layers is None else parts[len(parts) - layers :]
    optimizer = torch.optim.Adam([w for part in chosen_parts for w in part.parameters()], lr=0.05)
    see, images = Augmentation.of("flip", fit.data), DeviceSet(fit.data, torch.device("cpu"))
    seed = derive_seed(CTX.seed, "virtual", 1)
    for turn in range(2):
        draws = torch.Generator().manual_seed(derive_seed(seed, "augment", turn))
        for batch in images.shuffled(16, seed, turn):
            optimizer.zero_grad()
            cross_entropy(network(see(batch.images, draws)), batch.labels).backward()
            optimizer.step()
    after = cross_entropies(predict_logits(network, fit.data, CPU), fit.labels)
    falls = []
    for one, two in zip(losses.tolist(), after.tolist(), strict=True):
        first, second = (0.1 * each + np.log(1e4) * (1 - np.exp(-each)) for each in (one, two))
        falls.append(first - second)
    np.testing.assert_allclose(scores, falls, rtol=1e-3, atol=1e-4)
    assert chosen.sum() == 24
    assert scores[chosen].max() <= scores[~chosen].min()


def test_more_layers_than_there_are_is_all_of_them(offered: tuple[DefenseInputs, Truth]) -> None:
    given, _ = offered
    found = [meta(layers=layers).split(fit_of(meta(), given), losses_of(60), 0)[1] for layers in (99, None)]
    assert np.array_equal(*found)


@pytest.mark.parametrize("rule", ["class_aware", "loss_guided", "classifier"])
def test_every_rule_resumes_to_the_same_bits(
    counting: Counting, offered: tuple[DefenseInputs, Truth], memory: Any, rule: str
) -> None:
    defense = short(**{name: {"epochs": 3} for name in RULES}, semi={"augment": "flip", "ema": 0.5})
    node = defense.build(offered[0])[rule]
    inputs = {
        name: counting.compute(each) if hasattr(each, "stage") else each.load(None, {})  # type: ignore[union-attr, arg-type]
        for name, each in node.inputs.items()
    }
    ctx = Context(seed=node.seed, numerics=CPU)
    whole = node.stage.run(ctx, **inputs)
    ctx = replace(ctx, checkpoint=memory(due_after=[2]))
    steps = node.stage.steps(ctx, **inputs)
    next(steps), next(steps)
    steps.close()
    torch.manual_seed(1)
    again = node.stage.run(ctx, **inputs)
    assert len(again.curve) == 3
    assert digest_of(again.arrays, again.info) == digest_of(whole.arrays, whole.info)


def test_each_rule_continues_the_one_before(counting: Counting, offered: tuple[DefenseInputs, Truth]) -> None:
    chain = short().build(offered[0])
    first, second, third = (
        counting.compute(chain[name]) for name in ("class_aware", "loss_guided", "classifier")
    )
    assert [each.info["epochs"] for each in (first, second, third)] == [3, 4, 6]
    rises = [row["lambda_u"] for each in (first, second, third) for row in each.curve]
    assert rises == pytest.approx([15 * epoch / 6 for epoch in range(1, 7)])
    assert [row["labelled"] for row in first.curve] == [6, 6 + 2 * 3, 6 + 4 * 3]  # six clean images, always
    assert second.curve[0]["labelled"] == 6 + 30
    assert any(name.startswith("optimizer.model.") for name in second.arrays)
    assert not any(name.startswith("optimizer.") for name in third.arrays)


def test_what_a_setting_leaves_untouched(offered: tuple[DefenseInputs, Truth]) -> None:
    """The card's table: the first rule that is trained anew for each setting."""
    given, _ = offered
    base = short(semi={"ramp": 6}).build(given)
    order = ["class_aware", "loss_guided", "classifier"]

    def first(**knobs: Any) -> str:
        chain = short(**{**knobs, "semi": {"ramp": 6, **knobs.get("semi", {})}}).build(given)
        changed = [name for name in order if chain[name].recipe != base[name].recipe]
        assert changed == order[order.index(changed[0]) :]
        return changed[0]

    for knobs in ({"lr": 0.1}, {"passes": 2}, {"layers": 1}, {"optimizer": "sgd"}, {"epochs": 5}):
        assert first(meta=knobs) == "classifier"
    assert first(sce_a=1.0) == first(sce_b=0.5) == "classifier"
    assert first(eps=0.3) == first(loss_guided={"epochs": 2}) == "loss_guided"
    growth: list[dict[str, Any]] = [{"epochs": 2}, {"period": 2}, {"step": 1}]
    assert {first(class_aware=knobs) for knobs in growth} == {"class_aware"}
    loop: list[dict[str, Any]] = [{"lambda_u": 5}, {"ramp": 9}, {"temperature": 1}, {"lr": 0.1}]
    assert {first(semi=knobs) for knobs in loop} == {"class_aware"}


def test_boundaries_share_the_common_prefix(counting: Counting, offered: tuple[DefenseInputs, Truth]) -> None:
    """With the ramp fixed, a first rule of 2 epochs is saved on the way of one of 3."""
    chains = [
        short(class_aware={"epochs": epochs}, semi={"ramp": 6}).build(offered[0])["class_aware"]
        for epochs in (2, 3)
    ]
    shorter = chains[1].at(2)
    assert shorter is not None
    assert shorter.recipe == chains[0].recipe
    grid = [
        short(meta={"lr": lr}, eps=eps).build(offered[0]) for lr in (0.005, 0.015, 0.05) for eps in (0.3, 0.5)
    ]
    plan = make_plan([[chain["classifier"]] for chain in grid], 0, counting.resolver).stages
    assert [plan[name].unique for name in ("asd_class_aware", "asd_loss_guided", "asd_meta")] == [1, 2, 6]


@pytest.mark.parametrize("left_out", list(RULES))
def test_a_rule_of_no_epochs_is_left_out(
    counting: Counting, offered: tuple[DefenseInputs, Truth], left_out: str
) -> None:
    given, truth = offered
    defense = short(**{left_out: {"epochs": 0}})
    chain = defense.build(given)
    assert len(chain) == 2
    found = {name: counting.compute(node) for name, node in chain.items()}
    total = sum(each["epochs"] for name, each in RULES.items() if name != left_out)
    assert found["classifier"].info["epochs"] == total == defense.baseline_training().epochs
    assert np.isfinite(defense.diagnose(found, truth)["labelled"])
    picture = defense.figure(found, truth)
    assert picture is not None
    assert len(picture.axes) == 3


def test_poison_is_counted_rule_by_rule(counting: Counting, offered: tuple[DefenseInputs, Truth]) -> None:
    given, truth = offered
    defense = short()
    found = {name: counting.compute(node) for name, node in defense.build(given).items()}
    told = defense.diagnose(found, truth)
    for rule, name in (
        ("class_aware", "class_aware"),
        ("loss_guided", "loss_guided"),
        ("meta", "classifier"),
    ):
        labelled = found[name].arrays["pool.labelled"]
        assert told[f"{rule}_poison"] == truth.is_poison[labelled[-1]].mean()
        if labelled[0].any():
            assert told[f"{rule}_poison_first"] == truth.is_poison[labelled[0]].mean()
    assert np.isnan(told["class_aware_poison_first"])  # nothing but the clean images
    assert told["labelled_poison"] == told["meta_poison"]
    picture = defense.figure(found, truth)
    assert picture is not None
    assert [ax.get_title() for ax in picture.axes][-1] == "what is labelled"
    assert len(picture.axes) == 4


def test_without_clean_images_it_says_what_to_do() -> None:
    raw = {"dataset": "digits", "attack": "badnets", "defense": "asd"}
    spec, problems = parse_trial(raw)
    assert spec is None or problems
    (problem,) = problems
    assert problem.path == "clean"
    assert "known to be clean" in problem.expected
    assert "clean: 10 per class" in problem.hint
    assert not parse_trial({**raw, "clean": "10 per class"})[1]


def test_clean_images_are_no_part_of_the_poisoned_set(offered: tuple[DefenseInputs, Truth]) -> None:
    """The clean set's labels are read in every epoch, and what a rule chooses is of the poisoned set."""
    given, _ = offered
    fit = fit_of(meta(), given)
    assert fit.losses(fit.judged, 0).shape == (60,)
    known, unknown = next(fit._pools(np.zeros(60, bool), 0))
    assert unknown is not None
    clean: ImageSet = given.clean.load(None, {})  # type: ignore[union-attr, arg-type]
    shown = {image.tobytes() for image in clean.images}
    assert {image.numpy().tobytes() for image in known.images} <= shown
    assert not {image.numpy().tobytes() for image in unknown.images} & shown


def test_settings_have_the_papers_defaults() -> None:
    asd = bdtune.defense("asd").model_dump()
    assert asd["class_aware"] == {"epochs": 60, "period": 5, "step": 10}
    assert (asd["loss_guided"]["epochs"], asd["meta"]["epochs"], asd["eps"]) == (30, 30, 0.5)
    assert asd["meta"].items() >= {"optimizer": "adam", "lr": 0.015, "passes": 1, "layers": 5}.items()
    assert (asd["sce_a"], asd["sce_b"]) == (0.1, 1.0)
    rules = bdtune.defense("asd")._rules()  # type: ignore[attr-defined]
    assert [rule.ramp for rule in rules.values()] == [120, 120, 120]
    assert bdtune.defense("asd").baseline_training().epochs == 120


def test_five_parts_of_a_resnet18_are_its_last_two_groups_and_the_head() -> None:
    network = bdtune.model("resnet18", width=4).build(10, (32, 32, 3))
    parts = [part for part in network.layers.values() if list(part.parameters())]
    widths = {p.shape[0] for part in parts[-5:-1] for n, p in part.named_parameters() if n == "conv1.weight"}
    assert widths == {16, 32}  # layer3 and layer4
    assert parts[-1] is network.head
    rest = {p.shape[0] for part in parts[:-5] for n, p in part.named_parameters() if n == "conv1.weight"}
    assert rest == {4, 8}


def test_wrong_settings_are_refused() -> None:
    none = {name: {"epochs": 0} for name in RULES}
    for wrong in ({"eps": 0}, none, {"sce_a": 0, "sce_b": 0}, {"meta": {"layers": 0}}):
        with pytest.raises(ValidationError):
            bdtune.defense("asd", **wrong)
