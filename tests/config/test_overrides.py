"""What the command line changes in a file's sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bdtune.config.expand import points
from bdtune.config.load import load_sweep, load_trial, split_words
from bdtune.config.sweep import sweep_to_dict
from bdtune.config.trial import to_params
from bdtune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.config.sweep import SweepSpec

FILE = """
trial:
  dataset: {name: toy, size: 6}
  attack: {name: badnets, rate: 0.2}
  defense: {name: tiny, beta: 0.5, warmup.epochs: 7}
grid:
  defense.beta: [0.1, 0.2]
seeds: [0, 1]
"""


@pytest.fixture
def load(write: Callable[[str], str]) -> Callable[..., SweepSpec]:
    file = write(FILE)
    return lambda *words: load_sweep(file, words)


def params(spec: SweepSpec, path: str) -> list[object]:
    return [to_params(trial)[path] for trial in points(spec)]


def test_a_value_takes_the_place_of_an_axis(load: Callable[..., SweepSpec]) -> None:
    spec = load("defense.beta=0.7", "seed=3")
    assert spec.axis_paths() == []
    assert params(spec, "defense.beta") == [0.7]
    assert params(spec, "seed") == [3]


def test_a_comma_makes_an_axis(load: Callable[..., SweepSpec]) -> None:
    spec = load("defense.steps=1,2,3", "seed=4,5")
    assert spec.grid == {"defense.beta": (0.1, 0.2), "defense.steps": (1, 2, 3), "seed": (4, 5)}
    assert spec.seeds == ()
    assert len(points(spec)) == 12


def test_a_list_is_one_value_until_a_comma_follows(load: Callable[..., SweepSpec]) -> None:
    assert load("defense.milestones=[0.1,0.2]").trial.defense.milestones == (0.1, 0.2)
    assert load("defense.milestones=[0.1],[0.2,0.3]").grid["defense.milestones"] == ([0.1], [0.2, 0.3])


def test_axes_by_name_of_their_section(load: Callable[..., SweepSpec]) -> None:
    assert load("grid.defense.beta=0.3,0.4").grid["defense.beta"] == (0.3, 0.4)
    assert load("grid.defense.beta=[0.3,0.4]").grid["defense.beta"] == (0.3, 0.4)
    assert load("vary.defense.beta=0.3").vary == {"defense.beta": (0.3,)}
    assert load("vary.defense.beta=0.3").grid == {}
    assert load("seeds=7,8,9").seeds == (7, 8, 9)
    assert load("seeds=7").seeds == (7,)


def test_another_plugin_starts_from_its_defaults_and_the_same_keeps_its_knobs(
    load: Callable[..., SweepSpec],
) -> None:
    assert load("dataset=toy").trial.dataset.size == 6
    assert load("attack=badnets").trial.attack.rate == 0.2
    assert load("attack=blend").trial.attack.rate == 0.1
    assert load("attack.name=blend").trial.attack.plugin_name() == "blend"
    assert load("attack={name: badnets, target: 1}").trial.attack.rate == 0.1
    assert load("attack=none").trial.attack is None
    assert load("attack.preset=lfd/bn_g").trial.attack.pattern == "grid"


def test_a_knob_of_a_swept_plugin_holds_for_each(load: Callable[..., SweepSpec]) -> None:
    spec = load("attack=badnets,blend", "attack.rate=0.3")
    assert params(spec, "attack.rate") == [0.3] * 8
    assert set(params(spec, "attack")) == {"badnets", "blend"}


def test_a_searched_setting_may_be_fixed(write: Callable[[str], str]) -> None:
    text = "trial: {dataset: toy, defense: tiny}\nsearch:\n  trials: 3\n  space:\n    seed: {int: [0, 9]}\n"
    file = write(text + "    defense.beta: {log_uniform: [0.1, 1]}\n")
    spec = load_sweep(file, ["seed=5", "search.trials=7", "search.metric=oracle_acc,oracle_asr"])
    assert spec.search is not None
    assert list(spec.search.space) == ["defense.beta"]
    assert spec.search.trials == 7
    assert spec.objectives == (("oracle_acc", "max"), ("oracle_asr", "min"))
    assert spec.trial.seed == 5
    other = load_sweep(file, ["search.space.defense.beta={uniform: [0, 1]}"])
    assert other.search is not None
    assert other.search.space["defense.beta"].kind == "uniform"


def test_settings_of_the_sweep(load: Callable[..., SweepSpec]) -> None:
    spec = load("name=other", "resources.gpu=0.5", "retries=0", "scheduler=asha", "trial.holdout=0.25")
    assert (spec.name, spec.resources.gpu, spec.retries, spec.scheduler.name) == ("other", 0.5, 0, "asha")
    assert spec.trial.holdout == 0.25


def test_a_setting_like_no_other_is_answered_with_all_of_them(load: Callable[..., SweepSpec]) -> None:
    with pytest.raises(UserError) as caught:
        load("training.epochs=3", "sedes=0")
    far, near = caught.value.problems
    assert far.path == "training.epochs"
    assert far.expected.startswith("expected a setting: attack, baseline, ")
    assert (near.expected, near.hint) == ("expected a setting", "Did you mean 'seeds'?")


def test_a_trial_from_overrides_alone() -> None:
    trial = load_trial(None, ["dataset=toy", "defense=tiny", "model.width=16", "data_root=data"])
    assert trial.model.plugin_name() == "resnet18"
    assert trial.model.width == 16
    assert trial.attack is None
    assert trial.data_root == Path.cwd() / "data"


def test_a_sweep_from_overrides_alone() -> None:
    spec = load_sweep(None, ["dataset=toy", "defense=tiny", "seed=0,1"])
    assert spec.name == "sweep"
    assert len(points(spec)) == 2


def test_the_base_trial_of_a_sweep_runs_alone(write: Callable[[str], str]) -> None:
    trial = load_trial(write(FILE), ["seed=4", "defense.beta=0.9"])
    assert (trial.seed, trial.defense.beta, trial.defense.warmup.epochs) == (4, 0.9, 7)


def test_the_first_word_may_be_a_file() -> None:
    assert split_words(["a.yaml", "seed=1"]) == ("a.yaml", ["seed=1"])
    assert split_words(["seed=1", "a.yaml"]) == (None, ["seed=1", "a.yaml"])
    assert split_words([]) == (None, [])


CONDITIONS = """
trial: {dataset: toy, defense: tiny}
grid:
  attack: [badnets, blend, sig]
