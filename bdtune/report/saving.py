"""Saving a figure, whole or not at all: a picture that is there is not drawn again."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from bdtune.engine.files import replace_file

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure


def save(figure: Figure, path: Path, **options: Any) -> Path:
    """Save a figure as PNG with matplotlib's options for `savefig`; returns its path."""
    content = io.BytesIO()
    figure.savefig(content, format="png", **options)
    replace_file(path, content.getvalue())
    return path
