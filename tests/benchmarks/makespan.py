"""Two prefixes of 4 s shared by six tails of 1 s, on two slots: what holding back followers is worth.

    python -m tests.benchmarks.makespan [--rounds 1]

The ideal is 7 s. "held back": the sweep as it is. "waiting inside": all trials are released; followers
wait in their trials for the stage that another computes. "not shared": every trial computes its own prefix.
Starting Ray and loading libraries are not counted, nor is the baseline, which is computed before.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

from tests.benchmarks.engine import PLUGINS, Nobody

IDEAL_S = 7.0
SPACE = """
name: makespan
trial:
  dataset: tiny
  defense: {name: toy, prefix: {seconds: 4.0}, tail: {seconds: 1.0}}
  model: linear
  numerics: {device: cpu, precision: fp32}
select: {metric: oracle_acc}
"""
SHARED = ("defense.prefix.level=0,1", "defense.tail.quality=1.0,0.75,0.5")
APART = ("defense.prefix.level=0,1,2,3,4,5",)


def sweep(folder: Path, *overrides: str) -> float:
    """Run a sweep; return the seconds from the first stage's start to the last one's end."""
    from bdtune.cluster.sweep import make_ledger, run_sweep
    from bdtune.config.load import load_sweep
    from bdtune.engine.store import Store

    folder.mkdir()
    file = folder / "makespan.yaml"
    file.write_text(SPACE)
    store = Store(folder / "store")
    for words in (("defense=none", "defense.train.epochs=1", "defense.train.lr=0.01"), overrides):
        os.environ["BDTUNE_TOY_LOG"] = str(folder / "toy.log")
        spec = load_sweep(str(file), list(words))
        ledger, executor = make_ledger(spec, store)
        outcome = run_sweep(spec, folder / "sweep", ledger, executor, watcher=Nobody())
        assert all(trial.status == "done" for trial in outcome.trials), outcome
    notes = [json.loads(line) for line in (folder / "toy.log").read_text().splitlines()]
    return max(note["time"] for note in notes) - min(note["time"] for note in notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    os.environ["BDTUNE_PLUGINS"] = str(PLUGINS)
    from bdtune.cluster.session import session
    from bdtune.engine.ready_queue import ReadyQueue

    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, session(cpus=2):
        for number in range(options.rounds):
            folder = Path(name)
            found.setdefault("not shared", []).append(sweep(folder / f"apart{number}", *APART))
            with mock.patch.object(ReadyQueue, "_blocking", return_value=None):
                found.setdefault("waiting inside", []).append(sweep(folder / f"inside{number}", *SHARED))
            found.setdefault("held back", []).append(sweep(folder / f"held{number}", *SHARED))
    for what, seconds in found.items():
        each = ", ".join(f"{value:.1f}" for value in seconds)
        print(f"{what:16} {each} s   best {min(seconds) / IDEAL_S:.2f} times the ideal of {IDEAL_S} s")


if __name__ == "__main__":
    main()
