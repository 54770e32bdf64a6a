from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from bdtune.config.sweep import Published
from bdtune.report import table
from bdtune.report.selection import selected
from bdtune.report.table import build
from bdtune.trials.results import OracleRead, SweepResult


def cells(shown, row):
    return dict(zip([column.name for column in shown.columns], shown.rows[row].cells, strict=True))


def test_rows_and_columns(sweep):
    shown = build(sweep)
    assert [column.name for column in shown.columns] == ["beta_nd", "status", "n", "acc", "asr", "ra", "der"]
    assert [row.kind for row in shown.rows] == ["undefended", "best", "", "failed"]
    assert cells(shown, 0)["status"] == "undefended"
    assert cells(shown, 0)["beta_nd"] == "-"
    assert cells(shown, 0)["acc"] == "0.985±0.007"
    assert cells(shown, 3) == {
        "beta_nd": "1.5", "status": "1 done, 1 diverged", "n": "1",
        "acc": "0.990", "asr": "0.000", "ra": "0.900", "der": "1.000",
    }  # fmt: skip
    assert cells(shown, 1)["asr"] == "0.010±0.014"
    assert shown.title == "sweep small: digits, badnets, gssd, resnet18"


def complete(sweep):
    """The sweep without its setting that has a diverged seed."""
    return replace(sweep, trials=tuple(t for t in sweep.trials if not t.id.startswith("half")))


def test_what_is_equal_in_all_rows_is_in_the_title(sweep, make_trial):
    shown = build(complete(sweep))
    assert "n" not in [column.name for column in shown.columns]
    assert shown.title == "sweep small: digits, badnets, gssd, resnet18; seeds 0, 1"
    assert "mean ± standard deviation over seeds" in shown.notes
    clean = make_trial("c", knobs={"attack.name": "none", "defense.name": "none"})
    title = build(SweepResult("s", (clean,))).title
    assert title == "sweep s: digits, no attack, no defense, resnet18; seed 0"


def test_notes_name_the_rule_the_stages_the_seeds_and_the_failures(sweep):
    notes = "\n".join(build(sweep).notes)
    assert "best: max oracle der = 0.985" in notes
    assert "no defender has" in notes
    assert "stages: 9 computed, 3 shared; 1 min 30 s spent, 1 min 0 s saved" in notes
    assert "n: how many of the seeds 0, 1 have a result; mean ± standard deviation" in notes
    assert "diverged half1: nan" in notes
    assert "no defender has" not in "\n".join(build(replace(sweep, metric="select_acc")).notes)
    single = replace(sweep, trials=tuple(trial for trial in sweep.trials if trial.params["seed"] == 0))
    assert "one seed: no spread is known" in build(single).notes


