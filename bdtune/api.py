"""bdtune from Python: sweeps, plans and reports as the command line has them, and what one does with results.

All of it is reached as `bdtune.sweep`, `bdtune.report` and so on. Settings map dotted paths to values; a list
is swept, as a comma on the command line is.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.errors import Problem, UserError
from bdtune.report import table as tables
from bdtune.trials.known import KnownTrial
from bdtune.verbs import home as homes
from bdtune.verbs.console import results_only_on_stdout
from bdtune.verbs.place import run_directory

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    import pandas as pd
    import torch

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.plan import Plan
    from bdtune.training.classifier import Classifier
    from bdtune.training.torch_dataset import PoisonedDataset
    from bdtune.trials.results import Scalar, Status, SweepResult, TrialResult
    from bdtune.trials.verdicts import Verdicts

    Place = str | os.PathLike[str]
    Settings = Mapping[str, Any]

log = logging.getLogger(__name__)


class _Shown(ABC):
    """Base of what a notebook prints as a table."""

    @abstractmethod
    def table(self) -> tables.Table:
        """Return the table that the command line prints."""

    def __repr__(self) -> str:
        return tables.plain(self.table(), 120)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(tables.plain(self.table()))}</pre>"


@dataclass(frozen=True, repr=False)
class Trial:
    """One trial of a run directory."""

    known: KnownTrial
    """Its result, and where its files are."""

    @property
    def id(self) -> str:
        """16 hex digits of all settings that can change the result."""
        return self.known.result.id

    @property
    def status(self) -> Status:
        """done, failed, diverged, stopped or pending."""
        return self.known.result.status

    @property
    def params(self) -> Mapping[str, Scalar]:
        """Every setting by its dotted path."""
        return self.known.result.params

    @property
    def metrics(self) -> Mapping[str, float]:
        """Numbers by name: acc, asr, der, ...; a defense's own as `gssd/...`."""
        return self.known.result.metrics

    @property
    def is_baseline(self) -> bool:
        """Whether it is the undefended model that others are compared with."""
        return self.known.result.is_baseline

    def curves(self) -> dict[str, pd.DataFrame]:
        """Return the numbers of each epoch, by the training's role in the trial."""
        import pandas as pd

        uses = self.known.result.stages.items()
        found = {role: self.known.store.curve(use.key) for role, use in uses}
        return {role: pd.DataFrame(rows) for role, rows in found.items() if rows}

    def model(self) -> Classifier:
        """Return the defended classifier, a torch module.

        It takes float images [B, C, H, W] in [0, 1] to logits [B, K]; the normalisation is inside. It is on
        the CPU, in evaluation mode. Weights that the sweep dropped (`weights_gb`) are computed again first,
        in this process. Raises `UserError` where the store lacks them, or they cannot be computed here.
        """
        from bdtune.trials.belongings import classifier_of

        return classifier_of(self.known)

    def verdicts(self) -> Verdicts:
        """Return which training rows the defense kept, relabelled and suspected, by their row numbers."""
        from bdtune.trials.verdicts import verdicts_of

        return verdicts_of(self.known)

    def poisoned_dataset(
        self, transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    ) -> PoisonedDataset:
        """Return the training set that the defense was given as a torch `Dataset`, with the truth beside it.

        Items are float32 images [C, H, W] in [0, 1], `transform`ed, and observed labels. Raises `UserError`
        where the data set is not here, or the store lacks what the attack trained.
        """
        from bdtune.training.torch_dataset import PoisonedDataset
        from bdtune.trials.belongings import poisoned_set
        from bdtune.trials.verdicts import rows_of

        rows = rows_of(self.known)
        return PoisonedDataset(poisoned_set(self.known), rows.truth, rows.ids, transform)

    def __repr__(self) -> str:
        params, metrics = self.params, self.metrics
        shown = [f"{name}={params[name]}" for name in ("attack", "defense", "seed") if name in params]
        shown += [f"{name}={metrics[name]:.3f}" for name in ("acc", "asr", "der") if name in metrics]
        return f"Trial({self.id}, {self.status}: {', '.join(shown)})"


