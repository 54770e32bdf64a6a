"""The page is one file without a network, in which no name is markup, and its figures are files as well."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from PIL import Image

from bdtune.config.sweep import Published, SweepSpec, TableLayout
from bdtune.config.trial import TrialSpec
from bdtune.engine.manifest import Cost, Manifest
from bdtune.report.page.build import Inputs, write
from bdtune.report.selection import selected
from bdtune.trials.results import DataUse, StageUse, TrialResult
from tests.report.compared import trial as made_up

if TYPE_CHECKING:
    from pathlib import Path

EVIL = "<script>alert(1)</script>&\"'$x$"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Reads a page: its elements with attributes, its text, and whether what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def trial(attack, beta, form, seed, **changes) -> TrialResult:
    params = {
        "dataset": "digits", "attack": attack, "defense": "toy", "defense.beta": beta, "defense.form": form,
        "model": "linear", "seed": seed, "numerics.device": "cpu", "numerics.precision": "fp32",
    }  # fmt: skip
    asr = min(1.0, beta + seed / 50)
    metrics = {
        "acc": 0.9 - beta / 10,
        "asr": asr,
        "der": 1 - asr / 2,
        "undefended/asr": 1.0,
        "undefended/acc": 0.9,
    }
    values = {
        "status": "done",
        "metrics": metrics,
        "stages": {"train": StageUse("a" * 16, seed == 0, 12.0), "evaluate": StageUse("b" * 16, True, 1.0)},
        "curves": {
            "train": [{"epoch": e, "loss": 1 / e, "acc": 1 - 1 / e, "seconds": 1.0} for e in (1, 2, 3)]
        },
        "data": DataUse(f"digits + {attack}", "d" * 16, samples=100, poisoned=10, covered=0, clean=0),
        "baseline_id": f"ref-{attack}-{seed}",
        "asr_band": 0.9,
    }
    ident = f"{attack}-{beta}-{form}-{seed}"
    return TrialResult(id=ident, params=params, **{**values, **changes})


def reference(attack, seed) -> TrialResult:
    params = {"dataset": "digits", "attack": attack, "defense": "none", "model": "linear", "seed": seed}
    return TrialResult(
        f"ref-{attack}-{seed}", "done", params, {"acc": 0.9, "asr": 1.0}, is_baseline=True, asr_band=0.9
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def inputs(folder) -> Inputs:
    trials = [reference(attack, seed) for attack in ("badnets", "blend") for seed in (0, 1)]
    trials += [
        trial(attack, beta, form, seed)
        for attack in ("badnets", "blend")
        for beta in (0.1, 0.6, 0.9)
        for form in ("plain", EVIL)
        for seed in (0, 1)
    ]
    trials.append(trial("blend", 0.3, "plain", 0, status="failed", metrics={}, error=f"Traceback\n{EVIL}"))
    spec = SweepSpec(
        name="small", description=f"What is {EVIL}?", trial=TrialSpec(),
        published=(Published(params={"attack": "badnets"}, metrics={"acc": 0.5}, source=EVIL),),
        table=TableLayout(rows=("attack",), columns=("defense.form",), caption=EVIL),
    )  # fmt: skip
    picture = folder / "best-badnets-attack.png"
    Image.new("RGB", (8, 8)).save(picture)
    made = Manifest("a" * 16, "toy.train", "train", {}, "", {}, {}, Cost(1.0, 0), host=EVIL, commit="abc123")
    return Inputs(spec, selected("small", trials, "oracle_der"), manifests=[made], pictures=[picture])


@pytest.fixture(scope="module")
def page(inputs, folder) -> tuple[Page, list, str]:
    files = write(inputs, folder / "small")
    text = files[0].read_text(encoding="utf-8")
    return Page(text), files, text


def test_every_element_is_closed_and_every_part_is_there(page):
    read, _, _ = page
    assert read.open == []
    heads = re.findall(r"<h2>(.*?)</h2>", page[2])
    assert heads == [
        "What was asked", "The lesson", "Tables", "Accuracy against attack success", "What each setting does",
        "Pairs of settings", "All settings at once", "Epochs", "Cost", "Pictures of attacks and defenses",
        "Provenance",
    ]  # fmt: skip
    anchors = {attrs["id"] for attrs in read.of("section")}
    assert {attrs["href"] for attrs in read.of("a")} == {f"#{anchor}" for anchor in anchors}
    assert all(text in read.text for text in ("abc123", "d" * 16, "mean ± standard deviation over seeds"))


def test_nothing_is_fetched(page):
    read, _, text = page
    sources = [attrs["src"] for attrs in read.of("img")]
    assert len(sources) >= 7
    assert all(source.startswith("data:image/") for source in sources)
    used = {tag for tag, _ in read.elements}
    assert not used & {"script", "link", "iframe", "object", "embed", "video", "audio", "base", "form"}
    named = [
        value
        for _, attrs in read.elements
        for key, value in attrs.items()
        if key in ("src", "href", "srcset")
    ]
    assert all(value.startswith(("data:", "#")) for value in named)
    assert "url(" not in text
    assert "@import" not in text
    [policy] = [a["content"] for a in read.of("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert any(a.get("name") == "viewport" for a in read.of("meta"))


def test_no_name_is_markup(page):
    read, _, text = page
    assert "<script" not in text
    assert "script" not in {tag for tag, _ in read.elements}
    assert read.text.count(EVIL) >= 6  # description, caption, column, source, error, host
    assert not any(key.startswith("on") for _, attrs in read.elements for key in attrs)


def test_every_picture_is_embedded_named_and_a_file_as_well(page):
    read, files, _ = page
    embedded = {base64.b64decode(attrs["src"].partition(",")[2]) for attrs in read.of("img")}
    on_disk = {file.read_bytes() for file in files[1:]}
    assert on_disk < embedded  # and the picture of the attack
    assert {file.parent.name for file in files[1:]} == {"figures"}
    assert {file.stem for file in files[1:]} == {
        "tradeoff-1", "tradeoff-2", "effects", "pair-1", "pair-2", "pair-3", "parallel", "costs",
        "epochs-1", "epochs-2",
    }  # fmt: skip
    for file in files[1:]:
        assert ET.parse(file).getroot().tag.endswith("svg")
        assert file.name in read.text
    assert all(attrs["alt"] for attrs in read.of("img"))


def test_the_same_results_give_the_same_bytes_and_old_figures_go(inputs, page, tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/pair-9.svg").write_text("old")
    assert [file.read_bytes() for file in write(inputs, tmp_path)] == [file.read_bytes() for file in page[1]]
    assert not (tmp_path / "figures/pair-9.svg").exists()


def test_a_sweep_without_results_has_a_page_that_says_so(inputs, tmp_path):
    pending = [
        trial("badnets", beta, "plain", 0, status="pending", metrics={}, stages={}, curves={})
        for beta in (1, 2)
    ]
    result = selected("small", pending, "oracle_der")
    [file] = write(Inputs(inputs.spec, result), tmp_path / "none")
    read = Page(file.read_text(encoding="utf-8"))
    assert "not run" in read.text
    assert "Not all trials have a result: 2 pending of 2." in read.text
    assert read.of("img") == []


def test_several_defenses_are_ranked_and_honest_rules_stand_beside_the_oracle(inputs, tmp_path):
    trials = [
        made_up(defense, der=der, knobs={"k": k}, select_acc=k / 10)
        for defense, best in (("toy", 0.9), (EVIL, 0.8))
        for k, der in ((1, best), (2, 0.5))
    ]
    result = selected("small", trials, "oracle_der")
    text = write(replace(inputs, result=result, pictures=()), tmp_path)[0].read_text(encoding="utf-8")
    read = Page(text)
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads[2:5] == ["Tables", "What rules choose", "Ranking of defenses"]
    assert {"what-rules-choose", "ranking-of-defenses"} <= {attrs["id"] for attrs in read.of("section")}
    assert "select_acc: gap 0.350 in mean over 2, at most 0.400 (toy)" in read.text
    assert "honest: select_acc chooses the settings" in read.text
    assert "<script>alert" not in text
