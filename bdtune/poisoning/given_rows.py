"""Attacks whose training images may be made elsewhere: only rows that the file has can be poisoned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bdtune.plugins.attack import Attack
from bdtune.poisoning.image_files import file_problems, image_file

if TYPE_CHECKING:
    from pathlib import Path

    from bdtune.errors import Problem
    from bdtune.poisoning.image_files import ImageFile


class GivenRowsAttack(Attack):
    """Base of attacks that can take their training images, by sample id, from a user's file or folder."""

    @property
    def given_train(self) -> tuple[Path | None, str]:
        """The file of training images, None where they are made here, and the knob that names it."""
        return None, ""

    def _candidates(self, labels: np.ndarray) -> np.ndarray:
        found, given = super()._candidates(labels), self._given()
        return found if given is None else np.intersect1d(found, given.known(len(labels)))

    def _candidates_text(self) -> str:
        has = f" and in {self.given_train[1]}" if self._given() else ""
        return super()._candidates_text() + has

    def _check_counts(self, labels: np.ndarray) -> list[Problem]:
        given = self._given()
        problems = [] if given is None else given.problems(len(labels), "train")
        return problems or super()._check_counts(labels)

    def _given(self) -> ImageFile | None:
        """Return the file of training images if it can be read; `check_files` says why it cannot."""
        path, knob = self.given_train
        return None if path is None or file_problems(path, knob) else image_file(path, knob)
