"""Networks that an attacker trains on the clean training set, before there is any poison.

Their seeds come from the attack's `trigger_seed`, apart from those of any trial: a defender who happens to
take the same recipe and the same seed trains another network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from bdtune.attacks._sources import DataSource, FitLabels
from bdtune.engine.key import derive_seed
from bdtune.engine.stage import Given, Node, Source, Stage
from bdtune.training.adversarial import AdversarialTraining
from bdtune.training.choices import Schedule  # noqa: TC001  pydantic reads it
from bdtune.training.everything import AllSamples
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.numerics import Numerics
    from bdtune.models._base import Model


class Surrogate(Supervised):
    """Train the attacker's own classifier on clean data; inputs and result are those of `Supervised`."""

    name: ClassVar[str] = "surrogate"
    classifier: ClassVar[bool] = False

    epochs: int = Field(30, ge=1)
    """Passes over the training set; no paper states them, a cosine of 30 ends close to a long training."""
    schedule: Schedule = "cosine"
    """multistep: times `gamma` at each milestone; cosine: to zero; constant."""


class RobustSurrogate(AdversarialTraining):
    """Train the attacker's own classifier adversarially; inputs and result are those of `Supervised`."""

    name: ClassVar[str] = "robust_surrogate"
    classifier: ClassVar[bool] = False


@dataclass(frozen=True)
class Attacker:
    """What an attack's own stages share: the clean training set, seed and numerics.

    `seed` is the attack's `trigger_seed`, so that nodes are the same for all seeds and rates of trials.
    """

    clean: Source
    seed: int
    numerics: Numerics

    @property
    def labels(self) -> Source:
        """The true labels of the training set, without its images."""
        assert isinstance(self.clean, DataSource), "a trained attack needs a data set"
        return FitLabels(dataset=self.clean.dataset, root=self.clean.root)

    def node(self, stage: Stage, **inputs: Node | Source) -> Node:
        """Return a node of the attack, on its own seed."""
        return Node(stage, inputs, derive_seed(self.seed, "attacker"), self.numerics)

    def classifier(self, recipe: Supervised, model: Model) -> Node:
        """Return the node of a classifier that is trained on the whole clean training set."""
        everything = self.node(AllSamples(), data=self.labels)
        return self.node(recipe, data=self.clean, subset=everything, model=Given(plugin=model))
