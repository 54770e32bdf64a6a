"""The tables of what rules choose and of how defenses rank, in the neutral form that is written anywhere."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from bdtune.metrics import is_oracle
from bdtune.report.contests import ORACLE_RULE, contests
from bdtune.report.fit import EMPTY
from bdtune.report.groups import grouped
from bdtune.report.ranking import ranking_of
from bdtune.report.rules import gaps, picks, unopened
from bdtune.report.selection import rule_title
from bdtune.report.stability import names
from bdtune.report.table import Column, Row, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bdtune.report.groups import Group
    from bdtune.report.ranking import Ranking, Standing
    from bdtune.report.rules import Pick
    from bdtune.trials.results import SweepResult, TrialResult

RULES, RANKING = "What rules choose", "Ranking of defenses"
NUMBERS = {"der": 0, "acc": 2, "asr": 3, "gap": 0}
"""The numbers of a pick, and which go first where room is scarce."""


STABILITY = {"mean": 0, "worst": 1, "knobs": 1}


def of_sweep(result: SweepResult) -> dict[str, Table]:
    """Return the tables that a sweep's report adds, by their titles.

    What rules choose, where an honest one was measured and has a choice; the ranking of several defenses.
    """
    groups = grouped(result.trials)
    found = {}
    if any(pick.rule != ORACLE_RULE for pick in picks(groups)):
        found[RULES] = rules_table(result.sweep, result.trials)
    if len({contest.defense for contest in contests(groups)}) > 1:
        found[RANKING] = ranking_table(result.sweep, ranking_of([result]))
    return found


def of_campaign(name: str, results: Iterable[SweepResult]) -> dict[str, Table]:
    """Return the tables that a campaign's report adds, by their titles: how its defenses rank."""
    found = ranking_of(list(results))
    return {RANKING: ranking_table(f"campaign {name}", found)} if found.ranked or found.others else {}


# ------------------------------------------------------------------------------------------------- rules


def rules_table(name: str, trials: Iterable[TrialResult]) -> Table:
    """Return what each rule chooses for each defense on each data set and attack, with its gap."""
    groups = grouped(trials)
    found = picks(groups)
    heads = [head for head in ("defense", "case") if len({getattr(each.contest, head) for each in found}) > 1]
    columns = [
        *(Column(head, numeric=False) for head in (*heads, "rule", "setting")),
        Column("tied", spare=1),
    ]
    columns += [Column(name, spare=spare) for name, spare in NUMBERS.items()]
    rows = [row for number, own in enumerate(_blocks(found)) for row in _block(own, heads, first=number == 0)]
    title = f"{name}: what rules choose, beside the oracle"
    return Table(title, tuple(columns), tuple(rows), tuple(_rule_notes(groups, found)))


def _blocks(found: Sequence[Pick]) -> list[list[Pick]]:
    blocks: dict[int, list[Pick]] = {}
    for pick in found:
        blocks.setdefault(id(pick.contest), []).append(pick)
    return list(blocks.values())


def _block(own: Sequence[Pick], heads: Sequence[str], *, first: bool) -> Iterator[Row]:
    """Yield the rows of one contest, the oracle's at the top; the contest is named there."""
    for number, pick in enumerate(own):
        named = [getattr(pick.contest, head) if number == 0 else "" for head in heads]
        oracle = pick.rule == ORACLE_RULE
        values = [*(pick.number(name) for name in ("der", "acc", "asr")), None if oracle else pick.gap]
        tied = str(pick.tied) if pick.tied > 1 else EMPTY
        setting = (pick.setting if oracle or pick.best is None else pick.apart) if pick.chosen else EMPTY
        cells = (*named, rule_title(pick.rule), setting, tied, *map(_text, values))
        yield Row(cells, "best" if oracle else "", starts=number == 0 and not first)


