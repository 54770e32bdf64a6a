"""A report page: sections in one HTML file, with their figures beside it as files."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from bdtune.engine.files import replace_file
from bdtune.report import cross_table, forms
from bdtune.report.page.document import rendered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from bdtune.report.cross import CrossTable
    from bdtune.report.page.plots import Picture
    from bdtune.report.page.provenance import Fact
    from bdtune.report.table import Table

FILE, FIGURES = "report.html", "figures"
PRINTED = 100
"""Characters of a table that fit a printed page; a wider one is broken into blocks of columns."""


@dataclass(frozen=True)
class Link:
    """A line that leads to another page."""

    name: str
    address: str
    """Relative to the page's folder."""
    text: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page; what it lacks is not shown."""

    title: str
    text: str = ""
    facts: Sequence[Fact] = ()
    lines: Sequence[str] = ()
    tables: Sequence[Markup] = ()
    links: Sequence[Link] = ()
    pictures: Sequence[Picture] = ()
    folded: Mapping[str, str | Markup] = field(default_factory=dict)
    """What is shown on demand, by its title: HTML, or text with its line breaks."""

    @property
    def anchor(self) -> str:
        """The name of the section in the page's address."""
        return re.sub(r"\W+", "-", self.title.lower())


def write_page(folder: Path, title: str, description: str, sections: Sequence[Section]) -> list[Path]:
    """Write `report.html` and `figures/*.svg` into a folder; return their paths, the page's first."""
    own = [p for section in sections for p in section.pictures if p.file.endswith(".svg")]
    for old in (folder / FIGURES).glob("*.svg"):
        if old.name not in {picture.file for picture in own}:
            old.unlink()
    for picture in own:
        replace_file(folder / FIGURES / picture.file, picture.content)
    page = rendered("page.html.j2", title=title, description=description, sections=sections)
    replace_file(folder / FILE, page.encode())
    return [folder / FILE, *(folder / FIGURES / picture.file for picture in own)]


def html_of(shown: Table) -> Markup:
    """Return a table as HTML in which no text is markup."""
    return Markup(forms.html(shown))  # noqa: S704  the form escapes every text


def html_blocks(shown: CrossTable) -> list[Markup]:
    """Return a cross table as HTML, broken into blocks of columns that fit a printed page."""
    return [html_of(block) for block in cross_table.blocks(cross_table.neutral(shown), PRINTED)]
