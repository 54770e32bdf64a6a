"""What a defense holds in place of a trial's data and of the attacker's model: names that lead nowhere.

A chain is built of handles; `bdtune.trials.chain` puts the sources in their places once the chain is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from bdtune.engine.input_source import Source
from bdtune.engine.node import Node
from bdtune.engine.stage import Artefact, Context, Kind, Stage
from bdtune.errors import BdtuneError, Problem, UserError
from bdtune.plugins.data import ImageSet, LabelSet

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.input_source import Resident


IMAGE_ROLES = ("fit", "clean", "inputs")


class Withheld(UserError, AttributeError):  # noqa: N818 - what was done, not a mistake of ours
    """A defense asked its data for what leads to the truth; an `AttributeError` too, as `hasattr` expects."""


class Handle(Source):
    """Stands for a part of the trial's data, of which it knows the role alone."""

    role: str
    """What the defense knows it as: "fit", "labels", "clean", "clean_labels", "inputs"."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return super().__getattr__(name)  # type: ignore[misc]  # pydantic's, for private attributes
        expected = f"expected a chain that hands given.{self.role} to its nodes and looks into it nowhere"
        raise Withheld(Problem("defense", expected, f"given.{self.role}.{name}"))

    @property
    def gives(self) -> type:
        return ImageSet if self.role in IMAGE_ROLES else LabelSet

    def made_of(self) -> dict[str, Any]:
        return {"handle": self.role}

    def load(self, resident: Resident, artefacts: Mapping[str, Artefact]) -> NoReturn:
        raise BdtuneError(f"the handle '{self.role}' must be replaced by its source before it is loaded")


class HandedOver(Stage):
    """Stands for the training of the model that the attacker hands over: how it was made is not shown."""

    name: ClassVar[str] = "handed_over"
    kind: ClassVar[Kind] = "train"
    classifier: ClassVar[bool] = True

    def run(self, ctx: Context) -> Artefact:
        raise BdtuneError("the model that the attacker hands over must be put in its place before it is used")


FIT, LABELS = Handle(role="fit"), Handle(role="labels")
CLEAN, CLEAN_LABELS = Handle(role="clean"), Handle(role="clean_labels")
INPUTS = Handle(role="inputs")
"""Test images without labels: what a detector scores once its chain is made."""
BACKDOORED = Node(HandedOver(), {})
