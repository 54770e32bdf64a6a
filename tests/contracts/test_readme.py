"""Every plugin stands in the README's tables, with what it is and where it is from.

To write the tables anew: python -m tests.contracts.test_readme
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bdtune.plugins import registry

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- plugins -->", "<!-- end of plugins -->"
HEADINGS = {"attacks": "attack", "defenses": "defense", "datasets": "data set", "models": "model"}


def own_names(kind: str) -> list[str]:
    """Return the package's own plugins of a kind: those of tests are elsewhere."""
    return [name for name in registry.names(kind) if registry.places(kind)[name].module.startswith("bdtune.")]


def tables() -> str:
    """Return the tables of all kinds, from the docstrings of the plugins' files."""
    parts = []
    for kind, heading in HEADINGS.items():
        rows = [f"| {heading} | what it is | source |", "| --- | --- | --- |"]
        for name in own_names(kind):
            about = registry.describe(kind, name)
            cells = (f"`{name}`", about.summary.removesuffix("."), about.source.removesuffix("."))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


@pytest.mark.parametrize("kind", HEADINGS)
def test_every_plugin_is_in_the_readme(kind):
    text = README.read_text()
    missing = [name for name in own_names(kind) if f"`{name}`" not in text]
    assert not missing, "write the tables anew: python -m tests.contracts.test_readme"


def test_the_tables_name_no_plugin_that_is_gone():
    part = README.read_text().partition(BEGIN)[2].partition(END)[0]
    named = set(re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE))
    assert named <= {name for kind in HEADINGS for name in own_names(kind)}


if __name__ == "__main__":
    before, _, rest = README.read_text().partition(BEGIN)
    after = rest.partition(END)[2] if END in rest else rest
    README.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}")
