"""What `bdtune report` prints: the table of settings or the cross table, in any form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from bdtune.errors import Problem, UserError, nearest
from bdtune.report import cross, cross_table, files, forms, table
from bdtune.report.cross_axes import asked_layout
from bdtune.report.groups import grouped
from bdtune.report.page.document import standalone
from bdtune.verbs import comparing
from bdtune.verbs import sweep as verb
from bdtune.verbs.console import show_json, show_table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.report.cross import CrossTable
    from bdtune.verbs.sweep import SweepOutcome


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
    layout = asked_layout(spec.table, grouped(result.trials), **words)
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
    elif form == "csv":
        print(cross_table.csv_text(shown), end="")
    else:
        _print(neutral, form)


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
