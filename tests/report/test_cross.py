"""Tables as data: which trials a cell has, what stands beside them, and why a cell has no number."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from statistics import fmean, stdev

import pytest

from bdtune.config.sweep import Published, TableLayout
from bdtune.errors import UserError
from bdtune.report import cross, cross_table
from bdtune.report.cross_axes import asked_layout
from bdtune.report.groups import grouped
from bdtune.report.selection import selected
from bdtune.trials.results import SweepResult, TrialResult

ASR = {
    ("badnets", "lfd"): (0.02, 0.04),
    ("badnets", "abl"): (0.10, 0.30),
    ("blend", "lfd"): (0.50, 0.50),
    ("blend", "abl"): (0.05, 0.15),
}


def trial(attack, defense, seed=0, status="done", *, asr=0.0, band=0.9, **knobs) -> TrialResult:
    baseline = defense == "none"
    metrics = {"acc": 0.9, "asr": asr, "der": 1 - asr / 2, "undefended/asr": 0.99}
    params = {"dataset": "digits", "attack": attack, "defense": defense, "seed": seed, **knobs}
    ident = "-".join(map(str, (*params.values(), status)))
    metrics = metrics if status == "done" else {}
    return TrialResult(ident, status, params, metrics, is_baseline=baseline, asr_band=band)


@pytest.fixture
def result() -> SweepResult:
    trials = [trial(attack, "none", seed, asr=0.99) for attack in ("badnets", "blend") for seed in (0, 1)]
    trials += [trial(*at, seed, asr=asr) for at, both in ASR.items() for seed, asr in enumerate(both)]
    return selected("s", trials, "oracle_der")


def cell(table, row, column, metric="asr") -> cross.Cell:
    [line] = [line for line in table.lines if line.labels == row]
    return line.cells[cross.heads(table).index((column, metric))]


def test_a_cell_is_the_mean_and_spread_over_the_seeds_of_its_row_and_column(result):
    table = cross.build(result, TableLayout(rows=("attack",), columns=("defense",)))
    assert [line.labels for line in table.lines] == [("badnets",), ("blend",)]
    assert table.columns == ("undefended", "lfd", "abl")  # in the order of the sweep, not of the alphabet
    for (attack, defense), values in ASR.items():
        found = cell(table, (attack,), defense)
        assert (found.ours.mean, found.ours.std, found.ours.n) == (fmean(values), stdev(values), 2)
    assert cell(table, ("blend",), "undefended").ours.mean == 0.99
    assert cell(table, ("badnets",), "lfd").best
    assert cell(table, ("blend",), "abl").best
    assert not cell(table, ("blend",), "lfd").best


def test_the_shape_follows_from_what_varies(result):
    assert cross.build(result) == cross.build(result, TableLayout(rows=("attack",), columns=("defense",)))
    knobs = [trial("badnets", "lfd", asr=beta / 10, **{"defense.beta": beta}) for beta in (1, 2)]
    table = cross.build(selected("s", knobs, "oracle_der"))
    assert (table.row_names, [line.labels for line in table.lines]) == (("beta",), [("1",), ("2",)])


def test_no_cell_mixes_what_a_defender_does_not_choose():
    """The layout forgets the rate and the pattern: rows are told apart by them all the same."""
    trials = [
        trial("badnets", "lfd", asr=rate, **{"attack.rate": rate, "attack.pattern": pattern})
        for rate in (0.1, 0.2)
        for pattern in ("grid", "square")
    ]
    trials.append(trial("blend", "lfd", asr=0.3, **{"attack.rate": 0.1}))
    result = selected("s", trials, "oracle_der")
    table = cross.build(result, TableLayout(rows=("attack",), columns=("defense",)))
    assert len(table.lines) == 5
    assert cell(table, ("badnets pattern=square rate=0.2",), "lfd").ours.mean == 0.2
    named = cross.build(result, TableLayout(rows=("attack.rate",), columns=("defense",)))
    assert {line.labels for line in named.lines} >= {("badnets pattern=grid", "0.1"), ("blend", "0.1")}


def test_a_knob_that_follows_from_what_is_named_makes_no_row():
    trials = [
        trial("dynamic", "lfd", asr=rate, **{"attack.rate": rate, "attack.cover": rate})
        for rate in (0.1, 0.2)
    ]
    table = cross.build(
        selected("s", trials, "oracle_der"), TableLayout(rows=("attack", "attack.rate"), columns=("defense",))
    )
    assert [line.labels for line in table.lines] == [("dynamic", "0.1"), ("dynamic", "0.2")]


def best_of(table) -> set[tuple[tuple[str, ...], str]]:
    """Return where a table's best numbers are: the labels of the row and the head of the column."""
    heads = cross.heads(table)
    return {
        (line.labels, heads[i][0]) for line in table.lines for i, own in enumerate(line.cells) if own.best
    }


