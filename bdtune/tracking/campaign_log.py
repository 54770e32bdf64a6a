"""A campaign in MLflow: an experiment of its own, whose run has the table, with a run of each sweep below.

The trials lie in the experiments of their sweeps, which the tag `bdtune.campaign` of each sweep's run leads
back from.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Literal

from bdtune.engine.files import replace_file
from bdtune.engine.key import key_of
from bdtune.tracking import values
from bdtune.tracking.experiment import FILE
from bdtune.tracking.mlflow_log import Tracker
from bdtune.tracking.origin import common_tags
from bdtune.tracking.runs import Run
from bdtune.trials.results import SweepResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from bdtune.config.campaign import Campaign


class CampaignLog:
    """Writes down a campaign for MLflow when it ends, or is interrupted."""

    def __init__(self, run_dir: Path, campaign: Campaign) -> None:
        self.campaign = campaign
        self.tracker = Tracker(run_dir, campaign.name, tags={"bdtune.campaign": campaign.name})
        about = {
            **values.EXPERIMENT_TAGS,
            "mlflow.note.content": campaign.settings.description or f"Campaign {campaign.name}.",
        }
        replace_file(self.tracker.delivery.folder / FILE, json.dumps(about, indent=1).encode())

    def end(
        self, results: Mapping[str, SweepResult], note: str, files: Iterable[Path] = (), *, interrupted: bool
    ) -> None:
        """Write a run for each sweep, and the campaign's own with its tables: as its note, and as files."""
        self.tracker.start()
        status: Literal["interrupted", "done"] = "interrupted" if interrupted else "done"
        for name, result in results.items():
            self._write(name, result, status)
        artifacts = [(file, "") for file in files]
        self.tracker.end(SweepResult(self.campaign.name), status, note=note, artifacts=artifacts)

    def _write(self, name: str, result: SweepResult, status: str) -> None:
        metrics = values.sweep_metrics(result)
        now = round(time.time() * 1000)
        started = min((round(trial.started * 1000) for trial in result.trials if trial.started), default=now)
        tags = {"bdtune.role": "sweep", "bdtune.sweep": name, "bdtune.status": status}
        run = Run(
            name=name,
            status=values.SWEEP_STATUS[status],
            started=started,
            time=now,
            params={"sweep": name},
            tags={**common_tags(), **tags, **values.selection_tags(result)},
            metrics=metrics,
        )
        self.tracker.runs.write(key_of([name]), [status, metrics], run)
