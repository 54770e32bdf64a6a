"""Scores of Spectral Signatures, and which rows they remove. numpy only.

Shape letters: N rows, K classes, d features, m directions. Settings without defaults are handed down from the
defense, where their defaults and ranges are.

Source: "Spectral Signatures in Backdoor Attacks" (Tran, Li, Madry, NeurIPS 2018), algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.defending.isolation import count_of
from bdtune.detection import mad_threshold
from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bdtune.plugins.data import LabelSet

Rule = Literal["assumed", "share", "mad"]
LOGGED = 7
"""Singular values that are kept of each class."""


def top_directions(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the top right singular vectors float64 [m, d] of rows [n, d], and all singular values, falling.

    They are eigenvectors of the smaller of the two Gram matrices. A vector's largest entry is positive: its
    sign is otherwise a matter of chance.
    """
    tall = len(rows) >= rows.shape[1]
    squares, vectors = np.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    values = np.sqrt(np.maximum(squares[::-1], 0.0))
    top = vectors[:, ::-1][:, :count].T
    if not tall:
        top = top @ rows
        top /= np.maximum(np.linalg.norm(top, axis=1, keepdims=True), np.finfo(float).tiny)
    largest = np.take_along_axis(top, np.abs(top).argmax(1)[:, None], 1)
    return top * np.where(largest < 0, -1.0, 1.0), values


def projections(rows: np.ndarray, directions: int, *, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return rows [n, d] along the top directions of the centred rows, [n, m], and all singular values.

    What is projected is centred too, or left as it is, as in the released code. All float64.
    """
    moved = rows - rows.mean(0)
    top, values = top_directions(moved, directions)
    return (moved if centred else rows) @ top.T, values


class SpectralScores(Stage):
    """Score each row by its squared length along the top singular directions of its class's features.

    Inputs: penultimate (features float32 [N, d]), data (LabelSet). Arrays: scores float64 [N]; projections
    float64 [N, m], signed; singular float64 [K, 7], the largest singular values of each class, 0 where there
    are fewer. Rows of a class with fewer than `fewest` rows score 0.
    """

    name: ClassVar[str] = "spectral_scores"
    kind: ClassVar[Kind] = "train"  # linear algebra is not the same to the last bit on every machine

    centred: bool
    """Whether features are centred before they are projected."""
    directions: int
    """Singular directions."""
    fewest: int
    """Rows that a class must have."""

    def run(self, ctx: Context, *, penultimate: Artefact, data: LabelSet) -> Artefact:
        features, labels = penultimate.arrays["features"], np.asarray(data.labels)
        along = np.zeros((len(labels), self.directions))
        singular = np.zeros((data.num_classes, LOGGED))
        for label in range(data.num_classes):
            ids = np.flatnonzero(labels == label)
            if len(ids) < max(self.fewest, 1):
                continue
            rows = features[ids].astype(np.float64)
            own, values = projections(rows, self.directions, centred=self.centred)
            along[ids, : own.shape[1]] = own
            singular[label, : len(values)] = values[:LOGGED]
        return Artefact({"scores": (along**2).sum(1), "projections": along, "singular": singular})


def flag_highest(
    scores: np.ndarray, labels: np.ndarray, inspected: Iterable[int], count: Callable[[np.ndarray], int]
) -> np.ndarray:
    """Return bool [N]: in each inspected class the rows of highest score, ties by id.

    `count` says of the scores [n] of a class how many are flagged.
    """
    flagged = np.zeros(len(labels), bool)
    for label in inspected:
        ids = np.flatnonzero(labels == label)
        order = np.argsort(-scores[ids], kind="stable")
        flagged[ids[order[: count(scores[ids])]]] = True
    return flagged


class SpectralRemoval(Stage):
    """Flag the rows of highest score in each class that is inspected.

    Inputs: scores (scores float64 [N]), data (LabelSet). Arrays: flagged bool [N]. Of a class with n rows,
    the floor(level n) of highest score are flagged, ties by id; under rule mad those above the median plus
    `level` scaled median absolute deviations; with a `rate` floor(rate N), whatever the rule. Never more than
    floor(cap n), and none of a class with fewer than `fewest` rows.
    """

    name: ClassVar[str] = "spectral_removal"
    kind: ClassVar[Kind] = "derive"

    rule: Rule
    """How many rows are removed."""
    level: float
    """Fraction of the class; under mad a number of deviations."""
    rate: float | None
    """Fraction of all N rows that is removed of each class; null: by the rule."""
    target: int | None
    """The one class that is inspected; null: all."""
    cap: float
    """Largest fraction of a class that is removed."""
    fewest: int
    """Rows that a class must have."""

    def run(self, ctx: Context, *, scores: Artefact, data: LabelSet) -> Artefact:
        labels, values = np.asarray(data.labels), scores.arrays["scores"]
        inspected = range(data.num_classes) if self.target is None else [self.target]
        flagged = flag_highest(values, labels, inspected, lambda own: self._count(own, len(labels)))
        return Artefact({"flagged": flagged})

    def _count(self, own: np.ndarray, rows: int) -> int:
        if len(own) < max(self.fewest, 1):
            return 0
        if self.rate is not None:
            count = count_of(self.rate, rows)
        elif self.rule == "mad":
            count = int(np.count_nonzero(own > mad_threshold(own, self.level)))
        else:
            count = count_of(self.level, len(own))
        return min(count, count_of(self.cap, len(own)))
