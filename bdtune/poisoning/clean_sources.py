"""A data set as the inputs of stages, where no attack touches it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from pydantic import SerializeAsAny, SkipValidation

from bdtune.engine.input_source import Resident, Source
from bdtune.plugins.data import ImageSet, ImageStream, LabelSet
from bdtune.plugins.dataset import Dataset
from bdtune.plugins.poison_plan import SplitName

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.stage import Artefact

UNKNOWN = -1
"""The label of an image that is shown without one."""
T = TypeVar("T", bound="DataSource")
Images = np.ndarray | ImageStream
"""uint8 [N, H, W, C], resident or as a stream."""


class DataSource(Source):
    """Base: a data set and where its files are."""

    dataset: SerializeAsAny[SkipValidation[Dataset]]
    """The clean data set."""
    root: Path | None = None
    """Folder of the data sets' files."""

    role: ClassVar[str]
    loads: ClassVar[type] = ImageSet
    """The type of what `load` returns."""
    split: ClassVar[SplitName]

    @cached_property
    def fingerprint(self) -> str:
        """The fingerprint of the split, read from its files once."""
        return self.dataset.fingerprint(self.root, self.split)

    @property
    def gives(self) -> type:
        return self.loads

    def made_of(self) -> dict[str, Any]:
        return {"source": self.role, "data": self.fingerprint}

    def read_as(self, cls: type[T]) -> T:
        """Return another source of the same part of the data: its labels, its rows."""
        return cls(**{name: getattr(self, name) for name in cls.model_fields})

    def _facts(self) -> dict[str, Any]:
        return {
            "num_classes": self.dataset.num_classes,
            "mirrors": self.dataset.mirrors,
            **self.dataset.scale(),
        }


class CleanTest(DataSource):
    """All clean test images with their true labels; the same for every attack and seed."""

    role: ClassVar[str] = "clean_test"
    split: ClassVar[SplitName] = "test"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        split = resident.split(self.dataset, "test")
        return ImageSet(split.images, split.labels, **self._facts())


class CleanTestLabels(CleanTest):
    """Their true labels, without the images."""

    role: ClassVar[str] = "clean_test_labels"
    loads: ClassVar[type] = LabelSet

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> LabelSet:  # type: ignore[override]
        return LabelSet(resident.labels(self.dataset, "test"), self.dataset.num_classes)


class CleanTestInputs(CleanTest):
    """All clean test images without their labels: what a detector is shown."""

    role: ClassVar[str] = "clean_inputs"

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> ImageSet:
        return unlabelled(super().load(resident, artefacts))


def unlabelled(data: ImageSet) -> ImageSet:
    """Return the same images, each with the label `UNKNOWN`."""
    unknown = np.full(len(data), UNKNOWN)
    return ImageSet(data.images, unknown, data.num_classes, data.mean, data.std, mirrors=data.mirrors)
