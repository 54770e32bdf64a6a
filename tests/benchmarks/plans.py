"""What planning and reporting of many GSSD trials cost: processor seconds by part, and peak memory.

    python -m tests.benchmarks.plans                      10,000 and 100,000 trials planned, 10,000 reported
    python -m tests.benchmarks.plans --plans 10000 --rounds 3 --reports

The trials are GSSD's on the built-in digits, over rates, seeds, alphas, beta and lambda. Each row is measured
in a process of its own, whose imports count in its memory, not in its seconds. The reported trials have
fabricated results.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from bdtune.cluster.sweep import make_ledger, planned_trials
from bdtune.config import points
from bdtune.config.load import load_sweep
from bdtune.config.trial import section_text, trial_id
from bdtune.engine.execute import Executor
from bdtune.engine.manifest import Cost
from bdtune.engine.shared import Shared
from bdtune.engine.stage import Artefact
from bdtune.engine.store import Store
from bdtune.trials.speed import Speed
from bdtune.trials.sweep_folder import claim
from bdtune.verbs import sweep_report

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bdtune.config.sweep import SweepSpec
    from bdtune.trials.ledger import Ledger

SPACE = """
name: many
trial:
  dataset: digits
  attack: {name: badnets, rate: 0.1, target: 0}
  defense: gssd
  model: {name: resnet18, width: 8}
"""
AXES = {  # in the order in which they are filled up; of 10,000 trials 25 share each setting of the defense
    "seed": range(100),
    "attack.rate": [round(0.02 * (number + 1), 3) for number in range(10)],
    "defense.alpha_c": [0.1, 0.2, 0.3, 0.4, 0.5],
    "defense.alpha_p": [0.05, 0.1, 0.15, 0.2],
    "defense.beta_nd": [0.6, 1.0, 1.5, 2.0, 3.0],
    "defense.lambda": [0.5, 0.65, 0.8, 1.0],
}


class Clock:
    """Processor seconds of the parts of a computation; a part within another one is not counted in it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as a part."""
        started = time.process_time()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.process_time() - started
            inner = self._inner.pop()
            self._inner[-1] += whole
            self.seconds[name] = self.seconds.get(name, 0.0) + whole - inner

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, each call of which counts as a part."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return counted


def axes_of(trials: int) -> list[str]:
    """Return the words that make a grid of so many trials: all settings of the defense, then rates and seeds.

    Raises `ValueError` for a number that is no multiple of 400.
    """
    settings = math.prod(len(values) for path, values in AXES.items() if path.startswith("defense"))
    if trials % settings or trials // settings > len(AXES["seed"]) * len(AXES["attack.rate"]):
        raise ValueError(f"expected a multiple of {settings}, got {trials}")
    datas = trials // settings
    rates = next(n for n in range(min(10, math.isqrt(datas)), 0, -1) if datas % n == 0)
    sizes = {"seed": datas // rates, "attack.rate": rates}
    return [
        f"{path}={','.join(map(str, list(values)[: sizes.get(path)]))}"
        for path, values in AXES.items()
        if sizes.get(path, 2) > 1
    ]


def loaded(trials: int, folder: Path) -> SweepSpec:
    """Return a checked sweep of so many trials."""
    file = folder / "many.yaml"
    file.write_text(SPACE)
    return load_sweep(str(file), axes_of(trials))


def planned(trials: int, folder: Path) -> dict[str, float]:
    """Return the processor seconds of each part of a plan of so many trials."""
    speed = Speed()
    warm, _ = make_ledger(spec := loaded(400, folder), Store(folder / "store"))
    warm.extend(planned_trials(spec, 0)[:2])
    warm.plan(speed)  # plugins are imported, the machine's speed is measured
    clock = Clock()
    parse = clock.wrapped("validation", points.parse_section)
    with patch("bdtune.config.points.parse_section", parse), clock.part("expansion"):
        spec = loaded(trials, folder)
    ledger, _ = make_ledger(spec, Store(folder / "store"))
    with clock.part("ids and graphs"):
        ledger.extend(planned_trials(spec, 0))
    with clock.part("counting"):
        found = ledger.plan(speed)
    with clock.part("of these ids"):
        hashes = Shared(section_text)
        assert [trial_id(entry.spec, hashes) for entry in ledger.entries.values()] == list(ledger.entries)
    assert found.trials == trials
    return clock.seconds


def reported(trials: int, folder: Path) -> dict[str, float]:
    """Return the processor seconds of a report of so many trials, of which the store has all results."""
    clock = Clock()
    spec = loaded(trials, folder)
    place = claim(folder, spec)
    store = Store(folder / "store")
    ledger, _ = make_ledger(spec, store)
    ledger.extend(planned_trials(spec, 0))
    fabricate(ledger, store)
    for name in ("report", "report again"):
        with clock.part(name):
            outcome = sweep_report.report(place.name, folder)
        assert all(trial.status == "done" for trial in outcome.result.trials)
        assert len(outcome.result.trials) > trials
    return clock.seconds


def fabricate(ledger: Ledger, store: Store) -> None:
    """Put a result of each stage of all trials into the store: its manifest, and a curve of a training."""
    resolver = Executor(store, None).resolver  # type: ignore[arg-type]
    done: set[str] = set()
    for number, entry in enumerate(ledger.entries.values()):
        for node in entry.graph.stages.values():
            if node.recipe in done:
                continue
            done.add(node.recipe)
            info = {"number": len(done)}
            if node.name == "evaluate":
                share = number / len(ledger.entries)
                info = {"acc": 0.9 + share / 20, "asr": 0.9 * (not entry.is_baseline) * share, "n_clean": 1}
            curve = tuple({"epoch": epoch, "loss": 1.0} for epoch in range(node.stage.length()))
            key = resolver.key(node)
            assert key is not None
            artefact = Artefact(info=info, curve=curve)
            store.publish(key, node.stage.kind, resolver.preimage(node), artefact, cost=Cost(0.5, 10**9))


def measured(kind: str, trials: int) -> None:
    """Measure one row in this process and print it as JSON."""
    with tempfile.TemporaryDirectory() as name:
        seconds = (planned if kind == "plan" else reported)(trials, Path(name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"seconds": seconds, "peak_mb": round(peak)}))


def row(kind: str, trials: int, rounds: int) -> str:
    """Return a line: each part at its best of several rounds, and the highest memory."""
    command = [sys.executable, "-m", __spec__.name, "--measure", kind, str(trials)]
    done = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds)]
    found = [json.loads(each.stdout.splitlines()[-1]) for each in done]
    parts = {part: min(one["seconds"][part] for one in found) for part in found[0]["seconds"]}
    whole = sum(
        seconds for part, seconds in parts.items() if "again" not in part and "of" not in part.split()
    )
    text = ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())
    peak = max(one["peak_mb"] for one in found)
    each = whole / trials * 1e3
    return f"{kind} of {trials:7,} trials {whole:7.2f} s {each:7.3f} ms/trial {peak:5} MB   {text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--plans", type=int, nargs="*", default=[10_000, 100_000], metavar="TRIALS")
    parser.add_argument("--reports", type=int, nargs="*", default=[10_000], metavar="TRIALS")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--measure", nargs=2, metavar=("KIND", "TRIALS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measured(options.measure[0], int(options.measure[1]))
        return
    for kind, counts in (("plan", options.plans), ("report", options.reports)):
        for trials in counts:
            print(row(kind, trials, options.rounds), flush=True)


if __name__ == "__main__":
    main()
