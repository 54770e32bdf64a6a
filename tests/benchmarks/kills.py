"""A small sweep whose driver is killed at ten random moments and started again, beside an undisturbed one.

    python -m tests.benchmarks.kills [--kills 10] [--seed 0]

Says whether metrics and contents are equal bit for bit, and what was computed although it was published.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.end_to_end.kills import Runs, digests, killed_often, metrics

SLOWER = 3.0
"""Stages than those of the tests."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, default=5.0, help="seconds after a start's first stage")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        whole = Runs(Path(name) / "undisturbed", SLOWER)
        expected = whole.finish()
        runs = Runs(Path(name) / "killed", SLOWER)
        result, kills = killed_often(runs, options.kills, options.seed, span_s=options.span)
        statuses, trials = runs.mlflow_runs()
        print(f"kills that met a running driver: {kills} of {options.kills}")
        print(f"metrics equal: {metrics(result) == metrics(expected)}")
        print(f"{len(digests(runs))} contents equal bit for bit: {digests(runs) == digests(whole)}")
        starts, unique = len(runs.notes()), len(whole.notes())
        print(f"toy stages started: {starts} (undisturbed {unique})")
        print(f"started after they were published: {len(runs.computed_after_publishing())}")
        print(f"published twice: {runs.published_twice().total()}; leases left: {len(runs.blocked())}")
        print(f"MLflow runs: {dict(statuses)}; runs per trial: {sorted(set(trials.values()))}")


if __name__ == "__main__":
    main()
