"""The command line as a user meets it: what is printed where, exit statuses, nothing written in vain."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from bdtune import cli
from bdtune.config.load import load_sweep
from bdtune.config.sweep import sweep_to_dict
from bdtune.plugins import registry
from bdtune.verbs import show

ROOT = Path(__file__).parents[1]
TRIAL = ("dataset=tiny", "attack=badnets", "attack.rate=0.2", "model=linear", "defense=toy")
HEAVY = ("torch", "ray", "mlflow", "optuna", "pandas", "matplotlib", "sklearn")

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Work in an empty folder, with the toy plugins, at a known width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parent / "plugins"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    for name in ("BDTUNE_DATA", "BDTUNE_HOME", "BDTUNE_STORE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def python(code: str, *, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=os.environ,
    )


def written(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


# --------------------------------------------------------------------------- light and quick


@pytest.mark.parametrize(
    "words", [["--help"], ["list"], ["list", "search-spaces", "--json"], ["sweep", "--help"]]
)
def test_help_and_list_load_nothing_heavy(words):
    code = f"""
import sys
sys.argv = ["bdtune", *{words!r}]
from bdtune.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)
"""
    done = python(code)
    assert done.stderr.strip().splitlines()[-1] == "[]"
    assert done.stdout


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_nothing_heavy_is_loaded_before_a_sweep_starts_ray(verb):
    code = f"""
import os, sys
from bdtune.cluster import sweep
from bdtune.trials import speed
speed._measured, speed._operations = lambda *_: 1e9, lambda *_: 1e6
speed._weight_bytes = lambda *_: 1e5
def loaded():
    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr, flush=True)
    os._exit(0)
