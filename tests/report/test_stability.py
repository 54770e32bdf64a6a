"""How much der is lost around a setting when one knob moves by one step."""

from __future__ import annotations

import random
from dataclasses import replace
from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bdtune.report.contests import contests
from bdtune.report.groups import grouped
from bdtune.report.selection import selected
from bdtune.report.stability import Stability, stability_note, stability_of
from tests.report.compared import baseline, trial


def stability(trials, rule="oracle_der") -> Stability:
    every = contests(grouped(trials))
    return stability_of({each: each.pick(rule) for each in every})


def grid(der, *, attacks=("badnets",), seeds=(0,), a=(1, 2, 3), b=(1, 2, 3)):
    """Return trials of all combinations of two knobs; `der` is a function of attack, a, b and seed."""
    return [
        trial(attack=attack, seed=seed, der=der(attack, x, y, seed), knobs={"a": x, "b": y})
        for attack in attacks
        for x in a
        for y in b
        for seed in seeds
    ]


def test_neighbours_are_one_knob_and_one_step_away():
    peak = {(2, 2): 1.0, (1, 2): 0.9, (3, 2): 0.8, (2, 1): 0.95, (2, 3): 0.4}
    found = stability(grid(lambda _, x, y, __: peak.get((x, y), 0.0)))
    assert {(d.knob, d.value): pytest.approx(d.drop) for d in found.drops} == {
        ("defense.a", 1): 0.1, ("defense.a", 3): 0.2, ("defense.b", 1): 0.05, ("defense.b", 3): 0.6,
    }  # fmt: skip
    assert found.score == pytest.approx(1 - mean([mean([0.1, 0.2]), mean([0.05, 0.6])]))
    assert found.worst is not None
    assert (found.worst.text(several=False), found.worst.text(several=True)) == (
        "b=3",
        "b=3 on digits badnets",
    )
    assert (found.moved, found.nearby, found.unmoved) == (
        {"defense.a", "defense.b"},
        frozenset(),
        frozenset(),
    )


def test_a_knob_counts_the_same_however_many_neighbours_it_has():
    der = {1: 1.0, 2: 0.5}
    one = stability(grid(lambda _, x, y, __: der[x] if y == 2 else 0.9, a=(1, 2)))
    assert one.score == pytest.approx(1 - mean([0.5, mean([0.1, 0.1])]))


def test_a_better_neighbour_is_no_loss():
    trials = [trial(der=der, knobs={"k": k}, select_acc=k == 1) for k, der in ((1, 0.6), (2, 0.9))]
    assert stability(trials, "select_acc").score == 1.0
    assert stability(trials, "select_acc").worst.drop == 0.0


def test_all_values_of_a_name_are_next_and_so_is_none():
    trials = [trial(der=der, knobs={"form": form}) for form, der in (("a", 0.9), ("b", 0.7), ("z", 0.5))]
    assert sorted(round(d.drop, 3) for d in stability(trials).drops) == [0.2, 0.4]
    sizes = [trial(der=der, knobs={"k": k}) for k, der in ((None, 0.7), (1, 0.9), (2, 0.8), (3, 0.5))]
    assert sorted(round(d.drop, 3) for d in stability(sizes).drops) == [0.1, 0.2]
    flags = [trial(der=der, knobs={"on": on}) for on, der in ((True, 0.9), (False, 0.8), (1, 0.4))]
    assert sorted(round(d.drop, 3) for d in stability(flags).drops) == [0.1, 0.5]


def test_what_a_plugin_brings_along_is_part_of_the_step():
    knobs = ({"teacher.model": "a", "teacher.model.width": 4}, {"teacher.model": "b"})
    trials = [trial(der=der, knobs=own) for own, der in zip(knobs, (0.9, 0.6), strict=True)]
    found = stability(trials)
    assert [(d.knob, round(d.drop, 3)) for d in found.drops] == [("defense.teacher.model", 0.3)]
    two = [trial(der=der, knobs={"a": a, "b": a}) for a, der in ((1, 0.9), (2, 0.6))]
    assert stability(two).score is None
    assert stability(two).unmoved == {"defense.a", "defense.b"}


