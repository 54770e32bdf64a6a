"""No defense: a classifier trained on everything, poison included.

Source: the recipe of "Deep residual learning for image recognition" (He et al., 2016), section 4.2; the
undefended baseline of each defense is this one with that defense's training. Where the attacker hands over a
model, the baseline is that model.
Departures: none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.engine.node import Node
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.plugins.defense import DefenseInputs


class NoDefense(Defense):
    """Train on all samples with their observed labels, or take the model that the attacker hands over."""

    train: Supervised = Supervised()
    """The training; without effect where the attacker hands over a model."""

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        classifier = given.undefended(self.train)
        before = {name: node for name, node in classifier.inputs.items() if isinstance(node, Node)}
        return {**before, "classifier": classifier}

    def baseline_training(self) -> Supervised:
        return self.train
