"""What is known to be clean, as the inputs of stages: a defense's clean set, and a part for selection."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from bdtune.plugins.data import ImageSet, LabelSet
from bdtune.poisoning.generic import GENERIC, GenericStream, stamped_with_each
from bdtune.poisoning.stream import poisoned_stream, sealed
from bdtune.poisoning.train_sources import TrainSource

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Resident
    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.poisoning.clean_sources import Images


class CleanPart(TrainSource):
    """Base of what is known to be clean: images with their true labels."""

    part: ClassVar[Literal["clean", "select_clean"]]

    @cached_property
    def upstream(self) -> Mapping[str, Node]:
        return {}

    def made_of(self) -> dict[str, Any]:
        size = {"size": getattr(self.reserve, self.part), "seed": self.seed}
        return {"source": self.role, "data": self.fingerprint, **size}

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        split = resident.split(self.dataset, "train")
        labels = np.asarray(split.labels)
        ids = getattr(self.parts(labels), self.part)
        if isinstance(split.images, np.ndarray):
            return ImageSet(split.images[ids], labels[ids], **self._facts())
        return ImageSet(sealed(poisoned_stream(split.images, None, None, ids)), labels[ids], **self._facts())


class CleanSet(CleanPart):
    """The clean set: what a defense that asks for one may train on."""

    role: ClassVar[str] = "clean_set"
    part: ClassVar = "clean"


class CleanLabels(CleanPart):
    """The labels of the clean set, without its images."""

    role: ClassVar[str] = "clean_labels"
    part: ClassVar = "clean"
    loads: ClassVar[type] = LabelSet

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> LabelSet:  # type: ignore[override]
        labels = resident.labels(self.dataset, "train")
        return LabelSet(labels[self.parts(labels).clean], self.dataset.num_classes)


class SelectCleanSet(CleanPart):
    """The part known to be clean that is held out for selection."""

    role: ClassVar[str] = "select_clean"
    part: ClassVar = "select_clean"


class SelectTriggeredSet(SelectCleanSet):
    """The same part under each generic trigger, with true labels: what a rule may stamp without an attack."""

    role: ClassVar[str] = "select_clean_triggered"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        clean = super().load(resident, artefacts)
        images: Images
        if isinstance(clean.images, np.ndarray):
            images = stamped_with_each(clean.images)
        else:
            images = sealed(GenericStream(clean.images))
        return replace(clean, images=images, labels=np.tile(clean.labels, len(GENERIC)))
