"""Small plugins, and a working directory of each test's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BDTUNE_PLUGINS", str(Path(__file__).parent / "plugins"))
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(own_folder: Path) -> Callable[[str], str]:
    """Write a YAML file into the working directory and return its name."""

    def write(text: str, name: str = "s.yaml") -> str:
        (own_folder / name).write_text(text, encoding="utf-8")
        return name

    return write
