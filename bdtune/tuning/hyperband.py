"""Tune's HyperBand, for trials that share work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import HyperBandScheduler

if TYPE_CHECKING:
    from collections.abc import Callable


class HyperBand(HyperBandScheduler):
    """Tune's HyperBand for trials that share work: some go on from epochs that others have trained.

    It reports which trials it pauses, as others may wait for what these were computing. And it judges a
    bracket as often as its trials are ahead of it, and again when one of them ends: Tune's own would leave
    the bracket's other trials paused for ever.
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
