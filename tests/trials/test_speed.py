"""First estimates: the machine's speed, measured once and kept."""

from __future__ import annotations

import json
import os
import time

import pytest
import torch

from bdtune.config.load import load_trial
from bdtune.engine.execute import Executor
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.trials import speed
from bdtune.trials.ledger import Ledger
from bdtune.trials.speed import Speed
from tests.doubles import CPU

WORDS = ["dataset=digits", "attack=badnets", "defense=gssd", "model.width=8", "model=resnet18"]
SHORT = ["defense.simclr.epochs=3", "defense.retrain.epochs=3", "numerics.precision=fp32"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bdtune" / "speed.json"


def ledger_of(folder, *words):
    executor = Executor(Store(folder), InProcess(None, "auto"))
    ledger = Ledger("s", executor.resolver, "cpu")
    return ledger, ledger.add(load_trial(None, [*WORDS, *words])), executor


def test_a_plan_on_a_fresh_store_gives_a_time(tmp_path):
    ledger, _, _ = ledger_of(tmp_path / "store")
    assert ledger.plan().unpredicted
    made = ledger.plan(Speed())
    assert not made.unpredicted
    assert made.seconds_shared > 1.0
    longer, _, _ = ledger_of(tmp_path / "store", "defense.simclr.epochs=1000")
    assert longer.plan(Speed()).seconds_shared > 3 * made.seconds_shared


def test_the_speed_is_measured_once_and_kept(tmp_path, monkeypatch, own_cache):
    ledger, _, _ = ledger_of(tmp_path / "store")
    first = ledger.plan(Speed()).seconds_shared
    assert all(each > 0 for each in json.loads(own_cache.read_text()).values())
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured again"))
    assert ledger.plan(Speed()).seconds_shared == first


def test_what_is_kept_answers_without_torch_and_nothing_else_is_measured(tmp_path, monkeypatch, own_cache):
    ledger, _, _ = ledger_of(tmp_path / "store")
    for name in ("_measured", "_operations"):
        monkeypatch.setattr(speed, name, lambda *_: pytest.fail("measured"))
    assert ledger.plan(Speed(measure=False)).unpredicted
    assert not own_cache.exists()
    monkeypatch.setattr(speed, "_measured", lambda *_: 1e9)
    monkeypatch.setattr(speed, "_operations", lambda *_: 1e6)
    known = ledger.plan(Speed()).seconds_shared
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(speed, "_operations", lambda *_: pytest.fail("counted again"))
    made = ledger.plan(Speed(measure=False))
    assert not made.unpredicted
    assert made.seconds_shared == known > 0


def test_where_nothing_can_be_kept_it_is_measured_all_the_same(tmp_path, own_cache):
    own_cache.parent.parent.mkdir()
    own_cache.parent.write_text("a file in its way")
    ledger, _, _ = ledger_of(tmp_path / "store")
    assert ledger.plan(Speed()).seconds_shared > 0


def test_of_a_gpu_that_is_not_here_nothing_is_guessed(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    ledger, _, _ = ledger_of(tmp_path / "store", "numerics.device=cuda", "numerics.precision=fp32")
    assert ledger.plan(Speed()).unpredicted


@pytest.mark.slow
def test_the_guess_is_of_the_right_size(tmp_path):
    ledger, entry, executor = ledger_of(tmp_path / "store", *SHORT)
    guessed = ledger.plan(Speed()).seconds_shared
    before = time.process_time()
    for each in ledger.entries.values():
        for node in each.graph.goals:
            executor.compute(node)
    took = time.process_time() - before
    assert entry.graph.goals
    assert guessed / 3 < took < guessed * 3


def test_no_more_threads_are_measured_than_this_machine_has():
    assert Speed(10_000).threads == len(os.sched_getaffinity(0))
    assert Speed(1).threads == 1


def test_a_given_speed_is_that_of_a_device_that_is_not_here(tmp_path, monkeypatch, own_cache):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured"))
    words = ["numerics.device=cuda", "numerics.precision=fp32"]
    ledger, _, _ = ledger_of(tmp_path / "store", *words)
    assert ledger.plan(Speed(images_per_s=1000.0, measure=False)).unpredicted  # operations need torch
    slow, fast = (ledger.plan(Speed(images_per_s=each)) for each in (1000.0, 4000.0))
    assert not slow.unpredicted
    trained = [r for r, s in slow.predicted.items() if s > fast.predicted[r]]
    assert trained
    assert all(slow.predicted[recipe] == pytest.approx(4 * fast.predicted[recipe]) for recipe in trained)
    assert ledger.plan(Speed(images_per_s=1000.0, measure=False)).predicted == slow.predicted
    assert len(json.loads(own_cache.read_text())) == 2  # operations of ResNet-18 and of this


def test_a_given_speed_is_that_of_resnet18_on_32_pixels(tmp_path, monkeypatch):
    """20 epochs over 1,000 images at 500 images a second take 40 s; a narrow network takes less."""

    def seconds(*words):
        _, entry, _ = ledger_of(tmp_path / "store", *words, "defense.train.epochs=20")
        [training] = [node for node in entry.graph.stages.values() if node.name == "supervised"]
        return Speed(images_per_s=500)(training)

    count = speed._operations
    monkeypatch.setattr(speed, "_operations", lambda network, *_: count(network, 10, speed.COLOUR))
    monkeypatch.setattr(speed, "_rows", lambda dataset, split, root: 1000)
    words = ["defense=fine_tuning", "clean=0.1"]
    assert seconds(*words, "model.width=64") == pytest.approx(40.0)
    assert seconds(*words) < 40.0 / 8


def test_a_device_without_memory_has_no_speed_and_none_is_remembered(own_cache, monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as short:
        short.setattr(torch.nn.functional, "cross_entropy", full)
        assert Speed(1)._pace(CPU) is None
    assert not own_cache.exists()
    assert Speed(1)._pace(CPU) > 0


def test_the_weights_of_a_classifier_are_weighed_before_it_is_trained_and_kept(tmp_path, monkeypatch):
    ledger, entry, _ = ledger_of(tmp_path / "store")
    made = ledger.plan(Speed(), weigh=Speed().weight_bytes)
    spec = entry.spec
    network = spec.model.build(spec.dataset.num_classes, spec.dataset.image_shape(None))
    assert made.weights == sum(each.numel() * each.element_size() for each in network.state_dict().values())
    monkeypatch.setattr(speed, "_weight_bytes", lambda *_: pytest.fail("weighed again"))
    assert ledger.plan(weigh=Speed().weight_bytes).weights == made.weights
    assert ledger.plan().weights is None
