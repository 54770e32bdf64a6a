"""A campaign's tables: over the trials of all its sweeps, with a reason in each cell that has no number."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from typer.testing import CliRunner

from bdtune.cli import app
from bdtune.errors import UserError
from bdtune.verbs import campaign as verb
from tests.verbs.campaigning import TWO, made_up

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path, monkeypatch):
    return made_up(monkeypatch, tmp_path)


@pytest.fixture
def bdtune(tmp_path):
    """Run a command; returns exit code, output and error."""

    def call(*words):
        done = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
        error = str(done.exception) if isinstance(done.exception, UserError) else ""
        return done.exit_code, done.stdout, done.stderr + error

    return call


def cells(table):
    """Return the cells of a table as JSON by row, column and metric."""
    return {(*each["row"].values(), each["column"], each["metric"]): each for each in table["cells"]}


def test_a_table_has_the_trials_of_all_sweeps_and_is_written_in_every_form(run, tmp_path):
    done = run(asr=lambda params: params["defense.beta"])
    table = cells(done.to_json()["tables"]["table-attacks"])
    assert table["badnets rate=0.2", "beta=0.3", "asr"]["mean"] == pytest.approx(0.3)
    assert table["badnets rate=0.2", "beta=0.3", "asr"]["n"] == 2
    assert table["badnets rate=0.1", "undefended", "asr"]["mean"] == 1.0
    assert table["blend rate=0.2", "beta=0.5", "acc"]["mean"] == pytest.approx(0.9)
    default = next(key[1] for key in table if key[0] == "badnets rate=0.1" and key[1].startswith("beta"))
    assert {key[1] for key in table} == {"undefended", "beta=0.3", "beta=0.5", default}
    folder = tmp_path / "sweeps" / "both"
    names = {file.name for file in folder.glob("table*")}
    assert names == {
        f"table-{name}.{end}" for name in ("attacks", "own") for end in ("md", "csv", "tex", "html")
    }
    rows = list(csv.DictReader(io.StringIO((folder / "table-attacks.csv").read_text())))
    assert len(rows) == len(table)
    report = (folder / "report.md").read_text()
    assert (
        report.index("## campaign both") < report.index("## Every attack") < report.index("## sweep levels")
    )
    ended = done.ending(None)[0].partition(": ")[2]
    assert ended == "report.md, table-attacks.*, table-own.*"


def test_a_published_number_stands_beside_the_trials_of_its_own_sweep_alone(run):
    done = run()
    found = cells(done.to_json()["tables"]["table-attacks"])
    shown = {key: cell["published"] for key, cell in found.items() if cell["published"] is not None}
    assert shown == {("badnets rate=0.2", "beta=0.3", "acc"): 0.8}


def test_the_table_of_one_sweep_has_the_shape_that_the_sweep_gives_it(run):
    own = run().crossed["table-own"]
    assert (own.row_names, own.metrics, own.percent) == (("level",), ("acc",), True)
    assert [line.labels for line in own.lines] == [("0",), ("1",)]
    assert own.title.startswith("sweep levels")


def test_every_cell_without_a_number_says_why(run, tmp_path):
    became = {("blend", 0.5): "failed", ("blend", 0.3): "diverged"}
    done = run(status=lambda p: became.get((p["attack"], p.get("defense.beta")), "done"))
    found = cells(done.to_json()["tables"]["table-attacks"])
    assert found["blend rate=0.2", "beta=0.5", "acc"]["missing"] == "failed"
    assert found["blend rate=0.2", "beta=0.3", "acc"]["missing"] == "diverged"
    assert found["badnets rate=0.1", "beta=0.3", "acc"]["missing"] == "not asked"
    assert all((cell["mean"] is None) == (cell["missing"] is not None) for cell in found.values())
    assert done.exit_code == 3
    notes = done.crossed["table-attacks"].notes
    assert any(note.startswith("diverged, 2 cells: a loss or a weight") for note in notes)


def test_where_the_attack_did_not_take_no_setting_is_the_best(run):
    text = TWO.replace("columns: [defense.beta]", "columns: [defense]")
    found = cells(run(text=text, undefended=0.2).to_json()["tables"]["table-attacks"])
    assert found["blend rate=0.2", "toy", "asr"]["missing"] == "not taken"
    assert not found["blend rate=0.2", "undefended", "asr"]["attack_took"]
    assert (
        cells(run(text=text).to_json()["tables"]["table-attacks"])["blend rate=0.2", "toy", "asr"]["n"] == 2
    )


def test_what_does_not_fit_the_budget_is_out_of_budget_and_stays_so(run, bdtune, tmp_path):
    first = run("budget=1e-9")
    assert len(first.left_out.trials) == 10  # all defended trials
    table = cells(first.to_json()["tables"]["table-attacks"])
    assert {cell["missing"] for cell in table.values()} == {"out of budget", "not asked"}
    assert table["blend rate=0.2", "undefended", "acc"]["missing"] == "out of budget"
    note = next(note for note in first.crossed["table-attacks"].notes if note.startswith("out of budget"))
    assert note.endswith("the trial does not fit the campaign's budget")
    before = (tmp_path / "sweeps" / "both" / "left_out.json").read_text()
    shutil.rmtree(tmp_path / "store")  # what was computed since does not count: the decision is written down
    assert run("budget=1e-9").left_out == first.left_out
    assert (tmp_path / "sweeps" / "both" / "left_out.json").read_text() == before
    code, out, _ = bdtune("report", "both", "--table", "--json")
    assert code == 0
    told = json.loads(out)["tables"]["table-attacks"]
    assert {cell["missing"] for cell in told["cells"]} == {"out of budget", "not asked"}
    assert not run().left_out  # without a budget all of them are run
    table = cells(verb.report("both", tmp_path).to_json()["tables"]["table-attacks"])
    assert {cell["missing"] for cell in table.values()} == {None, "not asked"}


def test_report_prints_the_tables_that_the_file_asks_for(run, bdtune):
    run()
    code, out, _ = bdtune("report", "both", "--table")
    assert code == 0
    assert out.index("Every attack") < out.index("sweep levels")
    code, out, _ = bdtune("report", "both", "--table", "--format", "latex")
    assert out.count(r"\end{table}") == 2
    for form, begins in (
        ("markdown", "## campaign both"),
        ("csv", "sweep,trials"),
        ("html", "<!doctype html>"),
    ):
        assert bdtune("report", "both", "--format", form)[1].startswith(begins)


def test_the_command_line_shapes_a_table_over_all_sweeps(run, bdtune):
    run()
    code, out, _ = bdtune(
        "report", "both", "--rows", "defense", "--columns", "attack", "--cells", "der", "--json"
    )
    assert code == 0
    found = cells(json.loads(out)["tables"]["table"])
    assert {key[:2] for key in found} == {
        (defense, attack)
        for defense in ("undefended", "toy")
        for attack in ("badnets rate=0.2", "badnets rate=0.1", "blend rate=0.2")
    }
    assert found["undefended", "blend rate=0.2", "der"]["missing"] == "no defense"
    code, out, err = bdtune("report", "both", "--rows", "atack", "--cells", "derr")
    assert "Did you mean 'attack'?" in err
    assert "Did you mean 'der'?" in err
    assert out == ""


def test_a_campaign_is_found_by_its_name_or_file(run, bdtune, tmp_path):
    run()
    assert bdtune("report", str(tmp_path / "c.yaml"))[1] == bdtune("report", "both")[1]
    (tmp_path / "other.yaml").write_text(TWO.replace("name: both", "name: bothh"))
    code, _, err = bdtune("report", str(tmp_path / "other.yaml"))
    assert code == 1  # the command line's own main turns it into 2
    assert "expected a campaign that was run" in err
    assert "Did you mean 'both'?" in err
    assert "--sort and --top are for a sweep" in bdtune("report", "both", "--sort", "asr")[2]


def test_without_tables_a_table_follows_from_what_varies(run, bdtune):
    text = TWO[: TWO.index("table:\n")] + TWO[TWO.index("sweeps:\n") :]
    run(text=text)
    code, out, _ = bdtune("report", "both", "--table")
    assert code == 0
    assert out.startswith("campaign both: tiny, toy, linear")


def test_tables_of_an_earlier_file_go(run, tmp_path):
    run()
    run(text=TWO.replace("name: attacks", "name: renamed"))
    assert {file.stem for file in (tmp_path / "sweeps" / "both").glob("table*")} == {
        "table-renamed",
        "table-own",
    }


def test_the_end_names_the_files_and_the_next_command(run, tmp_path):
    done = run()
    folder = tmp_path / "sweeps" / "both"
    files, tracking, after = done.ending(tmp_path)
    assert files.startswith(f"written to {folder}: report.md, table-attacks.*")
    assert tracking.startswith("MLflow")
    commands = [f"bdtune report both {option} --out {tmp_path}" for option in ("--table", "--html")]
    assert after == f"next: {', or '.join(commands)}"
    assert run(interrupted=True).ending(None)[-1] == "interrupted; the same command goes on from here"
