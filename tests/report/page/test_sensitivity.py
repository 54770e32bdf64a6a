"""Main effects and pairs against plain loops, and when there are none."""

from __future__ import annotations

import itertools
from statistics import fmean

import pytest

from bdtune.report.groups import grouped
from bdtune.report.page.sensitivity import effects, pairs
from bdtune.trials.results import TrialResult

A, B, C = (0.1, 0.2, 0.3), ("x", "y"), (1, 2)


def trial(status="done", **params) -> TrialResult:
    knobs = {f"defense.{name}": value for name, value in params.items() if name != "der"}
    values = {"dataset": "digits", "attack": "badnets", "defense": "toy", **knobs, "seed": 0}
    metrics = {"der": params["der"], "acc": 0.9} if status == "done" else {}
    return TrialResult(str(sorted(params.items())), status, values, metrics)


def der(a, b, c) -> float:
    return 0.2 + a + (0.3 if b == "y" else 0.0) * (1 + a) - 0.05 * c


@pytest.fixture
def grid():
    return grouped(trial(a=a, b=b, c=c, der=der(a, b, c)) for a, b, c in itertools.product(A, B, C))


def test_a_main_effect_is_the_mean_over_all_ways_to_hold_the_others(grid):
    found = {effect.name: effect for effect in effects(grid, ["der"], "der")}
    assert [level.value for level in found["a"].levels] == list(A)
    for level in found["a"].levels:
        own = [der(level.value, b, c) for b in B for c in C]
        assert level.metrics["der"] == (pytest.approx(fmean(own)), min(own), max(own))
    assert found["a"].slices == 4
    assert list(found) == ["b", "a", "c"]  # the largest effect first
    assert found["c"].span("der") == pytest.approx(0.05)


def test_one_factor_at_a_time_is_held_at_the_base():
    base = {"a": 0.1, "b": "x", "c": 1}
    changed = [{}, {"a": 0.2}, {"a": 0.3}, {"b": "y"}, {"c": 2}]
    groups = grouped(trial(**{**base, **own}, der=der(**{**base, **own})) for own in changed)
    found = {effect.name: effect for effect in effects(groups, ["der"], "der")}
    assert {name: effect.slices for name, effect in found.items()} == {"a": 1, "b": 1, "c": 1}
    assert [lv.metrics["der"][0] for lv in found["b"].levels] == [der(0.1, "x", 1), der(0.1, "y", 1)]
    assert pairs(groups, "der") == []


def test_a_failed_setting_leaves_its_slice_out(grid):
    lost = [group for group in grid if group.params["defense.a"] == 0.2 and group.params["defense.b"] == "x"]
    trials = [trial for group in grid for trial in group.trials if group not in lost]
    trials += [trial("failed", a=0.2, b="x", c=c, der=0.0) for c in C]
    found = {effect.name: effect for effect in effects(grouped(trials), ["der"], "der")}
    assert found["a"].slices == 2  # those with b=y
    assert found["a"].levels[1].metrics["der"][0] == pytest.approx(fmean(der(0.2, "y", c) for c in C))


def test_the_points_of_a_search_are_not_held():
    groups = grouped(trial(a=i / 10, b=i / 7, der=i / 20) for i in range(6))
    [one, two] = effects(groups, ["der"], "der")
    assert (one.slices, len(one.levels), one.span("der")) == (0, 6, 0.0)
    assert [level.value for level in two.levels] == sorted(level.value for level in two.levels)


def test_a_pair_has_every_combination_and_its_departure_from_adding_up(grid):
    found = {pair.names: pair for pair in pairs(grid, "der")}
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    pair = found["a", "b"]
    assert (pair.values, pair.slices) == ((A, B), 2)
    means = {(a, b): fmean(der(a, b, c) for c in C) for a in A for b in B}
    assert pair.means == tuple(tuple(pytest.approx(means[a, b]) for b in B) for a in A)
    rows, columns = (
        {a: fmean(means[a, b] for b in B) for a in A},
        {b: fmean(means[a, b] for a in A) for b in B},
    )
    whole = fmean(means.values())
    departure = max(abs(means[a, b] - rows[a] - columns[b] + whole) for a in A for b in B)
    assert pair.interaction == pytest.approx(departure)
    assert found["a", "c"].interaction == pytest.approx(0)
    assert next(iter(found)) == ("a", "b")


def test_a_plugin_stands_for_the_mean_over_its_own_knobs():
    """Knobs that its rivals lack cannot be held while the plugin changes."""
    values = {("lfd", 1): 0.5, ("lfd", 2): 0.7, ("abl", None): 0.9}
    groups = grouped(
        TrialResult(
            f"{attack}{name}{beta}",
            "done",
            {"attack": attack, "defense": name, **({"defense.beta": beta} if beta else {})},
            {"der": value - (attack == "blend") / 10},
        )
        for attack in ("badnets", "blend")
        for (name, beta), value in values.items()
    )
    found = {effect.name: effect for effect in effects(groups, ["der"], "der")}
    means = {level.value: level.metrics["der"] for level in found["defense"].levels}
    assert means["lfd"] == (pytest.approx(0.55), pytest.approx(0.5), pytest.approx(0.6))
    assert means["abl"][0] == pytest.approx(0.85)
    assert found["attack"].slices == 3
    pair = next(pair for pair in pairs(groups, "der") if pair.names == ("attack", "defense"))
    assert pair.means == ((pytest.approx(0.9), pytest.approx(0.6)), (pytest.approx(0.8), pytest.approx(0.5)))
