"""Fine-pruning: ranking, curve, choice and tuning against slow plain versions, and what settings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import bdtune
from bdtune.config.trial import parse_trial
from bdtune.defending.poisoned_rows import success
from bdtune.defenses.fine_pruning import FinePruning, report
from bdtune.defenses.fine_pruning.stages import Choose, Curve, PrunedTune, Rank, Shown
from bdtune.engine.key import digest_of
from bdtune.engine.stage import Artefact, Context
from bdtune.networks.resnet import last_block
from bdtune.training.augment import Augmentation
from bdtune.training.fine_tune import FineTune
from bdtune.training.supervised import Supervised
from bdtune.training.weights import new_network
from tests.defenses.repairing import SHORT, distinct, graph, with_clean_set
from tests.doubles import CPU

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet, Truth
    from bdtune.plugins.defense import DefenseInputs
    from bdtune.plugins.network import Network
    from tests.defenses.conftest import Counting

CTX = Context(seed=4, numerics=CPU)
KNOBS: dict[str, Any] = {"rule": "tolerance", "tolerance": 0.1, "relative": False, "ratio": 0.5}


@pytest.fixture
def trained(poisoned: tuple[DefenseInputs, Truth]) -> dict[str, Any]:
    """A clean set with all its ids, a network and its weights after a little training on poison."""
    given = with_clean_set(poisoned[0])
    assert given.clean is not None
    fit, clean = given.fit.value, given.clean.value  # type: ignore[attr-defined]
    model = bdtune.model("resnet18", width=2)
    every = Artefact({"ids": np.arange(60), "labels": fit.labels})
    init = Supervised(**{**SHORT, "epochs": 4}).run(CTX, data=fit, subset=every, model=model)
    subset = Artefact({"ids": np.arange(30), "labels": clean.labels})
    return {"data": clean, "subset": subset, "model": model, "classifier": init, "fit": fit}


def network_of(trained: dict[str, Any], weights: Artefact | None = None) -> Network:
    weights = weights or trained["classifier"]
    return new_network(trained["model"], trained["data"], 0, CPU, weights).eval()


def seen(data: ImageSet) -> torch.Tensor:
    assert isinstance(data.images, np.ndarray)
    return Augmentation.of("none", data)(torch.from_numpy(data.images))


def inputs(trained: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**{name: trained[name] for name in ("data", "subset", "model", "classifier")}, **more}


def ranked(trained: dict[str, Any], layer: str = "features", **knobs: Any) -> Artefact:
    settings = {"layer": layer, "pooling": "mean", "absolute": True, **knobs}
    return Rank(**settings).run(CTX, **inputs(trained))


def masked_logits(network: Network, images: torch.Tensor, layer: str, pruned: Any) -> torch.Tensor:
    """Logits with the outputs of some channels set to zero, where they arise."""

    def zero(_m: object, _i: object, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, list(pruned)] = 0
        return out

    if layer == "features":
        features = network.features(images)
        features[:, list(pruned)] = 0
        return network.head(features)  # type: ignore[no-any-return]
    block = last_block(network)
    hooks = [block.norm.register_forward_hook(zero)]  # a ReLU follows, which leaves 0 as it is
    try:
        return network(images)  # type: ignore[no-any-return]
    finally:
        for hook in hooks:
            hook.remove()


# Ranking


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_features_are_ranked_by_their_mean_over_images_and_positions(
    trained: dict[str, Any], pooling: Any
) -> None:
    network = network_of(trained)
    with torch.no_grad():
        maps = network.body(seen(trained["data"])).numpy()  # type: ignore[operator]
    per_image = maps.mean((2, 3)) if pooling == "mean" else maps.max((2, 3))
    slow = [float(np.mean([image[c] for image in per_image])) for c in range(maps.shape[1])]
    found = ranked(trained, pooling=pooling).arrays
    np.testing.assert_allclose(found["activation"], slow, rtol=1e-4, atol=1e-6)
    order = found["order"]
    assert sorted(order) == list(range(16))
    assert np.all(np.diff(found["activation"][order]) >= 0)


def test_inner_channels_are_those_between_the_last_blocks_convolutions(trained: dict[str, Any]) -> None:
    network, caught = network_of(trained), []
    last_block(network).norm.register_forward_hook(lambda _m, _i, out: caught.append(out.clone()))
    with torch.no_grad():
        network(seen(trained["data"]))
    slow = torch.relu(caught[0]).mean((0, 2, 3)).numpy()
    np.testing.assert_allclose(ranked(trained, "inner").arrays["activation"], slow, rtol=1e-4, atol=1e-6)


def test_equal_activations_keep_the_channels_order(trained: dict[str, Any]) -> None:
    arrays = dict(trained["classifier"].arrays)
    silent = [name for name in arrays if name.endswith(("bn2.weight", "bn2.bias"))][-2:]
    arrays |= {name: np.zeros_like(arrays[name]) for name in silent}
    found = Rank(layer="inner", pooling="mean", absolute=True)
    inner = [n for n in arrays if n.endswith(("bn1.weight", "bn1.bias"))][-2:]
    dead = {**arrays, **{name: np.where(np.arange(16) % 2, arrays[name], 0) for name in inner}}
    order = found.run(CTX, **{**inputs(trained), "classifier": Artefact(dead)}).arrays["order"]
    assert order[:8].tolist() == list(range(0, 16, 2))  # the dead ones first, by number


def test_signs_count_only_if_asked_for(trained: dict[str, Any]) -> None:
    """In a pre-activation network without its last norm the features are signed, as BackdoorBench's are."""
    model = bdtune.model("preactresnet18", width=2, final_norm=False)
    network = new_network(model, trained["data"], 1, CPU)
    from bdtune.training.weights import module_arrays

    given = {**inputs(trained), "model": model, "classifier": Artefact(module_arrays(network))}
    signed, absolute = (
        Rank(layer="features", pooling="mean", absolute=each).run(CTX, **given).arrays["activation"]
        for each in (False, True)
    )
    assert signed.min() < 0 <= absolute.min()
    assert np.all(absolute >= np.abs(signed) - 1e-6)


