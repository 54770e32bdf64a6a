"""Weights of evaluated classifiers: which a sweep drops, what stays the same, and who brings them back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

import bdtune
from bdtune.cluster.sweep import Options, Outcome
from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.manifest import Cost
from bdtune.engine.store import ARRAYS, Store
from bdtune.errors import UserError
from bdtune.report import files
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.belongings import classifier_of
from bdtune.verbs import cache, export_sweep, import_sweep, tables, trial
from bdtune.verbs import sweep as verb
from bdtune.verbs import verify as checking
from bdtune.verbs import weights as dropping
from bdtune.verbs.export_trial import export_trial
from bdtune.verbs.home import find_trial
from bdtune.verbs.weights import Judged, Weights
from tests.trained import one_thread
from tests.verbs.computing import SPACE, plugins

WIDE = SPACE.replace("[1.0, 0.5]", "[1.0, 0.75, 0.5, 0.25]")
KEPT_GB = 1e-9
"""Nothing but what stays anyway fits into that."""


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    plugins(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDTUNE_TOY_LOG", str(tmp_path / "computed.jsonl"))
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)


def in_process(spec, folder, ledger, executor, *, watcher, **_):
    """Compute a sweep's trials one after the other, in this process."""
    ledger.extend(points(spec))
    results = []
    with executor.store.pins.held(), one_thread():
        for entry in ledger.entries.values():
            executor.made_for = f"{ledger.sweep}/{entry.id}"
            for _ in executor.walk(entry.graph.goals):
                pass
            results.append(ledger.result(entry))
            watcher.trial_done(results[-1])
    return Outcome(results, False, len(results))


@pytest.fixture
def swept(monkeypatch, tmp_path):
    """Return what runs a sweep of these settings in this process; it says where the run directory is."""
    monkeypatch.setattr(verb, "run_sweep", in_process)

    def run(*words, home="home", text=WIDE, store=None):
        (tmp_path / "toy.yaml").write_text(text)
        done = verb.sweep(str(tmp_path / "toy.yaml"), list(words), tmp_path / home, Options(), store=store)
        return SimpleNamespace(
            done=done, home=tmp_path / home, folder=tmp_path / home / "sweeps" / done.spec.name
        )

    return run


def computed(tmp_path):
    """Return the names of the trainings that were computed since the last call."""
    log = tmp_path / "computed.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(line["stage"] for line in lines if line["what"] == "start")


def dropped(swept):
    """Return the trials whose classifiers' arrays the store lacks."""
    store = Store(swept.home / "store", create=False)
    trials = swept.done.result.trials
    return {each.id for each in trials if not store.is_whole(each.stages["classifier"].key)}


def test_all_but_the_best_and_undefended_are_dropped_and_every_number_is_the_same(swept, tmp_path, capsys):
    kept = swept("weights_gb=null")
    before = {name: (kept.folder / name).read_bytes() for name in ("sweep.json", "report.md", "report.csv")}
    assert dropped(kept) == set()
    assert "dropped" not in capsys.readouterr().err
    less = swept(f"weights_gb={KEPT_GB}")
    gone = dropped(less)
    trials = {each.id: each for each in less.done.result.trials}
    best = {each.id for found in less.done.result.best_settings.values() for each in found}
    assert best
    assert gone == {name for name, each in trials.items() if not each.is_baseline} - best
    assert "weights of 6 evaluated classifiers dropped" in capsys.readouterr().err
    assert before == {name: (less.folder / name).read_bytes() for name in before}
    fresh = swept(f"weights_gb={KEPT_GB}", home="fresh")
    assert dropped(fresh) == gone
    assert [each.metrics for each in fresh.done.result.trials] == [each.metrics for each in trials.values()]
    assert cache.verify(Store(less.home / "store"))[1] == []


def test_the_same_command_computes_nothing_and_reports_the_same(swept, tmp_path):
    first = swept(f"weights_gb={KEPT_GB}")
    before, gone = (first.folder / "sweep.json").read_bytes(), dropped(first)
    assert computed(tmp_path)
    again = swept(f"weights_gb={KEPT_GB}")
    assert computed(tmp_path) == []
    assert (again.folder / "sweep.json").read_bytes() == before
    assert dropped(again) == gone
    spec, plan = verb.plan(str(tmp_path / "toy.yaml"), [], first.home)
    assert all(count.unique == count.cached for count in plan.stages.values())
    assert spec.weights_gb == 20.0, "what it is says no settings file"