sweep._run_on_ray = lambda *_: loaded()
sys.argv = ["bdtune", {verb!r}, "gssd.yaml"]
from bdtune.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
loaded()
"""
    assert python(code).stderr.strip().splitlines()[-1] == "[]"


@pytest.mark.slow
def test_run_works_without_ray_mlflow_and_optuna(own_folder):
    code = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "mlflow", "optuna"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
sys.argv = ["bdtune", "run", *{TRIAL!r}, "--json", "--quiet"]
from bdtune.cli import main
main()
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"] == "done"


# -------------------------------------------------------------------------------------- help


def commands():
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        for inner, each in getattr(command, "commands", {}).items():
            yield (name, inner), each
        if not hasattr(command, "commands"):
            yield (name,), command


@pytest.mark.parametrize(
    ("words", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands()]
)
def test_help_has_examples_that_are_real(bdtune, monkeypatch, words, command):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = bdtune(*words, "--help")
    assert code == 0
    examples = re.findall(r"^ +(?:\w+=\S+ )?bdtune (.+?) *$", out, re.MULTILINE)
    assert examples, "no example"
    for example in examples:
        verb, *rest = example.partition(" >")[0].split()
        target = typer.main.get_command(cli.app).commands[verb]
        if hasattr(target, "commands"):
            target, rest = target.commands[rest[0]], rest[1:]
        assert target.make_context(verb, rest)  # raises when an option or argument is wrong
    assert all(parameter.help for parameter in command.params), "an option without a word about it"
    assert max(map(len, out.splitlines())) <= 80


def test_the_version_is_said(bdtune):
    code, out, _ = bdtune("--version")
    assert code == 0
    assert re.fullmatch(r"bdtune \d+\.\d+\.\d+\n", out)


# ----------------------------------------------------------------------------- list and show


@pytest.mark.parametrize("kind", registry.KINDS)
def test_list_names_all_with_what_they_are(bdtune, kind):
    code, out, _ = bdtune("list", kind, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows] == registry.names(kind)
    assert all(set(row) == {"name", "summary", "source"} and row["summary"] for row in rows)


def test_list_without_a_kind_lists_every_kind(bdtune):
    found = json.loads(bdtune("list", "--json")[1])
    assert list(found) == list(show.KINDS)
    code, out, _ = bdtune("list")
    assert code == 0
    assert all(kind in out for kind in show.KINDS)


@pytest.mark.parametrize("columns", [80, 120])
def test_long_texts_are_wrapped_and_complete(bdtune, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    for words in (["list"], ["show", "defense", "gssd"]):
        assert max(map(len, bdtune(*words)[1].splitlines())) <= columns
    out = " ".join(bdtune("list", "search-spaces")[1].split())
    assert "The default sweep" in out


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in ("attacks", "defenses", "datasets", "models") for name in registry.names(kind)],
)
def test_every_knob_is_shown_with_its_meaning(kind, name):
    found = show.shown(kind, name)
    assert found.summary
    assert [row.path for row in found.knobs if not row.about] == []
    assert len({row.path for row in found.knobs}) == len(found.knobs)


def test_show_prints_knobs_source_and_presets(bdtune, own_folder):
    code, out, err = bdtune("show", "attack", "badnets", "dataset=tiny", "-o", "new/grid.png")
    assert code == 0
    assert "rate_basis" in out
    assert "source: BadNets" in out
    assert "gssd/badnets" in out
    picture = own_folder / "new" / "grid.png"
    assert str(picture) in err
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_show_as_json_holds_every_knob(bdtune, own_folder):
    shown = json.loads(bdtune("show", "defense", "gssd", "--json")[1])
    assert set(shown) == {"name", "summary", "source", "knobs", "presets"}
    paths = {row["path"] for row in shown["knobs"]}
    assert {"beta_nd", "simclr.epochs", "lambda"} <= paths
    assert written(own_folder) == []


# -------------------------------------------------------------------------------------- plan


def test_a_plan_counts_and_writes_nothing(bdtune, own_folder):
    code, out, err = bdtune("plan", *TRIAL, "defense.beta=0.2,0.5", "seed=0,1", "--json")
    plan = json.loads(out)
    assert (code, err) == (0, "")
    assert plan["trials"] == 4
    assert plan["stages"]["toy_prefix"]["unique"] == 2
    assert plan["stages"]["toy_prefix"]["without_sharing"] == 4
    assert plan["stages"]["toy_prefix"]["cached"] == 0
    assert set(plan["seconds"]) == {"shared", "unshared"}
    assert written(own_folder) == []
    code, out, _ = bdtune("plan", *TRIAL)
    assert code == 0
    assert "1 trial and 1 baseline\n" in out
    assert written(own_folder) == []


def test_the_shipped_default_sweep_plans_anywhere(bdtune):
    plan = json.loads(bdtune("plan", "gssd.yaml", "--json")[1])
    assert plan["trials"] >= 20
    assert plan["stages"]["simclr"]["unique"] == 2


# --------------------------------------------------------------------------------------- run


def test_run_prints_a_trial_and_takes_it_from_the_store_again(bdtune, own_folder):
    code, out, err = bdtune("run", *TRIAL)
    assert code == 0
    assert "undefended" in out
    assert "2/2 trials" in err
    code, out, err = bdtune("run", *TRIAL, "--json", "-q")
    trial = json.loads(out)
    assert (code, err) == (0, "")
    assert trial["status"] == "done"
    assert trial["error"] is None
    assert trial["params"]["defense.beta"] == 0.5
    assert {"acc", "asr", "asr_all", "ra", "der", "undefended/acc", "undefended/asr"} <= set(trial["metrics"])
    use = trial["stages"]["classifier"]
    assert set(use) == {"key", "computed", "seconds", "bytes", "read", "fetched", "served"}
    assert use["bytes"] > 0
    assert sorted(path.name for path in own_folder.iterdir()) == ["bdtune-runs"]


def test_a_trial_that_fails_ends_with_3_and_says_why(bdtune):
    code, out, err = bdtune("run", *TRIAL, "defense.tail.trouble=raise", "--json")
    assert code == 3
    trial = json.loads(out)
    assert trial["status"] == "failed"
    assert "told to fail" in trial["error"]
    assert "in cause" in err  # where, in the plugin's own code


def test_a_trial_that_diverges_ends_with_3_without_a_traceback(bdtune):
    code, out, err = bdtune("run", *TRIAL, "defense.tail.trouble=diverge")
    assert code == 3
    assert "diverged" in out
    assert "loss is nan" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=lambda sent: sent.name)
def test_an_interrupt_ends_with_130_and_says_how_to_go_on(bdtune, monkeypatch, sent):
    from bdtune.verbs import run as verb

    monkeypatch.setattr(verb, "run", lambda *_, **__: signal.raise_signal(sent))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a script
    code, _, err = bdtune("run", *TRIAL)
    signal.signal(signal.SIGINT, before)
    assert code == 130
    assert err == "interrupted; the same command goes on from here\n"


def test_the_machines_fault_is_told_in_plain_words(bdtune, monkeypatch):
    from bdtune.verbs import run as verb

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verb, "run", full)
    code, _, err = bdtune("run", *TRIAL)
    assert code == 1
    assert err == "error: [Errno 28] No space left on device\n"


# ------------------------------------------------------------------------------- wrong input

WRONG = [
    (["list", "attack5"], "Did you mean 'attacks'?"),
    (["show", "attack", "badnet"], "Did you mean 'badnets'?"),
    (["sweep", *TRIAL, "--store", "memory://x"], "--store: expected a folder or a bucket"),
    (["plan", *TRIAL, "--store", "s4://bucket/x"], "Did you mean 's3'?"),
    (["run", *TRIAL, "--store", "s3://"], "--store: expected an address such as s3://bucket/prefix"),
    (["show", "search-spaces", "gssd"], "expected one of attack, defense, dataset, model"),
    (["show", "model", "linear", "width=3"], "settings and a picture are for attacks only"),
    (["show", "model", "linear", "-o", "x.png"], "settings and a picture are for attacks only"),
    (
        ["show", "attack", "badnets", "dataset=tiny", "attack.rate=7"],
        "expected a number from 0 to 1 or null, got 7",
    ),
    (["show", "attack", "badnets", "dataset=cifar10"], "data_root"),
    (["show", "attack", "badnets", "dataset=tiny", "-o", "file/x.png"], "cannot be written"),
    (["plan", "gsd.yaml"], "Did you mean 'gssd'?"),
    (["plan", "gssd.yaml", "gssd.yaml"], "expected key=value"),
    (["plan", "=3"], "expected key=value"),
    (["plan", "nonsense=3"], "nonsense"),
    (["plan", *TRIAL, "attack.rate=2"], "expected a number from 0 to 1 or null, got 2"),
    (["plan", *TRIAL, "seed=0,0"], "seed"),
    (["plan", *TRIAL, "attack.target=9"], "attack.target"),
    (["plan", *TRIAL, "--out", "file"], "expected a folder that can be written"),
    (["plan", "file"], "file:1"),
    (["run", *TRIAL, "seed=1,2"], "'bdtune sweep' takes it"),
    (["run", *TRIAL, "dataset=cifar100"], "cifar100"),
    (["run", *TRIAL, "--out", "file/below"], "is a file"),
    (["sweep", *TRIAL, "defense.prefix.epochs=0"], "defense.prefix.epochs"),
    (["sweep", *TRIAL, "dataset=cifar10", "--download", "attack.rate=3"], "attack.rate"),
    (["sweep", *TRIAL, "--cpus", "0"], "--cpus"),
    (["report", "gssd"], "expected a sweep that was run"),
    (["report", "../../etc"], "expected a sweep that was run"),
    (["cache", "ls"], "no store at"),
    (["cache", "gc"], "--keep"),
    (["cache", "gc", "--keep", "-1"], "--keep"),
    (["ui"], "no MLflow store"),
    (["ui", "--port", "0"], "--port"),
    (["frobnicate"], "frobnicate"),
    (["sweep", "gssd.yaml", "--seeds", "3"], "seed=0,1,2"),
    (["sweep", "gssd.yaml", "--dry-run"], "bdtune plan"),
    (["plan", "gssd.yaml", "--attack", "blend"], "attack=VALUE"),
    (["plan", "gssd.yaml", "--attack=blend"], "attack=VALUE"),
    (["run", "--defense.beta_nd=2"], "defense.beta_nd=VALUE"),
    (["plan", "gssd.yaml", "--nonsense"], "No such option"),
    (["sweep", "--json"], "expected a YAML file"),
    (["plan", "runs/mine.yaml"], "no file 'runs/mine.yaml'"),
    (["plan", *TRIAL, "--out", "~nobody-here/x"], "the home of a user that exists"),
    (["doctor", "--data-root", "~nobody-here/x"], "the home of a user that exists"),
    (["sweep", *TRIAL, "--address", "127.0.0.1:1"], "expected a running Ray cluster"),
]


@pytest.mark.parametrize(
    ("words", "said"), WRONG, ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else ""
)
def test_wrong_input_ends_with_2_plain_words_and_nothing_written(bdtune, own_folder, words, said):
    (own_folder / "file").write_text("just a line\n")
    code, out, err = bdtune(*words)
    assert code == 2
    assert said in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert written(own_folder) == ["file"]


@pytest.mark.parametrize("verb", ["sweep", "plan", "run"])
def test_a_verb_alone_prints_its_help(bdtune, own_folder, verb):
    _, out, err = bdtune(verb)
    assert f"bdtune {verb}" in out + err
    assert "FILE|KEY=VALUE" in out + err
    assert written(own_folder) == []


def test_names_of_kinds_and_plugins_match_without_case(bdtune):
    assert bdtune("show", "Defense", "GSSD", "--json") == bdtune("show", "defense", "gssd", "--json")
    assert bdtune("list", "Attacks", "--json") == bdtune("list", "attacks", "--json")
    assert bdtune("plan", "GSSD.yaml", "--json")[0] == 0


@pytest.fixture
def read_only(monkeypatch):
    """Make every folder one that cannot be written, for root too."""
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != mode | os.W_OK and real(path, mode))


def test_what_only_reads_works_where_nothing_can_be_written(bdtune, own_folder, monkeypatch, request):
    assert bdtune("run", *TRIAL, "--quiet", "--json")[0] == 0
    folder = own_folder / "bdtune-runs" / "sweeps" / "s"
    folder.mkdir(parents=True)
    base = load_sweep(None, [*TRIAL, "name=s"])
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep_to_dict(base)))
    before = written(own_folder)
    request.getfixturevalue("read_only")
    code, out, _ = bdtune("plan", *TRIAL, "--json")
    assert code == 0
    assert json.loads(out)["stages"]["evaluate"]["cached"] == 2
    assert bdtune("show", "defense", "toy")[0] == 0
    assert bdtune("cache", "ls")[0] == 0
    code, out, _ = bdtune("report", "s", "--json")
    assert code == 0
    assert [trial["status"] for trial in json.loads(out)["trials"]] == ["done", "done"]
    assert bdtune("run", *TRIAL)[0] == 2  # which writes
    assert written(own_folder) == before


def test_an_older_python_is_told_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 12))
    source = (ROOT / "bdtune" / "__init__.py").read_text()
    with pytest.raises(SystemExit, match=r"^bdtune needs Python 3\.11 or newer"):
        exec(compile(source, "bdtune/__init__.py", "exec"), {"__name__": "bdtune"})


def test_all_problems_are_told_at_once(bdtune):
    code, _, err = bdtune("plan", *TRIAL, "attack.rate=2", "defense.beta=x", "attack.colour=red")
    assert code == 2
    assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 3


# ----------------------------------------------------------------- report, cache, and others


@pytest.fixture
def swept(own_folder, bdtune):
    """A sweep of one trial whose results are in the store: computed in process, without a cluster."""
    from bdtune.config.load import load_sweep
    from bdtune.config.sweep import sweep_to_dict

    spec = load_sweep(None, [*TRIAL, "numerics.device=cpu"])
    folder = own_folder / "bdtune-runs" / "sweeps" / "small"
    folder.mkdir(parents=True)
    resolved = sweep_to_dict(spec.model_copy(update={"name": "small"}))
    (folder / "sweep.yaml").write_text(yaml.safe_dump(resolved))
    assert bdtune("run", *TRIAL, "numerics.device=cpu", "-q")[0] == 0
    return folder


def test_report_prints_the_table_and_leaves_files(bdtune, swept):
    code, out, _ = bdtune("report", "small")
    assert code == 0
    assert "undefended" in out
    assert {"report.md", "report.csv", "sweep.json"} <= {file.name for file in swept.iterdir()}
    found = json.loads(bdtune("report", "small", "--json")[1])
    assert found["sweep"] == "small"
    assert {trial["status"] for trial in found["trials"]} == {"done"}
    assert {"id", "status", "params", "metrics", "stages", "error"} <= set(found["trials"][0])


def test_report_sorts_and_shortens_the_table(bdtune, swept):
    code, out, _ = bdtune("report", "small", "--sort", "acc", "--top", "1")
    assert (code, "not shown" in out) == (0, False)
    code, _, err = bdtune("report", "small", "--sort", "nonsense", "--json")
    assert (code, "--sort: expected a metric or a setting" in err) == (2, True)


def test_report_prints_settings_as_rows_and_columns_in_any_form(bdtune, swept):
    code, out, _ = bdtune("report", "small", "--table", "--cells", "acc,ra")
    assert (code, "undefended" in out, "ra" in out) == (0, True, True)
    found = json.loads(bdtune("report", "small", "--rows", "attack", "--cells", "acc", "--json")[1])
    assert {"title", "rows", "columns", "cells", "notes"} == set(found)
    assert {cell["metric"] for cell in found["cells"]} == {"acc"}
    for form, part in (
        ("latex", "\\toprule"),
        ("markdown", "| ---"),
        ("csv", "metric,mean"),
        ("html", "<table>"),
    ):
        code, out, _ = bdtune("report", "small", "--table", "--format", form)
        assert (code, part in out) == (0, True), form
    assert "\\toprule" in bdtune("report", "small", "--format", "latex")[1]
    assert not list(swept.glob("table.*"))  # its file has no table


def test_a_wrong_shape_or_form_is_said_with_the_nearest_name(bdtune, swept):
    code, _, err = bdtune("report", "small", "--rows", "atack,defense.betta", "--cells", "ac")
    assert code == 2
    assert "--rows: expected a setting that some trial has" in err
    assert "Did you mean 'attack'?" in err
    assert "Did you mean 'acc'?" in err
    assert err.count("error: ") == 3
    code, _, err = bdtune("report", "small", "--format", "latec")
    assert (code, "Did you mean 'latex'?" in err) == (2, True)


def test_a_sweep_whose_file_has_a_table_leaves_it_in_every_form(bdtune, swept):
    settings = yaml.safe_load((swept / "sweep.yaml").read_text())
    table = {"rows": ["attack"], "columns": ["defense"], "cells": ["acc"]}
    (swept / "sweep.yaml").write_text(yaml.safe_dump({**settings, "table": table}))
    assert bdtune("report", "small")[0] == 0
    assert {file.name for file in swept.glob("table.*")} == {
        "table.md",
        "table.csv",
        "table.tex",
        "table.html",
    }
    assert (swept / "table.html").read_text().startswith("<!doctype html>")


def test_report_writes_a_page_with_its_figures(bdtune, swept):
    code, out, err = bdtune("report", "small", "--html")
    assert (code, out) == (0, "")
    assert "report.html" in err
    page = (swept / "report.html").read_text()
    assert "Provenance" in page
    assert "computed by commit" in page
    found = json.loads(bdtune("report", "small", "--html", "--json")[1])
    assert found["page"].endswith("report.html")
    assert sorted(found["figures"]) == sorted(map(str, (swept / "figures").glob("*.svg")))


def test_report_says_which_sweeps_there_are(bdtune, swept):
    code, _, err = bdtune("report", "smal")
    assert code == 2
    assert "Did you mean 'small'?" in err


def test_a_finished_sweep_is_still_reported_after_gc(bdtune, swept):
    before = json.loads(bdtune("report", "small", "--json")[1])
    listed = json.loads(bdtune("cache", "ls", "--json")[1])
    assert set(listed[0]) == {"key", "stage", "bytes", "dropped", "seconds", "created"}
    derived = [row for row in listed if row["stage"].endswith((".all_samples", ".toy_threshold"))]
    small = (sum(row["bytes"] for row in derived) + 1) / 1e9
    said = json.loads(bdtune("cache", "gc", "--keep", str(small), "--dry-run", "--json")[1])
    assert len(json.loads(bdtune("cache", "ls", "--json")[1])) == len(listed)
    done = json.loads(bdtune("cache", "gc", "--keep", str(small), "--json")[1])
    assert done == said
    assert done["entries"] >= 3
    assert (
        json.loads(bdtune("report", "small", "--json")[1])["trials"][0]["metrics"]
        == before["trials"][0]["metrics"]
    )


def test_cache_why_and_verify(bdtune, swept, own_folder):
    bdtune("run", *TRIAL, "numerics.device=cpu", "defense.tail.quality=0.5", "-q")
    listed = json.loads(bdtune("cache", "ls", "--json")[1])
    first, second = (row["key"] for row in listed if row["stage"].endswith(".toy_tail"))
    code, out, _ = bdtune("cache", "why", first[:8], second, "--json")
    assert code == 0
    assert [row["path"] for row in json.loads(out)] == ["knobs.quality"]
    assert bdtune("cache", "why", first, "zzz")[0] == 2
    code, out, _ = bdtune("cache", "verify", "--json")
    assert (code, json.loads(out)["damaged"]) == (0, [])
    [payload] = (own_folder / "bdtune-runs" / "store" / "objects").glob(f"*/{first}/arrays.safetensors")
    payload.write_bytes(payload.read_bytes()[:-1])
    code, out, _ = bdtune("cache", "verify", "--json")
    assert (code, json.loads(out)["damaged"]) == (3, [first])


def test_the_last_store_that_was_named_is_the_run_directorys(bdtune, swept, own_folder, monkeypatch):
    listed = json.loads(bdtune("cache", "ls", "--json")[1])
    assert bdtune("run", *TRIAL, "defense.tail.quality=0.5", "--store", "elsewhere", "-q")[0] == 0
    assert (own_folder / "elsewhere" / "objects").is_dir()
    others = json.loads(bdtune("cache", "ls", "--json")[1])
    assert {row["key"] for row in others} != {row["key"] for row in listed}
    monkeypatch.setenv("BDTUNE_STORE", "bdtune-runs/store")
    assert json.loads(bdtune("cache", "ls", "--json")[1]) == listed
    assert json.loads(bdtune("cache", "ls", "--json", "--store", "elsewhere")[1]) == others
    code, _, err = bdtune("cache", "ls", "--store", "nowhere")
    assert (code, "no store at" in err) == (2, True)


def test_one_process_may_keep_its_store_in_memory(bdtune, own_folder):
    assert bdtune("run", *TRIAL, "--store", "memory://run", "-q")[0] == 0
    assert not list(own_folder.rglob("manifest.json"))
    assert not (own_folder / "bdtune-runs" / "store.txt").exists()


@pytest.mark.xdist_group("s3")
def test_a_store_in_a_bucket_is_found_again_reported_verified_and_cleared(
    bdtune, own_folder, swept, s3, tmp_path
):
    """The folder's results are those of the bucket."""
    before = json.loads(bdtune("report", "small", "--json")[1])
    listed = json.loads(bdtune("cache", "ls", "--json")[1])
    address = s3.new_address()
    words = (*TRIAL, "numerics.device=cpu")
    assert bdtune("run", *words, "-q", "--store", address)[0] == 0
    assert json.loads(bdtune("plan", *words, "--json")[1])["stages"]["toy_tail"]["cached"] == 1
    (swept / "store.txt").write_text(f"{address}\n")  # as if the sweep had begun there
    after = json.loads(bdtune("report", "small", "--json")[1])
    assert [trial["metrics"] for trial in after["trials"]] == [trial["metrics"] for trial in before["trials"]]
    found = json.loads(bdtune("cache", "ls", "--json")[1])
    # a training's history holds seconds, which take a digit more or less
    assert {row["key"]: row["bytes"] for row in found} == pytest.approx(
        {row["key"]: row["bytes"] for row in listed}, abs=16
    )
    [tail] = [row["key"] for row in found if row["stage"].endswith(".toy_tail")]
    from bdtune.engine.objects import open_bucket

    bucket = open_bucket(address)
    [payload] = [each.name for each in bucket.list(f"payloads/{tail}") if each.name.endswith("safetensors")]
    bucket.put(payload, b"torn")
    code, out, _ = bdtune("cache", "verify", "--json")
    assert (code, json.loads(out)["damaged"]) == (3, [tail])
    said = json.loads(bdtune("cache", "gc", "--keep", "0", "--dry-run", "--json")[1])
    assert json.loads(bdtune("cache", "gc", "--keep", "0", "--json")[1]) == said
    assert said["entries"] >= 3
    assert not list(bucket.list("payloads"))
    code, out, _ = bdtune("doctor", "--json")
    assert code == 0
    assert {f["about"]: f["text"] for f in json.loads(out)}["store"].startswith(f"{address}, can be written")
    code, out, _ = bdtune("doctor", "--json", "--store", "s3://nobody/x")
    assert code == 1
    assert "expected a bucket that exists" in out


