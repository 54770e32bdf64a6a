"""A-ABL's derived stages: scores, threshold, and the part of the training set that is kept. numpy only.

Shape letters: N samples. Knobs without defaults are handed down from the defense, where their ranges are.

Source: "Adversarially Robust Anti-Backdoor Learning" (Zhao and Wressnegger, 2024), section 4, with symmetric
cross-entropy from Wang et al. (2019) and the threshold of Otsu (1979). The paper leaves open the weights of
the two entropies (0.1 and 1 in the code it cites), Otsu's histogram (256 bins here, or none), and the clamp
that its table 1 shows without naming it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.defending.isolation import symmetric_cross_entropy
from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet

Rule = Literal["otsu", "fixed", "not_flipped"]
Score = Literal["sce", "ce"]


def otsu(values: np.ndarray, bins: int | None) -> tuple[float, float]:
    """Return (t, separability): classes {v <= t} and {v > t} of values [N] have the most variance between.

    Separability is that variance as a share of the whole, in [0, 1]. Histogram of `bins` equal bins from the
    least to the greatest value, each value counted as its bin's middle, t an edge; None: exact, t a value.
    All in one class, with separability 0, when all values are equal.
    """
    if not len(values):
        return 0.0, 0.0
    if bins is None:
        middles, counts = np.unique(values, return_counts=True)
        edges = middles
    else:
        counts, borders = np.histogram(values, bins)
        middles, edges = (borders[:-1] + borders[1:]) / 2, borders[1:]
    below = np.cumsum(counts)[:-1]
    above = len(values) - below
    sums = np.cumsum(counts * middles)
    total = sums[-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = sums[:-1] / below - (total - sums[:-1]) / above
    between = np.where((below > 0) & (above > 0), below * above * gap**2, 0.0) / len(values) ** 2
    whole = (counts * (middles - total / len(values)) ** 2).sum() / len(values)
    if between.max(initial=0.0) <= 0:
        return float(values.max()), 0.0
    best = int(between.argmax())
    return float(edges[best]), float(min(between[best] / whole, 1.0))


class Scores(Stage):
    """Score every sample: low where the observed label is predicted firmly in spite of the change.

    Inputs: losses (losses, clean_losses in nats). Arrays: scores and clean_scores float64 [N].
    """

    name: ClassVar[str] = "scores"
    kind: ClassVar[Kind] = "derive"

    score: Score
    """Which loss."""
    a: float
    """Weight of the cross-entropy in sce."""
    b: float
    """Weight of the reverse cross-entropy in sce."""
    clip: float
    """What stands for 0 in the logarithm of the one-hot label."""

    def run(self, ctx: Context, *, losses: Artefact) -> Artefact:
        names = {"scores": "losses", "clean_scores": "clean_losses"}
        return Artefact({name: self._scored(losses.arrays[of]) for name, of in names.items()})

    def _scored(self, losses: np.ndarray) -> np.ndarray:
        if self.score == "ce":
            return np.array(losses, np.float64)
        return symmetric_cross_entropy(losses.astype(np.float64), self.a, self.b, self.clip)


class Threshold(Stage):
    """Find the score that parts robust samples from vulnerable ones.

    Inputs: scores. Arrays: threshold, separability float64 [1], see `otsu`.
    """

    name: ClassVar[str] = "threshold"
    kind: ClassVar[Kind] = "derive"

    bins: int | None
    """Bins of Otsu's histogram; None: exact."""

    def run(self, ctx: Context, *, scores: Artefact) -> Artefact:
        threshold, separability = otsu(scores.arrays["scores"], self.bins)
        return Artefact({"threshold": np.array([threshold]), "separability": np.array([separability])})


def highest(scores: np.ndarray, count: int) -> np.ndarray:
    """Return bool [N], true for the `count` highest scores; of equal ones those of lower ids come first."""
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True
    return chosen


def bounds(count: int, clamp: tuple[float, float] | None) -> tuple[int, int]:
    """Return the least and the greatest number of samples, of `count`, that a clamp lets be kept."""
    if clamp is None:
        return 0, count
    low, high = (int(share * count + 0.5) for share in clamp)
    return low, high


class VulnerableSplit(Stage):
    """Keep the vulnerable samples and leave out the robust ones, which poison that withstands is among.

    Inputs: scores, losses (predictions), data (LabelSet), threshold with rule "otsu". Arrays: ids int64 [n]
    in rising order, labels int64 [n], the observed ones.
    """

    name: ClassVar[str] = "aabl_split"
    kind: ClassVar[Kind] = "derive"

    rule: Rule
    """otsu: scores above the threshold; fixed: the highest; not_flipped: no longer predicted as labelled."""
    clamp: tuple[float, float] | None
    """Least and greatest share kept by otsu and not_flipped."""
    keep: float
    """Share kept by fixed."""

    def run(
        self,
        ctx: Context,
        *,
        data: LabelSet,
        scores: Artefact,
        losses: Artefact,
        threshold: Artefact | None = None,
    ) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        score = scores.arrays["scores"]
        if self.rule == "fixed":
            kept = highest(score, int(self.keep * len(labels) + 0.5))
        else:
            if self.rule == "otsu":
                assert threshold is not None, "the rule otsu needs a threshold"
                kept = score > threshold.arrays["threshold"][0]
            else:
                kept = losses.arrays["predictions"] != labels
            low, high = bounds(len(labels), self.clamp)
            if not low <= np.count_nonzero(kept) <= high:
                kept = highest(score, low if np.count_nonzero(kept) < low else high)
        ids = np.flatnonzero(kept)
        return Artefact({"ids": ids, "labels": labels[ids]})
