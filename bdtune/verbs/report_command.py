"""`bdtune report`: a sweep's or a campaign's table again, in any form, from what the store has now."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdtune.errors import UserError
from bdtune.verbs.console import AsJson, Out, StoreAt, show_result
from bdtune.verbs.place import run_directory

if TYPE_CHECKING:
    from pathlib import Path


def report(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of a sweep or campaign, or its YAML file.")
    ],
    out: Out = None,
    store: StoreAt = None,
    sort: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Sort by a metric (best first) or a setting (default: by the rule)."
        ),
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Only the first N settings; unsorted: on each data set and attack."
        ),
    ] = None,
    crossed: Annotated[
        bool, typer.Option("--table", help="Settings as rows and columns: the file's 'table', or what fits.")
    ] = False,
    rows: Annotated[
        str | None, typer.Option(metavar="A,B", help="Rows of that table, as dataset,attack.")
    ] = None,
    columns: Annotated[str | None, typer.Option(metavar="A,B", help="Its columns, as defense.")] = None,
    cells: Annotated[str | None, typer.Option(metavar="A,B", help="Its metrics, as acc,asr.")] = None,
    rules: Annotated[
        bool,
        typer.Option("--rules", help="What each rule chooses for each defense, and its gap to the best."),
    ] = False,
    ranking: Annotated[
        bool, typer.Option("--ranking", help="Rank the defenses: worst case, mean, stability; takes --sort.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", help="terminal, markdown, csv, latex (booktabs) or html.")
    ] = "terminal",
    page: Annotated[
        bool, typer.Option("--html", help="Write report.html: one page with tables, figures and provenance.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print a sweep's table again, from what the store has now; writes report.md, .csv, .png beside it.

    The pictures of the best trial's attack and defense are best-attack.png and best-defense.png.
    Of a campaign its sweeps are listed; --table prints its tables, or one over the trials of all its sweeps.
    --json holds all trials, whatever --sort and --top say. Examples:

    bdtune report gssd
    bdtune report gssd --sort asr --top 5
    bdtune report gssd --json > gssd.json
    bdtune report paper/lfd_2 --table --format latex > lfd.tex
    bdtune report gssd --rows defense.beta_nd --cells acc,asr,der
    bdtune report digits_all --rows defense --columns attack --cells der
    bdtune report gssd --html
    bdtune report digits_all --ranking --sort mean
    """
    from bdtune.verbs import campaign as campaigns
    from bdtune.verbs import comparing, report_forms, sweep_report

    written_as = report_forms.checked_form(form)
    home = run_directory(out, write=False)
    if rules or ranking:
        others = (page, crossed, rows, columns, cells, top, rules and (ranking or sort))
        _refuse_others("--rules" if rules else "--ranking", others)
        found = comparing.results_of(name, home, store)
        if rules:
            comparing.print_rules(found, written_as, as_json)
        else:
            comparing.print_ranking(name, found, written_as, as_json, sort)
        return
    shape = {"rows": rows, "columns": columns, "cells": cells}
    shaped = crossed or any(text is not None for text in shape.values())
    if campaigns.is_known(name, home):
        if sort or top:
            raise UserError(
                "--sort and --top are for a sweep: 'bdtune report SWEEP', of the campaign's sweeps"
            )
        told = campaigns.report(name, home, store=store)
        _print_campaign(told, shape if shaped else None, written_as, page=page, as_json=as_json)
        return
    outcome = sweep_report.report(name, home, store=store, sort=sort)
    if page:
        from bdtune.verbs.report_page import written

        _print_page(written(outcome), as_json)
    elif shaped:
        report_forms.print_cross(report_forms.cross_of(outcome, shape), written_as, as_json)
    else:
        report_forms.print_settings(outcome, written_as, as_json, sort=sort, top=top)


def _refuse_others(option: str, others: tuple[Any, ...]) -> None:
    if any(others):
        allowed = "--format and --json" if option == "--rules" else "--sort, --format and --json"
        raise UserError(f"{option} prints a table of its own, which takes {allowed} alone")


def _print_campaign(
    outcome: Any, shape: dict[str, str | None] | None, form: Any, *, page: bool, as_json: bool
) -> None:
    """Print a campaign's summary, the tables that `shape` asks for, or the files of its page."""
    from bdtune.verbs import report_forms

    if page:
        from bdtune.verbs.report_page import campaign_written

        files, sweeps = campaign_written(outcome)
        _print_page(files, as_json, [str(path) for path in sweeps])
    elif shape is not None:
        report_forms.print_campaign_tables(outcome, shape, form, as_json)
    else:
        report_forms.print_campaign(outcome, form, as_json)


def _print_page(files: list[Path], as_json: bool, sweeps: list[str] | None = None) -> None:
    """Print which page and figures were written; of a campaign also the pages of its sweeps."""
    page, *figures = map(str, files)
    show_result({"page": page, "figures": figures, **({"sweeps": sweeps} if sweeps else {})}, None, as_json)
    others = f", and the pages of {len(sweeps)} sweeps" if sweeps else ""
    print(f"written: {page} and {len(figures)} figures beside it{others}", file=sys.stderr)
