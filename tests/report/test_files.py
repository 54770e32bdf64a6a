from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from bdtune.errors import UserError
from bdtune.report import files
from bdtune.report.table import build


def test_what_is_written_can_be_read(sweep, tmp_path):
    paths = files.write(tmp_path, sweep, figure=False)
    assert [path.name for path in paths] == ["sweep.json", "report.md", "report.csv"]
    assert files.read(tmp_path).to_json() == sweep.to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.csv", "report.md", "sweep.json"]


def test_the_json_has_the_promised_shape(sweep, tmp_path):
    bad = replace(sweep.trials[0], metrics={"acc": float("nan")})
    files.write(tmp_path, replace(sweep, trials=(bad,)), figure=False)
    value = json.loads((tmp_path / "sweep.json").read_text())
    assert {"sweep", "trials", "best"} <= set(value)
    assert {"id", "status", "params", "metrics", "stages", "error"} <= set(value["trials"][0])
    use = set(value["trials"][0]["stages"]["simclr"])
    assert use == {"key", "computed", "seconds", "bytes", "read", "fetched", "served"}
    assert value["trials"][0]["metrics"] == {"acc": None}


def test_a_missing_or_broken_report_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match="run the sweep first"):
        files.read(tmp_path)
    for text in ("{", "{}", '{"sweep": "s", "trials": [{}], "best": null, "select": {}}', "[]"):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            files.read(tmp_path)


def test_no_terminal_no_colours(sweep):
    out = io.StringIO()
    files.show(build(sweep), out)
    assert "\x1b" not in out.getvalue()
    assert "0.970±0.014" in out.getvalue()


def test_a_terminal_gets_the_rich_table(sweep):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    files.show(build(sweep), out)
    assert "best: max oracle der" in out.getvalue()
