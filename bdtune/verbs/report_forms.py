"""What `bdtune report` prints: the table of settings or the cross table, in any form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from bdtune.config.campaign import CampaignTable
from bdtune.config.sweep import TableLayout
from bdtune.errors import Problem, UserError, nearest
from bdtune.report import cross, cross_table, files, forms, table
from bdtune.report.cross_axes import asked_layout
from bdtune.report.groups import grouped
from bdtune.report.page.document import standalone
from bdtune.verbs import comparing
from bdtune.verbs import sweep_report as verb
from bdtune.verbs.console import show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.report.cross import CrossTable
    from bdtune.verbs.campaign import CampaignOutcome
    from bdtune.verbs.sweep_report import SweepOutcome


def checked_form(name: str) -> forms.Form:
    """Return a form by its name; raises `UserError` with the nearest one."""
    known = get_args(forms.Form)
    if name not in known:
        expected = f"expected one of {', '.join(known)}"
        raise UserError(Problem("--format", expected, f"'{name}'", hint=nearest(name, known)))
    form: forms.Form = name  # type: ignore[assignment]
    return form


def words_of(text: str | None) -> list[str] | None:
    """Return the names in a comma-separated option; None where it is not given."""
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def cross_of(outcome: SweepOutcome, shape: Mapping[str, str | None]) -> CrossTable:
    """Return a sweep's cross table, shaped by its file and by `rows`, `columns` and `cells` if given.

    Raises `UserError` with all names that no trial has.
    """
    spec, result = outcome.spec, outcome.result
    words = {key: words_of(text) for key, text in shape.items()}
    layout = asked_layout(spec.table or TableLayout(), grouped(result.trials), **words)
    return cross.build(result, layout, published=spec.published, why=outcome.why)


def print_cross(shown: CrossTable, form: forms.Form, as_json: bool) -> None:
    """Print a cross table; on a terminal too narrow for it as blocks of columns."""
    neutral = cross_table.neutral(shown)
    if as_json:
        show_json(cross.to_json(shown))
    elif form == "terminal":
        for number, block in enumerate(cross_table.blocks(neutral, files.width())):
            if number:
                print()
            files.show(block)
    elif form in ("csv", "latex"):
        text = cross_table.csv_text if form == "csv" else cross_table.latex_text
        print(text(shown), end="")
    else:
        _print(neutral, form)


def campaign_tables(outcome: CampaignOutcome, shape: Mapping[str, str | None]) -> dict[str, CrossTable]:
    """Return a campaign's own tables, or the one that `rows`, `columns` and `cells` give.

    They change the shape of its only table; where it has none, or several, they say the whole shape of one
    over all sweeps. Raises `UserError` with all names that no trial has.
    """
    own, tables = outcome.campaign.tables, outcome.tables
    words = {key: words_of(text) for key, text in shape.items()}
    if own and not any(given is not None for given in words.values()):
        return dict(outcome.crossed)
    first = own[0] if len(own) == 1 else CampaignTable()
    trials = [trial for member in outcome.members for trial in member.result.trials]
    layout = asked_layout(first, grouped(trials), **words)
    shown = tables.of(layout)
    return {"table": shown} if shown is not None else {}


def print_campaign_tables(
    outcome: CampaignOutcome, shape: Mapping[str, str | None], form: forms.Form, as_json: bool
) -> None:
    """Print the tables over the trials of a campaign's sweeps."""
    found = campaign_tables(outcome, shape)
    if as_json:
        tables = {stem: cross.to_json(shown) for stem, shown in found.items()}
        show_json({"campaign": outcome.name, "tables": tables})
        return
    if not found:
        raise UserError(f"no sweep of campaign {outcome.name} has trials yet")
    for number, shown in enumerate(found.values()):
        if number:
            print()
        print_cross(shown, form, as_json=False)


def print_campaign(outcome: CampaignOutcome, form: forms.Form, as_json: bool) -> None:
    """Print how far a campaign's sweeps are, and how its defenses rank."""
    shown = outcome.summary()
    if as_json:
        show_json({**outcome.to_json(), **comparing.compared(outcome.sweeps)})
    elif form == "terminal":
        show_table(shown)
        comparing.print_below(outcome.name, outcome.sweeps)
    elif form == "csv":
        print(table.plain_csv(shown), end="")
    else:
        _print(shown, form)


def print_settings(outcome: SweepOutcome, form: forms.Form, as_json: bool, **rows: Any) -> None:
    """Print the table of all settings; `rows` are `sort` and `top` of `bdtune report`."""
    shown = verb.table_of(outcome, **rows)  # with --json too: a wrong --sort is an error
    results = {outcome.result.sweep: outcome.result}
    if as_json:
        show_json({**outcome.result.to_json(), **comparing.compared(results)})
    elif form == "terminal":
        show_table(shown)
        comparing.print_below(outcome.result.sweep, results)
    elif form == "csv":
        print(table.csv_text(outcome.result), end="")
    else:
        _print(table.build(outcome.result, paper=outcome.spec.published, **rows), form)


def _print(neutral: table.Table, form: forms.Form) -> None:
    text = forms.text_of(neutral, form)
    print(standalone(neutral.title, text) if form == "html" else text, end="")
