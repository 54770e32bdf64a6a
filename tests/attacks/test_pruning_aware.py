"""The pruning-aware attack: what its stages promise, what trials share, and where it is not defined."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import bdtune
from bdtune.attacks.pruning_aware.stages import CleanPart, PruneDormant, silence
from bdtune.config.trial import parse_trial
from bdtune.engine.execute import Executor
from bdtune.engine.node import Node
from bdtune.engine.stage import Context
from bdtune.engine.store import Store
from bdtune.networks.resnet import last_block
from bdtune.plugins.data import LabelSet
from bdtune.poisoning.train_sources import FitRows
from bdtune.reading.resident import InProcess
from bdtune.testing.small import NUMERICS
from bdtune.training.predict import predict_logits, trained_network
from bdtune.trials.graph import trial_graph
from tests.trained import one_thread

SHORT = {"epochs": 5, "lr": 0.05, "schedule": "cosine", "batch_size": 32, "augment": "none"}
PRUNING = {
    "name": "pruning_aware",
    "pattern": "square",
    "size": 8,
    "clean": SHORT,
    "retrain": SHORT,
    "validation": 0.2,
}
MODEL = {"name": "resnet18", "width": 2}
NUMBERS = {"device": "cpu", "precision": "fp32"}


def parsed(**settings):
    raw = {"dataset": {"name": "digits", "train_limit": 400, "test_limit": 100}, "attack": PRUNING}
    return parse_trial({**raw, "model": MODEL, "numerics": NUMBERS, **settings})


def graph(**settings):
    spec, faults = parsed(**settings)
    assert not faults
    return trial_graph(spec)


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
    """The stages' results by name, the trial's graph, and its test sets."""
    executor = Executor(Store(tmp_path_factory.mktemp("store")), InProcess())
    found = graph()
    last = found.chain["classifier"]
    nodes = {"restored": last, **{name: node for name, node in last.inputs.items() if isinstance(node, Node)}}
    tests = executor.inputs_but(found.evaluate, "classifier")
    with one_thread():
        return {name: executor.compute(node) for name, node in nodes.items()}, found, tests, executor


def network_of(artefact, tests):
    return trained_network(tests["model"], tests["clean"], artefact, NUMERICS)


@pytest.mark.slow
def test_the_model_handed_over_answers_as_the_pruned_one(attacked):
    made, found, _, executor = attacked
    infos = [
        executor.compute(replace(found.evaluate, inputs={**found.evaluate.inputs, "classifier": node})).info
        for node in (found.chain["classifier"], found.chain["classifier"].inputs["retrained"])
    ]
    for metric in ("acc", "asr"):
        assert abs(infos[0][metric] - infos[1][metric]) <= 0.01
    assert infos[0]["asr"] > 0.5
    assert made["restored"].info["restored"] == made["pruned"].info["pruned"] > 0


def test_restored_channels_are_the_least_active_and_pruning_them_again_changes_nothing(attacked):
    made, _, tests, _ = attacked
    channels = made["pruned"].arrays["pruned"]
    network = network_of(made["restored"], tests)
    seen = []
    hook = last_block(network).reader.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].mean((0, 2, 3)))
    )
    before = predict_logits(network, tests["clean"], NUMERICS)
    hook.remove()
    activation = torch.stack(seen).mean(0).numpy()
    others = np.setdiff1d(np.arange(len(activation)), channels)
    assert activation[channels].max() <= activation[others].min() + 1e-6
    with torch.no_grad():
        silence(last_block(network), channels)
    after = predict_logits(network, tests["clean"], NUMERICS)
    np.testing.assert_allclose(before, after, atol=1e-5)
    again = PruneDormant(max_drop=0.0)
    subset = {"ids": np.arange(100), "labels": np.asarray(tests["clean"].labels)}
    inputs = {"data": tests["clean"], "model": tests["model"], "classifier": made["restored"]}
    found = again.run(Context(numerics=NUMERICS), **{**inputs, "subset": type(made["restored"])(subset)})
    assert found.info["pruned"] >= len(channels)  # dormant ones go first, and cost no accuracy
    assert set(channels) <= set(found.arrays["pruned"])


def test_pruned_channels_stay_pruned_while_the_rest_is_retrained(attacked):
    made, _, tests, _ = attacked
    channels = made["pruned"].arrays["pruned"]
    pruned, retrained, original, restored = (
        last_block(network_of(made[name], tests)) for name in ("pruned", "retrained", "original", "restored")
    )
    others = np.setdiff1d(np.arange(pruned.norm.num_features), channels)
    for inner in (pruned, retrained):
        for values in (inner.conv.weight, inner.norm.weight, inner.norm.bias):
            assert not values[channels].any()
    assert not torch.equal(retrained.conv.weight[others], pruned.conv.weight[others])
    assert torch.equal(restored.conv.weight[others], retrained.conv.weight[others])
    assert torch.equal(restored.conv.weight[channels], original.conv.weight[channels])
    assert (restored.norm.bias[channels] <= original.norm.bias[channels]).all()
    assert torch.equal(restored.norm.weight[channels], original.norm.weight[channels])


def test_pruning_costs_no_more_than_it_may(attacked):
    made = attacked[0]["pruned"]
    assert made.info["acc_pruned"] >= made.info["acc"] - 0.005 - 1e-9
    order = np.argsort(made.arrays["activation"], kind="stable")
    assert set(order[: made.info["pruned"]]) == set(made.arrays["pruned"])


def stages(found):
    return {node.name: recipe for recipe, node in found.stages.items()}


def test_seeds_and_rates_share_the_clean_stages():
    base = stages(graph())
    for settings in (
        {"seed": 1},
        {"attack": {**PRUNING, "rate": 0.2}},
        {"attack": {**PRUNING, "slack": 1.0}},
    ):
        other = stages(graph(**settings))
        assert [base[name] == other[name] for name in ("surrogate", "prune_dormant")] == [True, True]
        assert base["restore_pruned"] != other["restore_pruned"]
    assert stages(graph(attack={**PRUNING, "slack": 1.0}))["retrain_pruned"] == base["retrain_pruned"]
    assert stages(graph(attack={**PRUNING, "max_drop": 0.1}))["surrogate"] == base["surrogate"]


def test_a_defense_that_trains_from_scratch_meets_badnets():
    both = [
        graph(attack=attack, defense={"name": "abl"})
        for attack in (PRUNING, {"name": "badnets", "pattern": "square", "size": 8})
    ]
    assert set(both[0].stages) == set(both[1].stages)
    baseline = trial_graph(both[0].baseline)
    assert baseline.chain["classifier"].name == "restore_pruned"


def test_nothing_that_is_held_out_is_trained_on():
    found = graph(holdout=0.25)
    last = found.chain["classifier"]
    clean = last.inputs["original"]
    rows = clean.inputs["subset"].inputs["rows"]
    assert isinstance(rows, FitRows)
    kept = rows.load(InProcess(), {})
    fit = last.inputs["data"].load(InProcess(), {})
    assert len(kept) == len(fit)
    data = LabelSet(np.zeros(400, np.int64), 10)
    parts = [
        CleanPart(part=part, fraction=0.2).run(Context(seed=3), data=data, rows=kept).arrays["ids"]
        for part in ("train", "validation")
    ]
    assert sorted(np.concatenate(parts)) == sorted(kept)
    assert len(parts[1]) == len(kept) // 5


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "preactresnet18", "resnet_s", "resnet_s1", "resnet_s2"]
)
def test_residual_networks_have_inner_channels(name):
    knobs = {"stem_width": 2} if name.startswith("resnet_s") else {"width": 2}
    network = bdtune.model(name, **knobs).build(3, (16, 16, 3)).eval()
    inner = last_block(network)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network.body(images), inner.rest(inner.before(images)))
        entering = []
        inner.reader.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
        silence(inner, np.arange(1, inner.norm.num_features))
        network(images)
    assert not entering[0][:, 1:].any()


def test_other_networks_are_refused_before_anything_starts():
    _, faults = parsed(model={"name": "vgg16"})
    assert [(fault.path, fault.got) for fault in faults] == [("model", "'vgg16'")]
    assert "expected a residual network" in faults[0].expected
