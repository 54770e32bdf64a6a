"""FC (feature collision, "Poison Frogs"): clean labels, no trigger; a few chosen test images are the goal.

Source: Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks (Shafahi et al., 2018),
arXiv:1804.00792, algorithm 1 and section 4.2; 50 poisons with a watermark of 30 % for each target instance.
Departures: the paper's victim keeps the attacker's feature layers (transfer), or goes on training its
network; here it is trained from scratch, where collisions made on a surrogate hold less well. Several
instances are attacked at once, each by its share of the poison. Steps that would raise the objective are
halved image by image; pixels stay within [0, 1]. Success is the share of the chosen instances, as they are,
that are taken for the target class: with ten of them, in steps of 10 %. A network's own mistakes on them
count too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import model_validator

from bdtune.attacks.feature_collision.collisions import Collision, Collisions
from bdtune.effects import TrainOnly
from bdtune.engine.input_source import PluginSource
from bdtune.errors import Problem
from bdtune.plugins.attack import Attack
from bdtune.plugins.model import ModelKnob
from bdtune.plugins.poison_plan import SplitName
from bdtune.poisoning.dirty_label import CLEAN_LABEL
from bdtune.poisoning.rendered import looked_up
from bdtune.poisoning.surrogate import Surrogate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.attack import TestLabels
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker


class FeatureCollision(Collision, Attack, defaults={"rate_basis": "target_class"}):
    """x' near an image of the target class, with f(x') near f(t) for a test image t of another class."""

    surrogate: Annotated[Surrogate, TrainOnly] = Surrogate()
    """Training of the clean classifier that f is the last layer but one of."""
    surrogate_model: Annotated[ModelKnob, TrainOnly] = "resnet18"  # type: ignore[assignment]
    """Its network."""

    clean_label: ClassVar[bool] = True
    lacks: ClassVar[dict[str, str]] = CLEAN_LABEL
    stamps_test: ClassVar[bool] = False
    one_split: ClassVar[dict[str, SplitName]] = {"collisions": "train"}
    min_undefended_asr: ClassVar[float] = 0.5  # the paper's curve at 50 poisons without transfer: about 60 %
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "abl/fc": {"rate": 0.1, "rate_basis": "target_class", "target": 0, "opacity": 0.3},
    }

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        chosen = np.zeros(len(labels), bool)
        chosen[self.instances.chosen(labels, self.target, self.trigger_seed)] = True
        return chosen

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        node = attacker.node(
            self.to(Collisions, instance_seed=self.trigger_seed),
            data=attacker.clean,
            test=attacker.test,
            model=PluginSource(plugin=self.surrogate_model),
            surrogate=attacker.classifier(self.surrogate, self.surrogate_model),
        )
        return {"collisions": node}

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return looked_up(self.artefact("collisions"), rows)

    def stamp_test(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        return images

    def shown_beside(self, rows: Rows) -> dict[str, np.ndarray]:
        found = self.artefact("collisions").arrays
        return {"test image": found["instances"][found["of"][np.searchsorted(found["ids"], rows.ids)]]}

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        labels = test_labels()
        if labels is None:
            return []
        found = len(self.instances.chosen(labels, self.target, self.trigger_seed))
        if found == self.instances.count:
            return []
        expected = f"expected at most {found}, the test images that may be chosen"
        return [Problem("attack.instances.count", expected, got=str(self.instances.count))]

    @model_validator(mode="after")
    def _instances_are_of_another_class(self) -> Self:
        if self.instances.of_class == self.target:
            raise ValueError(f"instances.of_class is the target, {self.target}: they would be right already")
        return self

    def _check_target(self, num_classes: int) -> list[Problem]:
        problems = super()._check_target(num_classes)
        if self.instances.of_class is not None and self.instances.of_class >= num_classes:
            expected = f"expected a class from 0 to {num_classes - 1}"
            problems.append(Problem("instances.of_class", expected, got=str(self.instances.of_class)))
        return problems
