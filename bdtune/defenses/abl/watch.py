"""What keeps ABL's unlearning from ruining the classifier: the accuracy on samples that were not isolated."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from bdtune.engine.key import derive_seed
from bdtune.training.augment import Augmentation
from bdtune.training.batches import DeviceSet
from bdtune.training.fit import Part
from bdtune.training.session import deterministic

if TYPE_CHECKING:
    from bdtune.engine.stage import Artefact
    from bdtune.training.fit import Fit


class Watch(Part):
    """Count the accuracy on some of the rest; take back an epoch that loses too much, and end there."""

    def __init__(self, fit: Fit, rest: Artefact, count: int, max_drop: float) -> None:
        ids, labels = rest.arrays["ids"], rest.arrays["labels"]
        draw = np.random.default_rng(derive_seed(fit.ctx.seed, "watched"))
        rows = np.sort(draw.permutation(len(ids))[:count])
        self._fit, self._max_drop = fit, max_drop
        self._images = DeviceSet(fit.data, fit.device, ids[rows], labels[rows])
        self._before: dict[str, torch.Tensor] = {}
        self._start = self.accuracy()

    def accuracy(self) -> float:
        """Return the share of watched samples classified as labelled; 1 when there are none.

        In float32, whatever the precision of the training: it decides whether an epoch is taken back.
        """
        network = self._fit.network
        see = Augmentation.of("none", self._fit.data)
        hits, training = 0, network.training
        network.eval()
        with torch.inference_mode(), deterministic(self._fit.ctx.numerics):
            for batch in self._images.shuffled(512, 0, 0):
                predicted = network(see(batch.images)).argmax(1)
                hits += int((predicted == batch.labels).sum())
        network.train(training)
        return hits / len(self._images) if len(self._images) else 1.0

    def before_epoch(self, done: int) -> None:
        self._before = {name: value.clone() for name, value in self._fit.network.state_dict().items()}

    def after_epoch(self, row: dict[str, float]) -> dict[str, float]:
        found = self.accuracy()
        if self._start - found <= self._max_drop:
            return {"rest_acc": found}
        self._fit.network.load_state_dict(self._before)
        return {"rest_acc": found, "stopped": 1.0}
