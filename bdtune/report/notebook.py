"""The live display of a sweep in a notebook: a cell's output that is replaced; rich's own needs widgets."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
"""Characters of a line in a cell's output."""


def in_notebook() -> bool:
    """Return whether a notebook's kernel runs this process: one of Jupyter, Colab or Databricks."""
    return Console().is_jupyter


class NotebookLive(Live):
    """A rich display that replaces its HTML in the cell, and takes it away at the end."""

    _cell: Any = None

    def refresh(self) -> None:
        """Show the renderable as it is now."""
        with self._lock:
            self._show(html_of(self.get_renderable()))

    def stop(self) -> None:
        """Stop refreshing, and leave nothing in the cell."""
        super().stop()
        self._show("")

    def _show(self, html: str) -> None:
        from IPython.display import HTML, display  # every notebook has it, no installation needs it

        if self._cell is None:
            self._cell = display(HTML(html), display_id=True)
        else:
            self._cell.update(HTML(html))


def html_of(renderable: RenderableType) -> str:
    """Return what rich would print on a terminal as HTML, in colours."""
    console = Console(file=io.StringIO(), width=WIDTH, record=True, force_terminal=True, force_jupyter=False)
    console.print(renderable)
    return console.export_html(inline_styles=True, code_format="<pre style='line-height:normal'>{code}</pre>")
