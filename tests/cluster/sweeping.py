"""Running small sweeps of the toy plugins, and reading what they noted."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bdtune.cluster.sweep import Options, Outcome, make_ledger, run_sweep
from bdtune.config.load import load_sweep
from bdtune.engine.store import Store

PLUGINS = Path(__file__).parent.parent / "plugins"

SPACE = """
name: toy
trial:
  dataset: tiny
  defense: toy
  model: linear
  numerics: {device: cpu, precision: fp32}
select: {metric: oracle_acc}
"""


class Silent:
    """A watcher that only remembers."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.messages: list[str] = []
        self.most_held = 0
        self.remarks: set[tuple[str, str, str]] = set()
        self.seen: set[tuple[str, str, int, int]] = set()
        self.curves: dict[tuple[str, str], dict[int, dict[str, float]]] = {}

    def trial_done(self, result):
        self.done.append(result.id)

    def message(self, text):
        self.messages.append(text)

    def held(self, count):
        self.most_held = max(self.most_held, count)

    def stage(self, trial, stage, epoch=0, epochs=0):
        self.seen.add((trial, stage, epoch, epochs))

    def remarked(self, trial, stage, text):
        self.remarks.add((trial, stage, text))

    def learned(self, trial, role, epoch, metrics):
        self.curves.setdefault((trial, role), {})[epoch] = dict(metrics)


class Bench:
    """A folder with a store, in which sweeps of one space are run again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "toy.log"
        self.watcher = Silent()
        self.store = Store(root / "store")

    def spec(self, *overrides: str, extra: str = ""):
        file = self.root / "toy.yaml"
        file.write_text(SPACE + extra)
        return load_sweep(str(file), list(overrides))

    def run(self, *overrides: str, extra: str = "", **options: Any) -> Outcome:
        spec = self.spec(*overrides, extra=extra)
        ledger, executor = make_ledger(spec, Store(self.store.root))
        self.ledger = ledger
        folder = self.root / "sweeps" / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        return run_sweep(spec, folder, ledger, executor, watcher=self.watcher, options=Options(**options))

    def plan(self, *overrides: str, extra: str = ""):
        from bdtune.cluster.sweep import planned_trials

        spec = self.spec(*overrides, extra=extra)
        ledger, _ = make_ledger(spec, Store(self.store.root))
        ledger.extend(planned_trials(spec, 50))
        return ledger.plan()

    def notes(self, stage: str = "", what: str = "start") -> list[dict[str, Any]]:
        """Return what toy stages noted."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        found = [json.loads(line) for line in lines]
        return [note for note in found if note["stage"].startswith(stage) and note["what"] == what]

    def published(self) -> Counter[str]:
        """Return how many entries the store has of each stage."""
        return Counter(manifest.name for manifest in Store(self.store.root).entries())

    def twice(self) -> dict[str, int]:
        """Return the toy stages that were started more than once."""
        seen = Counter(json.dumps([note["stage"], note["identity"]]) for note in self.notes())
        return {identity: count for identity, count in seen.items() if count > 1}


def defended(outcome: Outcome):
    """Return the results of trials that are no baselines."""
    return [trial for trial in outcome.trials if not trial.is_baseline]
