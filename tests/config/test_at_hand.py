"""Data sets that are not there: a plan leaves their trials out, a sweep says how the others are run."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.plan import Plan
from bdtune.errors import ConfigError
from bdtune.verbs.tables import plan_json, plan_table

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec

TEXT = (
    "trial: {dataset: toy, attack: badnets, defense: tiny}\n"
    "grid: {dataset: [toy, cifar10, tiny_imagenet], defense.beta: [0.1, 0.5]}\n"
    "notes: [numbers of other machines]\n"
)
ROOT = "data_root=data"


@pytest.fixture
def file(own_folder: Path, write: Callable[[str], str]) -> str:
    (own_folder / "data").mkdir()
    return write(TEXT)


def datasets(spec: SweepSpec) -> Counter[str]:
    return Counter(trial.dataset.plugin_name() for trial in points(spec))


def test_a_part_of_a_sweep_has_the_trials_whose_data_are_there(file: str) -> None:
    spec = load_sweep(file, [ROOT], partial=True)
    assert datasets(spec) == {"toy": 2}
    assert [(each.dataset, each.trials) for each in spec.absent] == [("cifar10", 2), ("tiny_imagenet", 2)]
    assert datasets(load_sweep(file, [ROOT], check_data=False)) == {
        "toy": 2,
        "cifar10": 2,
        "tiny_imagenet": 2,
    }
    assert not load_sweep(file, [ROOT, "dataset=toy"], partial=True).absent


def test_a_plan_says_what_it_leaves_out(file: str) -> None:
    spec = load_sweep(file, [ROOT], partial=True)
    made = Plan(trials=2, baselines=1)
    line, note = plan_table(spec, made).notes[-3], plan_table(spec, made).notes[-1]
    assert line.startswith("left out: 2 trials on cifar10, which is not in /")
    assert "data. Set data_root" in line
    assert note == "note: numbers of other machines"
    found = plan_json(spec, made)
    assert [(each["dataset"], each["trials"]) for each in found["left_out"]] == [
        ("cifar10", 2),
        ("tiny_imagenet", 2),
    ]
    assert "expected CIFAR-10 as" in found["left_out"][0]["why"]
    assert (found["trials"], found["notes"]) == (2, ["numbers of other machines"])


def test_a_plan_for_a_gpu_says_how_costs_are_known_without_one(file: str) -> None:
    made = Plan(trials=2, baselines=1, unpredicted=("simclr",))
    for words, said in (([], False), (["resources.gpu=1"], True)):
        notes = plan_table(load_sweep(file, [ROOT, *words], partial=True), made).notes
        (line,) = [note for note in notes if note.startswith("no cost known yet: simclr")]
        assert ("resources.gpu=0" in line) is said


def test_a_whole_sweep_needs_them_all_and_says_what_can_be_run(file: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(file, [ROOT])
    lines = caught.value.lines()
    assert sum("data_root: expected" in line for line in lines) == 2
    assert sum("got toy alone. dataset=toy runs its trials alone" in line for line in lines) == 1
    assert datasets(load_sweep(file, [ROOT, "dataset=toy"])) == {"toy": 2}


def test_where_nothing_is_there_neither_plan_nor_sweep_is_possible(file: str) -> None:
    for partial in (False, True):
        with pytest.raises(ConfigError) as caught:
            load_sweep(file, [ROOT, "dataset=cifar10,tiny_imagenet"], partial=partial)
        assert len(caught.value.problems) == 2
        assert all(problem.path == "data_root" for problem in caught.value.problems)


def test_no_folder_at_all_is_said_in_few_words(file: str) -> None:
    spec = load_sweep(file, partial=True)
    assert (
        spec.absent[0].line().startswith("left out: 2 trials on cifar10, which is not found. Set data_root")
    )


def test_settings_of_what_is_left_out_are_checked_all_the_same(file: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(file, [ROOT, "dataset=toy,cifar10", "attack.target=9"], partial=True)
    assert "attack.target: expected" in str(caught.value)  # toy has three classes
    with pytest.raises(ConfigError) as caught:
        load_sweep(file, [ROOT, "dataset=toy,cifar10", "attack.target=10"], partial=True)
    assert "expected a class from 0 to 9, got 10" in str(caught.value)  # CIFAR-10, which is left out


def test_rows_of_what_is_left_out_have_trials_all_the_same(file: str, own_folder: Path) -> None:
    with (own_folder / "s.yaml").open("a") as text:
        text.write(
            "published: [{table: t.csv, source: a, params: {dataset: dataset}, metrics: {acc: acc}}]\n"
        )
    (own_folder / "t.csv").write_text("dataset,acc\ncifar10,0.9\n")
    spec = load_sweep("s.yaml", partial=True)
    assert [dict(each.params) for each in spec.published] == [{"dataset": "cifar10"}]
