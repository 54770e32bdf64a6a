"""Tables at the width of a page: 80 columns show status and the decisive numbers of every row."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from bdtune.report import table
from bdtune.report.fit import fitted, total, widths
from bdtune.report.selection import selected
from bdtune.report.table import Column, Row, Table, build

BASE = {"alpha_c": 0.3, "alpha_p": 0.15, "beta_d": 0.05, "beta_nd": 1.5, "lambda": 0.05}
ONE_FACTOR = [
    {}, {"alpha_c": 0.15}, {"alpha_p": 0.4}, {"beta_nd": 4.0}, {"lambda": 0.75},
    {"lambda": 0.75, "beta_d": 0.01},
]  # fmt: skip


@pytest.fixture
def vary(make_trial, make_baseline):
    """A sweep as gssd.yaml: five knobs, one factor at a time, two seeds."""
    trials = [
        make_trial(
            f"{i}.{seed}", seed, asr=i / 10, knobs={f"defense.{k}": v for k, v in (BASE | knobs).items()}
        )
        for i, knobs in enumerate(ONE_FACTOR) for seed in (0, 1)
    ]  # fmt: skip
    return selected("gssd", [*trials, make_baseline("r0", 0), make_baseline("r1", 1)], "oracle_der")


@pytest.fixture
def search(make_trial):
    """A search: each trial has its own values of four knobs."""
    trials = [
        make_trial(
            str(i),
            asr=i / 40,
            knobs={
                "defense.beta_d": 0.005 * 1.1234567**i, "defense.beta_nd": 0.5 + i / 7.0,
                "defense.retrain.epochs": 10 + i, "defense.alpha_c": (0.15, 0.3)[i % 2],
            },
        )
        for i in range(20)
    ]  # fmt: skip
    return selected("searched", trials, "oracle_der")


def heads(shown):
    return [column.name.replace("\n", "") for column in shown.columns]


def written(shown, width):
    """The lines of a table on a terminal and elsewhere."""
    out = io.StringIO()
    Console(file=out, width=width).print(table.rich_table(shown, width))
    return [*out.getvalue().splitlines(), *table.plain(shown, width).splitlines()]


@pytest.mark.parametrize("name", ["vary", "search"])
@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_too_long_and_status_and_decisive_numbers_stay(name, width, request):
    shown = build(request.getfixturevalue(name))
    lines = written(shown, width)
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
    assert {"status", "acc", "asr", "der"} <= set(heads(fitted(shown, width)))
    assert sum("best" in line.split() for line in lines) == 2


def test_knobs_share_a_column_that_names_only_what_differs(vary):
    narrow = fitted(build(vary), 80)
    assert heads(narrow)[:2] == ["setting", "status"]
    texts = {row.cells[0].replace("\n", " ") for row in narrow.rows}
    two = {"lambda 0.75", "beta_d 0.01, lambda 0.75"}
    assert texts == {"-", "base", "alpha_c 0.15", "alpha_p 0.4", "beta_nd 4", *two}
    base = "base: alpha_c 0.3, alpha_p 0.15, beta_d 0.05, beta_nd 1.5, lambda 0.05"
    assert base in narrow.title.replace("\n", " ")


def test_values_that_no_row_shares_are_all_named(search):
    narrow = fitted(build(search), 50)
    assert "base:" not in narrow.title
    own = ["alpha_c 0.3,", "beta_d 0.00562,", "beta_nd 0.643,", "epochs 11"]
    assert narrow.rows[1].cells[0].split("\n") == own


def test_a_wide_page_changes_nothing(vary):
    wide = build(vary)
    assert fitted(wide, 200) == wide
    assert heads(wide)[:6] == ["alpha_c", "alpha_p", "beta_d", "beta_nd", "lambda", "status"]


def test_heads_take_two_lines_before_a_column_is_left_out():
    shown = Table("t", (Column("a_long_name"), Column("status", numeric=False)), (Row(("1", "done")),))
    narrow = fitted(shown, total(widths(shown)) - 1)
    assert narrow.columns[0].name == "a_\nlong_\nname"
    assert "a_long_name" not in table.plain(narrow)
    assert [line.split() for line in table.plain(narrow).splitlines()[2:5]] == [
        ["a_", "status"],
        ["long_"],
        ["name"],
    ]


def test_the_least_important_columns_go_first_and_are_named(sweep):
    wide = build(sweep)
    narrow = fitted(wide, total(widths(wide)) - 14)
    assert heads(narrow) == ["beta_nd", "status", "n", "acc", "asr", "der"]
    assert narrow.notes[-1].startswith("no room for: ra;")
    assert heads(fitted(wide, 1)) == ["setting", "status", "n", "acc", "asr", "der"]


def test_long_numbers_are_rounded_as_far_as_they_stay_apart(make_trial):
    def cells(*values):
        trials = [make_trial(str(v), knobs={"defense.eps": v}) for v in values]
        return [row.cells[0] for row in build(selected("s", trials, "oracle_der", "max")).rows]

    assert cells(1 / 255, 2 / 255, 4 / 255) == ["0.00392", "0.00784", "0.0157"]
    assert cells(0.123456, 0.123498) == ["0.12346", "0.1235"]
    assert cells(0.123456789, 0.1234567891) == ["0.123457", "0.123457"]
    assert cells(1234.5, 2.0) == ["2", "1234.5"]


def test_baselines_of_several_defenses_say_whose_they_are(make_trial, make_baseline):
    def baseline(name, epochs):
        made = make_baseline(name)
        return replace(made, epochs=epochs, params={**made.params, "defense.train.epochs": epochs})

    trials = [
        make_trial(name, knobs={"defense": name}, baseline_id=of, epochs=2)
        for name, of in (("abl", "long"), ("lfd", "short"), ("aabl", "short"))
    ]
    two = [baseline("long", 30), baseline("short", 20)]
    shown = build(selected("s", [*trials, *two], "oracle_der"))
    status = [row.cells[heads(shown).index("status")] for row in shown.rows[:2]]
    assert status == ["undefended, for aabl, lfd", "undefended, for abl"]
    one = build(selected("s", [*(replace(t, baseline_id="long") for t in trials), two[0]], "oracle_der"))
    assert one.rows[0].cells[heads(one).index("status")] == "undefended"


def learning_rates(make_trial, make_baseline, count):
    """Settings that differ in the learning rate of the classifier, so that each has its own baseline."""
    trials = []
    for i in range(count):
        made = make_baseline(f"r{i}", asr=1.0 if i else 0.3)
        trials.append(replace(made, params={**made.params, "defense.train.lr": 0.1 / (i + 1)}))
        knobs = {"defense.retrain.lr": 0.1 / (i + 1)}
        trials.append(make_trial(str(i), knobs=knobs, baseline_id=f"r{i}", asr=i / 10))
    return build(selected("s", trials, "oracle_der"))


def test_a_baseline_shows_the_knob_that_tells_its_settings_from_others(make_trial, make_baseline):
    assert [row.cells[:2] for row in learning_rates(make_trial, make_baseline, 2).rows] == [
        ("0.05", "undefended"), ("0.1", "undefended, attack did not take"), ("0.1", "best"), ("0.05", "done"),
    ]  # fmt: skip


def test_many_baselines_share_a_row(make_trial, make_baseline):
    shown = learning_rates(make_trial, make_baseline, 6)
    assert [row.kind for row in shown.rows].count("undefended") == 1
    assert shown.rows[0].cells[:2] == ("-", "undefended, 6 trainings")
    assert shown.rows[0].cells[heads(shown).index("asr")] == "0.883"
    assert len(shown.rows) == 7
    assert not any(note.startswith("not shown") for note in shown.notes)


def test_an_undefended_trial_under_its_attacks_band_says_so(make_trial):
    """A sweep of attacks without a defense has no baselines: each trial is its own."""
    trial = make_trial("a", asr=0.2, knobs={"defense": "none"})
    trial = replace(trial, metrics={"acc": 0.9, "asr": 0.2})
    assert build(selected("s", [trial], "oracle_der")).rows[0].kind == "not_taken"


def test_a_long_head_is_broken_and_named_whole_where_it_has_no_room():
    names = ["paper seconds/flows+density", "gssd/target_d", "paper undefended/acc"]
    columns = tuple(Column(name, spare=rank) for rank, name in enumerate(names))
    shown = Table("t", columns, (Row(("0.5",) * 3),))
    narrow = fitted(shown, 25)
    assert [column.name for column in narrow.columns] == [
        "paper\nseconds/\nflows+\ndensity",
        "gssd/\ntarget_\nd",
    ]
    assert narrow.notes[-1].replace("\n", " ").startswith("no room for: paper undefended/acc;")
