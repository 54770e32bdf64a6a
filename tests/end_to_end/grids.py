"""Grids that are planned as on the command line and computed in this process."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from bdtune import cli
from bdtune.cluster.sweep import make_ledger, planned_trials
from bdtune.config.load import load_sweep
from bdtune.engine.store import Store

if TYPE_CHECKING:
    from pathlib import Path

SMALL = [
    "dataset=digits",
    "dataset.side=16",
    "dataset.train_limit=60",
    "dataset.test_limit=20",
    "attack=badnets",
    "model=lenet_s",
    "numerics.device=cpu",
    "numerics.precision=fp32",
]
QUICK = ("epochs=1", "batch_size=32")


class Grid:
    """A grid that is planned as on the command line and computed in this process."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
    ) -> None:
        self.words, self._patch, self._capsys = [*SMALL, *words], monkeypatch, capsys

    def plan(self) -> dict[str, Any]:
        self._patch.setattr(sys, "argv", ["bdtune", "plan", *self.words, "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        found: dict[str, Any] = json.loads(self._capsys.readouterr().out)
        return found

    def unique(self) -> dict[str, int]:
        return {name: count["unique"] for name, count in self.plan()["stages"].items()}

    def compute(self, folder: Path) -> Counter[str]:
        """Return how often each stage was computed: what the store has, and nothing twice."""
        spec = load_sweep(None, self.words)
        ledger, executor = make_ledger(spec, Store(folder / "bdtune-runs" / "store"))
        ledger.extend(planned_trials(spec, 50))
        computed: Counter[str] = Counter()
        for entry in ledger.entries.values():
            for event in executor.walk(entry.graph.goals):
                computed[event.node.name] += event.what == "computed"
        assert +computed == Counter(manifest.name for manifest in executor.store.entries())
        return computed


def quick(*stages: str) -> list[str]:
    return [f"defense.{stage}.{knob}" for stage in stages for knob in QUICK]
