"""Fixtures for sweeps on a real Ray session."""

from __future__ import annotations

import pytest

from tests.cluster.sweeping import PLUGINS, Bench


@pytest.fixture
def bench(tmp_path, monkeypatch) -> Bench:
    """A folder to run sweeps in."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(PLUGINS))
    monkeypatch.setenv("BDTUNE_TOY_LOG", str(tmp_path / "toy.log"))
    monkeypatch.delenv("BDTUNE_DATA", raising=False)
    return Bench(tmp_path)
