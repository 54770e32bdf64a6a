"""Sweeps that are computed in this process, without a cluster and without MLflow, and leave their report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bdtune.cluster.sweep import make_ledger
from bdtune.config.expand import points
from bdtune.config.load import load_sweep
from bdtune.engine.store import Store
from bdtune.report import files
from bdtune.report.selection import selected
from bdtune.trials.sweep_folder import claim, store_of
from tests.trained import one_thread

PLUGINS = Path(__file__).parents[1] / "plugins"

SPACE = """
name: toy
trial:
  dataset: tiny
  attack: {name: badnets, rate: 0.2}
  defense: toy
  model: linear
  holdout: 0.25
  numerics: {device: cpu, precision: fp32}
vary: {defense.tail.quality: [1.0, 0.5]}
seeds: [0, 1]
select: select_acc
"""


def plugins(monkeypatch: Any) -> None:
    """Let the toy plugins be found, and nothing of the user's."""
    monkeypatch.setenv("BDTUNE_PLUGINS", str(PLUGINS))
    monkeypatch.setenv("BDTUNE_COMMIT", "test")
    for name in ("BDTUNE_DATA", "BDTUNE_HOME", "BDTUNE_STORE"):
        monkeypatch.delenv(name, raising=False)


def computed(
    home: Path, *words: str, text: str = SPACE, only: int | None = None, at: Path | str | None = None
) -> Path:
    """Run a sweep, or its first `only` trials and their baselines; returns its folder.

    Its results are `at` a folder or an address, by default in the run directory itself.
    """
    file = home / "toy.yaml"
    home.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    spec = load_sweep(str(file), list(words))
    place = claim(home, spec, at)
    spec = spec.model_copy(update={"name": place.name})
    ledger, executor = make_ledger(spec, Store(store_of(place.folder)))
    ledger.extend(points(spec))
    some = list(ledger.entries.values())[:only]
    with one_thread():
        for entry in some:
            executor.made_for = f"{spec.name}/{entry.id}"
            for _ in executor.walk(entry.graph.goals):
                pass
    trials = [ledger.result(entry) for entry in ledger.entries.values()]
    result = selected(spec.name, trials, spec.select.metric, spec.select.mode)
    files.write(place.folder, result, figure=False)
    return place.folder
