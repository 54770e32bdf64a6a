"""What a trial costs beside its stages: sweeps of trivial trials, beside plain Ray Tune with reused actors.

    python -m tests.benchmarks.engine [--trials 200] [--cpus 2] [--planned 10000] [--rounds 3]

Plain Tune runs the same number of trials of a trainable that imports torch, as every trial of bdtune does to
evaluate, and returns a number. "from the store" runs the finished sweep again; "planned" takes the processor
time of the plan of many toys; for that of GSSD see `tests.benchmarks.plans`. Starting Ray and what
the driver imports once are in neither, starting trials' processes is in both. Only ratios of one run mean
something.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

PLUGINS = Path(__file__).parent.parent / "plugins"
SPACE = """
name: trivial
trial:
  dataset: tiny
  attack: {name: badnets, rate: 0.2, target: 0}
  defense: toy
  model: linear
select: {metric: oracle_acc}
"""


def plain(trials: int, folder: Path) -> float:
    """Return the seconds of as many trivial trials in plain Ray Tune."""
    from ray import tune

    class Trivial(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            import torch  # noqa: F401

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            return True

        def step(self) -> dict[str, Any]:
            return {"objective": self.config["x"], "done": True}

    started = time.perf_counter()
    tune.Tuner(
        tune.with_resources(Trivial, {"cpu": 1}),
        param_space={"x": tune.grid_search(list(range(trials)))},
        tune_config=tune.TuneConfig(metric="objective", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(folder),
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    ).fit()
    return time.perf_counter() - started


class Nobody:
    """A watcher that does not watch."""

    def trial_done(self, result: Any) -> None: ...

    def held(self, count: int) -> None: ...

    def message(self, text: str) -> None: ...

    def stage(self, trial: str, stage: str, epoch: int = 0, epochs: int = 0) -> None: ...

    def remarked(self, trial: str, stage: str, text: str) -> None: ...
    def learned(self, trial: str, role: str, epoch: int, metrics: object) -> None: ...


def sweep(trials: int, folder: Path) -> tuple[float, int]:
    """Return the seconds of a sweep of trivial trials, and how many were given to actors."""
    from bdtune.cluster.sweep import make_ledger, run_sweep
    from bdtune.config.load import load_sweep
    from bdtune.engine.store import Store

    file = folder / "trivial.yaml"
    file.write_text(SPACE)
    levels = ",".join(str(level) for level in range(trials))
    started = time.perf_counter()
    spec = load_sweep(str(file), [f"defense.prefix.level={levels}"])
    ledger, executor = make_ledger(spec, Store(folder / "store"))
    outcome = run_sweep(spec, folder / "sweep", ledger, executor, watcher=Nobody())
    seconds = time.perf_counter() - started
    assert all(trial.status == "done" for trial in outcome.trials), "every trial must end well"
    return seconds, outcome.released


def planned(trials: int, folder: Path) -> float:
    """Return the processor seconds of the plan of a sweep with two stages of its own for each trial."""
    from bdtune.cluster.sweep import make_ledger, planned_trials
    from bdtune.config.load import load_sweep
    from bdtune.engine.store import Store

    file = folder / "trivial.yaml"
    file.write_text(SPACE)
    side = round(trials**0.5)
    values = ",".join(str(value) for value in range(side))
    started = time.process_time()
    spec = load_sweep(str(file), [f"defense.prefix.level={values}", f"defense.beta={values}"])
    ledger, _ = make_ledger(spec, Store(folder / "plan"))
    ledger.extend(planned_trials(spec, 50))
    count = ledger.plan().trials
    seconds = time.process_time() - started
    assert count == side**2
    return seconds


def compared(trials: int, cpus: int, rounds: int, folder: Path) -> list[tuple[str, float, str]]:
    """Return the rows about trials: plain Tune, a sweep, and the sweep from the store, each at its best."""
    import torch  # noqa: F401

    import bdtune.cluster.trainable  # noqa: F401
    from bdtune.cluster.session import session

    beside, first, again = [], [], []
    with session(cpus=cpus):
        for number in range(rounds):  # in turn, so that a busy machine slows each alike
            own = folder / str(number)
            own.mkdir()
            beside.append(plain(trials, own / "tune"))
            seconds, released = sweep(trials, own)
            first.append(seconds)
            seconds, none = sweep(trials, own)
            again.append(seconds)
            assert (released, none) == (trials + 1, 0)
    each = ", ".join(f"{b / a:.2f}" for a, b in zip(beside, first, strict=True))
    return [
        (f"plain Tune, {trials} trials", min(beside), f"{min(beside) / trials * 1e3:.0f} ms/trial"),
        ("bdtune sweep", min(first), f"ratio {min(first) / min(beside):.2f} (by round: {each})"),
        ("the same from the store", min(again), f"{min(again) / trials * 1e3:.1f} ms/trial"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--planned", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    os.environ["BDTUNE_PLUGINS"] = str(PLUGINS)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        if options.planned:
            seconds = planned(options.planned, Path(name))
            each = f"{seconds / options.planned * 1e3:.2f} ms/trial"
            rows.append((f"plan of {options.planned} trials", seconds, each))
        if options.trials:
            rows += compared(options.trials, options.cpus, options.rounds, Path(name))
    for what, seconds, remark in rows:
        print(f"{what:32} {seconds:8.2f} s   {remark}")


if __name__ == "__main__":
    main()