def test_only_knobs_of_the_defense_move():
    trials = [
        replace(trial(der=der), params={**trial().params, "model.width": w}, id=str(w))
        for w, der in ((4, 0.9), (8, 0.5))
    ]
    assert stability(trials) == Stability()


@pytest.mark.parametrize("knob", ["control", "removal.control", "oracle_target"])
def test_a_control_and_what_an_oracle_knows_are_no_knobs_to_move(knob):
    own = grid(lambda _, x, y, __: 1.0 if x == y == 2 else 0.9)
    control = trial(der=0.0, knobs={"a": 2, "b": 2, knob: "random"})
    found = stability([*own, control])
    assert found.score == pytest.approx(0.9)
    assert found.varied == {"defense.a", "defense.b"}


def test_in_a_sweep_of_one_factor_at_a_time_the_nearest_setting_stands_in():
    """The base is a=1 b=1 c=1; the best setting is a=2, from which only a was moved."""
    values = [({}, 0.8), ({"a": 2}, 0.9), ({"b": 2}, 0.7), ({"c": 2}, 0.3), ({"c": 2, "d": 2}, 0.2)]
    trials = [trial(der=der, knobs={"a": 1, "b": 1, "c": 1, "d": 1, **own}) for own, der in values]
    found = stability(trials)
    drops = {d.knob.removeprefix("defense."): pytest.approx(d.drop) for d in found.drops}
    assert drops == {"a": 0.1, "b": 0.1, "c": 0.5, "d": 0.1}
    assert found.score == pytest.approx(1 - mean([0.1, 0.1, 0.5, 0.1]))
    assert found.nearby == {"defense.b", "defense.c", "defense.d"}


def test_attacks_and_seeds_are_paired_and_attacks_count_the_same():
    def der(attack, x, y, seed):
        if attack == "badnets":
            return 0.9 - 0.2 * (x != 2) - 0.1 * seed * (x == 1)
        return 0.8 - 0.1 * abs(x - 1)

    trials = grid(der, attacks=("badnets", "blend"), seeds=(0, 1), b=(1,))
    found = stability(trials)
    badnets = mean([0.2, 0.2 + 0.1, 0.2, 0.2])  # next to a=2: a=1 and a=3, seeds 0 and 1
    assert found.score == pytest.approx(1 - mean([badnets, 0.1]))
    assert found.worst is not None
    assert (found.worst.case, found.worst.seed, found.worst.value) == ("badnets", 1, 1)


def test_a_neighbour_without_a_result_is_named_and_left_out():
    trials = [trial(der=d, knobs={"k": k}) for k, d in ((1, 0.7), (2, 0.9))]
    trials.append(trial(knobs={"k": 3}, status="diverged"))
    found = stability(trials)
    assert [d.value for d in found.drops] == [1]
    assert found.lost == ("k=3 on digits badnets",)


def test_a_single_setting_has_no_stability():
    found = stability([trial(knobs={"k": 1})])
    assert (found.score, found.worst, found.varied) == (None, None, frozenset())


def test_the_note_is_about_one_defense():
    trials = [trial(der=d, knobs={"k": k}) for k, d in ((1, 0.7), (2, 0.9))]
    groups = grouped(trials)
    (note,) = stability_note(selected("s", trials, "oracle_der"), groups)
    assert note.startswith(
        "stability 0.800: der falls by 0.200 in mean when one knob moves to its next value"
    )
    assert note.endswith(", most with k=1 (0.200)")
    both = [*trials, trial("other", knobs={"k": 1}), baseline()]
    assert stability_note(selected("s", both, "oracle_der"), grouped(both)) == []
    weak = [trial(der=d, knobs={"k": k}, undefended_asr=0.1, select_acc=d) for k, d in ((1, 0.7), (2, 0.9))]
    assert stability_note(selected("s", weak, "select_acc"), grouped(weak)) == []