KILLED = """
import os, signal, sys
from pathlib import Path
from bdtune.cluster.sweep import Options
from bdtune.engine import folder_place
from bdtune.tracking.mlflow_log import Tracker
from bdtune.verbs import sweep as verb
from tests.verbs.test_weights import in_process

def third(place, *words):
    dropped.append(words)
    if len(dropped) == 3:
        folder_place.sync_folder = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    return drop(place, *words)

drop, dropped = folder_place.FolderPlace.drop, []
Tracker._poke, verb.run_sweep, folder_place.FolderPlace.drop = lambda self: None, in_process, third
verb.sweep(sys.argv[1], ["weights_gb=1e-9"], Path(sys.argv[2]), Options(), quiet=True)
"""
"""The driver dies within the third removal."""


def test_a_driver_that_is_killed_while_it_drops_loses_nothing(swept, tmp_path, monkeypatch):
    first = swept("weights_gb=null")
    before = (first.folder / "sweep.json").read_bytes()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "toy.yaml"), str(first.home)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert len(dropped(first)) == 3
    computed(tmp_path)
    again = swept(f"weights_gb={KEPT_GB}")
    assert computed(tmp_path) == []
    assert len(dropped(again)) == 6
    assert (again.folder / "sweep.json").read_bytes() == before
    assert list((again.home / "store" / "quarantine").iterdir()) == []
    store = Store(again.home / "store")
    arrays = set(store.root.glob(f"objects/??/*/{ARRAYS}"))
    monkeypatch.setattr("bdtune.engine.folder_place.ORPHANED", timedelta(0))
    assert store.place.clear_orphans() == 1, "the file whose removal broke off"
    [left] = arrays - set(store.root.glob(f"objects/??/*/{ARRAYS}"))
    assert left.parent.name in {each.key for each in store.entries() if each.dropped}


def test_a_budget_leaves_the_next_best(swept):
    all_ = swept("weights_gb=null", home="all")
    store = Store(all_.home / "store")
    one = store.manifest(all_.done.result.trials[-1].stages["classifier"].key).size
    some = swept(f"weights_gb={2.5 * one / 1e9}", home="some")
    left = [each for each in some.done.result.trials if each.id not in dropped(some) and not each.is_baseline]
    assert sorted(each.params["defense.tail.quality"] for each in left) == [0.75, 0.75, 1.0, 1.0]
    assert dropped(swept(home="default")) == set(), "twenty gigabytes are enough for toys"


def test_they_go_while_the_sweep_runs(swept, monkeypatch):
    monkeypatch.setattr(dropping, "EVERY", 2)
    seen = []
    drop = Store.drop
    monkeypatch.setattr(Store, "drop", lambda store, key, by: (seen.append(key), drop(store, key, by))[1])
    close, counts = Weights.close, []

    def closed(weights):
        weights._pool.submit(lambda: counts.append(len(seen)))
        return close(weights)

    monkeypatch.setattr(Weights, "close", closed)
    swept(f"weights_gb={KEPT_GB}")
    assert counts[0] > 0


