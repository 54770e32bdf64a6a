"""Schedulers that stop trials early, judged at each epoch of the stages that the defense names."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, HyperBandScheduler, MedianStoppingRule

if TYPE_CHECKING:
    from collections.abc import Callable

    from bdtune.config.sweep import Scheduler


class HyperBand(HyperBandScheduler):
    """Tune's HyperBand for trials that share work: some go on from epochs that others have trained.

    It tells which trials it pauses, as others may wait for what these were computing. And it judges a bracket
    as often as its trials are ahead of it, and again when one of them ends: Tune's own would leave the
    bracket's other trials paused for ever.
    """

    def __init__(self, paused: Callable[[str], None], **knobs: Any) -> None:
        super().__init__(**knobs)
        self._paused = paused
        self._judging: list[Any] = []  # brackets; stopping a trial comes back here

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        if action == self.PAUSE:
            self._paused(trial.config["trial"])
        return action

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        bracket, _ = self._trial_info[trial]
        bracket.is_being_processed = bracket in self._judging  # Tune's own never takes it back
        super().on_trial_remove(tune_controller, trial)

    def _process_bracket(self, tune_controller: Any, bracket: Any) -> str:
        action: str = self.PAUSE
        self._judging.append(bracket)
        try:
            while True:
                last = bracket._halves == 0
                judged = super()._process_bracket(tune_controller, bracket)
                action = judged if judged != self.PAUSE else action
                if last or not bracket.current_trials() or not bracket.cur_iter_done():
                    return action
        finally:
            self._judging.remove(bracket)

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its scheduler into a snapshot that nobody reads: the driver stays out of it."""
        return {}


def make_scheduler(spec: Scheduler, epochs: int, paused: Callable[[str], None]) -> Any:
    """Return Tune's scheduler; `epochs` is the largest number a trial may report.

    `paused` is told the id of each trial that is set aside, perhaps to go on later.
    """
    if spec.name == "asha":
        return AsyncHyperBandScheduler(
            time_attr="epoch",
            max_t=max(epochs, spec.grace),
            grace_period=spec.grace,
            reduction_factor=spec.reduction,
            stop_last_trials=False,  # a trial ends by itself, with its evaluation
        )
    if spec.name == "hyperband":
        knobs = {"max_t": epochs, "reduction_factor": spec.reduction, "stop_last_trials": False}
        return HyperBand(paused, time_attr="epoch", **knobs)
    if spec.name == "median":
        return MedianStoppingRule(time_attr="epoch", grace_period=spec.grace, min_samples_required=3)
    return FIFOScheduler()


def most_open(spec: Scheduler, epochs: int, slots: int) -> int:
    """Return how many trials may be open at once: HyperBand compares those it has paused."""
    if spec.name != "hyperband":
        return slots
    rounds = round(math.log(epochs, spec.reduction)) + 1
    band = sum(math.ceil(rounds / (s + 1) * spec.reduction**s) for s in range(rounds))
    return max(slots, band)