def test_the_best_is_that_of_an_attack_wherever_defenses_stand(result):
    across = cross.build(result, TableLayout(rows=("defense",), columns=("attack",), cells=("asr",)))
    assert best_of(across) == {(("lfd",), "badnets"), (("abl",), "blend")}
    listed = cross.build(result, TableLayout(rows=("attack", "defense"), cells=("asr",)))
    assert {labels for labels, _ in best_of(listed)} == {("badnets", "lfd"), ("blend", "abl")}


def test_no_attack_is_the_best():
    trials = [trial(attack, "lfd", asr=asr) for attack, asr in (("badnets", 0.1), ("blend", 0.2))]
    found = selected("s", trials, "oracle_der")
    assert not best_of(cross.build(found, TableLayout(rows=("defense",), columns=("attack",))))


def test_of_knobs_along_both_sides_one_setting_is_the_best():
    asrs = {(0.1, 1): 0.3, (0.1, 2): 0.2, (0.2, 1): 0.1, (0.2, 2): 0.4}
    trials = [
        trial("badnets", "lfd", asr=asr, **{"defense.alpha": alpha, "defense.beta": beta})
        for (alpha, beta), asr in asrs.items()
    ]
    layout = TableLayout(rows=("defense.alpha",), columns=("defense.beta",), cells=("asr",))
    assert best_of(cross.build(selected("s", trials, "oracle_der"), layout)) == {(("0.2",), "beta=1")}


def test_what_did_not_take_is_no_best():
    trials = [trial("wanet", "none", asr=0.4)]
    trials += [
        replace(one, metrics={**one.metrics, "undefended/asr": 0.4})
        for one in (trial("wanet", "lfd", asr=0.1), trial("wanet", "abl", asr=0.2))
    ]
    found = cross.build(
        selected("s", trials, "select_acc"), TableLayout(columns=("defense",), cells=("asr",))
    )
    assert all(own.ours is not None for line in found.lines for own in line.cells)
    assert not best_of(found)


def test_of_several_settings_the_best_is_shown_or_their_mean():
    trials = [trial("badnets", "lfd", asr=asr, **{"defense.beta": asr}) for asr in (0.4, 0.2)]
    result = selected("s", trials, "oracle_der")
    layout = TableLayout(rows=("attack",), columns=("defense",))
    best = cross.build(result, layout)
    assert cell(best, ("badnets",), "lfd").ours.mean == 0.2
    assert any("best by oracle der" in note and "no defender has" in note for note in best.notes)
    mean = cross.build(result, layout.model_copy(update={"of": "mean"}))
    stat = cell(mean, ("badnets",), "lfd").ours
    assert (round(stat.mean, 9), stat.n) == (0.3, 2)
    assert stat.std == pytest.approx(stdev((0.4, 0.2)))


def test_of_equal_settings_it_shows_the_one_that_is_marked_best():
    trials = [trial("badnets", "lfd", asr=0.2, **{"defense.beta": beta}) for beta in (2, 1)]
    result = selected("s", trials, "oracle_der")
    table = cross.build(result, TableLayout(rows=("attack",), columns=("defense",)))
    assert cell(table, ("badnets",), "lfd").trials == (result.best,)


PAPER = [
    Published(
        params={"attack": "badnets", "defense": "lfd"},
        metrics={"asr": 0.0, "undefended/asr": 1.0},
        source="LfD, table 2",
    ),
    Published(params={"attack": "badnets", "defense": "abl"}, metrics={"asr": 0.25}, source="LfD, table 2"),
]


def test_a_published_number_stands_beside_ours_and_a_difference_beyond_the_spread_is_marked(result):
    table = cross.build(result, published=PAPER)
    lfd, abl = (cell(table, ("badnets",), name) for name in ("lfd", "abl"))
    assert lfd.published == 0.0  # a zero is a number
    assert (lfd.difference, lfd.beyond_spread) == (pytest.approx(0.03), True)  # spread 0.014
    assert (abl.difference, abl.beyond_spread) == (pytest.approx(-0.05), False)  # spread 0.141
    assert cell(table, ("badnets",), "undefended").published == 1.0
    assert cell(table, ("blend",), "lfd").published is None
    neutral = cross_table.neutral(table)
    row = dict(zip([(c.group, c.name) for c in neutral.columns], neutral.rows[0].cells, strict=True))
    assert row["abl", "diff"] == "-0.050"
    assert row["lfd", "diff"] == "+0.030*"
    assert "paper: LfD, table 2" in table.notes


