from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from bdtune.report import figure
from bdtune.report.figure import overview
from bdtune.report.groups import grouped, varying
from bdtune.report.panels import draw, panels, undefended
from bdtune.report.selection import selected
from bdtune.trials.results import OracleRead, SweepResult


def axis_values(groups, *best):
    axes = varying(groups)
    return {p.axis: [group.params[p.axis] for group in p.groups] for p in panels(groups, axes, best)}


def drawn_panel(trials, best=()):
    """The first panel of trials that differ in one knob, or of a search."""
    from matplotlib.figure import Figure

    groups = grouped(trials)
    ax = Figure().add_subplot()
    [panel, *_] = panels(groups, varying(groups), best)
    draw(ax, panel, {axis: axis for axis in varying(groups)}, groups, best)
    return ax


def pictured(result, tmp_path, monkeypatch):
    """The figure of a sweep that `overview` saves."""
    from matplotlib.figure import Figure

    kept = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: kept.append(self))
    overview(result, tmp_path / "x.png")
    return kept[0]


def test_seeds_are_dots_and_nothing_lies_beyond_0_and_1(make_trial, tmp_path, monkeypatch):
    """A mean of 0.485 with a deviation of 0.686 was drawn from -0.2 to 1.17."""
    seeds = [(0, 0.0), (1, 0.97)]
    trials = [
        make_trial(f"{k}{seed}", seed, asr=asr, knobs={"k": k}) for k in (1.0, 2.0) for seed, asr in seeds
    ]
    figure_ = pictured(SweepResult("s", tuple(trials)), tmp_path, monkeypatch)
    for ax in figure_.axes:
        lines = [line for line in ax.get_lines() if line.get_color() == figure.ASR or ax is figure_.axes[0]]
        asr = [v for line in lines for v in (line.get_xdata() if ax is figure_.axes[0] else line.get_ydata())]
        asr = [v for v in asr if v == v]  # nan: gaps between the settings' lines
        assert {0.0, 0.97, 0.485} <= set(asr)
        assert min(asr) >= 0
        assert max(asr) <= 1


def test_names_are_not_joined_by_lines_and_stand_below_each_other(make_trial):
    ax = drawn_panel([make_trial(name, knobs={"attack": name}) for name in ("badnets", "blend", "wanet")])
    assert {line.get_linestyle() for line in ax.get_lines() if len(line.get_xdata())} == {"None"}
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["badnets", "blend", "wanet"]
    joined = drawn_panel([make_trial(str(k), knobs={"k": k}) for k in (1.0, 2.0, 3.0)])
    assert {line.get_linestyle() for line in joined.get_lines()} == {"-"}


def test_a_search_has_a_panel_of_each_knob_with_all_settings(make_trial, tmp_path, monkeypatch):
    trials = [
        make_trial(
            str(i), asr=i / 20, knobs={"defense.a": i / 7, "defense.b": 1.1**i, "defense.c": i % 2 > 0}
        )
        for i in range(12)
    ]
    result = selected("s", trials, "oracle_der")
    figure_ = pictured(result, tmp_path, monkeypatch)
    assert len(figure_.axes) == 4
    for ax in figure_.axes[1:]:
        [acc, asr] = [line for line in ax.get_lines() if len(line.get_xdata()) == 12]
        assert acc.get_linestyle() == asr.get_linestyle() == "None"


def test_the_title_counts_the_seeds_and_nothing_is_cut(make_trial, tmp_path, monkeypatch):
    knobs = {f"defense.some_long_name_{i}": i / 3 for i in range(8)}
    trials = [make_trial("a", knobs=knobs), make_trial("b", knobs={name: v + 1 for name, v in knobs.items()})]
    figure_ = pictured(selected("s", trials, "oracle_der"), tmp_path, monkeypatch)
    title = figure_.get_suptitle()
    assert "2 settings, seed 0: one run each" in title
    assert "some_long_name_7=2.33333" in title
    figure_.canvas.draw()
    for artist in (figure_.legends[0], figure_._suptitle):
        box = artist.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure_.bbox.width
    two = selected("s", [make_trial("a", 0), make_trial("b", 1)], "oracle_der")
    assert (
        "1 setting, seeds 0, 1: a small dot for each" in pictured(two, tmp_path, monkeypatch).get_suptitle()
    )


def test_a_picture_is_drawn(sweep, tmp_path):
    path = overview(sweep, tmp_path / "deep" / "report.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_picture_without_numbers(make_trial, make_baseline, tmp_path):
    trials = (make_baseline("r"), make_trial("a", status="failed"))
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
def test_numbers_that_lie_far_apart_have_a_logarithmic_axis(make_trial, values, scale):
    ax = drawn_panel([make_trial(str(value), knobs={"k": value}) for value in values])
    assert (list(ax.get_xticks()), ax.get_xscale()) == (values, scale)
    places = ax.transData.transform([(value, 0.0) for value in values])[:, 0]
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


def test_the_level_without_a_defense_is_that_of_the_panels_attack(make_trial, make_baseline):
    grid = [make_trial(f"{a}{k}", knobs={"attack": a, "k": k}) for a in ("badnets", "blend") for k in (1, 2)]
    baselines = [
        replace(baseline, params={**baseline.params, "attack": attack})
        for attack, baseline in (("badnets", make_baseline("r", acc=0.9)), ("blend", make_baseline("q")))
    ]
    groups = grouped([*grid, *baselines])
    shown = {panel.axis: panel for panel in panels(groups, varying(groups), [groups[2]])}
    assert undefended(shown["k"], groups, "acc").mean == 0.9
    assert undefended(shown["attack"], groups, "acc") is None


def test_a_picture_of_several_attacks(make_trial, tmp_path):
    trials = [make_trial(attack, knobs={"attack": attack}) for attack in ("badnets", "blend")]
    result = selected("s", trials, "oracle_der", oracle=(OracleRead("search", "oracle_der"),))
    assert overview(result, tmp_path / "x.png")
