"""Schedulers that stop trials early, judged at each epoch of the stages that the defense names.

Adding one is one entry, or one `Scheduler` in a file BDTUNE_PLUGINS/schedulers/NAME.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from bdtune.knobs import Knobs
from bdtune.plugins.table import Named, Table

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

NONE = "none"
Paused = Callable[[str], None]
"""Is called with the id of each trial that is set aside, perhaps to go on later."""


@dataclass(frozen=True)
class Scheduler(Named):
    """What stops trials early that do badly, judged by the reports `epoch` and `objective`."""

    build: Callable[[Any, int, Paused], TrialScheduler]
    """(its knobs, largest number of epochs that a trial may report, paused) -> Tune's scheduler."""
    knobs: type[SchedulerKnobs]
    objectives: int | None = 1
    """The most objectives beside which it can be used; None: any number."""
    most_open: Callable[[Any, int, int], int] = lambda knobs, epochs, slots: slots
    """(its knobs, epochs, trials that fit at once) -> how many trials may be open at once."""


class SchedulerKnobs(Knobs):
    """A scheduler by name; those with knobs extend it."""

    name: str = NONE

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        return SCHEDULERS.check(name)

    @property
    def judges(self) -> bool:
        """Whether trials may be stopped early."""
        return self.name != NONE


class Grace(SchedulerKnobs):
    """How long a trial is left alone."""

    grace: int = Field(1, ge=1)
    """Epochs before a trial may be stopped."""


class Reduction(SchedulerKnobs):
    """How many trials go on at each rung."""

    reduction: int = Field(3, ge=2)
    """Of so many trials one goes on."""


class Rungs(Reduction, Grace):
    """Both."""


def _none(_knobs: SchedulerKnobs, _epochs: int, _paused: Paused) -> TrialScheduler:
    from ray.tune.schedulers import FIFOScheduler

    return FIFOScheduler()


def _asha(knobs: Rungs, epochs: int, _paused: Paused) -> TrialScheduler:
    from ray.tune.schedulers import AsyncHyperBandScheduler

    return AsyncHyperBandScheduler(
        time_attr="epoch",
        max_t=max(epochs, knobs.grace),
        grace_period=knobs.grace,
        reduction_factor=knobs.reduction,
        stop_last_trials=False,  # a trial ends by itself, with its evaluation
    )


def _hyperband(knobs: Reduction, epochs: int, paused: Paused) -> TrialScheduler:
    from bdtune.tuning.hyperband import HyperBand

    settings = {"max_t": epochs, "reduction_factor": knobs.reduction, "stop_last_trials": False}
    return HyperBand(paused, time_attr="epoch", **settings)


def _band(knobs: Reduction, epochs: int, slots: int) -> int:
    """Return the size of a band: HyperBand compares the trials that it has paused."""
    rounds = round(math.log(epochs, knobs.reduction)) + 1
    band = sum(math.ceil(rounds / (s + 1) * knobs.reduction**s) for s in range(rounds))
    return max(slots, band)


def _median(knobs: Grace, _epochs: int, _paused: Paused) -> TrialScheduler:
    from ray.tune.schedulers import MedianStoppingRule

    return MedianStoppingRule(time_attr="epoch", grace_period=knobs.grace, min_samples_required=3)


SCHEDULERS = Table(
    "schedulers",
    [
        Scheduler(NONE, "no trial is stopped", _none, SchedulerKnobs, objectives=None),
        Scheduler(
            "asha", "asynchronous successive halving: at each rung the better part goes on", _asha, Rungs,
            source="Li et al., 2020",
        ),
        Scheduler(
            "hyperband", "synchronous successive halving: trials wait for those they are compared with",
            _hyperband, Reduction, most_open=_band, source="Li et al., 2018",
        ),
        Scheduler(
            "median", "a trial below the median of the others' running means is stopped", _median, Grace,
            source="Golovin et al., 2017",
        ),
    ],
)  # fmt: skip