def test_without_a_spread_no_difference_is_judged(result):
    one = selected("s", [t for t in result.trials if t.params["seed"] == 0], "oracle_der")
    table = cross.build(one, published=PAPER)
    assert not any(c.beyond_spread for line in table.lines for c in line.cells)
    assert "one seed: no spread is known" in table.notes
    assert any("none is marked without a spread" in note for note in table.notes)


@pytest.mark.parametrize(
    ("trials", "reason"),
    [
        ([("pending", {})], "not run"),
        ([("failed", {})], "failed"),
        ([("diverged", {})], "diverged"),
        ([("stopped", {})], "stopped"),
        ([("done", {"defense.beta": 1}), ("done", {"defense.beta": 2})], "not taken"),
        ([], "not asked"),
    ],
)
def test_a_cell_without_a_number_says_why(trials, reason):
    own = [trial("blend", "lfd", status=status, band=2.0, **knobs) for status, knobs in trials]
    others = [trial("badnets", "lfd", asr=0.1), trial("badnets", "abl"), trial("blend", "abl")]
    table = cross.build(selected("s", [*others, *own], "oracle_der"))
    assert cell(table, ("blend",), "lfd").missing == reason
    assert any(note.startswith(f"{reason}, 2 cells: {cross.REASONS[reason]}") for note in table.notes)
    texts = [text for row in cross_table.neutral(table).rows for text in row.cells]
    assert all(texts), "no silent hole"


def test_the_caller_may_know_why_a_trial_was_not_run():
    waiting = trial("blend", "lfd", status="pending")
    result = selected("s", [trial("badnets", "lfd"), waiting], "oracle_der")
    table = cross.build(
        result, TableLayout(rows=("attack",), columns=("defense",)), why={waiting.id: "no data"}
    )
    assert cell(table, ("blend",), "lfd").missing == "no data"
    assert "no data, 2 cells: the data set is not at hand" in table.notes


def test_what_cannot_be_measured_is_said():
    trials = [trial("badnets", "lfd", asr=0.1), trial("none", "lfd"), trial("badnets", "none", asr=1.0)]
    trials = [replace(t, metrics={"acc": 0.9}) if t.params["attack"] == "none" else t for t in trials]
    trials = [replace(t, metrics={"acc": 0.9, "asr": 1.0}) if t.is_baseline else t for t in trials]
    layout = TableLayout(rows=("attack",), columns=("defense",), cells=("acc", "asr", "der", "gssd/x"))
    table = cross.build(selected("s", trials, "oracle_der"), layout)
    assert cell(table, ("no attack",), "lfd").missing == "no attack"
    assert cell(table, ("badnets",), "lfd", "gssd/x").missing == "unmeasured"
    assert cell(table, ("badnets",), "undefended", "der").missing == "no defense"
    assert cell(table, ("no attack",), "undefended").missing == "not asked"


def test_an_attack_that_did_not_take_and_missing_seeds_are_marked():
    trials = [
        trial("badnets", "lfd", asr=0.1),
        trial("badnets", "lfd", 1, "failed"),
        trial("blend", "lfd", band=2.0),
    ]
    table = cross.build(
        selected("s", trials, "oracle_der"), TableLayout(rows=("attack",), columns=("defense",))
    )
    neutral = cross_table.neutral(table)
    assert [row.cells[1] for row in neutral.rows] == ["0.900‡", "0.900†"]
    assert {note[0] for note in table.notes} >= {"†", "‡"}


def test_summaries_leave_out_the_row_without_an_attack_and_say_what_is_missing(result):
    clean = [trial("none", name, seed) for name in ("lfd", "abl") for seed in (0, 1)]
    clean = [replace(t, metrics={"acc": 0.1}) for t in clean]
    broken = [t for t in result.trials if (t.params["attack"], t.params["defense"]) != ("blend", "abl")]
    layout = TableLayout(rows=("attack",), columns=("defense",), summary=("mean", "worst"))
    table = cross.build(selected("s", [*broken, *clean], "oracle_der"), layout, published=PAPER)
    assert [line.labels[0] for line in table.lines][-2:] == ["mean", "worst case"]
    assert cell(table, ("mean",), "lfd").ours.mean == pytest.approx((0.03 + 0.5) / 2)
    assert cell(table, ("worst case",), "lfd").ours.mean == 0.5
    assert cell(table, ("worst case",), "lfd", "acc").ours.mean == 0.9
    assert cell(table, ("mean",), "abl").missing == "1 of 2"
    assert cell(table, ("mean",), "lfd").published is None  # the paper's has one of two