def test_sweeps_and_trials_are_followed_up(bdtune, swept, own_folder):
    report = json.loads(bdtune("report", "small", "--json")[1])
    [listed] = json.loads(bdtune("ls", "--json")[1])
    assert (listed["sweep"], listed["done"], listed["trials"]) == ("small", 1, 1)
    assert "small" in bdtune("ls")[1]
    trial, other = (each["id"] for each in report["trials"])
    stages = json.loads(bdtune("show", "trial", trial[:8], "--json")[1])["stages"]
    assert all(Path(stage["folder"]).is_dir() for stage in stages)
    assert "classifier" in bdtune("show", "trial", trial)[1]
    assert json.loads(bdtune("diff", trial, other, "--json")[1])["settings"]
    code, out, err = bdtune("export", trial, "best", "--json")
    assert code == 0
    assert {Path(file).name for file in json.loads(out)} >= {"model.safetensors", "rows.csv"}
    assert "written to" in err
    assert bdtune("export", trial, "best")[0] == 2
    assert bdtune("export", trial, "again", "--weights")[0] == 2
    for words in (["show", "trial", "/x"], ["diff", "small", "smal"], ["verify", "smal"], ["import", "best"]):
        code, out, err = bdtune(*words)
        assert (code, out) == (2, "")
        assert "expected" in err


