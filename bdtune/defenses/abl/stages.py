"""ABL's derived stages: which samples are isolated, and what each weighs in the joint form. numpy only.

Source: "Anti-Backdoor Learning: Training Clean Models on Poisoned Data" (Li et al., NeurIPS 2021), section 3.
Knobs without defaults are handed down from the defense, where their defaults and ranges are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.defending.isolation import flagged_lowest
from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet

Reading = Literal["means", "batch"]


class Isolated(Stage):
    """Keep the samples of lowest loss, as the suspicious ones.

    Inputs: losses (losses float64 [N]), data (LabelSet). Arrays: ids int64 [floor(p N)] in rising order,
    labels int64, the observed ones. Those for a small p are among those for a larger one.
    """

    name: ClassVar[str] = "abl_isolated"
    kind: ClassVar[Kind] = "derive"

    p: float
    """Fraction of samples that is isolated."""

    def run(self, ctx: Context, *, losses: Artefact, data: LabelSet) -> Artefact:
        return _subset(np.flatnonzero(flagged_lowest(losses.arrays["losses"], self.p)), data)


class Rest(Stage):
    """Keep all samples but the isolated ones; inputs and arrays as for `Isolated`."""

    name: ClassVar[str] = "abl_rest"
    kind: ClassVar[Kind] = "derive"

    p: float
    """Fraction of samples that is isolated."""

    def run(self, ctx: Context, *, losses: Artefact, data: LabelSet) -> Artefact:
        return _subset(np.flatnonzero(~flagged_lowest(losses.arrays["losses"], self.p)), data)


def _subset(ids: np.ndarray, data: LabelSet) -> Artefact:
    labels = np.asarray(data.labels, np.int64)
    return Artefact({"ids": ids.astype(np.int64), "labels": labels[ids]})


class Signs(Stage):
    """Weigh samples for the joint form: descent on the rest R, ascent on the isolated ones I.

    Inputs: isolated (ids), data (LabelSet). Arrays: weights float32 [N]. means: N / |R| and -N / |I|, whose
    mean over all samples is E_R - E_I, the paper's equation 4; batch: 1 and -1, a plain sum over each batch.
    """

    name: ClassVar[str] = "abl_signs"
    kind: ClassVar[Kind] = "derive"

    reading: Reading
    """What the two expectations are taken over."""

    def run(self, ctx: Context, *, data: LabelSet, isolated: Artefact) -> Artefact:
        count, ids = len(data), isolated.arrays["ids"]
        means = self.reading == "means"
        weights = np.full(count, count / max(count - len(ids), 1) if means else 1.0, np.float32)
        weights[ids] = -count / max(len(ids), 1) if means else -1.0
        return Artefact({"weights": weights})


def largest_class(labels: np.ndarray) -> float:
    """Return the share of the class that most labels int64 [n] are of; nan of none."""
    return float(np.unique(labels, return_counts=True)[1].max() / len(labels)) if len(labels) else np.nan
