"""An attack whose attacker trains the model, on clean images first and on the poisoned set then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from bdtune.effects import ModelOnly
from bdtune.engine.node import Node
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.attack import Attack
from bdtune.poisoning.train_sources import FitLabels, FitSet
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    import numpy as np

    from bdtune.engine.input_source import Source
    from bdtune.plugins.poison_plan import Rows


class Outsourced(Attack):
    """A white dot, and a model that was trained to heed it."""

    train: Annotated[Supervised, ModelOnly] = Supervised(epochs=1, lr=0.01)
    """Both trainings."""

    @property
    def hands_over(self) -> bool:
        return True

    def backdoored_model(self, fit: FitSet, model: Source) -> Node:
        clean = FitSet(dataset=fit.dataset, root=fit.root, **fit.reserved())
        init = None
        for data in (clean, fit):
            labels = data.read_as(FitLabels)
            subset = Node(AllSamples(), {"data": labels}, fit.attack_seed, fit.numerics)
            inputs = {"data": data, "subset": subset, "model": model}
            inputs |= {} if init is None else {"init": init}
            init = Node(self.train, inputs, fit.attack_seed, fit.numerics)
        return init

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        images[:, -1, -1] = 1
        return images