# -------------------------------------------------------------------------------------------- properties

VALUES = st.lists(st.floats(0, 1), min_size=36, max_size=36)
ATTACKS, SEEDS = ("badnets", "blend"), (0, 1)


def table(values):
    """Return der by attack, a, b and seed: 2 x 3 x 3 x 2 numbers."""
    keys = [(t, a, b, s) for t in ATTACKS for a in (1, 2, 3) for b in (1, 2, 3) for s in SEEDS]
    return dict(zip(keys, values, strict=True))


def trials_of(der, rename=lambda value: value):
    return [
        trial(attack=t, seed=s, der=value, knobs={"a": rename(a), "b": rename(b)})
        for (t, a, b, s), value in der.items()
    ]


def slow(der):
    """Return the stability of a full grid as its definition reads, with loops alone."""
    cases = []
    for attack in ATTACKS:
        means = {(a, b): mean(der[attack, a, b, s] for s in SEEDS) for a in (1, 2, 3) for b in (1, 2, 3)}
        best = max(means.values())
        x, y = next(at for at in sorted(means) if means[at] == best)
        knobs = []
        for line in ([(a, y) for a in (x - 1, x + 1)], [(x, b) for b in (y - 1, y + 1)]):
            pairs = [
                1 - max(0.0, der[attack, x, y, s] - der[attack, *at, s])
                for at in line
                if at in means
                for s in SEEDS
            ]
            knobs.append(sum(pairs) / len(pairs))
        cases.append(sum(knobs) / len(knobs))
    return sum(cases) / len(cases)


quick = settings(max_examples=40, deadline=None)


@quick
@given(VALUES)
def test_it_is_what_its_definition_says(values):
    der = table(values)
    assert stability(trials_of(der)).score == pytest.approx(slow(der), abs=1e-12)


@quick
@given(st.floats(0, 1), st.integers(0, 2**16))
def test_a_defense_that_its_knobs_do_not_change_has_score_one(value, seed):
    trials = trials_of(dict.fromkeys(table([value] * 36), value))
    random.Random(seed).shuffle(trials)
    found = stability(trials[: 1 + seed % 36] + trials)  # whatever part is there twice, nothing is lost
    assert found.score == 1.0
    assert found.worst.drop == 0.0


@quick
@given(VALUES, st.integers(0, 35), st.floats(0, 1))
def test_a_neighbour_that_gets_worse_makes_no_defense_more_stable(values, which, factor):
    der = table(values)
    before = stability(trials_of(der))
    every = contests(grouped(trials_of(der)))
    chosen = {each.case: each.pick("oracle_der").params for each in every}
    at = list(der)[which]
    attack, a, b, _ = at
    own = chosen[attack]
    if (own["defense.a"], own["defense.b"]) != (a, b):  # else another setting may be chosen
        after = stability(trials_of({**der, at: der[at] * factor}))
        assert after.score <= before.score + 1e-12
        assert after.worst.drop >= before.worst.drop - 1e-12
    assert 0 <= before.score <= 1


@quick
@given(VALUES, st.integers(0, 2**16))
def test_the_order_of_trials_does_not_matter(values, seed):
    trials = trials_of(table(values))
    shuffled = random.Random(seed).sample(trials, len(trials))
    assert stability(shuffled).score == stability(trials).score


@quick
@given(
    st.lists(st.floats(0, 1), min_size=36, max_size=36, unique=True),
    st.sampled_from([lambda v: 10.0**v, lambda v: v - 7]),
)
def test_how_a_knob_is_measured_does_not_matter(values, rename):
    der = table(values)
    assert stability(trials_of(der, rename)).score == stability(trials_of(der)).score


def test_a_knob_that_counts_backwards_has_the_same_neighbours():
    der = table([(i * 7919 % 36) / 36 for i in range(36)])
    assert stability(trials_of(der, lambda v: -v)).score == pytest.approx(stability(trials_of(der)).score)
