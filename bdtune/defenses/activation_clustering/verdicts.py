"""Which clusters Activation Clustering takes for poison, and what becomes of their rows. numpy only.

Shape letters: N rows, K classes, k clusters, numbered by falling size. Settings without defaults are handed
down from the defense, where their defaults and ranges are.

Source: "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (Chen et al., SafeAI
2019), section 4: size, silhouette and exclusionary reclassification (ExRe); the distance rule is the authors'
Adversarial Robustness Toolbox's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet

Rule = Literal["smaller", "relative_size", "silhouette", "distance"]


class Suspects(Stage):
    """Flag the rows of the clusters that a rule suspects.

    Inputs: clustered, groups. Arrays: suspected bool [K, k]; flagged bool [N]. smaller: the smallest cluster
    of each class; relative_size: clusters below the share `size` of their class, but the largest; silhouette:
    the same where the class's silhouette is above `silhouette`; distance: clusters nearer to another class.
    """

    name: ClassVar[str] = "suspects"
    kind: ClassVar[Kind] = "derive"

    rule: Rule
    """How clusters are judged."""
    size: float
    """Share of its class below which a cluster is small."""
    silhouette: float
    """Silhouette above which a class falls into parts."""

    def run(self, ctx: Context, *, clustered: Artefact, groups: Artefact) -> Artefact:
        suspected = self._suspected(clustered)
        return Artefact({"suspected": suspected, "flagged": rows_of(suspected, clustered, groups)})

    def _suspected(self, clustered: Artefact) -> np.ndarray:
        sizes = clustered.arrays["sizes"]
        filled = sizes > 0
        if self.rule == "distance":
            nearer: np.ndarray = clustered.arrays["closer"] > 0
            return nearer
        behind = np.arange(sizes.shape[1])[None] > 0  # not the largest
        if self.rule == "smaller":
            last = filled.sum(1, keepdims=True) - 1
            return filled & behind & (np.arange(sizes.shape[1])[None] == last)
        small = filled & behind & (sizes < self.size * sizes.sum(1, keepdims=True))
        if self.rule == "relative_size":
            return small
        return small & (clustered.arrays["silhouette"] > self.silhouette)[:, None]


class Reclassified(Stage):
    """Clear suspected clusters that a classifier trained without them still takes for their own class (ExRe).

    Inputs: suspects (suspected), clustered, groups, losses (predictions int64 [N] of that classifier). Of a
    cluster of class c, l rows are predicted as c and m as the most frequent other class: it is cleared if
    m = 0 or l / m > threshold. Arrays: suspected bool [K, k]; flagged bool [N]; ratio float64 [K, k], l / m,
    infinity for m = 0 and nan for clusters that were not suspected; source int64 [N]: of flagged rows that
    other class, where they presumably come from; -1 elsewhere.
    """

    name: ClassVar[str] = "reclassified"
    kind: ClassVar[Kind] = "derive"

    threshold: float
    """Ratio above which a cluster is cleared."""

    def run(
        self, ctx: Context, *, suspects: Artefact, clustered: Artefact, groups: Artefact, losses: Artefact
    ) -> Artefact:
        suspected = suspects.arrays["suspected"].copy()
        ratio, source = np.full(suspected.shape, np.nan), np.full(len(groups.arrays["groups"]), -1, np.int64)
        for label, cluster in zip(*np.nonzero(suspected), strict=True):
            rows = (groups.arrays["groups"] == label) & (clustered.arrays["clusters"] == cluster)
            count = np.bincount(losses.arrays["predictions"][rows], minlength=len(suspected))
            own, count[label] = count[label], 0
            ratio[label, cluster] = own / count.max() if count.any() else np.inf
            if ratio[label, cluster] > self.threshold:
                suspected[label, cluster] = False
            else:
                source[rows] = count.argmax()
        flagged = rows_of(suspected, clustered, groups)
        return Artefact({"suspected": suspected, "flagged": flagged, "ratio": ratio, "source": source})


class Relabelled(Stage):
    """Keep all rows, with flagged ones labelled as the class that they presumably come from.

    Inputs: removal (source int64 [N]), data (LabelSet). Arrays: ids int64 [N], labels int64 [N].
    """

    name: ClassVar[str] = "relabelled"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, removal: Artefact, data: LabelSet) -> Artefact:
        source = removal.arrays["source"]
        labels = np.where(source >= 0, source, np.asarray(data.labels, np.int64))
        return Artefact({"ids": np.arange(len(labels), dtype=np.int64), "labels": labels})


def rows_of(suspected: np.ndarray, clustered: Artefact, groups: Artefact) -> np.ndarray:
    """Return bool [N]: the rows of suspected clusters, bool [K, k]."""
    clusters = clustered.arrays["clusters"]
    found: np.ndarray = (clusters >= 0) & suspected[groups.arrays["groups"], clusters]
    return found
