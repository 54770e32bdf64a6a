"""Another defense, with other knobs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.stage import Node
    from bdtune.plugins.defense import Given


class Other(Defense):
    depth: int = 1

    def build(self, given: Given) -> dict[str, Node]:
        train = given.node(self.reference(), data=given.fit, model=given.model)
        return {"classifier": train}

    def reference(self) -> Supervised:
        return Supervised()
