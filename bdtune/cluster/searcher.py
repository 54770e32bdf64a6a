"""The searcher that Tune asks for trials: it gives out what the driver releases, and may say "not now"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from ray.tune.search import Searcher

from bdtune.cluster.signals import remind_tune

if TYPE_CHECKING:
    from collections.abc import Mapping


class Releases(Protocol):
    """What the searcher needs of the driver."""

    def release(self) -> tuple[str, dict[str, Any]] | None:
        """Return the next trial's id and configuration, or None when all are better held back."""

    @property
    def slots(self) -> int:
        """How many trials are to be under way at a time; more when nodes join."""

    @property
    def finished(self) -> bool:
        """Whether no trial will be released any more."""

    def ended(self, trial: str, report: Mapping[str, Any] | None) -> None:
        """Note a released trial's last report; None when its process died too often."""


class HoldBack(Searcher):
    """Gives Tune the trials of a driver; returns None for "not now"."""

    def __init__(self, driver: Releases) -> None:
        super().__init__(metric="objective", mode="max")
        self.driver = driver
        self._trials: dict[str, str] = {}
        self._reports: dict[str, Mapping[str, Any]] = {}

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Say that this searcher has a bound of its own: Tune's stays what it was at the start."""
        return True

    def suggest(self, trial_id: str) -> Any:
        remind_tune()
        if len(self._trials) >= self.driver.slots:
            return None
        released = self.driver.release()
        if released is None:
            return Searcher.FINISHED if self.driver.finished else None
        self._trials[trial_id], config = released
        return config

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        trial, report = self._trials.pop(trial_id, None), self._reports.pop(trial_id, {})
        if trial is not None:  # one that is stopped while paused comes without its last report
            self.driver.ended(trial, None if error else result or report)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._reports[trial_id] = result

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Tune pickles its searcher into a snapshot that nobody reads: the driver stays out of it."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Keep nothing: a sweep resumes from the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: a sweep resumes from the store."""