def test_rows_of_one_data_set_are_a_part_with_its_own_summary(result):
    other = [replace(t, id=f"{t.id}'", params={**t.params, "dataset": "mnist"}) for t in result.trials]
    layout = TableLayout(rows=("dataset", "attack"), columns=("defense",), summary=("mean",))
    table = cross.build(selected("s", [*result.trials, *other], "oracle_der"), layout)
    assert [line.labels for line in table.lines if line.starts] == [
        ("digits", "mean"), ("mnist", "badnets"), ("mnist", "mean"),
    ]  # fmt: skip
    assert [row.cells[0] for row in cross_table.neutral(table).rows].count("mnist") == 2


def test_json_and_csv_hold_all_digits_and_every_cell(result):
    table = cross.build(result, published=PAPER)
    value = cross.to_json(table)
    assert len(value["cells"]) == 2 * 3 * 2
    [entry] = [
        e for e in value["cells"]
        if (e["row"], e["column"], e["metric"]) == ({"attack": "badnets"}, "lfd", "asr")
    ]  # fmt: skip
    assert (entry["mean"], entry["n"], entry["published"]) == (fmean((0.02, 0.04)), 2, 0.0)
    assert (entry["beyond_spread"], len(entry["trials"])) == (True, 2)
    rows = list(csv.DictReader(io.StringIO(cross_table.csv_text(table))))
    [row] = [r for r in rows if (r["attack"], r["defense"], r["metric"]) == ("badnets", "lfd", "asr")]
    assert float(row["mean"]) == fmean((0.02, 0.04))
    assert (row["beyond_spread"], row["missing"]) == ("true", "")


def test_percentages_are_of_fractions_only(result):
    trials = [replace(t, metrics={**t.metrics, "lfd/count": 3.0}) for t in result.trials]
    layout = TableLayout(rows=("attack",), columns=("defense",), cells=("asr", "lfd/count"), percent=True)
    neutral = cross_table.neutral(cross.build(selected("s", trials, "oracle_der"), layout, published=PAPER))
    row = dict(zip([(c.group, c.name) for c in neutral.columns], neutral.rows[0].cells, strict=True))
    assert (row["lfd", "asr %"], row["lfd", "diff"]) == ("3.00±1.41", "+3.00*")
    assert row["lfd", "lfd/count"] == "3.000±0.000"


def test_a_narrow_terminal_gets_blocks_of_whole_columns(result):
    whole = cross_table.neutral(cross.build(result))
    assert cross_table.blocks(whole, 200) == [whole]
    narrow = cross_table.blocks(whole, 40)
    assert [sorted({c.group for c in block.columns} - {""}) for block in narrow] == [
        ["undefended"],
        ["lfd"],
        ["abl"],
    ]
    assert [(bool(block.title), bool(block.notes)) for block in narrow] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert narrow[1].rows[0].cells[0] == "badnets"
    assert {c for block in narrow for row in block.rows for c in row.cells} == {
        c for r in whole.rows for c in r.cells
    }
    assert any(row.bold for row in narrow[1].rows)


def test_summary_rows_go_where_the_command_line_moves_attacks_out_of_the_rows(result):
    groups = grouped(result.trials)
    layout = TableLayout(rows=("attack",), columns=("defense",), summary=("mean", "worst"))
    nothing = {"rows": None, "columns": None, "cells": None}
    moved = asked_layout(layout, groups, **{**nothing, "rows": ["defense"], "columns": ["attack"]})
    assert moved.summary == ()
    for kept in (nothing, {**nothing, "cells": ["der"]}, {**nothing, "rows": ["attack"]}):
        assert asked_layout(layout, groups, **kept).summary == ("mean", "worst")


def test_the_command_lines_shape_replaces_the_files(result):
    groups = grouped(result.trials)
    layout = TableLayout(rows=("attack",), columns=("defense",), percent=True)
    changed = asked_layout(layout, groups, rows=["defense"], columns=None, cells=["der"])
    assert (changed.rows, changed.columns, changed.cells, changed.percent) == (
        ("defense",),
        (),
        ("der",),
        True,
    )
    with pytest.raises(UserError) as caught:
        asked_layout(layout, groups, rows=["atack"], columns=["defnse"], cells=["ac"])
    assert [(p.path, p.hint) for p in caught.value.problems] == [
        ("--rows", "Did you mean 'attack'?"),
        ("--columns", "Did you mean 'defense'?"),
        ("--cells", "Did you mean 'acc'?"),
    ]
