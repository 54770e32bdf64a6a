"""`bdtune report NAME --rules` and `--ranking`, of a sweep or a campaign, in any form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bdtune.report import comparison, forms
from bdtune.report.groups import grouped
from bdtune.report.page.document import standalone
from bdtune.report.ranking import ranking_of
from bdtune.report.rules import picks
from bdtune.verbs import campaign, sweep_report
from bdtune.verbs.console import show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bdtune.report.table import Table
    from bdtune.trials.results import SweepResult


def results_of(name: str, run_dir: Path, store: str | None = None) -> dict[str, SweepResult]:
    """Return the results of a sweep, or of all sweeps of a campaign, by their names."""
    if campaign.is_known(name, run_dir):
        return dict(campaign.report(name, run_dir, store=store).sweeps)
    result = sweep_report.report(name, run_dir, store=store).result
    return {result.sweep: result}


def print_rules(results: Mapping[str, SweepResult], form: forms.Form, as_json: bool) -> None:
    """Print what each rule chooses, sweep by sweep, and how far that is from the best."""
    found = {name: picks(grouped(result.trials)) for name, result in results.items()}
    if as_json:
        show_json({name: [pick.to_json() for pick in own] for name, own in found.items()})
    elif form == "csv":
        rows = [{"sweep": name, **row} for name, own in found.items() for row in comparison.flat_picks(own)]
        print(comparison.csv_text(rows), end="")
    else:
        _print([comparison.rules_table(name, result.trials) for name, result in results.items()], form)


def print_ranking(
    name: str, results: Mapping[str, SweepResult], form: forms.Form, as_json: bool, sort: str | None
) -> None:
    """Print the ranking of all defenses; raises `UserError` for an unknown `sort`."""
    found = ranking_of(list(results.values()), sort or "worst")
    if as_json:
        show_json(found.to_json())
    elif form == "csv":
        print(comparison.csv_text(comparison.flat_ranking(found)), end="")
    else:
        _print([comparison.ranking_table(name, found)], form)


def compared(results: Mapping[str, SweepResult]) -> dict[str, Any]:
    """Return what `--json` of a report adds: the choices of each rule and the ranking of defenses."""
    rules = {name: [pick.to_json() for pick in picks(grouped(r.trials))] for name, r in results.items()}
    only = next(iter(rules.values())) if len(rules) == 1 else rules
    return {"rules": only, "ranking": ranking_of(list(results.values())).to_json()}


def print_below(name: str, results: Mapping[str, SweepResult]) -> None:
    """Print the ranking below another table, where there are several defenses."""
    found = ranking_of(list(results.values()))
    if len(found.ranked) + len(found.others) > 1:
        print()
        show_table(comparison.ranking_table(name, found))


def _print(tables: Sequence[Table], form: forms.Form) -> None:
    if form == "html":
        print(standalone(tables[0].title, "\n".join(map(forms.html, tables))), end="")
        return
    for number, table in enumerate(tables):
        if number:
            print()
        if form == "terminal":
            show_table(table)
        else:
            print(forms.text_of(table, form), end="")
