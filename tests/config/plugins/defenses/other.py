"""Another defense, with other knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.node import Node
    from bdtune.plugins.defense import DefenseInputs


class Other(Defense):
    depth: int = 1

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        train = given.node(self.baseline_training(), data=given.fit, model=given.model)
        return {"classifier": train}

    def baseline_training(self) -> Supervised:
        return Supervised()
