"""A defense with knobs of every kind, for tests of what reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from bdtune.knobs import Knobs, Rate
from bdtune.plugins.all_samples import AllSamples
from bdtune.plugins.defense import Defense
from bdtune.training.supervised import Supervised

if TYPE_CHECKING:
    from bdtune.engine.node import Node
    from bdtune.plugins.defense import DefenseInputs


class Warmup(Knobs):
    epochs: int = Field(5, ge=1)
    lr: float = Field(1e-3, gt=0)


class Tiny(Defense):
    beta: float = Field(0.6, ge=0)
    alpha_c: Rate = 0.3
    alpha_p: Rate = 0.15
    steps: int = Field(10, ge=1)
    mode: Literal["fast", "slow"] = "fast"
    milestones: tuple[Rate, ...] = (0.5, 0.75)
    limit: int | None = Field(None, ge=1)
    on: bool = True
    warmup: Warmup = Warmup()

    @model_validator(mode="after")
    def _parts_fit(self) -> Tiny:
        if self.alpha_c + self.alpha_p > 1:
            raise ValueError(f"expected alpha_c + alpha_p of at most 1, got {self.alpha_c + self.alpha_p:g}")
        return self

    def build(self, given: DefenseInputs) -> dict[str, Node]:
        subset = given.node(AllSamples(), data=given.fit)
        train = Supervised(epochs=self.steps)
        classifier = given.node(train, data=given.fit, subset=subset, model=given.model)
        return {"subset": subset, "classifier": classifier}

    def baseline_training(self) -> Supervised:
        return Supervised(epochs=self.steps)
