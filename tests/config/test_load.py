"""Where files are found, and what is listed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from bdtune.cli import app
from bdtune.config import load
from bdtune.config.load import find, load_sweep, load_trial, read_file, search_spaces
from bdtune.config.yaml_file import read_yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXT = "description: Mine. Nothing else.\ntrial: {dataset: toy, defense: tiny, seed: 5}\n"


def test_a_file_with_or_without_its_ending(write: Callable[[str], str]) -> None:
    write(TEXT, "mine.yaml")
    assert load_sweep("mine").name == load_sweep("mine.yaml").name == "mine"


def test_the_working_directory_comes_before_the_shipped_ones(write: Callable[[str], str]) -> None:
    assert find("gssd").parent.name == "search_spaces"
    write(TEXT, "gssd.yaml")
    assert load_sweep("gssd").description == "Mine. Nothing else."
    assert load_sweep("gssd.yaml").trial.seed == 5


def test_shipped_ones_by_name_and_by_last_name() -> None:
    assert find("paper/gssd_k1") == find("gssd_k1.yaml") == find("paper/gssd_k1.yaml")


def test_bare_settings_make_a_trial_and_a_sweep(write: Callable[[str], str]) -> None:
    file = write("dataset: toy\ndefense:\n  name: tiny\n  warmup.epochs: 3\nseed: 1e1\n")
    assert load_trial(file).defense.warmup.epochs == 3
    assert load_trial(file).seed == 10
    assert load_sweep(file).trial == load_trial(file)


def test_a_folder_elsewhere(own_folder: Path, write: Callable[[str], str]) -> None:
    (own_folder / "sub").mkdir()
    write(TEXT, "sub/mine.yaml")
    assert load_sweep(own_folder / "sub" / "mine").trial.seed == 5


def test_the_list_says_what_each_is_for() -> None:
    found = {entry.name: entry for entry in search_spaces()}
    assert found["gssd"].summary.startswith("The default sweep: GSSD against BadNets")
    assert "table K.1" in found["paper/gssd_k1"].source


def test_a_file_that_was_read_is_not_looked_for_again(own_folder: Path, write: Callable[[str], str]) -> None:
    read = read_file(write(TEXT, "mine.yaml"))
    (own_folder / "mine.yaml").unlink()
    assert not read.holds_sweeps
    assert load_sweep(read).name == "mine"
    assert load_trial(read).seed == 5


@pytest.mark.parametrize("verb", ["plan", "sweep"])
def test_a_command_reads_its_file_once(
    verb: str, write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    monkeypatch.setattr(load, "read_yaml", lambda *names: files.append(names) or read_yaml(*names))
    done = CliRunner().invoke(app, [verb, write("dataset: toyy\n")])
    assert "toyy" in str(done.exception)
    assert len(files) == 1
