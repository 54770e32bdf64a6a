"""Trials that compute nothing: the real graphs of GSSD on digits, with made-up results of its trainings.

Derived stages (class tests, split, relabelling, diagnosis) are computed for real from the made-up densities,
so that verdicts, and with them the keys of what follows, differ between settings as in a real sweep.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from bdtune.engine.manifest import Cost
from bdtune.engine.stage import Artefact

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.config.sweep import SweepSpec
    from bdtune.engine.execute import Executor
    from bdtune.engine.node import Node

SPACE = """
name: faked
trial:
  dataset: {name: digits, side: 16, train_limit: 200}
  attack: {name: badnets, rate: 0.1, target: 0}
  defense: {name: gssd, lambda: 0.05}
  model: {name: resnet18, width: 8}
  numerics: {device: cpu, precision: fp32}
select: {metric: oracle_der, mode: max}
"""
CLASSES = 10
WIDTH = 16
"""Of the made-up features."""
EACH: dict[str, tuple[float, ...]] = {
    "defense.beta_nd": (1.0, 2.0),
    "defense.alpha_c": (0.1, 0.15, 0.2, 0.3, 0.4),
    "defense.retrain.lr": (0.0003, 0.0005, 0.001, 0.002, 0.003),
    "defense.retrain.weight_decay": (0.0, 0.0005),
}
"""What is varied with each encoder. Of equal verdicts those that split alike share their retraining."""


def faked_sweep(trials: int, folder: Path) -> SweepSpec:
    """Return a grid of that many trials at least: settings of GSSD for each rate and seed of an encoder."""
    from bdtune.config.load import load_sweep

    file = folder / "faked.yaml"
    file.write_text(SPACE)
    encoders = -(-trials // prod(map(len, EACH.values())))
    rates = min(10, encoders)
    values = {
        "attack.rate": [0.05 + 0.01 * each for each in range(rates)],
        "seed": range(-(-encoders // rates)),
        **EACH,
    }
    words = [f"{path}={','.join(f'{value:g}' for value in found)}" for path, found in values.items()]
    return load_sweep(str(file), words)


def made_up(node: Node, labels: np.ndarray, seed: int) -> Artefact:
    """Return what a training may have come to, the same for the same seed."""
    rng = np.random.default_rng(seed)
    if node.stage.name == "density":
        L = rng.normal(-3.0, 1.0, (len(labels), CLASSES)).astype(np.float32)
        L[:, rng.integers(CLASSES)] += rng.uniform(1.0, 2.5)  # one class lies nearer to all others
        return Artefact({"L": L, "labels": labels.astype(np.int64)})
    if node.stage.name == "features":
        return Artefact({"z": rng.normal(size=(len(labels), WIDTH)).astype(np.float32)})
    if node.stage.name == "evaluate":
        info = {"acc": float(rng.uniform(0.8, 1.0)), "asr": float(rng.uniform(0.0, 1.0))}
        return Artefact(info={**info, "n_clean": 100, "n_triggered": 90})
    rows = [{"epoch": float(epoch), "loss": 1.0 / epoch} for epoch in range(1, node.stage.length() + 1)]
    return Artefact({"weight": rng.normal(size=4).astype(np.float32)}, curve=tuple(rows))


@dataclass
class Worker:
    """Stands for all processes that compute: leaves results of stages in the store."""

    executor: Executor
    labels: np.ndarray
    made: list[str] = field(default_factory=list)
    """Keys of what it has left, in order."""

    def next(self, goals: list[Node]) -> tuple[Node, str] | None:
        """Return the first stage that a trial still needs, with its key; its derived ones are computed."""
        from bdtune.engine.demand import missing

        return next((found for goal in goals for found in missing(self.executor, goal)), None)

    def finish(self, node: Node, key: str, made_for: str) -> None:
        """Leave the result of a stage."""
        artefact = made_up(node, self.labels, int(key, 16))
        preimage, cost = self.executor.resolver.preimage(node), Cost(0.5, 0)
        store = self.executor.store
        store.publish(key, node.stage.kind, preimage, artefact, cost=cost, made_for=made_for)
        self.made.append(key)


class Opens:
    """Counts files that this process opens, found or not, while it is `on`."""

    def __init__(self) -> None:
        self.on, self.count = False, 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and event == "open":
            self.count += 1
