"""A defense that starts from a trained model, and may ask for more than a trial gives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from bdtune.errors import Problem
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.node import Node
    from bdtune.plugins.defense import DefenseInputs, Offer


class Needy(Defense):
    needs: Literal["a model", "a backdoored model", "clean images", "a holdout"] = "a model"
    train: Supervised = Supervised(epochs=1, lr=0.01)
    tune: Supervised = Supervised(epochs=1, lr=0.001)

    def check_offer(self, offer: Offer) -> list[Problem]:
        if self.needs == "a backdoored model" and not offer.backdoored:
            expected = "expected an attack that hands over a trained model, which 'needy' needs"
            return [Problem("attack", expected, "none", hint="'outsourced' does")]
        if self.needs == "clean images" and not offer.clean:
            return [Problem("defense.needs", "expected a trial with clean images", "none")]
        if self.needs == "a holdout" and not offer.holdout:
            return [Problem("holdout", "expected more than 0, as 'needy' chooses by it", "0.0")]
        return []

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        trained = given.undefended(self.train)
        data, labels = given.fit, given.labels
        if self.needs == "clean images":
            assert given.clean is not None
            data = labels = given.clean
        subset = given.node(AllSamples(), data=labels)
        tuned = given.node(self.tune, data=data, subset=subset, model=given.model, init=trained)
        return {"trained": trained, "classifier": tuned}

    def baseline_training(self) -> Supervised:
        return self.train