def test_looks_become_rarer_as_trials_become_more(monkeypatch):
    looks = []
    monkeypatch.setattr(Weights, "_drop", lambda weights: looks.append(len(weights._results)))
    weights = Weights(SimpleNamespace(), [])
    for number in range(5000):
        weights.trial_done(SimpleNamespace(id=str(number)))
        if weights._look is not None:
            weights._look.result()
    weights.close()
    assert looks[:10] == [100 * number for number in range(1, 11)]
    assert len(looks) < 30
    assert all(after - before <= 1 + after // dropping.SHARE for before, after in pairwise(looks[9:]))


def test_where_all_stays_nothing_is_looked_through(swept, monkeypatch):
    monkeypatch.setattr(Weights, "_candidates", lambda *_: pytest.fail("it takes a second of 10,000 trials"))
    assert dropped(swept("weights_gb=null")) == set()


def test_a_model_that_is_asked_for_comes_back_bit_for_bit(swept, tmp_path, caplog):
    kept, less = swept("weights_gb=null", home="all"), swept(f"weights_gb={KEPT_GB}", home="less")
    [one, *_] = sorted(dropped(less))
    computed(tmp_path)
    page = trial.page(find_trial(one, less.home))
    text = " ".join(trial.page_table(page).notes)
    assert "dropped from the store by sweep 'toy' (weights_gb=1e-09)" in text
    assert f"bdtune export {one}" in text
    with one_thread():
        model = bdtune.trial(one, out=less.home).model()
        same = bdtune.trial(one, out=kept.home).model()
    assert computed(tmp_path) == ["toy_tail"]
    for name, value in same.state_dict().items():
        assert value.numpy().tobytes() == model.state_dict()[name].numpy().tobytes()
    assert "weights_gb=1e-09" in caplog.text
    assert one not in dropped(less)
    [other, *_] = sorted(dropped(less))
    export_trial(find_trial(other, less.home), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert computed(tmp_path) == ["toy_tail"]
    before = (less.folder / "sweep.json").read_bytes()
    swept(f"weights_gb={KEPT_GB}", home="less")
    assert (less.folder / "sweep.json").read_bytes() == before
    assert {one, other} <= dropped(less), "the next run leaves no more than it is asked to"


def test_what_cannot_be_computed_again_says_what_dropped_it_and_what_to_do(swept, monkeypatch):
    less = swept(f"weights_gb={KEPT_GB}")
    [one, *_] = sorted(dropped(less))
    monkeypatch.setattr(np.random, "default_rng", lambda *_: np.random.Generator(np.random.Philox(key=1)))
    with pytest.raises(
        UserError, match=r"sweep 'toy' \(weights_gb=1e-09\) dropped.*other bits.*cache remove"
    ):
        classifier_of(find_trial(one, less.home))
    assert one in dropped(less)


def test_another_evaluation_brings_back_what_it_reads(swept, tmp_path):
    less = swept(f"weights_gb={KEPT_GB}")
    gone = dropped(less)
    computed(tmp_path)
    other = swept(f"weights_gb={KEPT_GB}", "name=robust", "trial.evaluation={robust: pgd}")
    assert computed(tmp_path) == ["toy_tail"] * len(gone)
    assert all("robust_acc" in each.metrics for each in other.done.result.trials)
    assert dropped(less) == set(), "they are of the other sweep, which alone may drop them"


def test_a_running_sweep_and_a_lease_keep_what_they_use(swept, monkeypatch):
    first = swept("weights_gb=null")
    keys = {each.stages["classifier"].key for each in first.done.result.trials if not each.is_baseline}
    pinned, leased, *_ = sorted(keys)
    other = Store(first.home / "store")
    with other.pins.held(), other.leases.try_hold(leased):
        other.pins.add(pinned)
        swept(f"weights_gb={KEPT_GB}")
        assert Store(first.home / "store").is_whole(pinned)
        assert Store(first.home / "store").is_whole(leased)
    assert dropped(first)
    swept(f"weights_gb={KEPT_GB}")
    best = {use.stages["classifier"].key for each in first.done.result.best_settings.values() for use in each}
    store = Store(first.home / "store")
    assert {key for key in keys if store.is_whole(key)} == best


def test_what_another_sweep_computed_stays(swept):
    first = swept("weights_gb=null")
    swept(f"weights_gb={KEPT_GB}", "name=other")
    assert dropped(first) == set()


def test_what_mlflow_gets_stays(swept):
    assert dropped(swept(f"weights_gb={KEPT_GB}", "keep=[model]")) == set()


def test_what_would_not_come_back_stays(swept, monkeypatch):
    free = swept(f"weights_gb={KEPT_GB}", "numerics.deterministic=false", home="free")
    assert dropped(free) == set()
    measured = Cost.measured
    monkeypatch.setattr(Cost, "measured", lambda *given: replace(measured(*given), together=2))
    assert dropped(swept(f"weights_gb={KEPT_GB}", home="fused")) == set()
    monkeypatch.setattr(Cost, "measured", measured)
    swept("weights_gb=null", home="old")
    monkeypatch.setattr("bdtune.engine.environment._versions", lambda: (("torch", "another"),))
    assert dropped(swept(f"weights_gb={KEPT_GB}", home="old")) == set()


def test_a_sweep_is_exported_imported_and_verified_without_them(swept, tmp_path):
    less = swept(f"weights_gb={KEPT_GB}")
    export_sweep.export_sweep(less.folder, less.home, tmp_path / "out")
    computed(tmp_path)
    there = tmp_path / "there"
    import_sweep.import_sweep(tmp_path / "out", there)
    assert computed(tmp_path) == []
    assert files.read(there / "sweeps" / "toy").to_json() == files.read(less.folder).to_json()
    with one_thread():
        for home in (less.home, there):
            found = checking.verify(home / "sweeps" / "toy", home, sample=20, quiet=True)
            assert [each.verdict for each in found] == ["equal"] * len(found)
            assert len(found) > 6
    assert dropped(less), "verifying brings nothing back"
    computed(tmp_path)
    gone = len(dropped(less))
    export_sweep.export_sweep(less.folder, less.home, tmp_path / "whole", keep=["model"])
    assert computed(tmp_path) == ["toy_tail"] * gone
    import_sweep.import_sweep(tmp_path / "whole", tmp_path / "elsewhere")
    assert all(
        Store(tmp_path / "elsewhere" / "store").is_whole(key)
        for key in (each.stages["classifier"].key for each in less.done.result.trials)
    )


def test_a_plan_says_what_stays(swept, tmp_path):
    swept("weights_gb=null", text=SPACE)

    def notes(*words, text=WIDE):
        (tmp_path / "toy.yaml").write_text(text)
        spec, plan = verb.plan(str(tmp_path / "toy.yaml"), list(words), tmp_path / "home")
        assert tables.plan_json(spec, plan)["weights"] == plan.weights > 0
        return " ".join(tables.plan_table(spec, plan).notes)

    assert "which all stay, as weights_gb=20 allows" in notes()
    assert "(weights_gb=null)" in notes("weights_gb=null")
    assert "and those of the best stay (weights_gb=1e-09; null: all)" in notes(f"weights_gb={KEPT_GB}")


def looked(first, specs, *, ended=None, parts=None):
    """Take one look at the results of a sweep, whose trials are those of `specs`."""
    ledger, _ = verb.make_ledger(first.done.spec, Store(first.home / "store"))
    for each in specs:
        ledger.extend(points(each))
    weights = Weights(ledger, [Judged(each, ledger) for each in parts or specs[:1]])
    for each in first.done.result.trials if ended is None else ended:
        weights.trial_done(each)
    weights.close()
    gone = dropped(first)
    trials = first.done.result.trials
    return sorted(
        (each.params["defense.tail.quality"], each.params["seed"]) for each in trials if each.id in gone
    )


def test_a_campaign_keeps_the_best_of_each_of_its_sweeps(swept):
    first = swept("weights_gb=null")
    high = first.done.spec.model_copy(update={"weights_gb": KEPT_GB})
    low = high.model_copy(update={"select": high.select.model_copy(update={"mode": "min"})})
    assert looked(first, [high], parts=[high, low]) == [
        (quality, seed) for quality in (0.5, 0.75) for seed in (0, 1)
    ]


def test_what_a_trial_to_come_still_reads_stays(swept, tmp_path):
    first = swept("weights_gb=null")
    spec = first.done.spec.model_copy(update={"weights_gb": KEPT_GB})
    other = load_sweep(str(tmp_path / "toy.yaml"), ["trial.evaluation={robust: pgd}"])
    assert looked(first, [spec, other]) == []
    assert len(looked(first, [spec])) == 6


def test_a_setting_with_seeds_to_come_stays_as_it_may_be_the_best(swept):
    first = swept("weights_gb=null")
    spec = first.done.spec.model_copy(update={"weights_gb": KEPT_GB})
    trials = first.done.result.trials
    ended = [
        each for each in trials if (each.params.get("defense.tail.quality"), each.params["seed"]) != (0.5, 1)
    ]
    assert looked(first, [spec], ended=ended) == [
        (quality, seed) for quality in (0.25, 0.75) for seed in (0, 1)
    ]


def test_a_wrong_amount_is_a_users_mistake(swept):
    with pytest.raises(UserError, match=r"weights_gb: expected .*-1"):
        swept("weights_gb=-1")


@pytest.mark.xdist_group("s3")
def test_in_a_bucket_they_go_and_come_back_as_well(swept, s3, tmp_path, monkeypatch):
    at = s3.new_address()
    kept = swept("weights_gb=null", store=at)
    before = (kept.folder / "sweep.json").read_bytes()
    less = swept(f"weights_gb={KEPT_GB}", store=at)
    keys = {each.id: each.stages["classifier"].key for each in less.done.result.trials}
    gone = sorted(trial for trial, key in keys.items() if not Store(at).is_whole(key))
    assert len(gone) == 6
    assert (less.folder / "sweep.json").read_bytes() == before
    names = [each.name for each in Store(at).place.objects.list("payloads")]
    assert not [name for name in names for one in gone if keys[one] in name and name.endswith(ARRAYS)]
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "another-node"))
    computed(tmp_path)
    bdtune.trial(gone[0], out=less.home).model()
    assert computed(tmp_path) == ["toy_tail"]
    assert Store(at).is_whole(keys[gone[0]])
    assert cache.verify(Store(at))[1] == []
