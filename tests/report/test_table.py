from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from bdtune.config.sweep import Reference
from bdtune.engine.results import SweepResult
from bdtune.report import table
from bdtune.report.table import build


def cells(shown, row):
    return dict(zip([column.name for column in shown.columns], shown.rows[row].cells, strict=True))


def test_rows_and_columns(sweep):
    shown = build(sweep)
    assert [column.name for column in shown.columns] == ["beta_nd", "status", "n", "acc", "asr", "ra", "der"]
    assert [row.kind for row in shown.rows] == ["undefended", "", "failed", "best"]
    assert cells(shown, 0)["status"] == "undefended"
    assert cells(shown, 0)["beta_nd"] == "-"
    assert cells(shown, 0)["acc"] == "0.985±0.007"
    assert cells(shown, 2) == {
        "beta_nd": "1.5", "status": "1 done, 1 diverged", "n": "1",
        "acc": "0.990", "asr": "0.000", "ra": "0.900", "der": "1.000",
    }  # fmt: skip
    assert cells(shown, 3)["asr"] == "0.010±0.014"
    assert shown.title == "sweep small: digits, badnets, gssd, resnet18"


def test_notes_name_the_rule_the_stages_the_seeds_and_the_failures(sweep):
    notes = "\n".join(build(sweep).notes)
    assert "best: max oracle der = 0.985" in notes
    assert "no defender has" in notes
    assert "stages: 9 computed, 3 shared; 1 min 30 s spent, 1 min 0 s saved" in notes
    assert "n: how many of the seeds 0, 1 have a result; mean ± standard deviation" in notes
    assert "diverged half1: nan" in notes
    assert "no defender has" not in "\n".join(build(replace(sweep, metric="select_acc")).notes)
    single = replace(sweep, trials=tuple(trial for trial in sweep.trials if trial.params["seed"] == 0))
    assert "one seed, 0: no spread is known; n: trials with a result" in build(single).notes


def test_budgets_of_epochs_stand_beside_each_other_where_they_differ(sweep):
    def with_epochs(own, other):
        return replace(
            sweep,
            trials=tuple(
                replace(t, epochs=other) if t.reference else replace(t, epochs=own, undefended_epochs=other)
                for t in sweep.trials
            ),
        )

    equal, unequal = build(with_epochs(30, 30)), build(with_epochs(30, 15))
    assert "epochs" not in [column.name for column in equal.columns]
    assert "budget" not in "\n".join(equal.notes)
    assert [cells(unequal, row)["epochs"] for row in range(4)] == ["15", "30", "30", "30"]
    assert "30 epochs with the defense, 15 without" in "\n".join(unequal.notes)
    assert with_epochs(30, 15).to_json()["trials"][0]["undefended_epochs"] == 15
    assert SweepResult.from_json(with_epochs(30, 15).to_json()) == with_epochs(30, 15)


def test_an_attack_that_did_not_take_is_said(sweep, make_reference):
    weak = [make_reference("ref0", asr=0.4)]
    defended = [
        replace(t, metrics={**t.metrics, "undefended/asr": 0.4}) for t in sweep.trials if not t.reference
    ]
    shown = build(SweepResult("weak", (*weak, *defended)))
    assert {row.kind for row in shown.rows} == {"not_taken"}
    assert cells(shown, 0)["status"] == "undefended, attack did not take"
    assert "best: none" in "\n".join(shown.notes)


def test_the_papers_numbers_stand_beside_ours(sweep):
    beside = Reference(
        params={"defense.beta_nd": 0.6, "attack.name": "badnets"},
        metrics={"acc": 0.943, "asr": 0.003},
        source="T1",
    )
    elsewhere = Reference(params={"defense.beta_nd": 7.0}, metrics={"der": 0.5}, source="T2")
    shown = build(sweep, paper=[beside, elsewhere])
    assert cells(shown, 1)["paper acc"] == "0.943"
    assert cells(shown, 3)["paper asr"] == "-"
    assert "paper der" not in [column.name for column in shown.columns]
    assert "paper: T1" in shown.notes
    assert "paper: T2" not in shown.notes


