# ruff: noqa: E501  a message stays in one piece, as it is read
"""Published numbers out of CSV files: what columns become, and what is said about wrong ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bdtune.config.load import load_sweep
from bdtune.config.sweep import sweep_to_dict
from bdtune.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAD = "trial: {dataset: toy, defense: tiny}\ngrid:\n  attack: [badnets, blend]\n  defense.beta: [0.1, 0.5]\n"
TABLE = """\
attack,strength,variant,acc,asr,verdict,note
Patch,0.10,a,0.91,0.02,found,
Patch,5e-1,b,0.92,,,"a comma, quoted"
Mix,0.1,a,0.93,1.00,missed,
Mix,0.5,b,,,,
average,,,0.92,0.51,,
"""
ENTRY = """\
- table: tables/one.csv
  source: a paper, table 1
  without: {attack: average}
  params: {attack: {Patch: BadNets, Mix: blend}, strength: defense.beta}
  metrics: {acc: acc, asr: asr}
"""


@pytest.fixture
def space(own_folder: Path, write: Callable[[str], str]) -> Callable[..., str]:
    """Write a sweep with published numbers, and the table that it names."""

    def make(entry: str = ENTRY, table: str = TABLE, head: str = HEAD) -> str:
        (own_folder / "tables").mkdir(exist_ok=True)
        (own_folder / "tables" / "one.csv").write_text(table, encoding="utf-8")
        return write(f"{head}published:\n{entry}")

    return make


def numbers(file: str, *words: str) -> list[tuple[dict[str, Any], dict[str, float]]]:
    return [(dict(each.params), dict(each.metrics)) for each in load_sweep(file, words).published]


def problems(file: str, *words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_sweep(file, words)
    return caught.value.lines()


def test_columns_become_settings_and_metrics(space: Callable[..., str]) -> None:
    assert numbers(space()) == [
        ({"attack": "badnets", "defense.beta": 0.1}, {"acc": 0.91, "asr": 0.02}),
        ({"attack": "badnets", "defense.beta": 0.5}, {"acc": 0.92}),  # an empty cell is no number
        ({"attack": "blend", "defense.beta": 0.1}, {"acc": 0.93, "asr": 1.0}),  # nor is a row without any
    ]
    assert {each.source for each in load_sweep("s.yaml").published} == {"a paper, table 1"}


def test_rows_fixed_settings_and_cells_that_stand_for_several(space: Callable[..., str]) -> None:
    entry = """\
- table: tables/one.csv
  source: a paper, table 1
  rows: {attack: [Patch, Mix], strength: 0.1}
  fixed: {attack: blend}
  params: {variant: {a: {defense.beta: 0.5, seed: 0}}}
  metrics: {verdict: {found: {tiny/found: 1}, missed: {tiny/found: 0, tiny/other: 2.5}}}
"""
    settings = {"attack": "blend", "defense.beta": 0.5, "seed": 0}
    assert numbers(space(entry)) == [
        (settings, {"tiny/found": 1}),
        (settings, {"tiny/found": 0, "tiny/other": 2.5}),
    ]


def test_entries_of_both_kinds_keep_their_order(space: Callable[..., str]) -> None:
    inline = "- {params: {attack: blend}, metrics: {der: 0.5}, source: another paper}\n"
    found = numbers(space(inline + ENTRY + inline))
    assert [len(found), found[0], found[-1]] == [5, found[-1], ({"attack": "blend"}, {"der": 0.5})]


def test_settings_that_were_written_down_need_no_table(
    space: Callable[..., str], own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_sweep(space(head=HEAD + "notes: ['what the paper: leaves open']\n"))
    (own_folder / "elsewhere").mkdir()
    monkeypatch.chdir(own_folder / "elsewhere")
    (own_folder / "elsewhere" / "again.yaml").write_text(yaml.safe_dump(sweep_to_dict(spec)))
    again = load_sweep("again.yaml")
    assert (again.published, again.notes) == (spec.published, spec.notes)
    assert again.notes == ("what the paper: leaves open",)


def test_a_row_without_a_trial_is_named_by_its_line(space: Callable[..., str]) -> None:
    found = problems(space(table=TABLE.replace("Mix,0.1,", "Mix,0.3,")))
    assert len(found) == 1
    assert found[0].startswith("s.yaml:6: published[0]: expected a trial of the sweep for every row")
    assert "none with attack='blend', defense.beta=0.3 in tables/one.csv:4" in found[0]


def test_the_command_line_may_leave_rows_without_a_trial(space: Callable[..., str]) -> None:
    assert len(numbers(space(), "attack=blend")) == 3


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("tables/one.csv", "tables/two.csv"), "s.yaml:6: published[0].table: expected a CSV file, found from"),
        (("strength:", "strenght:"), "s.yaml:9: published[0].params.strenght: expected a column of tables/one.csv"),
        (("strength:", "strenght:"), "got 'strenght'. Did you mean 'strength'?"),
        (("{acc: acc,", "{acc: acs,"), "published[0].metrics.acs: expected one of the metrics: acc"),
        (("defense.beta", "defence.beta"), "published[0].params.defence.beta: expected a setting of the trial"),
        (("Mix: blend", "Mx: blend"), "expected one of 'Patch', 'Mx', got 'Mix' in tables/one.csv:4"),
        (("average", "mean"), "expected one of 'Patch', 'Mix', got 'average' in tables/one.csv:6"),
        (("without: {attack: average}", "rows: {attack: nothing}"), "expected rows that tables/one.csv has, got none"),
        (("source: a paper, table 1", "other: 1"), "published[0].other: expected a knob of the published table"),
        (("metrics: {acc: acc, asr: asr}", "metrics: {}"), "published[0].metrics: expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_entry(
    space: Callable[..., str], change: tuple[str, str], expected: str
) -> None:
    found = problems(space(ENTRY.replace(*change)))
    assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("0.93", "93"), "published[0].metrics.acc: expected a number from 0 to 1, got 93 in tables/one.csv:4"),
        (("0.93", "high"), "expected a number from 0 to 1, got 'high' in tables/one.csv:4"),
        (("0.93", "nan"), "expected a number from 0 to 1, got 'nan' in tables/one.csv:4"),
        (("Mix,0.5,b,,,,", "Mix,0.5,b"), "published[0].table: expected 7 cells in each row, got 3 in tables/one.csv:5"),
        (("verdict,note", "acc,note"), "expected a head that names each column once, got 'acc' in tables/one.csv"),
        (("attack,strength", "attack,,strength"), "expected a head that names each column once"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_table(
    space: Callable[..., str], change: tuple[str, str], expected: str
) -> None:
    found = problems(space(table=TABLE.replace(*change, 1)))
    assert any(expected in line for line in found), found


def test_all_that_is_wrong_is_said_at_once(space: Callable[..., str]) -> None:
    found = problems(space(table=TABLE.replace("0.91", "91").replace("0.92", "92")))
    assert len([line for line in found if "expected a number from 0 to 1" in line]) == 2


def test_a_table_that_is_no_text(space: Callable[..., str], own_folder: Path) -> None:
    file = space()
    (own_folder / "tables" / "one.csv").write_bytes(b"\xff\xfe\x00")
    assert "published[0].table: expected text in UTF-8, got tables/one.csv" in problems(file)[0]
