"""The Tune trainable: walks one trial's graph on the resources it was given, and reports.

A first `step` walks to the end of the trial; with a scheduler it stops at each epoch of the classifier's last
training (the stages that the defense names), so that each is one report. Results go through the store, never
the driver.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.actor import exit_actor

from bdtune.cluster.driver import ASIDE, CUT_OFF, OUTAGE
from bdtune.cluster.nodes import Notice
from bdtune.cluster.seen import see
from bdtune.cluster.shared import NodeResident, Shared
from bdtune.config.trial import spec_from_dict
from bdtune.engine.disk import DiskFullError
from bdtune.engine.execute import Companion, Executor, StageFailed
from bdtune.engine.hardware import free_cached
from bdtune.engine.node import steps_of
from bdtune.engine.prefix_reuse import PrefixReuse
from bdtune.errors import OutageError, UserError
from bdtune.trials.graph import trial_graph
from bdtune.trials.outcome import judge_tick, stored_metrics

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from bdtune.engine.execute import Event
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Inputs, Tick
    from bdtune.engine.store import Store

log = logging.getLogger(__name__)

WORST = 1e9
"""Reported in place of an objective by a trial that has none, so that no scheduler keeps it."""


class Trial(tune.Trainable):
    """One trial in a process that may serve many trials after one another."""

    def setup(self, config: dict[str, Any], shared: Shared) -> None:
        self.shared = shared
        shared.variables.adopt()
        import torch  # noqa: F401  every trial needs it: not in the middle of the first one's stages

        self._limit_gpu_memory()
        self._notice = Notice()
        self.node = ray.get_runtime_context().get_node_id()
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Turn to another trial; nothing of the one before is kept but loaded libraries."""
        self._close()
        if self._cut_off:
            exit_actor()  # a new process may be placed on another node
        self.trial, self.judged = new_config["trial"], new_config["judged"]
        self._unready = None
        try:
            self._starts_with = new_config["starts_with"]
            self._turn_to(new_config["spec"], new_config["prefix_reuse"], new_config["company"])
        except Exception as problem:  # raised here, Tune would only say that an actor failed
            self._unready = problem
        return True

    def _turn_to(
        self, spec: dict[str, Any], prefix_reuse: dict[str, list[int]], company: list[dict[str, Any]]
    ) -> None:
        self.spec = spec_from_dict(spec)
        self.graph = trial_graph(self.spec)
        self.first = self._baseline_goals() if self.judged else []
        if self.store is None:
            self.store = see(self.shared.store, self.shared.mark)
        self.store.leases.task = f"{self.shared.mark}/{self.trial}"
        self.executor = Executor(
            self.store,
            NodeResident(self.shared, self.spec.data_root),
            checkpoint_interval_s=0.0 if self.judged else None,
            made_for=f"{self.shared.sweep}/{self.trial}",
            prefix_reuse=PrefixReuse(prefix_reuse),
            companions=[self._companion(**other) for other in company],
            on_remark=self._note_remark,
        )
        self._noted_at = 0.0

    def _companion(self, trial: str, spec: dict[str, Any], recipe: str) -> Companion:
        node = steps_of(trial_graph(spec_from_dict(spec)).goals)[recipe]
        return Companion(node, f"{self.shared.sweep}/{trial}")

    def step(self) -> dict[str, Any]:
        """Walk on to the next report; what went wrong, also in turning to this trial, is in the last one."""
        status, error = "failed", None
        try:
            found = self._walk_on()
            if isinstance(found, dict):
                return found
            status = found
        except StageFailed as failure:
            status, error = failure.status, str(failure)
        except DiskFullError as problem:
            status, error = OUTAGE, str(problem)
        except OutageError as problem:
            status, error, self._cut_off = CUT_OFF, str(problem), True
        except UserError as problem:
            error = str(problem)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        report = {"done": True, "status": status, "error": error, "node": self.node, **self._final(status)}
        self._close()
        free_cached()  # others share the device
        return report

    def _walk_on(self) -> dict[str, Any] | str:
        """Walk on; returns an epoch's report, or the status in which the trial ends here."""
        if self._unready is not None:
            raise self._unready
        if self._walk is None:
            self._walk = self.executor.walk([*self.first, *self.graph.goals])
        for event in self._walk:
            if self._goes_aside(event):
                return ASIDE
            self._note(event)
            self._leave_in_time(event)
            if self._reports(event):
                return self._report(event)
        return "done"

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Let go of the stage's lease; a promoted trial goes on from the stage's checkpoint in the store."""
        self._close()
        return {"trial": self.trial}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Start the walk again: it goes on from the store."""
        self._close()

    def cleanup(self) -> None:
        self._close()

    node: str | None = None
    """Ray's name of the node that it runs on."""
    _unready: Exception | None = None
    """Why this trial cannot be begun."""
    _cut_off = False
    """Whether the store could not be reached from here."""
    _leaving = False
    """Whether this node is to be taken away, and the stage's state is about to be saved."""
    store: Store | None = None
    _walk: Generator[Event, None, None] | None = None
    _at_work = False
    """Whether anything was done of this trial since it was released."""
    _last_epoch = 0
    _remarks: tuple[str, ...] = ()
    """What the stage under way has remarked."""
    _tick: Tick | None = None
    """Its last epoch."""
    _test_sets: Inputs | None = None

    def _goes_aside(self, event: Event) -> bool:
        """Whether a stage is reached that the driver may give to a trial together with those of others.

        Not before anything was done: a driver that sees the store otherwise would release it for ever.
        """
        if event.what != "joinable":
            self._at_work = True
            return False
        return self._at_work and not self.judged and event.node.recipe != self._starts_with

    def _leave_in_time(self, event: Event) -> None:
        """End this process where its node is to be taken away, once the stage under way has saved its state.

        Tune, which counts no failure, starts the trial on another node.
        """
        if not self._notice.given():
            return
        if event.what == "tick" and not self._leaving:
            self._leaving = True
            self.executor.save_soon()
            return
        self._close()
        exit_actor()

    def _baseline_goals(self) -> list[Node]:
        return trial_graph(self.graph.baseline).goals if self.graph.baseline is not None else []

    def _close(self) -> None:
        if self._walk is not None:
            self._walk.close()  # releases the lease of a stage that is under way
        self._walk, self._at_work, self._last_epoch, self._test_sets = None, False, 0, None
        if hasattr(self, "trial"):
            with contextlib.suppress(OSError):
                (self.shared.live / f"{self.trial}.json").unlink()

    def _reports(self, event: Event) -> bool:
        """Whether an event is an epoch that the scheduler judges; the last one is judged by the result."""
        if not self.judged or event.what != "tick" or event.node.recipe not in self.graph.judged:
            return False
        return self._epoch(event) < self.graph.epochs

    def _epoch(self, event: Event) -> int:
        assert event.tick is not None
        return self.graph.judged[event.node.recipe] + event.tick.epoch

    def _report(self, event: Event) -> dict[str, Any]:
        assert event.tick is not None
        if self._test_sets is None:
            self._test_sets = self.executor.inputs_but(self.graph.evaluate, "classifier")
        classifier, decisive = event.tick.artefact(), self.shared.decisive
        metrics = judge_tick(self.executor, self.graph, classifier, self._test_sets, decisive)
        self._last_epoch = self._epoch(event)
        report = {"done": False, "status": "running", "epoch": self._last_epoch, "metrics": metrics}
        return {**report, "objective": self._objective(metrics), "node": self.node}

    def _final(self, status: str) -> dict[str, float]:
        """Return where the trial ended, for the scheduler: one that failed counts as the worst."""
        if not self.judged or status != "done":
            return {"epoch": self._last_epoch, "objective": self._objective({})}
        baseline = trial_graph(self.graph.baseline) if self.graph.baseline is not None else None
        metrics = stored_metrics(self.graph, baseline, self.executor.resolver)
        return {"epoch": self.graph.epochs, "objective": self._objective(metrics)}

    def _objective(self, metrics: Mapping[str, float]) -> float:
        worst = -WORST if self.shared.mode == "max" else WORST
        return metrics.get(self.shared.objective or "", worst)

    def _note(self, event: Event) -> None:
        """Leave a line about the progress for the driver's display: each stage, and now and then within."""
        if event.what == "started":
            self._remarks, self._tick = (), None
        self._tick = event.tick or self._tick
        now = time.monotonic()
        if event.what != "started" and now - self._noted_at < self.shared.live_s:
            return
        self._noted_at = now
        self._leave(event.node, event.what, event.tick)

    def _note_remark(self, node: Node, text: str) -> None:
        """Leave a line about what a stage remarks, for the driver's display and in this process's log."""
        log.warning("%s: %s: %s", self.trial, node.name, text)
        self._remarks = (*self._remarks, text)
        self._leave(node, "remark", self._tick)

    def _leave(self, node: Node, what: str, tick: Tick | None) -> None:
        """Replace this trial's line; what its stage has remarked stays in it."""
        line = {
            "trial": self.trial,
            "stage": node.name,
            "what": what,
            "epoch": tick.epoch if tick else 0,
            "epochs": tick.epochs if tick else node.stage.length(),
            "role": self.graph.roles.get(node.recipe),  # none: a stage of the baseline
            "metrics": {name: float(value) for name, value in tick.metrics.items()} if tick else {},
            "remarks": self._remarks,
        }
        file = self.shared.live / f"{self.trial}.json"
        temporary = file.with_suffix(".new")
        with contextlib.suppress(OSError):  # no trial fails for a line about its progress
            temporary.write_text(json.dumps(line))  # not forced to the disk: nobody needs it tomorrow
            temporary.replace(file)

    def _limit_gpu_memory(self) -> None:
        if not 0 < self.shared.gpu < 1:
            return
        import torch

        if torch.cuda.is_available():  # a fraction is only a scheduling number to Ray
            torch.cuda.set_per_process_memory_fraction(self.shared.gpu)