when:
  - {if: {attack: blend}, grid: {attack.ratio: [0.1, 0.2]}}
  - {if: {attack: badnets}, grid: {attack.rate: [0.2]}}
exclude:
  - {attack: sig, attack.rate: 0.1}
"""


@pytest.mark.parametrize(
    ("word", "count", "rules"),
    [
        ("attack=badnets", 1, 1),
        ("attack={name: blend}", 2, 1),
        ("attack=blend,badnets", 3, 2),
        ("grid.attack=[blend]", 2, 1),
        ("grid={attack: [blend]}", 2, 1),
        ("attack=none", 1, 0),
    ],
)
def test_a_condition_that_the_command_line_overrides_need_not_be_met(
    write: Callable[..., str], word: str, count: int, rules: int
) -> None:
    spec = load_sweep(write(CONDITIONS), [word])
    assert len(points(spec)) == count
    assert len(spec.when) + len(spec.exclude) == rules
    again = load_sweep(write(yaml.safe_dump(sweep_to_dict(spec)), "again.yaml"))
    assert points(again) == points(spec)  # as `bdtune report` reads it, without the command line


@pytest.mark.parametrize("word", ["seed=3", "attack.target=1", "defense.beta=0.7"])
def test_a_condition_that_the_command_line_leaves_alone_must_be_met(
    write: Callable[[str], str], word: str
) -> None:
    with pytest.raises(UserError, match=r"when\[0\]\.if: expected settings that some trial has"):
        load_sweep(write(CONDITIONS.replace("if: {attack: blend}", "if: {attack: wanet}")), [word])


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("defense.beta=range(0.5,3,0.5)", (0.5, 1.0, 1.5, 2.0, 2.5)),
        ("defense.beta=range(0.1, 0.4, 0.1)", (0.1, 0.2, 0.3)),
        ("defense.steps=range(1,4)", (1, 2, 3)),
        ("defense.steps=range(4,1,-2)", (4, 2)),
        ("seed=range(3)", (0, 1, 2)),
        ("defense.beta=choice(0.1,0.2)", (0.1, 0.2)),
        ("defense.mode=choice(slow)", ("slow",)),
        ("grid.defense.beta=range(1,3)", (1, 2)),
    ],
)
def test_ranges_and_choices(load: Callable[..., SweepSpec], word: str, values: tuple[object, ...]) -> None:
    path = word.removeprefix("grid.").partition("=")[0]
    axis = load(word).grid[path]
    assert axis == values
    assert [type(value) for value in axis] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text", ["range(1)(2)", "range(3,1)", "range(1,2,0)", "range(0,1e9)", "range(a)", "choice()"]
)
def test_what_is_no_range(load: Callable[..., SweepSpec], text: str) -> None:
    with pytest.raises(UserError, match=r"defense\.beta"):
        load(f"defense.beta={text}")


def test_a_range_of_a_searched_setting_is_a_choice(write: Callable[[str], str]) -> None:
    file = write("trial: {dataset: toy, defense: tiny}\nsearch: {trials: 3, space: {seed: {int: [0, 9]}}}\n")
    spec = load_sweep(file, ["search.space.defense.beta=range(0,1,0.25)"])
    assert spec.search is not None
    assert spec.search.space["defense.beta"].values == (0.0, 0.25, 0.5, 0.75)


def test_names_match_without_case(load: Callable[..., SweepSpec], write: Callable[..., str]) -> None:
    assert load("attack=BadNets").trial.attack.rate == 0.2  # the same attack keeps its knobs
    assert load("attack.name=BADNETS").trial.attack.rate == 0.2
    assert load("attack=None").trial.attack is None
    assert load("attack.preset=LfD/BN_G").trial.attack.pattern == "grid"
    assert load("scheduler=ASHA").scheduler.name == "asha"
    assert params(load("attack=Blend,BadNets", "seed=0", "defense.beta=1"), "attack") == ["blend", "badnets"]
    conditions = """
