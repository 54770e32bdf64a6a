from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bdtune.report.figure import _positions, _undefended, overview, panels
from bdtune.report.groups import grouped, varying
from bdtune.report.selection import selected
from bdtune.trials.results import OracleRead, SweepResult


def axis_values(groups, *best):
    axes = varying(groups)
    return {p.axis: [group.params[p.axis] for group in p.groups] for p in panels(groups, axes, best)}


def test_a_picture_is_drawn(sweep, tmp_path):
    path = overview(sweep, tmp_path / "deep" / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_numbers(make_trial, make_reference, tmp_path):
    trials = (make_reference("r"), make_trial("a", status="failed"))
    assert overview(SweepResult("s", trials), tmp_path / "x.png") is None
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("values", [["a", "b", "c"], [True, False], [None, 0.5], [1, 100, 10_000]])
def test_knobs_of_any_type(make_trial, tmp_path, values):
    trials = tuple(make_trial(f"t{i}", knobs={"k": value}) for i, value in enumerate(values))
    assert overview(SweepResult("s", trials, best="t0"), tmp_path / "x.png")


@pytest.mark.parametrize(
    ("values", "scale"),
    [([0.0, 1e-3, 0.1], "symlog"), ([1e-3, 0.1], "log"), ([0.05, 0.3], "linear"), ([0.0, 1.0], "linear")],
)
def test_numbers_that_lie_far_apart_have_a_logarithmic_axis(values, scale):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    positions, ticks = _positions(ax, values)
    assert (positions, len(ticks), ax.get_xscale()) == (values, len(values), scale)
    places = ax.transData.transform([(position, 0.0) for position in positions])[:, 0]
    assert min(b - a for a, b in pairwise(places)) > 20  # pixels: labels do not overlap


def test_one_setting_alone(make_trial, tmp_path):
    assert overview(SweepResult("s", (make_trial("a"),)), tmp_path / "x.png")


def test_panels_of_a_grid_run_through_the_best(make_trial):
    grid = [make_trial(f"{a}{b}", knobs={"a": a, "b": b}) for a in (1.0, 2.0, 3.0) for b in (1.0, 2.0)]
    groups = grouped(grid)
    best = next(group for group in groups if group.params["a"] == 2.0 and group.params["b"] == 2.0)
    shown = {panel.axis: panel for panel in panels(groups, varying(groups), [best])}
    assert [group.params["a"] for group in shown["a"].groups] == [1.0, 2.0, 3.0]
    assert shown["a"].held == {"b": 2.0}
    assert shown["b"].held == {"a": 2.0}


def test_panels_of_one_factor_at_a_time_run_through_the_centre(make_trial):
    centre = {"a": 2.0, "b": 2.0}
    points = [centre, {"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 2.0}, {"a": 2.0, "b": 1.0}, {"a": 2.0, "b": 5.0}]
    groups = grouped([make_trial(f"t{i}", knobs=knobs) for i, knobs in enumerate(points)])
    off_centre = groups[0]
    assert axis_values(groups, off_centre) == {"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 5.0]}


def test_a_panel_runs_through_the_best_of_most_attacks(make_trial):
    grid = [
        make_trial(f"{attack}{a}{b}", knobs={"attack": attack, "a": a, "b": b})
        for attack in ("badnets", "blend") for a in (1, 2) for b in (1, 2)
    ]  # fmt: skip
    groups = grouped(grid)
    best = [group for group in groups if group.params["a"] == group.params["b"] == 2]
    shown = {panel.axis: panel.held for panel in panels(groups, varying(groups), best)}
    assert shown["attack"] == {"a": 2, "b": 2}
    assert (shown["a"]["b"], shown["b"]["a"]) == (2, 2)


def test_the_level_without_a_defense_is_that_of_the_panels_attack(make_trial, make_reference):
    grid = [make_trial(f"{a}{k}", knobs={"attack": a, "k": k}) for a in ("badnets", "blend") for k in (1, 2)]
    baselines = [
        replace(reference, params={**reference.params, "attack": attack})
        for attack, reference in (("badnets", make_reference("r", acc=0.9)), ("blend", make_reference("q")))
    ]
    groups = grouped([*grid, *baselines])
    shown = {panel.axis: panel for panel in panels(groups, varying(groups), [groups[2]])}
    assert _undefended(shown["k"], groups, "acc").mean == 0.9
    assert _undefended(shown["attack"], groups, "acc") is None


def test_a_picture_of_several_attacks(make_trial, tmp_path):
    trials = [make_trial(attack, knobs={"attack": attack}) for attack in ("badnets", "blend")]
    result = selected("s", trials, "oracle_der", oracle=(OracleRead("search", "oracle_der"),))
    assert overview(result, tmp_path / "x.png")
