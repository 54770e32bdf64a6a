"""A campaign of two sweeps whose results are made up, without a cluster and without MLflow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bdtune.cluster.sweep import Options, Outcome
from bdtune.tracking.mlflow_log import Tracker
from bdtune.trials.results import StageUse
from bdtune.verbs import campaign_run
from bdtune.verbs import sweep as single
from tests.verbs.computing import plugins

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from bdtune.verbs.campaign import CampaignOutcome

TRIAL = "{dataset: tiny, model: linear, numerics: {device: cpu, precision: fp32}}"
TWO = f"""
name: both
description: Two sweeps for a test.
table:
  - name: attacks
    rows: [attack]
    columns: [defense.beta]
    cells: [acc, asr]
    caption: Every attack
  - {{name: own, sweeps: [levels]}}
sweeps:
  - name: betas
    trial: {TRIAL}
    grid: {{attack: [{{name: badnets, rate: 0.2}}, {{name: blend, rate: 0.2}}], defense: [{{name: toy}}], defense.beta: [0.3, 0.5]}}
    seeds: [0, 1]
    published: [{{params: {{attack: badnets, defense.beta: 0.3}}, metrics: {{acc: 0.8}}, source: A paper}}]
  - name: levels
    trial: {TRIAL}
    grid: {{attack: [{{name: badnets, rate: 0.1}}], defense: [{{name: toy}}], defense.prefix.level: [0, 1]}}
    table: {{rows: [defense.prefix.level], cells: [acc], percent: true, undefended: false}}
"""  # noqa: E501
BETTER = 0.9
"""Accuracy of every trial."""


def made_up(patch: pytest.MonkeyPatch, home: Path) -> Callable[..., CampaignOutcome]:
    """Return what runs the campaign: `status` and `asr` say of a trial's settings what becomes of it."""
    plugins(patch)
    patch.setattr(Tracker, "_poke", lambda self: None)
    patch.setattr(single.Gallery, "_try", lambda *_: None)

    def run(
        *words: str,
        text: str = TWO,
        status: Callable[[dict[str, Any]], str] = lambda params: "done",
        asr: Callable[[dict[str, Any]], float] = lambda params: 0.1,
        undefended: float = 1.0,
        interrupted: bool = False,
    ) -> CampaignOutcome:
        def run_sweep(
            spec: Any, folder: Path, ledger: Any, executor: Any, *, watcher: Any, source: Any, **_: Any
        ) -> Outcome:
            results = []
            for entry in ledger.entries.values():
                result = ledger.result(entry)
                numbers = {
                    "acc": BETTER,
                    "asr": undefended if entry.is_baseline else asr(dict(result.params)),
                }
                if not entry.is_baseline:
                    numbers |= {
                        "der": 1 - numbers["asr"] / 2,
                        "undefended/acc": 0.95,
                        "undefended/asr": undefended,
                    }
                became = status(dict(result.params))
                uses = {
                    role: StageUse(recipe[:16], became == "done", 10.0)
                    for recipe, role in entry.graph.roles.items()
                }
                found = numbers if became == "done" else {}
                result = replace(result, status=became, metrics=found, stages=uses, error=None)
                results.append(result)
                watcher.trial_done(result)
            return Outcome(results, interrupted, len(results))

        patch.setattr(campaign_run, "run_sweep", run_sweep)
        home.mkdir(exist_ok=True)
        file = home / "c.yaml"
        file.write_text(text)
        return campaign_run.run(str(file), list(words), home, Options(), quiet=True, wait_s=0.1)

    return run