def _rule_notes(groups: Sequence[Group], found: Sequence[Pick]) -> Iterator[str]:
    if not found:
        yield "no defense has two settings with a result on one data set and attack: nothing to choose"
    elif len({pick.rule for pick in found}) == 1:
        yield "no honest rule was measured: set holdout, holdout_clean or both"
    else:
        yield "gap: der of what oracle_der chooses less that of the rule's choice; no defender knows it"
        yield "setting: of a rule, what differs from the oracle's; tied: settings with the rule's best value"
    for gap in gaps(found):
        if gap.count > 1:
            most = f"at most {gap.worst:.3f} ({gap.worst_on})"
            yield f"{gap.rule}: gap {gap.mean:.3f} in mean over {gap.count}, {most}"
    missed = dict.fromkeys(pick.contest.case for pick in found if pick.best is None)
    if missed:
        yield f"no gap where the attack did not take: {', '.join(missed)}"
    if found and (single := unopened(groups)):
        yield f"one setting or none with a result, so nothing to choose: {', '.join(single)}"


# ------------------------------------------------------------------------------------------------ ranking


def ranking_table(name: str, found: Ranking) -> Table:
    """Return one row for each defense, best first; those that cannot be compared with all stand below."""
    shown = [each for each in found.others if each.oracle or each.tuned]
    scores = _scores(found)
    several = len(found.cases) > 1
    stable = any(each.stability.drops for each in (*found.ranked, *shown))
    columns = [Column("defense", numeric=False), Column("settings", spare=3)]
    for number, head in enumerate(scores):
        columns += _score_columns(head, several, first=number == 0)
    columns += [Column(of, group="stability", spare=spare) for of, spare in STABILITY.items()] * stable
    columns += [Column("acc", spare=2), Column("asr", spare=2)]
    rows = [_undefended_row(found, len(columns))] if found.undefended else []
    for part, kind in ((found.ranked, ""), (shown, "not_taken")):
        for number, each in enumerate(part):
            cells = tuple(_cells(each, list(scores.values()), several, stable))
            first = part is found.ranked and number == 0
            rows.append(Row(cells, "best" if first else kind, starts=number == 0 and bool(rows)))
    return Table(f"{name}: ranking of defenses", tuple(columns), tuple(rows), tuple(_ranking_notes(found)))


def _scores(found: Ranking) -> dict[str, str]:
    """Return which scores are shown, "tuned" and "oracle", by their heads."""
    if not _tuned(found):
        return {"der": "oracle"}
    return {"honest": "tuned", "oracle": "oracle"} if not is_oracle(found.rule) else {"oracle": "oracle"}


def _tuned(found: Ranking) -> bool:
    """Whether a rule has something to choose: some defense has two settings."""
    return any(each.settings > 1 for each in (*found.ranked, *found.others))


def _score_columns(head: str, several: bool, *, first: bool) -> list[Column]:
    if not several:
        return [Column(head)]
    on = [Column("worst on", numeric=False, spare=4, group=head)] if first else []
    return [Column("worst", group=head), *on, Column("mean", group=head)]


def _cells(each: Standing, scores: Sequence[str], several: bool, stable: bool) -> Iterator[str]:
    yield from (each.defense, str(each.settings))
    for number, of in enumerate(scores):
        score = each.oracle if of == "oracle" else each.tuned
        yield _text(score.worst if score else None)
        if several and number == 0:
            yield score.worst_on if score else EMPTY
        if several:
            yield _text(score.mean if score else None)
    if stable:
        worst = each.stability.worst
        yield _text(each.stability.score)
        yield _text(None if worst is None else 1 - worst.drop)
        moved, varied = (len(own) for own in (each.stability.moved, each.stability.varied))
        yield f"{moved}/{varied}" if varied else EMPTY
    yield from (_text(each.acc), _text(each.asr))


def _undefended_row(found: Ranking, width: int) -> Row:
    numbers = [_text(found.undefended.get(name)) for name in ("acc", "asr")]
    return Row(("undefended", *[EMPTY] * (width - 3), *numbers), "undefended")


