"""From a sweep's sections to its trials."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.config.search import preview
from bdtune.config.sweep import sweep_to_dict
from bdtune.config.trial import parse_section, to_params, trial_id
from bdtune.plugins.metric import better

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.config.sweep import SweepSpec

TRIAL = {"dataset": "toy", "attack": "badnets", "defense": {"name": "tiny", "beta": 0.5}}
Write = "Callable[[str], str]"


@pytest.fixture
def sweep(write: Callable[[str], str]) -> Callable[..., SweepSpec]:
    return lambda **sections: load_sweep(write(yaml.safe_dump({"trial": TRIAL, **sections}, sort_keys=False)))


def table(spec: SweepSpec, *paths: str) -> list[tuple[Any, ...]]:
    return [tuple(to_params(trial)[path] for path in paths) for trial in points(spec)]


def test_no_axes_one_trial(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep()
    assert spec.name == "s"
    assert [trial_id(trial) for trial in points(spec)] == [trial_id(spec.trial)]


def test_grid_is_every_combination_seeds_innermost(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(grid={"defense.beta": [1, 2], "defense.mode": ["fast", "slow"]}, seeds=[5, 6])
    found = table(spec, "defense.beta", "defense.mode", "seed")
    assert found == list(itertools.product([1, 2], ["fast", "slow"], [5, 6]))


def test_zip_goes_in_step_and_values_may_repeat(sweep: Callable[..., SweepSpec]) -> None:
    group = {"defense.beta": [1, 1, 2], "defense.steps": [3, 4, 4]}
    assert table(sweep(zip=group), "defense.beta", "defense.steps") == [(1, 3), (1, 4), (2, 4)]
    two = sweep(zip=[group, {"seed": [0, 1], "holdout": [0.1, 0.2]}])
    assert len(points(two)) == 6


def test_vary_is_the_base_then_one_factor_at_a_time(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(vary={"defense.beta": [0.1, 0.5, 0.9], "defense.steps": [10, 20]}, seeds=[0, 1])
    expected = [(0.5, 10), (0.1, 10), (0.9, 10), (0.5, 20)]
    assert table(spec, "defense.beta", "defense.steps") == [row for row in expected for _ in range(2)]


@pytest.mark.parametrize(("values", "found"), [(["2/255"], [2]), (["1/255", "2/255", "4/255"], [2, 1, 4])])
def test_a_varied_value_is_the_bases_however_it_is_written(
    write: Callable[[str], str], values: list[str], found: list[int]
) -> None:
    trial = {"dataset": "toy", "defense": {"name": "aabl", "ifgsm": {"eps": 2 / 255}}}
    spec = load_sweep(write(yaml.safe_dump({"trial": trial, "vary": {"defense.ifgsm.eps": values}})))
    assert [trial.defense.ifgsm.eps * 255 for trial in points(spec)] == pytest.approx(found)


def test_vary_may_change_a_plugin(sweep: Callable[..., SweepSpec]) -> None:
    assert table(sweep(vary={"attack": ["badnets", "blend", None]}), "attack") == [
        ("badnets",),
        ("blend",),
        ("none",),
    ]


def test_when_adds_axes_to_some_points(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(
        grid={"attack": ["badnets", "blend"]},
        when=[{"if": {"attack": "blend"}, "grid": {"attack.ratio": [0.1, 0.2]}}],
    )
    assert [to_params(t).get("attack.ratio") for t in points(spec)] == [None, 0.1, 0.2]
    assert spec.axis_paths() == ["attack", "attack.ratio"]


def test_a_condition_may_name_a_setting_that_is_not_swept(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(when=[{"if": {"attack.rate": 0.1}, "grid": {"seed": [1, 2, 3]}}])
    assert table(spec, "seed") == [(1,), (2,), (3,)]


def test_exclude_takes_all_settings_of_an_entry_and_any_of_a_list(sweep: Callable[..., SweepSpec]) -> None:
    grid = {"defense.beta": [1, 2, 3], "attack": ["badnets", None]}
    spec = sweep(grid=grid, exclude=[{"defense.beta": [1, 2], "attack": None}])
    assert table(spec, "defense.beta", "attack") == [
        (1, "badnets"),
        (2, "badnets"),
        (3, "badnets"),
        (3, "none"),
    ]


def test_points_that_are_excluded_need_not_be_possible(sweep: Callable[..., SweepSpec]) -> None:
    grid = {"defense.alpha_c": [0.3, 0.9], "defense.alpha_p": [0.05, 0.2]}
    spec = sweep(grid=grid, exclude=[{"defense.alpha_c": 0.9, "defense.alpha_p": 0.2}])
    assert len(points(spec)) == 3


def test_which_plugin_comes_before_its_knobs(sweep: Callable[..., SweepSpec]) -> None:
    grid = {"attack.rate": [0.1, 0.2], "attack": ["blend", {"preset": "abl/badnets", "target": 1}]}
    found = table(sweep(grid=grid), "attack", "attack.rate", "attack.target")
    assert found == [("blend", 0.1, 0), ("badnets", 0.1, 1), ("blend", 0.2, 0), ("badnets", 0.2, 1)]


axes = st.fixed_dictionaries(
    {},
    optional={
        "defense.beta": st.lists(st.floats(0, 9), min_size=1, max_size=4, unique=True),
        "defense.steps": st.lists(st.integers(1, 50), min_size=1, max_size=4, unique=True),
        "attack.rate": st.lists(st.sampled_from([0.05, 0.1, 0.2, 0.4]), min_size=1, max_size=4, unique=True),
        "model.width": st.lists(st.integers(1, 8), min_size=1, max_size=3, unique=True),
    },
)
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(grid=axes, seeds=st.lists(st.integers(0, 99), max_size=3, unique=True))
def test_a_grid_has_as_many_trials_as_combinations(
    sweep: Callable[..., SweepSpec], grid: dict[str, Any], seeds: list[int]
) -> None:
    spec = sweep(grid=grid, **({"seeds": seeds} if seeds else {}))
    count = max(1, len(seeds))
    for values in grid.values():
        count *= len(values)
    found = points(spec)
    assert len(found) == count == len({trial_id(trial) for trial in found})
    for path, values in grid.items():
        assert {to_params(trial)[path] for trial in found} == set(values)


@quick
@given(vary=axes)
def test_one_factor_at_a_time_adds_up(sweep: Callable[..., SweepSpec], vary: dict[str, Any]) -> None:
    spec = sweep(vary=vary)
    base = to_params(spec.trial)
    assert len(points(spec)) == 1 + sum(
        value != base[path] for path, values in vary.items() for value in values
    )
    for trial in points(spec)[1:]:
        assert sum(value != base[path] for path, value in to_params(trial).items()) == 1


@quick
@given(grid=axes, vary=axes)
def test_a_written_sweep_is_the_same_sweep(
    sweep: Callable[..., SweepSpec], write: Callable[[str], str], grid: dict[str, Any], vary: dict[str, Any]
) -> None:
    spec = sweep(grid=grid, vary={path: values for path, values in vary.items() if path not in grid})
    again = load_sweep(write(yaml.safe_dump(sweep_to_dict(spec), sort_keys=False), "again.yaml"))
    assert again == spec
    assert list(map(trial_id, points(again))) == list(map(trial_id, points(spec)))


def search(**settings: Any) -> dict[str, Any]:
    space = {
        "defense.beta": {"log_uniform": [0.01, 1.0]},
        "defense.alpha_c": {"uniform": [0.1, 0.5]},
        "defense.steps": {"int": [1, 5]},
        "attack": {"choice": ["badnets", "blend"]},
    }
    return {"trials": 20, "space": space, **settings}


def test_a_search_has_objectives_and_no_list_of_points(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(search=search())
    assert spec.objectives == (("oracle_der", "max"),)
    with pytest.raises(ValueError, match="drawn, not listed"):
        points(spec)
    assert sweep(search=search(), select={"metric": "oracle_asr"}).objectives == (("oracle_asr", "min"),)
    two = sweep(search=search(metric=["oracle_acc", "oracle_asr"], sampler="nsga2"))
    assert two.objectives == (("oracle_acc", "max"), ("oracle_asr", "min"))


def test_a_preview_draws_from_the_space(sweep: Callable[..., SweepSpec]) -> None:
    spec = sweep(search=search(seed=3))
    drawn = preview(spec, 30)
    assert drawn == preview(spec, 30)
    assert len({trial_id(trial) for trial in drawn}) == 30
    rows = [to_params(trial) for trial in drawn]
    assert all(0.01 <= row["defense.beta"] <= 1 and 0.1 <= row["defense.alpha_c"] <= 0.5 for row in rows)
    assert {row["defense.steps"] for row in rows} == {1, 2, 3, 4, 5}
    assert {row["attack"] for row in rows} == {"badnets", "blend"}


def test_a_written_search_is_the_same_search(
    sweep: Callable[..., SweepSpec], write: Callable[[str], str]
) -> None:
    published = [{"params": {"attack": "badnets"}, "metrics": {"acc": 0.9}, "source": "a paper"}]
    spec = sweep(search=search(), scheduler={"name": "asha", "grace": 2}, published=published)
    assert load_sweep(write(yaml.safe_dump(sweep_to_dict(spec)), "again.yaml"), ["name=s"]) == spec


def test_the_better_direction_of_a_metric() -> None:
    assert [better(m) for m in ("oracle_der", "select_acc", "oracle_asr", "oracle_asr_all")] == [
        "max",
        "max",
        "min",
        "min",
    ]


def test_a_rule_of_the_spread_over_seeds_may_be_named_where_there_are_two(
    sweep: Callable[..., SweepSpec],
) -> None:
    for axes in (
        {"seeds": [0, 1]},
        {"grid": {"seed": [3, 4]}},
        {"when": [{"if": {"attack": "badnets"}, "grid": {"seed": [1, 2]}}]},
    ):
        spec = sweep(select="oracle_asr_stable", **axes)
        assert (spec.select.metric, spec.select.mode) == ("oracle_asr_stable", "min")


def test_more_seeds_of_such_a_sweep_may_come_one_by_one(write: Callable[[str], str]) -> None:
    file = write(
        yaml.safe_dump(
            {"trial": {"dataset": "toy", "defense": "tiny"}, "seeds": [0, 1], "select": "oracle_acc_stable"}
        )
    )
    assert load_sweep(file, ["seed=2"]).select.metric == "oracle_acc_stable"


def test_ten_thousand_trials_are_read_in_as_many_steps_as_there_are_distinct_settings(
    sweep: Callable[..., SweepSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Counter[str] = Counter()

    def counted(key: str, raw: object) -> object:
        read[key] += 1
        return parse_section(key, raw)

    monkeypatch.setattr("bdtune.config.points.parse_section", counted)
    grid = {
        "defense.beta": [i / 10 for i in range(20)],
        "defense.alpha_c": [i / 100 for i in range(25)],
        "attack.rate": [0.1, 0.2, 0.3, 0.4],
    }
    assert len(points(sweep(grid=grid, seeds=list(range(5))))) == 10_000
    assert read == {"defense": 20 * 25, "attack": 4, "seed": 5}


def test_a_selection_rule_may_be_its_name_alone(sweep: Callable[..., SweepSpec]) -> None:
    select = sweep(select="oracle_asr").select
    assert (select.metric, select.mode) == ("oracle_asr", "min")