def test_a_sweep_that_is_exported_reports_and_verifies_elsewhere(bdtune, swept, own_folder):
    before = bdtune("report", "small", "--json")[1]
    assert bdtune("export", "small", "moved")[0] == 0
    code, _, err = bdtune("import", "moved", "--out", "there")
    assert code == 0
    assert "bdtune verify small --out" in err
    assert bdtune("report", "small", "--json", "--out", "there")[1] == before
    code, out, _ = bdtune("verify", "small", "--out", "there", "--json", "--quiet")
    assert (code, {check["verdict"] for check in json.loads(out)}) == (0, {"equal"})
    file = own_folder / "there" / "sweeps" / "small" / "sweep.json"
    raw = json.loads(file.read_text())
    raw["trials"][0]["metrics"]["acc"] += 0.5
    file.write_text(json.dumps(raw))
    code, out, _ = bdtune("verify", "small", "--out", "there", "--quiet")
    assert code == 3
    assert "all stages are equal, but the report says acc" in " ".join(out.split())


def test_sync_where_nothing_was_swept(bdtune, own_folder):
    assert bdtune("sync", "--json") == (0, "[]\n", "")
    assert bdtune("sync")[0] == 0


def test_doctor_says_what_there_is_and_writes_nothing(bdtune, own_folder):
    code, out, _ = bdtune("doctor", "--json", "--data-root", "nowhere")
    found = {finding["about"]: finding for finding in json.loads(out)}
    assert code == 0
    assert found["torch"]["severity"] == "ok"
    assert "CPU cores" in found["devices"]["text"]
    assert ("NVIDIA MPS" in found) == ("no GPU" not in found["devices"]["text"])
    assert found["data set digits"]["severity"] == "ok"
    assert found["data set cifar10"]["severity"] == "info"
    assert found["data root"]["text"].endswith("nowhere is no folder")
    assert str(own_folder) in found["run directory"]["text"]
    assert found["decoded images"]["text"].startswith(os.environ["XDG_CACHE_HOME"])
    code, out, _ = bdtune("doctor")
    assert code == 0
    assert "no problem" in out
    assert written(own_folder) == []


@pytest.mark.parametrize(
    ("runs", "severity", "text"),
    [(True, "ok", "at the same time"), (False, "info", "take turns on it; `nvidia-cuda-mps-control -d`")],
)
def test_doctor_says_what_memory_gpus_have_and_what_becomes_of_trials_that_share_one(
    bdtune, monkeypatch, own_folder, runs, severity, text
):
    import torch

    from bdtune.verbs import doctor

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Large GPU")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (60 * 10**9, 80 * 10**9))
    monkeypatch.setattr(doctor, "mps_runs", lambda: runs)
    found = {finding["about"]: finding for finding in json.loads(bdtune("doctor", "--json")[1])}
    assert "Large GPU (60 of 80 GB free)" in found["devices"]["text"]
    assert found["NVIDIA MPS"]["severity"] == severity
    assert text in found["NVIDIA MPS"]["text"]


def test_doctor_ends_with_1_when_something_needed_is_missing(bdtune, monkeypatch):
    from bdtune.verbs import doctor

    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    code, out, _ = bdtune("doctor")
    assert code == 1
    assert "!!" in out
    assert "1 problem (!!)" in out
