"""The tables of what rules choose and of how defenses rank, in every form."""

from __future__ import annotations

import csv
import io

import pytest

from bdtune.report import comparison, forms, table
from bdtune.report.groups import grouped
from bdtune.report.ranking import ranking_of
from bdtune.report.rules import picks
from bdtune.report.selection import selected
from tests.report.compared import baseline, trial

EVIL = "zap<script>_&"
TRIALS = [
    *(
        trial(defense, attack, seed, der - seed / 100, knobs={"k": k}, select_acc=k / 10, select_der=der)
        for defense, best in (("toy", 0.95), (EVIL, 0.8))
        for attack in ("badnets", "blend")
        for k, der in ((1, best), (2, 0.5))
        for seed in (0, 1)
    ),
    trial("single", "badnets", der=0.7, select_acc=0.4, select_der=0.5),
    trial("broken", "badnets", status="failed"),
    baseline(),
    baseline("blend"),
]
RESULT = selected("s", TRIALS, "oracle_der")


def rules():
    return comparison.rules_table("s", TRIALS)


def ranking():
    return comparison.ranking_table("s", ranking_of([RESULT]))


def test_a_block_for_each_contest_with_the_oracle_on_top():
    shown = rules()
    assert [column.name for column in shown.columns] == [
        "defense", "case", "rule", "setting", "tied", "der", "acc", "asr", "gap",
    ]  # fmt: skip
    first = shown.rows[:5]
    assert [row.cells[:4] for row in first] == [
        ("toy", "badnets", "oracle der", "k=1"),
        ("", "", "select_acc", "k=2"),
        ("", "", "select_acc_stable", "k=2"),
        ("", "", "select_der", "the same"),
        ("", "", "select_der_stable", "the same"),
    ]
    assert [row.cells[-1] for row in first] == ["-", "0.450", "0.450", "0.000", "0.000"]
    assert [row.starts for row in shown.rows] == [i > 0 and i % 5 == 0 for i in range(20)]
    assert [row.kind for row in first] == ["best", "", "", "", ""]


def test_the_notes_sum_the_gaps_up_and_name_what_has_none():
    notes = "\n".join(rules().notes)
    assert "select_acc: gap 0.375 in mean over 4, at most 0.450 (toy on badnets)" in notes
    assert "one setting or none with a result, so nothing to choose: broken, single" in notes


def test_the_undefended_row_stands_apart_and_what_is_not_ranked_below():
    shown = ranking()
    assert [(row.cells[0], row.kind, row.starts) for row in shown.rows] == [
        ("undefended", "undefended", False),
        ("toy", "best", True),
        (EVIL, "", False),
        ("single", "not_taken", True),
    ]
    assert [column.group for column in shown.columns if column.group] == [
        "honest", "honest", "honest", "oracle", "oracle", "stability", "stability", "stability",
    ]  # fmt: skip
    notes = "\n".join(shown.notes)
    assert "single is not ranked, its numbers are over fewer: it lacks blend (no trial)" in notes
    assert "not ranked, without a result to compare: broken (failed)" in notes
    assert "honest: select_der chooses the settings; oracle: oracle_der, by test data" in notes
    assert "toy loses most with k=2 on badnets: 0.450, seed 0" in notes
    assert "not the same seeds: toy 0, 1" in notes


def test_defenses_that_lack_the_same_share_a_line():
    trials = [trial("whole", attack, der=0.5) for attack in ("x", "y")]
    trials += [trial(name, "x", der=0.9) for name in ("a", "b")]
    shown = comparison.ranking_table("s", ranking_of([selected("s", trials, "oracle_der")]))
    assert "not ranked, as numbers are over fewer: a, b; they lack y (no trial)" in shown.notes


def test_one_setting_each_needs_no_second_score():
    trials = [trial(name, attack, der=der) for name, der in (("a", 0.9), ("b", 0.8)) for attack in ("x", "y")]
    shown = comparison.ranking_table("s", ranking_of([selected("s", trials, "oracle_der")]))
    assert {column.group for column in shown.columns} == {"", "der"}
    assert "each defense has one setting, so that any rule chooses the same" in shown.notes
    assert "stability unknown, as no knob varies: a, b" in shown.notes


def test_an_oracle_is_named_where_no_honest_rule_was_measured():
    trials = [trial(knobs={"k": k}, der=der) for k, der in ((1, 0.9), (2, 0.5))]
    shown = comparison.ranking_table("s", ranking_of([selected("s", trials, "oracle_der")]))
    assert [column.name for column in shown.columns][2] == "oracle"
    assert any("no honest rule was measured" in note for note in shown.notes)
    notes = comparison.rules_table("s", trials).notes
    assert "no honest rule was measured: set holdout, holdout_clean or both" in notes


@pytest.mark.parametrize("made", [rules, ranking])
def test_every_form_can_be_written_and_no_name_is_markup(made):
    shown = made()
    for width in (80, 120):
        lines = table.plain(shown, width).splitlines()
        assert max(map(len, lines)) <= width
    assert EVIL not in forms.html(shown)
    assert "zap&lt;script&gt;_&amp;" in forms.html(shown)
    assert r"zap\textless{}script\textgreater{}\_\&" in forms.latex(shown)
    assert table.markdown(shown).count("| ") > 20


def test_the_csv_has_all_digits():
    rows = list(
        csv.DictReader(io.StringIO(comparison.csv_text(comparison.flat_picks(picks(grouped(TRIALS))))))
    )
    assert len(rows) == 20
    assert float(rows[1]["gap"]) == pytest.approx(0.45)
    assert rows[0]["trials"].split() == ["toy-badnets-1-0", "toy-badnets-1-1"]
    ranked = list(
        csv.DictReader(io.StringIO(comparison.csv_text(comparison.flat_ranking(ranking_of([RESULT])))))
    )
    assert [row["defense"] for row in ranked] == ["toy", EVIL, "single", "broken"]
    assert ranked[0]["tuned_by"] == "select_der"
    assert float(ranked[0]["stability"]) == pytest.approx(0.55)
    assert ranked[2]["lacks"] == "blend: no trial"


def test_a_report_has_the_tables_that_it_has_something_for():
    assert list(comparison.of_sweep(RESULT)) == [comparison.RULES, comparison.RANKING]
    plain = selected("s", [trial(knobs={"k": k}) for k in (1, 2)], "oracle_der")
    assert comparison.of_sweep(plain) == {}
    assert comparison.of_sweep(selected("s", [], "oracle_der")) == {}
