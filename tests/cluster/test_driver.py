from __future__ import annotations

from types import SimpleNamespace

import pytest

from bdtune.cluster import deaths
from bdtune.cluster.driver import CUT_OFF, OUTAGE, Driver
from bdtune.cluster.searcher import HoldBack
from bdtune.cluster.sweep import make_ledger
from bdtune.cluster.trial_source import make_source
from bdtune.engine.execute import StageFailed
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import OutageError
from bdtune.trials.outcome import with_all_curves

QUALITIES = "defense.tail.quality=0.25,0.5,1.0"


class Desk:
    """A driver whose released trials are walked here, without Ray."""

    def __init__(self, bench, *overrides, retry_failed=False):
        spec = bench.spec(*overrides)
        ledger, executor = make_ledger(spec, self.store(bench))
        self.bench, self.worker = bench, make_ledger(spec, self.store(bench))[1]
        folder = bench.root / "sweeps" / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        self.driver = Driver(
            spec,
            ledger,
            executor,
            make_source(spec, folder),
            bench.watcher,
            folder=folder,
            retry_failed=retry_failed,
        )
        self.driver.answer()

    def store(self, bench):
        """Open the store, as another process does."""
        return Store(bench.store.root)

    def walk(self, trial: str) -> dict:
        """Do what a trial does and return its last report."""
        self.worker.made_for = f"{self.driver.ledger.sweep}/{trial}"
        try:
            for _ in self.worker.walk(self.driver.ledger.entries[trial].graph.goals):
                pass
        except StageFailed as failure:
            return {"status": failure.status, "error": str(failure)}
        return {"status": "done", "error": None}

    def run(self) -> list[str]:
        """Run all trials one by one; returns those that were released."""
        released = []
        while (given := self.driver.release()) is not None:
            released.append(given[0])
            self.driver.ended(given[0], self.walk(given[0]))
        assert self.driver.complete
        return released


def test_all_trials_end_and_a_second_driver_releases_none(bench):
    desk = Desk(bench, QUALITIES)
    assert len(desk.run()) == 4
    again = Desk(bench, QUALITIES)
    assert again.driver.complete
    assert again.driver.results.keys() == desk.driver.results.keys()


def test_a_result_is_given_out_when_that_of_its_baseline_is_there(bench):
    desk = Desk(bench, "attack=badnets", "defense.prefix.level=0")
    released = [desk.driver.release()[0] for _ in range(2)]
    entries = desk.driver.ledger.entries
    baseline = next(trial for trial in released if entries[trial].is_baseline)
    (other,) = set(released) - {baseline}
    desk.driver.ended(other, desk.walk(other))
    assert other not in desk.driver.results
    assert not desk.driver.complete
    desk.driver.ended(baseline, desk.walk(baseline))
    assert bench.watcher.done == [baseline, other]
    assert "der" in desk.driver.results[other].metrics


def test_what_a_scheduler_stopped_stays_stopped_until_it_is_judged_otherwise(bench):
    settings = (QUALITIES, "scheduler=asha")
    desk = Desk(bench, *settings)
    baseline = desk.driver.release()[0]
    assert desk.driver.release() is None, "early judgement compares with the baseline"
    desk.driver.ended(baseline, desk.walk(baseline))
    trial = desk.driver.release()[0]
    desk.driver.ended(trial, {"status": "running", "metrics/acc": 0.125})
    assert desk.driver.results[trial].status == "stopped"
    desk.run()

    again = Desk(bench, *settings)
    assert again.driver.complete
    assert again.driver.results[trial].status == "stopped"
    assert again.driver.results[trial].metrics["acc"] == 0.125
    assert Desk(bench, QUALITIES, "scheduler=median").run() == [trial], "another rule judges anew"
    assert Desk(bench, *settings).driver.results[trial].status == "done", "the store has it by now"


def test_a_trial_stopped_before_its_first_report_is_stopped(bench):
    desk = Desk(bench, QUALITIES)
    trial = desk.driver.release()[0]
    desk.driver.ended(trial, {})
    assert trial in desk.driver._ended or desk.driver.results[trial].status == "stopped"


@pytest.mark.parametrize("retry", [False, True])
def test_failed_trials_are_tried_again_only_when_asked(bench, retry):
    settings = ("defense.tail.trouble=raise,none", "defense.prefix.level=0,1")
    assert len(Desk(bench, *settings).run()) == 5
    desk = Desk(bench, *settings, retry_failed=retry)
    assert len(desk.run()) == (2 if retry else 0)
    failed = [result for result in desk.driver.results.values() if result.status == "failed"]
    assert len(failed) == 2
    assert all("told to fail" in result.error for result in failed)