@dataclass(frozen=True, repr=False)
class Sweep(_Shown):
    """A sweep's results; printed, it is the table of `bdtune report`."""

    home: Path
    """The run directory."""
    spec: SweepSpec
    """What it was last run with."""
    result: SweepResult
    """All trials, and what the selection rule chose."""
    interrupted: bool = False
    """Whether Ctrl-C ended the run; the same call goes on from there."""

    @property
    def name(self) -> str:
        """Its name, by which `bdtune.report` finds it."""
        return self.result.sweep

    @cached_property
    def trials(self) -> tuple[Trial, ...]:
        """All trials, baselines among them."""
        return tuple(map(self._trial, self.result.trials))

    @property
    def best(self) -> Trial | None:
        """The best setting's trial of the first seed; None without a ranked one, or with one per attack."""
        return next((trial for trial in self.trials if trial.id == self.result.best), None)

    @cached_property
    def best_settings(self) -> dict[str, tuple[Trial, ...]]:
        """All trials of each best setting, one a seed, by data set and attack; "" if there is one."""
        chosen = self.result.best_settings.items()
        return {name: tuple(map(self._trial, trials)) for name, trials in chosen}

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per trial, by its id: status, every setting and number, seconds, the error."""
        import pandas as pd

        rows = {trial.id: _row(trial) for trial in self.result.trials}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("id")

    def table(self) -> tables.Table:
        """Return the table of the report."""
        return tables.build(self.result, paper=self.spec.published)

    def rules(self) -> pd.DataFrame:
        """Return what each rule chooses, and its gap to `oracle_der`: a row per defense, case and rule."""
        import pandas as pd

        from bdtune.report.comparison import flat_picks
        from bdtune.report.groups import grouped
        from bdtune.report.rules import picks

        return pd.DataFrame(flat_picks(picks(grouped(self.result.trials))))

    def ranking(self, *others: Sweep, sort: str = "worst") -> pd.DataFrame:
        """Return the defenses of this sweep, and of others, in order; see `bdtune report --ranking`.

        `sort` is worst, mean, oracle_worst, oracle_mean or stability. Raises `UserError` for another one.
        """
        import pandas as pd

        from bdtune.report.comparison import flat_ranking
        from bdtune.report.ranking import ranking_of

        results = [each.result for each in (self, *others)]
        return pd.DataFrame(flat_ranking(ranking_of(results, sort)))

    def _trial(self, result: TrialResult) -> Trial:
        return Trial(KnownTrial(self.home, result, self.name, self.spec.trial.data_root))


@dataclass(frozen=True, repr=False)
class PlannedSweep(_Shown):
    """What a sweep would compute; printed, it is the table of `bdtune plan`."""

    spec: SweepSpec
    plan: Plan
    """Trials, stages, and seconds with and without sharing."""

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per stage: results that are needed, stored, reused, and needed without sharing."""
        import pandas as pd

        rows = {name: vars(count) for name, count in self.plan.stages.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("stage")

    def table(self) -> tables.Table:
        """Return the table of the plan."""
        from bdtune.verbs.tables import plan_table

        return plan_table(self.spec, self.plan)


def sweep(
    space: Place | None = None,
    settings: Settings | None = None,
    *,
    out: Place | None = None,
    store: Place | None = None,
    address: str | None = None,
    cpus: int | None = None,
    gpus: int | None = None,
    concurrency: int | None = None,
    retry_failed: bool = False,
    mlflow_wait: float = 30.0,
    quiet: bool = False,
) -> Sweep:
    """Run a sweep, or go on with it, and return its results; see `bdtune sweep`.

    `space` is a YAML file or a shipped search space, `settings` what is set over it, `out` the run directory,
    `store` a folder or a bucket for results. Raises `UserError` with all that is wrong.
    """
    from bdtune.cluster.sweep import Options
    from bdtune.verbs import sweep as verb

    options = Options(address, cpus, gpus, retry_failed, concurrency)
    home = run_directory(_path(out))
    with results_only_on_stdout():
        done = verb.sweep(
            _file(space),
            words(settings),
            home,
            options,
            store=_file(store),
            quiet=quiet,
            wait_s=mlflow_wait,
        )
    if done.given_up:
        log.warning("trials were given up, the same call goes on with them: %s", done.given_up)
    return Sweep(home, done.spec, done.result, done.interrupted)


def plan(
    space: Place | None = None,
    settings: Settings | None = None,
    *,
    out: Place | None = None,
    store: Place | None = None,
) -> PlannedSweep:
    """Return what a sweep would compute, without computing or writing anything; arguments as of `sweep`."""
    from bdtune.verbs import sweep as verb

    home = run_directory(_path(out), write=False)
    return PlannedSweep(*verb.plan(_file(space), words(settings), home, store=_file(store)))


def run(
    space: Place | None = None,
    settings: Settings | None = None,
    *,
    out: Place | None = None,
    store: Place | None = None,
    quiet: bool = False,
) -> Trial:
    """Run one trial and its baseline in this process, without Ray and MLflow; arguments as of `sweep`."""
    from bdtune.verbs import run as verb

    home = run_directory(_path(out))
    result = verb.run(_file(space), words(settings), home, store=_file(store), quiet=quiet)
    own = next(trial for trial in result.trials if trial.id == result.best)
    if own.error:
        log.warning("trial %s %s: %s", own.id, own.status, own.error)
    return trial(own.id, out=home, store=store)


def report(name: Place, *, out: Place | None = None, store: Place | None = None) -> Sweep:
    """Return a sweep's results as the store has them now; see `bdtune report`.

    Raises `UserError` with the nearest name where no such sweep was run.
    """
    from bdtune.verbs import sweep_report

    home = run_directory(_path(out), write=False)
    outcome = sweep_report.report(str(name), home, store=_file(store))
    return Sweep(home, outcome.spec, outcome.result)


def trial(
    id: str,  # noqa: A002 - what it is called everywhere
    *,
    out: Place | None = None,
    store: Place | None = None,
) -> Trial:
    """Return a trial of a run directory by its id or its beginning; raises `UserError` without one."""
    return Trial(homes.find_trial(id, run_directory(_path(out), write=False), _file(store)))


def load_model(folder: Place) -> Classifier:
    """Return the classifier that `bdtune export TRIAL` wrote; raises `UserError` for another folder."""
    import bdtune
    from bdtune.verbs.export_trial import DESCRIPTION, WEIGHTS

    place = Path(folder)
    missing = [name for name in (DESCRIPTION, WEIGHTS) if not (place / name).is_file()]
    if missing:
        expected = f"expected a folder that 'bdtune export TRIAL' wrote, with {DESCRIPTION} and {WEIGHTS}"
        raise UserError(Problem(str(place), expected, f"none with {' and '.join(missing)}"))
    from safetensors.torch import load_file

    from bdtune.training.classifier import Classifier

    about = json.loads((place / DESCRIPTION).read_text(encoding="utf-8"))
    network = bdtune.model(**about["network"]).build(about["num_classes"], tuple(about["image_shape"]))
    model = Classifier(network, about["mean"], about["std"])
    model.load_state_dict(load_file(place / WEIGHTS))
    return model.eval()


def words(settings: Settings | None) -> list[str]:
    """Return settings as words of the command line; a list becomes an axis, a list in it one value."""
    return [f"{path}={_text(value)}" for path, value in (settings or {}).items()]


def _text(value: Any) -> str:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(value, list | tuple | range):
        return f"choice({', '.join(map(_plain, value))})"
    return _plain(value)


def _plain(value: Any) -> str:
    """Return a value as YAML reads it."""
    return json.dumps(value, default=lambda other: other.item() if hasattr(other, "item") else str(other))


def _row(trial: TrialResult) -> dict[str, Any]:
    seconds = {"seconds_computed": trial.computed_seconds, "seconds_saved": trial.saved_seconds}
    own = {"status": trial.status, "is_baseline": trial.is_baseline}
    return {**own, **trial.params, **trial.metrics, **seconds, "error": trial.error}


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(place)


def _file(space: Place | None) -> str | None:
    return None if space is None else str(space)
