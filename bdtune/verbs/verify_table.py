"""The table of `bdtune verify`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.metric import METRICS
from bdtune.report.table import Column, Row, Table
from bdtune.verbs.tables import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bdtune.verbs.verify import TrialCheck

COLUMNS = (
    Column("trial", numeric=False),
    Column("setting", numeric=False),
    Column("verdict", numeric=False),
    Column("first stage that differs", numeric=False),
    Column("largest difference", numeric=False),
)


def verify_table(sweep: str, found: Sequence[TrialCheck], tolerance: float) -> Table:
    """Return one row per trial, and below what differs and what computed it."""
    rows = tuple(Row(_cells(check), "" if check.good else "failed") for check in found)
    return Table(f"sweep {sweep}, computed again", COLUMNS, rows, tuple(_notes(found, tolerance)))


def _cells(check: TrialCheck) -> tuple[str, ...]:
    first = (check.first.role or check.first.what) if check.first else "-"
    return (check.trial[:8], check.name, check.verdict, first, _largest(check))


def _largest(check: TrialCheck) -> str:
    """Return the metric of the package that is farthest from what was recorded."""
    apart = {
        name: abs(one - two)
        for name, (one, two) in check.numbers.items()
        if name in METRICS.own and one is not None and two is not None
    }
    if not apart:
        return "-"
    name = max(apart, key=lambda each: apart[each])
    return f"{name} {apart[name]:.2g}"


def _notes(found: Sequence[TrialCheck], tolerance: float) -> Iterator[str]:
    good = sum(check.good for check in found)
    yield f"{good} of {counted(len(found), 'trial')} came out again"
    for check in found:
        if check.first is not None:
            where = f"stage {check.first.role} " if check.first.role else ""
            yield f"{check.trial[:8]}: {where}{WORDS[check.first.what]}: {check.first.why}"
        elif check.numbers:
            name, (one, two) = next(iter(check.numbers.items()))
            yield f"{check.trial[:8]}: all stages are equal, but the report says {name} {one}, now {two}"
        if check.error:
            yield f"{check.trial[:8]}: {check.error.strip().splitlines()[-1]}"
    changed = {name: pair for check in found for name, pair in check.environment.items()}
    if "environment" in changed:
        yield "an earlier version computed it, which did not record libraries and processor"
    elif changed:
        others = ", ".join(f"{name} {there} (here {here})" for name, (there, here) in changed.items())
        yield f"computed with {others}"
    if changed:
        yield f"so metrics may differ by {tolerance:g}, and bits may"
    else:
        yield "the same libraries and processor: every bit must be equal"


WORDS = {
    "settings": "is of another trial",
    "recorded": "cannot be compared",
    "damaged": "is damaged in the store",
    "recipe": "was computed otherwise",
    "content": "has another result",
}
"""What is said of a difference."""