def _ranking_notes(found: Ranking) -> Iterator[str]:
    every = (*found.ranked, *found.others)
    if not found.cases:
        yield "no defense has a result to compare"
        return
    over = ", ".join(found.cases)
    yield f"der {'over' if len(found.cases) > 1 else 'on'} {over}; best first by {found.sort}"
    if found.uneven:
        yield f"left out, as the attack took for some defenses only: {', '.join(found.uneven)}"
    if not _tuned(found):
        yield "each defense has one setting, so that any rule chooses the same"
    elif is_oracle(found.rule):
        yield "oracle: settings are chosen by test data; no honest rule was measured for all defenses"
    else:
        yield f"honest: {found.rule} chooses the settings; oracle: {ORACLE_RULE}, by test data"
    yield from _stability_notes(every, len(found.cases) > 1)
    yield from _fewer_notes([each for each in found.others if each.oracle or each.tuned])
    nothing = [
        f"{each.defense} ({next(iter(each.lacks.values()))})"
        for each in found.others
        if not (each.oracle or each.tuned)
    ]
    if nothing:
        yield f"not ranked, without a result to compare: {', '.join(nothing)}"
    seeds = {each.seeds for each in every if each.seeds}
    if len(seeds) > 1:
        listed = "; ".join(f"{each.defense} {', '.join(each.seeds)}" for each in every if each.seeds)
        yield f"not the same seeds: {listed}"


def _fewer_notes(others: Sequence[Standing]) -> Iterator[str]:
    """Say what defenses lack, those that lack the same in one line."""
    lacking: dict[str, list[str]] = {}
    for each in others:
        text = ", ".join(f"{case} ({why})" for case, why in each.lacks.items())
        lacking.setdefault(text, []).append(each.defense)
    for text, own in lacking.items():
        if len(own) == 1:
            yield f"{own[0]} is not ranked, its numbers are over fewer: it lacks {text}"
        else:
            yield f"not ranked, as numbers are over fewer: {', '.join(own)}; they lack {text}"


def _stability_notes(every: Sequence[Standing], several: bool) -> Iterator[str]:
    """Say what the stability is and which of it is missing."""
    if any(each.stability.drops for each in every):
        moved = "when one knob of a setting moves to its next value"
        yield f"stability: 1 less the der lost, in mean and at most, {moved}"
        yield "knobs: how many of those that vary were moved alone"
    for each in every:
        worst = each.stability.worst
        if worst is not None and worst.drop > 0:
            yield f"{each.defense} loses most with {worst.text(several)}: {worst.drop:.3f}, seed {worst.seed}"
    nearby = [f"{each.defense} {names(each.stability.nearby)}" for each in every if each.stability.nearby]
    if nearby:
        yield f"moved from a setting near the chosen one, as the sweep did not from it: {'; '.join(nearby)}"
    unmoved = [f"{each.defense} {names(each.stability.unmoved)}" for each in every if each.stability.unmoved]
    if unmoved:
        yield f"never moved alone, so in no stability: {'; '.join(unmoved)}"
    without = [each.defense for each in every if each.tuned and not each.stability.varied]
    if without:
        yield f"stability unknown, as no knob varies: {', '.join(without)}"
    lost = [text for each in every for text in each.stability.lost]
    if lost:
        yield f"neighbours without a result, left out of the stability: {', '.join(lost)}"


# ------------------------------------------------------------------------------------------------ writers


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return flat rows with all digits."""
    out = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def flat_picks(found: Sequence[Pick]) -> list[dict[str, Any]]:
    """Return a row for each pick; ids of trials in one text."""
    return [{**row, "trials": " ".join(row["trials"])} for row in (pick.to_json() for pick in found)]


def flat_ranking(found: Ranking) -> list[dict[str, Any]]:
    """Return a row for each defense, those that are not ranked among them."""
    rows = []
    for each in (*found.ranked, *found.others):
        worst = each.stability.worst
        row: dict[str, Any] = {"defense": each.defense, "ranked": each.comparable, "settings": each.settings}
        for name, rule, score in (("tuned", found.rule, each.tuned), ("oracle", ORACLE_RULE, each.oracle)):
            row |= {f"{name}_by": rule}
            row |= {
                f"{name}_{of}": getattr(score, of) if score else None for of in ("worst", "mean", "worst_on")
            }
        row |= {"stability": each.stability.score, "largest_drop": worst.drop if worst else None}
        row |= {"not_moved": " ".join(sorted(each.stability.unmoved))}
        row |= {"acc": each.acc, "asr": each.asr}
        rows.append({**row, "lacks": "; ".join(f"{case}: {why}" for case, why in each.lacks.items())})
    return rows


def _text(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.3f}"
