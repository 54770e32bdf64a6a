"""`bdtune verify`: some trials of a sweep computed again from nothing, and compared with what it holds."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bdtune.engine.environment import environment
from bdtune.engine.execute import Executor
from bdtune.engine.key import key_of
from bdtune.engine.store import Store
from bdtune.errors import Problem, UserError
from bdtune.plugins.metric import METRICS
from bdtune.reading.resident import InProcess
from bdtune.report import files
from bdtune.report.live import Progress
from bdtune.report.names import setting_names
from bdtune.trials.from_params import spec_from_params
from bdtune.trials.known import KnownTrial
from bdtune.trials.ledger import Ledger
from bdtune.verbs.home import settings_of
from bdtune.verbs.run import walked
from bdtune.verbs.same import StageDifference, first_difference
from bdtune.verbs.stores import of_sweep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bdtune.config.trial import TrialSpec
    from bdtune.engine.manifest import Manifest
    from bdtune.trials.ledger import Entry
    from bdtune.trials.results import SweepResult, TrialResult

SAMPLE = 5
TOLERANCE = 0.02
"""Largest difference of a metric in [0, 1] that is put down to another processor or library."""

Verdict = Literal["equal", "within tolerance", "differs", "failed"]


@dataclass(frozen=True)
class TrialCheck:
    """One trial, as the sweep holds it and as it came out now."""

    trial: str
    name: str
    """Its settings, in short."""
    verdict: Verdict
    stages: int
    """Compared with what the sweep recorded."""
    first: StageDifference | None
    """The first stage that is not the same, parents first."""
    numbers: Mapping[str, tuple[float | None, float | None]]
    """Metrics that are not the same: recorded, and now."""
    environment: Mapping[str, tuple[str, str]]
    """What computed it that is not the same: there, and here."""
    error: str = ""

    @property
    def good(self) -> bool:
        """Whether it came out again."""
        return self.verdict in ("equal", "within tolerance")

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def verify(
    folder: Path,
    home: Path,
    *,
    sample: int = SAMPLE,
    tolerance: float = TOLERANCE,
    data_root: Path | None = None,
    store: str | None = None,
    quiet: bool = False,
) -> list[TrialCheck]:
    """Compute some finished trials of a sweep again in a fresh store, and compare; writes nothing in `home`.

    The sample is the same for everybody. Raises `UserError` where nothing is finished, or the data or the
    device is not here.
    """
    result, spec = files.read(folder), settings_of(folder)
    of_sweep(folder, store)  # which is the one that it began with, and answers
    chosen = _sample(result, sample)
    root = data_root or spec.trial.data_root
    specs = [spec_from_params(trial.params, root) for trial in chosen]
    _must_be_possible(specs)
    known = [KnownTrial(home, trial, folder.name, root) for trial in chosen]
    with tempfile.TemporaryDirectory(prefix="bdtune-verify-") as fresh, Progress(quiet=quiet) as progress:
        executor = Executor(Store(Path(fresh)), InProcess(root, spec.trial.pipeline))
        ledger = Ledger(f"verify-{folder.name}", executor.resolver, spec.device)
        entries = [ledger.add(each) for each in specs]
        progress.name = setting_names(ledger, spec.axis_paths())
        seconds = {use.key: use.seconds for trial in chosen for use in trial.stages.values()}
        progress.planned(len(ledger.entries), unique=len(seconds), seconds=sum(seconds.values()))
        again = _Again(ledger, executor, progress, tolerance)
        return [again.check(*each) for each in zip(known, entries, strict=True)]


def _sample(result: SweepResult, count: int) -> list[TrialResult]:
    """Return that many finished trials, drawn by their ids, defended ones first."""
    done = [trial for trial in result.trials if trial.status == "done"]
    drawn = sorted(done, key=lambda trial: (trial.is_baseline, key_of(["verify", trial.id])))
    if not drawn:
        raise UserError(f"no trial of sweep '{result.sweep}' is finished, so there is nothing to verify")
    return drawn[:count]


def _must_be_possible(specs: Sequence[TrialSpec]) -> None:
    problems = dict.fromkeys(problem for spec in specs for problem in spec.dataset.check(spec.data_root))
    if any(spec.numerics.device == "cuda" for spec in specs):
        import torch

        if not torch.cuda.is_available():
            expected = "expected a GPU, as the sweep was computed on one"
            problems[Problem("numerics.device", expected, "none on this machine")] = None
    if problems:
        raise UserError(list(problems))


@dataclass
class _Again:
    """Computes trials again, each once, and compares them."""

    ledger: Ledger
    executor: Executor
    progress: Progress
    tolerance: float
    done: dict[str, TrialResult] = field(default_factory=dict)

    def check(self, known: KnownTrial, entry: Entry) -> TrialCheck:
        """Compute a trial and its baseline, with as many threads as before, and compare."""
        changed = _changed_environment(known)
        baseline = self.ledger.baseline(entry)
        if baseline is not None:
            self._compute(baseline)
        now = self._compute(entry)
        trial, name = known.result.id, self.progress.name(entry.id)
        if now.status != "done":
            return TrialCheck(trial, name, "failed", 0, None, {}, changed, now.error or now.status)
        first = first_difference(known, entry, self.executor.resolver)
        numbers = _differing(known.result.metrics, now.metrics)
        verdict = _verdict(first, numbers, exact=not changed, tolerance=self.tolerance)
        return TrialCheck(trial, name, verdict, len(known.result.stages), first, numbers, changed)

    def _compute(self, entry: Entry) -> TrialResult:
        if entry.id not in self.done:
            self.done[entry.id] = walked(entry, self.ledger, self.executor, self.progress)
            self.progress.trial_done(self.done[entry.id])
        return self.done[entry.id]


def _changed_environment(known: KnownTrial) -> dict[str, tuple[str, str]]:
    """Return what computed a trial that is not the same here; gives torch as many threads as it had.

    Threads count where something was trained, a GPU where it was used.
    """
    import torch

    found = [known.manifest(use.key) for use in known.result.stages.values()]
    recorded = [_deciding(manifest) for manifest in found if manifest is not None]
    together = max((manifest.cost.together for manifest in found if manifest is not None), default=1)
    if not any(recorded):
        return {"environment": ("not recorded", "")}
    threads = Counter(each["threads"] for each in recorded if "threads" in each).most_common(1)
    if threads:
        torch.set_num_threads(int(threads[0][0]))
    here = environment()
    changed = {
        name: (there, here.get(name, "none"))
        for each in recorded
        for name, there in each.items()
        if here.get(name) != there
    }
    return {**changed, **({"computed together": (str(together), "1")} if together > 1 else {})}


def _deciding(manifest: Manifest) -> dict[str, str]:
    """Return what may have decided the last bits of a result."""
    tag = manifest.preimage.get("numerics") or {}
    left_out = {*(() if tag else ("threads",)), *(() if tag.get("device") == "cuda" else ("gpu",))}
    return {name: value for name, value in manifest.environment.items() if name not in left_out}


def _differing(
    recorded: Mapping[str, float], now: Mapping[str, float]
) -> dict[str, tuple[float | None, float | None]]:
    pairs = {name: (recorded.get(name), now.get(name)) for name in dict.fromkeys([*recorded, *now])}
    return {name: pair for name, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}  # nan equals nan


def _verdict(
    first: StageDifference | None,
    numbers: Mapping[str, tuple[float | None, float | None]],
    *,
    exact: bool,
    tolerance: float,
) -> Verdict:
    if first is None and not numbers:
        return "equal"
    if exact or (first is not None and first.what != "content"):
        return "differs"
    near = all(
        one is not None and two is not None and abs(one - two) <= tolerance
        for name, (one, two) in numbers.items()
        if METRICS.get(name) is not None
    )
    return "within tolerance" if near else "differs"