def test_a_number_without_settings_stands_beside_every_defended_row(sweep):
    trials = tuple(replace(t, metrics={**t.metrics, "gssd/found": 1.0}) for t in sweep.trials)
    everywhere = Reference(metrics={"gssd/found": 1.0}, source="K.6")
    shown = build(replace(sweep, trials=trials), paper=[everywhere])
    assert [cells(shown, row)["paper gssd/found"] for row in range(4)] == ["-", "1.000", "1.000", "1.000"]
    assert cells(shown, 3)["gssd/found"] == "1.000±0.000"
    undefended = Reference(params={"defense.name": "none"}, metrics={"acc": 0.95}, source="T")
    assert cells(build(sweep, paper=[undefended]), 0)["paper acc"] == "0.950"


def test_diagnostics_and_the_rules_own_metric_are_shown_where_present(sweep):
    trials = tuple(
        replace(t, metrics={**t.metrics, "select_acc": 0.9, "gssd/kept": 0.5}) for t in sweep.trials
    )
    shown = build(replace(sweep, trials=trials), diagnostics=["gssd/kept", "gssd/none"])
    names = [column.name for column in shown.columns]
    assert names[-2:] == ["select_acc", "gssd/kept"]


def test_a_long_table_keeps_references_and_the_best(make_trial, make_reference):
    trials = [make_trial(f"t{i}", asr=1 - i / 200, knobs={"k": float(i)}) for i in range(200)]
    shown = build(SweepResult("long", (make_reference("r"), *trials), best="t199"), limit=10)
    assert len(shown.rows) == 11
    assert shown.rows[0].kind == "undefended"
    assert shown.rows[-1].kind == "best"
    assert [row.cells[0] for row in shown.rows[1:]] == [str(i) for i in range(190, 200)]
    assert "not shown: 190 settings" in shown.notes[0]


def test_plain_text_is_aligned(sweep):
    lines = table.plain(build(sweep)).splitlines()
    at = lines[2].index("asr")
    assert all(line[at - 8 : at + 3].strip() for line in lines[4:8])
    assert lines[4].startswith("      -  undefended")


def test_a_narrow_terminal_loses_the_least_important_columns_first(sweep):
    wide = build(sweep)
    full = sum(wide.widths()) + 3 * len(wide.columns)
    assert wide.narrowed(full) == wide
    narrow = wide.narrowed(full - 1)
    assert [column.name for column in narrow.columns] == ["beta_nd", "status", "n", "acc", "asr", "der"]
    assert narrow.notes[-1] == "no room for: ra"
    assert wide.narrowed(1).columns == narrow.columns


def test_on_a_terminal(sweep):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, force_terminal=True, width=100, color_system="standard").print(
        table.rich_table(build(sweep), 100)
    )
    text = out.getvalue()
    assert "\x1b[1;32m" in text  # the best row
    assert "\x1b[31m" in text  # the failed one
    assert "0.970±0.014" in text


def test_markdown(sweep):
    text = table.markdown(build(sweep))
    assert "| beta_nd | status | n | acc | asr | ra | der |" in text
    assert "| ---: | --- | ---: |" in text
    assert "| **3** | **best** | **2** |" in text
    assert "- stages: 9 computed" in text


def test_csv_has_full_precision(sweep):
    rows = list(csv.DictReader(io.StringIO(table.csv_text(sweep))))
    assert len(rows) == 4
    assert rows[0]["undefended"] == "true"
    assert float(rows[3]["acc"]) == pytest.approx(0.97, abs=1e-15)
    assert rows[2]["acc:std"] == ""
    assert rows[3]["best"] == "true"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (59.94, "59.9 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, text):
    assert table.duration(seconds) == text


def test_an_empty_sweep_has_a_table():
    assert "sweep none" in table.plain(build(SweepResult("none")))
