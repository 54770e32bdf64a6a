"""What entries of the tables promise: metrics, samplers, schedulers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.plugins.metric import METRICS
from bdtune.tuning.samplers import SAMPLERS
from bdtune.tuning.schedulers import SCHEDULERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.plugins.table import Table

TABLES: dict[str, Table[Any]] = {table.kind: table for table in (METRICS, SAMPLERS, SCHEDULERS)}


def check_metric(name: str) -> None:
    """A metric of images is a finite number."""
    metric = METRICS.find(name)
    if metric.measured_on == "comparison":
        return
    labels = np.arange(40) % 4
    value = metric.function(np.roll(labels, 1), labels, np.zeros(40, np.int64))
    number = isinstance(value, int | float | np.number) and math.isfinite(value)
    assert number, f"expected a finite number of (predicted, labels, goals), got {value!r}"


def check_sampler(name: str) -> None:
    """A sampler is built from the search's seed and a trial's number."""
    from optuna.samplers import BaseSampler

    built = SAMPLERS.find(name).build(0, 1)
    assert isinstance(built, BaseSampler), f"expected a sampler of Optuna, got {type(built).__name__}"


def check_scheduler(name: str) -> None:
    """A scheduler is built from its settings."""
    from ray.tune.schedulers import TrialScheduler

    entry = SCHEDULERS.find(name)
    built = entry.build(entry.knobs(name=name), 9, lambda _: None)
    assert isinstance(built, TrialScheduler), f"expected a scheduler of Ray Tune, got {type(built).__name__}"


CHECKS: dict[str, Callable[[str], None]] = {
    "metrics": check_metric,
    "samplers": check_sampler,
    "schedulers": check_scheduler,
}
