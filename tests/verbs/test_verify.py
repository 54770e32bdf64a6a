"""A sweep comes out again elsewhere; what does not is found, and an export carries all that is needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bdtune
from bdtune.engine import environment as surroundings
from bdtune.engine.manifest import Manifest, _checksum
from bdtune.engine.store import ARRAYS, MANIFEST, Store
from bdtune.errors import UserError
from bdtune.report import files, table
from bdtune.trials.known import MANIFESTS
from bdtune.verbs import ls, sweep_report, trial
from bdtune.verbs.export_sweep import export_sweep
from bdtune.verbs.home import find_trial
from bdtune.verbs.import_sweep import import_sweep
from bdtune.verbs.verify import verify
from bdtune.verbs.verify_table import verify_table
from tests.verbs.computing import SPACE, computed, plugins

pytestmark = pytest.mark.xdist_group("computed_home")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a run directory with a sweep of two settings; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        plugins(patch)
        home = tmp_path_factory.mktemp("home")
        computed(home, "seed=0")
    return home


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    plugins(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(made, tmp_path):
    """Return a copy of it, to be written into."""
    return shutil.copytree(made, tmp_path / "home")


def checked(home, name="toy", **options):
    return verify(home / "sweeps" / name, home, quiet=True, **options)


def entry_of(home, role):
    """Return the folder of the one entry of a role in the first defended trial."""
    trials = files.read(home / "sweeps" / "toy").trials
    key = next(trial for trial in trials if not trial.is_baseline).stages[role].key
    return Store(home / "store").place.folder(key)


def forge(folder, arrays):
    """Change an entry and all sums over it, as nothing but computing it again can find."""
    manifest = Manifest.from_json((folder / MANIFEST).read_bytes())
    store = Store(folder.parents[2])
    artefact = store.open(manifest.key)
    shutil.rmtree(folder)
    store._manifests.clear()
    published = store.publish(
        manifest.key,
        manifest.kind,
        manifest.preimage,
        replace(artefact, arrays=arrays),
        cost=manifest.cost,
        made_for=manifest.made_for,
    )
    (folder / MANIFEST).write_bytes(replace(published, environment=manifest.environment).to_json())


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ verify


def test_a_sweep_comes_out_again_to_the_last_bit_and_nothing_is_written(home):
    before = files_of(home)
    found = checked(home)
    assert [check.verdict for check in found] == ["equal"] * 3
    assert all(check.first is None and not check.numbers and not check.environment for check in found)
    assert all(check.stages >= 3 for check in found)
    assert files_of(home) == before
    shown = table.plain(verify_table("toy", found, 0.02), 80)
    assert "every bit must be equal" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_sample_is_as_large_as_asked_and_the_same_for_everybody(home):
    one, two = (checked(home, sample=1) for _ in range(2))
    assert [check.trial for check in one] == [check.trial for check in two]
    assert len(one) == 1


def test_a_bit_that_changed_on_the_disk_is_found(home):
    file = entry_of(home, "classifier") / ARRAYS
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    found = checked(home)
    bad = [check for check in found if not check.good]
    assert [(check.first.role, check.first.what) for check in bad] == [("classifier", "damaged")]
    assert file.exists()  # nothing is moved away


def test_a_bit_that_changed_with_all_sums_over_it_is_found(home):
    folder = entry_of(home, "classifier")
    arrays = load_file(folder / ARRAYS)
    arrays["model.head.weight"][0, 0] = np.nextafter(arrays["model.head.weight"][0, 0], np.float32(9))
    forge(folder, arrays)
    [bad] = [check for check in checked(home) if not check.good]
    assert (bad.verdict, bad.first.role, bad.first.what) == ("differs", "classifier", "content")
    assert "model.head.weight differs by up to" in bad.first.why


def test_a_number_that_changed_in_the_report_is_found(home):
    report = home / "sweeps" / "toy" / "sweep.json"
    raw = json.loads(report.read_text())
    raw["trials"][-1]["metrics"]["acc"] += 1e-9
    report.write_text(json.dumps(raw))
    [bad] = [check for check in checked(home) if not check.good]
    assert (bad.trial, list(bad.numbers), bad.first) == (raw["trials"][-1]["id"], ["acc"], None)


def test_a_seed_that_changed_is_found_with_the_first_stage_that_reads_it(home):
    report = home / "sweeps" / "toy" / "sweep.json"
    raw = json.loads(report.read_text())
    own = next(each for each in raw["trials"] if not each["is_baseline"])
    own["params"]["seed"] = 1
    report.write_text(json.dumps(raw))
    [bad] = [check for check in checked(home) if not check.good]
    assert (bad.trial, bad.first.what) == (own["id"], "recipe")
    assert "seed" in bad.first.why
    assert bad.first.role == "prefix"


def test_another_library_is_found_and_judged_by_the_tolerance(home, monkeypatch):
    recorded = dict(surroundings.environment())
    monkeypatch.setattr(surroundings, "_versions", lambda: tuple({**recorded, "torch": "9.9"}.items()))
    found = checked(home)
    assert {check.verdict for check in found} == {"equal"}  # only its name changed
    assert all(check.environment["torch"] == (recorded["torch"], "9.9") for check in found)
    shown = table.plain(verify_table("toy", found, 0.02))
    assert f"computed with torch {recorded['torch']} (here 9.9)" in shown
    folder = entry_of(home, "classifier")
    arrays = load_file(folder / ARRAYS)
    arrays["model.head.weight"] += 1e-6
    forge(folder, arrays)
    assert sorted(check.verdict for check in checked(home)) == ["equal", "equal", "within tolerance"]


def test_what_an_earlier_version_left_is_judged_by_the_tolerance_too(home):
    for file in (home / "store" / "objects").rglob(MANIFEST):
        body = json.loads(file.read_bytes())
        body.pop("checksum")
        del body["environment"]
        file.write_text(json.dumps({**body, "checksum": _checksum(body)}))
    found = checked(home)
    assert {check.verdict for check in found} == {"equal"}
    assert "earlier version" in table.plain(verify_table("toy", found, 0.02))


def test_nothing_finished_and_missing_data_are_said_before_anything_is_computed(tmp_path, home):
    computed(tmp_path / "new", only=0)
    with pytest.raises(UserError, match="nothing to verify"):
        checked(tmp_path / "new")
    report = home / "sweeps" / "toy" / "sweep.json"
    raw = json.loads(report.read_text())
    for each in raw["trials"]:
        kept = {k: v for k, v in each["params"].items() if not k.startswith("dataset.")}
        each["params"] = {**kept, "dataset": "cifar10", "attack": "badnets"}
    report.write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"data_root: .*CIFAR-10"):
        checked(home)


# ------------------------------------------------------------------------------------------------ export


def test_an_exported_sweep_gives_the_same_report_elsewhere_and_verifies_there(home, tmp_path, monkeypatch):
    sweep_report.report("toy", home)
    before = home / "sweeps" / "toy"
    export_sweep(before, home, tmp_path / "out")
    shutil.move(home, tmp_path / "gone")
    before = tmp_path / "gone" / "sweeps" / "toy"
    there = tmp_path / "there"
    assert import_sweep(tmp_path / "out", there).name == "toy"
    after = there / "sweeps" / "toy"
    [row] = ls.listing(there)
    assert (row.state, row.done, row.trials) == ("done", 2, 2)
    sweep_report.report("toy", there)
    for name in ("report.md", "report.csv", "sweep.json"):
        assert (after / name).read_bytes() == (before / name).read_bytes(), name
    assert {file.name for file in after.glob("*.png")} == {file.name for file in before.glob("*.png")}
    assert [check.verdict for check in checked(there)] == ["equal"] * 3
    own = next(each for each in files.read(after).trials if not each.is_baseline)
    assert {row.state for row in trial.page(find_trial(own.id, there)).stages} == {"elsewhere"}


def test_a_bit_that_changed_before_the_export_is_found_after_the_import(home, tmp_path):
    folder = entry_of(home, "classifier")
    arrays = load_file(folder / ARRAYS)
    arrays["model.head.weight"][0, 0] += 1e-6
    forge(folder, arrays)
    export_sweep(home / "sweeps" / "toy", home, tmp_path / "out")
    import_sweep(tmp_path / "out", tmp_path / "there")
    [bad] = [check for check in checked(tmp_path / "there") if not check.good]
    assert (bad.first.role, bad.first.what) == ("classifier", "content")


def test_weights_and_verdicts_come_along_when_asked_for(home, tmp_path):
    export_sweep(home / "sweeps" / "toy", home, tmp_path / "out", keep=["model", "verdicts"])
    there = tmp_path / "there"
    assert import_sweep(tmp_path / "out", there).results == 5  # three classifiers, a subset, a verdict
    own = next(each for each in files.read(there / "sweeps" / "toy").trials if not each.is_baseline)
    known, here = bdtune.trial(own.id, out=there), bdtune.trial(own.id, out=home)
    for name, value in known.model().state_dict().items():
        assert (value == here.model().state_dict()[name]).all()
    assert known.verdicts().kept.tolist() == here.verdicts().kept.tolist()
    assert (known.poisoned_dataset().images == here.poisoned_dataset().images).all()


def test_a_sweep_that_left_things_to_the_machine_is_the_same_sweep_elsewhere(tmp_path):
    home, there = tmp_path / "home", tmp_path / "there"
    computed(home, "seed=0", text=SPACE.replace("  numerics: {device: cpu, precision: fp32}\n", ""))
    export_sweep(home / "sweeps" / "toy", home, tmp_path / "out")
    import_sweep(tmp_path / "out", there)
    text = (there / "sweeps" / "toy" / "sweep.yaml").read_text()
    assert "auto" not in text.partition("numerics:")[2].partition("pipeline")[0]
    assert "data_root: null" in text
    with pytest.raises(UserError, match="without this sweep; it is 'toy'"):
        import_sweep(tmp_path / "out", there)


def test_an_import_under_a_taken_name_gets_a_number_and_overwrites_nothing(home, tmp_path):
    there = tmp_path / "there"
    computed(there, "seed=0", "attack.rate=0.1")
    before = files_of(there / "sweeps" / "toy")
    export_sweep(home / "sweeps" / "toy", home, tmp_path / "out")
    done = import_sweep(tmp_path / "out", there)
    assert (done.name, done.wanted) == ("toy-2", "toy")
    assert files_of(there / "sweeps" / "toy") == before
    assert files.read(there / "sweeps" / "toy-2").sweep == "toy-2"
    assert "another sweep is called 'toy'" in done.lines(None)[0]


@pytest.mark.parametrize("harm", ["byte", "missing", "more", "outside", "format", "none"])
def test_an_export_that_is_not_whole_is_refused_and_nothing_is_written(home, tmp_path, harm):
    out, there = tmp_path / "out", tmp_path / "there"
    export_sweep(home / "sweeps" / "toy", home, out)
    contents, report = out / "export.json", out / "sweep" / "sweep.json"
    about = json.loads(contents.read_text())
    said = {
        "byte": "another SHA-256",
        "missing": "expected a file that the export was written with",
        "more": "expected a file that its contents name",
        "outside": "expected files inside the export",
        "format": "expected an export of format 1",
        "none": "expected a folder that 'bdtune export SWEEP' wrote",
    }[harm]
    if harm == "byte":
        report.write_bytes(report.read_bytes().replace(b"done", b"gone", 1))
    elif harm == "missing":
        report.unlink()
    elif harm == "more":
        (out / "sweep" / "extra.yaml").touch()
    elif harm == "none":
        contents.unlink()
    else:
        about |= {"format": 7} if harm == "format" else {"files": {**about["files"], "../../evil": "0"}}
        contents.write_text(json.dumps(about))
    with pytest.raises(UserError, match=said):
        import_sweep(out, there)
    assert not there.exists()


def test_an_entry_whose_files_are_not_its_own_is_not_taken_in(home, tmp_path):
    folder = entry_of(home, "classifier")
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    store = Store(tmp_path / "store")
    save_file({"x": np.zeros(1)}, tmp_path / "x")
    with pytest.raises(ValueError, match="not those of its manifest"):
        store.adopt({**contents, ARRAYS: (tmp_path / "x").read_bytes()})
    store.adopt(contents)
    assert store.open(folder.name) is not None
    assert (home / "sweeps" / "toy" / MANIFESTS).exists() is False