# Curve, choice


@pytest.mark.parametrize("layer", ["features", "inner"])
@pytest.mark.parametrize("step", [1, 5])
def test_the_curve_is_the_accuracy_with_outputs_set_to_zero(
    trained: dict[str, Any], layer: Any, step: int
) -> None:
    ranking = ranked(trained, layer)
    found = Curve(layer=layer, step=step).run(CTX, **inputs(trained, ranking=ranking)).arrays
    assert found["pruned"].tolist() == list(range(0, 16, step))
    network, labels = network_of(trained), torch.from_numpy(trained["data"].labels)
    for count, acc in zip(found["pruned"], found["acc"], strict=True):
        with torch.no_grad():
            logits = masked_logits(network, seen(trained["data"]), layer, ranking.arrays["order"][:count])
        assert acc == pytest.approx(float((logits.argmax(1) == labels).float().mean()), abs=1e-6)


def chosen(acc: list[float], order: list[int] | None = None, step: int = 1, **knobs: Any) -> list[int]:
    order = order or list(range(10))
    given = {"ranking": Artefact({"order": np.array(order)})}
    given["curve"] = Artefact({"pruned": np.arange(0, 10, step), "acc": np.array(acc)})
    mask = Choose(**{"layer": "features", **KNOBS, **knobs}).run(CTX, **given).arrays["mask"]
    return np.flatnonzero(mask).tolist()


def test_as_many_channels_as_the_tolerance_allows() -> None:
    acc = [0.9, 0.9, 0.85, 0.8, 0.78, 0.81, 0.5, 0.3, 0.2, 0.1]
    assert chosen(acc, tolerance=0.0) == [0]
    assert chosen(acc, tolerance=0.1) == [0, 1, 2, 3, 4]  # the largest number, though four lose more
    assert chosen(acc, tolerance=0.4, relative=False) == list(range(6))
    assert chosen(acc, tolerance=0.45, relative=True) == list(range(6))  # 0.405 of 0.9
    assert chosen([0.9] * 10) == list(range(9))  # one channel is left
    assert chosen([0.9, 0.9, 0.9, 0.2], step=3, order=[9, 8, 7, 6, 5, 4, 3, 2, 1, 0]) == [4, 5, 6, 7, 8, 9]


