"""What a sweep teaches, in sentences made of its numbers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bdtune.knobs import short_names
from bdtune.metrics import is_oracle, is_stable, metric_of
from bdtune.report.best import marked
from bdtune.report.contests import measured_rules
from bdtune.report.groups import Group, grouped, label, varying
from bdtune.report.selection import cases, given, ranking, rule_title, setting_axes
from bdtune.report.stability import stability_note
from bdtune.trials.results import show

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bdtune.report.page.sensitivity import Effect
    from bdtune.report.selection import Case
    from bdtune.trials.results import OverallBest, SweepResult

SURVIVES = 0.5
"""Attack success above which a backdoor counts as left in place."""
COSTLY = 0.05
"""Accuracy lost against the undefended model above which a defense counts as costly."""
UNSTABLE = 0.2
"""Standard deviation of attack success over seeds above which a setting counts as unstable."""
MOST = 4
"""Settings or values that a sentence names one by one."""


def lesson(result: SweepResult, effects: Sequence[Effect], rule: str) -> list[str]:
    """Return what is best on each data set and attack, what honest rules reach, and where it fails.

    `effects` are those of the settings on the metric `rule`, the largest first.
    """
    groups = grouped(result.trials)
    names = short_names(setting_axes(groups))
    every = cases(groups)
    best = marked(groups, result)
    about = _About(result, best, names, several=len(every) > 1)
    found = [line for case in every for line in _of_case(case, about)]
    found += _no_honest_rule(groups)
    found += _over_all(result, groups, names)
    if "/" not in metric_of(result.metric):  # one that is ranked by what it alone measures is no repair
        found += _failures(groups, best)
    found += _what_matters(effects, rule)
    found += [f"{note[:1].upper()}{note[1:]}." for note in stability_note(result, groups)]
    return [*found, *_missing(result)]


@dataclass(frozen=True)
class _About:
    """What the sentences about each data set and attack need."""

    result: SweepResult
    best: Sequence[Group]
    names: Mapping[str, str]
    several: bool


def _of_case(case: Case, about: _About) -> Iterator[str]:
    where, result = f"{case.name}: " if about.several else "", about.result
    chosen = next((group for group in case.groups if group in about.best), None)
    if chosen is None:
        ranked = ranking(case.groups, result.metric, result.mode)
        chosen = ranked[0] if ranked else None
    if chosen is None:
        done = [group for group in case.groups if group.done]
        weak = bool(done) and not any(group.attack_took for group in done)
        whose = "as the attack did not take, no" if weak else "no finished"
        yield f"{where}{whose} setting can be ranked by {rule_title(result.metric)}."
        return
    yield f"{where}{_baseline(chosen)}{_best(chosen, about.names, result)}"
    for line in _honest(case, chosen, about.names):
        yield where + line


def _baseline(chosen: Group) -> str:
    """Return the numbers of the undefended model that a setting is compared with."""
    stats = {name: chosen.stat(f"undefended/{name}") for name in ("acc", "asr")}
    texts = [f"{name} {stat.text()}" for name, stat in stats.items() if stat]
    weak = "" if chosen.attack_took else " (the attack did not take)"
    return f"Without a defense {' and '.join(texts)}{weak}. " if texts else ""


def _best(chosen: Group, names: Mapping[str, str], result: SweepResult) -> str:
    setting = label(chosen, list(names), names) or "the only setting"
    shown = dict.fromkeys([metric_of(result.metric), "acc", "asr"])
    numbers = ", ".join(f"{name} {stat.text()}" for name in shown if (stat := chosen.stat(name)))
    reads = " (it reads test data that no defender has)" if is_oracle(result.metric) else ""
    return f"The best setting by {rule_title(result.metric)}{reads} is {setting}: {numbers}{_cost(chosen)}."


def _cost(chosen: Group) -> str:
    own, other = chosen.stat("acc"), chosen.stat("undefended/acc")
    if own is None or other is None:
        return ""
    change = f"{own.mean - other.mean:.3f}"
    if float(change) == 0:
        return "; accuracy stays"
    return f"; accuracy {'falls' if change.startswith('-') else 'rises'} by {change.lstrip('-')}"


def _honest(case: Case, chosen: Group, names: Mapping[str, str]) -> Iterator[str]:
    """Say what rules that a defender can follow would have chosen, and what that reaches."""
    oracle = ranking(case.groups, "oracle_der")
    der = oracle[0].stat("der") if oracle else None
    for rule in _honest_rules([chosen]) if der else ():
        ranked = ranking(case.groups, rule)
        reached = ranked[0].stat("der") if ranked else None
        if der is not None and reached is not None:
            gap = der.mean - reached.mean
            text = "the best setting too" if ranked[0] is oracle[0] else label(ranked[0], list(names), names)
            yield f"{rule} chooses {text}: der {reached.mean:.3f}, {gap:.3f} under the best there is."


def _honest_rules(groups: Sequence[Group]) -> list[str]:
    """Return the honest rules whose metrics were measured; those of the spread over seeds are in a table."""
    return [rule for rule in measured_rules(groups) if not is_stable(rule)]


def _no_honest_rule(groups: Sequence[Group]) -> Iterator[str]:
    defended = [group for group in groups if not group.is_baseline and group.done]
    if len(defended) > 1 and not _honest_rules(defended):
        yield "No honest rule was measured (holdout is 0): what a defender could reach is not known."


def _over_all(result: SweepResult, groups: Sequence[Group], names: Mapping[str, str]) -> Iterator[str]:
    """Name the one setting that is best over all data sets and attacks, in mean or in the worst case."""
    words = {"mean": "in mean", "worst": "in the worst case"}
    found: dict[tuple[str, ...], list[OverallBest]] = {}
    for best in result.overall:
        if best.trials:
            found.setdefault(best.trials, []).append(best)
    for trials, bests in found.items():
        setting = next(group for group in groups if any(trial.id in trials for trial in group.trials))
        over = " and ".join(words[best.over] for best in bests)
        name = label(setting, list(names), names) or "the only one"
        yield (
            f"One setting for all {bests[0].groups}, best {over}: {name}, with "
            f"{rule_title(result.metric)} {bests[0].mean:.3f} in mean and {bests[0].worst:.3f} on "
            f"{bests[0].worst_on}."
        )


def _failures(groups: Sequence[Group], best: Sequence[Group]) -> Iterator[str]:
    """Say how many settings fail and in which way, and which values of a setting always fail."""
    defended = [g for g in groups if not g.is_baseline and g.attack_took and g.stat("asr") and g.stat("acc")]
    if not defended:
        return
    survive, costly = [g for g in defended if _survives(g)], [g for g in defended if _is_costly(g)]
    bad = [group for group in defended if group in survive or group in costly]
    if not bad:
        yield (
            f"None of {len(defended)} settings fails: asr stays under {SURVIVES} and accuracy falls by "
            f"at most {COSTLY}."
        )
        return
    yield (
        f"{len(bad)} of {len(defended)} settings fail: the backdoor stays (asr above {SURVIVES}) in "
        f"{len(survive)}, accuracy falls by more than {COSTLY} in {len(costly)}."
    )
    axes = varying(defended)
    names = short_names(axes)
    always = list(_always(bad, defended, axes, names))
    if always:
        yield f"Every setting fails with {_listed(always)}."
    unstable = [_apart(group, best, axes, names) for group in defended if _spread(group) > UNSTABLE]
    if unstable:
        yield (
            f"Seeds disagree (standard deviation of asr above {UNSTABLE}) with {_listed(unstable)}; what is "
            "not named is as in the best setting."
        )


def _apart(group: Group, best: Sequence[Group], axes: Sequence[str], names: Mapping[str, str]) -> str:
    """Return the values in which a setting differs from the best one on its data set and attack."""
    peer = next((other for other in best if given(other.params) == given(group.params)), None)
    case = given(dict.fromkeys(axes))  # the data set and attack that it is about
    own = [a for a in axes if a in case or peer is None or group.params.get(a) != peer.params.get(a)]
    return label(group, own, names) or "the best setting itself"


def _survives(group: Group) -> bool:
    stat = group.stat("asr")
    return stat is not None and stat.mean > SURVIVES


def _is_costly(group: Group) -> bool:
    own, other = group.stat("acc"), group.stat("undefended/acc")
    return own is not None and other is not None and other.mean - own.mean > COSTLY


def _spread(group: Group) -> float:
    stat = group.stat("asr")
    return stat.std if stat is not None and stat.std is not None else 0.0


def _always(
    bad: Sequence[Group], groups: Sequence[Group], axes: Sequence[str], names: Mapping[str, str]
) -> Iterator[str]:
    """Yield the values of settings with which all fail, though with another value some do not."""
    for axis in axes:
        having = [group for group in groups if axis in group.params]
        if all(group in bad for group in having):
            continue
        for value in dict.fromkeys(group.params[axis] for group in having):
            if all(group in bad for group in having if group.params[axis] == value):
                yield f"{names[axis]}={show(value)}"


def _listed(texts: Sequence[str]) -> str:
    more = len(texts) - MOST
    return "; ".join([*texts[:MOST], *([f"and {more} more"] if more > 0 else [])])


def _what_matters(effects: Sequence[Effect], rule: str) -> Iterator[str]:
    held = [effect for effect in effects if effect.slices and effect.span(rule) > 0]
    if len(held) < 2:
        return
    first, last = held[0], held[-1]
    yield (
        f"The setting that matters most is {first.name}: the mean of {rule} changes by "
        f"{first.span(rule):.3f} with the others held. {last.name} matters least ({last.span(rule):.3f})."
    )


def _missing(result: SweepResult) -> Iterator[str]:
    counts = Counter(trial.status for trial in result.trials if trial.status != "done")
    if counts:
        listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
        yield f"Not all trials have a result: {listed} of {len(result.trials)}."
