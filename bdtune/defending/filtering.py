"""Removing training rows: what is kept after a verdict, and the control that removes as many at random.

numpy only. Flags are bool [N]: the rows that a filter removes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import LabelSet

Control = Literal["none", "random"]


class RandomRemoval(Stage):
    """Flag as many rows of each observed class as a filter does, at random: what its budget alone costs.

    Inputs: suspects (flagged bool [N]), data (LabelSet). Arrays: flagged bool [N].
    """

    name: ClassVar[str] = "random_removal"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, suspects: Artefact, data: LabelSet) -> Artefact:
        rng, labels = np.random.default_rng(ctx.seed), np.asarray(data.labels)
        count = np.bincount(labels[suspects.arrays["flagged"]], minlength=data.num_classes)
        flagged = np.zeros(len(labels), bool)
        for label in np.flatnonzero(count):
            flagged[rng.choice(np.flatnonzero(labels == label), count[label], replace=False)] = True
        return Artefact({"flagged": flagged})


class Kept(Stage):
    """Keep the rows that are not flagged, with their observed labels.

    Inputs: removal (flagged bool [N]), data (LabelSet). Arrays: ids int64 [n] in rising order, labels int64
    [n]. Equal kept rows share what is trained on them; without a flag that is the undefended training.
    """

    name: ClassVar[str] = "kept"
    kind: ClassVar[Kind] = "derive"

    def run(self, ctx: Context, *, removal: Artefact, data: LabelSet) -> Artefact:
        ids = np.flatnonzero(~removal.arrays["flagged"]).astype(np.int64)
        return Artefact({"ids": ids, "labels": np.asarray(data.labels, np.int64)[ids]})