def test_a_fixed_ratio_reads_no_accuracy() -> None:
    for acc in ([0.9] * 10, [0.9] + [0.1] * 9):
        assert chosen(acc, rule="ratio", ratio=0.29) == [0, 1]
        assert chosen(acc, rule="ratio", ratio=1.0) == list(range(9))
        assert chosen(acc, rule="ratio", ratio=0.0) == []


# Tuning


def mask_of(*pruned: int, layer: str = "features", channels: int = 16) -> Artefact:
    mask = np.zeros(channels, bool)
    mask[list(pruned)] = True
    return Artefact({"mask": mask}, {"layer": layer})


def retuned(trained: dict[str, Any], mask: Artefact, **knobs: Any) -> Artefact:
    given = {name: trained[name] for name in ("data", "subset", "model")}
    return PrunedTune(**{**SHORT, **knobs}).run(CTX, **given, init=trained["classifier"], mask=mask)


@pytest.mark.parametrize("layer", ["features", "inner"])
def test_pruning_alone_answers_as_with_outputs_set_to_zero(trained: dict[str, Any], layer: Any) -> None:
    found = retuned(trained, mask_of(0, 3, 7, layer=layer), epochs=0)
    with torch.no_grad():
        logits = network_of(trained, found)(seen(trained["data"]))
        slow = masked_logits(network_of(trained), seen(trained["data"]), layer, [0, 3, 7])
    torch.testing.assert_close(logits, slow)


@pytest.mark.parametrize("layer", ["features", "inner"])
def test_pruned_channels_stay_so_and_the_rest_is_tuned(trained: dict[str, Any], layer: Any) -> None:
    def reading(artefact: Artefact) -> np.ndarray:
        network = network_of(trained, artefact)
        reader = network.head if layer == "features" else last_block(network).reader
        weight: np.ndarray = reader.weight.detach().numpy()
        return weight

    mask = mask_of(1, 2, layer=layer)
    kept = reading(retuned(trained, mask))
    assert not kept[:, [1, 2]].any()
    assert not np.array_equal(kept[:, 3:], reading(trained["classifier"])[:, 3:])
    assert reading(retuned(trained, mask, keep_mask=False))[:, [1, 2]].any()  # they grow back


def test_without_a_pruned_channel_it_is_plain_fine_tuning(trained: dict[str, Any]) -> None:
    given = {name: trained[name] for name in ("data", "subset", "model")}
    plain = FineTune(**SHORT).run(CTX, **given, init=trained["classifier"])
    assert digest_of(retuned(trained, mask_of()).arrays, None) == digest_of(plain.arrays, None)


# What is reported


def test_what_training_images_show(trained: dict[str, Any], poisoned: tuple[DefenseInputs, Truth]) -> None:
    truth, fit = poisoned[1], trained["fit"]
    ranking = ranked(trained)
    given = {"data": fit, "model": trained["model"], "classifier": trained["classifier"]}
    shown = Shown(layer="features").run(CTX, **given, ranking=ranking)
    assert shown.arrays["ids"].tolist() == list(range(60))
    assert shown.arrays["pruned"].tolist() == list(range(16))
    network = network_of(trained)
    with torch.no_grad():
        features = network.features(seen(fit))
        for count in (0, 5, 15):
            logits = masked_logits(network, seen(fit), "features", ranking.arrays["order"][:count])
            assert shown.arrays["predictions"][count].tolist() == logits.argmax(1).tolist()
    np.testing.assert_allclose(shown.arrays["activation"], features.numpy(), rtol=1e-4, atol=1e-6)
    poison = np.flatnonzero(truth.is_poison)
    slow = [np.mean([row[i] == truth.observed[i] for i in poison]) for row in shown.arrays["predictions"]]
    found = success(shown.arrays["ids"], shown.arrays["predictions"], truth)
    np.testing.assert_allclose(found, slow)


