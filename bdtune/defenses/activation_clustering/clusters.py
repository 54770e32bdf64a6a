"""Activations by class, in few dimensions, in clusters.

Shape letters: N rows, K classes, d features, q components, k clusters. Settings without defaults are handed
down from the defense, where their defaults and ranges are.

Source: "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering" (Chen et al., SafeAI
2019), section 4, with scikit-learn's PCA, FastICA and k-means.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from bdtune.engine.environment import one_blas_thread
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bdtune.plugins.data import LabelSet

GroupBy = Literal["label", "prediction"]
Reduction = Literal["pca", "ica", "none"]
FLAT = 1e-12
"""Components with less of the largest one's variance are noise of the arithmetic."""


class Groups(Stage):
    """Sort rows into classes, by observed label or by the classifier's prediction.

    Inputs: penultimate (logits float32 [N, K]), data (LabelSet). Arrays: groups int64 [N]; agreement float64
    [1], the share of rows that are predicted as labelled.
    """

    name: ClassVar[str] = "groups"
    kind: ClassVar[Kind] = "derive"

    by: GroupBy
    """What the class of a row is."""

    def run(self, ctx: Context, *, penultimate: Artefact, data: LabelSet) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        predicted = penultimate.arrays["logits"].argmax(1).astype(np.int64)
        agreement = np.array([np.mean(predicted == labels)])
        return Artefact({"groups": labels if self.by == "label" else predicted, "agreement": agreement})


class Reduced(Stage):
    """Bring the features of each class into few dimensions.

    Inputs: penultimate (features float32 [N, d], logits [N, K]), groups. Arrays: reduced float64 [N, q'], 0
    where a class has fewer dimensions, with q' = min(q, d), or d without a reduction; done bool [K]: classes
    with more than q rows whose features vary, the others are left out; converged bool [K].
    """

    name: ClassVar[str] = "reduced"
    kind: ClassVar[Kind] = "train"  # not the same to the last bit on every machine

    method: Reduction
    """pca; ica: FastICA on the same components; none: the features themselves."""
    components: int
    """Dimensions."""

    def run(self, ctx: Context, *, penultimate: Artefact, groups: Artefact) -> Artefact:
        features, classes = penultimate.arrays["features"], penultimate.arrays["logits"].shape[1]
        wide = features.shape[1] if self.method == "none" else min(self.components, features.shape[1])
        reduced = np.zeros((len(features), wide))
        done, converged = np.zeros(classes, bool), np.ones(classes, bool)
        for label, ids in _each_class(groups, classes):
            rows = features[ids].astype(np.float64)
            if len(ids) <= self.components or not np.ptp(rows, axis=0).any():
                continue
            found, converged[label] = self._reduce(rows, wide, derive_seed(ctx.seed, str(label)) % 2**32)
            reduced[ids, : found.shape[1]], done[label] = found, True
        return Artefact({"reduced": reduced, "done": done, "converged": converged})

    def _reduce(self, rows: np.ndarray, wide: int, seed: int) -> tuple[np.ndarray, bool]:
        if self.method == "none":
            return rows, True
        from sklearn.decomposition import PCA, FastICA
        from sklearn.exceptions import ConvergenceWarning

        with one_blas_thread():
            pca = PCA(wide, random_state=seed)
            found = pca.fit_transform(rows)
        found = found[:, pca.explained_variance_ > FLAT * pca.explained_variance_[0]]
        if self.method == "pca":
            return found, True
        with one_blas_thread(), warnings.catch_warnings(record=True) as noted:
            warnings.simplefilter("always", ConvergenceWarning)
            ica = FastICA(found.shape[1], whiten="unit-variance", whiten_solver="svd", random_state=seed)
            return ica.fit_transform(found), not noted


