from __future__ import annotations

import pytest

from bdtune.cluster.trial_source import make_source

SEARCH = """
search:
  sampler: {sampler}
  trials: 6
  {metric}
  space:
    defense.tail.quality: {{uniform: [0.0, 1.0]}}
    defense.prefix.level: {{int: [0, 9]}}
    defense.beta: {{choice: [0.3, 0.5]}}
"""
ONE, TWO = "metric: oracle_acc", "metric: [oracle_acc, oracle_asr]"


@pytest.fixture
def source(bench, tmp_path):
    """Make a source of the same study again and again."""

    def make(sampler="random", metric=ONE, folder="study", extra="", trials=6):
        text = SEARCH.format(sampler=sampler, metric=metric).replace("trials: 6", f"trials: {trials}")
        return make_source(bench.spec(extra=text + extra), tmp_path / folder)

    return make


def drawn(trial) -> tuple:
    defense = trial.defense
    return defense.tail.quality, defense.prefix.level, defense.beta


def asked(source, tell=None) -> list[tuple]:
    """Ask for all trials, tell each at once, and return their values."""
    found = []
    while (proposed := source.ask()) is not None:
        ticket, trial = proposed
        found.append(drawn(trial))
        if tell is not None:
            source.tell(ticket, tell(trial))
    return found


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize(
    ("sampler", "metric"),
    [("tpe", ONE), ("random", ONE), ("qmc", ONE), ("gp", ONE), ("nsga2", ONE), ("nsga2", TWO), ("tpe", TWO)],
)
def test_every_sampler_proposes_what_it_is_asked_for(source, sampler, metric):
    objectives = 1 if metric is ONE else 2
    values = asked(source(sampler, metric), lambda trial: [trial.defense.tail.quality] * objectives)
    assert len(values) == 6
    assert len(set(values)) > 1
    assert all(
        0 <= quality <= 1 and 0 <= level <= 9 and beta in (0.3, 0.5) for quality, level, beta in values
    )


def test_a_killed_search_gives_out_again_what_it_left_open_and_then_goes_on(source):
    whole = asked(source(folder="undisturbed"), lambda trial: [0.5])
    first = source()
    given = [first.ask() for _ in range(4)]
    first.tell(given[1][0], [0.5])  # then it is killed, with three trials open
    second = source()
    again = [second.ask() for _ in range(5)]
    assert [(ticket, drawn(trial)) for ticket, trial in again[:4]] == [
        (t, drawn(trial)) for t, trial in given
    ]
    second.tell(again[0][0], None)  # failed; and killed once more
    assert asked(source(), lambda trial: [0.5]) == whole
    assert asked(source()) == whole, "a search that is over proposes the same trials again"


def test_more_trials_extend_a_search(source):
    fewer = asked(source(trials=4), lambda trial: [0.5])
    more = asked(source(trials=6), lambda trial: [0.5])
    assert more[:4] == fewer
    assert len(more) == 6


def test_another_base_or_space_is_another_search(source):
    asked(source(), lambda trial: [0.5])
    other = source(extra="    defense.tail.epochs: {int: [1, 3]}\n")
    assert other.ask()[0] == 0, "what other settings reached says nothing here"


def test_a_line_that_a_killed_driver_was_writing_is_cut_off(source, tmp_path):
    first = source()
    given = [first.ask() for _ in range(3)]
    with (tmp_path / "study" / "optuna.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker_')
    second = source()
    assert [drawn(second.ask()[1]) for _ in range(3)] == [drawn(trial) for _, trial in given]
    assert len(asked(source())) == 6


def test_a_trial_killed_before_it_had_its_values_does_not_count(source, tmp_path):
    first = source()
    first.ask()
    first._study.ask()  # a trial without values
    assert len(asked(source())) == 6


def test_settings_that_do_not_go_together_are_left_out(bench, tmp_path, caplog):
    extra = """
search:
  sampler: random
  trials: 8
  space: {defense.alpha_c: {uniform: [0.1, 0.7]}, defense.alpha_p: {uniform: [0.1, 0.7]}}
"""
    spec = bench.spec("dataset=digits", "defense=gssd", "model=resnet18", extra=extra)
    source = make_source(spec, tmp_path / "study")
    found = []
    while (proposed := source.ask()) is not None:
        found.append(proposed[1].defense)
    assert 0 < len(found) < 8
    assert all(defense.alpha_c + defense.alpha_p <= 1 for defense in found)
    assert "is left out" in caplog.text


def test_a_scheduler_is_given_a_grid_in_no_order_of_its_values(bench, tmp_path):
    """What compares a trial with those before it must not be shown the worst ones first."""
    grid = "defense.tail.quality=" + ",".join(str(n / 16) for n in range(1, 17))

    def qualities(*overrides: str) -> list[float]:
        return [quality for quality, *_ in asked(make_source(bench.spec(grid, *overrides), tmp_path))]

    listed, judged = qualities(), qualities("scheduler=asha")
    assert listed == sorted(listed)
    assert sorted(judged) == listed
    assert judged not in (listed, listed[::-1])
    assert judged == qualities("scheduler=asha"), "a resumed sweep has the same order"
    halves = judged[:8], judged[8:]
    assert all(min(half) < 0.5 < max(half) for half in halves)
