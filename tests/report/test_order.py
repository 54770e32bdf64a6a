"""The rows of a sweep's table: the best first, or sorted as asked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bdtune.errors import UserError
from bdtune.report.selection import selected
from bdtune.report.table import build


def rows(shown, *names):
    at = [[column.name for column in shown.columns].index(name) for name in names]
    return [tuple(row.cells[i] for i in at) for row in shown.rows]


@pytest.fixture
def two(make_trial, make_baseline):
    """Two settings of a knob on each of two attacks, and what each attack does without a defense."""
    asr = {("badnets", 1): 0.4, ("badnets", 2): 0.1, ("blend", 1): 0.2, ("blend", 2): 0.3}
    trials = [
        make_trial(f"{attack}{k}", asr=value, knobs={"attack": attack, "defense.k": k})
        for (attack, k), value in asr.items()
    ]
    baselines = [
        replace(made, params={**made.params, "attack": attack})
        for attack in ("badnets", "blend") for made in [make_baseline(f"ref-{attack}")]
    ]  # fmt: skip
    return selected("s", [*trials, *baselines], "oracle_der")


def test_each_attack_has_a_block_with_its_best_setting_below_what_is_undefended(two):
    assert rows(build(two), "attack", "k") == [
        ("badnets", "-"), ("badnets", "2"), ("badnets", "1"), ("blend", "-"), ("blend", "1"), ("blend", "2"),
    ]  # fmt: skip


def test_sorting_by_a_metric_puts_its_best_value_first_over_all_attacks(two):
    assert [asr for _, asr in rows(build(two, sort="asr"), "k", "asr")[2:]] == [
        "0.100", "0.200", "0.300", "0.400",
    ]  # fmt: skip
    assert [ra for _, ra in rows(build(two, sort="ra"), "k", "ra")[2:]] == [
        "0.810",
        "0.720",
        "0.630",
        "0.540",
    ]


@pytest.mark.parametrize("name", ["k", "defense.k"])
def test_sorting_by_a_setting_puts_its_lowest_value_first(two, name):
    assert rows(build(two, sort=name), "k") == [("-",), ("-",), ("1",), ("1",), ("2",), ("2",)]


def test_the_metric_that_rows_are_sorted_by_is_shown_however_narrow_the_page(sweep):
    trials = tuple(replace(t, metrics={**t.metrics, "gssd/kept": 0.5}) for t in sweep.trials)
    shown = build(replace(sweep, trials=trials), sort="gssd/kept")
    assert [column.spare for column in shown.columns if column.name == "gssd/kept"] == [0]


def test_what_cannot_be_ranked_comes_last(sweep, make_trial):
    pending = make_trial("new", status="pending", knobs={"defense.beta_nd": 0.1})
    shown = build(replace(sweep, trials=(*sweep.trials, pending)))
    assert rows(shown, "beta_nd")[-1] == ("0.1",)
    assert rows(build(replace(sweep, trials=(*sweep.trials, pending)), sort="acc"), "beta_nd")[-1] == ("0.1",)


def test_top_keeps_so_many_of_each_attack_or_of_all_that_is_sorted(two):
    shown = build(two, top=1)
    assert rows(shown, "attack", "k") == [("badnets", "-"), ("badnets", "2"), ("blend", "-"), ("blend", "1")]
    assert "not shown: 2 settings" in shown.notes[0]
    assert rows(build(two, sort="asr", top=1), "attack", "k")[2:] == [("badnets", "2")]


def test_an_unknown_name_is_an_error_that_names_the_nearest(two):
    with pytest.raises(
        UserError, match=r"--sort: expected a metric or a setting.*acc.*k.*Did you mean 'asr'"
    ):
        build(two, sort="ars")
