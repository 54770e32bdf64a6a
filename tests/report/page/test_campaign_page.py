"""The page of a campaign: one file without a network, that links to the pages of its sweeps."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from bdtune.cli import app
from bdtune.report.campaign import Member
from bdtune.report.page.campaign import campaign_lesson
from bdtune.report.page.costs import sharing_sentence, sweep_cost_table, sweep_costs
from bdtune.report.selection import selected
from bdtune.trials.results import StageUse, TrialResult
from bdtune.verbs import campaign as verb
from tests.report.page.test_page import EVIL, Page
from tests.verbs.campaigning import TWO, made_up

YAML_EVIL = json.dumps(EVIL)  # as YAML reads it


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def told(home):
    """What `bdtune report both --html --json` prints."""
    with pytest.MonkeyPatch.context() as patch:
        text = TWO.replace("Two sweeps for a test.", YAML_EVIL).replace(
            "caption: Every attack", f"caption: {YAML_EVIL}"
        )
        run = made_up(patch, home)
        run(text=text, asr=lambda params: params["defense.beta"] * params.get("attack.rate", 1.0))
        done = CliRunner().invoke(app, ["report", "both", "--html", "--json", "--out", str(home)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def page(told, home):
    text = (home / "sweeps/both/report.html").read_text(encoding="utf-8")
    return Page(text), text


def test_every_part_is_there_and_closed(page):
    read, text = page
    assert read.open == []
    assert re.findall(r"<h2>(.*?)</h2>", text) == [
        "What was asked", "The lesson", "Sweeps", "Tables", "Ranking of defenses",
        "Accuracy against attack success", "Cost", "Provenance",
    ]  # fmt: skip
    assert "bdtune campaign both" in read.text
    assert "Every setting of levels" in read.text
    assert "times as long" in read.text


def test_it_links_to_the_page_of_each_sweep(page, told, home):
    read, _ = page
    links = [str(attrs["href"]) for attrs in read.of("a")]
    others = [link for link in links if not link.startswith("#")]
    assert others == ["../betas/report.html", "../levels/report.html"]
    pages = [(home / "sweeps/both" / link).resolve() for link in others]
    assert all(file.is_file() for file in pages)
    assert [str(file) for file in pages] == told["sweeps"]
    assert {link[1:] for link in links if link.startswith("#")} == {a["id"] for a in read.of("section")}


def test_nothing_is_fetched_and_no_name_is_markup(page):
    read, text = page
    used = {tag for tag, _ in read.elements}
    assert not used & {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form"}
    assert all(str(attrs["src"]).startswith("data:image/") for attrs in read.of("img"))
    assert "url(" not in text
    assert "<script" not in text
    assert read.text.count(EVIL) >= 2  # description and caption
    assert str(verb.__file__) not in text


def test_its_figures_are_files_too(told, home):
    files = {file.name for file in (home / "sweeps/both/figures").glob("*.svg")}
    assert {name.rpartition("/")[2] for name in told["figures"]} == files
    assert {"tradeoff-1.svg", "costs.svg"} <= files


def trial(ident, attack, defense, uses, der=0.5, **metrics) -> TrialResult:
    params = {"dataset": "digits", "attack": attack, "defense": defense, "seed": 0}
    stages = {role: StageUse(key, computed=True, seconds=seconds) for role, key, seconds in uses}
    return TrialResult(ident, "done", params, {"acc": 0.9, "asr": 0.1, "der": der, **metrics}, stages)


def test_costs_count_a_stage_of_several_sweeps_once():
    a = trial("a", "badnets", "lfd", [("train", "k1", 30.0), ("tail", "k2", 10.0)])
    b = trial("b", "badnets", "abl", [("train", "k1", 30.0), ("tail", "k3", 5.0)])
    results = {"one": selected("one", [a], "oracle_der"), "two": selected("two", [a, b], "oracle_der")}
    one, two = sweep_costs(results)
    assert (one.stages, one.added, one.alone_s, one.added_s) == (2, 2, 40.0, 40.0)
    assert (two.stages, two.added, two.alone_s, two.added_s) == (3, 1, 45.0, 5.0)
    text = sharing_sentence([one, two], selected("c", [a, b], "oracle_der"))
    assert "take 45.0 s" in text
    assert "1 min 25 s (1.89 times as long)" in text
    assert "1 min 15 s if no two trials shared anything (1.67 times)" in text
    assert sweep_cost_table([one, two]).rows[1].cells == ("two", "3", "1", "45.0 s", "5.0 s")
    nothing = selected("c", [], "oracle_der")
    assert sharing_sentence(sweep_costs({"one": nothing}), nothing) == "Nothing was computed yet."


def test_the_lesson_is_about_all_sweeps_and_those_of_another_rule_are_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("BDTUNE_DATA", str(tmp_path))
    from bdtune.config.load import load_sweep

    spec = load_sweep(None, ["dataset=digits", "attack=badnets", "defense=lfd", "model=resnet18"])
    trials = {
        "one": [trial("a", "badnets", "lfd", [], der=0.9)],
        "two": [trial("b", "badnets", "abl", [], der=0.6)],
        "seen": [trial("c", "badnets", "strip", [], der=0.5, **{"strip/auroc": 0.8})],
    }
    rules = {"seen": "oracle_strip/auroc"}
    members = []
    for name, own in trials.items():
        select = spec.select.model_copy(update={"metric": rules.get(name, "oracle_der")})
        named = spec.model_copy(update={"name": name, "select": select})
        members.append(Member(name, named, selected(name, own, select.metric), tmp_path))
    lines = campaign_lesson(members)
    assert "oracle der (it reads test data that no defender has) is defense=lfd" in lines[0]
    assert not any("strip" in line for line in lines[:2])
    apart = [line for line in lines if line.startswith("seen: ")]
    assert "strip/auroc" in apart[0]
    assert any("settings fail" in line for line in lines)
    assert not any("fail" in line for line in apart)  # its classifier is the undefended one
