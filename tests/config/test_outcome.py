"""What is measured of a classifier while it is being trained, and what is told of a trial's data."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bdtune.config.trial import parse_trial
from bdtune.engine.remarks import MICRO_BATCH
from bdtune.engine.resolve import Resolver
from bdtune.engine.stage import Artefact
from bdtune.engine.store import Store
from bdtune.trials.graph import trial_graph
from bdtune.trials.ledger import Ledger
from bdtune.trials.outcome import judge_tick, result_of, trial_metrics


class Recording:
    """An executor that notes what it is told to evaluate."""

    resolver = SimpleNamespace(manifest=lambda node: None)

    def run_with(self, node: Any, inputs: Any) -> Artefact:
        self.node = node
        return Artefact(info={"acc": 0.5})


@pytest.mark.parametrize(
    ("wanted", "robust"), [((), "none"), (("der",), "none"), (("robust_acc", "der"), "pgd")]
)
def test_robust_accuracy_is_measured_at_ticks_only_where_it_decides(wanted: Any, robust: str) -> None:
    spec, faults = parse_trial({"dataset": "digits", "defense": "lfd", "evaluation": {"robust": "pgd"}})
    assert not faults
    graph, executor = trial_graph(spec), Recording()
    assert judge_tick(executor, graph, Artefact(), {}, wanted) == {"acc": 0.5}  # type: ignore[arg-type]
    assert executor.node.stage.robust == robust
    assert executor.node.seed == graph.evaluate.seed
    assert graph.evaluate.stage.robust == "pgd"


def test_how_far_batches_were_halved_is_no_metric() -> None:
    info = {"acc": 0.5, "n_clean": 10, MICRO_BATCH: 8}
    assert trial_metrics(info) == {"acc": 0.5}


def told(folder: Any, **settings: Any) -> Any:
    """Return what is told of a trial that has not been computed."""
    data = {"name": "digits", "train_limit": 200}
    spec, faults = parse_trial({"dataset": data, **settings})
    assert spec is not None, faults
    resolver = Resolver(Store(folder))
    return result_of(Ledger("s", resolver).add(spec), resolver, sweep="s", status="failed")


def test_what_was_poisoned_is_counted_whatever_the_knob_asked_for(tmp_path: Any) -> None:
    bench = {
        "preset": "backdoorbench/wanet",
        "rate": 0.03,
    }  # 3 and 2 of two batches
    data = told(tmp_path, attack=bench).data
    assert (data.samples, data.poisoned, data.covered) == (200, 5, 10)
    clean = told(tmp_path, attack=None, holdout=0.25).data
    assert (clean.samples, clean.poisoned, clean.covered, clean.clean) == (150, 0, 0, 0)
    reserved = told(tmp_path, attack={"name": "badnets", "rate": 0.1}, clean=20, holdout_clean=30).data
    assert (reserved.samples, reserved.poisoned, reserved.clean) == (150, 15, 20)


def test_the_band_is_lower_where_success_is_bounded_by_accuracy(tmp_path: Any) -> None:
    assert told(tmp_path, attack="badnets").asr_band == 0.95
    assert told(tmp_path, attack={"name": "badnets", "all_to_all": True}).asr_band == 0.6
    assert told(tmp_path, attack=None).asr_band is None


def test_the_target_is_nothing_to_an_attack_without_one(tmp_path: Any) -> None:
    each = [told(tmp_path, attack={"name": "badnets", "all_to_all": True, "target": t}) for t in (0, 3)]
    assert each[0].id == each[1].id
    assert each[0].data == each[1].data


def test_the_budget_of_epochs_counts_no_training_on_few_samples(tmp_path: Any) -> None:
    epochs = {"isolate": {"epochs": 3}, "recover": {"epochs": 4}, "unlearn": {"epochs": 5}}
    assert told(tmp_path, attack="badnets", defense={"name": "abl", **epochs}).epochs == 7
    best = {"name": "adversarial_training", "validation": 0.1, "checkpoint": "best", "train": {"epochs": 6}}
    assert told(tmp_path, attack="badnets", defense=best).epochs == 6
    handed_over = told(tmp_path, attack="pruning_aware", model="resnet_s", defense="none")
    assert handed_over.epochs is None
