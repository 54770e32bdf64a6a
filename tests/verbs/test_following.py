"""Following up on sweeps: what there is, how far it is, what differs, what a trial is made of."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import bdtune
from bdtune.engine.manifest import Manifest
from bdtune.engine.store import ARRAYS, MANIFEST, Store
from bdtune.errors import UserError
from bdtune.report import files, table
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.from_params import spec_from_params
from bdtune.verbs import diff, ls, tables, trial
from bdtune.verbs.export_trial import export_trial
from bdtune.verbs.home import find_sweep, find_trial
from tests.verbs.computing import computed, plugins

pytestmark = pytest.mark.xdist_group("computed_home")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a run directory with a sweep of two settings and two seeds; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        plugins(patch)
        home = tmp_path_factory.mktemp("home")
        computed(home)
    return home


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    plugins(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(made, tmp_path):
    """Return a copy of it, to be written into."""
    return shutil.copytree(made, tmp_path / "home")


def defended(home, seed=0, quality=1.0):
    [found] = [
        each
        for each in files.read(home / "sweeps" / "toy").trials
        if not each.is_baseline
        and (each.params["seed"], each.params["defense.tail.quality"]) == (seed, quality)
    ]
    return found


# ------------------------------------------------------------------------------------------------ ls


def test_a_finished_sweep_is_listed_with_its_best(made):
    [row] = ls.listing(made)
    assert (row.sweep, row.state, row.done, row.trials, row.failed) == ("toy", "done", 4, 4, 0)
    assert row.best[0].setting == "quality=1"
    assert row.best[0].value == pytest.approx(
        np.mean([defended(made, seed).metrics["select_acc"] for seed in (0, 1)])
    )
    assert row.seconds > 0
    [cells] = ls.cells([row])
    assert cells["trials"] == "4/4"
    assert "select_acc" in cells["best"]
    assert json.loads(json.dumps(row.to_json()))["best"][0]["setting"] == "quality=1"


def test_an_unfinished_sweep_says_how_far_it_is(tmp_path):
    computed(tmp_path, only=2)  # a baseline and a trial
    [row] = ls.listing(tmp_path)
    assert (row.state, row.done, row.trials) == ("unfinished", 1, 4)


def test_a_sweep_without_a_report_is_counted_by_what_it_recorded(home, monkeypatch):
    """As of a driver that runs, or was killed before it could report."""
    monkeypatch.setattr(Tracker, "_poke", lambda self: None)
    folder = home / "sweeps" / "toy"
    trials = files.read(folder).trials
    (folder / "sweep.json").unlink()
    tracker = Tracker(home, "toy")
    for each in [t for t in trials if not t.is_baseline][:3] + [t for t in trials if t.is_baseline]:
        tracker.finished(each)
    [row] = ls.listing(home)
    assert (row.state, row.done, row.trials) == ("unfinished", 3, 4)


def test_the_sweep_that_ran_last_comes_first_and_one_that_cannot_be_read_says_why(home):
    computed(home, "attack.rate=0.1", "seed=0")
    (home / "sweeps" / "toy" / "sweep.json").write_text('{"sweep": "toy", "trials": 3}')
    first, second = ls.listing(home)
    assert (first.sweep, first.state) == ("toy", "unreadable")
    assert "toy/sweep.json" in ls.notes([first], home)[0]
    assert (second.sweep, second.state) == ("toy-2", "done")


def test_an_empty_run_directory_says_how_to_begin(tmp_path):
    assert ls.listing(tmp_path / "nowhere") == []
    assert "bdtune sweep gssd.yaml" in ls.notes([], tmp_path)[0]


# ------------------------------------------------------------------------------------------------ finding


def test_trials_are_found_by_their_first_digits_and_wrong_ones_by_name(made):
    own = defended(made)
    found = find_trial(own.id[:8], made)
    assert found.result == own
    assert found.spec == spec_from_params(own.params, None)
    with pytest.raises(UserError, match="expected the id of a trial"):
        find_trial("ffffffff", made)
    with pytest.raises(UserError, match="first 4 or more digits"):
        find_trial(own.id[:2], made)
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        find_sweep("toyy", made)
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        find_trial("toy1", made)


def test_a_trial_of_a_sweep_without_a_report_is_found_too(home):
    own = defended(home)
    (home / "sweeps" / "toy" / "sweep.json").unlink()
    found = find_trial(own.id, home)
    assert found.result.metrics == own.metrics
    assert found.sweep == "toy"


# ------------------------------------------------------------------------------------------------ show trial


def test_a_trial_is_shown_stage_by_stage_with_what_each_reads_and_where_it_lies(made):
    own = defended(made, quality=0.5)
    page = trial.page(find_trial(own.id, made))
    rows = {row.role: row for row in page.stages}
    assert set(rows) == set(own.stages)
    assert rows["verdict"].reads == ("prefix",)
    assert rows["classifier"].reads == ("verdict",)
    assert rows["evaluate"].reads == ("classifier",)
    places = [row.role for row in page.stages]
    assert all(places.index(before) < places.index(row.role) for row in page.stages for before in row.reads)
    assert {role: row.state for role, row in rows.items()} == {
        role: "computed" if use.computed else "shared" for role, use in own.stages.items()
    }
    assert {"computed", "shared"} == {row.state for row in page.stages}
    store = Store(made / "store", create=False)
    for row in page.stages:
        manifest = store.manifest(row.key)
        assert str(store.place.folder(row.key)) == row.folder
        assert (row.bytes, row.seconds) == (manifest.size, manifest.cost.seconds)
    text = table.plain(trial.page_table(page), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert "quality=0.5" in text
    assert "objects/" in text


def test_a_result_that_is_gone_is_shown_as_missing(home):
    own = defended(home)
    shutil.rmtree(Store(home / "store").place.folder(own.stages["classifier"].key))
    states = {row.role: row.state for row in trial.page(find_trial(own.id, home)).stages}
    assert states["classifier"] == "missing"
    assert states["prefix"] != "missing"


# ------------------------------------------------------------------------------------------------ diff


def test_two_sweeps_differ_in_settings_and_numbers(home):
    computed(home, "defense.prefix.level=1", "seed=0,1,2", "name=other")
    found = diff.diff("toy", "other", home)
    assert {each.path: (each.first, each.second) for each in found.settings} == {
        "defense.prefix.level": ("0", "1"),
        "seed": ("0, 1", "0, 1, 2"),
    }
    one, two = (files.read(home / "sweeps" / name) for name in ("toy", "other"))
    for number in found.numbers:
        if number.setting == "quality=0.5" and number.metric == "acc":
            means = [
                np.mean(
                    [t.metrics["acc"] for t in result.trials if t.params.get("defense.tail.quality") == 0.5]
                )
                for result in (one, two)
            ]
            assert (number.first, number.second) == pytest.approx(means)
    assert not any(number.difference == 0 for number in found.numbers)  # of other seeds equal means
    assert (found.only_first, found.only_second) == ((), ())
    text = "\n".join(table.plain(each, 80) for each in diff.diff_tables(found))
    assert max(map(len, text.splitlines())) <= 80
    assert "defense.prefix.level" in text


def test_a_difference_beyond_the_spread_is_marked_and_settings_of_one_sweep_are_named(home):
    computed(home, "defense.tail.quality=0.5,0.25", "name=worse")
    folder = home / "sweeps" / "worse"
    raw = json.loads((folder / "sweep.json").read_text())
    for each in raw["trials"]:
        if each["params"].get("defense.tail.quality") == 0.5:
            each["metrics"]["acc"] -= 0.5
    (folder / "sweep.json").write_text(json.dumps(raw))
    found = diff.diff("toy", str(folder), home)
    [number] = [each for each in found.numbers if each.metric == "acc"]
    assert number.difference == pytest.approx(-0.5)
    assert number.beyond_spread
    assert (found.only_first, found.only_second) == (("quality=1",), ("quality=0.25",))
    assert "-0.5000*" in table.plain(diff.diff_tables(found)[1])


def test_code_and_libraries_that_computed_two_sweeps_are_compared(home):
    folder = computed(home, "name=other", "seed=5")
    last = files.read(folder).trials[-1]
    file = Store(home / "store").place.folder(last.stages["evaluate"].key) / MANIFEST
    manifest = Manifest.from_json(file.read_bytes())
    changed = replace(manifest, commit="0123", environment={**manifest.environment, "numpy": "0.1"})
    file.write_bytes(changed.to_json())
    found = {each.path: each.second for each in diff.diff("toy", "other", home).settings}
    assert (found["computed with commit"], found["computed with numpy"]) == ("0123", "0.1")
    assert "computed with torch" not in found


def test_a_sweep_and_itself_do_not_differ(made):
    found = diff.diff("toy", "toy", made)
    assert (found.settings, found.numbers) == ((), ())
    assert [shown.notes for shown in diff.diff_tables(found)] == [("none",), ("none",)]


def test_two_trials_differ_and_a_sweep_is_compared_with_no_trial(made):
    one, two = defended(made), defended(made, quality=0.5)
    found = diff.diff(one.id, two.id[:8], made)
    assert [each.path for each in found.settings] == ["defense.tail.quality"]
    numbers = {each.metric: (each.first, each.second) for each in found.numbers}
    assert numbers["acc"] == (one.metrics["acc"], two.metrics["acc"])
    with pytest.raises(UserError, match="two sweeps, or two trials"):
        diff.diff("toy", one.id, made)
    with pytest.raises(UserError, match="Did you mean 'toy'"):
        diff.diff("toy", "toi", made)


# ------------------------------------------------------------------------------------------------ export


def test_an_exported_trial_classifies_as_it_was_reported(made, tmp_path):
    own = defended(made, quality=0.5)
    written = export_trial(find_trial(own.id, made), tmp_path / "out")
    assert {file.name for file in written} == {
        "model.safetensors", "model.json", "rows.csv", "trial.json", "trial.yaml",
    }  # fmt: skip
    model = bdtune.load_model(tmp_path / "out")
    split = bdtune.dataset("tiny").load("test")
    images = torch.from_numpy(split.images.copy()).permute(0, 3, 1, 2) / 255
    predicted = model(images).argmax(1).numpy()
    assert np.mean(predicted == split.labels) == own.metrics["acc"]
    assert {"mean", "std"} < set(model.state_dict())
    assert json.loads((tmp_path / "out" / "trial.json").read_text())["metrics"] == own.metrics
    rows = list(csv.DictReader((tmp_path / "out" / "rows.csv").read_text().splitlines()))
    poisoned = {int(row["row"]) for row in rows if row["role"] == "poison"}
    assert poisoned == set(bdtune.trial(own.id, out=made).poisoned_dataset().poison_ids.tolist())
    labels = bdtune.dataset("tiny").load("train").labels
    plan = bdtune.attack("badnets", rate=0.2).plan(labels, seed=0)
    assert poisoned <= set(plan.poison_ids.tolist())
    assert 0 < len(poisoned) < len(plan.poison_ids) == 8  # some are held out
    assert [int(row["true_label"]) for row in rows] == labels[[int(row["row"]) for row in rows]].tolist()
    assert len(rows) == 29  # a quarter of each observed class is held out
    assert all(row["label"] == "0" != row["true_label"] for row in rows if row["role"] == "poison")


def test_an_export_overwrites_nothing_and_says_what_is_gone(home, tmp_path):
    own = defended(home)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="expected a new or empty folder"):
        export_trial(find_trial(own.id, home), tmp_path / "full")
    (Store(home / "store").place.folder(own.stages["classifier"].key) / ARRAYS).unlink()
    with pytest.raises(UserError, match=r"stage 'classifier'.*bdtune sweep"):
        export_trial(find_trial(own.id, home), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="expected a folder that 'bdtune export TRIAL' wrote"):
        bdtune.load_model(tmp_path / "full")


def test_sizes_are_said_in_words():
    assert (tables.size(400), tables.size(12_300_000)) == ("0.4 kB", "12.3 MB")
