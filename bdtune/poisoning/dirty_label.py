"""Attacks that relabel what they poison: to one class or each class to the next, from all classes or some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from pydantic import AfterValidator, Field, model_validator

from bdtune.errors import Problem
from bdtune.plugins.attack import Attack

if TYPE_CHECKING:
    from collections.abc import Sequence

ClassId = Annotated[int, Field(ge=0)]

CLEAN_LABEL = {
    "all_to_all": "A clean-label attack changes no label",
    "source_classes": "A clean-label attack poisons images of its target class alone",
}
"""What clean-label attacks lack, and why."""


def _ascending(classes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if classes is None else tuple(sorted(classes))  # their order changes nothing


class DirtyLabelAttack(Attack):
    """Base of attacks that relabel; success is counted on test images of the classes that are poisoned."""

    all_to_all: bool = False
    """Relabel class y to y + 1 (mod K) instead of to `target`; every class is then poisoned and tested."""
    source_classes: Annotated[tuple[ClassId, ...] | None, AfterValidator(_ascending)] = Field(
        None, min_length=1
    )
    """Classes that poison, cover rows and triggered test images are of; null: see `include_target_class`."""

    aimed: ClassVar[str] = ""
    """Why the trigger needs one target class, as a clause; empty where it does not."""

    @property
    def needs_one_target(self) -> str:
        """Why the attack with these knobs needs one target class; empty where it does not."""
        return self.aimed

    @property
    def single_target(self) -> int | None:
        return None if self.all_to_all else self.target

    def test_labels(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return (labels + 1) % num_classes if self.all_to_all else super().test_labels(labels, num_classes)

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return self._of_sources(np.asarray(labels))

    @property
    def of_sources(self) -> bool:
        return self.source_classes is not None

    @model_validator(mode="after")
    def _classes_agree(self) -> Self:
        if self.all_to_all and self.needs_one_target:
            raise ValueError(f"all_to_all has no single target class, and {self.needs_one_target}")
        if self.all_to_all and self.rate_basis != "dataset":
            raise ValueError("all_to_all has no single target class: rate_basis must be 'dataset'")
        sources = self.source_classes or ()
        if len(set(sources)) < len(sources):
            raise ValueError(f"source_classes names a class twice: {list(sources)}")
        if self.single_target in sources:
            raise ValueError(
                f"source_classes has the target, {self.target}, whose images bear that label already"
            )
        return self

    def _of_sources(self, labels: np.ndarray) -> np.ndarray:
        """Return bool [N]: the images of true classes int64 [N] that are of a source class."""
        if self.source_classes is None:
            return np.ones(len(labels), bool)
        return np.isin(labels, self.source_classes)

    def _candidates(self, labels: np.ndarray) -> np.ndarray:
        if self.source_classes is None:
            return super()._candidates(labels)
        return np.flatnonzero(self._of_sources(labels))

    def _candidates_text(self) -> str:
        if self.source_classes is None:
            return super()._candidates_text()
        return f"of {named(self.source_classes)}"

    def _check_target(self, num_classes: int) -> list[Problem]:
        problems = super()._check_target(num_classes)
        if self.source_classes is not None and max(self.source_classes) >= num_classes:
            expected = f"expected classes from 0 to {num_classes - 1}"
            problems.append(Problem("source_classes", expected, got=str(list(self.source_classes))))
        return problems


def named(classes: Sequence[int]) -> str:
    """Return classes as text: "class 1", "classes 1, 3 and 4"."""
    first, last = [str(label) for label in classes[:-1]], str(classes[-1])
    return f"classes {', '.join(first)} and {last}" if first else f"class {last}"
