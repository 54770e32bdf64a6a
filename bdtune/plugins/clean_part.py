"""CleanPart: which images of the clean set are trained on, and which validate a choice."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet


class CleanPart(Stage):
    """Split the clean set, class by class, into a tuning and a validation part, and return one of them.

    Inputs: data (LabelSet of the clean set). Arrays: ids int64 [n] in rising order, labels int64 [n]. A class
    of two images and more has one at least in each part; the only image of a class is tuned on.
    """

    name: ClassVar[str] = "clean_part"
    kind: ClassVar[Kind] = "derive"

    part: Literal["tuning", "validation"]
    """Which of the two."""
    validation: float
    """Fraction of each class that validates; 0: none."""

    def run(self, ctx: Context, *, data: LabelSet) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        order = np.random.default_rng(ctx.seed).permutation(len(labels))
        held = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            members = order[labels[order] == label]
            held[members[: self._held(len(members))]] = True
        ids = np.flatnonzero(held if self.part == "validation" else ~held)
        return Artefact({"ids": ids, "labels": labels[ids]})

    def _held(self, members: int) -> int:
        """Return how many images of a class validate."""
        wanted = int(self.validation * members + 0.5)
        return min(max(wanted, 1), members - 1) if self.validation > 0 else 0
