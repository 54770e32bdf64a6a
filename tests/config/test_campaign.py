"""Reading a campaign: its sweeps, what holds for all of them, and what is told of a wrong file."""

from __future__ import annotations

import pytest
import yaml

from bdtune.config.campaign import is_campaign, load_campaign
from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.config.trial import trial_id
from bdtune.errors import ConfigError

TRIAL = "{dataset: digits, attack: badnets, model: {name: resnet18, width: 4}, defense: lfd}"
TWO = f"""
name: two
sweeps:
  - {{name: one, trial: {TRIAL}, grid: {{defense.alpha: [0.1, 0.2]}}}}
  - name: other
    trial: {TRIAL}
    seeds: [0, 1]
    resources: {{cpu: 2}}
"""


@pytest.fixture
def campaign(tmp_path):
    """Write a campaign's file and load it, with words of the command line."""

    def load(text, *words):
        (tmp_path / "c.yaml").write_text(text)
        return load_campaign(str(tmp_path / "c.yaml"), list(words))

    return load


def ids(spec):
    return {trial_id(trial) for trial in points(spec)}


def test_a_sweep_is_shipped_or_a_file_beside_or_written_out(campaign, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"name: mine\ntrial: {TRIAL}\ngrid: {{defense.beta: [0.1, 1]}}\n")
    text = TWO + "  - mine.yaml\n  - {sweep: lfd, set: {seeds: [0], attack.rate: 0.05}}\n"
    sweeps = {spec.name: spec for spec in campaign(text).sweeps}
    assert list(sweeps) == ["one", "other", "mine", "lfd"]
    assert [len(points(spec)) for spec in sweeps.values()][:3] == [2, 2, 2]
    assert ids(sweeps["mine"]) == ids(load_sweep(tmp_path / "mine.yaml"))
    assert ids(sweeps["lfd"]) == ids(load_sweep("lfd", ["seeds=[0]", "attack.rate=0.05"]))


def test_settings_of_all_sweeps_come_before_the_command_line(campaign):
    found = campaign(TWO + "set: {attack.rate: 0.3, seeds: [7]}", "seed=3")
    assert {trial.attack.rate for spec in found.sweeps for trial in points(spec)} == {0.3}
    assert {trial.seed for spec in found.sweeps for trial in points(spec)} == {3}


def test_a_list_is_one_value(campaign):
    student = "set: {defense.student.milestones: [0.25, 0.5], defense.student.schedule: multistep}"
    found = campaign(TWO + student)
    assert {trial.defense.student.milestones for trial in points(found.sweeps[0])} == {(0.25, 0.5)}


def test_first_and_budget_come_from_the_file_or_the_command_line(campaign):
    assert [spec.name for spec in campaign(TWO + "first: [other]\n").sweeps] == ["other", "one"]
    found = campaign(TWO, "first=other", "budget=0.5", "name=mine")
    assert [spec.name for spec in found.sweeps] == ["other", "one"]
    assert (found.settings.budget, found.name) == (0.5, "mine")


def test_all_trials_have_the_resources_of_the_largest_unless_it_is_said(campaign):
    assert {spec.resources.cpu for spec in campaign(TWO).sweeps} == {2}
    assert {spec.resources.cpu for spec in campaign(TWO + "resources: {cpu: 3}\n").sweeps} == {3}


