"""Progress in a notebook: one cell's output that is replaced, and gone at the end."""

from __future__ import annotations

import io
import sys
import types

import pytest

from bdtune.report.live import Progress


class Cell:
    """What `display` returns."""

    def __init__(self, html):
        self.shown = [html.data]

    def update(self, html):
        self.shown.append(html.data)


class HTML:
    def __init__(self, data):
        self.data = data


@pytest.fixture
def cells(monkeypatch):
    """Make this process look like a notebook's kernel to rich and to us; returns the cells' outputs."""
    made = []

    class ZMQInteractiveShell:
        pass

    def display(html, *, display_id):
        assert display_id is True
        made.append(Cell(html))
        return made[-1]

    package, inner = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = ZMQInteractiveShell
    inner.display, inner.HTML = display, HTML
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", inner)
    monkeypatch.setattr("builtins.get_ipython", ZMQInteractiveShell, raising=False)
    return made


def test_a_notebook_shows_a_bar_that_moves_and_goes(cells, monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    with Progress() as progress:
        progress.planned(4, unique=9)
        progress.stage("a", "retrain", 3, 10)
        progress._live.refresh()
        shown = cells[0].shown[-1]
        assert "retrain" in shown
        assert "epoch 3/10" in shown
        assert "0/4 trials" in shown
        assert "━" in shown  # the bar
    assert len(cells) == 1
    assert cells[0].shown[-1] == ""
    assert "4 trials, 9 stages" in lines.getvalue()
    assert "\x1b" not in lines.getvalue()


def test_a_log_in_a_notebook_and_a_quiet_sweep_have_no_bar(cells, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    for progress in (Progress(quiet=True), Progress(stream=io.StringIO())):
        with progress:
            progress.planned(4, unique=9)
    assert cells == []


def test_names_that_are_html_are_shown_as_text(cells, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress(name=lambda trial: "<b>evil</b>") as progress:
        progress.planned(1)
        progress.stage("a", "retrain")
        progress._live.refresh()
        assert "<b>" not in cells[0].shown[-1]
        assert "&lt;b&gt;evil" in cells[0].shown[-1]
