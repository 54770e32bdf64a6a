"""`bdtune check`: which plugins a path means, what is printed, exit statuses."""

from __future__ import annotations

import json
import os
import sys

import pytest

from bdtune import cli
from bdtune.errors import UserError
from bdtune.verbs.check import check
from tests.testing.test_broken_plugins import FRAME, ONES, SOURCES


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a good attack, one that cannot be imported, and a metric."""
    files = {
        "attacks/frame_good.py": SOURCES[FRAME],
        "attacks/frame_bad.py": f"import nosuch\n{SOURCES[FRAME]}",
        "metrics/worst_class.py": SOURCES["metrics/worst_class"],
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("BDTUNE_PLUGINS", "")  # which the command sets, so that it is as before afterwards
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["bdtune", "check", *words])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return (end.value.code, *capsys.readouterr())


@pytest.mark.parametrize(
    ("path", "plugins"),
    [
        (".", {"attacks/frame_good", "attacks/frame_bad", "metrics/worst_class"}),
        ("attacks", {"attacks/frame_good", "attacks/frame_bad"}),
        ("attacks/frame_bad.py", {"attacks/frame_bad"}),
        ("metrics", {"metrics/worst_class"}),
    ],
)
def test_a_path_is_a_folder_a_kind_or_a_plugin(mine, path, plugins):
    assert {verdict.plugin for verdict in check(mine / path, quiet=True)} == plugins


def test_a_plugin_may_be_a_folder_and_be_named_by_its_file(mine):
    folder = mine / "attacks" / "frame_folder"
    folder.mkdir()
    (folder / "__init__.py").write_text(SOURCES[FRAME])
    for path in (folder, folder / "__init__.py"):
        assert {verdict.plugin for verdict in check(path, quiet=True)} == {"attacks/frame_folder"}


def test_without_a_path_those_of_the_variable_are_checked(mine, monkeypatch):
    monkeypatch.setenv("BDTUNE_PLUGINS", str(mine))
    assert "attacks/frame_bad" in {verdict.plugin for verdict in check(None, quiet=True)}
    assert os.environ["BDTUNE_PLUGINS"] == str(mine)


@pytest.mark.parametrize("path", ["nowhere", "attacks/frame.py", "attacks/frame_good.txt"])
def test_a_path_without_plugins_is_refused(mine, path):
    with pytest.raises(UserError, match=r"PATH: expected a plugin NAME\.py in a folder called attacks"):
        check(mine / path)


def test_nothing_to_check_is_refused(mine):
    with pytest.raises(UserError, match="expected plugins in a PATH, in the folders of BDTUNE_PLUGINS"):
        check(None)


def test_what_is_kept_ends_with_0_and_a_remark_is_shown(mine, monkeypatch, capsys):
    file = mine / "attacks" / "frame_bright.py"
    file.write_text(SOURCES[FRAME].replace("        return stamped", "        return stamped + 0.1"))
    code, out, err = run(monkeypatch, capsys, str(file))
    assert (code, err) == (0, "")
    assert "-- attacks/frame_bright: " in out
    assert "lie outside [0, 1] and are clipped" in out
    assert "all promises kept" in out


def test_what_is_broken_ends_with_3_and_each_reason_is_one_line(mine, monkeypatch, capsys):
    (mine / "attacks" / "frame_crash.py").write_text(SOURCES[FRAME].replace(ONES, f"{ONES} + np.zeros(7)"))
    code, out, err = run(monkeypatch, capsys, "attacks")
    assert (code, err) == (3, "")
    lines = out.splitlines()
    [bad] = [line for line in lines if "nosuch" in line]
    assert bad.strip().startswith(f"{mine}/attacks/frame_bad.py:1: ")
    assert (
        sum("operands could not be broadcast" in line for line in lines) == 1
    )  # shapes differ, the reason not
    assert any(line.split() == ["6", "more", "for", "this", "reason"] for line in lines)
    assert any(line.split() == ["ok", "attacks/frame_good", "14", "14"] for line in lines)
    assert "8 promises broken (!!)" in out
    assert sorted(file.name for file in mine.iterdir()) == ["attacks", "metrics"]


def test_json_has_every_promise(mine, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "attacks", "--json")
    found = json.loads(out)
    assert code == 3
    assert {each["plugin"]: each["kept"] for each in found} == {
        "attacks/frame_bad": False,
        "attacks/frame_good": True,
    }
    assert all(each["promise"].endswith(".") for each in found)
