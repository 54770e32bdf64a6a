"""What GSSD's appendix K costs as one campaign, once its verdicts are known: simulated, nothing is trained.

    python -m tests.benchmarks.appendix_k

A plan must take it that all verdicts differ. Here the real graphs of tables K.1 to K.7 run through the real
queue, with made-up densities in which the target class stands out, as in the paper's tables: class tests,
relabelling and split are computed for real, equal verdicts share their retraining. Hours are those of the GPU
of `tests.contracts.paper_table`; no data set is needed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from bdtune.cluster.sweep import make_ledger
from bdtune.config.campaign import load_campaign
from bdtune.config.expand import points
from bdtune.engine.execute import Executor
from bdtune.engine.manifest import Cost
from bdtune.engine.node import steps_of
from bdtune.engine.ready_queue import Job
from bdtune.engine.stage import Artefact
from bdtune.reading.resident import InProcess
from bdtune.trials.speed import Speed
from bdtune.verbs.campaign_trials import base
from tests.benchmarks.faked import made_up
from tests.benchmarks.memory_store import MemoryStore
from tests.benchmarks.simulated import HOUR_S, Cluster, Simulation
from tests.contracts.paper_table import IMAGES_PER_S, without_files

if TYPE_CHECKING:
    from bdtune.engine.node import Node
    from bdtune.trials.ledger import Entry, Ledger

TABLES = [f"paper/gssd_k{number}" for number in range(1, 8)]


class AppendixK:
    """The campaign's trials, and what their stages take."""

    def __init__(self, folder: Path) -> None:
        file = folder / "appendix_k.yaml"
        file.write_text(f"name: appendix_k\nsweeps: [{', '.join(TABLES)}]\n")
        campaign = load_campaign(str(file), [])
        self.store = MemoryStore(folder / "store")
        self.ledger: Ledger = make_ledger(base(campaign), MemoryStore(folder / "plan"))[0]
        for sweep in campaign.sweeps:
            self.ledger.extend(points(sweep))
        self.plan = self.ledger.plan(Speed(images_per_s=IMAGES_PER_S))
        self.made: Counter[str] = Counter()
        self._executor = Executor(self.store, InProcess(None, "auto"))
        self._entries = {
            recipe: entry for entry in self.ledger.entries.values() for recipe in steps_of(entry.graph.goals)
        }

    def seconds(self, node: Node) -> float:
        """Return how long a stage takes."""
        return self.plan.predicted[node.recipe] or 0.0

    def alone_s(self, entry: Entry) -> float:
        """Return how long a trial takes that shares nothing."""
        return sum(map(self.seconds, steps_of(entry.graph.goals).values()))

    def computed_s(self) -> float:
        """Return how long all different stages take, each once."""
        jobs = [
            Job(entry.id, entry.graph.goals, compared_with=entry.baseline_id or "")
            for entry in self.ledger.entries.values()
        ]
        return Simulation(self._executor, Cluster(1, 1), self.seconds, self._finish).run(jobs).work

    def _finish(self, node: Node, key: str, made_for: str) -> None:
        dataset = self._entries[node.recipe].spec.dataset
        labels = np.asarray(dataset.labels("train", None))
        name, seed = node.stage.name, int(key, 16)
        made = (
            _density(labels, dataset.num_classes, seed) if name == "density" else made_up(node, labels, seed)
        )
        self.made[name] += 1
        preimage, cost = self._executor.resolver.preimage(node), Cost(self.seconds(node), 0)
        self.store.publish(key, node.stage.kind, preimage, made, cost=cost, made_for=made_for)


def _density(labels: np.ndarray, classes: int, seed: int) -> Artefact:
    """Return log densities in which the target, class 0, lies nearer to all others."""
    rng = np.random.default_rng(seed)
    L = rng.normal(-3.0, 1.0, (len(labels), classes)).astype(np.float32)
    L[:, 0] += rng.uniform(1.0, 2.5)
    return Artefact({"L": L, "labels": labels.astype(np.int64)})


def main() -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        without_files(patch)
        appendix = AppendixK(Path(folder))
        work_s = appendix.computed_s()
        entries = appendix.ledger.entries
        trials = [entry for entry in entries.values() if not entry.is_baseline]
        own = [appendix.alone_s(entries[entry.baseline_id]) for entry in trials if entry.baseline_id]
        shared = [appendix.alone_s(entry) for entry in entries.values() if entry.is_baseline]
        alone_s = sum(map(appendix.alone_s, trials))
    counts = ", ".join(f"{count} x {name}" for name, count in appendix.made.most_common())
    print(f"{len(trials)} trials and {len(shared)} baselines computed {counts}")
    print("| | GPU hours | times the campaign's |\n| --- | ---: | ---: |")
    for what, seconds in {
        "as one campaign": work_s,
        "at most, says the plan before any verdict is known": appendix.plan.seconds_shared,
        "nothing shared but the baselines": alone_s + sum(shared),
        "nothing shared": alone_s + sum(own),
    }.items():
        print(f"| {what} | {seconds / HOUR_S:.0f} | {seconds / work_s:.2f} |")


if __name__ == "__main__":
    main()
