"""The page of a sweep: its sections, made of the results."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bdtune.metrics import metric_of
from bdtune.report import comparison, cross, table
from bdtune.report.best import marked
from bdtune.report.groups import grouped
from bdtune.report.page import plots
from bdtune.report.page.asked import asked, settings_text
from bdtune.report.page.costs import cost_sentence, cost_table, stage_costs
from bdtune.report.page.lesson import lesson
from bdtune.report.page.provenance import data_table, facts, trials_table
from bdtune.report.page.section import Section, html_blocks, html_of, write_page
from bdtune.report.page.sensitivity import effects, pairs
from bdtune.report.selection import cases, given

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.manifest import Manifest
    from bdtune.report.groups import Group
    from bdtune.report.page.plots import Picture
    from bdtune.report.selection import Case
    from bdtune.trials.results import SweepResult, TrialResult

MOST_PAIRS, MOST_CASES = 6, 30
METRICS = ("acc", "asr", "der")


@dataclass(frozen=True)
class Inputs:
    """What a page is made of."""

    spec: SweepSpec
    result: SweepResult
    why: Mapping[str, str] = field(default_factory=dict)
    """Why trials were not run, by id."""
    manifests: Sequence[Manifest] = ()
    """Of the stages of all trials."""
    pictures: Sequence[Path] = ()
    """Pictures of attacks and defenses that lie beside the report."""
    with_curves: Callable[[TrialResult], TrialResult] = lambda trial: trial
    """Gives a trial the curves of stages that it shares: its record has those that it computed itself."""


def write(inputs: Inputs, folder: Path) -> list[Path]:
    """Write `report.html` and `figures/*.svg` into a sweep's folder; return their paths, the page's first."""
    return write_page(folder, inputs.spec.name, inputs.spec.description, list(_sections(inputs)))


def _sections(inputs: Inputs) -> Iterator[Section]:
    """Yield the sections that the results have something for."""
    result, spec = inputs.result, inputs.spec
    groups = grouped(result.trials)
    best = marked(groups, result)
    rule = metric_of(result.metric)
    known = {name for group in groups for trial in group.done for name in trial.metrics}
    rule = rule if rule in known else "acc"
    shown = [name for name in METRICS if name in known]
    found = effects(groups, [*dict.fromkeys([rule, *shown])], rule)
    yield Section("What was asked", facts=asked(spec, result), folded={"All settings": settings_text(spec)})
    yield Section("The lesson", lines=lesson(result, found, rule))
    yield _tables(inputs)
    for title, compared in comparison.of_sweep(result).items():
        yield Section(title, tables=[html_of(compared)])
    if drawn := list(tradeoffs(groups, best)):
        yield Section("Accuracy against attack success", TRADEOFF, pictures=drawn)
    if found and shown:
        yield Section("What each setting does", EFFECTS, pictures=[_effects(found, shown)])
    if maps := list(_maps(groups, rule)):
        yield Section("Pairs of settings", PAIRS, pictures=maps)
    if lines := plots.parallel(groups, rule, best):
        caption = f"A line is a setting; colour and last axis: {rule}; thick: best."
        yield Section("All settings at once", pictures=[plots.picture("parallel", lines, caption, wide=True)])
    if epochs := list(_curves(inputs, groups, best)):
        yield Section("Epochs", "The best setting of each data set and attack, first seed.", pictures=epochs)
    if costs := stage_costs(result):
        bars = plots.picture("costs", plots.cost_bars(costs), "Seconds by stage.")
        body = html_of(cost_table(costs))
        yield Section("Cost", cost_sentence(costs), tables=[body], pictures=[bars])
    if inputs.pictures:
        taken = [plots.from_file(path, _caption(path)) for path in inputs.pictures]
        yield Section("Pictures of attacks and defenses", pictures=taken)
    yield Section(
        "Provenance",
        facts=facts(result, inputs.manifests),
        tables=[html_of(data_table(result))],
        folded={"All trials": html_of(trials_table(result))},
    )


TRADEOFF = "Every setting; small dots are seeds. The best place is the upper left corner."
EFFECTS = (
    "Means at each value of a setting, the others held. Bars: the range over the ways to hold the others. "
    "The setting that changes the most stands first."
)
PAIRS = (
    "Means over all other settings, of pairs of which the sweep has every combination. The pair whose "
    "effects add up least stands first."
)


def _tables(inputs: Inputs) -> Section:
    """Return the cross table, and every setting in a table that can be unfolded."""
    spec, result = inputs.spec, inputs.result
    crossed = cross.build(result, spec.table, published=spec.published, why=inputs.why)
    every = table.build(result, paper=spec.published)
    return Section("Tables", tables=html_blocks(crossed), folded={"Every setting": html_of(every)})


def tradeoffs(groups: Sequence[Group], best: Sequence[Group]) -> Iterator[Picture]:
    """Yield a picture of accuracy against attack success for each data set and attack."""
    for number, case in enumerate(cases(groups)[:MOST_CASES], 1):
        drawn = [group for group in _with_baselines(case, groups) if group.stat("acc") and group.stat("asr")]
        if drawn:
            yield plots.picture(f"tradeoff-{number}", plots.tradeoff(drawn, best), case.name)


def _with_baselines(case: Case, groups: Sequence[Group]) -> list[Group]:
    own = given(case.groups[0].params)
    return [*(group for group in groups if group.is_baseline and given(group.params) == own), *case.groups]


def _effects(found: Sequence, shown: Sequence[str]) -> Picture:
    return plots.picture("effects", plots.main_effects(found, shown), ", ".join(shown), wide=True)


def _maps(groups: Sequence[Group], rule: str) -> Iterator[Picture]:
    for number, pair in enumerate(pairs(groups, rule)[:MOST_PAIRS], 1):
        caption = (
            f"{rule} by {pair.names[0]} and {pair.names[1]}; largest departure from adding up: "
            f"{pair.interaction:.3f}"
        )
        yield plots.picture(f"pair-{number}", plots.heat_map(pair, rule), caption)


def _curves(inputs: Inputs, groups: Sequence[Group], best: Sequence[Group]) -> Iterator[Picture]:
    trials = {trial.id: trial for trial in inputs.result.trials}
    for number, case in enumerate(cases(groups)[:MOST_CASES], 1):
        chosen = next((group.done[0] for group in case.groups if group in best and group.done), None)
        if chosen is None:
            continue
        baseline = trials.get(chosen.baseline_id or "")
        shown = [*([("undefended", baseline)] if baseline else []), ("best", chosen)]
        figure = plots.curves([(name, inputs.with_curves(trial)) for name, trial in shown])
        if figure is not None:
            yield plots.picture(f"epochs-{number}", figure, case.name, wide=True)


def _caption(path: Path) -> str:
    """Return what a picture beside the report shows: "best-badnets-attack.png" is badnets' attack."""
    *case, what = path.stem.split("-")
    words = {"attack": "clean, poisoned and difference", "defense": "what the defense saw"}
    return " ".join([*case, f"{what}:", words.get(what, "")]).strip()
