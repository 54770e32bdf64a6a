"""No defense: a classifier trained on everything, poison included.

Source: the recipe of "Deep residual learning for image recognition" (He et al., 2016), section 4.2; every
defense's undefended twin is this one with that defense's own training. Departures: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.defenses._base import Defense
from bdtune.training.everything import AllSamples
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.defenses._base import Given
    from bdtune.engine.stage import Node


class NoDefense(Defense):
    """Train on all samples with their observed labels."""

    train: Supervised = Supervised()
    """The training."""

    def build(self, given: Given) -> dict[str, Node]:
        subset = given.node(AllSamples(), data=given.labels)
        classifier = given.node(self.train, data=given.fit, subset=subset, model=given.model)
        return {"subset": subset, "classifier": classifier}

    def reference(self) -> Supervised:
        return self.train