def test_what_is_written_down_is_read_again(campaign, tmp_path):
    found = campaign(TWO + "first: [other]\nbudget: 2\n")
    again = campaign(yaml.safe_dump(found.to_dict(), sort_keys=False))
    assert again == found
    assert [ids(spec) for spec in again.sweeps] == [ids(spec) for spec in found.sweeps]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sweeps: []", "c.yaml:1: sweeps: expected a list of search spaces, files, or sweeps"),
        ("sweeps: [lfdd]", "c.yaml:1: sweeps[0]: expected a YAML file or one of the search spaces"),
        ("sweeps: [lfd, lfd]", "c.yaml:1: sweeps: expected a name for each sweep, got 'lfd' 2 times"),
        ("sweeps: [lfd, 3]", "sweeps[1]: expected a search space, a file, {sweep: NAME, set: {...}}"),
        ("sweeps: [lfd]\nsweps: 1", "c.yaml:2: sweps: expected a setting of a campaign"),
        ("sweeps: [lfd]\nfirst: [lfb]", "c.yaml:2: first[0]: expected a sweep of this campaign: lfd"),
        ("sweeps: [lfd]\nbudget: 0", "c.yaml:2: budget: expected a number above 0"),
        ("sweeps: [lfd]\nname: a/b", "c.yaml:2: name: expected at most 100 letters"),
        ("sweeps: [lfd]\nset: 3", "c.yaml:2: set: expected a mapping of settings, got 3"),
        ("sweeps:\n  - {sweep: lfd, sett: {}}", "sweeps[0].sett: expected a key beside 'sweep'"),
        ("sweeps:\n  - {sweep: lfd, set: {defense.alhpa: 1}}", "c.yaml:2: sweeps[0].defense.alhpa: expected"),
        (
            "sweeps:\n  - {name: a, trial: {dataset: digitz}}",
            "c.yaml:2: dataset: expected one of the datasets",
        ),
        ("sweeps:\n  - lfd_asha", "c.yaml:2: sweeps[0]: expected a sweep without a search and a scheduler"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(campaign, text, told):
    with pytest.raises(ConfigError) as error:
        campaign(text)
    assert told in str(error.value)


def test_all_problems_are_told_at_once(campaign):
    with pytest.raises(ConfigError) as error:
        campaign("sweeps: [lfdd, {sweep: lfd, set: {seedz: 1}}]\nbudget: -1\nfirst: [x]")
    assert len(error.value.problems) == 4


def test_only_a_file_with_sweeps_is_a_campaign(tmp_path):
    (tmp_path / "c.yaml").write_text(TWO)
    assert is_campaign(tmp_path / "c.yaml")
    assert not is_campaign("lfd")
    assert not is_campaign(None)
    assert not is_campaign("there_is_none")


GRID = (
    f"{{name: shaped, trial: {TRIAL}, grid: {{attack: [badnets, blend]}}, "
    "table: {rows: [attack], cells: [asr]}}"
)


def test_a_table_is_one_or_a_list_and_goes_over_all_sweeps_or_some(campaign):
    [one] = campaign(TWO + "table: {rows: [defense.alpha], cells: [der], percent: true}\n").tables
    assert (one.stem, one.rows, one.cells, one.percent, one.sweeps) == (
        "table",
        ("defense.alpha",),
        ("der",),
        True,
        (),
    )
    tables = "table:\n  - {name: a, rows: [attack]}\n  - {name: b, sweeps: [other], select: oracle_asr}\n"
    first, second = campaign(TWO + tables).tables
    assert (first.stem, second.stem, second.sweeps) == ("table-a", "table-b", ("other",))
    assert (second.select.metric, second.select.mode) == ("oracle_asr", "min")


def test_the_table_of_one_sweep_takes_what_it_does_not_say_from_that_sweeps_own(campaign):
    tables = "table: [{name: a}, {name: b, sweeps: [shaped]}, {name: c, sweeps: [shaped], columns: [attack]}]"
    all_sweeps, taken, changed = campaign(f"sweeps: [{GRID}]\n{tables}").tables
    assert (taken.rows, taken.cells) == (("attack",), ("asr",))
    assert (changed.rows, changed.columns, changed.cells) == ((), ("attack",), ("asr",))
    assert (all_sweeps.rows, all_sweeps.cells) == ((), ("acc", "asr"))


def test_tables_are_written_down_as_they_were_filled_in(campaign):
    found = campaign(f"sweeps: [{GRID}]\ntable: {{sweeps: [shaped], select: {{metric: oracle_acc}}}}\n")
    again = campaign(yaml.safe_dump(found.to_dict(), sort_keys=False))
    assert again.tables == found.tables
    assert again.tables[0].cells == ("asr",)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("{rows: [atack]}", "table.rows[0].atack: expected a setting of the trial"),
        (
            "{rows: [defense.alhpa]}",
            "table.rows[0]: expected a setting that some trial has, got 'defense.alhpa'. Did",
        ),
        ("{cells: [ars]}", "table.cells[0]: expected one of the metrics"),
        ("{row: [attack]}", "table.row: expected a knob of"),
        (
            "{sweeps: [on]}",
            "table.sweeps[0]: expected a sweep of this campaign: one, other, got 'on'. Did you mean 'one'?",
        ),
        ("{select: oracle_dre}", "table.select: expected one of the rules: oracle_acc"),
        ("{name: a/b}", "table.name: expected at most 100 letters"),
        ("[{name: a}, {name: a}]", "table[1]: expected a name of its own for each table, got 'a'"),
        (
            "[{name: a, rows: [seed]}]",
            "table[0].rows[0]: expected a setting over which cells are not averaged",
        ),
        ("3", "table: expected a list of values"),
    ],
)
def test_a_wrong_table_is_told_with_its_line(campaign, table, told):
    with pytest.raises(ConfigError) as error:
        campaign(TWO + f"table: {table}\n")
    assert len(error.value.problems) == 1
    assert f"c.yaml:9: {told}" in str(error.value)


def test_all_problems_of_a_table_are_told_at_once_and_of_one_sweep_its_trials_count(campaign):
    wrong = "{rows: [defense.beta, nothing], cells: [accc], sweeps: [two], select: oracle_x}"
    with pytest.raises(ConfigError) as error:
        campaign(TWO + f"table: {wrong}\n")
    assert len(error.value.problems) == 4


def test_a_speed_is_a_setting_of_all_sweeps_and_the_slowest_counts(campaign):
    assert campaign(TWO).speed is None
    assert campaign(TWO, "speed.images_per_s=900").speed.images_per_s == 900
    text = TWO.replace("{name: one,", "{name: one, speed: {images_per_s: 100},")
    assert campaign(text).speed.images_per_s == 100
    with pytest.raises(ConfigError, match="expected a number above 0"):
        campaign(TWO, "speed.images_per_s=0")
