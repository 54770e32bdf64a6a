"""The table of comparisons with published code; to write it anew: python -m tests.defenses.parity.table"""

from __future__ import annotations

from pathlib import Path

from tests.defenses.parity.cases import EXACT, Case, cases, names

PAGE = Path(__file__).parents[3] / "bdtune/README.md"
BEGIN, END = "<!-- parity -->", "<!-- end of parity -->"
HEAD = ("defense", "published code", "compared, and digits that agree", "kept different on purpose")


def table() -> str:
    """Return a row for each defense and each repository that it is compared with."""
    rows = [HEAD, ("---",) * len(HEAD)]
    for defense in names():
        every = list(cases(defense).values())
        for reference in sorted({case.reference for case in every}):
            own = [case for case in every if case.reference == reference]
            compared = "<br>".join(f"{case.what}: {_digits(case)}" for case in own)
            kept = "<br>".join(case.kept for case in own if case.kept)
            rows.append((f"`{defense}`", reference, compared, kept))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _digits(case: Case) -> str:
    return "all" if case.digits == EXACT else str(case.digits)


def written() -> str:
    """Return the table on the page."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