trial: {dataset: Toy, defense: TINY}
grid: {attack: [BadNets, Blend]}
when: [{if: {attack: BLEND}, grid: {attack.ratio: [0.1, 0.2]}}]
exclude: [{attack: [badNETS]}]
"""
    spec = load_sweep(write(conditions, "a.yaml"))
    assert params(spec, "attack.ratio") == [0.1, 0.2]


@pytest.mark.parametrize(
    "words",
    [
        ("attack={name:", "blend,", "rate:", "0.1}"),  # as the shell splits it
        ("attack=name:blend", "attack=rate:0.1"),  # as the shell expands its braces
    ],
)
def test_an_unquoted_mapping(load: Callable[..., SweepSpec], words: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        load(*words)
    assert "Quote it" in caught.value.problems[0].hint


def test_a_missing_value_brings_no_second_error(write: Callable[[str], str]) -> None:
    with pytest.raises(UserError) as caught:
        load_sweep(write("trial: {dataset: toy, defense: tiny}"), ["attack=", "attack.rate=0.2", "sed=1"])
    assert [problem.path for problem in caught.value.problems] == ["attack", "sed"]


def test_one_seed_is_not_taken_for_a_number_of_seeds(load: Callable[..., SweepSpec], caplog: Any) -> None:
    assert load("seeds=3").seeds == (3,)
    assert "the one seed 3" in caplog.text
    assert "seed=0,1,2" in caplog.text
    caplog.clear()
    load("seeds=3,4")
    load("seeds=[3]")
    assert not caplog.text
