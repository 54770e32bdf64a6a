"""What a defense made of each training row: kept, relabelled, or suspected of being poison.

Shape letters: N rows of the training set that the defense was given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bdtune.engine.node import Node
from bdtune.poisoning.train_sources import FitSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.data import Truth
    from bdtune.poisoning.train_sources import TruthSource
    from bdtune.trials.known import KnownTrial


@dataclass(frozen=True, repr=False)
class Verdicts:
    """Row numbers, int64, of the data set's training split, in rising order.

    A defense that judges no training rows keeps them all. A row in none of these was left out of the
    classifier's training without being suspected.
    """

    kept: np.ndarray
    """Rows that the classifier was trained on with their observed label."""
    relabelled: np.ndarray
    """Rows that it was trained on with another label."""
    new_labels: np.ndarray
    """Those labels, int64, one of each relabelled row."""
    suspected: np.ndarray
    """Rows that the defense takes for poison; relabelled ones may be among them."""

    def __repr__(self) -> str:
        """Return the counts in a line."""
        counts = [f"{len(getattr(self, name))} {name}" for name in ("kept", "relabelled", "suspected")]
        return f"Verdicts({', '.join(counts)})"


@dataclass(frozen=True, repr=False)
class Rows:
    """The training set that a trial's defense was given, row by row, with the truth."""

    ids: np.ndarray
    """int64 [N], the numbers of the rows in the data set's training split."""
    truth: Truth

    @property
    def poison(self) -> np.ndarray:
        """Row numbers, int64, of what carries the trigger and the attacker's label."""
        return self.ids[self.truth.is_poison]


def rows_of(trial: KnownTrial) -> Rows:
    """Return a trial's training rows; raises `UserError` where its data set is not here."""
    source = truth_of(trial)
    labels = source.dataset.labels("train", source.root)
    rest = source.parts(labels).rest if source.reserve else np.arange(len(labels))
    plan = source.plan(labels[rest])
    observed = labels[rest] if plan is None else plan.labels
    return Rows(rest[source.kept(observed)], source.load(trial.resident, {}))


def truth_of(trial: KnownTrial) -> TruthSource:
    """Return the source of the truth about a trial's training rows."""
    source = trial.graph.truth
    assert source is not None
    return source


def verdicts_of(trial: KnownTrial) -> Verdicts:
    """Return what a trial's defense made of each row; raises `UserError` where its results are not here."""
    rows = rows_of(trial)
    observed = rows.truth.observed
    trained = _trained(trial, observed)
    suspected = _suspected(trial)
    if suspected is None:
        suspected = np.flatnonzero(trained != observed)
    kept = trained == observed
    kept[suspected] = False
    moved = np.flatnonzero((trained >= 0) & (trained != observed))
    return Verdicts(rows.ids[kept], rows.ids[moved], trained[moved], rows.ids[np.sort(suspected)])


def nodes_read(trial: KnownTrial) -> list[Node]:
    """Return the stages whose results a trial's verdicts are made of."""
    chain = trial.graph.chain
    evidence = [chain[name] for name in trial.spec.defense.evidence if name in chain]
    return [*evidence, *_subsets(chain["classifier"])]


def _suspected(trial: KnownTrial) -> np.ndarray | None:
    """Return the positions that the defense names as poison; None where its training says so."""
    defense, chain = trial.spec.defense, trial.graph.chain
    return defense.suspected(
        {name: trial.result_of(chain[name]) for name in defense.evidence if name in chain}
    )


def _trained(trial: KnownTrial, observed: np.ndarray) -> np.ndarray:
    """Return the label int64 [N] that the classifier's weights last saw of each row, -1 of those left out."""
    subsets = [trial.result_of(node).arrays for node in _subsets(trial.graph.chain["classifier"])]
    if not subsets:  # trained on none of them, or on all
        return observed.copy()
    trained = np.full(len(observed), -1)
    for subset in reversed(subsets):
        trained[subset["ids"]] = subset["labels"]
    return trained


def _subsets(classifier: Node) -> Iterator[Node]:
    """Yield the subsets of the training set that the classifier's own weights were trained on, last first."""
    node: object = classifier
    while isinstance(node, Node):
        subset = node.inputs.get("subset")
        if isinstance(node.inputs.get("data"), FitSet) and isinstance(subset, Node):
            yield subset
        node = node.inputs.get("init", node.inputs.get("classifier"))