class Clustered(Stage):
    """Part each class by k-means, and measure the parts.

    Inputs: reduced (reduced, done), groups, penultimate (features). Clusters are numbered by falling size,
    ties by their first row. Classes that are not reduced, or have no more than k rows, are left out.
    Arrays: clusters int64 [N], -1 in those classes; sizes int64 [K, k]; silhouette float64 [K], of up to
    `sampled` rows; closer float64 [K, k]: how much nearer a cluster's median feature lies to the median of
    another class than to that of its own; scores float64 [N] in [-1, 1]: `suspicion` times the silhouette, so
    that classes which fall into parts come first, and -1 in classes that are left out.
    """

    name: ClassVar[str] = "clustered"
    kind: ClassVar[Kind] = "train"  # as above

    clusters: int
    """Clusters of each class."""
    restarts: int
    """Starts of k-means, of which the best counts."""
    sampled: int
    """Rows of a class that its silhouette is taken of, at most: its cost is quadratic."""

    def run(self, ctx: Context, *, reduced: Artefact, groups: Artefact, penultimate: Artefact) -> Artefact:
        points, done = reduced.arrays["reduced"], reduced.arrays["done"]
        classes, rows = len(done), len(points)
        clusters, scores = np.full(rows, -1, np.int64), np.full(rows, -1.0)
        sizes, silhouette = np.zeros((classes, self.clusters), np.int64), np.zeros(classes)
        for label, ids in _each_class(groups, classes):
            if done[label] and len(ids) > self.clusters:
                seed = derive_seed(ctx.seed, str(label)) % 2**32
                own = parted(points[ids], self.clusters, self.restarts, seed)
                clusters[ids], sizes[label] = own.clusters, own.sizes
                silhouette[label] = mean_silhouette(points[ids], own.clusters, self.sampled, seed)
                scores[ids] = max(silhouette[label], 0.0) * suspicion(points[ids], own)
        closer = nearer_elsewhere(penultimate.arrays["features"], groups.arrays["groups"], clusters, sizes)
        found = {"clusters": clusters, "sizes": sizes, "silhouette": silhouette, "closer": closer}
        return Artefact({**found, "scores": scores})


class Parts(NamedTuple):
    """Clusters of n rows, by falling size."""

    clusters: np.ndarray  # int64 [n]
    sizes: np.ndarray  # int64 [k]
    means: np.ndarray  # float64 [k, q]; of an empty cluster nan


def parted(points: np.ndarray, clusters: int, restarts: int, seed: int) -> Parts:
    """Part points [n, q] by k-means; equal points may leave clusters empty."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different points than clusters
        found = KMeans(clusters, n_init=restarts, random_state=seed).fit_predict(points)
    sizes = np.bincount(found, minlength=clusters)
    first = np.array([np.argmax(found == each) for each in range(clusters)])
    order = np.lexsort((first, -sizes))
    ranked = np.argsort(order)[found].astype(np.int64)
    means = [points[ranked == each].mean(0) if size else np.full(points.shape[1], np.nan)
             for each, size in enumerate(sizes[order])]  # fmt: skip
    return Parts(ranked, sizes[order], np.array(means))


def suspicion(points: np.ndarray, parts: Parts) -> np.ndarray:
    """Return how clearly each of points [n, q] belongs to the smallest cluster, float64 [n] in [-1, 1].

    The distance to the nearest other mean, less that to the smallest cluster's mean, over the distance of the
    two means.
    """
    means = parts.means[parts.sizes > 0]
    if len(means) < 2:
        return np.full(len(points), -1.0)
    away = np.linalg.norm(points[:, None] - means, axis=2)
    nearest = away[:, :-1].argmin(1)
    between = np.linalg.norm(means[nearest] - means[-1], axis=1)
    return (away[np.arange(len(points)), nearest] - away[:, -1]) / between


def mean_silhouette(points: np.ndarray, clusters: np.ndarray, sampled: int, seed: int) -> float:
    """Return the mean silhouette of points [n, q], or of `sampled` of them and one at least of each cluster.

    0 where all are in one cluster.
    """
    from sklearn.metrics import silhouette_score

    order = np.random.default_rng(seed).permutation(len(points))
    first = np.unique(clusters[order], return_index=True)[1]
    chosen = order[np.union1d(np.arange(min(sampled, len(order))), first)]
    if len(first) < 2 or len(chosen) <= len(first):
        return 0.0
    return float(silhouette_score(points[chosen], clusters[chosen]))


def nearer_elsewhere(
    features: np.ndarray, groups: np.ndarray, clusters: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Return float64 [K, k]: a cluster's distance to its class less that to the nearest other class.

    Distances are of medians, taken of each feature. -inf for clusters without rows, and where there is no
    other class.
    """
    present = np.unique(groups)
    middle = {label: np.median(features[groups == label], axis=0).astype(np.float64) for label in present}
    found = np.full(sizes.shape, -np.inf)
    for label, cluster in zip(*np.nonzero(sizes), strict=True):
        own = np.median(features[(groups == label) & (clusters == cluster)], axis=0)
        away = {other: float(np.linalg.norm(own - place)) for other, place in middle.items()}
        others = [distance for other, distance in away.items() if other != label]
        found[label, cluster] = away[label] - min(others, default=np.inf)
    return found


def _each_class(groups: Artefact, classes: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each class with the ids of its rows."""
    for label in range(classes):
        yield label, np.flatnonzero(groups.arrays["groups"] == label)
