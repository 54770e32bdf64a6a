"""The poison plan: which samples are poisoned or covered, and what label everyone sees.

N samples of the training set, identified by their position 0..N-1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from bdtune.engine.key import digest_of, sample_generator

if TYPE_CHECKING:
    from collections.abc import Mapping

SplitName = Literal["train", "test"]


class Role(IntEnum):
    """What a row of the training set is."""

    CLEAN = 0
    POISON = 1
    """Carries the trigger and the label that the attacker wants."""
    COVER = 2
    """Carries the trigger (or a disturbed one) and its true label; not poison in detection metrics."""


@dataclass(frozen=True, eq=False)
class PoisonPlan:
    """What an attack does to a training set: made once, from the true labels and a seed alone."""

    poison_ids: np.ndarray  # int64 [n], ascending
    cover_ids: np.ndarray  # int64 [m], ascending, none of them in poison_ids
    labels: np.ndarray  # int64 [N], observed: what the trainer sees
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [N, ...], by sample id
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        """Return how many rows are changed; a notebook prints it."""
        covered = f", {len(self.cover_ids)} with the trigger and their own label" * bool(len(self.cover_ids))
        return f"PoisonPlan({len(self.poison_ids)} of {len(self)} images poisoned{covered}; seed {self.seed})"

    @cached_property
    def _role(self) -> np.ndarray:
        role = np.zeros(len(self.labels), np.uint8)
        role[self.poison_ids] = Role.POISON
        role[self.cover_ids] = Role.COVER
        role.flags.writeable = False
        return role

    def role(self) -> np.ndarray:
        """Return uint8 [N], each row's `Role`."""
        return self._role

    def digest(self) -> str:
        """Return a digest of the whole plan, to name a poisoned set by."""
        extras = {f"extras.{name}": array for name, array in self.extras.items()}
        rows = {"poison_ids": self.poison_ids, "cover_ids": self.cover_ids, "labels": self.labels}
        return digest_of({**rows, **extras}, {"seed": self.seed})


@dataclass(frozen=True, eq=False)
class Rows:
    """What `stamp` knows about the n images it is given; arrays are aligned with them."""

    split: SplitName
    ids: np.ndarray  # int64 [n], sample ids
    role: np.ndarray  # uint8 [n]; in the test split all the same, `Role.POISON` but for `as_cover`
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)  # each [n, ...]; empty in the test split

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: slice | np.ndarray) -> Rows:
        """Return some of the rows, as when a stamp treats poison and cover rows differently."""
        extras = {name: array[index] for name, array in self.extras.items()}
        return Rows(self.split, self.ids[index], self.role[index], extras)


def exact_count(rate: float, basis: int) -> int:
    """Return floor(rate * basis) of the decimal number that was written: 0.29 of 100 is 29, not 28."""
    return int(Decimal(repr(float(rate))) * basis)


def drawn_order(candidates: np.ndarray, total: int, seed: int) -> np.ndarray:
    """Return the candidate ids (int64) in a seeded random order.

    Each of `total` ids has one random 64-bit word and the order sorts by it. So a smaller rate poisons a
    subset of what a larger one does, leaving candidates out keeps the order of the rest, and numpy's version
    does not matter (raw words are a stable interface, `Generator.permutation` is not).
    """
    words = sample_generator(seed, "plan").bit_generator.random_raw(total)
    return candidates[np.argsort(words[candidates], kind="stable")]
