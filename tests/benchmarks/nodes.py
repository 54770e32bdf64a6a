"""Sweeps of toy stages on a Ray cluster of three nodes, struck by what befalls nodes.

    python -m tests.benchmarks.nodes [--rounds 3] [--cut 60] [--json]

The nodes are processes of this machine, which share nothing but a store in a bucket (a server on loopback).
Each sweep meets one fault after the other, and must end as an undisturbed one. Prints what the faults cost.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests import s3
from tests.end_to_end.faults import KINDS, Fault, struck


def main() -> None:
    options = _options()
    begun, faults, broken = time.time(), [], []
    with tempfile.TemporaryDirectory(prefix="n", ignore_cleanup_errors=True) as name, s3.running() as server:
        os.environ |= {**server.environment, "RAY_TMPDIR": name}
        for number in range(options.rounds):
            found, different = struck(
                options.kinds, Path(name) / str(number), server, cut_s=options.cut, slower=options.slower
            )
            faults += found
            broken += [f"round {number}: {each}" for each in different]
    if options.json:
        found = {"rounds": options.rounds, "seconds": round(time.time() - begun), "broken": broken}
        print(json.dumps({**found, "faults": [_plain(fault) for fault in faults]}, indent=1))
    else:
        _print(faults)
        print(f"\n{options.rounds} sweeps; different from undisturbed ones: {len(broken)} {broken or ''}")
    sys.exit(1 if broken else 0)


def _plain(fault: Fault) -> dict[str, Any]:
    return {name: value for name, value in vars(fault).items() if name != "pids"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--kinds", nargs="+", choices=list(KINDS), default=list(KINDS), help="faults, in their order"
    )
    parser.add_argument("--cut", type=float, default=60.0, help="seconds without a network")
    parser.add_argument(
        "--slower", type=float, default=16.0, help="16: stages of ten epochs of 6.4 and 4.8 s"
    )
    parser.add_argument("--json", action="store_true", help="print every fault")
    return parser.parse_args()


def _print(faults: list[Fault]) -> None:
    columns = ("fault", "times", "in", "work lost, s", "at work again after, s", "the sweep", "went on after")
    print(f"| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for kind in dict.fromkeys(fault.kind for fault in faults):
        mine = [fault for fault in faults if fault.kind == kind]
        back = _spread([fault.back_s for fault in mine if fault.back_s is not None])
        sweep = _spread([fault.sweep_back_s for fault in mine if fault.sweep_back_s is not None])
        resumed = ", ".join(fault.resumed for fault in mine if fault.resumed)
        stages = ", ".join(fault.stage for fault in mine if fault.stage)
        lost = _spread([fault.lost_s for fault in mine])
        print(f"| {kind} | {len(mine)} | {stages} | {lost} | {back} | {sweep} | {resumed} |")


def _spread(seconds: list[float]) -> str:
    """Return mean and maximum."""
    return f"{sum(seconds) / len(seconds):.1f} ({max(seconds):.1f})" if seconds else ""


if __name__ == "__main__":
    main()
