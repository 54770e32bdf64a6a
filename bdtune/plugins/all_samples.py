"""AllSamples: the subset that leaves nothing out."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.stage import Artefact, Context, Stage

if TYPE_CHECKING:
    from bdtune.plugins.data import ImageSet, LabelSet


class AllSamples(Stage):
    """Keep every sample with its observed label.

    Inputs: data (LabelSet, or the ImageSet of a clean set). Result: ids int64 [N], labels int64 [N]. A
    defense that removes nothing has the same result, and thereby shares its trainings with no defense at all.
    """

    name: ClassVar[str] = "all_samples"
    kind: ClassVar = "derive"

    def run(self, ctx: Context, *, data: LabelSet | ImageSet) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        return Artefact({"ids": np.arange(len(labels), dtype=np.int64), "labels": labels.copy()})