def died(desk: Desk, trial: str) -> None:
    desk.driver.ended(trial, None)


def test_a_trial_whose_process_died_is_tried_again_and_nothing_is_remembered(bench):
    desk = Desk(bench, QUALITIES)
    first = desk.driver.release()[0]
    died(desk, first)
    assert not desk.driver.results
    assert not list((bench.store.root / "failed").iterdir())
    released = desk.run()
    assert first in released
    assert {result.status for result in desk.driver.results.values()} == {"done"}
    assert any(first in text for text in bench.watcher.messages)


def test_pauses_grow_and_a_trial_that_goes_on_dying_is_left_for_the_next_run(bench, monkeypatch):
    slept: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append)
    monkeypatch.setattr(deaths, "time", clock)
    desk = Desk(bench, "defense.tail.quality=1.0")
    released = [desk.driver.release()[0] for _ in range(2)]
    baseline, trial = sorted(released, key=lambda each: not desk.driver.ledger.entries[each].is_baseline)
    desk.driver.ended(baseline, desk.walk(baseline))
    died(desk, trial)
    for _ in range(len(deaths.PAUSES_S)):
        assert desk.driver.release()[0] == trial
        died(desk, trial)
    assert slept == list(deaths.PAUSES_S[1:])
    assert desk.driver.release() is None
    assert desk.driver.finished
    assert not desk.driver.complete
    assert trial in desk.driver.given_up
    assert "GiB are free now" in desk.driver.given_up
    assert desk.driver.results.keys() == {baseline}
    assert Desk(bench, "defense.tail.quality=1.0").run() == [trial], "the same command goes on"


def test_a_machine_on_which_every_trial_dies_is_given_up_soon(bench, monkeypatch):
    monkeypatch.setattr(deaths, "PAUSES_S", (0.0,) * 100)
    desk = Desk(bench, QUALITIES)
    for _ in range(deaths.MOST_IN_A_ROW):
        died(desk, desk.driver.release()[0])
    assert desk.driver.release() is None
    assert desk.driver.finished
    assert "died again and again" in desk.driver.given_up


def test_a_trial_that_ends_or_ran_for_long_begins_the_count_anew(bench):
    desk = Desk(bench, QUALITIES)
    for _ in range(2 * deaths.MOST_IN_A_ROW):
        trial = desk.driver.release()[0]
        desk.driver._started[trial] -= 2 * deaths.STEADY_S
        died(desk, trial)
    assert desk.driver.given_up is None
    assert len(desk.run()) == 4


def test_the_kernels_own_count_of_kills_is_what_is_suspected(bench, tmp_path, monkeypatch):
    counts = tmp_path / "vmstat"
    counts.write_text("nr_free_pages 7\noom_kill 3\n")
    monkeypatch.setattr(deaths, "KERNEL_COUNTS", counts)
    found = deaths.Deaths()
    found.lost.add("a1")
    assert "most often for want of memory" in found.suspicion()
    counts.write_text("nr_free_pages 7\noom_kill 5\n")
    assert "this machine's kernel killed 2 processes for want of memory" in found.suspicion()
    monkeypatch.setattr(deaths, "KERNEL_COUNTS", tmp_path / "none")
    assert deaths.kernel_kills() is None


def test_a_full_disk_ends_the_sweep_once_and_is_no_trials_failure(bench):
    desk = Desk(bench, QUALITIES)
    first, second = (desk.driver.release()[0] for _ in range(2))
    desk.driver.ended(first, {"status": OUTAGE, "error": "no room for /runs: 0.0 MiB of 5.0 MiB are free"})
    assert desk.driver.release() is None
    desk.driver.ended(second, desk.walk(second))
    assert desk.driver.finished
    assert desk.driver.given_up == "no room for /runs: 0.0 MiB of 5.0 MiB are free"
    assert not [result for result in desk.driver.results.values() if result.status == "failed"]
    assert len(Desk(bench, QUALITIES).run()) == 3


def test_a_node_that_is_cut_off_from_the_store_costs_its_trial_a_pause_and_no_other_one_anything(bench):
    desk = Desk(bench, QUALITIES)
    first, second = (desk.driver.release()[0] for _ in range(2))
    desk.driver.ended(first, {"status": CUT_OFF, "error": "s3://bucket does not answer"})
    desk.driver.ended(second, desk.walk(second))
    assert desk.driver.given_up is None
    assert first in desk.run()
    assert {result.status for result in desk.driver.results.values()} == {"done"}
    [said] = [text for text in bench.watcher.messages if first in text]
    assert "did not reach the store: tried again in 0 s (s3://bucket does not answer)" in said


