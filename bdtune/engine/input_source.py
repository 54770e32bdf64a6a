"""An input of stages that is never stored: data seen through an attack, a model's description."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import SerializeAsAny, SkipValidation

from bdtune.engine.key import canonical_json, key_of_text
from bdtune.knobs import Frozen, Knobs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from bdtune.engine.node import Node
    from bdtune.engine.stage import Artefact
    from bdtune.plugins.dataset import Dataset, Split, SplitName


class Resident(Protocol):
    """Hands out data sets as resident arrays: loaded in process, or shared by all trials of a node."""

    def split(self, dataset: Dataset, split: SplitName) -> Split:
        """Return images and labels of a data set."""

    def labels(self, dataset: Dataset, split: SplitName) -> np.ndarray:
        """Return a split's true labels, int64 [N], without reading its images."""


class Source(Frozen):
    """An input that is never stored.

    What it is made of, with its own `upstream` nodes, enters the keys of the stages that read it.
    """

    @abstractmethod
    def made_of(self) -> dict[str, Any]:
        """Return what decides the value that `load` gives, as JSON; the upstream nodes apart."""

    @property
    def upstream(self) -> Mapping[str, Node]:
        """Nodes whose artefacts the source needs (a trained trigger, say)."""
        return {}

    @cached_property
    def preimage(self) -> dict[str, Any]:
        """What it is made of, worked out once: many nodes of many trials read the same source."""
        return self.made_of()

    @cached_property
    def text(self) -> str:
        """The same as canonical JSON."""
        return canonical_json(self.preimage)

    @property
    def gives(self) -> type:
        """The type of what `load` returns; `object` where it is not known."""
        return object

    @cached_property
    def digest(self) -> str:
        """A short name for the source's content, without what its upstream nodes add."""
        return key_of_text(self.text)

    @abstractmethod
    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> object:
        """Return the value; `artefacts` holds those of `upstream`."""


class PluginSource(Source):
    """A plugin handed to a stage as it is: the model to train, for instance."""

    plugin: SerializeAsAny[SkipValidation[Knobs]]

    def made_of(self) -> dict[str, Any]:
        return {"given": self.plugin.identity()}

    @property
    def gives(self) -> type:
        return type(self.plugin)

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> object:
        return self.plugin
