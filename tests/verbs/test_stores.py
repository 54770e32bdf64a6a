"""Where a sweep's results are is remembered with it: every verb finds them, and none looks elsewhere."""

from __future__ import annotations

import json
import shutil

import pytest

import bdtune
from bdtune.config.load import load_sweep
from bdtune.engine.store import Store
from bdtune.errors import UserError
from bdtune.report import files
from bdtune.trials.known import MANIFESTS
from bdtune.trials.sweep_folder import STORE, claim, store_of
from bdtune.verbs import campaign_plan, sweep, sweep_report, watching
from bdtune.verbs.export_sweep import export_sweep
from bdtune.verbs.home import find_trial, settings_of
from bdtune.verbs.import_sweep import import_sweep
from bdtune.verbs.stores import store_at
from bdtune.verbs.verify import verify
from tests.verbs.computing import SPACE, computed, plugins

pytestmark = pytest.mark.xdist_group("s3")


@pytest.fixture(scope="module", params=["folder", "s3"])
def made(request, tmp_path_factory):
    """Return a run directory with a sweep whose results are elsewhere, and where; nobody writes into it."""
    with pytest.MonkeyPatch.context() as patch:
        plugins(patch)
        folder = tmp_path_factory.mktemp("home")
        at = folder / "far" / "results"
        if request.param == "s3":
            server = request.getfixturevalue("s3_server")
            for name, value in server.environment.items():
                patch.setenv(name, value)
            patch.setenv("BDTUNE_CACHE", str(folder / "copies"))
            at = server.new_address()
        computed(folder / "home", "seed=0", at=at)
        yield folder / "home", at


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    plugins(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(made, tmp_path):
    """Return a copy of the run directory, to be written into; the results are where they are."""
    return shutil.copytree(made[0], tmp_path / "home")


def defended(home):
    return next(each for each in files.read(home / "sweeps" / "toy").trials if not each.is_baseline)


def test_a_sweeps_folder_says_where_its_results_are(made):
    home, at = made
    folder = home / "sweeps" / "toy"
    assert (folder / STORE).read_text() == f"{at}\n"
    assert store_of(folder) == at
    assert not (home / "store").exists()


def test_every_verb_finds_them(home, made, bdtune):
    _, at = made
    trial = defended(home).id
    code, out, _ = bdtune("report", "toy", "--json", "--out", "home")
    assert code == 0
    assert {each["status"] for each in json.loads(out)["trials"]} == {"done"}
    assert bdtune("report", "toy", "--html", "--out", "home")[0] == 0
    assert "computed by commit" in (home / "sweeps" / "toy" / "report.html").read_text()
    code, out, _ = bdtune("show", "trial", trial, "--json", "--out", "home")
    stages = json.loads(out)["stages"]
    assert code == 0
    assert {stage["state"] for stage in stages} <= {"computed", "shared"}
    assert all(stage["folder"].startswith(f"{at}/") for stage in stages)
    assert f"results lie in {at}/" in " ".join(bdtune("show", "trial", trial, "--out", "home")[1].split())
    code, out, _ = bdtune("verify", "toy", "--sample", "1", "--json", "--quiet", "--out", "home")
    assert (code, [check["verdict"] for check in json.loads(out)]) == (0, ["equal"])
    code, out, _ = bdtune("plan", "home/toy.yaml", "seed=0", "--json", "--out", "home")
    counts = json.loads(out)["stages"].values()
    assert sum(count["cached"] for count in counts) == sum(count["unique"] for count in counts) > 0
    assert bdtune("export", trial, "one", "--out", "home")[0] == 0
    assert not (home / "store").exists()


def test_a_report_says_what_moved(home, made, bdtune):
    code, out, _ = bdtune("report", "toy", "--json", "--out", "home")
    found = json.loads(out)
    summary = found["summary"]
    uses = [use for trial in found["trials"] for use in trial["stages"].values()]
    assert code == 0
    assert summary["bytes_written"] == sum(use["bytes"] for use in uses if use["computed"]) > 0
    assert summary["bytes_read"] == sum(use["read"] for use in uses) > 0
    in_bucket = isinstance(made[1], str)
    moved = summary["bytes_served"], summary["bytes_fetched"]
    assert moved == ((summary["bytes_read"], 0) if in_bucket else (0, 0)), "one node computed all"
    text = " ".join(bdtune("report", "toy", "--out", "home")[1].split())
    assert " written, " in text
    assert (" from copies on the nodes" in text) == in_bucket
    reader = next(t for t in found["trials"] if any(use["read"] for use in t["stages"].values()))
    shown = " ".join(bdtune("show", "trial", reader["id"], "--out", "home")[1].split())
    assert "of other trials' results read" in shown
    assert ("from the node's copies" in shown) == in_bucket


def test_another_store_than_it_began_with_is_an_error_that_says_so(home, made, bdtune):
    trial = defended(home).id
    for words in (
        ["sweep", "home/toy.yaml", "seed=0"],
        ["plan", "home/toy.yaml", "seed=0"],
        ["report", "toy"],
        ["show", "trial", trial],
        ["verify", "toy"],
        ["diff", "toy", "toy"],
        ["diff", trial, trial],
        ["export", "toy", "new"],
        ["export", trial, "new"],
    ):
        code, out, err = bdtune(*words, "--out", "home", "--store", "other")
        assert (code, out) == (2, ""), words
        assert f"--store: expected {made[1]}, where 'toy' began, got" in " ".join(err.split()), words
        assert "Leave --store out" in err
    assert not (home.parent / "other").exists()
    assert not (home.parent / "new").exists()


def test_the_same_store_may_be_named_again(home, made):
    assert {each.status for each in bdtune.report("toy", out=home, store=f"{made[1]}").trials} == {"done"}
    known = bdtune.trial(defended(home).id, out=home, store=f"{made[1]}/")
    assert known.model() is not None
    assert len(known.verdicts().kept)


def test_the_environment_moves_no_sweep_that_was_begun(home, made, monkeypatch):
    monkeypatch.setenv("BDTUNE_STORE", "other")
    assert store_at(home).name == "other"
    assert {trial.status for trial in sweep_report.report("toy", home).result.trials} == {"done"}
    plan = sweep.plan(str(home / "toy.yaml"), ["seed=0"], home)[1]
    assert all(count.cached == count.unique for count in plan.stages.values())


def test_a_sweep_goes_to_another_store_with_an_export(home, made, tmp_path, s3, monkeypatch):
    monkeypatch.setenv("BDTUNE_CACHE", str(tmp_path / "copies"))
    export_sweep(home / "sweeps" / "toy", home, tmp_path / "out", keep=["model", "verdicts"])
    keys = [file.name for file in (tmp_path / "out" / "store").iterdir()]
    assert len(keys) == 5  # three classifiers, a subset, a verdict
    there, address = tmp_path / "there", s3.new_address()
    assert import_sweep(tmp_path / "out", there, address).results == 5
    assert store_of(there / "sweeps" / "toy") == address
    assert not (there / "store").exists()
    other = Store(address)
    assert sorted(other.every_key()) == sorted(keys)
    assert all(other.has(key) for key in keys), "other processes see them by the log"
    assert not other.costs(), "what another machine took predicts nothing here"
    before = Store(made[1])
    assert all(other.contents(key) == before.contents(key) for key in keys)
    assert (there / "sweeps" / "toy" / MANIFESTS).is_dir()
    own = defended(there)
    assert bdtune.trial(own.id, out=there).verdicts().kept.tolist()
    [check] = verify(there / "sweeps" / "toy", there, sample=1, quiet=True)
    assert check.verdict == "equal"


def test_a_damaged_result_is_found_wherever_it_lies(home, made, tmp_path):
    from tests.engine.places import Stand

    key = defended(home).stages["classifier"].key
    stand = Stand(made[1], tmp_path / "caches")
    [name] = [name for name in stand.store().contents(key) if name.endswith("safetensors")]
    content = stand.store().contents(key)[name]
    stand.damage(key, name, lambda _: content[:-1] + b"?")
    try:
        checks = verify(home / "sweeps" / "toy", home, quiet=True)
        [bad] = [check for check in checks if not check.good]
        assert (bad.first.role, bad.first.what) == ("classifier", "damaged")
        stand.damage(key, name, lambda _: None)
        known = find_trial(bad.trial, home)
        from bdtune.verbs.same import _damage

        assert "cannot be read" in _damage(known, known.manifest(key))
        assert not stand.graves(), "nothing is moved"
    finally:
        _mend(stand, key, name, content)


def _mend(stand, key, name, content):
    place = stand.place
    if isinstance(stand.root, str):
        attempt = place.objects.get(f"entries/{key}").content.partition(b"\n")[0].decode()
        place.objects.put(f"payloads/{key}/{attempt}/{name}", content)
    else:
        (place.folder(key) / name).write_bytes(content)


def test_two_runs_that_begin_at_once_cannot_part(tmp_path):
    file = tmp_path / "toy.yaml"
    file.write_text(SPACE)
    spec = load_sweep(str(file), [])
    assert claim(tmp_path, spec, tmp_path / "one").folder.name == "toy"
    with pytest.raises(UserError, match=r"where 'toy' began"):
        claim(tmp_path, spec, tmp_path / "two")
    with pytest.raises(UserError, match=r"where 'toy' began"):
        claim(tmp_path, spec)
    assert store_of(claim(tmp_path, spec, tmp_path / "one").folder) == tmp_path / "one"


def test_a_start_that_was_killed_at_once_takes_no_name(tmp_path):
    (tmp_path / "toy.yaml").write_text(SPACE)
    folder = tmp_path / "sweeps" / "toy"
    folder.mkdir(parents=True)
    (folder / STORE).write_text("s3://bucket/x\n")  # and nothing else
    place = claim(tmp_path, load_sweep(str(tmp_path / "toy.yaml"), []))
    assert (place.name, store_of(place.folder)) == ("toy", tmp_path / "store")


def test_a_sweep_of_the_run_directorys_own_store_stays_there(tmp_path, bdtune):
    computed(tmp_path / "runs", "seed=0", only=1)
    assert not (tmp_path / "runs" / "sweeps" / "toy" / STORE).exists()
    shutil.move(tmp_path / "runs", tmp_path / "moved")  # its own store goes with it
    code, out, _ = bdtune("report", "toy", "--json", "--out", "moved")
    assert "done" in {trial["status"] for trial in json.loads(out)["trials"]}
    code, _, err = bdtune("sweep", "moved/toy.yaml", "seed=0", "--out", "moved", "--store", "s3://bucket/x")
    assert code == 2
    assert f"expected {tmp_path / 'moved' / 'store'}, where 'toy' began" in " ".join(err.split())


def test_each_sweep_of_a_campaign_that_began_elsewhere_is_named(tmp_path):
    trial = "{dataset: tiny, attack: {name: badnets, rate: 0.2}, defense: toy, model: linear}"
    (tmp_path / "c.yaml").write_text(f"""
name: both
sweeps:
  - {{name: levels, trial: {trial}, grid: {{defense.prefix.level: [0, 1]}}}}
  - {{name: betas, trial: {trial}, grid: {{defense.beta: [0.3, 0.5]}}}}
""")
    from bdtune.config.campaign import load_campaign

    for name, spec in zip(("one", "two"), load_campaign(str(tmp_path / "c.yaml"), []).sweeps, strict=True):
        claim(tmp_path, spec, tmp_path / name)
    with pytest.raises(UserError) as wrong:
        campaign_plan.plan(str(tmp_path / "c.yaml"), [], tmp_path, store=str(tmp_path / "three"))
    assert ["'levels' began" in line or "'betas' began" in line for line in wrong.value.lines()] == [True] * 2
    with pytest.raises(UserError, match=r"'betas' began"):
        campaign_plan.plan(str(tmp_path / "c.yaml"), [], tmp_path)  # one store for all


def test_how_to_repeat_a_failed_trial_names_its_store(home, made):
    ledger, _ = sweep.make_ledger(settings_of(home / "sweeps" / "toy"), Store(made[1]))
    entry = ledger.add(settings_of(home / "sweeps" / "toy").trial)
    line = watching.leave_failed(home / "sweeps" / "toy", ledger, entry.id)
    assert line.endswith(f"--out {home} --store {made[1]}")
