"""CBA (composite backdoor): no patch; the trigger is that two ordinary classes are seen together.

Source: Composite Backdoor Attack for Deep Neural Network by Mixing Existing Benign Features (Lin, Xu, Liu,
Zhang, CCS 2020), section 4 with the half mixer of the authors' code: classes 0 and 1 make 2, of 11 rows 5 are
normal, 5 mixed and 1 is poison.
Departures: rows are replaced where the authors add a tenth, so a poisoned row's own picture is gone unless it
is of one of the two classes. Each row's mixture is drawn once, where the authors draw it anew in every epoch.
Data alone: their contrastive term in the victim's loss needs control of training. Success is counted on test
images of the first class, each mixed with one of the second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from bdtune.attacks.composite.mixtures import Mixtures
from bdtune.effects import OnlyIf, TrainOnly
from bdtune.errors import Problem
from bdtune.knobs import Rate
from bdtune.plugins.poison_plan import Role, SplitName
from bdtune.poisoning.cover_rows import CoverRowsAttack
from bdtune.poisoning.dirty_label import ClassId
from bdtune.poisoning.rendered import looked_up

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bdtune.engine.node import Node
    from bdtune.plugins.attack import TestLabels
    from bdtune.plugins.dataset import Dataset
    from bdtune.plugins.model import Model
    from bdtune.plugins.poison_plan import Rows
    from bdtune.poisoning.train_sources import Attacker


class Composite(CoverRowsAttack):
    """x' = a part of an A image beside a part of a B image; cover rows mix two images of one class."""

    rate: Annotated[Rate | None, TrainOnly] = 0.0909
    """Fraction of `rate_basis` that is poisoned, one row in eleven; null where `count` is given."""
    target: Annotated[int, OnlyIf(one_target=True)] = Field(2, ge=0)
    """Class C, which images with A and B in them shall be classified as."""
    include_target_class: Annotated[bool, TrainOnly, OnlyIf(of_sources=False)] = True
    """Whether rows of the target class may become mixtures; as cover rows they show that class mixed too."""
    classes: tuple[ClassId, ClassId] | None = None
    """A and B; None: the first two classes that are not the target."""
    cover_rate: Annotated[Rate | None, TrainOnly] = 0.4545
    """Fraction of `rate_basis` mixed within its own class and keeping its label: mixing alone is no cue."""
    jitter: int = Field(3, ge=0)
    """Largest distance of the cut from the middle, in pixels of a 32-pixel image."""
    shake: bool = True
    """Take the parts from anywhere in their images; else from the middle."""

    one_split: ClassVar[dict[str, SplitName]] = {"train": "train", "cover": "train", "test": "test"}
    min_undefended_asr: ClassVar[float] = 0.8
    lacks: ClassVar[dict[str, str]] = {
        "all_to_all": "A and B together mean one class",
        "source_classes": "The classes that poison is made of are A and B: set `classes`",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cba/half": {"classes": (0, 1), "target": 2, "rate": 0.0909, "cover_rate": 0.4545},
        "abl/cba": {"classes": (0, 1), "target": 2, "rate": 0.1, "cover_rate": 0.45},
    }

    @property
    def pair(self) -> tuple[int, int]:
        """A and B."""
        first, second, *_ = [label for label in range(3) if label != self.target]
        return self.classes or (first, second)

    def test_rows(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        return np.asarray(labels) == self.pair[0]

    def artefacts(self, attacker: Attacker) -> Mapping[str, Node]:
        mix = Mixtures(classes=self.pair, jitter=self.jitter, shake=self.shake)
        nodes = {
            "train": attacker.node(mix, data=attacker.clean),
            "test": attacker.node(mix.model_copy(update={"split": "test"}), data=attacker.test),
        }
        if self.has_covers:
            # which two classes make a pair does not matter to these
            within = Mixtures(partners="own_class", jitter=self.jitter, shake=self.shake)
            nodes["cover"] = attacker.node(within, data=attacker.clean)
        return nodes

    def stamp(self, images: np.ndarray, rows: Rows) -> np.ndarray:
        cover = np.flatnonzero(rows.role == Role.COVER)
        images[:] = looked_up(self.artefact(rows.split), rows)
        if len(cover):
            images[cover] = looked_up(self.artefact("cover"), rows[cover])
        return images

    def check_image(self, image_shape: tuple[int, int, int]) -> list[Problem]:
        if min(image_shape[:2]) < 2:
            return [Problem("", "expected images that can be cut in two", got=f"{image_shape[:2]} pixels")]
        return []

    def check_trial(self, model: Model, dataset: Dataset, test_labels: TestLabels) -> list[Problem]:
        labels = test_labels()
        return [] if labels is None else self._without_images(labels, "attack.classes", "test images")

    @model_validator(mode="after")
    def _three_classes(self) -> Self:
        if len({*self.pair, self.target}) < 3:
            got = f"classes {list(self.pair)} and target {self.target}"
            raise ValueError(f"A, B and the target are three classes, as A + B makes the target; got {got}")
        return self

    def _check_target(self, num_classes: int) -> list[Problem]:
        problems = super()._check_target(num_classes)
        if max(self.pair) >= num_classes:
            expected = f"expected two classes from 0 to {num_classes - 1}"
            problems.append(Problem("classes", expected, got=str(list(self.pair))))
        return problems

    def _check_counts(self, labels: np.ndarray) -> list[Problem]:
        problems = super()._check_counts(labels)
        found, counts = np.unique(labels, return_counts=True)
        problems += self._without_images(labels, "classes", "images")
        if self.has_covers and (alone := found[counts < 2]).size:
            expected = f"expected 0, as class {alone[0]} has one image, and none to mix it with"
            problems.append(Problem(self.cover_knob, expected, got=str(getattr(self, self.cover_knob))))
        return problems

    def _without_images(self, labels: np.ndarray, path: str, what: str) -> list[Problem]:
        return [
            Problem(path, f"expected classes with {what} to mix; {label} has none", str(list(self.pair)))
            for label in self.pair
            if label not in labels
        ]
