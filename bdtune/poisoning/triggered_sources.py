"""Test images seen through an attack, as the inputs of stages: what its success is measured on."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from bdtune.plugins.data import GoalSet, ImageSet, TriggeredSet, TriggerExamples
from bdtune.plugins.poison_plan import SplitName
from bdtune.poisoning.clean_sources import Images, unlabelled
from bdtune.poisoning.stream import poisoned_stream
from bdtune.poisoning.train_sources import AttackedSource, FitSet
from bdtune.training.choices import settled

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bdtune.engine.input_source import Resident
    from bdtune.engine.node import Node
    from bdtune.engine.numerics import Numerics
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.attack import Attack
    from bdtune.plugins.dataset import Dataset, Split

SHOWN = 64
"""Test images in which an inverted trigger is compared with the attack's."""


class TriggeredTest(AttackedSource):
    """The test images that an attack is measured on, with the trigger in them and the class wanted for each.

    These are all test images, with their true labels, unless the attack says otherwise. Rows of the target
    class are kept (their label equals their goal), so that attack success can be counted with and without
    them. Without an attack the set is empty.
    """

    role: ClassVar[str] = "triggered_test"
    loads: ClassVar[type] = TriggeredSet
    split: ClassVar[SplitName] = "test"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> TriggeredSet:
        split = resident.split(self.dataset, "test")
        labels = np.asarray(split.labels)
        attack = self.bound
        if attack is None:
            images = np.zeros((0, *split.images.shape[1:]), np.uint8)
            return TriggeredSet(images, labels[:0], **self._facts(), goals=labels[:0])
        ids, measured, goals = self._measured(labels)
        stamped = _stamped(split, attack.equip(artefacts), None if len(ids) == len(labels) else ids)
        complete = attack.tests_complete()
        return TriggeredSet(stamped, measured, **self._facts(), goals=goals, complete=complete)

    def _measured(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ids, true labels and goals int64 [n] of the images that the attack is measured on."""
        attack = self.bound
        if attack is None:
            return (labels[:0],) * 3
        ids = np.flatnonzero(attack.test_rows(labels, self.dataset.num_classes))
        return ids, labels[ids], attack.test_labels(labels[ids], self.dataset.num_classes)


class TriggeredInputs(TriggeredTest):
    """The same images without labels and goals: what a detector is shown."""

    role: ClassVar[str] = "triggered_inputs"
    loads: ClassVar[type] = ImageSet

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:  # type: ignore[override]
        return unlabelled(super().load(resident, artefacts))


class TriggeredLabels(TriggeredTest):
    """Their true labels and goals, without the images."""

    role: ClassVar[str] = "triggered_labels"
    loads: ClassVar[type] = GoalSet

    @cached_property
    def upstream(self) -> Mapping[str, Node]:
        return {}

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> GoalSet:  # type: ignore[override]
        _, labels, goals = self._measured(resident.labels(self.dataset, "test"))
        return GoalSet(labels, self.dataset.num_classes, goals)


class TriggerShown(TriggeredTest):
    """A few of these images as they are and with the trigger: what an inverted one is compared with."""

    role: ClassVar[str] = "trigger_shown"
    loads: ClassVar[type] = TriggerExamples

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> TriggerExamples:  # type: ignore[override]
        split, attack = resident.split(self.dataset, "test"), self.bound
        assert attack is not None
        labels = np.asarray(split.labels)
        ids = self._measured(labels)[0][:SHOWN]
        clean = ImageSet(split.images, labels, **self._facts()).images_at(ids)
        return TriggerExamples(clean, attack.equip(artefacts).trigger(clean, ids))


class CoverTest(AttackedSource):
    """All test images stamped as cover rows of training are, with their true labels."""

    role: ClassVar[str] = "cover_test"
    split: ClassVar[SplitName] = "test"
    view: ClassVar[str] = "cover"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        attack = self.bound
        assert attack is not None
        split = resident.split(self.dataset, "test")
        images = _stamped(split, attack.equip(artefacts).as_cover(), None)
        return ImageSet(images, np.asarray(split.labels), **self._facts())


def trained_nodes(
    attack: Attack, dataset: Dataset, root: Path | None, seed: int, numerics: Numerics
) -> dict[str, Node]:
    """Return the nodes of all that an attack trains on a data set, for both splits, by name."""
    attack = settled(attack, mirrors=dataset.mirrors)
    knobs: dict[str, Any] = {"attack": attack, "dataset": dataset, "root": root}
    knobs |= {"seed": seed, "numerics": numerics}
    return {**FitSet(**knobs).upstream, **TriggeredTest(**knobs).upstream}


def _stamped(split: Split, attack: Attack, ids: np.ndarray | None) -> Images:
    """Return test images with the trigger: those of ascending `ids` int64 [n], or all."""
    if not isinstance(split.images, np.ndarray):
        return poisoned_stream(split.images, attack, ids=ids)
    if ids is None:
        return attack.trigger(split.images, np.arange(len(split)))
    return attack.trigger(split.images[ids], ids)
