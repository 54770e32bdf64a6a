"""Which epoch of an adversarial training is kept: a validation part, and the choice by it.

Source: "Overfitting in adversarially robust deep learning" (Rice et al., 2020), section 4: robust accuracy
falls again after the first drop of the rate, so the epoch is chosen that is best on images held out of the
training set (1,000 of 50,000 there). The choice sees observed labels, flipped ones included.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from bdtune.engine.stage import Artefact, Context, Kind, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.plugins.data import LabelSet


class ValidationSplit(Stage):
    """Hold a part of the training set out of the training.

    Inputs: data (LabelSet). Arrays: ids, labels int64 [n], what is trained on; validation_ids,
    validation_labels int64 [N - n], at least one of them. Ids rise.
    """

    name: ClassVar[str] = "validation_part"
    kind: ClassVar[Kind] = "derive"

    fraction: float
    """Fraction of the samples that are held out."""

    def run(self, ctx: Context, *, data: LabelSet) -> Artefact:
        labels = np.asarray(data.labels, np.int64)
        order = np.random.default_rng(ctx.seed).permutation(len(labels))
        held, ids = (np.sort(part) for part in np.split(order, [max(1, int(self.fraction * len(labels)))]))
        return Artefact(
            {
                "ids": ids,
                "labels": labels[ids],
                "validation_ids": held,
                "validation_labels": labels[held],
            }
        )


class BestEpoch(Stage):
    """Take the weights of the epoch that was best on the validation part.

    Inputs: classifier (artefact of `AdversarialTraining` on an `ValidationSplit` subset). Arrays: weights
    `model.<name>`; info has the epoch, counted from 1.
    """

    name: ClassVar[str] = "best_epoch"
    kind: ClassVar[Kind] = "derive"
    classifier: ClassVar[bool] = True

    def run(self, ctx: Context, *, classifier: Artefact) -> Artefact:
        arrays = classifier.arrays
        weights = {
            "model." + name.removeprefix("best."): value
            for name, value in arrays.items()
            if name.startswith("best.")
        }
        return Artefact(weights, {"epoch": best_epoch(arrays)})


def best_epoch(arrays: Mapping[str, np.ndarray]) -> int:
    """Return the epoch, counted from 1, that a validated training was best after; the first of equal ones."""
    return int(arrays["validation.robust_acc"].argmax()) + 1
