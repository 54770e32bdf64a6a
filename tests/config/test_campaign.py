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
