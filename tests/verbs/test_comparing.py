"""`bdtune report --rules` and `--ranking`: of a sweep, of a campaign, in any form, and from Python."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
import yaml
from typer.testing import CliRunner

import bdtune
from bdtune.cli import app
from bdtune.config.campaign import load_campaign
from bdtune.errors import UserError
from bdtune.plugins.attack import Attack
from bdtune.report import files
from bdtune.trials.sweep_folder import SWEEPS
from tests.verbs.computing import SPACE, computed, plugins

pytestmark = pytest.mark.xdist_group("computed_home")


def prepared(patch):
    """Let the toys be found, and count their weak attack as one that took."""
    plugins(patch)
    patch.setattr(Attack, "asr_band", property(lambda _: 0.1))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a run directory with a sweep of a defense and a campaign of that sweep alone."""
    with pytest.MonkeyPatch.context() as patch:
        prepared(patch)
        home = tmp_path_factory.mktemp("home")
        computed(home)
        file = home / "all.yaml"
        file.write_text(yaml.safe_dump({"name": "all", "sweeps": [yaml.safe_load(SPACE)]}))
        folder = home / SWEEPS / "all"
        folder.mkdir()
        (folder / "campaign.yaml").write_text(yaml.safe_dump(load_campaign(file).to_dict(), sort_keys=False))
    return home


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    prepared(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def home(made, tmp_path):
    """Return a copy of it, to be written into."""
    return shutil.copytree(made, tmp_path / "home")


def report(home, *words):
    done = CliRunner().invoke(app, ["report", *words, "--out", str(home)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.stdout


def ders(home):
    """Return mean der and select_acc of both settings, as the sweep's trials have them."""
    trials = [t for t in files.read(home / SWEEPS / "toy").trials if not t.is_baseline]
    found = {}
    for quality in (1.0, 0.5):
        own = [t.metrics for t in trials if t.params["defense.tail.quality"] == quality]
        found[quality] = {name: sum(m[name] for m in own) / len(own) for name in ("der", "select_acc")}
    return found


def test_what_each_rule_chooses_is_computed_from_the_trials(home):
    told = json.loads(report(home, "toy", "--rules", "--json"))["toy"]
    by_rule = {row["rule"]: row for row in told}
    assert set(by_rule) == {f"{r}{end}" for r in ("select_acc", "select_der") for end in ("", "_stable")} | {
        "oracle_der"
    }
    numbers = ders(home)
    best = max(row["der"] for row in numbers.values())
    chosen = max(numbers.values(), key=lambda row: row["select_acc"])
    assert by_rule["oracle_der"]["der"] == pytest.approx(best)
    assert by_rule["select_acc"]["gap"] == pytest.approx(best - chosen["der"])
    rows = list(csv.DictReader(io.StringIO(report(home, "toy", "--rules", "--format", "csv"))))
    assert [row["rule"] for row in rows] == list(by_rule)
    assert "what rules choose, beside the oracle" in report(home, "toy", "--rules")
    assert r"\toprule" in report(home, "toy", "--rules", "--format", "latex")
    assert report(home, "toy", "--rules", "--format", "html").startswith("<!doctype html>")


def test_the_ranking_is_that_of_the_sweep_in_every_form(home):
    told = json.loads(report(home, "toy", "--ranking", "--json"))
    (only,) = told["defenses"]
    assert (told["rule"], only["defense"], only["ranked"], only["settings"]) == ("select_acc", "toy", True, 2)
    numbers = ders(home)
    chosen = max(numbers.values(), key=lambda row: row["select_acc"])
    assert only["tuned"]["worst"] == pytest.approx(chosen["der"])
    assert only["stability"]["compared"] == 2
    shown = report(home, "toy", "--ranking", "--sort", "stability")
    assert "best first by stability" in shown
    (row,) = csv.DictReader(io.StringIO(report(home, "toy", "--ranking", "--format", "csv")))
    assert float(row["tuned_mean"]) == pytest.approx(chosen["der"])
    assert "## toy: ranking of defenses" in report(home, "toy", "--ranking", "--format", "markdown")


def test_a_report_and_its_files_have_them_too(home):
    told = json.loads(report(home, "toy", "--json"))
    assert told["rules"][0]["rule"] == "oracle_der"
    assert told["ranking"]["defenses"][0]["defense"] == "toy"
    text = report(home, "toy")
    assert "gap to oracle_der: select_acc" in text.replace("\n", " ")
    assert "stability " in text
    page = (home / SWEEPS / "toy" / "report.md").read_text()
    assert "## toy: what rules choose, beside the oracle" in page
    assert "ranking of defenses" not in page  # there is one


def test_a_campaign_is_ranked_over_its_sweeps(home):
    told = json.loads(report(home, "all", "--json"))
    assert [each["defense"] for each in told["ranking"]["defenses"]] == ["toy"]
    assert told["rules"] == json.loads(report(home, "toy", "--json"))["rules"]
    assert "all: ranking of defenses" in report(home, "all", "--ranking")
    assert "toy: what rules choose" in report(home, "all", "--rules")
    assert "ranking of defenses" in (home / SWEEPS / "all" / "report.md").read_text()


def test_the_tables_take_no_other_options(home):
    for words in (["--rules", "--ranking"], ["--rules", "--sort", "der"], ["--ranking", "--rows", "attack"]):
        with pytest.raises(UserError, match="prints a table of its own"):
            report(home, "toy", *words)
    with pytest.raises(UserError, match="expected one of worst, mean"):
        report(home, "toy", "--ranking", "--sort", "wrst")


def test_from_python(home):
    swept = bdtune.report("toy", out=home)
    rules = swept.rules()
    assert list(rules["rule"])[:2] == ["oracle_der", "select_acc"]
    assert rules["gap"].min() == pytest.approx(0.0)
    ranked = swept.ranking(swept, sort="mean")  # its trials count once
    assert list(ranked["defense"]) == ["toy"]
    assert ranked.equals(swept.ranking(sort="mean"))
