"""Sweeps of toy stages that are killed in all ways at random moments and started again.

    python -m tests.benchmarks.kills [--kills 100] [--seed 0] [--sweeps grid judged together search] [--json]

Prints what was killed, when, and what it cost; and what differs from undisturbed sweeps (nothing should).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.end_to_end.chaos import KINDS, Blow, Chaos, drawn_kinds
from tests.end_to_end.kills import SPACE, Runs

SLOWER = 3.0
"""Stages than those of the tests."""
GONE_S = 150.0
"""After so long no process of a killed Ray session is to be left."""
GRID = SPACE.replace("[0, 1]", "[0, 1, 2]")
ALONE = "numerics: {device: cpu, precision: fp32}"
SPACES = {
    "grid": GRID,
    # checkpoints and a report at each epoch; nothing is stopped, as that would depend on the order of events
    "judged": GRID + "scheduler: {name: asha, grace: 100}\n",
    "together": GRID.replace(ALONE, ALONE.replace("}", ", fused: 3}")),
    "search": SPACE.partition("grid:")[0]
    + """search:
  trials: 10
  sampler: random
  metric: oracle_acc
  space: {defense.prefix.level: {choice: [0, 1, 2]}, defense.beta: {uniform: [0.2, 0.8]}}
""",
}
"""A grid, one under a scheduler, one whose stages are computed three at a time, and a search by a study."""


def main() -> None:
    options = _options()
    begun = time.time()
    with tempfile.TemporaryDirectory(prefix="k", ignore_cleanup_errors=True) as name:  # short: of sockets
        os.environ["RAY_TMPDIR"] = name
        until = begun + 60 * options.minutes
        chaos = Chaos(drawn_kinds(options.kills, options.seed), options.seed, options.span, until=until)
        ends = _all_sweeps(Path(name), chaos, options.sweeps)
        left = chaos.processes_left(GONE_S)
    broken = [*ends["broken"], *chaos.unexplained, *(f"a process is left: {each}" for each in left)]
    found = {"kills": len(chaos.blows), "sweeps": ends["sweeps"], "starts": len(chaos.codes)}
    found |= {"seconds": round(time.time() - begun), "broken": broken}
    if options.json:
        print(json.dumps({**found, "blows": [asdict(blow) for blow in chaos.blows]}, indent=1))
    else:
        _print(found, chaos.blows)
    sys.exit(1 if broken else 0)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60.0, help="after which nothing more is killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--span", type=float, default=6.0, help="seconds after a start's first stage")
    parser.add_argument("--sweeps", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--json", action="store_true", help="print every kill")
    return parser.parse_args()


def _all_sweeps(folder: Path, chaos: Chaos, sweeps: list[str]) -> dict[str, Any]:
    """Disturb one sweep after the other while kills are left; returns their number and what differs."""
    whole: dict[str, tuple[Runs, dict[str, Any]]] = {}
    broken, count = [], 0
    for sweep in itertools.cycle(sweeps):
        if not chaos.goes_on:
            break
        if sweep not in whole:
            runs = Runs(folder / f"{sweep}-undisturbed", SLOWER, space=SPACES[sweep])
            whole[sweep] = runs, runs.finish()
        count += 1
        runs = Runs(folder / f"{sweep}-{count}", SLOWER, space=SPACES[sweep])
        result = chaos.disturb(runs, sweep)
        runs.sync()  # what a Ctrl-C at the very end, or a slow machine, left to it
        broken += [f"{sweep} {count}: {each}" for each in runs.differences(result, *whole[sweep])]
    return {"sweeps": count, "broken": broken}


def _print(found: dict[str, Any], blows: list[Blow]) -> None:
    print("| kind | times | when | the command ended with | work lost, s | at work again after, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for kind in KINDS:
        mine = [blow for blow in blows if blow.kind == kind]
        if mine:
            print(f"| {kind} | {len(mine)} | {' | '.join(_row(mine))} |")
    print(f"\n{found['kills']} kills met {found['starts']} starts of {found['sweeps']} sweeps", end=" ")
    print(f"in {found['seconds'] / 60:.0f} min; different from undisturbed sweeps: {len(found['broken'])}")
    for each in found["broken"]:
        print(f"- {each.splitlines()[0]}")


def _row(blows: list[Blow]) -> list[str]:
    when = Counter("+".join(sorted(set(blow.stages))) or blow.phase for blow in blows)
    codes = Counter("went on" if blow.ended is None else str(blow.ended) for blow in blows)
    lost, back = [blow.lost_s for blow in blows], [blow.back_s for blow in blows if blow.back_s is not None]
    return [*map(_counted, (when, codes)), *map(_spread, (lost, back))]


def _counted(what: Counter[str]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in what.most_common())


def _spread(seconds: list[float]) -> str:
    """Return mean and maximum."""
    return f"{sum(seconds) / len(seconds):.1f} ({max(seconds):.1f})" if seconds else ""


if __name__ == "__main__":
    main()
