"""Which classes have a trigger that is too small: median absolute deviations of the masks' norms. numpy only.

Source: Neural Cleanse (Wang et al., 2019), section IV.C. Knobs without defaults are handed down from the
defense, where their defaults and ranges are.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from bdtune.effects import OnlyIf
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.poisoning.corner_square import CornerSquare

Median = Literal["mean", "lower"]
Side = Literal["small", "both"]
Unreached = Literal["leave_out", "keep"]

NORMAL = 1.4826
"""Standard deviation of a normal distribution whose median absolute deviation is 1."""
CLEAN_MODELS = 4000
"""Simulated ones: a share of 5 % is then known to 0.3 %."""


def median(values: np.ndarray, how: Median) -> np.ndarray:
    """Return the median along the last axis; of an even count the lower middle value or the mean of both."""
    if how == "mean":
        return np.asarray(np.median(values, axis=-1))
    return np.sort(values, axis=-1)[..., (values.shape[-1] - 1) // 2]


def anomaly(norms: np.ndarray, how: Median) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the index of norms [..., n], their median [...] and deviation [...].

    index = (median - norm) / (1.4826 median |norm - median|): positive for small norms. Where more than half
    of the norms coincide the deviation is 0: the index is then 0 for these and infinite for others.
    """
    middle = median(norms, how)
    deviation = NORMAL * median(np.abs(norms - middle[..., None]), how)
    below = middle[..., None] - norms
    with np.errstate(divide="ignore", invalid="ignore"):
        index = np.where(below == 0, 0.0, below / deviation[..., None])
    return index, middle, deviation


@cache
def clean_indices(classes: int, how: Median, side: Side) -> np.ndarray:
    """Return float64 [4000], ascending: the model's index where n norms are drawn from one normal."""
    norms = np.random.default_rng(0).standard_normal((CLEAN_MODELS, classes))
    index = anomaly(norms, how)[0]
    return np.sort((np.abs(index) if side == "both" else index).max(-1))


class Outliers(Stage):
    """Flag the classes whose mask is an outlier.

    Inputs: inversion (norm, reached). Arrays: index float64 [K], positive for small norms and nan for classes
    that are left out; flagged bool [K]; norm float64 [K]. Info: median, deviation, threshold; chance, the
    share of clean models with so many classes whose index is as large, if norms are normal; undefined,
    classes of infinite index. Of fewer than three classes none is flagged.
    """

    name: ClassVar[str] = "outliers"
    kind: ClassVar[Kind] = "derive"

    threshold: Annotated[float, OnlyIf(false_alarms=None)]
    """Index above which a class is flagged."""
    false_alarms: float | None
    """Share of clean models that may be flagged, in place of a threshold."""
    median: Median
    """Of an even number of classes."""
    side: Side
    """Which outliers are flagged."""
    unreached: Unreached
    """What becomes of classes whose trigger never worked."""

    def run(self, ctx: Context, *, inversion: Artefact) -> Artefact:
        norms = inversion.arrays["norm"].astype(np.float64)
        tested = inversion.arrays["reached"] if self.unreached == "leave_out" else np.ones(len(norms), bool)
        index, info = np.full(len(norms), np.nan), {"threshold": self.threshold, "undefined": 0}
        flagged = np.zeros(len(norms), bool)
        if np.count_nonzero(tested) >= 3:
            index[tested], middle, deviation = anomaly(norms[tested], self.median)
            strange = np.abs(index[tested]) if self.side == "both" else index[tested]
            clean = clean_indices(len(strange), self.median, self.side)
            info["threshold"] = threshold = self._threshold(clean)
            flagged[tested] = strange > threshold
            info |= {"median": float(middle), "deviation": float(deviation)}
            info["chance"] = float(np.mean(clean >= strange.max()))
            info["undefined"] = int(np.count_nonzero(np.isinf(strange)))
        return Artefact({"index": index, "flagged": flagged, "norm": norms}, info)

    def _threshold(self, clean: np.ndarray) -> float:
        if self.false_alarms is None:
            return self.threshold
        return float(np.quantile(clean, 1 - self.false_alarms, method="higher"))


class Selected(Stage):
    """Keep the triggers of the flagged classes, so that thresholds that flag the same ones share the repair.

    Inputs: inversion (mask, pattern), outliers (flagged). Arrays: label int64 [F], mask float32 [F, H, W],
    pattern float32 [F, H, W, C].
    """

    name: ClassVar[str] = "selected"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, inversion: Artefact, outliers: Artefact) -> Artefact:
        labels = np.flatnonzero(outliers.arrays["flagged"] & inversion.arrays["reached"]).astype(np.int64)
        arrays = {name: inversion.arrays[name][labels] for name in ("mask", "pattern")}
        return Artefact({"label": labels, **arrays})


class Patch(CornerSquare, defaults={"inset": 1}):
    """A white square in a corner, as the attack `badnets` stamps it."""

    target: int = Field(0, ge=0)
    """The attacker's class."""


class Known(Stage):
    """Take the attack's own trigger in place of a reversed one: a control that no defender has.

    Inputs: inversion (for the images' shape). Arrays: those of `Selected`, of the target class.
    """

    name: ClassVar[str] = "known"
    kind: ClassVar[Kind] = "derive"

    patch: Patch
    """The trigger."""

    def run(self, ctx: Context, *, inversion: Artefact) -> Artefact:
        _, height, width, channels = inversion.arrays["pattern"].shape
        mask, pattern = self.patch.mask(height, width)[..., 0], np.ones((height, width, channels), np.float32)
        label = np.array([self.patch.target], np.int64)
        return Artefact({"label": label, "mask": mask[None], "pattern": pattern[None]})
