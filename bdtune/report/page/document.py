"""HTML documents: a page's frame and looks, with every text escaped unless it is marked as markup."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    here = FileSystemLoader(Path(__file__).parent)
    return Environment(
        loader=here, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )


def rendered(template: str, **values: Any) -> str:
    """Return a template of this folder with its values; texts are escaped, `Markup` is not."""
    return _environment().get_template(template).render(**values)


def standalone(title: str, body: str) -> str:
    """Return a document around HTML that is escaped already, such as that of a table."""
    return rendered("frame.html.j2", title=title, body=Markup(body))  # noqa: S704
