"""What the file of every plugin says: a sentence, a source, and a line for each knob."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bdtune.knobs import field_docs
from bdtune.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bdtune.plugins.registry import Plugin


def check_described(kind: str, name: str) -> None:
    """The plugin's file says what it is and where it comes from, and explains its own knobs."""
    about = registry.describe(kind, name)
    assert about.summary, "expected a docstring at the top of the file"
    assert about.source, "expected a paragraph 'Source: ...' in the docstring at the top of the file"
    cls: type[Plugin] = registry.load(kind, name)
    own = [knob for knob in cls.model_fields if knob in cls.__annotations__]
    unexplained = [knob for knob in own if knob not in field_docs(cls)]
    assert not unexplained, f"expected a docstring below each setting; {', '.join(unexplained)} have none"


def check_each(kind: str, name: str, checks: Iterable[Callable[[str], None]]) -> None:
    """Check how a plugin describes itself, then by each check of its kind."""
    check_described(kind, name)
    for check in checks:
        check(name)


def refused(action: Callable[[], object], error: type[Exception], pattern: str) -> None:
    """An action raises an error whose text matches the pattern."""
    try:
        action()
    except error as caught:
        assert re.search(pattern, str(caught)), f"expected {pattern!r} in {str(caught)!r}"  # noqa: PT017
    else:
        raise AssertionError(f"expected {error.__name__}: {pattern}")
