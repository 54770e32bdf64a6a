"""A grid of LfD settings trained to the end, beside the same grid under a scheduler.

    python -m tests.benchmarks.multi_fidelity [--space lfd_asha] [--out FOLDER] [SETTING=VALUE ...]

Each has a store of its own, in which epochs of all stages that train a classifier are counted: those of
results, and those of checkpoints where a training was stopped. A training that settings share counts once, in
both. The baseline is trained to its end in both, and told apart. Trainings repeat bit for bit on a
CPU, so a setting that both train to the end has one number.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.benchmarks.engine import Nobody

if TYPE_CHECKING:
    from bdtune.engine.store import Store
    from bdtune.trials.ledger import Ledger
    from bdtune.trials.results import TrialResult


@dataclass(frozen=True)
class Run:
    """What one way to run the space came to."""

    seconds: float
    epochs: int
    """Trained of defended classifiers."""
    baselines: int
    """Epochs of undefended ones."""
    trainings: int
    trials: list[TrialResult]
    best: TrialResult
    value: float


def trained(ledger: Ledger, store: Store) -> tuple[int, int, int]:
    """Return epochs of defended classifiers, of undefended ones, and how many of the former were begun."""
    baselines, defended = set(), set()
    for entry in ledger.entries.values():
        for node in entry.graph.chain["classifier"].walk():
            key = ledger.resolver.key(node)
            if node.stage.classifier and key is not None:
                (baselines if entry.is_baseline else defended).add(key)

    def epochs(key: str) -> int:
        manifest = store.manifest(key)
        if manifest is not None:
            return int(manifest.info["epochs"])
        saved = store.checkpoint(key).load()
        return int(saved[1]["done"]) if saved else 0

    begun = {key: epochs(key) for key in sorted(defended - baselines)}
    return sum(begun.values()), sum(map(epochs, baselines)), sum(done > 0 for done in begun.values())


def run(space: str, overrides: list[str], folder: Path) -> Run:
    """Run the space in an empty store of its own."""
    from bdtune.cluster.sweep import make_ledger, run_sweep
    from bdtune.config.load import load_sweep
    from bdtune.engine.store import Store
    from bdtune.metrics import metric_of

    spec = load_sweep(space, overrides)
    store = Store(folder / "store")
    ledger, executor = make_ledger(spec, store)
    began = time.perf_counter()
    outcome = run_sweep(spec, folder / "sweep", ledger, executor, watcher=Nobody())
    seconds = time.perf_counter() - began
    trials = [trial for trial in outcome.trials if not trial.is_baseline]
    assert all(trial.status in ("done", "stopped") for trial in trials), [trial.error for trial in trials]
    metric, sign = metric_of(spec.select.metric), 1 if spec.select.mode == "max" else -1
    done = [trial for trial in trials if trial.status == "done"]
    best = max(done, key=lambda trial: sign * trial.metrics[metric])
    return Run(seconds, *trained(ledger, store), trials, best, best.metrics[metric])


def main() -> None:
    """Run both ways and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="lfd_asha")
    parser.add_argument("--out", type=Path, help="keep the two stores here, and go on with what is in them")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    from bdtune.cluster.session import session
    from bdtune.config.load import load_sweep

    spec = load_sweep(options.space, options.overrides)
    ways = {"full grid": ["scheduler=none"], spec.scheduler.name: []}
    with tempfile.TemporaryDirectory() as name, session(cpus=2):
        root = options.out or Path(name)
        found = {
            way: run(options.space, [*options.overrides, *words], root / way.replace(" ", "_"))
            for way, words in ways.items()
        }
    grid = found["full grid"]
    ended = {trial.id: trial for trial in grid.trials}
    print(f"{spec.name}: {len(grid.trials)} settings; the baseline's {grid.baselines} epochs are not counted")
    print(f"{'':<12}{'epochs':>8}{'share':>8}{'trainings':>11}{'stopped':>9}{spec.select.metric:>14}{'s':>8}")
    for way, its in found.items():
        stopped = sum(trial.status == "stopped" for trial in its.trials)
        share, row = its.epochs / grid.epochs, f"{way:<12}{its.epochs:>8}"
        print(f"{row}{share:>8.2f}{its.trainings:>11}{stopped:>9}{its.value:>14.4f}{its.seconds:>8.0f}")
    axes = spec.axis_paths()
    for way, its in found.items():
        setting = ", ".join(f"{axis.removeprefix('defense.')} {its.best.params[axis]}" for axis in axes)
        print(f"best of {way}: {setting}")
        assert its.best.metrics == ended[its.best.id].metrics, "a setting has one number"


if __name__ == "__main__":
    main()