def test_a_trial_that_never_reaches_the_store_is_left_with_the_reason(bench, monkeypatch):
    monkeypatch.setattr(deaths, "PAUSES_S", (0.0,))
    desk = Desk(bench, "defense.tail.quality=1.0")
    baseline = desk.driver.release()[0]
    desk.driver.ended(baseline, desk.walk(baseline))
    for _ in range(2):
        trial = desk.driver.release()[0]
        desk.driver.ended(trial, {"status": CUT_OFF, "error": "/data is another one on node-7"})
    assert desk.driver.finished
    assert f"1 trial ({trial}) could not reach the store" in desk.driver.given_up
    assert desk.driver.given_up.endswith("/data is another one on node-7")


def test_a_store_that_does_not_answer_ends_the_sweep_once_and_is_no_trials_failure(bench, monkeypatch):
    def away():
        raise OutageError("s3://bucket does not answer")

    desk = Desk(bench, QUALITIES)
    first, second = (desk.driver.release()[0] for _ in range(2))
    report = desk.walk(first)
    monkeypatch.setattr(desk.driver.executor.store, "catch_up", away)
    desk.driver.ended(first, report)
    assert desk.driver.given_up == "s3://bucket does not answer"
    assert desk.driver.release() is None
    desk.driver.ended(second, {"status": OUTAGE, "error": "the same"})
    assert desk.driver.finished
    assert not desk.driver.complete
    assert not [result for result in desk.driver.results.values() if result.status == "failed"]
    assert len(Desk(bench, QUALITIES).run()) == 3


def test_derived_stages_are_entered_under_the_trial_they_were_run_for(bench):
    desk = Desk(bench, "defense.prefix.level=0,1", "defense.beta=0.3,0.5")
    desk.run()
    for trial, result in desk.driver.results.items():
        if not desk.driver.ledger.entries[trial].is_baseline:
            assert result.stages["verdict"].computed


def test_a_curve_belongs_to_the_trial_that_computed_it_and_the_store_gives_it_to_all(bench):
    first = Desk(bench, "defense.tail.quality=1.0")
    first.run()
    again = Desk(bench, "defense.tail.quality=1.0", "name=again")
    assert again.driver.complete
    for trial, result in again.driver.results.items():
        own = first.driver.results[trial]
        assert own.curves
        assert result.curves == {}
        assert with_all_curves(result, bench.store).curves == own.curves


def test_torn_results_are_noticed_moved_away_and_computed_again(bench):
    Desk(bench, "defense.tail.quality=1.0").run()
    before = {manifest.key: manifest.digest for manifest in bench.store.entries()}
    damaged = {}
    for manifest in bench.store.entries():
        if manifest.name in ("toy_threshold", "toy_prefix"):
            damaged[manifest.name] = manifest.key
            file = bench.store.place.folder(manifest.key) / ARRAYS
            content = bytearray(file.read_bytes())
            content[-1] ^= 1
            file.write_bytes(content[:-1] if manifest.name == "toy_threshold" else content)
    desk = Desk(bench, "defense.tail.quality=1.0,0.5")
    assert len(desk.run()) == 1
    assert {result.status for result in desk.driver.results.values()} == {"done"}
    graves = {file.name.partition("-")[0] for file in (bench.store.root / "quarantine").iterdir()}
    assert graves == set(damaged.values())
    after = {manifest.key: manifest.digest for manifest in Store(bench.store.root).entries()}
    assert before.items() <= after.items()


class Recorded:
    """A driver that only remembers what it is told."""

    finished, slots = False, 2

    def __init__(self):
        self.told = []

    def release(self):
        return "trial", {"trial": "trial"}

    def ended(self, trial, report):
        self.told.append((trial, report))


def test_a_trial_stopped_while_paused_ends_with_its_last_report():
    driver = Recorded()
    searcher = HoldBack(driver)
    searcher.suggest("x")
    searcher.on_trial_result("x", {"status": "running", "metrics/acc": 0.5})
    searcher.on_trial_complete("x")
    searcher.on_trial_complete("x")
    assert driver.told == [("trial", {"status": "running", "metrics/acc": 0.5})]
    searcher.suggest("y")
    searcher.on_trial_complete("y", {"status": "running"}, error=True)
    assert driver.told[1] == ("trial", None)


def test_more_trials_are_given_to_tune_once_more_fit():
    driver = Recorded()
    searcher = HoldBack(driver)
    assert searcher.set_max_concurrency(2), "Tune's own bound would stay"
    assert [bool(searcher.suggest(name)) for name in "xyz"] == [True, True, False]
    driver.slots = 3
    assert searcher.suggest("z")
    searcher.on_trial_complete("x", {"status": "done"})
    assert searcher.suggest("w")
    assert searcher.suggest("v") is None
