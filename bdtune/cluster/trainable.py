"""The Tune trainable: walks one trial's graph on the resources it was given, and reports.

A first `step` walks to the end of the trial; with a scheduler it stops at each epoch of the stages that
train the defense's classifier, so that each is one report. Results go through the store, never the driver.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from bdtune.cluster.shared import NodeResident, Shared
from bdtune.config.graph import trial_graph
from bdtune.config.outcome import judge_tick
from bdtune.config.trial import spec_from_dict
from bdtune.engine.execute import Executor, StageFailed
from bdtune.engine.files import replace_file
from bdtune.engine.store import Store
from bdtune.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Generator

    from bdtune.engine.execute import Event
    from bdtune.engine.stage import Node

LIVE_S = 1.0
"""Between two notes of a trial's progress."""
WORST = 1e9
"""Reported in place of an objective by a trial that has none, so that no scheduler keeps it."""


class Trial(tune.Trainable):
    """One trial in a process that may serve many trials after one another."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        self.shared = shared
        os.environ.update(shared.environment)
        self._limit_gpu_memory()
        self.store = Store(shared.store)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turn to another trial; nothing of the one before is kept but loaded libraries."""
        self._close()
        self.trial, self.judged = new_config["trial"], new_config["judged"]
        self.spec = spec_from_dict(new_config["spec"])
        self.graph = trial_graph(self.spec)
        self.first = self._twin_goals() if self.judged else []
        self.executor = Executor(
            self.store,
            NodeResident(self.shared, self.spec.data_root),
            checkpoint_interval_s=0.0 if self.judged else None,
            made_for=f"{self.shared.sweep}/{self.trial}",
        )
        self._noted_at = 0.0
        return True

    def step(self) -> dict[str, Any]:
        """Walk on to the next report."""
        if self._walk is None:
            self._walk = self.executor.walk([*self.first, *self.graph.goals])
        try:
            for event in self._walk:
                self._note(event)
                if self._reports(event):
                    return self._report(event)
            status, error = "done", None
        except StageFailed as failure:
            status, error = failure.status, str(failure)
        except UserError as problem:
            status, error = "failed", str(problem)
        except Exception as problem:
            status, error = "failed", f"{type(problem).__name__}: {problem}"
        self._close()
        return {
            "done": True,
            "status": status,
            "error": error,
            "epoch": self._last_epoch,
            **self._objective(),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Let go of the stage's lease; a promoted trial goes on from the stage's checkpoint in the store."""
        self._close()
        return {"trial": self.trial}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Start the walk again: it goes on from the store."""
        self._close()

    def cleanup(self) -> None:
        self._close()

    _walk: Generator[Event, None, None] | None = None
    _last_epoch = 0
    _score: float | None = None

    def _twin_goals(self) -> list[Node]:
        return trial_graph(self.graph.reference).goals if self.graph.reference is not None else []

    def _close(self) -> None:
        if self._walk is not None:
            self._walk.close()  # releases the lease of a stage that is under way
        self._walk, self._last_epoch, self._score = None, 0, None
        if hasattr(self, "trial"):
            (self.shared.live / f"{self.trial}.json").unlink(missing_ok=True)

    def _reports(self, event: Event) -> bool:
        """Whether an event is an epoch that the scheduler judges."""
        return self.judged and event.what == "tick" and event.node.recipe in self.graph.judged

    def _report(self, event: Event) -> dict[str, Any]:
        assert event.tick is not None
        assert self.shared.objective is not None
        metrics = judge_tick(self.executor, self.graph, event.tick.artefact())
        self._score = metrics.get(self.shared.objective)
        self._last_epoch = self.graph.judged[event.node.recipe] + event.tick.epoch
        report = {"done": False, "status": "running", "epoch": self._last_epoch, "metrics": metrics}
        return {**report, **self._objective()}

    def _objective(self) -> dict[str, float]:
        worst = -WORST if self.shared.mode == "max" else WORST
        return {"objective": worst if self._score is None else self._score}

    def _note(self, event: Event) -> None:
        """Leave a line about the progress for the driver's display."""
        now = time.monotonic()
        if event.what == "tick" and now - self._noted_at < LIVE_S:
            return
        self._noted_at = now
        tick = event.tick
        line = {
            "trial": self.trial,
            "stage": event.node.name,
            "what": event.what,
            "epoch": tick.epoch if tick else 0,
            "epochs": tick.epochs if tick else event.node.stage.length(),
        }
        replace_file(Path(self.shared.live) / f"{self.trial}.json", json.dumps(line).encode())

    def _limit_gpu_memory(self) -> None:
        if not 0 < self.shared.gpu < 1:
            return
        import torch

        if torch.cuda.is_available():  # a fraction is only a scheduling number to Ray
            torch.cuda.set_per_process_memory_fraction(self.shared.gpu)