def test_the_diagnosis_by_hand(poisoned: tuple[DefenseInputs, Truth]) -> None:
    truth = poisoned[1]
    ids = np.concatenate([np.flatnonzero(truth.is_poison)[:4], np.flatnonzero(~truth.is_poison)[:4]])
    ids = np.sort(ids)
    poison = truth.is_poison[ids]
    activation = np.tile([0.0, 1.0, 2.0, 3.0], (8, 1))
    activation[poison, 0] = 5.0
    predictions = np.stack([truth.observed[ids], np.where(poison, 2, truth.observed[ids])])
    artefacts = {
        "ranking": Artefact({"activation": np.array([0.0, 1.0, 2.0, 3.0]), "order": np.arange(4)}),
        "curve": Artefact({"pruned": np.array([0, 2]), "acc": np.array([0.9, 0.8])}),
        "mask": Artefact({"mask": np.array([True, True, False, False])}),
        "shown": Artefact(
            {"ids": ids, "pruned": np.array([0, 2]), "predictions": predictions, "activation": activation}
        ),
    }
    found = report.diagnose(artefacts, truth)
    assert found == pytest.approx(
        {
            "pruned": 2, "channels": 4, "dead": 1, "acc_before": 0.9, "acc_pruned": 0.8,
            "train_asr_before": 1.0, "train_asr_pruned": 0.0,
            "activation_clean": 0.5, "activation_poison": 3.0, "raised": 1.0,
        }
    )  # fmt: skip
    picture = report.figure(artefacts, truth)
    assert len(picture.axes) == 2
    assert [len(ax.lines) for ax in picture.axes] == [3, 3]


# The chain


def test_tolerances_share_the_model_the_ranking_and_the_curve(counting: Counting, poisoned: Any) -> None:
    """Tolerances that come to the same mask share the tuning, too."""
    given = with_clean_set(poisoned[0])
    for tolerance in (0.9, 0.95, 1.0):
        knobs: dict[str, Any] = {"train": SHORT, "tune": SHORT, "tolerance": tolerance}
        chain = bdtune.defense("fine_pruning", **knobs).build(given)
        for node in chain.values():
            counting.compute(node, counting.note)
    once = ("supervised", "fp_ranking", "fp_curve", "fp_shown", "fp_tune")
    assert {name: counting.computed.count(name) for name in once} == dict.fromkeys(once, 1)


def test_what_each_setting_leaves_as_it_is() -> None:
    def trials(*settings: dict[str, Any]) -> list[Any]:
        return [graph({"name": "fine_pruning", **each}) for each in settings]

    tuned = trials({}, {"tune": {"epochs": 5}}, {"tune": {"lr": 0.1}}, {"tune": {"mode": "ft_sam"}})
    rules = trials({}, {"tolerance": 0.01}, {"rule": "ratio"}, {"rule": "ratio", "ratio": 0.5})
    steps, layers = trials({}, {"step": 4}), trials({}, {"layer": "inner"}, {"pooling": "max"})
    before = ("undefended", "tuning", "validation")
    for found, shared, different in (
        (tuned, (*before, "ranking", "curve", "mask", "shown"), ("classifier",)),
        (rules, (*before, "ranking", "curve", "shown"), ("mask",)),
        (steps, (*before, "ranking", "shown"), ("curve",)),
        (layers, before, ("ranking",)),
    ):
        assert {role: distinct(role, *found) for role in shared} == dict.fromkeys(shared, 1)
        assert {role: distinct(role, *found) for role in different} == dict.fromkeys(different, len(found))


def test_what_it_needs_is_said_at_once() -> None:
    _, problems = parse_trial(
        {"attack": "badnets", "model": "vgg_s", "defense": {"name": "fine_pruning", "layer": "inner"}}
    )
    assert [problem.path for problem in problems] == ["clean", "defense.layer"]
    assert "'inner' for 'vgg_s'" in str(problems[1])


@pytest.mark.parametrize("preset", FinePruning.presets)
def test_presets(preset: str) -> None:
    spec, problems = parse_trial({"clean": 0.05, "defense": {"preset": preset}})
    assert spec is not None, problems
    defense = spec.defense
    assert isinstance(defense, FinePruning)
    found = (defense.rule, defense.tolerance, defense.relative, defense.ratio, defense.tune.epochs)
    expected = {
        "backdoorbench/fp": ("tolerance", 0.1, True, 0.8, 100),
        "backdoortoolbox/fp": ("ratio", 0.04, False, 0.95, 0),
        "finepruning/pruning": ("tolerance", 0.04, False, 0.8, 0),
    }
    assert found == expected[preset]
