from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.end_to_end.grids import Grid

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    for name in ("BDTUNE_DATA", "BDTUNE_HOME", "BDTUNE_PLUGINS"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: Grid(monkeypatch, capsys, *words)