def test_budgets_of_epochs_stand_beside_each_other_where_they_differ(sweep):
    def with_epochs(own, other):
        return replace(
            sweep,
            trials=tuple(
                replace(t, epochs=other) if t.is_baseline else replace(t, epochs=own, undefended_epochs=other)
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


def test_an_attack_that_did_not_take_is_said(sweep, make_baseline):
    weak = [make_baseline("ref0", asr=0.4)]
    defended = [
        replace(t, metrics={**t.metrics, "undefended/asr": 0.4}) for t in sweep.trials if not t.is_baseline
    ]
    shown = build(SweepResult("weak", (*weak, *defended)))
    assert {row.kind for row in shown.rows} == {"not_taken"}
    assert cells(shown, 0)["status"] == "undefended, attack did not take"
    assert "best: none" in "\n".join(shown.notes)


READS = (
    OracleRead("search", "oracle_der"),
    OracleRead("scheduler", "oracle_der"),
    OracleRead("defense.oracle_target", "0"),
)


def test_all_that_reads_test_data_is_named_though_the_selection_is_honest(sweep):
    trials = list(sweep.trials)
    trials[0] = replace(trials[0], oracle=READS[2:])
    trials[1] = replace(trials[1], oracle=READS[2:])
    shown = build(selected("s", trials, "select_acc", oracle=READS))
    [note] = [note for note in shown.notes if note.startswith("oracle")]
    assert "search by oracle_der, scheduler by oracle_der, defense.oracle_target=0" in note
    status = {cells(shown, row)["beta_nd"]: cells(shown, row)["status"] for row in range(4)}
    assert (status["0.6"], status["3"]) == ("done, oracle", "done")
    rows = list(
        csv.DictReader(io.StringIO(table.csv_text(selected("s", trials, "select_acc", oracle=READS))))
    )
    assert rows[1]["oracle"] == "search by oracle_der; scheduler by oracle_der; defense.oracle_target=0"
    assert rows[3]["oracle"] == "search by oracle_der; scheduler by oracle_der"
    honest = build(selected("s", sweep.trials, "select_acc"))
    assert "oracle" not in "\n".join(honest.notes)


def test_the_selection_alone_is_named_where_the_best_is(sweep):
    """One data set and attack, chosen by an oracle: one line says both, as ever."""
    result = selected("s", sweep.trials, "oracle_der", oracle=(OracleRead("select", "oracle_der"),))
    said = [note for note in build(result).notes if "oracle" in note]
    assert said == ["best: max oracle der = 0.985±0.000 (it reads the report data, which no defender has)"]


def two_attacks(make_trial, make_baseline):
    values = {"badnets": {1.0: 0.0, 3.0: 0.2}, "blend": {1.0: 0.9, 3.0: 0.3}}
    return [
        make_trial(f"{attack}{k}.{seed}", seed, asr=asr + seed / 50, knobs={"attack": attack, "defense.k": k})
        for attack, row in values.items() for k, asr in row.items() for seed in (0, 1)
    ] + [make_baseline("ref")]  # fmt: skip


@pytest.mark.parametrize(("over", "rows"), [("each", [1, 3]), ("mean", [2, 3]), ("worst", [2, 3])])
def test_each_attack_has_its_best_and_a_line_names_the_best_over_them(make_trial, make_baseline, over, rows):
    trials = two_attacks(make_trial, make_baseline)
    result = selected("s", trials, "oracle_der", over=over, oracle=(OracleRead("select", "oracle_der"),))
    shown = build(result)
    assert [index for index, row in enumerate(shown.rows) if row.kind == "best"] == rows
    notes = "\n".join(shown.notes)
    assert ("best on badnets: max oracle der = 0.990±0.007, with k=1" in notes) == (over == "each")
    assert ("best on blend: max oracle der = 0.840±0.007, with k=3" in notes) == (over == "each")
    numbers = "oracle der = 0.865±0.035 (over attacks), worst 0.840 on blend, with k=3"
    assert f"best in mean and in the worst case, 2 attacks: {numbers}" in notes
    assert "oracle: select by oracle_der" in notes


def test_the_best_in_mean_may_be_another_than_in_the_worst_case(make_trial):
    values = {"badnets": {1: 0.0, 2: 0.3}, "blend": {1: 0.4, 2: 0.3}, "sig": {1: 1.0}}
    trials = [
        make_trial(f"{attack}{k}", asr=asr, knobs={"attack": attack, "defense.k": k})
        for attack, row in values.items() for k, asr in row.items()
    ]  # fmt: skip
    mean, worst = [note for note in build(selected("s", trials[:4], "oracle_der")).notes if ", 2 att" in note]
    assert mean.startswith("best in mean, 2 attacks: oracle der = 0.895±0.141 (over attacks), worst 0.795 on")
    assert worst.startswith("best in the worst case, 2 attacks: oracle der = 0.845±0.000 (over attacks)")
    assert (mean[-15:], worst[-17:]) == ("blend, with k=1", "badnets, with k=2")
    notes = build(selected("s", trials, "oracle_der")).notes
    assert "settings left out, as they lack a result on some attacks: 1" in notes


def test_a_long_table_keeps_the_best_of_each_attack(make_trial):
    trials = [
        make_trial(f"{attack}{k}", asr=abs(k - best) / 200, knobs={"attack": attack, "defense.k": float(k)})
        for attack, best in (("badnets", 0), ("blend", 99)) for k in range(100)
    ]  # fmt: skip
    shown = build(selected("s", trials, "oracle_der"), limit=4)
    assert [row.cells[:2] for row in shown.rows] == [
        ("badnets", "0"), ("badnets", "1"), ("blend", "99"), ("blend", "98"),
    ]  # fmt: skip


def test_a_setting_that_an_honest_rule_chose_is_marked_though_the_attack_did_not_take(make_trial):
    trials = [make_trial("a", metrics={"select_acc": 0.9, "undefended/asr": 0.1})]
    shown = build(selected("s", trials, "select_acc"))
    assert (shown.rows[0].kind, cells(shown, 0)["status"]) == ("best", "best, attack did not take")


def test_the_papers_numbers_stand_beside_ours(sweep):
    beside = Published(
        params={"defense.beta_nd": 0.6, "attack.name": "badnets"},
        metrics={"acc": 0.943, "asr": 0.003},
        source="T1",
    )
    elsewhere = Published(params={"defense.beta_nd": 7.0}, metrics={"der": 0.5}, source="T2")
    shown = build(sweep, paper=[beside, elsewhere])
    assert cells(shown, 2)["paper acc"] == "0.943"
    assert cells(shown, 1)["paper asr"] == "-"
    assert "paper der" not in [column.name for column in shown.columns]
    assert "paper: T1" in shown.notes
    assert "paper: T2" not in shown.notes


def test_numbers_of_several_entries_stand_in_one_row(sweep):
    defended = Published(params={"defense.beta_nd": 0.6}, metrics={"acc": 0.943}, source="T1")
    undefended = Published(metrics={"asr": 0.5, "acc": 0.1}, source="T2")
    shown = build(sweep, paper=[defended, undefended])
    assert cells(shown, 2)["paper acc"] == "0.943"  # the first that has a metric
    assert cells(shown, 2)["paper asr"] == cells(shown, 1)["paper asr"] == "0.500"
    assert cells(shown, 1)["paper acc"] == "0.100"


def test_a_number_without_settings_stands_beside_every_defended_row(sweep):
    trials = tuple(replace(t, metrics={**t.metrics, "gssd/found": 1.0}) for t in sweep.trials)
    everywhere = Published(metrics={"gssd/found": 1.0}, source="K.6")
    shown = build(replace(sweep, trials=trials), paper=[everywhere])
    assert [cells(shown, row)["paper gssd/found"] for row in range(4)] == ["-", "1.000", "1.000", "1.000"]
    assert cells(shown, 1)["gssd/found"] == "1.000±0.000"
    undefended = Published(params={"defense.name": "none"}, metrics={"acc": 0.95}, source="T")
    assert cells(build(sweep, paper=[undefended]), 0)["paper acc"] == "0.950"


def test_diagnostics_and_the_rules_own_metric_are_shown_where_present(sweep):
    trials = tuple(
        replace(t, metrics={**t.metrics, "select_acc": 0.9, "gssd/kept": 0.5}) for t in sweep.trials
    )
    shown = build(replace(sweep, trials=trials), diagnostics=["gssd/kept", "gssd/none"])
    names = [column.name for column in shown.columns]
    assert names[-2:] == ["select_acc", "gssd/kept"]


def test_a_long_table_keeps_baselines_and_the_best(make_trial, make_baseline):
    trials = [make_trial(f"t{i}", asr=1 - i / 200, knobs={"k": float(i)}) for i in range(200)]
    shown = build(SweepResult("long", (make_baseline("r"), *trials), best="t199"), limit=10)
    assert len(shown.rows) == 11
    assert shown.rows[0].kind == "undefended"
    assert shown.rows[1].kind == "best"
    assert [row.cells[0] for row in shown.rows[1:]] == [str(i) for i in range(199, 189, -1)]
    assert "not shown: 190 settings" in shown.notes[0]


def test_a_spread_over_trainings_on_one_poisoned_set_is_called_that(make_trial):
    def notes(data_seed):
        knobs = {"defense.beta_nd": 0.6, "data_seed": data_seed}
        trials = tuple(make_trial(str(seed), seed, knobs=knobs) for seed in (0, 1))
        return " ".join(build(SweepResult("s", trials)).notes)

    assert "the seeds of a row differ in training, on the same poisoned set" in notes(0)
    assert "poisoned set" not in notes(None)


def test_plain_text_is_aligned(sweep):
    lines = table.plain(build(sweep)).splitlines()
    at = lines[2].index("asr")
    assert all(line[at - 8 : at + 3].strip() for line in lines[4:8])
    assert lines[4].startswith("      -  undefended")


def on_a_terminal(shown, width):
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, color_system="standard")
    console.print(table.rich_table(shown, width))
    return out.getvalue()


def test_on_a_terminal(sweep):
    text = on_a_terminal(build(sweep), 100)
    assert "\x1b[1;32m" in text  # the best row
    assert "\x1b[31m" in text  # the failed one
    assert "0.970±0.014" in text


def test_markdown(sweep):
    text = table.markdown(build(sweep))
    assert "| beta_nd | status | n | acc | asr | ra | der |" in text
    assert "| ---: | --- | ---: |" in text
    assert "| **3** | **best** | **2** |" in text
    assert text.index("best") < text.index("| 0.6 | done")
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
