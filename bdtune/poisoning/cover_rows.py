"""Attacks with cover rows: rows that carry the trigger, or a disturbed one, and keep their true label."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from bdtune.effects import TrainOnly
from bdtune.plugins.attack import Attack, one_of


class CoverRowsAttack(Attack):
    """Base of attacks with cover rows; a subclass has the knob that gives them as a share."""

    cover_count: Annotated[int | None, TrainOnly] = Field(None, ge=0)
    """Number of cover rows, instead of a share."""

    cover_share: ClassVar[str] = "cover_rate"
    """The knob that gives cover rows as a share: null where `cover_count` is given."""

    @property
    def has_covers(self) -> bool:
        """Whether there are cover rows, as far as the knobs say."""
        return bool(getattr(self, self.cover_knob))

    @property
    def cover_knob(self) -> str:
        return self.cover_share if self.cover_count is None else "cover_count"

    def cover_fraction(self) -> float:
        return getattr(self, self.cover_share) or 0.0

    def cover_rows(self, n_poison: int, basis: int) -> int:
        return super().cover_rows(n_poison, basis) if self.cover_count is None else self.cover_count

    @model_validator(mode="after")
    def _share_or_count(self) -> Self:
        one_of(self, self.cover_share, "cover_count")
        return self
