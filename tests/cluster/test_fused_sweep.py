"""Sweeps whose trials are computed together: the driver alone, and on Ray."""

from __future__ import annotations

import numpy as np
import pytest

from bdtune.cluster.driver import ASIDE
from bdtune.config.trial import spec_from_dict
from bdtune.engine.execute import Companion, Executor
from bdtune.engine.node import steps_of
from bdtune.engine.store import Store
from bdtune.reading.resident import InProcess
from bdtune.trials.graph import trial_graph
from bdtune.trials.known import KnownTrial
from bdtune.verbs.trial import page, page_table
from bdtune.verbs.verify import _changed_environment
from tests.cluster.test_driver import Desk

SEEDS = 4
LFD = (
    "attack=badnets",
    "defense=lfd",
    "defense.teacher={model: linear, epochs: 2, batch_size: 16}",
    "defense.student={epochs: 2, batch_size: 16, lr: 0.001}",
    f"seed={','.join(map(str, range(SEEDS)))}",
)
TOGETHER = {"lfd_teacher", "lfd_student", "supervised"}


class FusedDesk(Desk):
    """A driver whose released trials are walked here as on Ray."""

    def __init__(self, bench, *overrides):
        super().__init__(bench, *overrides)
        self.legs, self.groups = [], []

    def walk(self, trial):
        config = self.config
        self.worker.companions = [
            Companion(
                steps_of(trial_graph(spec_from_dict(other["spec"])).goals)[other["recipe"]],
                f"{self.driver.ledger.sweep}/{other['trial']}",
            )
            for other in config["company"]
        ]
        self.legs.append(trial)
        self.groups.append(len(config["company"]) + 1)
        self.worker.made_for = f"{self.driver.ledger.sweep}/{trial}"
        for event in self.worker.walk(self.driver.ledger.entries[trial].graph.goals):
            if event.what == "joinable" and event.node.recipe != config["starts_with"]:
                return {"status": ASIDE, "error": None}
        return {"status": "done", "error": None}

    def run(self):
        while (given := self.driver.release()) is not None:
            trial, self.config = given
            assert not self.driver.finished, "the trial may come back"
            self.driver.ended(trial, self.walk(trial))
        assert self.driver.complete


def check_against_singles(ledger, store, tmp_path):
    """Compare each result of the sweep with the same training alone, and look at what manifests say."""
    sizes = {}
    for entry in ledger.entries.values():
        single = entry.spec.model_copy(update={"numerics": entry.spec.numerics.alone()})
        alone = Executor(Store(tmp_path / "alone"), InProcess())
        theirs = steps_of(trial_graph(single).goals).values()
        ours = steps_of(entry.graph.goals).values()
        worker = Executor(store, InProcess())
        for one, other in zip(ours, theirs, strict=True):
            if one.name not in TOGETHER:
                continue
            manifest = worker.resolver.manifest(one)
            expected = alone.compute(other)
            assert manifest.preimage["numerics"]["fused"] is True
            assert "fused" not in alone.resolver.manifest(other).preimage["numerics"]
            for name, array in store.open(manifest.key).arrays.items():
                np.testing.assert_allclose(array, expected.arrays[name], atol=1e-3, rtol=1e-3, err_msg=name)
            sizes.setdefault(one.name, {})[manifest.key] = manifest.cost.together
    return sizes


def test_trials_are_released_again_and_again_until_all_is_computed_once(bench, tmp_path):
    desk = FusedDesk(bench, *LFD, "numerics.fused=4")
    desk.run()
    assert {result.status for result in desk.driver.results.values()} == {"done"}
    assert len(desk.legs) > len(set(desk.legs)), "they were set aside"
    sizes = check_against_singles(desk.driver.ledger, desk.store(bench), tmp_path)
    assert {name: sorted(each.values()) for name, each in sizes.items()} == dict.fromkeys(
        TOGETHER, [4] * SEEDS
    )
    assert max(desk.groups) == 4
    trial = next(result for result in desk.driver.results.values() if not result.is_baseline)
    known = KnownTrial(bench.root, trial, store_at=bench.store.root)
    notes = " ".join(page_table(page(known)).notes)
    assert "teacher (4), classifier (4)" in notes
    assert _changed_environment(known)["computed together"] == ("4", "1"), "computed again it may differ"
    counts = bench.published()
    assert {name: counts[name] for name in TOGETHER} == dict.fromkeys(TOGETHER, SEEDS)


def test_without_the_setting_no_trial_is_released_twice(bench):
    desk = FusedDesk(bench, *LFD[:-1], "seed=0,1")
    desk.driver.release()
    assert desk.driver.queue.running
    assert not any(job.may_return or job.company for job in desk.driver.queue.running.values())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.filterwarnings("ignore::FutureWarning:ray")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sweep_on_ray_computes_seeds_together(bench, tmp_path):
    outcome = bench.run(*LFD, "numerics.fused=4")
    assert {trial.status for trial in outcome.trials} == {"done"}
    assert not outcome.interrupted
    sizes = check_against_singles(bench.ledger, Store(bench.store.root), tmp_path)
    assert {name: len(each) for name, each in sizes.items()} == dict.fromkeys(TOGETHER, SEEDS)
    assert max(sizes["lfd_teacher"].values()) == 4, "all were ready at the start"
    counts = bench.published()
    assert {name: counts[name] for name in TOGETHER} == dict.fromkeys(TOGETHER, SEEDS)
    again = bench.run(*LFD, "numerics.fused=2")
    assert again.released == 0, "how many are computed together is in no key"
